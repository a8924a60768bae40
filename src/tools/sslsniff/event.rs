// SPDX-License-Identifier: BSD-2-Clause

//! What sslsniff prints: one type per kind of line.

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use serde::Serialize;

use super::discover::Library;
use super::payload::{self, Payload};
use super::record::Direction;
use crate::output::{Event, Line, Printable, Style};
use crate::process::Identity;

/// The probes are in place.
#[derive(Debug, Serialize)]
pub struct Ready {
    /// The files that are probed.
    pub libraries: Vec<String>,
    /// Those that were found and could not be probed.
    pub skipped: Vec<Skipped>,
    /// How: `uprobe.multi` or `uprobe`.
    pub method: &'static str,
}

/// A file that is not probed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Its path.
    pub path: String,
    /// What the kernel says of it.
    pub reason: String,
    /// Which of the libraries it is, as two may have one path.
    #[serde(skip)]
    pub index: usize,
}

impl Skipped {
    /// `library`, the one at `index`, left out for this reason.
    pub fn of(index: usize, library: &Library, reason: &str) -> Self {
        Self {
            index,
            path: library.path.to_string_lossy().into_owned(),
            reason: reason.to_owned(),
        }
    }
}

impl Event for Ready {
    fn kind(&self) -> &'static str {
        "ready"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        write!(line, "ready")
    }
}

/// `curl[12] 3`: who, and which connection.
pub(super) fn subject(line: &mut Line<'_>, who: &Identity, connection: u64) -> io::Result<()> {
    let comm = who.comm.as_deref().unwrap_or("?");
    let pid = who.pid.unwrap_or_default();
    write!(line, "{}[{pid}] #{connection} ", Printable(comm))
}

/// A part of what a call read or wrote.
#[derive(Debug, Serialize)]
pub struct Data<'a> {
    /// `read` or `write`.
    pub direction: &'static str,
    /// The function that was called.
    pub function: &'static str,
    /// The file that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<&'a str>,
    /// The connection's number in this run.
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
    /// Whether secrets in the data are replaced by `*`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub masked: bool,
    /// The bytes, as JSON has them.
    #[serde(flatten)]
    pub data: Payload<'a>,
    /// The program that called.
    #[serde(flatten)]
    pub who: &'a Identity,
    /// The bytes, for text and files: secrets are masked.
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

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        subject(line, self.who, self.connection)?;
        if self.direction == Direction::Read.name() {
            line.styled(Style::Good, format_args!("<- {}", self.function))?;
        } else {
            line.styled(Style::Note, format_args!("-> {}", self.function))?;
        }
        write!(line, " {} bytes", self.length)?;
        if self.offset > 0 {
            write!(line, " at {}", self.offset)?;
        }
        if u64::from(self.captured) < self.length {
            write!(line, ", {} shown", self.captured)?;
        }
        if let Some(missing) = self.missing {
            line.styled(Style::Bad, format_args!(", {missing} lost before"))?;
        }
        if self.bytes.is_empty() {
            return Ok(());
        }
        payload::lines(line, self.bytes, self.offset, self.hex)
    }
}

/// A handshake came to an end.
#[derive(Debug, Serialize)]
pub struct Handshake<'a> {
    /// `SSL_do_handshake`
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
        let style = if self.result == "ok" {
            Style::Dim
        } else {
            Style::Bad
        };
        line.styled(style, format_args!("handshake {}", self.result))?;
        #[allow(clippy::cast_precision_loss)]
        let milliseconds = self.duration_ns as f64 / 1e6;
        write!(line, " after {milliseconds:.3} ms")
    }
}

/// A connection was freed.
#[derive(Debug, Serialize)]
pub struct Close<'a> {
    /// The connection's number in this run; no other has it.
    pub connection: u64,
    /// Bytes that were read, as far as the connection was seen.
    pub read: u64,
    /// Bytes that were written, likewise.
    pub written: u64,
    /// Nanoseconds since it was first seen.
    pub duration_ns: u64,
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
        line.styled(Style::Dim, "close")?;
        write!(line, ", {} bytes read, {} written", self.read, self.written)
    }
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
pub struct Lost {
    /// Why.
    pub cause: &'static str,
    /// How much.
    #[serde(flatten)]
    pub amount: Amount,
}

impl Event for Lost {
    fn kind(&self) -> &'static str {
        "lost"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        let Amount { calls, bytes } = self.amount;
        let cause = self.cause;
        line.styled(
            Style::Bad,
            format_args!("lost: {calls} calls, {bytes} bytes ({cause})"),
        )
    }
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
        match (self.command_status, self.command_signal) {
            (Some(status), _) => write!(line, "; the command ended with status {status}"),
            (_, Some(signal)) => write!(line, "; signal {signal} ended the command"),
            _ => Ok(()),
        }
    }
}
