// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard reload` and `stop`: what is done to a pinned guard, whether its process runs or
//! not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use time::OffsetDateTime;

use super::pinned::{self, Found, Pinned};
use super::plan::Plan;
use super::policy::Policy;
use super::programs::NetnsBy;
use super::run::{self, Place};
use super::statement::Statement;
use super::{NAME, strangers};
use crate::failure::Failure;
use crate::kernel::instance::Running;
use crate::kernel::{cgroup, pin};
use crate::output::{self, Settings};

/// What `reload` is told.
#[derive(Debug, clap::Args)]
pub struct ReloadArgs {
    /// The new policy in TOML; without it the policy in force is read and looked up anew
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// What `stop` is told.
#[derive(Debug, clap::Args)]
pub struct StopArgs {
    #[command(flatten)]
    place: Place,
}

/// How long the guard's process may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

fn nothing_here(bpffs: Option<&Path>) -> anyhow::Error {
    match pinned::process_id(bpffs) {
        Some(pid) => anyhow::anyhow!(
            "the guard here is not pinned: it is process {pid}'s, and ends with it (kill {pid})"
        ),
        None if strangers::find(&BTreeSet::new())
            .is_ok_and(|found| strangers::is_of_a_process(&found)) =>
        {
            anyhow::anyhow!(
                "the guard here is not pinned: it is the own of a process that cannot be told from here, and ends \
                 with it"
            )
        }
        None => anyhow::anyhow!(
            "no guard is pinned in this network namespace; ebpfkit tc-guard run --pin starts one"
        ),
    }
}

fn bpffs(place: &Place) -> Result<PathBuf> {
    pin::bpffs(place.bpffs.as_deref(), false)?.ok_or_else(|| nothing_here(None))
}

/// Puts another policy in force, or the one that is, read and looked up anew.
///
/// # Errors
/// If the policy is wrong or the kernel refuses it: then the old one stays in force.
pub fn reload(args: &ReloadArgs, settings: Settings) -> Result<()> {
    let bpffs = bpffs(&args.place)?;
    let pinned = Pinned::lock(&bpffs)?;
    let Found::Guard(mut guard) = pinned.find()? else {
        return Err(nothing_here(Some(&bpffs)));
    };
    let old = pinned.statement(&guard)?;
    let (policy, config) = policy(args.config.as_deref(), &old)?;
    if policy.interfaces != old.interfaces() {
        bail!(
            "the interfaces of a guard are those it was started with: {}; stop it and run it anew to \
             guard others",
            if old.interfaces().is_empty() {
                "all but loopback".to_owned()
            } else {
                old.interfaces().join(", ")
            }
        );
    }
    let root = cgroup::mount();
    let plan = Plan::new(&policy, root.as_deref())?;
    let statement = Statement::new(
        &policy,
        config,
        false,
        &plan,
        NetnsBy::any(),
        OffsetDateTime::now_utc(),
    );
    pinned.replace(&mut guard, &plan, &statement, root.as_deref())?;
    let sink = output::stdout(NAME, settings);
    sink.note(&format!(
        "policy {} is in force: {} endpoints, {} users, {} groups, {} cgroups, {}",
        guard.generation(),
        plan.endpoints.len(),
        plan.users.len(),
        plan.groups.len(),
        plan.cgroups.len(),
        plan.mode()
    ));
    Ok(())
}

/// The policy in the file that is named, or the one in force as it is written now.
fn policy(config: Option<&Path>, old: &Statement) -> Result<(Policy, Option<PathBuf>)> {
    let Some(path) = config.or(old.config.as_deref()) else {
        return Ok((old.policy()?, None));
    };
    if config.is_none() && old.mixed {
        return Err(Failure::usage(format!(
            "the policy in force is from {} and from the command line of run; expected --config FILE \
             with the whole of the new one",
            path.display()
        ))
        .into());
    }
    Ok((run::read(path)?, Some(run::absolute(path)?)))
}

/// Ends the guard's process, if one runs, and takes the guard away.
///
/// # Errors
/// If there is none, or the kernel refuses.
pub fn stop(args: &StopArgs, settings: Settings) -> Result<()> {
    let bpffs = bpffs(&args.place)?;
    if matches!(pinned::look(&bpffs), Ok((_, Found::Nothing))) {
        // A start that was killed before it made the shelf has left filters, before kernel 6.6; one that is
        // under way has attached some, too.
        let strangers = strangers::settled(&BTreeSet::new()).unwrap_or_default();
        if pinned::process(Some(&bpffs)).is_some() || strangers::sweep(&strangers)? == 0 {
            return Err(nothing_here(Some(&bpffs)));
        }
        output::stdout(NAME, settings).note("what a killed guard had left was taken away");
        return Ok(());
    }
    // It would go on to guard interfaces as they come.
    if let Some(process) = pinned::process(Some(&bpffs)) {
        end(&process)?;
    }
    Pinned::lock_to_remove(&bpffs)?.remove()?;
    output::stdout(NAME, settings).note("the guard has been taken away");
    Ok(())
}

fn end(process: &Running) -> Result<()> {
    // It may have ended by itself.
    let _ = process.terminate();
    if !process.ended(PATIENCE)? {
        bail!(
            "the guard's process {} does not end; nothing was changed",
            process.pid
        );
    }
    Ok(())
}
