// SPDX-License-Identifier: BSD-2-Clause

//! `make bench-tc-guard`: what tc-guard costs, as ratios, each taken in turn with what it is compared
//! to, in one run. Needs root; works in network namespaces of its own.
//!
//! The first table is nanoseconds a packet, by the kernel's own test run, against a classifier that
//! does nothing. The second is packets a second of the sender's processor time through a veth pair: without a
//! guard, with a classifier that does nothing, with the guard, with an nftables rule and with an iptables rule
//! (of iptables-nft) for the same user and address.

mod empty;

use std::fs::File;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ebpfkit::endpoint::Endpoint;
use ebpfkit::kernel::{cgroup, interfaces};
use ebpfkit::tools::tc_guard::plan::Plan;
use ebpfkit::tools::tc_guard::policy::{Deny, Policy, Subject};
use ebpfkit::tools::tc_guard::{Guard, Hook};
use empty::Timed;
use etherparse::{PacketBuilder, VlanId};
use libbpf_rs::libbpf_sys;
use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};

const RUNS: u32 = 20_000;
const ROUNDS: u32 = 500;
/// Rounds through the veth pair, and packets of each.
const PAIRS: usize = 61;
const BURST: usize = 20_000;
const BATCH: usize = 64;

const GUARDED4: &str = "169.254.169.254";
const GUARDED6: &str = "fd00:ec2::254";
const ELSEWHERE4: &str = "192.0.2.1";
const ELSEWHERE6: &str = "2001:db8::1";

/// What the documentation aims at.
struct Aim {
    text: &'static str,
    worst: f64,
    most: f64,
}

impl Aim {
    fn new(text: &'static str, most: f64) -> Self {
        Self {
            text,
            worst: 0.0,
            most,
        }
    }

    fn see(&mut self, ratio: f64) {
        self.worst = self.worst.max(ratio);
    }

    fn print(&self) {
        let verdict = if self.worst <= self.most {
            "met"
        } else {
            "MISSED"
        };
        println!(
            "  {:<58} {:>5.2} (at most {:.2}) {verdict}",
            self.text, self.worst, self.most
        );
    }
}

fn main() -> Result<()> {
    verdicts()?;
    throughput()
}

/// A way through the programs.
struct Case {
    what: &'static str,
    to: &'static str,
    form: Form,
    /// What it is compared to, besides the empty program.
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Tcp,
    Udp,
    /// TCP in a frame with a VLAN tag: what a socket was allowed before is not looked at there, so that the subjects
    /// of the rules are asked for each packet.
    Vlan,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unconcerned,
    /// As root, whom a rule names.
    Allowed,
    /// The same, by a full judgement of each packet.
    Judged,
    /// By its cgroup: no rule names root.
    InCgroup,
    /// Neither.
    Denied,
}

const CASES: [Case; 10] = [
    case(
        "unconcerned, TCP over IPv4",
        ELSEWHERE4,
        Form::Tcp,
        Kind::Unconcerned,
    ),
    case(
        "unconcerned, UDP over IPv4",
        ELSEWHERE4,
        Form::Udp,
        Kind::Unconcerned,
    ),
    case(
        "unconcerned, TCP over IPv6",
        ELSEWHERE6,
        Form::Tcp,
        Kind::Unconcerned,
    ),
    case("allowed, IPv4", GUARDED4, Form::Tcp, Kind::Allowed),
    case("allowed, IPv6", GUARDED6, Form::Tcp, Kind::Allowed),
    case(
        "allowed by cgroup, IPv4",
        GUARDED4,
        Form::Tcp,
        Kind::InCgroup,
    ),
    case(
        "each packet judged, by user",
        GUARDED4,
        Form::Vlan,
        Kind::Judged,
    ),
    case(
        "each packet judged, by cgroup",
        GUARDED4,
        Form::Vlan,
        Kind::InCgroup,
    ),
    case("denied, IPv4", GUARDED4, Form::Tcp, Kind::Denied),
    case("denied, IPv6", GUARDED6, Form::Tcp, Kind::Denied),
];

const fn case(what: &'static str, to: &'static str, form: Form, kind: Kind) -> Case {
    Case {
        what,
        to,
        form,
        kind,
    }
}

/// Guards of so many endpoints, and so many users, groups and cgroups.
struct Guards {
    endpoints: usize,
    count: usize,
    by_user: Guard,
    by_cgroup: Guard,
    closed: Guard,
}

impl Guards {
    fn new(own: &Cgroup, endpoints: usize, count: usize) -> Result<Self> {
        Ok(Self {
            endpoints,
            count,
            by_user: guard(endpoints, count, true, None)?,
            by_cgroup: guard(endpoints, count, false, Some(own))?,
            closed: guard(endpoints, count, false, None)?,
        })
    }

    fn of(&self, kind: Kind) -> &Guard {
        match kind {
            Kind::Unconcerned | Kind::Allowed | Kind::Judged => &self.by_user,
            Kind::InCgroup => &self.by_cgroup,
            Kind::Denied => &self.closed,
        }
    }
}

fn verdicts() -> Result<()> {
    let own = Cgroup::enter()?;
    let mut all = Vec::new();
    for endpoints in [1, 1_000] {
        for count in [1, 100, 10_000] {
            all.push(Guards::new(&own, endpoints, count)?);
        }
    }
    let took = measure_verdicts(&all)?;
    let mut unconcerned = Aim::new("unconcerned traffic, to the empty classifier", 1.25);
    let mut allowed = Aim::new("allowed, to the empty classifier", 3.0);
    let mut subjects = Aim::new("10,000 users, groups and cgroups, to one of each", 1.2);
    println!(
        "{:<34} {:>9} {:>9} {:>8} {:>8} {:>7}",
        "packet", "endpoints", "subjects", "ns", "empty", "ratio"
    );
    let mut one = [0.0; CASES.len()];
    for (guards, took) in all.iter().zip(took.chunks(CASES.len())) {
        let Guards {
            endpoints, count, ..
        } = guards;
        for (index, (case, (nanos, floor))) in CASES.iter().zip(took).enumerate() {
            let ratio = nanos / floor;
            println!(
                "{:<34} {endpoints:>9} {count:>9} {nanos:>8.1} {floor:>8.1} {ratio:>7.2}",
                case.what
            );
            match (case.kind, case.form) {
                (Kind::Unconcerned, _) => unconcerned.see(ratio),
                (Kind::Allowed, _) | (Kind::InCgroup, Form::Tcp) => allowed.see(ratio),
                _ => {}
            }
            if *count == 1 {
                one[index] = ratio;
            } else if *count == 10_000 {
                subjects.see(ratio / one[index]);
            }
        }
    }
    println!("aims");
    for aim in [&unconcerned, &allowed, &subjects] {
        aim.print();
    }
    Ok(())
}

/// Nanoseconds of each case of each of the guards, and of the empty program with its packet.
fn measure_verdicts(guards: &[Guards]) -> Result<Vec<(f64, f64)>> {
    let empty = empty::program(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS)?;
    let packets = CASES
        .iter()
        .map(|case| Ok(packet(case.to.parse()?, case.form)))
        .collect::<Result<Vec<_>>>()?;
    let mut all: Vec<Timed<'_>> = Vec::new();
    for guards in guards {
        for (case, packet) in CASES.iter().zip(&packets) {
            let guard = guards.of(case.kind);
            let verdict = guard.test_run(Hook::EgressEth, packet, 1)?.code;
            ensure!(
                (verdict == TC_ACT_SHOT) == (case.kind == Kind::Denied),
                "{}: the verdict is {verdict}",
                case.what
            );
            let empty = &empty;
            all.push(Box::new(move |runs| empty::run(empty, packet, runs)));
            all.push(Box::new(move |runs| {
                guard.test_run(Hook::EgressEth, packet, runs).map(drop)
            }));
        }
    }
    let nanos = empty::shortest(&mut all, ROUNDS, RUNS)?;
    Ok(nanos.chunks(2).map(|pair| (pair[1], pair[0])).collect())
}

/// linux/pkt_cls.h
const TC_ACT_SHOT: i32 = 2;

/// A cgroup that this process is in, until this value is dropped.
struct Cgroup {
    path: PathBuf,
    before: PathBuf,
    name: String,
}

impl Cgroup {
    fn enter() -> Result<Self> {
        let root = cgroup::mount().context("the whole of cgroup2 is not mounted here")?;
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let before = root.join(own.context("this process has no cgroup")?);
        let name = format!("ebpfkit-bench-{}", std::process::id());
        let path = root.join(&name);
        std::fs::create_dir(&path)?;
        let entered = Self { path, before, name };
        entered.go(&entered.path)?;
        Ok(entered)
    }

    fn go(&self, to: &Path) -> Result<()> {
        let at = || format!("cannot go to the cgroup {}", to.display());
        std::fs::write(to.join("cgroup.procs"), "0").with_context(at)
    }

    fn id(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.path)?.ino())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let left = self.go(&self.before);
        if let Err(err) = left.and_then(|()| Ok(std::fs::remove_dir(&self.path)?)) {
            eprintln!("{} stays: {err:#}", self.path.display());
        }
    }
}

/// A guard with so many endpoints, users, groups and cgroups, root among them or not, this process's cgroup among them
/// or not, that answers denials with silence: an answer would be the next run's packet.
fn guard(endpoints: usize, count: usize, root: bool, own: Option<&Cgroup>) -> Result<Guard> {
    let mut guarded: Vec<Endpoint> = vec![
        format!("{GUARDED4}:80/tcp").parse()?,
        format!("[{GUARDED6}]:80/tcp").parse()?,
    ];
    for number in 1..endpoints {
        let (high, low) = (number / 250, number % 250);
        guarded.push(format!("10.{high}.{low}.7:80/tcp").parse()?);
    }
    let first = if root { 0 } else { 1 };
    let users: Vec<String> = (first..first + count).map(|uid| uid.to_string()).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let mut policy = Policy {
        deny: Deny::Drop,
        ..Policy::of(&guarded, &users)
    };
    // A group of root's is in none of its packets: only a call has it.
    let rule = &mut policy.rules[0];
    rule.groups = (1..=count)
        .map(|gid| Subject::from(gid.to_string().as_str()))
        .collect();
    let name = own.map_or("ebpfkit-bench", |own| own.name.as_str());
    rule.cgroups = vec![format!("/{name}").as_str().into()];
    let cgroups = cgroup::mount();
    let plan = Plan::new(&policy, cgroups.as_deref())?;
    let guard = Guard::load(&plan, Guard::method(), cgroups.as_deref())?;
    guard.allow_cgroups(&plan, cgroups.as_deref())?;
    // Those of the others need not be there.
    let own = own.map(Cgroup::id).transpose()?;
    let rules = plan.cgroups.values().next().copied();
    for id in (1..count as u64).map(|number| number << 40) {
        ensure!(own != Some(id), "no cgroup has the number {id}");
        guard.allow_cgroup(id, rules)?;
    }
    guard.arm()?;
    Ok(guard)
}

fn packet(to: IpAddr, form: Form) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let source = Ipv6Addr::from([0xfd; 16]).octets();
    let vlan = VlanId::try_new(7).unwrap_or_default();
    let network = match (to, form) {
        (IpAddr::V4(to), Form::Vlan) => link.single_vlan(vlan).ipv4([10, 0, 0, 2], to.octets(), 64),
        (IpAddr::V4(to), _) => link.ipv4([10, 0, 0, 2], to.octets(), 64),
        (IpAddr::V6(to), _) => link.ipv6(source, to.octets(), 64),
    };
    let mut bytes = Vec::new();
    // Writing to a vector does not fail.
    let _ = match form {
        Form::Tcp | Form::Vlan => network.tcp(40000, 80, 1, 1024).write(&mut bytes, &[7; 100]),
        Form::Udp => network.udp(40000, 80).write(&mut bytes, &[7; 100]),
    };
    bytes
}

/// A network namespace, removed on drop.
struct Netns(String);

impl Netns {
    fn new(name: &str) -> Result<Self> {
        let netns = Self(format!("ebpfkit-bench-{}-{name}", std::process::id()));
        sh("ip", &["netns", "add", &netns.0])?;
        Ok(netns)
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        sh("ip", &[&["-n", &self.0], args].concat())
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<()> {
        let net = format!("--net=/run/netns/{}", self.0);
        sh("nsenter", &[&[net.as_str(), "--", program], args].concat())
    }

    fn enter(&self) -> Result<()> {
        let file = File::open(Path::new("/run/netns").join(&self.0))?;
        Ok(setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = sh("ip", &["netns", "del", &self.0]);
    }
}

fn sh(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{program} {args:?}: {}\n{said}", output.status);
    }
    Ok(())
}

/// What stands between the sender and the veth pair.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Barrier {
    Nothing,
    Empty,
    Guard,
    Nftables,
    Iptables,
}

const BARRIERS: [(Barrier, &str); 5] = [
    (Barrier::Nothing, "no guard"),
    (Barrier::Empty, "a classifier that does nothing"),
    (Barrier::Guard, "tc-guard"),
    (Barrier::Nftables, "nftables: meta skuid"),
    (Barrier::Iptables, "iptables: owner"),
];

/// Where the guard is among them.
const GUARD: usize = 2;

fn throughput() -> Result<()> {
    let (here, there) = (Netns::new("here")?, Netns::new("there")?);
    here.ip(&[
        "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &there.0,
    ])?;
    for (side, address) in [(&here, "10.213.0.2/24"), (&there, "10.213.0.1/24")] {
        side.ip(&["addr", "add", address, "dev", "eth0"])?;
        side.ip(&["link", "set", "eth0", "up"])?;
        side.ip(&["link", "set", "lo", "up"])?;
    }
    there.ip(&["addr", "add", "169.254.169.254/32", "dev", "eth0"])?;
    here.ip(&["route", "add", "default", "via", "10.213.0.1"])?;
    println!();
    println!(
        "{:<34} {:>24} {:>24}",
        "through a veth pair", "unconcerned", "allowed"
    );
    // In a thread of its own, which stays in the namespace.
    thread::scope(|scope| {
        let work = scope.spawn(|| measure(&here, &there));
        work.join()
            .map_err(|_| anyhow::anyhow!("the measurement failed"))?
    })
}

fn measure(here: &Netns, there: &Netns) -> Result<()> {
    there.enter()?;
    // Nobody reads: what is too much for the socket is dropped there, at the same cost for all.
    let sinks = ["10.213.0.1:9", "169.254.169.254:80"];
    let _sinks = sinks
        .iter()
        .map(UdpSocket::bind)
        .collect::<Result<Vec<_>, _>>()?;
    here.enter()?;
    let senders = sinks
        .iter()
        .map(|sink| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(sink)?;
            Ok(socket)
        })
        .collect::<Result<Vec<_>>>()?;
    let policy = Policy::of(&[format!("{GUARDED4}:80").parse()?], &["0"]);
    let guard = Guard::load(&Plan::new(&policy, None)?, Guard::method(), None)?;
    guard.arm()?;
    let interfaces = interfaces::chosen(&["eth0".to_owned()])?;
    let interface = nix::net::if_::if_nametoindex("eth0")?;
    let empty = empty::program(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS)?;

    // Ratios are of one round, as the machine is not as fast all the time; every other round goes backwards, as
    // whoever comes first may have it warmer.
    let mut rates = [const { [const { Vec::new() }; 2] }; BARRIERS.len()];
    for round in 0..PAIRS {
        for step in 0..BARRIERS.len() {
            let index = if round % 2 == 0 {
                step
            } else {
                BARRIERS.len() - 1 - step
            };
            let (barrier, _) = &BARRIERS[index];
            let attached = match barrier {
                Barrier::Guard => guard.attach(&interfaces)?,
                _ => Vec::new(),
            };
            let floor = match barrier {
                Barrier::Empty => Some(attach(&empty, interface)?),
                _ => None,
            };
            firewall(here, *barrier, true)?;
            for (rates, sender) in rates[index].iter_mut().zip(&senders) {
                rates.push(send(sender)?);
            }
            firewall(here, *barrier, false)?;
            drop((attached, floor));
        }
    }
    let against = |index: usize, other: usize, column: usize| {
        let pairs = rates[index][column].iter().zip(&rates[other][column]);
        median(pairs.map(|(rate, other)| rate / other).collect())
    };
    for (index, (_, name)) in BARRIERS.iter().enumerate() {
        let column = |column: usize| {
            let rate = median(rates[index][column].clone());
            format!("{rate:>9.0} packets/s {:>6.3}", against(index, 0, column))
        };
        println!("{name:<34} {:>24} {:>24}", column(0), column(1));
    }
    println!("aims");
    let mut aim = Aim::new(
        "veth throughput of unconcerned traffic, lost to the guard",
        0.02,
    );
    aim.see(1.0 - against(GUARD, 0, 0));
    aim.print();
    for (index, (_, name)) in BARRIERS.iter().enumerate().skip(GUARD + 1) {
        for (column, traffic) in ["unconcerned", "allowed"].iter().enumerate() {
            let ahead = against(GUARD, index, column);
            let verdict = if ahead >= 1.0 { "met" } else { "MISSED" };
            println!(
                "  {:<58} {ahead:>5.3} (at least 1.00) {verdict}",
                format!("{traffic}, ahead of {name}")
            );
        }
    }
    Ok(())
}

fn firewall(netns: &Netns, barrier: Barrier, on: bool) -> Result<()> {
    match (barrier, on) {
        (Barrier::Nftables, true) => netns.run(
            "nft",
            &["add table inet bench; add chain inet bench output { type filter hook output priority 0; }; \
               add rule inet bench output ip daddr 169.254.169.254 meta skuid != 0 reject"],
        ),
        (Barrier::Iptables, true) => netns.run(
            "iptables",
            &[
                "-A", "OUTPUT", "-d", GUARDED4, "-m", "owner", "!", "--uid-owner", "0", "-j",
                "REJECT",
            ],
        ),
        // Tables that are only emptied stay in the way of each packet, also of the next round's without a guard.
        (Barrier::Nftables | Barrier::Iptables, false) => netns.run("nft", &["flush ruleset"]),
        _ => Ok(()),
    }
}

/// At the egress of an interface, until the descriptor that this returns is closed.
#[allow(unsafe_code)]
fn attach(program: &OwnedFd, interface: u32) -> Result<OwnedFd> {
    // SAFETY: no options are given; the descriptor that it returns is ours.
    unsafe {
        let fd = libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            i32::try_from(interface)?,
            libbpf_sys::BPF_TCX_EGRESS,
            std::ptr::null(),
        );
        ensure!(
            fd >= 0,
            "cannot attach the empty program: {}",
            std::io::Error::from_raw_os_error(-fd)
        );
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds that this thread had a processor for: what others do meanwhile does not count, and what the
/// kernel does on its behalf, down to the other end of the veth pair, does.
fn processor_time() -> Result<f64> {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(Duration::from(now).as_secs_f64())
}

/// Packets a second of the processor's time, of one burst.
fn send(socket: &UdpSocket) -> Result<f64> {
    let payload = [7_u8; 18];
    let mut part = libc::iovec {
        iov_base: payload.as_ptr().cast_mut().cast(),
        iov_len: payload.len(),
    };
    #[allow(unsafe_code)]
    // SAFETY: C structs of integers and pointers, for which zeros are valid.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for message in &mut messages {
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
    }
    let start = processor_time()?;
    let mut sent = 0;
    while sent < BURST {
        #[allow(unsafe_code)]
        // SAFETY: the messages and what they point to outlive the call, and there are BATCH of them.
        let ret = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                libc::c_uint::try_from(BATCH)?,
                0,
            )
        };
        match usize::try_from(ret) {
            Ok(count) => sent += count,
            Err(_) => return Err(std::io::Error::last_os_error()).context("cannot send"),
        }
    }
    #[allow(clippy::cast_precision_loss)]
    let rate = sent as f64 / (processor_time()? - start);
    Ok(rate)
}
