// SPDX-License-Identifier: BSD-2-Clause

//! `make bench`: what a packet costs in the kernel, by the kernel's own test run, as a ratio to a
//! program that does nothing, in one run. Needs root.
//!
//! The figures of a row are taken in turn with those of the empty program, and each is the best of
//! several rounds: the machine's speed drifts, the ratio less so.

use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Result, ensure};
use ebpfkit::endpoint::Endpoint;
use ebpfkit::metadata;
use ebpfkit::tools::imds_watch::{plan::Plan as WatchPlan, program};
use ebpfkit::tools::tc_guard::policy::Policy;
use ebpfkit::tools::tc_guard::{Guard, Hook, plan::Plan as GuardPlan};
use etherparse::PacketBuilder;
use libbpf_rs::{ProgramInput, libbpf_sys};

const RUNS: u32 = 500_000;
const ROUNDS: usize = 9;

fn main() -> Result<()> {
    println!("{:<44} {:>8} {:>8} {:>7}", "packet", "ns", "empty", "ratio");
    guard()?;
    watch()
}

fn guard() -> Result<()> {
    let empty = empty(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS)?;
    let many: Vec<Endpoint> = (0..1000)
        .map(|n| format!("10.{}.{}.7:80/tcp", n / 250, n % 250).parse())
        .collect::<Result<_, _>>()?;
    let thousands: Vec<_> = (0..10_000).map(|uid| uid.to_string()).collect();
    let thousands: Vec<_> = thousands.iter().map(String::as_str).collect();
    let clouds = metadata::endpoints(&["all".to_owned()])?;
    for (name, endpoints, users) in [
        ("tc-guard, all clouds", &[][..], &["0"][..]),
        (
            "tc-guard, + 1,000 endpoints, 10,000 users",
            &many,
            &thousands,
        ),
    ] {
        let guarded = [&clouds, endpoints].concat();
        let plan = GuardPlan::new(&Policy::of(&guarded, users), None)?;
        let guard = Guard::load(&plan, Guard::method(), None)?;
        guard.arm()?;
        println!("{name}");
        for (what, to, port) in [
            ("unconcerned, TCP over IPv4", "192.0.2.1", 443),
            ("unconcerned, TCP over IPv6", "2001:db8::1", 443),
            ("allowed, IPv4", "169.254.169.254", 80),
            ("allowed, IPv6", "fd00:ec2::254", 80),
        ] {
            let packet = tcp(to.parse()?, port, &[7; 100]);
            row(what, &empty, &packet, || {
                Ok(guard.test_run(Hook::EgressEth, &packet, RUNS)?.nanos.into())
            })?;
        }
    }
    Ok(())
}

fn watch() -> Result<()> {
    let empty = empty(libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER)?;
    let plan = WatchPlan::new(&["aws".to_owned()], &[])?;
    let mut storage = MaybeUninit::uninit();
    let skel = program::load(&mut storage, &plan, false, false)?;
    println!("imds-watch, aws");
    let head = "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\n";
    let token = format!("{head}X-aws-ec2-metadata-token: {}\r\n\r\n", "t".repeat(56));
    for (what, to, payload) in [
        ("unconcerned", "192.0.2.1", "x".repeat(1000)),
        ("clean request", "169.254.169.254", token),
        (
            "suspicious request",
            "169.254.169.254",
            format!("{head}\r\n"),
        ),
    ] {
        let packet = tcp(to.parse()?, 80, payload.as_bytes());
        row(
            &format!("{what}, {} bytes", payload.len()),
            &empty,
            &packet,
            || {
                let input = ProgramInput {
                    data_in: Some(&packet),
                    repeat: RUNS,
                    ..ProgramInput::default()
                };
                let nanos = skel.progs.imds_watch.test_run(input)?.duration.as_nanos();
                Ok(u64::try_from(nanos)?)
            },
        )?;
    }
    Ok(())
}

fn row(
    what: &str,
    empty: &OwnedFd,
    packet: &[u8],
    mut measure: impl FnMut() -> Result<u64>,
) -> Result<()> {
    let (mut nanos, mut floor) = (u64::MAX, u64::MAX);
    for _ in 0..ROUNDS {
        floor = floor.min(run(empty, packet)?);
        nanos = nanos.min(measure()?);
    }
    #[allow(clippy::cast_precision_loss)]
    let ratio = nanos as f64 / floor.max(1) as f64;
    println!("  {what:<42} {nanos:>8} {floor:>8} {ratio:>7.2}");
    Ok(())
}

fn tcp(to: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let packet = match to {
        IpAddr::V4(to) => link.ipv4([10, 0, 0, 2], to.octets(), 64),
        IpAddr::V6(to) => link.ipv6([0xfd; 16], to.octets(), 64),
    };
    let mut bytes = Vec::new();
    // Writing to a vector does not fail.
    let _ = packet.tcp(40000, port, 1, 1024).write(&mut bytes, payload);
    bytes
}

/// `r0 = 0; exit`
#[allow(unsafe_code)]
fn empty(kind: libbpf_sys::bpf_prog_type) -> Result<OwnedFd> {
    let mut exit = [
        libbpf_sys::bpf_insn::default(),
        libbpf_sys::bpf_insn::default(),
    ];
    exit[0].code = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
    exit[1].code = 0x95; // BPF_JMP | BPF_EXIT
    // SAFETY: instructions and strings outlive the call; the descriptor that it returns is ours.
    unsafe {
        let fd = libbpf_sys::bpf_prog_load(
            kind,
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

#[allow(unsafe_code)]
fn run(program: &OwnedFd, packet: &[u8]) -> Result<u64> {
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: libbpf_sys::size_t::try_from(size_of::<libbpf_sys::bpf_test_run_opts>())?,
        data_in: packet.as_ptr().cast(),
        data_size_in: u32::try_from(packet.len())?,
        repeat: i32::try_from(RUNS)?,
        ..Default::default()
    };
    // SAFETY: packet and options outlive the call.
    let ret = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut opts) };
    ensure!(
        ret == 0,
        "cannot run the empty program: {}",
        std::io::Error::from_raw_os_error(-ret)
    );
    Ok(opts.duration.into())
}
