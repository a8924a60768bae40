// SPDX-License-Identifier: BSD-2-Clause

//! The lines of imds-watch.

use std::io::{self, Write as _};

use serde::Serialize;

use super::plan::Finding;
use crate::kernel::lineage::Parent;
use crate::kernel::stacks::Frame;
use crate::output::{Event, Line, Printable, Style};
use crate::process::Identity;

/// Who opened a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Caller {
    /// The process.
    #[serde(flatten)]
    pub identity: Identity,
    /// It is in another network namespace, whose users and groups are not the machine's, though the numbers may be.
    #[serde(skip)]
    pub foreign: bool,
    /// Its command line, with secrets masked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// The processes above it, from the nearest on, four at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<Parent>,
    /// Where in it, if that is wanted.
    #[serde(flatten)]
    pub opened_in: OpenedIn,
}

/// In which functions a connection was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OpenedIn {
    /// Those that its thread was in when it called connect(), the innermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stack: Vec<Frame>,
    /// Why that is not all, or why there are no names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_reason: Option<&'static str>,
}

impl OpenedIn {
    /// Writes a line for each function, below what was done there.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        for frame in &self.stack {
            let frame = frame.to_string();
            line.write_all(b"\n    ")?;
            line.styled(Style::Dim, format_args!("at {}", Printable(&frame)))?;
        }
        match self.stack_reason {
            Some(reason) => {
                line.write_all(b"\n    ")?;
                line.styled(Style::Dim, format_args!("({reason})"))
            }
            None => Ok(()),
        }
    }
}

impl Caller {
    /// Writes it for people: process, user, container or unit, parent.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        let who = &self.identity;
        match (&who.comm, who.pid) {
            (Some(comm), Some(pid)) => write!(line, "{}[{pid}]", Printable(comm))?,
            (Some(comm), None) => write!(line, "{}", Printable(comm))?,
            (None, Some(pid)) => write!(line, "pid {pid}")?,
            (None, None) => line.write_all(b"an unknown process")?,
        }
        match (&who.user, who.uid) {
            (Some(user), _) => write!(line, " user {}", Printable(user))?,
            (None, Some(uid)) => write!(line, " uid {uid}")?,
            (None, None) => {}
        }
        if let Some(container) = &who.container {
            write!(
                line,
                " container {}",
                Printable(container.get(..12).unwrap_or(container))
            )?;
        } else if let Some(unit) = &who.unit {
            write!(line, " unit {}", Printable(unit))?;
        }
        if let Some(parent) = self.parents.first() {
            let comm = parent.comm.as_deref().unwrap_or("?");
            line.styled(
                Style::Dim,
                format_args!(" from {}[{}]", Printable(comm), parent.pid),
            )?;
        }
        Ok(())
    }

    /// What callers are told apart by: the container, else the unit, else executable (or name) and
    /// user.
    pub fn group(&self) -> String {
        let who = &self.identity;
        match (&who.container, &who.unit) {
            (Some(container), _) => format!("container {container}"),
            (None, Some(unit)) => format!("unit {unit}"),
            (None, None) => format!(
                "exe {} uid {:?}",
                who.exe
                    .as_ref()
                    .or(who.comm.as_ref())
                    .map_or("?", String::as_str),
                who.uid
            ),
        }
    }

    /// A short name of the same.
    pub fn label(&self) -> String {
        let who = &self.identity;
        match (
            &who.container,
            &who.unit,
            who.exe.as_ref().or(who.comm.as_ref()),
        ) {
            (Some(container), _, _) => {
                format!("container {}", container.get(..12).unwrap_or(container))
            }
            (None, Some(unit), _) => format!("unit {unit}"),
            (None, None, Some(exe)) => exe.clone(),
            (None, None, None) => "an unknown process".to_owned(),
        }
    }
}

/// A request that came up. It has no header's value, no value of the query, and no body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// The endpoint: clouds, or the text that the user gave; empty where it cannot be read.
    pub endpoint: String,
    /// The method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The path as it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Names in the query.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<String>,
    /// Names of headers.
    pub headers: Vec<String>,
    /// What is to be said about it; empty for a clean one.
    pub findings: Vec<Finding>,
    /// The names of the user's own rules that found it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// The status of the answer, where one was seen to this request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Where it was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Address and port of the sender; the address alone where there is no port to be read, and empty
    /// where there is no address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub src: String,
    /// Address and port of the endpoint, likewise.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dst: String,
    /// Who opened the connection.
    #[serde(flatten)]
    pub caller: Caller,
}

impl Event for Seen {
    fn kind(&self) -> &'static str {
        "request"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        if self.findings.is_empty() {
            line.styled(Style::Good, "clean")?;
        }
        for (index, finding) in self.findings.iter().enumerate() {
            if index > 0 {
                line.write_all(b",")?;
            }
            line.styled(Style::Bad, finding.name())?;
            if *finding == Finding::Rule {
                line.styled(Style::Bad, format_args!(":{}", self.rules.join("+")))?;
            }
        }
        let method = self.method.as_deref().unwrap_or("?");
        let path = self.path.as_deref().unwrap_or("?");
        write!(line, " {} {}", Printable(method), Printable(path))?;
        if !self.query.is_empty() {
            line.styled(
                Style::Dim,
                format_args!("?{}", Printable(&self.query.join("&"))),
            )?;
        }
        line.write_all(b" by ")?;
        self.caller.text(line)?;
        let place = if self.dst.is_empty() {
            " between addresses that cannot be read".to_owned()
        } else {
            format!(" {} > {} ({})", self.src, self.dst, self.endpoint)
        };
        line.styled(Style::Dim, Printable(&place))?;
        if let Some(status) = self.status {
            write!(line, " -> {status}")?;
        }
        self.caller.opened_in.text(line)
    }
}

/// The tool is at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ready {
    /// What is watched.
    pub endpoints: Vec<String>,
    /// Whether processes are recorded as they connect.
    pub attribution: bool,
    /// Whether their parents, executables and command lines are, too.
    pub lineage: bool,
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

/// Packets came up and found the queue full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// How many, since the last such line.
    pub packets: u64,
}

impl Event for Lost {
    fn kind(&self) -> &'static str {
        "lost"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        line.styled(Style::Bad, "lost")?;
        write!(line, ": {} packets (the queue was full)", self.packets)
    }
}

/// What there was in all. Packets: concerning = clean + delivered + lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All that the filter was shown.
    pub seen: u64,
    /// Those with something for an endpoint, and the answers to what came up.
    pub concerning: u64,
    /// Those that were clean, and woke nobody.
    pub clean: u64,
    /// Those that came up.
    pub delivered: u64,
    /// Those that should have come up and found the queue full.
    pub lost: u64,
    /// Answers among those.
    pub answers: u64,
    /// Requests that were printed.
    pub requests: u64,
    /// With a capture: packets that its file had no room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncaptured: Option<u64>,
}

impl Event for Summary {
    fn kind(&self) -> &'static str {
        "summary"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        write!(
            line,
            "{} packets seen, {} concerned an endpoint: {} clean, {} delivered ({} answers), \
             {} lost; {} requests shown",
            self.seen,
            self.concerning,
            self.clean,
            self.delivered,
            self.answers,
            self.lost,
            self.requests
        )?;
        match self.uncaptured {
            None | Some(0) => Ok(()),
            Some(packets) => write!(line, "; {packets} packets are not in the capture"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen {
            endpoint: "aws".to_owned(),
            method: Some("GET".to_owned()),
            path: Some("/latest/\u{1b}[31m".to_owned()),
            query: vec!["recursive".to_owned()],
            headers: vec!["Host".to_owned()],
            findings: vec![Finding::Imdsv1, Finding::Credentials],
            rules: Vec::new(),
            status: Some(200),
            interface: Some("eth0".to_owned()),
            src: "10.0.0.1:5".to_owned(),
            dst: "169.254.169.254:80".to_owned(),
            caller: Caller {
                identity: Identity {
                    comm: Some("cu\nrl".to_owned()),
                    pid: Some(7),
                    uid: Some(1000),
                    ..Identity::default()
                },
                foreign: false,
                args: vec!["cu\nrl".to_owned()],
                parents: vec![Parent {
                    pid: 1,
                    comm: Some("i\u{1b}t".to_owned()),
                }],
                opened_in: OpenedIn::default(),
            },
        }
    }

    #[test]
    fn a_line_is_one_line_without_a_foreign_escape() {
        let mut out = Vec::new();
        seen().text(&mut Line::new(&mut out, false)).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "imdsv1,credentials GET /latest/\\u{1b}[31m?recursive by cu\\nrl[7] uid 1000 \
             from i\\u{1b}t[1] 10.0.0.1:5 > 169.254.169.254:80 (aws) -> 200"
        );
    }

    #[test]
    fn functions_are_lines_below_it_and_no_terminal_obeys_them() {
        let mut seen = seen();
        let frame = |function: &str| Frame {
            function: Some(function.into()),
            file: Some("/tmp/a\nb".into()),
            ..Frame::default()
        };
        seen.caller.opened_in = OpenedIn {
            stack: vec![frame("connect"), frame("\u{1b}[31mevil")],
            stack_reason: Some("for a reason"),
        };
        let mut out = Vec::new();
        seen.text(&mut Line::new(&mut out, false)).unwrap();
        let text = String::from_utf8(out).unwrap();
        let (_, below) = text.split_once('\n').unwrap();
        assert_eq!(
            below,
            "    at connect (/tmp/a\\nb)\n    at \\u{1b}[31mevil (/tmp/a\\nb)\n    (for a reason)"
        );
        let json = serde_json::to_value(&seen).unwrap();
        assert_eq!(json["stack"][0]["function"], "connect");
        assert_eq!(json["stack_reason"], "for a reason");
    }

    #[test]
    fn lost_packets_are_counted() {
        let mut out = Vec::new();
        let lost = Lost { packets: 7 };
        lost.text(&mut Line::new(&mut out, false)).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "lost: 7 packets (the queue was full)"
        );
    }

    #[test]
    fn json_has_the_documented_fields() {
        let json = serde_json::to_value(seen()).unwrap();
        assert_eq!(
            json["findings"],
            serde_json::json!(["imdsv1", "credentials"])
        );
        assert_eq!(json["pid"], 7);
        assert!(json.get("user").is_none());
    }
}
