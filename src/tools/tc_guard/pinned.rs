// SPDX-License-Identifier: BSD-2-Clause

//! A guard that stays when its process ends: what is pinned where, and what is attached where.
//!
//! Everything is prepared first, without judging: the gates are attached and all is pinned on a draft,
//! which becomes the shelf in one step. Then the guard is armed, in one step, too. So a process that
//! is killed at any moment leaves a whole guard or one that judges nothing, and whoever comes next
//! clears the latter away.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use libbpf_rs::MapHandle;

use super::gates::{Hook, STATEMENT};
use super::guard::Guard;
use super::plan::Plan;
use super::statement::Statement;
use super::strangers;
use crate::kernel::hooks::{self, How};
use crate::kernel::instance::{self, Claim, Instance, Running, Trust};
use crate::kernel::interfaces::{self, Interface};
use crate::kernel::pin::{FOLDER, Lock, Shelf, Watch};
use crate::kernel::privileges::Capability;
use crate::kernel::tc::{Attachment, Side};
use crate::kernel::{namespace, program, text};

/// What a process that guards this network namespace is known by.
const INSTANCE: &str = "ebpfkit-tc-guard";

/// Of so many policies the statement stays when others have replaced them.
const KEPT_STATEMENTS: u16 = 64;

/// The one guard of this network namespace, pinned or not.
#[derive(Debug)]
pub struct Pinned {
    shelf: Shelf,
    lock: Lock,
}

/// What is found where a guard may be pinned.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A guard that never judged, as its process was killed before, or was being taken away, or one of a
    /// network namespace that has gone.
    Remains,
    /// A guard that judges.
    Guard(Box<Guard>),
}

/// Who is believed to guard here: also the user to whom root has given the pins in `bpffs`.
fn trust(bpffs: Option<&Path>) -> Trust {
    let shelf = bpffs.and_then(|bpffs| shelf(bpffs).ok());
    Trust {
        user: shelf.and_then(|shelf| shelf.given_to()),
        capabilities: &[Capability::NetAdmin, Capability::Bpf],
    }
}

/// Makes this the only process that guards this network namespace. Where the name is held by somebody
/// who has nothing to do with it, that is told in the second value.
///
/// # Errors
/// If a guard runs here already.
pub fn only(bpffs: Option<&Path>) -> Result<(Option<Instance>, Option<String>)> {
    match instance::claim(INSTANCE, trust(bpffs))? {
        Claim::Ours(instance) => Ok((Some(instance), None)),
        Claim::Taken(Running { pid, .. }) => {
            bail!(
                "a guard runs in this network namespace already (process {pid}); a second one is not stacked \
                 on it: end it first, or give it another policy with ebpfkit tc-guard reload"
            )
        }
        Claim::Squatted(who) => Ok((
            None,
            Some(format!(
                "the socket name @{INSTANCE} is held by {who}, so that status and stop will not find this \
                 process"
            )),
        )),
    }
}

/// The process that guards here, if one runs; its pins, if it has some, are in `bpffs`.
pub fn process(bpffs: Option<&Path>) -> Option<Running> {
    instance::running(INSTANCE, trust(bpffs))
}

/// Its id.
pub fn process_id(bpffs: Option<&Path>) -> Option<u32> {
    process(bpffs).map(|running| running.pid)
}

impl Pinned {
    /// The place of this network namespace's guard in `bpffs`, locked.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn lock(bpffs: &Path) -> Result<Self> {
        let shelf = shelf(bpffs)?;
        let lock = shelf.lock()?;
        Ok(Self { shelf, lock })
    }

    /// The same for `stop`: root also takes away the guard of a service with a user of its own.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn lock_to_remove(bpffs: &Path) -> Result<Self> {
        let shelf = shelf(bpffs)?;
        let lock = shelf.lock_to_remove()?;
        Ok(Self { shelf, lock })
    }

    /// What is there.
    ///
    /// # Errors
    /// If something is there that is not of this version, or that may not be opened.
    pub fn find(&self) -> Result<Found> {
        find(&self.shelf)
    }

    /// Hears of what is done to these pins from now on.
    ///
    /// # Errors
    /// If inotify's limits are reached.
    pub fn watch(&self) -> Result<Watch> {
        self.shelf.watch()
    }

    /// Pins a guard that is attached and not armed.
    ///
    /// # Errors
    /// What bpffs says; nothing is pinned then.
    pub fn keep(
        &self,
        guard: &Guard,
        packets: Vec<Attachment>,
        calls: &[OwnedFd],
        statement: &Statement,
    ) -> Result<()> {
        let draft = self.shelf.draft(&self.lock)?;
        for (name, fd) in guard.held() {
            draft.add(&name, fd)?;
        }
        for (index, link) in calls.iter().enumerate() {
            draft.add(&format!("call_{index}"), link.as_fd())?;
        }
        for attachment in &packets {
            if let Some(link) = attachment.link() {
                draft.add(&link_name(attachment.interface(), attachment.side()), link)?;
            }
        }
        let said = text::store(STATEMENT, &statement.to_text()?)?;
        draft.add(&statement_name(guard.generation()), said.as_fd())?;
        draft.commit()?;
        packets.into_iter().for_each(Attachment::keep);
        Ok(())
    }

    /// Attaches a pinned guard to one more interface. One that has gone again meanwhile is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach(&self, guard: &Guard, interface: &Interface) -> Result<()> {
        // What is left of an earlier interface with this index, or of a process that was killed at
        // this point.
        self.forget(interface)?;
        for filter in filters(guard)? {
            if filter.index == interface.index {
                filter.remove()?;
            }
        }
        for attachment in guard.attach(std::slice::from_ref(interface))? {
            if let Some(link) = attachment.link() {
                let name = link_name(interface, attachment.side());
                self.shelf.add(&self.lock, &name, link)?;
            }
            attachment.keep();
        }
        Ok(())
    }

    /// Removes what is pinned for an interface that has gone.
    ///
    /// # Errors
    /// What bpffs says.
    pub fn forget(&self, interface: &Interface) -> Result<()> {
        for side in [Side::Egress, Side::Ingress] {
            self.shelf.forget(&self.lock, &link_name(interface, side))?;
        }
        Ok(())
    }

    /// Puts `plan`, which `statement` tells of, in force in place of the policy that is.
    ///
    /// # Errors
    /// What the kernel refuses; the old policy stays in force then.
    pub fn replace(
        &self,
        guard: &mut Guard,
        plan: &Plan,
        statement: &Statement,
        cgroup_root: Option<&Path>,
    ) -> Result<()> {
        let next = guard.prepare(plan, cgroup_root)?;
        let generation = next.generation();
        // A process that was killed before it could switch may have left these.
        let said = text::store(STATEMENT, &statement.to_text()?)?;
        let name = statement_name(generation);
        self.shelf.forget(&self.lock, &name)?;
        self.shelf.add(&self.lock, &name, said.as_fd())?;
        for (name, fd) in next.held() {
            self.shelf.forget(&self.lock, &name)?;
            self.shelf.add(&self.lock, &name, fd)?;
        }
        guard.switch(next)?;
        guard.forget_reports(KEPT_STATEMENTS)?;
        self.tidy(guard)
    }

    /// Removes the pins of policies that are not in force, but for what the last of them said: a
    /// process may have yet to tell of what they did.
    fn tidy(&self, guard: &Guard) -> Result<()> {
        let generation = guard.generation();
        let said = (0..KEPT_STATEMENTS).map(|ago| statement_name(generation.wrapping_sub(ago)));
        let held = guard.held().into_iter().map(|(name, _)| name);
        let kept: BTreeSet<String> = held.chain(said).collect();
        let of_a_policy = |name: &&String| {
            ["judge_", "cgroups_", "statement_"]
                .iter()
                .any(|start| name.starts_with(start))
        };
        for name in self.shelf.names().iter().filter(of_a_policy) {
            if !kept.contains(name) {
                self.shelf.forget(&self.lock, name)?;
            }
        }
        Ok(())
    }

    /// Takes away a guard, whole or in part: it stops to judge in one step, then its filters and pins
    /// go. Of others' filters only those go that have nothing behind them any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self) -> Result<()> {
        let left = match Guard::open(&self.shelf) {
            Ok(guard) => {
                guard.disarm()?;
                filters(&guard)?
            }
            // Of another version, whose links go with their pins.
            Err(_) => {
                let gates = self.shelf.names().into_iter();
                let gates = gates.filter(|name| name.starts_with("gate_"));
                let ids: BTreeSet<u32> = gates
                    .filter_map(|name| program::open(&self.shelf.pin(&name)).ok())
                    .filter_map(|gate| program::id(gate.as_fd()).ok())
                    .collect();
                every_filter(|at| at.program.is_some_and(|id| ids.contains(&id)))?
            }
        };
        left.iter().try_for_each(Filter::remove)?;
        self.shelf.remove(&self.lock)?;
        // A process that was killed before it had pinned anything has left filters that no pin names.
        strangers::sweep(&strangers::settled(&BTreeSet::new())?).map(drop)
    }

    /// The statement of the policy in force.
    ///
    /// # Errors
    /// If there is none of this version.
    pub fn statement(&self, guard: &Guard) -> Result<Statement> {
        statement(&self.shelf, guard)
    }
}

/// What is pinned for this network namespace, looked at without its lock: by `status`, which changes
/// nothing and waits for nobody.
///
/// # Errors
/// Those of [`Pinned::find`].
pub fn look(bpffs: &Path) -> Result<(Shelf, Found)> {
    let shelf = shelf(bpffs)?;
    let found = find(&shelf)?;
    Ok((shelf, found))
}

/// Where this network namespace's guard is pinned, if it is.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn shelf(bpffs: &Path) -> Result<Shelf> {
    let netns = fs::metadata("/proc/self/ns/net").context("cannot look at /proc/self/ns/net")?;
    let name = format!("tc-guard-{}", netns.ino());
    Ok(Shelf::new(bpffs, FOLDER, &name))
}

fn find(shelf: &Shelf) -> Result<Found> {
    shelf.check()?;
    if !shelf.exists() {
        return Ok(if shelf.has_draft() {
            Found::Remains
        } else {
            Found::Nothing
        });
    }
    let guard = Guard::open(shelf)?;
    let (_, _, netns) = guard.facts()?;
    // The number of a network namespace's inode is given to another when it has gone; its cookie
    // never is (kernel 5.14 tells it).
    let another = |cookie| netns != 0 && cookie != netns;
    if !guard.armed()? || namespace::cookie().is_some_and(another) {
        return Ok(Found::Remains);
    }
    Ok(Found::Guard(Box::new(guard)))
}

/// The statement of the policy in force on `shelf`.
///
/// # Errors
/// If there is none of this version.
pub fn statement(shelf: &Shelf, guard: &Guard) -> Result<Statement> {
    let (_, generation, _) = guard.facts()?;
    statement_of(shelf, generation)
}

/// The names of the endpoints of a policy, if it is pinned here.
pub fn names(bpffs: &Path, generation: u16) -> Option<Vec<String>> {
    let statement = statement_of(&shelf(bpffs).ok()?, generation).ok()?;
    Some(statement.names())
}

fn statement_of(shelf: &Shelf, generation: u16) -> Result<Statement> {
    let path = shelf.pin(&statement_name(generation));
    let map = MapHandle::from_pinned_path(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    Statement::from_text(&text::load(&map)?)
}

fn statement_name(generation: u16) -> String {
    format!("{STATEMENT}_{generation}")
}

fn link_name(interface: &Interface, side: Side) -> String {
    let side = match side {
        Side::Egress => "egress",
        Side::Ingress => "ingress",
    };
    format!("link_{}_{side}", interface.index)
}

/// The sides of the interfaces that `guard` is attached to, found by asking the kernel.
///
/// # Errors
/// What it says.
pub fn attached(guard: &Guard) -> Result<Vec<(Interface, Side)>> {
    let ids = gate_ids(guard)?;
    let mut found = Vec::new();
    for interface in interfaces::all()? {
        for side in [Side::Egress, Side::Ingress] {
            let there = hooks::at(interface.index, side)?;
            if there
                .iter()
                .any(|at| at.program.is_some_and(|id| ids.contains(&id)))
            {
                found.push((interface.clone(), side));
            }
        }
    }
    Ok(found)
}

/// Whether all sides of `interface` that are to be guarded are among those that are `attached`.
pub fn is_whole(interface: &Interface, attached: &[(Interface, Side)]) -> bool {
    let has = |wanted| {
        let mut all = attached.iter();
        all.any(|(at, side)| at.index == interface.index && *side == wanted)
    };
    has(Side::Egress) && (!interface.veth || has(Side::Ingress))
}

/// The program ids of the gates at interfaces.
///
/// # Errors
/// If the kernel does not say.
pub fn gate_ids(guard: &Guard) -> Result<BTreeSet<u32>> {
    guard
        .gates()
        .filter(|(hook, _)| Hook::PACKETS.contains(hook))
        .map(|(_, gate)| program::id(gate).context("cannot ask for a program's id"))
        .collect()
}

/// A filter of a guard, where it is attached by such.
struct Filter {
    index: i32,
    side: Side,
    priority: u32,
    handle: u32,
}

impl Filter {
    fn remove(&self) -> Result<()> {
        hooks::remove_filter(self.index, self.side, self.priority, self.handle)
    }
}

fn filters(guard: &Guard) -> Result<Vec<Filter>> {
    let ids = gate_ids(guard)?;
    every_filter(|at| at.program.is_some_and(|id| ids.contains(&id)))
}

fn every_filter(wanted: impl Fn(&hooks::Attached) -> bool) -> Result<Vec<Filter>> {
    let mut found = Vec::new();
    for interface in interfaces::all()? {
        for side in [Side::Egress, Side::Ingress] {
            for at in hooks::at(interface.index, side)? {
                if let How::Filter {
                    priority, handle, ..
                } = at.how
                    && wanted(&at)
                {
                    found.push(Filter {
                        index: interface.index,
                        side,
                        priority,
                        handle,
                    });
                }
            }
        }
    }
    Ok(found)
}
