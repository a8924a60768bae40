// SPDX-License-Identifier: BSD-2-Clause

//! A guard that is attached and armed, by this process or by pins, and the interfaces that it follows.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::follow;
use super::gates::STATEMENT;
use super::guard::Guard;
use super::pinned::{self, Found, Pinned};
use super::plan::Plan;
use super::policy::Policy;
use super::statement::Statement;
use super::strangers::{self, Stage};
use crate::kernel::interfaces::{self, Interface};
use crate::kernel::netlink::Monitor;
use crate::kernel::pin::Watch;
use crate::kernel::tc::Attachment;
use crate::kernel::text;

/// What keeps the guard in place.
enum Holder {
    /// This process: the guard is gone with it.
    Process {
        packets: Vec<Attachment>,
        // Never read: the hooks are gone with their descriptors.
        _calls: Vec<OwnedFd>,
    },
    /// Pins in this bpffs.
    Pins {
        bpffs: PathBuf,
        /// Nothing while there is none to be had.
        watch: Option<Watch>,
    },
}

/// A guard at work.
pub struct Hold {
    /// The kernel's part of it.
    pub guard: Guard,
    /// The interfaces that it is attached to.
    pub interfaces: Vec<Interface>,
    /// Those that it cannot be attached to, as the place of the network header is not known.
    pub unreadable: Vec<Interface>,
    /// Whether it was at work before.
    pub taken_over: bool,
    /// What is to be told of how it began.
    pub notes: Vec<String>,
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
        statement: &Statement,
        cgroup_root: Option<&Path>,
        bpffs: Option<&Path>,
    ) -> Result<Self> {
        if let Some(bpffs) = bpffs {
            remove_remains(bpffs)?;
            if let (shelf, Found::Guard(_)) = pinned::look(bpffs)? {
                bail!(
                    "a guard is pinned in this network namespace already ({}); a second one is not \
                     stacked on it: run --pin takes it over, stop takes it away",
                    shelf.path().display()
                );
            }
        }
        strangers::clear(&BTreeSet::new(), Stage::Begins)?;
        let mut notes = Vec::new();
        let monitor = Monitor::new()?;
        let (interfaces, unreadable) = chosen(policy)?;
        let guard = Guard::load(plan, Guard::method(), cgroup_root)?;
        // It guards as well without.
        if let Err(err) = say(&guard, statement) {
            notes.push(format!(
                "ebpfkit tc-guard check will not try this guard: {err:#}"
            ));
        }
        let (packets, calls) = attach(&guard, plan, &interfaces, cgroup_root)?;
        notes.extend(strangers::clear(
            &pinned::gate_ids(&guard)?,
            Stage::Attached,
        )?);
        guard.arm()?;
        Ok(Self {
            guard,
            interfaces,
            unreadable,
            taken_over: false,
            notes,
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
        let (interfaces, unreadable) = chosen(policy)?;
        // What goes takes its folder along.
        remove_remains(bpffs)?;
        let pinned = Pinned::lock(bpffs)?;
        let (guard, attached, taken_over, notes) = match pinned.find()? {
            Found::Guard(mut guard) => {
                let notes = strangers::clear(&pinned::gate_ids(&guard)?, Stage::InForce)?;
                // What can fail comes first: until the policy is replaced, the old one judges at all of them.
                let attached = complete(&pinned, &guard, &interfaces)?;
                pinned.replace(&mut guard, plan, statement, cgroup_root)?;
                (*guard, attached, true, notes)
            }
            _ => {
                strangers::clear(&BTreeSet::new(), Stage::Begins)?;
                let guard = Guard::load(plan, Guard::method(), cgroup_root)?;
                let (packets, calls) = attach(&guard, plan, &interfaces, cgroup_root)?;
                let notes = strangers::clear(&pinned::gate_ids(&guard)?, Stage::Attached)?;
                pinned.keep(&guard, packets, &calls, statement)?;
                guard.arm()?;
                (guard, interfaces, false, notes)
            }
        };
        let watch = pinned.watch();
        drop(pinned);
        let mut notes = Vec::from_iter(notes);
        if let Err(err) = &watch {
            notes.push(format!(
                "{err:#}: another policy is looked for every two seconds"
            ));
        }
        Ok(Self {
            guard,
            interfaces: attached,
            unreadable,
            taken_over,
            notes,
            holder: Holder::Pins {
                bpffs: bpffs.to_owned(),
                watch: watch.ok(),
            },
            wanted: policy.interfaces.clone(),
            monitor,
        })
    }

    /// Become readable when interfaces have come or gone, or another process has changed what is pinned.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = vec![self.monitor.fd()];
        if let Holder::Pins {
            watch: Some(watch), ..
        } = &self.holder
        {
            fds.push(watch.fd());
        }
        fds
    }

    /// Whether they do so for both; if not, a look is due every now and then.
    pub fn watched(&self) -> bool {
        !matches!(self.holder, Holder::Pins { watch: None, .. })
    }

    /// Looks whether another process has given the pinned guard another policy, and what it says of
    /// itself, if so.
    ///
    /// # Errors
    /// If what is pinned cannot be opened.
    pub fn catch_up(&mut self) -> Result<Option<Statement>> {
        let Holder::Pins { bpffs, watch } = &mut self.holder else {
            return Ok(None);
        };
        match watch {
            Some(watch) => watch.drain()?,
            None => *watch = pinned::shelf(bpffs)?.watch().ok(),
        }
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
            if let Holder::Pins { bpffs, .. } = &self.holder {
                Pinned::lock(bpffs)?.forget(&interface)?;
            }
            changes.push(Change::Gone(interface));
        }
        self.unreadable
            .retain(|told| !gone.contains(&told.index) && now.contains(told));
        for interface in steps.guard {
            // Told of once.
            if self.unreadable.contains(&interface) {
                continue;
            }
            if let Err(err) = interface.readable() {
                self.unreadable.push(interface.clone());
                changes.push(Change::Failed(interface, err));
                continue;
            }
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
            Holder::Pins { bpffs, .. } => {
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
            Holder::Pins { bpffs, .. } => Some(bpffs),
        }
    }

    /// Takes off what this process holds; what is pinned stays.
    pub fn release(self) -> Guard {
        self.guard
    }
}

/// Takes away what a guard that was killed as it began or went has left in `bpffs`.
fn remove_remains(bpffs: &Path) -> Result<()> {
    if matches!(pinned::look(bpffs)?, (_, Found::Remains)) {
        let pinned = Pinned::lock_to_remove(bpffs)?;
        if matches!(pinned.find()?, Found::Remains) {
            pinned.remove()?;
        }
    }
    Ok(())
}

fn say(guard: &Guard, statement: &Statement) -> Result<()> {
    guard.say(&text::store(STATEMENT, &statement.to_text()?)?)
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

/// The interfaces that `policy` names, or all but loopback; then those of them that cannot be guarded.
fn chosen(policy: &Policy) -> Result<(Vec<Interface>, Vec<Interface>)> {
    let all = interfaces::chosen(&policy.interfaces)?;
    // Whoever names one counts on it.
    if !policy.interfaces.is_empty() {
        all.iter().try_for_each(Interface::readable)?;
    }
    Ok(all.into_iter().partition(|at| at.readable().is_ok()))
}

/// Attaches a pinned guard to those of `interfaces` that it is not at, and gives all that it is at.
fn complete(pinned: &Pinned, guard: &Guard, interfaces: &[Interface]) -> Result<Vec<Interface>> {
    let there = pinned::attached(guard)?;
    let mut attached: Vec<Interface> = Vec::new();
    for (interface, _) in &there {
        if pinned::is_whole(interface, &there) && !attached.contains(interface) {
            attached.push(interface.clone());
        }
    }
    for interface in interfaces {
        if attached.iter().any(|at| at.index == interface.index) {
            continue;
        }
        match pinned.attach(guard, interface) {
            Ok(()) => attached.push(interface.clone()),
            Err(_) if !is_there(interface) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(attached)
}

fn is_there(interface: &Interface) -> bool {
    interfaces::all().is_ok_and(|all| all.iter().any(|at| at.index == interface.index))
}
