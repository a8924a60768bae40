// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard run`: from arguments to a guard at work, and from what it reports to lines.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use time::OffsetDateTime;

use super::config;
use super::event::{Checked, Ready, VerdictEvent};
use super::plan::Plan;
use super::policy::{Deny, Limit, Mode, Policy, Rule, Subject};
use super::report::{Reported, Sample, Tally};
use super::{Guard, NAME};
use crate::endpoint::Endpoint;
use crate::endpoint_table::Table;
use crate::failure::{self, Failure};
use crate::kernel::cgroup_follow::Follower;
use crate::kernel::interfaces::{self, Interface};
use crate::kernel::ring::Ring;
use crate::kernel::stop::Stop;
use crate::kernel::tc::Attachment;
use crate::kernel::{cgroup, clock};
use crate::metadata;
use crate::output::{self, Settings};
use crate::process::Directory;

/// How long after the last event the kernel's table is read for packets that came without one: a
/// little longer than the kernel's own pause between two events of a key, of a second.
const SWEEP: Duration = Duration::from_millis(1100);

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
    /// Interfaces to guard; all but loopback that are there at the start if none is given
    #[arg(short, long = "interface", value_name = "IFACE")]
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
    /// The policy of the file and the command line together.
    fn policy(&self) -> Result<Policy> {
        let mut policy = match &self.guarded.config {
            Some(path) => read(path)?,
            None => Policy::default(),
        };
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
        Ok(policy)
    }
}

/// As much of a policy as is read: ten thousand subjects are some hundred thousand bytes.
const LONGEST_POLICY: u64 = 4 << 20;

/// The policy in a file.
///
/// # Errors
/// [`Failure::Usage`] if it is no policy; those of the system if it cannot be read.
pub fn read(path: &Path) -> Result<Policy> {
    let at = || format!("cannot read the policy {}", path.display());
    let mut text = String::new();
    let file = File::open(path).with_context(at)?;
    let mut start = file.take(LONGEST_POLICY + 1);
    start.read_to_string(&mut text).with_context(at)?;
    if text.len() as u64 > LONGEST_POLICY {
        return Err(Failure::usage(format!(
            "{}: longer than the {LONGEST_POLICY} bytes that a policy may have",
            path.display()
        ))
        .into());
    }
    Ok(config::parse(&path.display().to_string(), &text)?)
}

/// What is attached; gone with this value.
struct Attached {
    _calls: Vec<OwnedFd>,
    _packets: Vec<Attachment>,
}

pub(super) fn run(args: &Args, settings: Settings) -> Result<()> {
    let policy = args.policy()?;
    let root = cgroup::mount();
    let plan = Plan::new(&policy, root.as_deref())?;
    if args.check_config {
        Table::new(&plan.endpoints)?;
        let mut sink = output::stdout(NAME, settings);
        sink.event(OffsetDateTime::now_utc(), &Checked::new(&plan))?;
        return Ok(sink.flush()?);
    }
    let interfaces = interfaces::chosen(&policy.interfaces)?;
    if interfaces.is_empty() {
        bail!("there is no network interface but loopback; name one with -i");
    }

    let stop = Stop::on_signals()?;
    let mut sink = output::stdout(NAME, settings);
    let kernel = Guard::load(&plan, Guard::method(), root.as_deref())?;
    let packets = kernel.attach(&interfaces)?;
    let calls = match &root {
        Some(root) if kernel.calls() => kernel.attach_calls(root)?,
        _ => Vec::new(),
    };
    let mut cgroups = Cgroups::new(&plan, root.as_deref())?;
    cgroups.follow(&kernel)?;
    kernel.arm()?;
    let attached = Attached {
        _calls: calls,
        _packets: packets,
    };
    sink.ready(&ready(&plan, &kernel, &interfaces))?;
    if policy.interfaces.is_empty() {
        for local in interfaces::addresses()? {
            let own = plan
                .endpoints
                .iter()
                .find(|target| target.endpoint.contains(local));
            if let Some(target) = own {
                sink.note(&format!(
                    "{local} ({}) is an address of this machine, and what goes there stays on the \
                     loopback interface, which is not guarded: name it with -i lo, too",
                    target.endpoint.name
                ));
            }
        }
    }
    if plan.allows_nobody() {
        sink.note("nobody is allowed: not even root reaches the endpoints");
    }
    if !kernel.calls() && !plan.packets_only {
        sink.note(
            "connect() and sendmsg() are not guarded, only packets, as cgroup2 is not mounted: \
             denials do not name the process",
        );
    }

    let mut reporter = Reporter {
        sink,
        tally: Tally::default(),
        directory: Directory::new(root),
        endpoints: HashMap::new(),
        interfaces,
        unwritten: 0,
    };
    reporter.know(kernel.generation(), &plan);
    let reporter = RefCell::new(reporter);
    let drained = drain(&kernel, &reporter, &stop, &mut cgroups, attached);
    let mut reporter = reporter.into_inner();
    if let Err(err) = &drained
        && failure::is_closed_pipe(err)
    {
        return drained;
    }
    // The summary is due whatever else went wrong.
    let mut summary = kernel.summary(plan.report_allowed, reporter.tally.delivered())?;
    summary.unwritten = reporter.unwritten;
    let written = reporter.sink.summary(&summary);
    drained?;
    Ok(written?)
}

fn ready(plan: &Plan, kernel: &Guard, interfaces: &[Interface]) -> Ready {
    Ready {
        interfaces: interfaces
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
    }
}

/// The cgroups that rules name, whose ids the kernel is told of as they come and go.
struct Cgroups {
    rules: BTreeMap<String, u64>,
    /// Nothing if no rule names one.
    follower: Option<Follower>,
}

impl Cgroups {
    fn new(plan: &Plan, root: Option<&Path>) -> Result<Self> {
        let follower = match root {
            _ if plan.cgroups.is_empty() => None,
            Some(root) => Some(Follower::new(root, plan.cgroups.keys().cloned())?),
            None => {
                return Err(Failure::blocked(
                    "rules for cgroups need cgroup2, which is not mounted",
                    "mount it (mount -t cgroup2 none /sys/fs/cgroup), or name users instead",
                )
                .into());
            }
        };
        Ok(Self {
            rules: plan.cgroups.clone(),
            follower,
        })
    }

    fn follow(&mut self, kernel: &Guard) -> Result<()> {
        let Some(follower) = &mut self.follower else {
            return Ok(());
        };
        for change in follower.changes()? {
            if let Some(id) = change.gone {
                kernel.allow_cgroup(id, None)?;
            }
            if let Some(id) = change.come {
                kernel.allow_cgroup(id, self.rules.get(&change.path).copied())?;
            }
        }
        Ok(())
    }
}

/// Tells of what the kernel reports until it is to stop; then detaches and tells of the rest.
fn drain(
    kernel: &Guard,
    reporter: &RefCell<Reporter>,
    stop: &Stop,
    cgroups: &mut Cgroups,
    attached: Attached,
) -> Result<()> {
    let ring = Ring::new(kernel.events(), |record| {
        reporter.borrow_mut().record(record)
    })?;
    // An event starts a quiet second for its key, at whose end the table may know more. Whatever
    // comes until then does not put that off.
    let mut sweep_at: Option<Instant> = None;
    loop {
        let left = sweep_at.map(|at| at.saturating_duration_since(Instant::now()));
        let woken = match cgroups.follower.as_ref().map(Follower::fd) {
            Some(cgroups) => stop.wait(&[ring.fd(), cgroups], left)?,
            None => stop.wait(&[ring.fd()], left)?,
        };
        if woken.stopped {
            break;
        }
        if woken.ready.get(1).is_some_and(|ready| *ready) {
            cgroups.follow(kernel)?;
        }
        if ring.drain()? > 0 && sweep_at.is_none() {
            sweep_at = Some(Instant::now() + SWEEP);
        }
        if sweep_at.is_some_and(|at| at <= Instant::now()) {
            let more = reporter.borrow_mut().sweep(kernel)?;
            sweep_at = more.then(|| Instant::now() + SWEEP);
        }
        reporter.borrow_mut().flush()?;
    }
    drop(attached);
    while ring.drain()? > 0 {}
    reporter.borrow_mut().sweep(kernel)?;
    reporter.borrow_mut().flush()
}

/// From records to lines.
struct Reporter {
    sink: output::Stdout,
    tally: Tally,
    directory: Directory,
    /// Names of the endpoints of each generation of the policy.
    endpoints: HashMap<u16, Vec<String>>,
    interfaces: Vec<Interface>,
    unwritten: u64,
}

impl Reporter {
    /// The names of a policy's endpoints, for its reports.
    fn know(&mut self, generation: u16, plan: &Plan) {
        let names = plan.endpoints.iter();
        let names = names.map(|target| target.endpoint.name.clone()).collect();
        self.endpoints.insert(generation, names);
    }

    /// Only a closed pipe ends the guard: whoever can fill the disk that its lines go to must not be
    /// able to open the way.
    fn written(&mut self, result: io::Result<()>) -> Result<()> {
        match result {
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Err(err.into()),
            Err(err) => {
                if self.unwritten == 0 {
                    self.sink
                        .note(&format!("cannot write ({err}); guarding on without"));
                }
                self.unwritten += 1;
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let flushed = self.sink.flush();
        self.written(flushed)
    }

    fn record(&mut self, record: &[u8]) -> Result<()> {
        let sample = Sample::from_bytes(record)?;
        let time = clock::wall(sample.time_ns);
        match self.tally.sample(sample) {
            Some(reported) => self.tell(time, &reported),
            None => Ok(()),
        }
    }

    /// Tells of what the table knows and no record told; says whether there was any.
    fn sweep(&mut self, kernel: &Guard) -> Result<bool> {
        let mut any = false;
        for (key, total) in kernel.reports()? {
            if let Some(reported) = self.tally.total(key, total) {
                self.tell(OffsetDateTime::now_utc(), &reported)?;
                any = true;
            }
        }
        Ok(any)
    }

    fn tell(&mut self, time: OffsetDateTime, reported: &Reported) -> Result<()> {
        let interface = |index| {
            let found = self
                .interfaces
                .iter()
                .find(|i| u32::try_from(i.index) == Ok(index));
            found.map(|interface| interface.name.clone())
        };
        let names = self.endpoints.get(&reported.key.generation);
        let endpoint = names.and_then(|names| names.get(reported.key.endpoint));
        let endpoint = endpoint.map_or("", String::as_str);
        let event = VerdictEvent::new(reported, endpoint, interface, &mut self.directory);
        let told = self.sink.event(time, &event);
        self.written(told)
    }
}
