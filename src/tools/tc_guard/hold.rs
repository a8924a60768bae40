// SPDX-License-Identifier: BSD-2-Clause

//! A guard that is attached and armed, by this process or by pins, and the interfaces that it follows.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::follow;
use super::guard::Guard;
use super::pinned::{self, Found, Pinned};
use super::plan::Plan;
use super::policy::Policy;
use super::statement::Statement;
use crate::kernel::interfaces::{self, Interface};
use crate::kernel::netlink::Monitor;
use crate::kernel::tc::Attachment;

/// What keeps the guard in place.
enum Holder {
    /// This process: the guard is gone with it.
    Process {
        packets: Vec<Attachment>,
        // Never read: the hooks are gone with their descriptors.
        _calls: Vec<OwnedFd>,
    },
    /// Pins in this bpffs.
    Pins(PathBuf),
}

/// A guard at work.
pub struct Hold {
    /// The kernel's part of it.
    pub guard: Guard,
    /// The interfaces that it is attached to.
    pub interfaces: Vec<Interface>,
    /// Whether it was at work before.
    pub taken_over: bool,
    holder: Holder,
    wanted: Vec<String>,
    monitor: Monitor,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("interfaces", &self.interfaces)
            .finish_non_exhaustive()
    }
}

/// What has become of an interface.
#[derive(Debug)]
pub enum Change {
    /// It came, and is guarded.
    Guarded(Interface),
    /// It has gone.
    Gone(Interface),
    /// It came, and could not be guarded.
    Failed(Interface, anyhow::Error),
}

impl Hold {
    /// Loads, attaches and arms a guard that is gone with this value, whatever ends the process.
    ///
    /// # Errors
    /// What the kernel refuses; a guard that is pinned here already.
    pub fn by_process(
        policy: &Policy,
        plan: &Plan,
        cgroup_root: Option<&Path>,
        bpffs: Option<&Path>,
    ) -> Result<Self> {
        if let Some(bpffs) = bpffs
            && let (shelf, Found::Guard(_)) = pinned::look(bpffs)?
        {
            bail!(
                "a guard is pinned in this network namespace already ({}); a second one is not \
                 stacked on it: run --pin takes it over, stop takes it away",
                shelf.path().display()
            );
        }
        pinned::sweep(None)?;
        let monitor = Monitor::new()?;
        let interfaces = interfaces::chosen(&policy.interfaces)?;
        let guard = Guard::load(plan, Guard::method(), cgroup_root)?;
        let (packets, calls) = attach(&guard, plan, &interfaces, cgroup_root)?;
        guard.arm()?;
        Ok(Self {
            guard,
            interfaces,
            taken_over: false,
            holder: Holder::Process {
                packets,
                _calls: calls,
            },
            wanted: policy.interfaces.clone(),
            monitor,
        })
    }

    /// The same by pins, which stay when the process ends. A guard that is pinned here already, and
    /// whose process has ended, is taken over: the policy replaces the one in force.
    ///
    /// # Errors
    /// What the kernel refuses: nothing is pinned then, or the old policy stays in force.
    pub fn by_pins(
        policy: &Policy,
        plan: &Plan,
        statement: &Statement,
        cgroup_root: Option<&Path>,
        bpffs: &Path,
    ) -> Result<Self> {
        let monitor = Monitor::new()?;
        let interfaces = interfaces::chosen(&policy.interfaces)?;
        let pinned = Pinned::lock(bpffs)?;
        let (guard, attached, taken_over) = match pinned.find()? {
            Found::Guard(mut guard) => {
                pinned::sweep(Some(&guard))?;
                pinned.replace(&mut guard, plan, statement, cgroup_root)?;
                let mut attached = Vec::new();
                let there = pinned::attached(&guard)?;
                for (interface, _) in &there {
                    if pinned::is_whole(interface, &there) && !attached.contains(interface) {
                        attached.push(interface.clone());
                    }
                }
                (*guard, attached, true)
            }
            found => {
                if matches!(found, Found::Remains) {
                    pinned.remove()?;
                }
                pinned::sweep(None)?;
                let guard = Guard::load(plan, Guard::method(), cgroup_root)?;
                let (packets, calls) = attach(&guard, plan, &interfaces, cgroup_root)?;
                pinned.keep(&guard, packets, &calls, statement)?;
                guard.arm()?;
                (guard, interfaces, false)
            }
        };
        drop(pinned);
        let mut hold = Self {
            guard,
            interfaces: attached,
            taken_over,
            holder: Holder::Pins(bpffs.to_owned()),
            wanted: policy.interfaces.clone(),
            monitor,
        };
        if taken_over {
            for change in hold.compare(&[])? {
                if let Change::Failed(_, err) = change {
                    return Err(err);
                }
            }
        }
        Ok(hold)
    }

    /// Becomes readable when interfaces have come or gone.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.monitor.fd()
    }

    /// Looks whether another process has given the pinned guard another policy, and what it says of
    /// itself, if so.
    ///
    /// # Errors
    /// If what is pinned cannot be opened.
    pub fn catch_up(&mut self) -> Result<Option<Statement>> {
        let Holder::Pins(bpffs) = &self.holder else {
            return Ok(None);
        };
        let (_, generation, _) = self.guard.facts()?;
        if generation == self.guard.generation() {
            return Ok(None);
        }
        let pinned = Pinned::lock(bpffs)?;
        let Found::Guard(guard) = pinned.find()? else {
            return Ok(None);
        };
        self.guard = *guard;
        pinned.statement(&self.guard).map(Some)
    }

    /// Guards the interfaces that have come, and forgets those that have gone.
    ///
    /// # Errors
    /// If the kernel does not list them.
    pub fn follow(&mut self) -> Result<Vec<Change>> {
        let changes = self.monitor.changes()?;
        if changes.any {
            self.compare(&changes.gone)
        } else {
            Ok(Vec::new())
        }
    }

    fn compare(&mut self, gone: &[i32]) -> Result<Vec<Change>> {
        let now = interfaces::all()?;
        let steps = follow::steps(&self.wanted, &self.interfaces, &now, gone);
        let mut changes = Vec::new();
        let index = |at: &Interface| at.index;
        let lost: Vec<_> = steps.forget.iter().map(index).collect();
        self.interfaces.retain(|held| !lost.contains(&held.index));
        if let Holder::Process { packets, .. } = &mut self.holder {
            packets.retain(|held| !lost.contains(&held.interface().index));
        }
        // Names may have changed.
        for held in &mut self.interfaces {
            if let Some(there) = now.iter().find(|there| there.index == held.index) {
                held.clone_from(there);
            }
        }
        for interface in steps.forget {
            if let Holder::Pins(bpffs) = &self.holder {
                Pinned::lock(bpffs)?.forget(&interface)?;
            }
            changes.push(Change::Gone(interface));
        }
        for interface in steps.guard {
            match self.guard(&interface) {
                Ok(()) => {
                    self.interfaces.push(interface.clone());
                    changes.push(Change::Guarded(interface));
                }
                // One that has gone meanwhile is no failure: the kernel will tell.
                Err(_) if !is_there(&interface) => {}
                Err(err) => changes.push(Change::Failed(interface, err)),
            }
        }
        Ok(changes)
    }

    fn guard(&mut self, interface: &Interface) -> Result<()> {
        match &mut self.holder {
            Holder::Process { packets, .. } => {
                packets.extend(self.guard.attach(std::slice::from_ref(interface))?);
                Ok(())
            }
            Holder::Pins(bpffs) => {
                let pinned = Pinned::lock(bpffs)?;
                // Whoever stops the guard has it end this process first; without one there is
                // nothing to attach to.
                if !matches!(pinned.find()?, Found::Guard(_)) {
                    return Ok(());
                }
                pinned.attach(&self.guard, interface)
            }
        }
    }

    /// Where it is pinned, if it is.
    pub fn bpffs(&self) -> Option<&Path> {
        match &self.holder {
            Holder::Process { .. } => None,
            Holder::Pins(bpffs) => Some(bpffs),
        }
    }

    /// Takes off what this process holds; what is pinned stays.
    pub fn release(self) -> Guard {
        self.guard
    }
}

fn attach(
    guard: &Guard,
    plan: &Plan,
    interfaces: &[Interface],
    cgroup_root: Option<&Path>,
) -> Result<(Vec<Attachment>, Vec<OwnedFd>)> {
    let packets = guard.attach(interfaces)?;
    let calls = match cgroup_root {
        Some(root) if guard.calls() => guard.attach_calls(root)?,
        _ => Vec::new(),
    };
    guard.allow_cgroups(plan, cgroup_root)?;
    Ok((packets, calls))
}

fn is_there(interface: &Interface) -> bool {
    interfaces::all().is_ok_and(|all| all.iter().any(|at| at.index == interface.index))
}
