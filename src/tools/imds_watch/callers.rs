// SPDX-License-Identifier: BSD-2-Clause

//! `--summary`: who asked for metadata, how, and whether version 1 of the service can be switched off.

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::event::Caller;
use crate::output::{Event, Line, Printable, Style};

/// Callers that are told apart; what more there are count together.
const MOST_CALLERS: usize = 1024;
/// Paths that are named for a caller.
const MOST_PATHS: usize = 16;

/// How a request showed itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Without a session token where there is one.
    One,
    /// With a session token, or asking for one.
    Two,
    /// To a service that has none, or not to be read.
    Other,
}

/// One caller: a container, a unit, else an executable of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// Who, as of the last call; of containers and units, one process of theirs.
    #[serde(flatten)]
    pub caller: Caller,
    /// Calls without a session token that were answered, or that no answer was seen to.
    pub v1: u64,
    /// Calls without a session token that were refused (401 or 403).
    pub v1_refused: u64,
    /// Calls with a session token, or for one.
    pub v2: u64,
    /// Calls of which neither can be said.
    pub other: u64,
    /// When the last one was: RFC 3339.
    pub last: String,
    /// The paths, 16 at most.
    pub paths: Vec<String>,
    /// Whether there were more paths.
    pub more_paths: bool,
}

impl Event for Calls {
    fn kind(&self) -> &'static str {
        "caller"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        let v1 = format!("v1 {}", self.v1);
        line.styled(
            if self.v1 > 0 { Style::Bad } else { Style::Good },
            format_args!("{v1:<8}"),
        )?;
        if self.v1_refused > 0 {
            write!(line, " refused {}", self.v1_refused)?;
        }
        write!(line, " v2 {:<6} other {:<4} by ", self.v2, self.other)?;
        self.caller.text(line)?;
        let paths = self.paths.join(" ");
        let more = if self.more_paths { " …" } else { "" };
        line.styled(
            Style::Dim,
            format_args!(" last {} {}{more}", self.last, Printable(&paths)),
        )?;
        self.caller.opened_in.text(line)
    }
}

/// Whether session tokens may be required.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether nothing that was seen would break.
    pub safe: bool,
    /// Why not; empty if it is.
    pub reasons: Vec<String>,
    /// Calls that were seen.
    pub calls: u64,
}

impl Event for Verdict {
    fn kind(&self) -> &'static str {
        "verdict"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        line.write_all(b"safe to require IMDSv2: ")?;
        if self.safe {
            line.styled(Style::Good, "yes")?;
            return write!(
                line,
                ", because all of the {} calls that were seen would go on",
                self.calls
            );
        }
        line.styled(Style::Bad, "no")?;
        write!(line, ", because {}", Printable(&self.reasons.join("; ")))
    }
}

/// All callers so far.
#[derive(Debug, Default)]
pub struct Callers {
    callers: BTreeMap<String, Calls>,
    calls: u64,
    unreadable: u64,
}

impl Callers {
    /// Counts one request; `readable`: everybody would read it as it was read here.
    pub fn add(
        &mut self,
        caller: &Caller,
        version: Version,
        path: Option<&str>,
        readable: bool,
        status: Option<u16>,
        time: OffsetDateTime,
    ) {
        self.calls += 1;
        if !readable {
            self.unreadable += 1;
        }
        let mut name = caller.group();
        if !self.callers.contains_key(&name) && self.callers.len() >= MOST_CALLERS {
            name = String::new();
        }
        let calls = self.callers.entry(name).or_insert_with_key(|name| Calls {
            caller: if name.is_empty() {
                Caller::default()
            } else {
                caller.clone()
            },
            v1: 0,
            v1_refused: 0,
            v2: 0,
            other: 0,
            last: String::new(),
            paths: Vec::new(),
            more_paths: false,
        });
        match version {
            Version::One if matches!(status, Some(401 | 403)) => calls.v1_refused += 1,
            Version::One => calls.v1 += 1,
            Version::Two => calls.v2 += 1,
            Version::Other => calls.other += 1,
        }
        calls.last = time.format(&Rfc3339).unwrap_or_default();
        if let Some(path) = path
            && !calls.paths.iter().any(|known| known == path)
        {
            if calls.paths.len() < MOST_PATHS {
                calls.paths.push(path.to_owned());
            } else {
                calls.more_paths = true;
            }
        }
    }

    /// The callers, those first who would break.
    pub fn table(&self) -> Vec<&Calls> {
        let mut table: Vec<_> = self.callers.values().collect();
        table.sort_by_key(|calls| std::cmp::Reverse((calls.v1, calls.v1_refused, calls.v2)));
        table
    }

    /// What follows from them, where `lost` packets were not seen.
    pub fn verdict(&self, lost: u64) -> Verdict {
        let mut reasons = Vec::new();
        let v1: Vec<_> = self.table().into_iter().filter(|one| one.v1 > 0).collect();
        if let Some(first) = v1.first() {
            let calls: u64 = v1.iter().map(|one| one.v1).sum();
            let others = match v1.len() - 1 {
                0 => String::new(),
                1 => " and one other".to_owned(),
                others => format!(" and {others} others"),
            };
            reasons.push(format!(
                "{calls} calls had no session token, by {}{others}",
                first.caller.label()
            ));
        }
        if self.unreadable > 0 {
            reasons.push(format!("{} requests could not be read", self.unreadable));
        }
        if lost > 0 {
            reasons.push(format!("{lost} packets were lost"));
        }
        if self.calls == 0 {
            reasons.push("no call was seen".to_owned());
        }
        Verdict {
            safe: reasons.is_empty(),
            reasons,
            calls: self.calls,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Identity;

    fn caller(unit: &str) -> Caller {
        Caller {
            identity: Identity {
                unit: Some(unit.to_owned()),
                comm: Some("curl".to_owned()),
                ..Identity::default()
            },
            ..Caller::default()
        }
    }

    fn text(event: &impl Event) -> String {
        let mut out = Vec::new();
        event.text(&mut Line::new(&mut out, false)).unwrap();
        String::from_utf8(out).unwrap()
    }

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    #[test]
    fn calls_are_counted_by_caller_and_version() {
        let mut callers = Callers::default();
        let (a, b) = (caller("a.service"), caller("b.service"));
        callers.add(&b, Version::Two, Some("/x"), true, Some(200), NOW);
        callers.add(&a, Version::One, Some("/x"), true, Some(200), NOW);
        callers.add(&a, Version::One, Some("/x"), true, Some(401), NOW);
        callers.add(&a, Version::Other, Some("/y"), true, None, NOW);
        let table = callers.table();
        assert_eq!(
            (table[0].v1, table[0].v1_refused, table[0].other),
            (1, 1, 1)
        );
        assert_eq!(table[0].paths, ["/x", "/y"]);
        assert_eq!((table[1].v1, table[1].v2), (0, 1));
        assert_eq!(
            text(table[0]),
            "v1 1     refused 1 v2 0      other 1    by curl unit a.service last \
             1970-01-01T00:00:00Z /x /y"
        );
    }

    #[test]
    fn the_verdict_says_why() {
        let mut callers = Callers::default();
        let no = "safe to require IMDSv2: no, because ";
        assert_eq!(text(&callers.verdict(0)), format!("{no}no call was seen"));
        callers.add(
            &caller("a.service"),
            Version::Two,
            Some("/"),
            true,
            Some(200),
            NOW,
        );
        callers.add(
            &caller("a.service"),
            Version::One,
            Some("/"),
            true,
            Some(401),
            NOW,
        );
        assert_eq!(
            text(&callers.verdict(0)),
            "safe to require IMDSv2: yes, because all of the 2 calls that were seen would go on"
        );
        assert_eq!(
            text(&callers.verdict(3)),
            format!("{no}3 packets were lost")
        );
        callers.add(
            &caller("b.service"),
            Version::One,
            Some("/"),
            true,
            Some(200),
            NOW,
        );
        callers.add(
            &caller("c.service"),
            Version::One,
            Some("/"),
            true,
            None,
            NOW,
        );
        callers.add(&caller("c.service"), Version::Other, None, false, None, NOW);
        assert_eq!(
            text(&callers.verdict(0)),
            format!(
                "{no}2 calls had no session token, by unit b.service and one other; 1 requests \
                 could not be read"
            )
        );
    }

    #[test]
    fn memory_is_bounded() {
        let mut callers = Callers::default();
        for number in 0..2 * MOST_CALLERS {
            let path = format!("/{number}");
            callers.add(&caller("a"), Version::One, Some(&path), true, None, NOW);
            callers.add(&caller(&path), Version::One, Some("/"), true, None, NOW);
        }
        assert!(callers.callers.len() <= MOST_CALLERS + 1);
        assert!(
            callers
                .callers
                .values()
                .all(|one| one.paths.len() <= MOST_PATHS)
        );
        let all: u64 = callers.callers.values().map(|one| one.v1).sum();
        assert_eq!(all, callers.calls);
    }
}
