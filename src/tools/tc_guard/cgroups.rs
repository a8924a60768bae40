// SPDX-License-Identifier: BSD-2-Clause

//! The cgroups of a policy, allowed as they come and go. Whatever goes wrong with that, the guard guards on: a
//! cgroup that cannot be found or written is not allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::path::Path;

use anyhow::Result;

use super::guard::Guard;
use super::plan::Plan;
use super::statement::Statement;
use crate::failure::Failure;
use crate::kernel::cgroup;
use crate::kernel::cgroup_follow::{Change, Follower};

/// The cgroups that rules name, whose ids the kernel is told of as they come and go.
pub(super) struct Cgroups {
    rules: BTreeMap<String, u64>,
    /// Nothing if no rule names one.
    follower: Option<Follower>,
    /// Those of which a failure was told.
    told: BTreeSet<String>,
}

impl Cgroups {
    /// Those of `plan` below `root`, the cgroup2 mount.
    ///
    /// # Errors
    /// If there are some, and it is not mounted.
    pub(super) fn new(plan: &Plan, root: Option<&Path>) -> Result<Self> {
        let follower = match root {
            _ if plan.cgroups.is_empty() => None,
            Some(root) => Some(Follower::new(root, plan.cgroups.keys().cloned())),
            None => {
                return Err(Failure::blocked(
                    "rules for cgroups need the whole of cgroup2, which is not mounted here",
                    "mount it (mount -t cgroup2 none /sys/fs/cgroup), or name users instead",
                )
                .into());
            }
        };
        Ok(Self {
            rules: plan.cgroups.clone(),
            follower,
            told: BTreeSet::new(),
        })
    }

    /// Those of a policy that another process has put in force. Users and groups do not matter here, and
    /// may have names that mean nothing any more.
    ///
    /// # Errors
    /// If it is no policy any more.
    pub(super) fn of(statement: &Statement) -> Result<Self> {
        let root = cgroup::mount();
        let mut policy = statement.policy()?;
        for rule in &mut policy.rules {
            rule.users.clear();
            rule.groups.clear();
        }
        Self::new(&Plan::new(&policy, root.as_deref())?, root.as_deref())
    }

    /// The descriptor that becomes readable when [`Cgroups::follow`] has something to do.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.follower.as_ref().and_then(Follower::fd)
    }

    /// Whether that descriptor is for all of them; if not, a look is due every now and then.
    pub(super) fn watched(&self) -> bool {
        self.follower.as_ref().is_none_or(Follower::is_whole)
    }

    /// Allows those that have come, and those that have gone no more; gives what is worth a note.
    pub(super) fn follow(&mut self, kernel: &Guard) -> Vec<String> {
        let Some(follower) = &mut self.follower else {
            return Vec::new();
        };
        let look = follower.look();
        let mut notes: Vec<_> = look
            .troubles
            .iter()
            .map(|why| format!("{why}: what comes and goes there is looked for every two seconds"))
            .collect();
        for change in &look.changes {
            if let Err(err) = allow(kernel, change, self.rules.get(&change.path).copied()) {
                follower.forget(&change.path);
                if self.told.insert(change.path.clone()) {
                    notes.push(format!("{}: {err:#}", change.path));
                }
            }
        }
        notes
    }
}

fn allow(kernel: &Guard, change: &Change, rules: Option<u64>) -> Result<()> {
    if let Some(id) = change.gone {
        kernel.allow_cgroup(id, None)?;
    }
    match change.come {
        Some(id) => kernel.allow_cgroup(id, rules),
        None => Ok(()),
    }
}
