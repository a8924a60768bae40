// SPDX-License-Identifier: BSD-2-Clause

//! How much is read and kept of files that anybody can make many of, shared among their owners: what one user makes
//! must not leave out what others use.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt as _;

use super::descriptors;
use crate::kernel::uprobes::Method;

/// Bytes of files that are read in all, so that nobody makes the start take forever: an executable's
/// tables are some 100 KiB.
const MOST_READ: u64 = 512 << 20;

/// What looking into a file costs at least, however few bytes of it are read: so that small ones are not without end.
const LEAST_READ: u64 = 16 << 10;

/// A file system may keep files up to this outside of blocks.
const SMALL_FILE: u64 = 64 << 10;

/// An amount that is shared among users: the files of one may take half of it, those of all but root three quarters.
#[derive(Debug)]
struct Shares {
    most: u64,
    used: HashMap<u32, u64>,
    all: u64,
    /// Of `all`, what is not root's.
    ordinary: u64,
}

const ROOT: u32 = 0;

impl Shares {
    fn of(most: u64) -> Self {
        Self {
            most,
            used: HashMap::new(),
            all: 0,
            ordinary: 0,
        }
    }

    /// What files of this user may still take.
    fn left(&self, owner: u32) -> u64 {
        let all = self.most.saturating_sub(self.all);
        if owner == ROOT {
            return all;
        }
        let used = self.used.get(&owner).copied().unwrap_or_default();
        let own = self.most.div_ceil(2).saturating_sub(used);
        let ordinary = (self.most - self.most / 4).saturating_sub(self.ordinary);
        all.min(own).min(ordinary)
    }

    /// Takes so much, or what is left.
    fn take(&mut self, owner: u32, amount: u64) {
        let amount = amount.min(self.left(owner));
        self.all += amount;
        if owner != ROOT && amount > 0 {
            self.ordinary += amount;
            *self.used.entry(owner).or_default() += amount;
        }
    }

    /// Has back what was taken.
    fn give_back(&mut self, owner: u32, amount: u64) {
        self.all = self.all.saturating_sub(amount);
        if let Some(used) = self.used.get_mut(&owner) {
            self.ordinary = self.ordinary.saturating_sub(amount);
            *used = used.saturating_sub(amount);
            if *used == 0 {
                self.used.remove(&owner);
            }
        }
    }
}

/// How much more may be read of files.
#[derive(Debug)]
pub(super) struct Reading(Shares);

impl Default for Reading {
    fn default() -> Self {
        Self::of(MOST_READ)
    }
}

impl Reading {
    /// So many bytes.
    pub(super) fn of(bytes: u64) -> Self {
        Self(Shares::of(bytes))
    }

    /// Has `look` read of `file`; `None` if there is no room for what it would read.
    pub(super) fn look<T>(
        &mut self,
        file: &File,
        metadata: &Metadata,
        look: impl FnOnce(Bounded<'_>) -> T,
    ) -> Option<T> {
        let left = self.0.left(metadata.uid());
        if left == 0 {
            return None;
        }
        let (room, exceeded) = (Cell::new(left), Cell::new(false));
        let found = look(Bounded {
            file,
            room: &room,
            exceeded: &exceeded,
        });
        let read = left - room.get();
        self.0.take(metadata.uid(), read.max(LEAST_READ));
        (!exceeded.get()).then_some(found)
    }
}

/// Bytes of a file that are stored: tables that are mostly holes cost their reader time and memory, and whoever
/// made them nothing.
pub(super) fn stored(metadata: &Metadata) -> u64 {
    // In units of 512 bytes, whatever the block is; a file system may keep a small file elsewhere.
    metadata.blocks().saturating_mul(512).max(SMALL_FILE)
}

/// A file that is read as long as there is room.
#[derive(Debug)]
pub(super) struct Bounded<'a> {
    file: &'a File,
    room: &'a Cell<u64>,
    exceeded: &'a Cell<bool>,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.len() as u64 > self.room.get() {
            self.exceeded.set(true);
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let read = self.file.read(buffer)?;
        self.room.set(self.room.get() - read as u64);
        Ok(read)
    }
}

impl Seek for Bounded<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// How many more libraries may be watched.
#[derive(Debug)]
pub(super) struct Watching(Shares);

impl Watching {
    /// As many as `method` has descriptors for.
    pub(super) fn by(method: Method) -> Self {
        Self(Shares::of(descriptors::most_libraries(method) as u64))
    }

    /// Takes a place for a file of this user; says whether there was one.
    pub(super) fn take(&mut self, owner: u32) -> bool {
        let is_room = self.0.left(owner) > 0;
        self.0.take(owner, 1);
        is_room
    }

    /// Has a place back.
    pub(super) fn give_back(&mut self, owner: u32) {
        self.0.give_back(owner, 1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_user_and_no_number_of_users_takes_what_root_s_files_need() {
        let mut shares = Shares::of(100);
        shares.take(1000, 70);
        assert_eq!((shares.left(1000), shares.left(1001)), (0, 25));
        shares.take(1001, 70);
        assert_eq!((shares.left(1001), shares.left(1002)), (0, 0));
        assert_eq!(shares.left(ROOT), 25);
        shares.give_back(1000, 1);
        assert_eq!((shares.left(1000), shares.left(1002)), (1, 1));
        shares.take(ROOT, 1000);
        assert_eq!((shares.left(ROOT), shares.left(1000)), (0, 0));
    }

    #[test]
    fn however_little_room_there_is_everybody_finds_a_place() {
        for owner in [ROOT, 1000] {
            let mut shares = Shares::of(1);
            assert_eq!(shares.left(owner), 1);
            shares.take(owner, 1);
            assert_eq!(shares.left(ROOT), 0);
        }
    }

    #[test]
    fn small_files_are_not_without_end() {
        let file = File::open("/proc/self/exe").unwrap();
        let metadata = file.metadata().unwrap();
        let mut reading = Reading::of(3 * LEAST_READ);
        let mut looked = 0;
        while reading.look(&file, &metadata, |_| ()).is_some() {
            looked += 1;
        }
        // An ordinary user's take half.
        assert_eq!(looked, if metadata.uid() == ROOT { 3 } else { 2 });
    }

    proptest! {
        #[test]
        fn what_was_taken_comes_back(steps in proptest::collection::vec((0u32..4, 1u64..40), 0..60)) {
            let mut shares = Shares::of(100);
            let mut taken = Vec::new();
            for (owner, amount) in steps {
                let before = shares.left(owner);
                shares.take(owner, amount);
                taken.push((owner, amount.min(before)));
                prop_assert!(shares.all <= 100 && shares.ordinary <= 75);
            }
            for (owner, amount) in taken {
                shares.give_back(owner, amount);
            }
            prop_assert_eq!((shares.all, shares.ordinary, shares.used.len()), (0, 0, 0));
        }
    }
}
