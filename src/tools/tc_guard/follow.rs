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

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: i32, name: &str) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            loopback: name == "lo",
            layout: crate::kernel::interfaces::Layout::Ethernet,
            veth: false,
        }
    }

    #[test]
    fn what_comes_is_guarded_and_what_goes_is_forgotten() {
        let (lo, eth0, veth1) = (
            interface(1, "lo"),
            interface(2, "eth0"),
            interface(3, "veth1"),
        );
        let now = [lo.clone(), eth0.clone(), veth1.clone()];
        let come = steps(&[], std::slice::from_ref(&eth0), &now, &[]);
        assert_eq!((come.forget, come.guard), (vec![], vec![veth1.clone()]));
        let held = [eth0.clone(), veth1.clone()];
        let go = steps(&[], &held, &[lo, eth0], &[3]);
        assert_eq!((go.forget, go.guard), (vec![veth1], vec![]));
        assert_eq!(steps(&[], &held, &now, &[]), Steps::default());
    }

    #[test]
    fn an_index_that_was_given_up_is_another_interface() {
        let (old, new) = (interface(3, "veth1"), interface(3, "veth1"));
        let found = steps(
            &[],
            std::slice::from_ref(&old),
            std::slice::from_ref(&new),
            &[3],
        );
        assert_eq!((found.forget, found.guard), (vec![old], vec![new]));
    }

    #[test]
    fn one_that_is_renamed_stays_guarded_and_others_than_the_named_are_left_alone() {
        let wanted = ["eth0".to_owned(), "lo".to_owned()];
        let held = [interface(2, "eth0")];
        let now = [
            interface(1, "lo"),
            interface(2, "wan0"),
            interface(3, "veth1"),
        ];
        let found = steps(&wanted, &held, &now, &[]);
        assert_eq!(
            (found.forget, found.guard),
            (vec![], vec![interface(1, "lo")])
        );
    }
}
