// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard status`: what is known of the guard of this network namespace.

use std::collections::BTreeSet;
use std::io::{self, Write as _};

use anyhow::{Result, bail};
use serde::Serialize;
use time::OffsetDateTime;

use super::NAME;
use super::event::Summary;
use super::guard::Guard;
use super::pinned::{self, Found};
use super::run::Place;
use super::statement::Statement;
use super::strangers;
use crate::kernel::hooks::{self, Attached, How};
use crate::kernel::interfaces::{self, Interface};
use crate::kernel::tc::Side;
use crate::kernel::{clock, pin};
use crate::output::{self, Event, Line, Printable, Settings, Style};

/// What `status` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
}

/// What there is.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// `pinned`; `foreground`: a process's own, of which only that is known; `elsewhere`: one whose pins
    /// are not in this bpffs; `remains`: of a guard that never judged, or of a network namespace that has
    /// gone; `none`.
    pub state: &'static str,
    /// The process that writes events and follows new interfaces, if one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// More, of a pinned guard.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub guard: Option<PinnedStatus>,
}

/// A pinned guard.
#[derive(Debug, Clone, Serialize)]
pub struct PinnedStatus {
    /// Since when it guards (RFC 3339).
    pub since: String,
    /// Which policy is in force: 0 for the first, and one more with each that replaces another.
    pub policy: u16,
    /// Since when (RFC 3339).
    pub policy_since: String,
    /// The file that it was read from, unless it was the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// `enforce`, `audit` or `mixed`.
    pub mode: String,
    /// `reset` or `drop`.
    pub deny: &'static str,
    /// Packets a second of every user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// `tc`, `connect`.
    pub layers: Vec<&'static str>,
    /// `tcx` or `clsact`.
    pub method: &'static str,
    /// What is guarded.
    pub endpoints: Vec<String>,
    /// How many users, groups and cgroups may.
    pub users: usize,
    /// Groups.
    pub groups: usize,
    /// Cgroups.
    pub cgroups: usize,
    /// Interfaces, guarded or not.
    pub interfaces: Vec<InterfaceStatus>,
    /// What it did since it began.
    pub counters: Counters,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// The sides that are guarded: `egress`, `ingress`.
    pub guarded: Vec<&'static str>,
    /// Whether all of it is guarded that should be.
    pub whole: bool,
    /// Why it cannot be guarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// What sees packets before the guard, and may let them pass it by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ahead: Vec<String>,
}

/// Packets and calls; see the summary of `run`.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs)]
pub struct Counters {
    pub allowed: u64,
    pub denied: u64,
    pub would_deny: u64,
    pub passed: u64,
    pub calls: u64,
    pub limited: u64,
    pub resets: u64,
    pub prohibited: u64,
    pub unanswered: u64,
    pub events_lost: u64,
}

impl From<Summary> for Counters {
    fn from(summary: Summary) -> Self {
        Self {
            allowed: summary.allowed,
            denied: summary.denied,
            would_deny: summary.would_deny,
            passed: summary.passed,
            calls: summary.calls,
            limited: summary.limited,
            resets: summary.resets,
            prohibited: summary.prohibited,
            unanswered: summary.unanswered,
            events_lost: summary.events_lost,
        }
    }
}

/// Prints the status.
///
/// # Errors
/// If no guard is in force here, and those of standard output.
pub fn run(args: &Args, settings: Settings) -> Result<()> {
    let status = find(args.place.bpffs.as_deref())?;
    let mut sink = output::stdout(NAME, settings);
    sink.event(OffsetDateTime::now_utc(), &status)?;
    sink.flush()?;
    if matches!(status.state, "none" | "remains") {
        bail!("no guard is in force in this network namespace");
    }
    Ok(())
}

/// Looks for the guard of this network namespace.
///
/// # Errors
/// If what is pinned cannot be opened.
pub fn find(bpffs: Option<&std::path::Path>) -> Result<Status> {
    let bpffs = pin::bpffs(bpffs, false)?;
    let pid = pinned::process_id(bpffs.as_deref());
    let state = |state| Status {
        state,
        pid,
        guard: None,
    };
    let none = || {
        let strangers = strangers::find(&BTreeSet::new())?;
        Ok(state(match (pid, strangers::judging(&strangers)) {
            (Some(_), _) => "foreground",
            (None, Some(_)) if strangers::is_of_a_process(&strangers) => "foreground",
            (None, Some(_)) => "elsewhere",
            (None, None) => "none",
        }))
    };
    let Some(bpffs) = bpffs else {
        return none();
    };
    let (shelf, found) = pinned::look(&bpffs)?;
    Ok(match found {
        Found::Nothing => return none(),
        // It is under way.
        Found::Remains if pid.is_some() => return none(),
        Found::Remains => state("remains"),
        Found::Guard(guard) => Status {
            state: "pinned",
            pid,
            guard: Some(describe(&guard, &pinned::statement(&shelf, &guard)?)?),
        },
    })
}

fn describe(guard: &Guard, statement: &Statement) -> Result<PinnedStatus> {
    let (since_ns, generation, _) = guard.facts()?;
    let policy_since =
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(statement.in_force_ns))?;
    let mut layers = vec!["tc"];
    if guard.calls() {
        layers.push("connect");
    }
    Ok(PinnedStatus {
        since: output::rfc3339(clock::wall(since_ns))?,
        policy: generation,
        policy_since: output::rfc3339(policy_since)?,
        config: statement
            .config
            .as_ref()
            .map(|path| path.display().to_string()),
        mode: statement.mode.clone(),
        deny: statement.deny().name(),
        limit: statement.limit().map(str::to_owned),
        layers,
        method: guard.attach_method().name(),
        endpoints: statement
            .endpoints
            .iter()
            .map(|at| at.text.clone())
            .collect(),
        users: statement.users,
        groups: statement.groups,
        cgroups: statement.cgroups,
        interfaces: interfaces_of(guard, statement.interfaces())?,
        counters: guard.summary(statement.report_allowed(), 0)?.into(),
    })
}

/// The interfaces that `guard` guards or should.
///
/// # Errors
/// What the kernel says.
pub fn interfaces_of(guard: &Guard, wanted: &[String]) -> Result<Vec<InterfaceStatus>> {
    let gates = pinned::gate_ids(guard)?;
    interfaces_with(wanted, |at| {
        at.program.is_some_and(|id| gates.contains(&id))
    })
}

/// The interfaces that have what is `ours` at a hook or should, which are those that are `wanted`, or all but
/// loopback.
///
/// # Errors
/// What the kernel says.
pub fn interfaces_with(
    wanted: &[String],
    ours: impl Fn(&Attached) -> bool,
) -> Result<Vec<InterfaceStatus>> {
    let mut found = Vec::new();
    for interface in interfaces::all()? {
        let egress = hooks::at(interface.index, Side::Egress)?;
        let ingress = hooks::at(interface.index, Side::Ingress)?;
        let status = interface_status(&interface, &egress, &ingress, &ours);
        let should = if wanted.is_empty() {
            !interface.loopback
        } else {
            wanted.contains(&interface.name)
        };
        if should || !status.guarded.is_empty() {
            found.push(status);
        }
    }
    Ok(found)
}

/// What can be said of an interface with these programs and filters, first to last, at its hooks.
pub fn interface_status(
    interface: &Interface,
    egress: &[Attached],
    ingress: &[Attached],
    ours: impl Fn(&Attached) -> bool,
) -> InterfaceStatus {
    let mut status = InterfaceStatus {
        name: interface.name.clone(),
        guarded: Vec::new(),
        whole: true,
        unreadable: interface.readable().err().map(|err| err.to_string()),
        ahead: Vec::new(),
    };
    for (side, there, needed) in [
        ("egress", egress, true),
        ("ingress", ingress, interface.veth),
    ] {
        match there.iter().position(&ours) {
            Some(place) => {
                status.guarded.push(side);
                let ahead = there[..place].iter();
                status
                    .ahead
                    .extend(ahead.map(|at| format!("{} at {side}", named(at))));
            }
            None if needed => status.whole = false,
            None => {}
        }
    }
    status
}

/// A program or filter in words.
pub fn named(at: &Attached) -> String {
    let name = at.name.as_deref().unwrap_or_default();
    let id = at.program.map_or(String::new(), |id| format!(" (id {id})"));
    match &at.how {
        How::Tcx => format!("TCX program {name}{id}"),
        How::Filter { kind, priority, .. } => {
            format!("{kind} filter {name} of priority {priority}{id}")
        }
    }
}

impl Event for Status {
    fn kind(&self) -> &'static str {
        "status"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        match (self.state, self.pid) {
            ("pinned", _) => line.styled(Style::Good, "guarding")?,
            ("foreground", Some(pid)) => {
                line.styled(Style::Good, "guarding")?;
                write!(line, " by process {pid}, not pinned: its lines say more")?;
            }
            ("foreground", None) => {
                line.styled(Style::Good, "guarding")?;
                write!(
                    line,
                    " by a process of its own, not pinned, which cannot be told from here: it is another \
                     user's, or another has taken its name"
                )?;
            }
            ("elsewhere", _) => {
                line.styled(Style::Good, "guarding")?;
                write!(
                    line,
                    ", by a guard whose pins are not in this bpffs: name another one with --bpffs"
                )?;
            }
            ("remains", _) => {
                line.styled(Style::Bad, "not guarding")?;
                write!(
                    line,
                    ": remains of a guard that was never in force; run --pin and stop clear them away"
                )?;
            }
            _ => line.styled(Style::Bad, "not guarding")?,
        }
        match &self.guard {
            Some(guard) => guard.text(line, self.pid),
            None => Ok(()),
        }
    }
}

impl PinnedStatus {
    fn text(&self, line: &mut Line<'_>, pid: Option<u32>) -> io::Result<()> {
        let second = |time: &str| time.get(..19).unwrap_or(time).replace('T', " ");
        write!(
            line,
            " since {} UTC, {} by {} in {}",
            second(&self.since),
            self.mode,
            self.method,
            self.layers.join(" and ")
        )?;
        match pid {
            Some(pid) => write!(line, "\n  process     {pid}")?,
            None => write!(
                line,
                "\n  process     none: interfaces that come are not guarded, events are not written \
                 (run --pin takes the guard over)"
            )?,
        }
        let source = self.config.as_deref().unwrap_or("the command line");
        write!(
            line,
            "\n  policy      {} since {} UTC, from {}: {} users, {} groups, {} cgroups; denials by {}",
            self.policy,
            second(&self.policy_since),
            Printable(source),
            self.users,
            self.groups,
            self.cgroups,
            self.deny
        )?;
        if let Some(limit) = &self.limit {
            write!(line, "; at most {limit}")?;
        }
        write!(
            line,
            "\n  endpoints   {}",
            Printable(&self.endpoints.join(", "))
        )?;
        for interface in &self.interfaces {
            write!(line, "\n  interface   {}: ", Printable(&interface.name))?;
            if !interface.whole {
                line.styled(Style::Bad, "not guarded ")?;
            }
            write!(line, "{}", interface.guarded.join(" and "))?;
            if let Some(why) = &interface.unreadable {
                write!(line, "({})", Printable(why))?;
            }
            for ahead in &interface.ahead {
                line.styled(
                    Style::Note,
                    format_args!("; ahead of it: {}", Printable(ahead)),
                )?;
            }
        }
        let counters = &self.counters;
        write!(
            line,
            "\n  packets     allowed {}, denied {}, would deny {}, passed {}, over the limit {}; {} \
             calls refused",
            counters.allowed,
            counters.denied,
            counters.would_deny,
            counters.passed,
            counters.limited,
            counters.calls
        )
    }
}
