// SPDX-License-Identifier: BSD-2-Clause

//! Which interfaces are to be guarded, as they come and go. Pure.

use crate::kernel::interfaces::Interface;

/// What is to be done after a look at the interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Steps {
    /// Interfaces that have gone, and what was attached there with them.
    pub forget: Vec<Interface>,
    /// Interfaces to guard.
    pub guard: Vec<Interface>,
}

/// Compares the interfaces that are guarded with those that there are `now`, of which the ones named
/// in `wanted` are to be guarded, or all but loopback where it is empty. The indexes in `gone` have
/// been given up since the last look, even if an interface has one of them again.
///
/// An interface is the one with its index: one that was renamed stays guarded, whatever it is called
/// now.
pub fn steps(wanted: &[String], guarded: &[Interface], now: &[Interface], gone: &[i32]) -> Steps {
    let stays = |held: &&Interface| {
        !gone.contains(&held.index) && now.iter().any(|there| there.index == held.index)
    };
    let kept: Vec<_> = guarded
        .iter()
        .filter(stays)
        .map(|held| held.index)
        .collect();
    let is_wanted = |there: &&Interface| {
        if wanted.is_empty() {
            !there.loopback
        } else {
            wanted.contains(&there.name)
        }
    };
    Steps {
        forget: guarded
            .iter()
            .filter(|held| !kept.contains(&held.index))
            .cloned()
            .collect(),
        guard: now
            .iter()
            .filter(is_wanted)
            .filter(|there| !kept.contains(&there.index))
            .cloned()
            .collect(),
    }
}
