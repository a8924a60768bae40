// SPDX-License-Identifier: BSD-2-Clause

//! Asks the guard what it says to a packet, without any interface: a small program that uses the
//! library. Run as root:
//!
//!     cargo run --release --example judge
//!
//! It prints a line per packet: the verdict and the nanoseconds that it took, by the kernel's own
//! test run.

use std::net::IpAddr;

use anyhow::Result;
use ebpfkit::metadata;
use ebpfkit::tools::tc_guard::plan::Plan;
use ebpfkit::tools::tc_guard::policy::Policy;
use ebpfkit::tools::tc_guard::{Guard, Hook};

const RUNS: u32 = 1_000_000;

fn main() -> Result<()> {
    for user in ["root", "nobody"] {
        let policy = Policy::of(&metadata::endpoints(&["all".to_owned()])?, &[user]);
        let guard = Guard::load(&Plan::new(&policy, None)?, Guard::method(), None)?;
        guard.arm()?;
        println!("{user} is allowed; packets come from root:");
        for destination in [
            "192.0.2.1",
            "2001:db8::1",
            "169.254.169.254",
            "fd00:ec2::254",
        ] {
            let packet = segment(destination.parse()?);
            let code = guard.test_run(Hook::EgressEth, &packet, 1)?.code;
            let verdict = match code {
                -1 => "passes",
                2 => "dropped",
                7 => "answered",
                _ => "?",
            };
            // A repeated run would go on with the answer that the first has made of the packet.
            let nanos = if code == -1 {
                guard.test_run(Hook::EgressEth, &packet, RUNS)?.nanos
            } else {
                0
            };
            match nanos {
                0 => println!("  {destination:<16} {verdict}"),
                _ => println!("  {destination:<16} {verdict:<9} {nanos} ns"),
            }
        }
    }
    Ok(())
}

/// A TCP segment to port 80 of `destination`, behind an Ethernet header.
fn segment(destination: IpAddr) -> Vec<u8> {
    let mut tcp = vec![
        0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
    ];
    tcp.extend(*b"GET / HTTP/1.1\r\n\r\n");
    let length = u16::try_from(tcp.len()).unwrap_or(u16::MAX);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match destination {
        IpAddr::V4(v4) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + length).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2]);
            frame.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([6, 64]);
            frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            frame.extend(v6.octets());
        }
    }
    frame.extend(tcp);
    frame
}
