// SPDX-License-Identifier: BSD-2-Clause

//! `make bench-tc-guard`: what tc-guard costs, as ratios, each taken in turn with what it is compared
//! to, in one run. Needs root; works in network namespaces of its own.
//!
//! The first table is nanoseconds a packet, by the kernel's own test run, against a classifier that
//! does nothing. The second is packets a second through a veth pair, against the same without a guard,
//! with an nftables rule and with an iptables rule for the same user and address.

use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use ebpfkit::endpoint::Endpoint;
use ebpfkit::kernel::{interfaces, program};
use ebpfkit::tools::tc_guard::plan::Plan;
use ebpfkit::tools::tc_guard::policy::{Deny, Policy};
use ebpfkit::tools::tc_guard::{Guard, Hook};
use etherparse::PacketBuilder;
use libbpf_rs::libbpf_sys;
use nix::sched::{CloneFlags, setns};

const RUNS: u32 = 200_000;
const ROUNDS: usize = 9;
/// Packets of a round through the veth pair.
const BURST: usize = 200_000;
const BATCH: usize = 64;

const GUARDED4: &str = "169.254.169.254";
const GUARDED6: &str = "fd00:ec2::254";
const ELSEWHERE4: &str = "192.0.2.1";
const ELSEWHERE6: &str = "2001:db8::1";

/// What issue and documentation aim at.
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
    tcp: bool,
    hook: Hook,
    /// What it is compared to, besides the empty program.
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unconcerned,
    Allowed,
    Denied,
}

const CASES: [Case; 7] = [
    case(
        "unconcerned, TCP over IPv4",
        ELSEWHERE4,
        true,
        Kind::Unconcerned,
    ),
    case(
        "unconcerned, UDP over IPv4",
        ELSEWHERE4,
        false,
        Kind::Unconcerned,
    ),
    case(
        "unconcerned, TCP over IPv6",
        ELSEWHERE6,
        true,
        Kind::Unconcerned,
    ),
    case("allowed, IPv4", GUARDED4, true, Kind::Allowed),
    case("allowed, IPv6", GUARDED6, true, Kind::Allowed),
    case("denied, IPv4", GUARDED4, true, Kind::Denied),
    case("denied, IPv6", GUARDED6, true, Kind::Denied),
];

const fn case(what: &'static str, to: &'static str, tcp: bool, kind: Kind) -> Case {
    Case {
        what,
        to,
        tcp,
        hook: Hook::EgressEth,
        kind,
    }
}

fn verdicts() -> Result<()> {
    let empty = empty()?;
    let mut unconcerned = Aim::new("unconcerned traffic, to the empty classifier", 1.25);
    let mut allowed = Aim::new("allowed, to the empty classifier", 3.0);
    let mut subjects = Aim::new("10,000 subjects, to one", 1.2);
    println!(
        "{:<34} {:>9} {:>9} {:>8} {:>8} {:>7}",
        "packet", "endpoints", "subjects", "ns", "empty", "ratio"
    );
    for endpoints in [1, 1_000] {
        let mut one = [0.0; CASES.len()];
        for count in [1, 100, 10_000] {
            let open = guard(endpoints, count, true)?;
            let closed = guard(endpoints, count, false)?;
            for (index, case) in CASES.iter().enumerate() {
                let guard = if case.kind == Kind::Denied {
                    &closed
                } else {
                    &open
                };
                let packet = packet(case.to.parse()?, case.tcp);
                let (mut nanos, mut floor) = (u32::MAX, u32::MAX);
                for _ in 0..ROUNDS {
                    floor = floor.min(run(empty.as_fd(), &packet)?);
                    nanos = nanos.min(guard.test_run(case.hook, &packet, RUNS)?.nanos);
                }
                let ratio = f64::from(nanos) / f64::from(floor.max(1));
                println!(
                    "{:<34} {endpoints:>9} {count:>9} {nanos:>8} {floor:>8} {ratio:>7.2}",
                    case.what
                );
                match case.kind {
                    Kind::Unconcerned => unconcerned.see(ratio),
                    Kind::Allowed => allowed.see(ratio),
                    Kind::Denied => {}
                }
                if count == 1 {
                    one[index] = ratio;
                } else if count == 10_000 {
                    subjects.see(ratio / one[index]);
                }
            }
        }
    }
    println!("aims");
    for aim in [&unconcerned, &allowed, &subjects] {
        aim.print();
    }
    Ok(())
}

/// A guard with so many endpoints and subjects, root among them or not, that answers denials with
/// silence: an answer would be the next run's packet.
fn guard(endpoints: usize, subjects: usize, open: bool) -> Result<Guard> {
    let mut guarded: Vec<Endpoint> = vec![
        format!("{GUARDED4}:80/tcp").parse()?,
        format!("[{GUARDED6}]:80/tcp").parse()?,
    ];
    for number in 1..endpoints {
        let (high, low) = (number / 250, number % 250);
        guarded.push(format!("10.{high}.{low}.7:80/tcp").parse()?);
    }
    let first = if open { 0 } else { 1 };
    let users: Vec<String> = (first..first + subjects)
        .map(|uid| uid.to_string())
        .collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let policy = Policy {
        deny: Deny::Drop,
        ..Policy::of(&guarded, &users)
    };
    let guard = Guard::load(&Plan::new(&policy, None)?, Guard::method(), None)?;
    guard.arm()?;
    Ok(guard)
}

fn packet(to: IpAddr, tcp: bool) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let network = match to {
        IpAddr::V4(to) => link.ipv4([10, 0, 0, 2], to.octets(), 64),
        IpAddr::V6(to) => link.ipv6([0xfd; 16], to.octets(), 64),
    };
    let mut bytes = Vec::new();
    // Writing to a vector does not fail.
    let _ = if tcp {
        network.tcp(40000, 80, 1, 1024).write(&mut bytes, &[7; 100])
    } else {
        network.udp(40000, 80).write(&mut bytes, &[7; 100])
    };
    bytes
}

fn run(empty: BorrowedFd<'_>, packet: &[u8]) -> Result<u32> {
    let mut out = vec![0; packet.len() + 256];
    Ok(program::test_run(empty, packet, &mut out, RUNS)?.nanos)
}

/// `r0 = 0; exit`
#[allow(unsafe_code)]
fn empty() -> Result<OwnedFd> {
    let mut exit = [
        libbpf_sys::bpf_insn::default(),
        libbpf_sys::bpf_insn::default(),
    ];
    exit[0].code = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
    exit[1].code = 0x95; // BPF_JMP | BPF_EXIT
    // SAFETY: instructions and strings outlive the call; the descriptor that it returns is ours.
    unsafe {
        let fd = libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
            c"ebpfkit_empty".as_ptr(),
            c"GPL".as_ptr(),
            exit.as_ptr(),
            2,
            std::ptr::null_mut(),
        );
        ensure!(
            fd >= 0,
            "cannot load the empty program: {}",
            std::io::Error::from_raw_os_error(-fd)
        );
        Ok(OwnedFd::from_raw_fd(fd))
    }
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
    Guard,
    Nftables,
    Iptables,
}

const BARRIERS: [(Barrier, &str); 4] = [
    (Barrier::Nothing, "no guard"),
    (Barrier::Guard, "tc-guard"),
    (Barrier::Nftables, "nftables: meta skuid"),
    (Barrier::Iptables, "iptables: owner"),
];

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

    let mut best = [[0.0_f64; 2]; BARRIERS.len()];
    for _ in 0..ROUNDS {
        for (index, (barrier, _)) in BARRIERS.iter().enumerate() {
            let attached = match barrier {
                Barrier::Guard => guard.attach(&interfaces)?,
                _ => Vec::new(),
            };
            firewall(here, *barrier, true)?;
            for (rate, sender) in best[index].iter_mut().zip(&senders) {
                *rate = rate.max(send(sender)?);
            }
            firewall(here, *barrier, false)?;
            drop(attached);
        }
    }
    let mut aim = Aim::new(
        "veth throughput of unconcerned traffic, lost to the guard",
        0.02,
    );
    for (rates, (_, name)) in best.iter().zip(BARRIERS) {
        let column = |index: usize| {
            let ratio = rates[index] / best[0][index];
            format!("{:>9.0} packets/s {ratio:>6.3}", rates[index])
        };
        println!("{name:<34} {:>24} {:>24}", column(0), column(1));
    }
    println!("aims");
    aim.see(1.0 - best[1][0] / best[0][0]);
    aim.print();
    for (index, (_, name)) in BARRIERS.iter().enumerate().skip(2) {
        let ahead = best[1][0] / best[index][0];
        let verdict = if ahead >= 1.0 { "met" } else { "MISSED" };
        println!(
            "  {:<58} {ahead:>5.2} (at least 1.00) {verdict}",
            format!("ahead of {name}")
        );
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
        (Barrier::Nftables, false) => netns.run("nft", &["delete table inet bench"]),
        (Barrier::Iptables, true) => netns.run(
            "iptables",
            &[
                "-A", "OUTPUT", "-d", GUARDED4, "-m", "owner", "!", "--uid-owner", "0", "-j",
                "REJECT",
            ],
        ),
        (Barrier::Iptables, false) => netns.run("iptables", &["-F", "OUTPUT"]),
        _ => Ok(()),
    }
}

/// Packets a second, of one burst.
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
    let start = Instant::now();
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
    let rate = sent as f64 / start.elapsed().as_secs_f64();
    Ok(rate)
}
