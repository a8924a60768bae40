// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard run`: from arguments to a guard at work, and from what it reports to lines.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use libbpf_rs::MapHandle;
use time::OffsetDateTime;

use super::cgroups::Cgroups;
use super::config;
use super::event::{Checked, Ready, Summary};
use super::hold::Hold;
use super::pinned::{self, Found};
use super::plan::Plan;
use super::policy::{Deny, Limit, Mode, Policy, Rule, Subject, interface_name};
use super::programs::NetnsBy;
use super::reporter::Reporter;
use super::statement::Statement;
use super::{Guard, NAME};
use crate::endpoint::Endpoint;
use crate::failure::{self, Failure};
use crate::kernel::interfaces;
use crate::kernel::ring::Ring;
use crate::kernel::stop::Stop;
use crate::kernel::{cgroup, pin};
use crate::metadata;
use crate::output::{self, Settings};

/// How long after the last event the kernel's table is read for packets that came without one: a
/// little longer than the kernel's own pause between two events of a key, of a second.
const SWEEP: Duration = Duration::from_millis(1100);

/// How often is looked at what cannot be watched.
const LOOK: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    guarded: Guarded,
    /// Users who may reach the endpoints, by name or uid; nobody if none is given
    #[arg(long = "allow-user", value_name = "USER", value_delimiter = ',')]
    users: Vec<String>,
    /// Groups whose members may, by name or gid, supplementary ones included
    #[arg(long = "allow-group", value_name = "GROUP", value_delimiter = ',')]
    groups: Vec<String>,
    /// Cgroups whose processes may, with all below them: a path below the cgroup2 mount or a systemd
    /// unit
    #[arg(long = "allow-cgroup", value_name = "PATH|UNIT", value_delimiter = ',')]
    cgroups: Vec<String>,
    /// Interfaces to guard, as they come; all but loopback if none is given
    #[arg(short, long = "interface", value_name = "IFACE", value_parser = interface_name)]
    interfaces: Vec<String>,
    /// Deny nothing, report what would be denied
    #[arg(long)]
    audit: bool,
    /// How a denied sender hears of it
    #[arg(long, value_enum, value_name = "HOW")]
    deny: Option<Deny>,
    /// Packets a second that each user may send to each endpoint; more are dropped
    #[arg(long, value_name = "N/s")]
    limit: Option<Limit>,
    /// Judge packets only, do not refuse in connect() and sendmsg()
    #[arg(long)]
    packets_only: bool,
    /// Report what is allowed, too
    #[arg(long)]
    all: bool,
    /// Check the policy, say what it comes to, and end
    #[arg(long)]
    check_config: bool,
    /// Keep guarding when this process ends; a guard that stays is taken over
    #[arg(long)]
    pin: bool,
    #[command(flatten)]
    place: Place,
}

/// Where a guard is pinned.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// Where bpffs is mounted; found, or mounted at /sys/fs/bpf, if it is not given
    #[arg(long, value_name = "FOLDER")]
    pub bpffs: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Guarded {
    /// Clouds whose metadata service is guarded: names, or all
    #[arg(long = "cloud", value_name = "NAME", value_delimiter = ',')]
    clouds: Vec<String>,
    /// What else is guarded: ADDR[/PREFIX][:PORT[-PORT]][/tcp|udp]
    #[arg(long = "endpoint", value_name = "ENDPOINT")]
    endpoints: Vec<Endpoint>,
    /// A policy in TOML; what the command line says comes on top of it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Args {
    /// The policy of the file and the command line together, and whether the command line added to the file.
    fn policy(&self) -> Result<(Policy, bool)> {
        // Once: it may be a pipe.
        let file = self.guarded.config.as_deref().map(read).transpose()?;
        let mut policy = file.clone().unwrap_or_default();
        let mut endpoints = metadata::endpoints(&self.guarded.clouds)?;
        endpoints.extend_from_slice(&self.guarded.endpoints);
        let subjects = |texts: &[String]| -> Vec<_> {
            let subject = |text: &String| Subject::from(text.as_str());
            texts.iter().map(subject).collect()
        };
        let rule = Rule {
            endpoints,
            users: subjects(&self.users),
            groups: subjects(&self.groups),
            cgroups: subjects(&self.cgroups),
            mode: Mode::Enforce,
            place: None,
        };
        if !rule.endpoints.is_empty() {
            policy.rules.push(rule);
        } else if rule != Rule::default() {
            return Err(Failure::usage(
                "--allow-user, --allow-group and --allow-cgroup are for the endpoints of the command \
                 line; expected --cloud or --endpoint with them",
            )
            .into());
        }
        if self.audit {
            policy.mode = Mode::Audit;
        }
        policy.deny = self.deny.unwrap_or(policy.deny);
        policy.limit = self.limit.or(policy.limit);
        policy.report_allowed |= self.all;
        policy.packets_only |= self.packets_only;
        if !self.interfaces.is_empty() {
            policy.interfaces.clone_from(&self.interfaces);
        }
        let mixed = file.is_some_and(|file| file != policy);
        Ok((policy, mixed))
    }
}

/// `path` for whoever has another working directory.
///
/// # Errors
/// If the working directory has gone.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context("cannot find the working directory")
}

/// As much of a policy as is read: ten thousand subjects are some hundred thousand bytes.
const LONGEST_POLICY: u64 = 4 << 20;

/// The policy in a file.
///
/// # Errors
/// [`Failure::Usage`] if it is no policy; those of the system if it cannot be read.
pub fn read(path: &Path) -> Result<Policy> {
    let at = || format!("cannot read the policy {}", path.display());
    let mut text = Vec::new();
    let file = File::open(path).with_context(at)?;
    let mut start = file.take(LONGEST_POLICY + 1);
    start.read_to_end(&mut text).with_context(at)?;
    if text.len() as u64 > LONGEST_POLICY {
        return Err(Failure::usage(format!(
            "{}: longer than the {LONGEST_POLICY} bytes that a policy may have",
            path.display()
        ))
        .into());
    }
    Ok(config::parse_bytes(&path.display().to_string(), &text)?)
}

pub(super) fn run(args: &Args, settings: Settings) -> Result<()> {
    let (policy, mixed) = args.policy()?;
    let root = cgroup::mount();
    let plan = Plan::new(&policy, root.as_deref())?;
    if args.check_config {
        let mut sink = output::stdout(NAME, settings);
        sink.event(OffsetDateTime::now_utc(), &Checked::new(&plan))?;
        return Ok(sink.flush()?);
    }
    let bpffs = pin::bpffs(args.place.bpffs.as_deref(), args.pin)?;

    let stop = Stop::on_signals()?;
    let (_instance, squatted) = pinned::only(bpffs.as_deref())?;
    let config = args.guarded.config.as_deref().map(absolute).transpose()?;
    let now = OffsetDateTime::now_utc();
    let statement = Statement::new(&policy, config, mixed, &plan, NetnsBy::any(), now);
    let (root, bpffs) = (root.as_deref(), bpffs.as_deref());
    let hold = match bpffs {
        Some(bpffs) if args.pin => Hold::by_pins(&policy, &plan, &statement, root, bpffs)?,
        _ => Hold::by_process(&policy, &plan, &statement, root, bpffs)?,
    };
    let kernel = &hold.guard;
    let mut cgroups = Cgroups::new(&plan, root)?;
    let troubles = cgroups.follow(kernel);
    let mut reporter = Reporter::new(settings, root, hold.bpffs())?;
    reporter.interfaces.clone_from(&hold.interfaces);
    reporter.know(kernel.generation(), &plan);
    reporter.ready(&ready(&plan, &hold))?;
    for note in squatted.iter().chain(&hold.notes).chain(&troubles) {
        reporter.note(note);
    }
    tell_of_the_start(&reporter, &policy, &plan, &hold)?;

    let mut before = Summary::default();
    if hold.taken_over {
        // Whoever had it before has told of these.
        for (key, total) in kernel.reports()? {
            reporter.tally.skip(key, total);
        }
        before = kernel.summary(plan.report_allowed, 0)?;
    }
    let pinned = hold.bpffs().is_some();
    let reporter = RefCell::new(reporter);
    let (kernel, drained) = drain(hold, &reporter, &stop, &mut cgroups);
    let mut reporter = reporter.into_inner();
    if let Err(err) = &drained
        && failure::is_closed_pipe(err)
    {
        reporter.finish();
        return drained;
    }
    if pinned && process_leaves_a_guard(bpffs) {
        reporter.note(
            "the guard stays, and follows no new interfaces until run --pin takes it over; \
             ebpfkit tc-guard stop takes it away",
        );
    }
    // The summary is due whatever else went wrong.
    let summary = kernel
        .summary(plan.report_allowed, reporter.tally.delivered())?
        .since(&before);
    let ended = reporter.end(summary);
    drained?;
    ended
}

/// What is worth knowing of a guard that has just begun.
fn tell_of_the_start(reporter: &Reporter, policy: &Policy, plan: &Plan, hold: &Hold) -> Result<()> {
    if hold.taken_over {
        reporter.note("took over the guard that was pinned here, with this policy");
    }
    if hold.interfaces.is_empty() {
        reporter
            .note("there is no network interface to guard yet; each will be guarded as it comes");
    }
    for interface in &hold.unreadable {
        if let Err(why) = interface.readable() {
            reporter.note(&format!("{} is not guarded: {why}", interface.name));
        }
    }
    if policy.interfaces.is_empty() {
        for local in interfaces::addresses()? {
            let own = plan
                .endpoints
                .iter()
                .find(|target| target.endpoint.contains(local));
            if let Some(target) = own {
                reporter.note(&format!(
                    "{local} ({}) is an address of this machine, and what goes there stays on the \
                     loopback interface, which is not guarded: name it with -i lo, too",
                    target.endpoint.name
                ));
            }
        }
    }
    if plan.allows_nobody() {
        reporter.note("nobody is allowed: not even root reaches the endpoints");
    }
    if !hold.guard.calls() && !plan.packets_only {
        reporter.note(
            "connect() and sendmsg() are not guarded, only packets, as there is no cgroup2 whose hooks \
             could be used: denials do not name the process",
        );
    }
    Ok(())
}

/// Whether a guard is pinned here still: `stop` may be why this process ends.
fn process_leaves_a_guard(bpffs: Option<&Path>) -> bool {
    bpffs.is_some_and(|bpffs| matches!(pinned::look(bpffs), Ok((_, Found::Guard(_)))))
}

fn ready(plan: &Plan, hold: &Hold) -> Ready {
    let kernel = &hold.guard;
    Ready {
        interfaces: hold
            .interfaces
            .iter()
            .map(|interface| interface.name.clone())
            .collect(),
        method: kernel.attach_method().name(),
        mode: plan.mode(),
        layers: if kernel.calls() {
            vec!["tc", "connect"]
        } else {
            vec!["tc"]
        },
        endpoints: plan
            .endpoints
            .iter()
            .map(|target| target.endpoint.to_string())
            .collect(),
        users: plan.users.len(),
        groups: plan.groups.len(),
        cgroups: plan.cgroups.len(),
        limit: plan.limit.map(|limit| limit.to_string()),
        namespaces: kernel.knows_namespaces(),
        pinned: hold.bpffs().is_some(),
    }
}

/// Tells of what the kernel reports, and follows the interfaces, until it is to stop; then detaches what
/// is not pinned and tells of the rest.
fn drain(
    hold: Hold,
    reporter: &RefCell<Reporter>,
    stop: &Stop,
    cgroups: &mut Cgroups,
) -> (Guard, Result<()>) {
    let mut hold = hold;
    let drained = drain_until_stop(&mut hold, reporter, stop, cgroups);
    let events = MapHandle::try_from(hold.guard.events());
    let kernel = hold.release();
    let rest = || -> Result<()> {
        drained?;
        let events = events?;
        let ring = Ring::new(&events, |record| reporter.borrow_mut().record(record))?;
        while ring.drain()? > 0 {}
        reporter.borrow_mut().sweep(&kernel).map(drop)
    };
    let rest = rest();
    (kernel, rest)
}

fn drain_until_stop(
    hold: &mut Hold,
    reporter: &RefCell<Reporter>,
    stop: &Stop,
    cgroups: &mut Cgroups,
) -> Result<()> {
    let events = MapHandle::try_from(hold.guard.events())?;
    let ring = Ring::new(&events, |record| reporter.borrow_mut().record(record))?;
    // An event starts a quiet second for its key, at whose end the table may know more. Whatever
    // comes until then does not put that off.
    let mut sweep_at: Option<Instant> = None;
    loop {
        let left = sweep_at.map(|at| at.saturating_duration_since(Instant::now()));
        // What cannot be watched is looked at.
        let unwatched = !(cgroups.watched() && hold.watched());
        let left = left.into_iter().chain(unwatched.then_some(LOOK)).min();
        let woken = {
            let told = reporter.borrow();
            let mut sources = vec![ring.fd()];
            sources.extend(hold.fds());
            sources.push(told.fd());
            sources.extend(cgroups.fd());
            stop.wait(&sources, left)?
        };
        if woken.stopped {
            return Ok(());
        }
        if let Some(statement) = hold.catch_up()? {
            let reporter = reporter.borrow();
            reporter.note("another policy is in force");
            match Cgroups::of(&statement) {
                Ok(named) => *cgroups = named,
                // It judges all the same: only services that are started anew are not followed.
                Err(err) => reporter.note(&format!(
                    "its cgroups cannot be followed, those of the policy before are: {err:#}"
                )),
            }
        }
        for trouble in cgroups.follow(&hold.guard) {
            reporter.borrow().note(&trouble);
        }
        if woken.ready[1] {
            let changes = hold.follow()?;
            let mut reporter = reporter.borrow_mut();
            reporter.interfaces.clone_from(&hold.interfaces);
            for change in changes {
                reporter.change(&change)?;
            }
        }
        if ring.drain()? > 0 && sweep_at.is_none() {
            sweep_at = Some(Instant::now() + SWEEP);
        }
        if sweep_at.is_some_and(|at| at <= Instant::now()) {
            let more = reporter.borrow_mut().sweep(&hold.guard)?;
            sweep_at = more.then(|| Instant::now() + SWEEP);
        }
        reporter.borrow_mut().look()?;
    }
}
