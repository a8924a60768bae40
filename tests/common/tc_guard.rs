// SPDX-License-Identifier: BSD-2-Clause

//! A guard of the AWS addresses that allows Bob, with a bpffs of the test's own, and what is asked of it.

use std::net::IpAddr;
use std::process::Output;

use ebpfkit::endpoint::Endpoint;
use serde_json::Value;

use super::{BOB, Bpffs, Network, Tool, ebpfkit_path};

pub const V4: &str = "http://169.254.169.254/latest/meta-data/";

/// Starts it, with `more` arguments.
pub fn start(network: &Network, bpffs: &Bpffs, more: &[&str]) -> Tool {
    let bob = BOB.to_string();
    let mut all = vec!["tc-guard", "run", "--bpffs", bpffs.text()];
    all.extend(["--cloud", "aws", "--allow-user", &bob]);
    all.extend(more);
    Tool::start(&network.machine, &all)
}

/// Starts a guard that stays, with the policy in a file and nothing else.
pub fn start_with(network: &Network, bpffs: &Bpffs, config: &str) -> Tool {
    let args = [
        "tc-guard",
        "run",
        "--pin",
        "--bpffs",
        bpffs.text(),
        "--config",
        config,
    ];
    Tool::start(&network.machine, &args)
}

/// Runs another of its commands to the end.
pub fn tc_guard(network: &Network, bpffs: &Bpffs, args: &[&str]) -> Output {
    let mut command = network.machine.command(ebpfkit_path());
    command.args(["-o", "json", "tc-guard"]).args(args);
    command.args(["--bpffs", bpffs.text()]);
    command.output().expect("ebpfkit runs")
}

pub fn status(network: &Network, bpffs: &Bpffs) -> Value {
    let output = tc_guard(network, bpffs, &["status"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|err| panic!("{err}: {output:?}"))
}

/// Takes the guard away.
pub fn stop(network: &Network, bpffs: &Bpffs) {
    let output = tc_guard(network, bpffs, &["stop"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

/// The findings of `check`, and its exit code.
pub fn check(network: &Network, bpffs: &Bpffs) -> (Vec<Value>, Option<i32>) {
    let output = tc_guard(network, bpffs, &["check"]);
    let lines = String::from_utf8(output.stdout).unwrap();
    let parsed = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    (parsed.collect(), output.status.code())
}

pub fn finding<'a>(findings: &'a [Value], check: &str, what: &str) -> &'a Value {
    let mut all = findings.iter();
    all.find(|at| at["check"] == check && at["what"].as_str().unwrap().contains(what))
        .unwrap_or_else(|| panic!("no {check} with {what:?} in {findings:#?}"))
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether a user on the machine is served.
pub fn allowed(network: &Network, uid: u32) -> bool {
    network.curl(uid, &[V4]).status.success()
}

/// Whether a packet of this protocol to this port of `dst` is to the endpoint.
pub fn concerns(endpoint: &Endpoint, dst: IpAddr, protocol: u8, dport: u16) -> bool {
    endpoint.address.is_ipv4() == dst.is_ipv4()
        && endpoint.contains(dst)
        && endpoint.ports.contains(&dport)
        && match endpoint.protocol {
            Some(wanted) => wanted as u8 == protocol,
            // A port range means the protocols that have ports.
            None => endpoint.ports == (0..=u16::MAX) || matches!(protocol, 6 | 17),
        }
}
