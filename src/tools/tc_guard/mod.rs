// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard`: only chosen users reach the metadata service.
//!
//! A classifier at the TC egress of each interface judges the packets that go to guarded endpoints
//! by the socket they come from. [`plan`] says what is to be guarded, [`Guard`] is the kernel's
//! part of it, [`report`] turns records into counts and [`event`] into lines.

pub mod event;
pub mod holders;
pub mod plan;
pub mod report;

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{MapCore as _, MapFlags, OpenObject, ProgramAttachType, ProgramInput, ProgramMut};
use time::OffsetDateTime;

use self::event::{Ready, Summary, VerdictEvent};
use self::plan::{Deny, Plan};
use self::report::{Key, Reported, Sample, Tally, Verdict};
use crate::endpoint::Endpoint;
use crate::endpoint_table::Table;
use crate::failure::{self, Failure};
use crate::kernel::interfaces::{self, Interface};
use crate::kernel::privileges::{self, Capabilities, Capability};
use crate::kernel::ring::Ring;
use crate::kernel::stop::Stop;
use crate::kernel::tc::{Attachment, Method, Side};
use crate::kernel::{bpf, cgroup, clock, endpoints as kernel_endpoints, features, namespace};
use crate::output::{self, Settings};
use crate::process::Directory;
use crate::skel::tc_guard::types::{guard_counter, guard_report, guard_verdict};
use crate::skel::tc_guard::{TcGuardSkel, TcGuardSkelBuilder};
use crate::tools::doctor::Diagnosis;

/// The name in events.
pub const NAME: &str = "tc-guard";

/// What loading and attaching need. Before kernel 6.6 a program may compare packet pointers with
/// CAP_PERFMON only (commit d75e30dddf73).
fn needed(method: Method) -> &'static [Capability] {
    match method {
        Method::Tcx => &[Capability::Bpf, Capability::NetAdmin],
        Method::Clsact => &[Capability::Bpf, Capability::NetAdmin, Capability::Perfmon],
    }
}

/// How long after the last event the kernel's table is read for packets that came without one: a
/// little longer than the kernel's own pause between two events of a key, of a second.
const SWEEP: Duration = Duration::from_millis(1100);

/// `tc-guard` and what it is to do.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Guard until a signal ends it
    Run(RunArgs),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    #[command(flatten)]
    guarded: Guarded,
    /// Users who may reach the endpoints, by name or uid; nobody if none is given
    #[arg(long = "allow-user", value_name = "USER", value_delimiter = ',')]
    users: Vec<String>,
    /// Interfaces to guard; all but loopback that are there at the start if none is given
    #[arg(short, long = "interface", value_name = "IFACE")]
    interfaces: Vec<String>,
    /// Deny nothing, report what would be denied
    #[arg(long)]
    audit: bool,
    /// How a denied sender hears of it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    deny: Deny,
    /// Report what is allowed, too
    #[arg(long)]
    all: bool,
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
}

/// Does what the arguments say.
///
/// # Errors
/// What ended it before its time.
pub fn run(args: &Args, settings: Settings) -> Result<()> {
    match &args.command {
        Command::Run(args) => guard(args, settings),
    }
}

fn guard(args: &RunArgs, settings: Settings) -> Result<()> {
    let mut plan = Plan::new(&args.guarded.clouds, &args.guarded.endpoints, &args.users)?;
    plan.audit = args.audit;
    plan.deny = args.deny;
    plan.report_allowed = args.all;
    let table = Table::new(&plan.endpoints)?;
    let interfaces = interfaces::chosen(&args.interfaces)?;
    if interfaces.is_empty() {
        bail!("there is no network interface but loopback; name one with -i");
    }

    let stop = Stop::on_signals()?;
    let mut sink = output::stdout(NAME, settings);
    let mut storage = MaybeUninit::uninit();
    let kernel = Guard::load(&plan, &table, Guard::method(), &mut storage)?;
    let attached = kernel.attach(&interfaces)?;
    sink.ready(&Ready {
        interfaces: interfaces
            .iter()
            .map(|interface| interface.name.clone())
            .collect(),
        method: kernel.method.name(),
        mode: if plan.audit { "audit" } else { "enforce" },
        endpoints: plan
            .endpoints
            .iter()
            .map(|target| target.endpoint.to_string())
            .collect(),
        users: plan.users.len(),
        namespaces: kernel.home_netns.is_some(),
    })?;
    for local in interfaces::addresses()? {
        let own = plan
            .endpoints
            .iter()
            .find(|target| target.endpoint.contains(local));
        if let Some(target) = own
            && args.interfaces.is_empty()
        {
            sink.note(&format!(
                "{local} ({}) is an address of this machine, and what goes there stays on the \
                 loopback interface, which is not guarded: name it with -i lo, too",
                target.endpoint.name
            ));
        }
    }
    if plan.users.is_empty() {
        sink.note("no user is allowed: not even root reaches the endpoints");
    }

    let reporter = RefCell::new(Reporter {
        sink,
        tally: Tally::default(),
        directory: Directory::new(cgroup::mount()),
        endpoints: plan
            .endpoints
            .iter()
            .map(|target| target.endpoint.name.clone())
            .collect(),
        interfaces,
        unwritten: 0,
    });
    let drained = drain(&kernel, &reporter, &stop, attached);
    let mut reporter = reporter.into_inner();
    if let Err(err) = &drained
        && failure::is_closed_pipe(err)
    {
        return drained;
    }
    // The summary is due whatever else went wrong.
    let mut summary = kernel.summary(&plan, reporter.tally.delivered())?;
    summary.unwritten = reporter.unwritten;
    let written = reporter.sink.summary(&summary);
    drained?;
    Ok(written?)
}

/// Tells of what the kernel reports until it is to stop; then detaches and tells of the rest.
fn drain(
    kernel: &Guard<'_>,
    reporter: &RefCell<Reporter>,
    stop: &Stop,
    attached: Vec<Attachment>,
) -> Result<()> {
    let ring = Ring::new(&kernel.skel.maps.events, |record| {
        reporter.borrow_mut().record(record)
    })?;
    // An event starts a quiet second for its key, at whose end the table may know more. Whatever
    // comes until then does not put that off.
    let mut sweep_at: Option<Instant> = None;
    loop {
        let left = sweep_at.map(|at| at.saturating_duration_since(Instant::now()));
        if stop.wait(&[ring.fd()], left)?.stopped {
            break;
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
    endpoints: Vec<String>,
    interfaces: Vec<Interface>,
    unwritten: u64,
}

impl Reporter {
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
        match self.tally.sample(sample) {
            Some(reported) => self.tell(clock::wall(sample.time_ns), &reported),
            None => Ok(()),
        }
    }

    /// Tells of what the table knows and no record told; says whether there was any.
    fn sweep(&mut self, kernel: &Guard<'_>) -> Result<bool> {
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
        let event = VerdictEvent::new(reported, &self.endpoints, interface, &mut self.directory);
        let told = self.sink.event(time, &event);
        self.written(told)
    }
}

/// The guard's programs and maps in the kernel. It guards nothing until it is attached.
pub struct Guard<'obj> {
    skel: TcGuardSkel<'obj>,
    method: Method,
    home_netns: Option<u64>,
}

impl std::fmt::Debug for Guard<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

impl<'obj> Guard<'obj> {
    /// The better of the ways to attach that this kernel has.
    pub fn method() -> Method {
        if features::tcx() {
            Method::Tcx
        } else {
            Method::Clsact
        }
    }

    /// Loads the programs and writes `plan` to their maps.
    ///
    /// # Errors
    /// What the kernel refuses; missing capabilities are named.
    pub fn load(
        plan: &Plan,
        table: &Table,
        method: Method,
        storage: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<Self> {
        if !bpf::has_btf() {
            return Err(Failure::blocked(
                "this kernel does not describe its types (/sys/kernel/btf/vmlinux)",
                "use a kernel built with CONFIG_DEBUG_INFO_BTF",
            )
            .into());
        }
        let mut open = TcGuardSkelBuilder::default()
            .open(storage)
            .map_err(|err| bpf::explain(err, "open the guard", needed(method)))?;
        let rodata = open
            .maps
            .rodata_data
            .as_deref_mut()
            .context("the guard has no settings")?;
        rodata.audit = plan.audit.into();
        rodata.silent = (plan.deny == Deny::Drop).into();
        rodata.report_allowed = plan.report_allowed.into();
        rodata.endpoint_bits = *table.bitmaps;
        let home_netns = namespace::cookie().filter(|_| features::tc_knows_namespaces());
        rodata.home_netns = home_netns.unwrap_or(0);
        let namespaces = home_netns.is_some();
        let progs = &mut open.progs;
        for (program, wanted) in [
            (&mut progs.guard_ethernet, !namespaces),
            (&mut progs.guard_ip, !namespaces),
            (&mut progs.guard_ethernet_netns, namespaces),
            (&mut progs.guard_ip_netns, namespaces),
        ] {
            program.set_autoload(wanted);
            if method == Method::Tcx {
                program.set_attach_type(ProgramAttachType::TcxEgress);
            }
        }
        let skel = open
            .load()
            .map_err(|err| bpf::explain(err, "load the guard", needed(method)))?;
        for (uid, rules) in &plan.users {
            skel.maps
                .users
                .update(&uid.to_ne_bytes(), &rules.to_ne_bytes(), MapFlags::ANY)
                .with_context(|| format!("cannot allow uid {uid}"))?;
        }
        kernel_endpoints::write(table, &skel.maps.endpoints, &skel.maps.endpoint_ports)?;
        // Whoever finds the table of reports full is counted here.
        for endpoint in 0..plan.endpoints.len() {
            for verdict in [Verdict::Allowed, Verdict::Denied, Verdict::WouldDeny] {
                let entry = [0; size_of::<guard_report>()];
                let key = Key::others(verdict, endpoint);
                skel.maps
                    .reports
                    .update(&key, &entry, MapFlags::ANY)
                    .context("cannot write the table of reports")?;
            }
        }
        Ok(Self {
            skel,
            method,
            home_netns,
        })
    }

    /// Attaches to the egress of `interfaces`: to all of them or, if one fails, to none.
    ///
    /// # Errors
    /// What the kernel refuses; missing capabilities are named.
    pub fn attach(&self, interfaces: &[Interface]) -> Result<Vec<Attachment>> {
        interfaces
            .iter()
            .map(|interface| {
                let program = self.program(interface.ethernet);
                Attachment::new(program, interface, Side::Egress, self.method)
                    .map_err(|err| bpf::explain_any(err, "attach the guard", needed(self.method)))
            })
            .collect()
    }

    fn program(&self, ethernet: bool) -> &ProgramMut<'obj> {
        let progs = &self.skel.progs;
        match (ethernet, self.home_netns.is_some()) {
            (true, false) => &progs.guard_ethernet,
            (false, false) => &progs.guard_ip,
            (true, true) => &progs.guard_ethernet_netns,
            (false, true) => &progs.guard_ip_netns,
        }
    }

    /// What the guard says to `packet`, which begins with an Ethernet header if `ethernet`, run
    /// `repeat` times: the TC verdict and the nanoseconds that one run took. The packet has no
    /// socket but that which the kernel's test run gives it: one of this network namespace, whose
    /// uid is 0.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn test_run(&self, packet: &[u8], ethernet: bool, repeat: u32) -> Result<(i32, u64)> {
        let mut out = vec![0; packet.len() + 256];
        let input = ProgramInput {
            data_in: Some(packet),
            data_out: Some(&mut out),
            repeat,
            ..ProgramInput::default()
        };
        let output = self
            .program(ethernet)
            .test_run(input)
            .context("cannot run the guard")?;
        let nanos = u64::try_from(output.duration.as_nanos()).unwrap_or(u64::MAX);
        Ok((output.return_value.cast_signed(), nanos))
    }

    fn counter(&self, index: u32) -> Result<u64> {
        let values = self
            .skel
            .maps
            .counters
            .lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)?
            .context("no such counter")?;
        Ok(values
            .iter()
            .filter_map(|value| Some(u64::from_ne_bytes(value.as_slice().try_into().ok()?)))
            .sum())
    }

    /// Packets per key, since the start.
    fn reports(&self) -> Result<Vec<(Key, u64)>> {
        let map = &self.skel.maps.reports;
        let mut found = Vec::new();
        for key in map.keys() {
            if let Some(value) = map.lookup(&key, MapFlags::ANY)? {
                found.push((Key::from_bytes(&key)?, report::total_from_bytes(&value)?));
            }
        }
        Ok(found)
    }

    /// The kernel's counters; `delivered` packets were told of.
    ///
    /// # Errors
    /// If the kernel does not give them.
    pub fn summary(&self, plan: &Plan, delivered: u64) -> Result<Summary> {
        let verdict = |verdict: guard_verdict| self.counter(verdict.0);
        let counter = |counter: guard_counter| self.counter(counter.0);
        let allowed = verdict(guard_verdict::GUARD_ALLOWED)?;
        let denied = verdict(guard_verdict::GUARD_DENIED)?;
        let would_deny = verdict(guard_verdict::GUARD_WOULD_DENY)?;
        let seen = denied + would_deny + if plan.report_allowed { allowed } else { 0 };
        Ok(Summary {
            seen,
            delivered,
            lost: seen.saturating_sub(delivered),
            allowed,
            denied,
            would_deny,
            passed: verdict(guard_verdict::GUARD_PASSED)?,
            resets: counter(guard_counter::GUARD_RESETS)?,
            prohibited: counter(guard_counter::GUARD_PROHIBITED)?,
            unanswered: counter(guard_counter::GUARD_UNANSWERED)?,
            events_lost: counter(guard_counter::GUARD_EVENTS_LOST)?,
            unwritten: 0,
        })
    }
}

/// Tries the guard: in a network namespace of its own where that can be made.
pub fn diagnose() -> Diagnosis {
    match try_out() {
        Ok(lost) => Diagnosis::working(lost),
        Err(err) => Diagnosis::blocked(&err),
    }
}

fn try_out() -> Result<Vec<String>> {
    let plan = Plan::new(&["all".to_owned()], &[], &[])?;
    let table = Table::new(&plan.endpoints)?;
    let method = Guard::method();
    let mut lost = Vec::new();
    let mut storage = MaybeUninit::uninit();
    let guard = Guard::load(&plan, &table, method, &mut storage)?;
    match namespace::isolated(|| {
        guard
            .attach(&interfaces::chosen(&["lo".to_owned()])?)
            .map(drop)
    }) {
        Some(tried) => tried?,
        None => {
            let missing = Capabilities::effective().missing(needed(method));
            if !missing.is_empty() {
                return Err(Failure::blocked(
                    format!("{} is missing", privileges::list(&missing)),
                    format!("run as root, or with {}", privileges::list(needed(method))),
                )
                .into());
            }
            lost.push(
                "attaching was not tried, as no network namespace can be made without \
                 CAP_SYS_ADMIN"
                    .to_owned(),
            );
        }
    }
    if guard.home_netns.is_none() {
        lost.push(
            "sockets of other network namespaces are not told from the machine's own (kernel \
             6.15): root of a container on a macvlan or ipvlan passes as root"
                .to_owned(),
        );
    }
    if method == Method::Clsact {
        lost.push(
            "no TCX links (kernel 6.6): a guard that is killed with SIGKILL leaves its filter in \
             place"
                .to_owned(),
        );
    }
    Ok(lost)
}
