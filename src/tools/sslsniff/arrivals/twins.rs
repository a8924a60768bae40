// SPDX-License-Identifier: BSD-2-Clause

//! Libraries that are one file under several numbers: a container's image in the overlayfs of each container that was
//! made of it. The kernel puts all their probes into the same place, so that a call is told of by each. That is seen as
//! it happens, and needs no knowledge of file systems.

use std::sync::mpsc::Sender;

use super::super::discover::FileId;
use super::super::event::Arrived;
use super::{Arrivals, Filter};
use crate::kernel::uprobes::Probes;

impl Arrivals {
    /// One file that was probed under several numbers, as each overlayfs has its own, is probed under one from now on: at
    /// each call the kernel runs what is at each of the probes.
    pub(super) fn join_twins(&mut self) -> Probes {
        let mut probes = Probes::default();
        for (number, other) in self.twins.take() {
            let numbered = |number| {
                let mut all = self.watched.iter();
                all.find_map(|(id, one)| (one.number == number).then_some(*id))
            };
            let (Some(id), Some(mut other)) = (numbered(number), numbered(other)) else {
                continue;
            };
            // It may have been left to a third one by now.
            while let Some(next) = self.watched.get(&other).and_then(|other| other.twin) {
                other = next;
            }
            if id != other
                && self.watched.contains_key(&other)
                && let Some(watched) = self.watched.get_mut(&id)
            {
                probes.add(watched.leave_to(other));
            }
        }
        probes
    }

    /// Those whose calls the probes of `gone` told of are probed themselves, before those are taken off.
    pub(super) fn part_twins(&mut self, gone: FileId, filter: &Filter, arrived: &Sender<Arrived>) {
        let twins: Vec<_> = self
            .watched
            .iter()
            .filter(|(_, watched)| watched.twin == Some(gone))
            .map(|(id, watched)| (*id, watched.users.clone()))
            .collect();
        for (id, users) in twins {
            drop(self.unwatch(id));
            for pid in users {
                self.maps(pid, filter, arrived);
            }
            if !self.watched.contains_key(&id) {
                self.part_twins(id, filter, arrived);
            }
        }
    }
}
