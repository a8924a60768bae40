// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard`: only chosen users, groups and cgroups reach the metadata service.
//!
//! Two layers judge with one policy: hooks in connect() and sendmsg() refuse at once, classifiers in TC
//! judge the packets that go to guarded endpoints by the socket they come from. [`policy`] is what the
//! author writes, [`plan`] what the kernel is told, [`Guard`] the kernel's part of it, [`report`] turns
//! records into counts and [`event`] into lines.

mod cgroups;
pub mod check;
pub mod config;
mod control;
pub mod event;
pub mod follow;
pub mod gates;
pub mod guard;
pub mod hold;
pub mod holders;
pub mod learn;
pub mod learned;
pub mod outlet;
pub mod pinned;
pub mod plan;
pub mod policy;
mod programs;
pub mod raw_senders;
pub mod report;
pub mod reporter;
pub(crate) mod run;
mod sight;
pub mod statement;
pub mod status;
pub mod strangers;
pub mod trial;
pub mod ways;

use anyhow::Result;

pub use self::guard::{Guard, Hook};
use self::plan::Plan;
use self::policy::Policy;
use crate::failure::Failure;
use crate::kernel::interfaces;
use crate::kernel::privileges::{self, Capabilities, Capability};
use crate::kernel::tc::Method;
use crate::kernel::{cgroup, namespace};
use crate::metadata;
use crate::output::Settings;
use crate::tools::doctor::Diagnosis;

/// The name in events.
pub const NAME: &str = "tc-guard";

/// `tc-guard` and what it is to do.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Guard until a signal ends it, or longer with --pin
    Run(run::Args),
    /// Show the guard that is pinned here: since when, where, with which policy, what it did
    Status(status::Args),
    /// Give the guard that is pinned here another policy, in one step
    Reload(control::ReloadArgs),
    /// Watch who uses what, and write a policy that would allow just that
    Learn(learn::Args),
    /// Say what can get past the guard on this machine, and what closes that
    Check(check::Args),
    /// Take away the guard that is pinned here, and nothing else
    Stop(control::StopArgs),
}

/// Does what the arguments say.
///
/// # Errors
/// What ended it before its time.
pub fn run(args: &Args, settings: Settings) -> Result<()> {
    match &args.command {
        Command::Run(args) => run::run(args, settings),
        Command::Status(args) => status::run(args, settings),
        Command::Reload(args) => control::reload(args, settings),
        Command::Check(args) => check::run(args, settings),
        Command::Learn(args) => learn::run(args, settings),
        Command::Stop(args) => control::stop(args, settings),
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
    let policy = Policy::of(&metadata::endpoints(&["all".to_owned()])?, &[]);
    let plan = Plan::new(&policy, None)?;
    let method = Guard::method();
    let mut lost = Vec::new();
    let root = cgroup::mount();
    let guard = Guard::load(&plan, method, root.as_deref())?;
    match namespace::isolated(|| {
        guard
            .attach(&interfaces::chosen(&["lo".to_owned()])?)
            .map(drop)
    }) {
        Some(tried) => tried?,
        None => {
            let few = [Capability::Bpf, Capability::NetAdmin];
            let missing = Capabilities::effective().missing(&few);
            if !missing.is_empty() {
                return Err(Failure::blocked(
                    format!("{} is missing", privileges::list(&missing)),
                    format!("run as root, or with {}", privileges::list(&few)),
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
    if !guard.calls() {
        lost.push(
            "connect() and sendmsg() are not guarded, only packets, as the whole of cgroup2 is not mounted here: \
             denials do not name the process, and groups cannot be allowed"
                .to_owned(),
        );
    }
    if !guard.knows_namespaces() {
        lost.push(
            "sockets of other network namespaces are not told from the machine's own (kernel \
             6.15, or CAP_PERFMON): root of a container on a macvlan or ipvlan passes as root, and containers \
             cannot be allowed by their cgroup"
                .to_owned(),
        );
    }
    if method == Method::Clsact {
        lost.push(
            "no TCX links (kernel 6.6): a guard that is killed with SIGKILL leaves its filter in \
             place, which then lets everything pass"
                .to_owned(),
        );
    }
    Ok(lost)
}
