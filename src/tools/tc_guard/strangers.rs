// SPDX-License-Identifier: BSD-2-Clause

//! Gates at this network namespace's hooks that are not this guard's: of a guard that is pinned in
//! another bpffs, or of one that was killed.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use libbpf_rs::MapHandle;

use super::gates::{self, Behind, Seen, is_gate};
use super::guard::Guard;
use super::sight::Sight;
use super::statement::Statement;
use crate::kernel::hooks::{self, Attached, How};
use crate::kernel::interfaces;
use crate::kernel::tc::Side;
use crate::kernel::{bpf, text};

/// In this time a guard that begins is armed, or the kernel has emptied the slots of one that was killed as it began.
const SOON: Duration = Duration::from_secs(1);
/// Between two looks whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A gate of another guard.
#[derive(Debug)]
pub struct Stranger {
    interface: String,
    index: i32,
    side: Side,
    how: How,
    program: Option<u32>,
    /// Nothing if that cannot be had.
    seen: Option<Seen>,
    /// Nothing if that cannot be seen.
    behind: Option<Behind>,
}

impl Stranger {
    fn judges(&self) -> bool {
        self.behind == Some(Behind::Judging)
    }
}

/// All gates at interfaces here but those with the program ids `own`.
///
/// # Errors
/// [`Failure::Blocked`](crate::failure::Failure::Blocked) without the capabilities to ask, and whatever
/// else keeps the kernel from saying what is attached.
pub fn find(own: &BTreeSet<u32>) -> Result<Vec<Stranger>> {
    let mut found = Vec::new();
    let sight = Sight::default();
    for interface in interfaces::all()? {
        for side in [Side::Egress, Side::Ingress] {
            let attached = hooks::at(interface.index, side).map_err(|err| {
                bpf::explain_any(err, "look at the hooks", gates::needed(Guard::method()))
            })?;
            for at in attached {
                let known = at.program.is_some_and(|id| own.contains(&id));
                let seen_name = || sight.name(at.program?);
                if known || !at.name.as_deref().or_else(seen_name).is_some_and(is_gate) {
                    continue;
                }
                let seen = at.program.and_then(Seen::of);
                let behind = match &seen {
                    Some(seen) => seen.behind(),
                    None => at.program.and_then(|id| sight.behind(id)),
                };
                found.push(Stranger {
                    interface: interface.name.clone(),
                    index: interface.index,
                    side,
                    how: at.how,
                    program: at.program,
                    behind,
                    seen,
                });
            }
        }
    }
    Ok(found)
}

/// The interface at which one of them judges, if any does.
pub fn judging(strangers: &[Stranger]) -> Option<&str> {
    first(strangers, Behind::Judging)
}

/// The first interface with a gate of another that has this behind it.
fn first(strangers: &[Stranger], behind: Behind) -> Option<&str> {
    let mut all = strangers.iter();
    all.find(|at| at.behind == Some(behind))
        .map(|at| at.interface.as_str())
}

/// What is a gate of a guard that judges: by its state, as anybody may call a program anything; by its name
/// where that cannot be seen.
pub fn gates(strangers: &[Stranger]) -> impl Fn(&Attached) -> bool + use<> {
    let judging = |at: &&Stranger| at.judges() || (at.behind.is_none() && at.seen.is_none());
    let gates = strangers.iter().filter(judging);
    let ids: BTreeSet<u32> = gates.filter_map(|at| at.program).collect();
    move |at| at.program.is_some_and(|id| ids.contains(&id))
}

/// Whether one that judges is of a guard that is a process's own: only such a one says what it is at its gates. Not where
/// that cannot be seen.
pub fn is_of_a_process(strangers: &[Stranger]) -> bool {
    text_of(strangers).is_some()
}

fn text_of(strangers: &[Stranger]) -> Option<(&MapHandle, MapHandle)> {
    let mut judging = strangers.iter().filter(|at| at.judges());
    judging.find_map(|at| at.seen.as_ref()?.said())
}

/// What the guard that one of them is of says of itself, and the table of what it reports; nothing if it is pinned,
/// as its pins say more, or if that cannot be seen.
///
/// # Errors
/// If it is not of this version.
pub fn said(strangers: &[Stranger]) -> Result<Option<(Statement, MapHandle)>> {
    let read = text_of(strangers).map(|(said, reports)| {
        let statement = Statement::from_text(&text::load(said)?)?;
        Ok((statement, reports))
    });
    read.transpose()
}

/// The same once those that begin or go have done so, or after [`SOON`]. Whoever has a gate that was loaded later than
/// another's does not wait for that one: of two guards that wait for each other it is the one that gives up.
///
/// # Errors
/// Those of [`find`].
pub fn settled(own: &BTreeSet<u32>) -> Result<Vec<Stranger>> {
    let start = Instant::now();
    let is_later = |at: &Stranger| own.first() < at.program.as_ref();
    loop {
        let strangers = find(own)?;
        let mut waiting = strangers
            .iter()
            .filter(|at| at.behind == Some(Behind::Waiting))
            .peekable();
        if waiting.peek().is_none() || !waiting.all(is_later) || start.elapsed() > SOON {
            return Ok(strangers);
        }
        // What is held of another's gate keeps that from being emptied.
        drop(strangers);
        thread::sleep(LOOK_AGAIN);
    }
}

/// How far the guard is that asks for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It has nothing in the kernel yet.
    Begins,
    /// Its gates are attached, and are about to be armed: of two that begin at once, one sees the other now, whoever
    /// of them comes first.
    Attached,
    /// It judges, so that whoever begins gives up.
    InForce,
}

/// Makes room for a guard whose gates have the program ids `own`: takes away what [`sweep`] does. What is to be
/// told of it is the value.
///
/// # Errors
/// If another guard judges or begins here, and what the kernel says.
pub fn clear(own: &BTreeSet<u32>, stage: Stage) -> Result<Option<String>> {
    let strangers = match stage {
        Stage::InForce => find(own)?,
        _ => settled(own)?,
    };
    if let Some(interface) = judging(&strangers) {
        if is_of_a_process(&strangers) {
            bail!(
                "another guard is in force at {interface}, which is not pinned: it is the own of a process that \
                 cannot be told from here, as it is another user's, or another has taken its name; a second one is \
                 not stacked on it: end that process first"
            );
        }
        if strangers.iter().all(|at| at.seen.is_none()) {
            bail!(
                "another guard is in force at {interface}, whose pins are not here: it is pinned in another bpffs, or \
                 the own of a process that cannot be told from here; a second one is not stacked on it: as root, \
                 ebpfkit tc-guard status --bpffs FOLDER tells more"
            );
        }
        bail!(
            "another guard is in force at {interface}, whose pins are not here: it is pinned in another bpffs, \
             or in one that this mount namespace hides; a second one is not stacked on it: take it away with \
             ebpfkit tc-guard stop --bpffs FOLDER"
        );
    }
    let begins = first(&strangers, Behind::Waiting);
    if let Some(interface) = begins.filter(|_| stage != Stage::InForce) {
        bail!(
            "another guard is about to begin at {interface}, and a second one is not stacked on it: try again; if \
             nobody starts one, it is one that was killed as it began, whose pins are in another bpffs: \
             ebpfkit tc-guard stop --bpffs FOLDER takes it away"
        );
    }
    sweep(&strangers)?;
    let mut all = strangers.iter();
    let unknown = all.find(|at| at.behind.is_none());
    if let Some(at) = unknown {
        return Ok(Some(format!(
            "a gate of another guard is at {}; whether it judges cannot be seen without CAP_PERFMON or \
             CAP_SYS_ADMIN, so it stays",
            at.interface
        )));
    }
    Ok(unseen(own)?.map(|interface| {
        format!(
            "what a program at {interface} is cannot be seen without CAP_PERFMON or CAP_SYS_ADMIN: if it is another \
             guard, both judge"
        )
    }))
}

/// The first interface with a program of which not even the name can be seen, and which is none of `own`.
fn unseen(own: &BTreeSet<u32>) -> Result<Option<String>> {
    let sight = Sight::default();
    for interface in interfaces::all()? {
        for side in [Side::Egress, Side::Ingress] {
            let attached = hooks::at(interface.index, side)?;
            let others = |at: &Attached| at.program.is_some_and(|id| !own.contains(&id));
            let unknown = |at: &Attached| {
                at.name.is_none() && at.program.and_then(|id| sight.name(id)).is_none()
            };
            // The names of its own ones are not asked for, which takes a while.
            if attached.iter().any(|at| others(at) && unknown(at)) {
                return Ok(Some(interface.name));
            }
        }
    }
    Ok(None)
}

/// Removes the filters that a guard left at interfaces when it was killed before kernel 6.6, and that have
/// nothing behind them any more: how many. One of which that cannot be seen stays, and one with a policy.
///
/// # Errors
/// What the kernel says.
pub fn sweep(strangers: &[Stranger]) -> Result<usize> {
    let mut removed = 0;
    for at in strangers {
        if let (
            Some(Behind::Nothing),
            How::Filter {
                priority, handle, ..
            },
        ) = (at.behind, &at.how)
        {
            // Its numbers may be another's by now.
            let now = hooks::at(at.index, at.side)?;
            if now
                .iter()
                .any(|now| now.how == at.how && now.program == at.program)
            {
                hooks::remove_filter(at.index, at.side, *priority, *handle)?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}
