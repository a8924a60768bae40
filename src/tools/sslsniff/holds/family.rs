// SPDX-License-Identifier: BSD-2-Clause

//! Parents that stop themselves as their child stops (su, runuser, nsenter, sudo), and which nobody but them knows of:
//! they go on once the child does.

use std::time::{Duration, Instant};

use crate::kernel::hold::Parent;

/// How long a parent has time to stop itself once its child goes on.
const PATIENCE: Duration = Duration::from_secs(1);
/// Parents that are looked at, at a time.
const MOST: usize = 1024;

/// The ancestors of a process that is held, its parent first.
#[derive(Debug, Default)]
pub(super) struct Ancestors {
    pids: Vec<u32>,
    /// Those that were not stopped before it was.
    running: Vec<Parent>,
}

/// The ancestors of processes that go on already.
#[derive(Debug, Default)]
pub(super) struct Family {
    all: Vec<(Instant, Parent)>,
}

impl Ancestors {
    /// Those of `child` with these numbers, of which these (by bits) were stopped before it was.
    pub fn of(mut child: u32, pids: &[u32], stopped: u32) -> Self {
        let mut ancestors = Self::default();
        for (at, pid) in pids.iter().enumerate() {
            // Nobody stops the first process.
            if *pid <= 1 {
                break;
            }
            let Some(parent) = Parent::of(child, *pid) else {
                break;
            };
            ancestors.pids.push(*pid);
            if stopped >> at & 1 == 0 {
                ancestors.running.push(parent);
            }
            child = *pid;
        }
        ancestors
    }
}

impl Family {
    /// The process goes on whose ancestors these are.
    pub fn add(&mut self, ancestors: Ancestors, now: Instant) {
        for parent in ancestors.running {
            self.all.retain(|(_, one)| one.pid != parent.pid);
            if self.all.len() < MOST {
                self.all.push((now, parent));
            }
        }
    }

    /// Has those go on that are stopped, but for the ancestors of who is still `held`: they may have a child go on
    /// before its time.
    pub fn look<'a>(&mut self, held: impl Iterator<Item = &'a Ancestors> + Clone, now: Instant) {
        self.all.retain_mut(|(since, parent)| {
            if held.clone().any(|one| one.pids.contains(&parent.pid)) {
                *since = now;
            } else {
                parent.go_on_if_stopped();
            }
            now.duration_since(*since) < PATIENCE
        });
    }

    /// Whether there is nobody to look at.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}
