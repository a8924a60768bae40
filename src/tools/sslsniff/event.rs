// SPDX-License-Identifier: BSD-2-Clause

//! What sslsniff prints: one type per kind of line.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::time::Duration;

use serde::Serialize;

pub use super::facts::{Ends, Facts, Trouble};
use super::payload;
pub use super::places::MadeIn;
use super::record::Direction;
pub use super::skips::{Skipped, Skips};
use crate::output::{Event, Fields, Line, Printable, Style};
use crate::process::Identity;

/// The probes are in place.
#[derive(Debug, Serialize)]
pub struct Ready {
    /// The files that are probed.
    pub libraries: Vec<String>,
    /// Those that were found and could not be probed.
    #[serde(flatten)]
    pub skipped: Skips,
    /// How: `uprobe.session`, `uprobe.multi` or `uprobe`.
    pub method: &'static str,
}

/// A file was found after the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Arrived {
    /// Its path, as the process that was found to use it sees it.
    pub library: String,
    /// The process that was found to use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What is probed in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<&'static str>,
    /// Why it is not probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Event for Arrived {
    fn kind(&self) -> &'static str {
        "library"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        let library = Printable(&self.library);
        match &self.reason {
            None => line.styled(Style::Dim, format_args!("watching {library} too"))?,
            Some(reason) => {
                let reason = Printable(reason);
                line.styled(Style::Bad, format_args!("cannot probe {library}: {reason}"))?;
            }
        }
        match self.pid {
            Some(pid) => write!(line, ", which process {pid} uses"),
            None => Ok(()),
        }
    }
}

impl Event for Ready {
    fn kind(&self) -> &'static str {
        "ready"
    }

    fn text(&self, _line: &mut Line<'_>) -> io::Result<()> {
        // That it is there is all.
        Ok(())
    }
}

/// `curl[12] 3`: who, and which connection.
pub(super) fn subject(line: &mut Line<'_>, who: &Identity, connection: u64) -> io::Result<()> {
    let comm = who.comm.as_deref().unwrap_or("?");
    let pid = who.pid.unwrap_or_default();
    write!(line, "{}[{pid}] #{connection} ", Printable(comm))
}

/// More is known of what a connection's ends have agreed upon.
#[derive(Debug, Serialize)]
pub struct Negotiated<'a> {
    /// The connection's number in this run.
    pub connection: u64,
    /// All that is known so far.
    #[serde(flatten)]
    pub facts: &'a Facts,
    /// Its ends.
    #[serde(flatten)]
    pub ends: &'a Ends,
    /// The program that asked.
    #[serde(flatten)]
    pub who: &'a Identity,
}

impl Event for Negotiated<'_> {
    fn kind(&self) -> &'static str {
        "negotiated"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        subject(line, self.who, self.connection)?;
        self.ends.text(line)?;
        line.styled(Style::Dim, "negotiated")?;
        self.facts.text(line)
    }
}

/// The program has said that it is done with a connection.
#[derive(Debug, Serialize)]
pub struct Shutdown<'a> {
    /// The function that was called.
    pub function: &'static str,
    /// The connection's number in this run.
    pub connection: u64,
    /// `both` if the peer has said so too, else `sent`.
    pub result: &'static str,
    /// Its ends.
    #[serde(flatten)]
    pub ends: &'a Ends,
    /// The program that called.
    #[serde(flatten)]
    pub who: &'a Identity,
}

impl Event for Shutdown<'_> {
    fn kind(&self) -> &'static str {
        "shutdown"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        subject(line, self.who, self.connection)?;
        self.ends.text(line)?;
        line.styled(Style::Dim, format_args!("shutdown {}", self.result))
    }
}

/// A part of what a call read or wrote.
#[derive(Debug, Serialize)]
pub struct Data<'a> {
    /// `read` or `write`.
    pub direction: &'static str,
    /// The function that was called.
    pub function: &'static str,
    /// The file that it is in.
    #[serde(skip)]
    pub library: Option<&'a str>,
    /// The connection's number in this run.
    #[serde(skip)]
    pub connection: u64,
    /// Where in the connection's direction this starts, in bytes since it was first seen.
    pub offset: u64,
    /// Bytes of the stream that this stands for.
    pub length: u64,
    /// Bytes of them that are in the data; the rest was not asked for.
    pub captured: u32,
    /// Bytes right before `offset` that were lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
    /// Nanoseconds from the call's entry to its return, if that is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ns: Option<u64>,
    /// From the call's entry to its return.
    #[serde(skip)]
    pub took: Duration,
    /// The bytes stay to be read again: they come once more, at the same offset.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
    /// Whether secrets in the data are replaced by `*`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub masked: bool,
    /// Where the call was made; of its first part.
    #[serde(flatten)]
    pub made: MadeIn,
    /// What the connection's lines of JSON have in common: `library`, `connection`, its ends and the program.
    #[serde(skip)]
    pub common: Option<&'a Fields>,
    /// The connection's ends.
    #[serde(skip)]
    pub ends: &'a Ends,
    /// The program that called.
    #[serde(skip)]
    pub who: &'a Identity,
    /// The bytes, for lines and files: secrets are masked.
    #[serde(skip)]
    pub bytes: &'a [u8],
    /// The bytes as they passed, for those that mask what they find in them.
    #[serde(skip)]
    pub raw: &'a [u8],
    /// A call starts with them.
    #[serde(skip)]
    pub starts: bool,
    /// Text is to be a hex dump.
    #[serde(skip)]
    pub hex: bool,
}

impl Event for Data<'_> {
    fn kind(&self) -> &'static str {
        "data"
    }

    fn constant(&self) -> Option<&Fields> {
        self.common
    }

    fn payload(&self) -> &[u8] {
        self.bytes
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        subject(line, self.who, self.connection)?;
        self.ends.text(line)?;
        if self.direction == Direction::Read.name() {
            line.styled(Style::Good, format_args!("<- {}", self.function))?;
        } else {
            line.styled(Style::Note, format_args!("-> {}", self.function))?;
        }
        write!(line, " {} bytes", self.length)?;
        if self.offset > 0 {
            write!(line, " at {}", self.offset)?;
        }
        if let Some(duration) = self.duration_ns {
            #[allow(clippy::cast_precision_loss)]
            let microseconds = duration as f64 / 1e3;
            write!(line, " in {microseconds:.1} us")?;
        }
        if self.repeated {
            write!(line, ", to be read again")?;
        }
        if u64::from(self.captured) < self.length {
            write!(line, ", {} shown", self.captured)?;
        }
        if let Some(missing) = self.missing {
            line.styled(Style::Bad, format_args!(", {missing} lost before"))?;
        }
        self.made.text(line)?;
        if self.bytes.is_empty() {
            return Ok(());
        }
        payload::lines(line, self.bytes, self.offset, self.hex)
    }
}

/// A handshake came to an end.
#[derive(Debug, Serialize)]
pub struct Handshake<'a> {
    /// The function that was called.
    pub function: &'static str,
    /// The file that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<&'a str>,
    /// The connection's number in this run.
    pub connection: u64,
    /// `ok`, or `failed` if the connection was freed before the handshake was done.
    pub result: &'static str,
    /// Nanoseconds since the first call.
    pub duration_ns: u64,
    /// What is known of what was agreed upon.
    #[serde(flatten)]
    pub facts: &'a Facts,
    /// Why it failed, if it did.
    #[serde(flatten)]
    pub trouble: &'a Trouble,
    /// Where the call was made that ended it.
    #[serde(flatten)]
    pub made: MadeIn,
    /// The connection's ends.
    #[serde(flatten)]
    pub ends: &'a Ends,
    /// The program that called.
    #[serde(flatten)]
    pub who: &'a Identity,
}

impl Event for Handshake<'_> {
    fn kind(&self) -> &'static str {
        "handshake"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        subject(line, self.who, self.connection)?;
        self.ends.text(line)?;
        let style = if self.result == "ok" {
            Style::Dim
        } else {
            Style::Bad
        };
        line.styled(style, format_args!("handshake {}", self.result))?;
        #[allow(clippy::cast_precision_loss)]
        let milliseconds = self.duration_ns as f64 / 1e6;
        write!(line, " after {milliseconds:.3} ms")?;
        self.trouble.text(line)?;
        self.facts.text(line)?;
        self.made.text(line)
    }
}

/// A connection was freed, or its process is over.
#[derive(Debug, Serialize)]
pub struct Close<'a> {
    /// The connection's number in this run; no other has it.
    pub connection: u64,
    /// The process ended, or is another program, and had not freed it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unfreed: bool,
    /// Bytes that were read, as far as the connection was seen.
    pub read: u64,
    /// Bytes that were written, likewise.
    pub written: u64,
    /// The last so many bytes that were read are on no line: they were lost.
    #[serde(skip_serializing_if = "is_zero")]
    pub read_missing: u64,
    /// The same of those that were written.
    #[serde(skip_serializing_if = "is_zero")]
    pub written_missing: u64,
    /// Nanoseconds since it was first seen.
    pub duration_ns: u64,
    /// What is known of what was agreed upon.
    #[serde(flatten)]
    pub facts: &'a Facts,
    /// What went wrong, if anything did.
    #[serde(flatten)]
    pub trouble: &'a Trouble,
    /// Its ends.
    #[serde(flatten)]
    pub ends: &'a Ends,
    /// The program that called.
    #[serde(flatten)]
    pub who: &'a Identity,
}

impl Event for Close<'_> {
    fn kind(&self) -> &'static str {
        "close"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        subject(line, self.who, self.connection)?;
        self.ends.text(line)?;
        line.styled(Style::Dim, "close")?;
        if self.unfreed {
            write!(line, " (the program is over)")?;
        }
        write!(line, ", {} bytes read", self.read)?;
        lost_last(line, self.read_missing)?;
        write!(line, ", {} written", self.written)?;
        lost_last(line, self.written_missing)?;
        self.trouble.text(line)
    }
}

fn lost_last(line: &mut Line<'_>, missing: u64) -> io::Result<()> {
    if missing > 0 {
        line.styled(Style::Bad, format_args!(" (the last {missing} lost)"))?;
    }
    Ok(())
}

/// Calls and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Calls, each that lost a byte or all.
    pub calls: u64,
    /// Bytes.
    pub bytes: u64,
}

/// More was lost since the last such line.
#[derive(Debug, Serialize)]
pub struct Lost<'a> {
    /// Why.
    pub cause: &'static str,
    /// How much.
    #[serde(flatten)]
    pub amount: Amount,
    /// The process, unless too many have lost something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The name of its thread that lost first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<&'a str>,
}

impl Event for Lost<'_> {
    fn kind(&self) -> &'static str {
        "lost"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        let Amount { calls, bytes } = self.amount;
        let cause = self.cause;
        if let Some(pid) = self.pid {
            write!(line, "{}[{pid}] ", Printable(self.comm.unwrap_or("?")))?;
        }
        line.styled(
            Style::Bad,
            format_args!("lost: {calls} calls, {bytes} bytes ({cause})"),
        )
    }
}

/// serde's way to call it.
#[allow(clippy::trivially_copy_pass_by_ref)]
pub(super) fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// All of it, at the end. Calls: `seen` = `delivered` + `lost`. Bytes: `bytes_seen` =
/// `bytes_delivered` + `bytes_cut` + `bytes_lost`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Calls that were to be shown: those that moved data, handshakes, closes.
    pub seen: u64,
    /// Calls of them that were shown whole.
    pub delivered: u64,
    /// Calls of them of which a part or all was lost.
    pub lost: u64,
    /// Bytes that calls moved.
    pub bytes_seen: u64,
    /// Bytes of them that were shown.
    pub bytes_delivered: u64,
    /// Bytes of them that were not asked for (`--max-bytes`, `--no-payload`).
    pub bytes_cut: u64,
    /// Bytes of them that were lost.
    pub bytes_lost: u64,
    /// What was lost, by cause.
    pub lost_by_cause: BTreeMap<&'static str, Amount>,
    /// Children of watched processes that were not watched because there were too many.
    pub missed_children: u64,
    /// Calls whose stack was lost as the ring was full (`--stack`).
    #[serde(skip_serializing_if = "is_zero")]
    pub lost_stacks: u64,
    /// Keys that were lost as the ring was full, or could not be read (`--keylog`).
    #[serde(skip_serializing_if = "is_zero")]
    pub lost_keys: u64,
    /// How often a program was not stopped that mapped a file which was not looked into (`--hold`).
    #[serde(skip_serializing_if = "is_zero")]
    pub not_held: u64,
    /// Connections that were seen.
    pub connections: u64,
    /// The exit status of the command, if it ended by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_status: Option<i32>,
    /// The signal that ended the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_signal: Option<i32>,
}

impl Event for Summary {
    fn kind(&self) -> &'static str {
        "summary"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        let Self {
            seen,
            delivered,
            lost,
            ..
        } = self;
        write!(
            line,
            "{seen} calls seen, {delivered} delivered, {lost} lost; "
        )?;
        let Self {
            bytes_seen,
            bytes_delivered,
            bytes_cut,
            bytes_lost,
            ..
        } = self;
        write!(
            line,
            "{bytes_seen} bytes seen, {bytes_delivered} delivered, "
        )?;
        if *bytes_cut > 0 {
            write!(line, "{bytes_cut} not asked for, ")?;
        }
        write!(line, "{bytes_lost} lost")?;
        for (cause, Amount { calls, bytes }) in &self.lost_by_cause {
            if *calls > 0 || *bytes > 0 {
                write!(line, "; {cause}: {calls} calls, {bytes} bytes")?;
            }
        }
        if self.missed_children > 0 {
            write!(line, "; {} children not watched", self.missed_children)?;
        }
        if self.not_held > 0 {
            write!(line, "; {} times a program was not held", self.not_held)?;
        }
        match (self.command_status, self.command_signal) {
            (Some(status), _) => write!(line, "; the command ended with status {status}"),
            (_, Some(signal)) => write!(line, "; signal {signal} ended the command"),
            _ => Ok(()),
        }
    }
}
