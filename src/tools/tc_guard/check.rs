// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard check`: what can get past the guard on this machine, and what closes that.

use std::collections::BTreeSet;
use std::io::{self, Write as _};

use anyhow::{Result, bail};
use libbpf_rs::MapHandle;
use serde::Serialize;
use time::OffsetDateTime;

use super::guard::{self, Guard};
use super::holders::{self, Survey};
use super::pinned::{self, Found};
use super::plan::Plan;
use super::programs::NetnsBy;
use super::raw_senders::{self, PrivilegedFile, RawSocket};
use super::run::Place;
use super::statement::Statement;
use super::status::{self, InterfaceStatus};
use super::{NAME, strangers, trial, ways};
use crate::kernel::tc::Method;
use crate::kernel::{cgroup, pin};
use crate::output::{self, Event, Line, Printable, Settings, Style};
use crate::process::Directory;

/// What `check` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do not try the guard by connecting as an allowed and as a denied user
    #[arg(long)]
    no_trial: bool,
    #[command(flatten)]
    place: Place,
}

/// How it is with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// Worth knowing, and no fault.
    Note,
    /// Something can get past the guard.
    Gap,
}

/// What was found about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `guard`, `interface`, `order`, `privileges`, `namespaces`, `kernel`, `trial`.
    pub check: &'static str,
    /// How it is.
    pub state: State,
    /// In words.
    pub what: String,
    /// What closes the gap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self {
            check,
            state: State::Ok,
            what: what.into(),
            remedy: None,
        }
    }

    /// Worth knowing.
    pub fn note(check: &'static str, what: impl Into<String>) -> Self {
        Self {
            state: State::Note,
            ..Self::ok(check, what)
        }
    }

    /// Something can get past.
    pub fn gap(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            state: State::Gap,
            remedy: Some(remedy.into()),
            ..Self::ok(check, what)
        }
    }
}

impl Event for Finding {
    fn kind(&self) -> &'static str {
        "check"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        match self.state {
            State::Ok => line.styled(Style::Good, "ok  ")?,
            State::Note => line.styled(Style::Note, "note")?,
            State::Gap => line.styled(Style::Bad, "gap ")?,
        }
        write!(line, " {}: {}", self.check, Printable(&self.what))?;
        match &self.remedy {
            Some(remedy) => write!(line, "; to close it: {}", Printable(remedy)),
            None => Ok(()),
        }
    }
}

/// Looks at all of it and prints a line for each finding.
///
/// # Errors
/// If there is a gap, and those of standard output.
pub fn run(args: &Args, settings: Settings) -> Result<()> {
    let bpffs = pin::bpffs(args.place.bpffs.as_deref(), false)?;
    let found = match &bpffs {
        Some(bpffs) => pinned::look(bpffs)?,
        None => (pin::Shelf::new("/".as_ref(), "", ""), Found::Nothing),
    };
    let pid = pinned::process_id(bpffs.as_deref());
    let root = cgroup::mount();
    let (mut findings, statement) = match found {
        (shelf, Found::Guard(guard)) => {
            let statement = pinned::statement(&shelf, &guard)?;
            let mut findings = vec![mode_finding("a guard is pinned", &statement)];
            findings.extend(follower_finding(pid));
            let all = status::interfaces_of(&guard, statement.interfaces())?;
            findings.extend(policy_findings(args, &statement, &all, guard.table())?);
            (findings, Some(statement))
        }
        _ => unpinned_findings(args, pid)?,
    };
    let (processes, hidden) = holders::processes();
    let mut directory = Directory::new(None);
    let survey = holders::survey(&processes, &mut directory);
    findings.extend(process_findings(&survey, hidden));
    findings.extend(socket_findings(&raw_senders::sockets(), &mut directory));
    findings.extend(file_findings(&raw_senders::files()));
    findings.extend(kernel_findings(
        Guard::method(),
        // Of the guard, which may have more or fewer capabilities.
        statement.map_or_else(NetnsBy::any, |statement| statement.namespaces),
        root.is_some(),
    ));

    let mut sink = output::stdout(NAME, settings);
    let now = OffsetDateTime::now_utc();
    for finding in &findings {
        sink.event(now, finding)?;
    }
    sink.flush()?;
    let gaps = findings
        .iter()
        .filter(|finding| finding.state == State::Gap)
        .count();
    if gaps > 0 {
        bail!("{gaps} gaps: something can get past the guard");
    }
    Ok(())
}

fn mode_finding(how: &str, statement: &Statement) -> Finding {
    match statement.mode.as_str() {
        "enforce" => Finding::ok("guard", format!("{how}, and denies what no rule allows")),
        mode => Finding::gap(
            "guard",
            format!("{how}, and its mode is {mode}: it denies nothing, or not everywhere"),
            "leave mode = \"audit\" and --audit away, and reload, or start it anew",
        ),
    }
}

fn follower_finding(pid: Option<u32>) -> Option<Finding> {
    pid.is_none().then(|| {
        Finding::gap(
            "guard",
            "no process follows the interfaces that come, and cgroups that are made anew",
            "ebpfkit tc-guard run --pin takes the guard over",
        )
    })
}

/// What follows from the policy of the guard that is at these interfaces, and a trial of it.
fn policy_findings(
    args: &Args,
    statement: &Statement,
    interfaces: &[InterfaceStatus],
    reports: &MapHandle,
) -> Result<Vec<Finding>> {
    let mut findings = interface_findings(interfaces);
    let plan = Plan::new(&statement.policy()?, cgroup::mount().as_deref())?;
    findings.extend(ways::findings(&plan, interfaces)?);
    if !args.no_trial {
        findings.extend(trial::run(&plan, statement.deny(), |uid| {
            guard::denials(reports, uid)
        }));
    }
    Ok(findings)
}

/// Of a guard that no pin in this bpffs names, by what is attached; and what it says of itself, if that can be seen.
fn unpinned_findings(args: &Args, pid: Option<u32>) -> Result<(Vec<Finding>, Option<Statement>)> {
    let strangers = strangers::find(&BTreeSet::new())?;
    let how = match pid {
        Some(pid) => format!("process {pid} guards"),
        None if strangers::is_of_a_process(&strangers) => {
            "a process guards that cannot be told from here, as it is another user's, or another has taken its name"
                .to_owned()
        }
        None if strangers::judging(&strangers).is_some() => {
            "a guard is in force that is not pinned in this bpffs".to_owned()
        }
        None => {
            let none = Finding::gap(
                "guard",
                "no guard is in force in this network namespace",
                "ebpfkit tc-guard run",
            );
            return Ok((vec![none], None));
        }
    };
    let gates = strangers::gates(&strangers);
    let said = strangers::said(&strangers)?;
    // What is held of a gate keeps it from being emptied when its guard ends.
    drop(strangers);
    if let Some((statement, reports)) = said {
        let mut findings = vec![mode_finding(&how, &statement)];
        let all = status::interfaces_with(statement.interfaces(), &gates)?;
        findings.extend(policy_findings(args, &statement, &all, &reports)?);
        return Ok((findings, Some(statement)));
    }
    let mut findings = vec![Finding::gap(
        "guard",
        format!("{how}; with which policy cannot be seen: it may deny nothing, and was not tried"),
        "name the bpffs that it is pinned in (--bpffs); to see that of a process, run check as root",
    )];
    findings.extend(interface_findings(&status::interfaces_with(&[], &gates)?));
    Ok((findings, None))
}

fn interface_findings(interfaces: &[InterfaceStatus]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for interface in interfaces {
        let name = &interface.name;
        if let Some(why) = &interface.unreadable {
            findings.push(Finding::gap(
                "interface",
                format!("{name} cannot be guarded: {why}"),
                "route what is guarded by another interface, or guard one on its way",
            ));
        } else if !interface.whole {
            findings.push(Finding::gap(
                "interface",
                format!("{name} is not guarded"),
                "ebpfkit tc-guard run without -i guards all; run --pin takes a pinned guard over",
            ));
        }
        findings.extend(interface.ahead.iter().map(|ahead| {
            Finding::gap(
                "order",
                format!(
                    "{ahead} sees packets of {name} before the guard, and may send them past it"
                ),
                "see that it is yours; start the guard after it, or attach it behind the guard",
            )
        }));
    }
    if findings.is_empty() && !interfaces.is_empty() {
        let names: Vec<_> = interfaces.iter().map(|at| at.name.as_str()).collect();
        findings.push(Finding::ok(
            "interface",
            format!("nothing runs ahead of the guard on {}", names.join(", ")),
        ));
    }
    findings
}

fn process_findings(survey: &Survey, hidden: usize) -> Vec<Finding> {
    let pids = |pids: &[u32]| {
        let shown: Vec<_> = pids.iter().take(8).map(ToString::to_string).collect();
        let more = if pids.len() > 8 { ", …" } else { "" };
        format!("{}{more}", shown.join(", "))
    };
    let mut findings: Vec<_> = survey
        .raw
        .iter()
        .map(|group| {
            Finding::gap(
                "privileges",
                format!(
                    "{} may send raw packets past TC (PACKET_QDISC_BYPASS, AF_XDP): process {}",
                    group.who,
                    pids(&group.pids)
                ),
                "take CAP_NET_RAW from it (CapabilityBoundingSet= in a unit)",
            )
        })
        .chain(survey.masters.iter().map(|group| {
            Finding::gap(
                "privileges",
                format!(
                    "{} may take the guard off its interfaces: process {}",
                    group.who,
                    pids(&group.pids)
                ),
                "take CAP_NET_ADMIN and CAP_SYS_ADMIN from it",
            )
        }))
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(
            "privileges",
            "no process but root's may send raw packets or take the guard off",
        ));
    }
    if survey.root > 0 {
        findings.push(Finding::note(
            "privileges",
            format!(
                "{} processes of root can do what they want, this guard included",
                survey.root
            ),
        ));
    }
    if hidden > 0 {
        findings.push(Finding::note(
            "privileges",
            format!(
                "{hidden} processes could not be looked at: run as root, or with CAP_SYS_PTRACE"
            ),
        ));
    }
    findings.push(if survey.other_users == 0 {
        Finding::ok("namespaces", "no process is in a user namespace of its own")
    } else {
        Finding::note(
            "namespaces",
            format!(
                "{} processes are in user namespaces of their own, {} of them in this network \
                 namespace, where their uids count as the machine has them; the others are judged by \
                 their cgroups, so name these in rules (where nobody needs such namespaces: sysctl \
                 user.max_user_namespaces=0)",
                survey.other_users, survey.other_users_here
            ),
        )
    });
    findings
}

/// A socket stays good for raw packets when its owner has given the capability up.
fn socket_findings(sockets: &[RawSocket], directory: &mut Directory) -> Vec<Finding> {
    let others = sockets.iter().filter(|socket| socket.uid != 0);
    others
        .map(|socket| {
            let user = directory.user(socket.uid);
            let user = user.unwrap_or_else(|| format!("uid {}", socket.uid));
            Finding::gap(
                "privileges",
                format!(
                    "{} of {user} has a packet socket open, which may send past TC: process {}",
                    socket.comm, socket.pid
                ),
                "end it, or see that it hands its socket to nobody",
            )
        })
        .collect()
}

/// Files that give their user what sends past TC; no gap by themselves, as most of them let nobody say what
/// is sent.
fn file_findings(files: &[PrivilegedFile]) -> Vec<Finding> {
    files
        .iter()
        .map(|file| {
            Finding::note(
                "privileges",
                format!(
                    "{} gives whoever may run it {}: a fault in it is a way past the guard (getcap, setcap -r)",
                    file.path.display(),
                    file.capabilities.join(" and ")
                ),
            )
        })
        .collect()
}

fn kernel_findings(method: Method, namespaces: bool, cgroup2: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if method == Method::Clsact {
        findings.push(Finding::note(
            "kernel",
            "no TCX (kernel 6.6): a filter that is added later may run ahead of the guard; `ebpfkit tc-guard \
             status` names those that do",
        ));
    }
    if !namespaces {
        findings.push(Finding::gap(
            "kernel",
            "TC does not tell the sockets of other network namespaces from the machine's own (kernel \
             6.15, or CAP_PERFMON): root of a container on a macvlan or ipvlan passes as root, and containers \
             cannot be allowed by their cgroup",
            "give the guard CAP_PERFMON, or use a newer kernel",
        ));
    }
    if !cgroup2 {
        findings.push(Finding::gap(
            "kernel",
            "the whole of cgroup2 is not mounted here: connect() and sendmsg() are not guarded, only packets",
            "mount -t cgroup2 none /sys/fs/cgroup, and start the guard anew",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "kernel",
            "it has every hook that the guard uses",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(findings: &[Finding]) -> Vec<&str> {
        let gaps = findings
            .iter()
            .filter(|finding| finding.state == State::Gap);
        gaps.map(|finding| finding.what.as_str()).collect()
    }

    #[test]
    fn every_gap_has_a_remedy() {
        let interface = |whole, ahead: &[&str]| InterfaceStatus {
            name: "eth0".to_owned(),
            guarded: vec!["egress"],
            whole,
            unreadable: None,
            ahead: ahead.iter().map(|&text| text.to_owned()).collect(),
        };
        let group = |who: &str| holders::Group {
            who: who.to_owned(),
            pids: (1..20).collect(),
        };
        let survey = Survey {
            raw: vec![group("ping")],
            masters: vec![group("agent")],
            ..Survey::default()
        };
        let mut all = interface_findings(&[interface(false, &["TCX program x"])]);
        all.extend(process_findings(&survey, 0));
        all.extend(kernel_findings(Method::Clsact, false, false));
        assert_eq!(gaps(&all).len(), 6, "{all:#?}");
        assert!(
            all.iter()
                .all(|at| (at.state == State::Gap) == at.remedy.is_some())
        );
    }

    #[test]
    fn a_machine_in_order_has_no_gap() {
        let interface = InterfaceStatus {
            name: "eth0".to_owned(),
            guarded: vec!["egress"],
            whole: true,
            unreadable: None,
            ahead: Vec::new(),
        };
        let mut all = interface_findings(&[interface]);
        all.extend(process_findings(&Survey::default(), 0));
        all.extend(kernel_findings(Method::Tcx, true, true));
        assert_eq!(gaps(&all), [""; 0]);
        assert!(all.iter().all(|at| at.state == State::Ok), "{all:#?}");
    }
}
