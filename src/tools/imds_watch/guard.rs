// SPDX-License-Identifier: BSD-2-Clause

//! The policy of the guard that is in force in this network namespace, found as `tc-guard status`
//! finds it, and followed.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::permitted::Permitted;
use crate::kernel::pin::{self, Watch};
use crate::tools::tc_guard::pinned::{self, Found};

/// A guard whose policy says who may ask.
#[derive(Debug)]
pub struct Guard {
    bpffs: PathBuf,
    /// Hears of a policy that has been replaced. `None` when the guard has gone.
    watch: Option<Watch>,
    /// When the policy came into force, nanoseconds since 1970.
    since: i64,
}

/// What has become of the guard.
#[derive(Debug)]
pub enum Change {
    /// It has another policy.
    Replaced(Permitted),
    /// It has gone.
    Gone,
}

/// A policy as it is pinned.
struct InForce {
    since: i64,
    config: Option<PathBuf>,
    permitted: Permitted,
}

impl Guard {
    /// Looks for one; tells where its policy is from, and whom that names. `None` if there is none.
    ///
    /// # Errors
    /// That it cannot be looked for with these privileges, or that its policy cannot be read.
    pub fn find(bpffs: Option<&Path>) -> Result<Option<(Self, String, Permitted)>> {
        let Some(bpffs) = pin::bpffs(bpffs, false)? else {
            return nowhere();
        };
        let shelf = pinned::shelf(&bpffs)?;
        if let Err(err) = fs::symlink_metadata(shelf.path())
            && err.kind() == ErrorKind::PermissionDenied
        {
            bail!(
                "{} cannot be looked at (permission denied): that is for root, or takes \
                 CAP_DAC_READ_SEARCH",
                shelf.path().display()
            );
        }
        // Before the policy is read: what replaces it then is heard of.
        let watch = shelf.exists().then(|| shelf.watch()).transpose()?;
        let Some(found) = policy(&bpffs)? else {
            return nowhere();
        };
        let origin = match found.config {
            Some(file) => format!("its policy was read from {}", file.display()),
            None => "its policy was given on the command line".to_owned(),
        };
        let guard = Self {
            bpffs,
            watch,
            since: found.since,
        };
        Ok(Some((guard, origin, found.permitted)))
    }

    /// Becomes readable when there may be a change.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(Watch::fd)
    }

    /// What has changed since the policy was last read.
    ///
    /// # Errors
    /// If the policy that is in force now cannot be read.
    pub fn change(&mut self) -> Result<Option<Change>> {
        let Some(watch) = &self.watch else {
            return Ok(None);
        };
        watch.drain()?;
        let Some(found) = policy(&self.bpffs)? else {
            self.watch = None;
            return Ok(Some(Change::Gone));
        };
        if found.since == self.since {
            return Ok(None);
        }
        self.since = found.since;
        Ok(Some(Change::Replaced(found.permitted)))
    }
}

/// There are no pins; a process may still guard.
fn nowhere<T>() -> Result<Option<T>> {
    if let Some(pid) = pinned::process_id(None) {
        bail!(
            "the guard here is process {pid}'s own, and only one that is pinned (tc-guard run --pin) \
             shows its policy: give that with --policy"
        );
    }
    Ok(None)
}

fn policy(bpffs: &Path) -> Result<Option<InForce>> {
    let (shelf, Found::Guard(guard)) = pinned::look(bpffs)? else {
        return Ok(None);
    };
    let statement = pinned::statement(&shelf, &guard)?;
    Ok(Some(InForce {
        since: statement.in_force_ns,
        permitted: Permitted::of_policy(&statement.policy()?)?,
        config: statement.config,
    }))
}
