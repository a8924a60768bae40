// SPDX-License-Identifier: BSD-2-Clause

//! Libraries with their probes, and who uses them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::thread::JoinHandle;

use super::super::discover::{FileId, Library, MappedAs, Version};
use crate::kernel::maps;
use crate::kernel::privileges::{Capabilities, Capability};
use crate::kernel::uprobes::Probes;

/// A library with its probes.
#[derive(Debug)]
pub(super) struct Watched {
    pub number: u32,
    probes: Probes,
    /// They are on their way.
    pub later: Option<JoinHandle<Probes>>,
    /// Processes that were seen to map it, if a process is why it is watched; there may be others.
    pub users: HashSet<u32>,
    mapped: Option<MappedAs>,
    pub version: Version,
    /// It is one file with this library, whose probes tell of its calls, too.
    pub twin: Option<FileId>,
}

impl Watched {
    /// One of this number.
    pub fn new(library: &Library, number: u32, probes: Probes, users: &[u32]) -> Self {
        Self {
            number,
            probes,
            later: None,
            users: users.iter().copied().collect(),
            mapped: library.mapped,
            version: library.version,
            twin: None,
        }
    }

    /// Another library's probes tell of its calls; its own are to be dropped.
    pub fn leave_to(&mut self, other: FileId) -> Probes {
        self.twin = Some(other);
        let mut probes = std::mem::take(&mut self.probes);
        if let Some(Ok(later)) = self.later.take().map(JoinHandle::join) {
            probes.add(later);
        }
        probes
    }

    /// A process maps it. Of what is watched whoever uses it, nobody needs to know.
    pub fn is_used_by(&mut self, pid: u32) {
        if self.mapped.is_some() {
            self.users.insert(pid);
        }
    }

    /// All probes, once they are there.
    pub fn into_probes(self) -> Probes {
        let mut probes = self.probes;
        if let Some(Ok(later)) = self.later.map(JoinHandle::join) {
            probes.add(later);
        }
        probes
    }
}

/// Those that no process uses of which that is known; others may.
pub(super) fn without_users(all: &mut HashMap<FileId, Watched>) -> HashMap<MappedAs, FileId> {
    let mut doubtful = HashMap::new();
    for (id, watched) in all {
        let Some(mapped) = watched.mapped else {
            continue;
        };
        watched
            .users
            .retain(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(true));
        if watched.users.is_empty() {
            doubtful.insert(mapped, *id);
        }
    }
    doubtful
}

/// Who maps which of these files; `None` if that cannot be known.
pub(super) fn users(files: &HashMap<MappedAs, FileId>) -> Option<HashMap<FileId, HashSet<u32>>> {
    let mut users: HashMap<FileId, HashSet<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let read = maps::executable(pid, |mapping| {
            if let Some(id) = files.get(&(mapping.device, mapping.inode)) {
                users.entry(*id).or_default().insert(pid);
            }
            ControlFlow::Continue(())
        });
        match read {
            Ok(()) => {}
            // Even root meets a process or two that it may not look into; without that privilege they
            // are many, and any of them may be a user.
            Err(err)
                if err.kind() == io::ErrorKind::PermissionDenied
                    && !Capabilities::effective().has(Capability::SysPtrace) =>
            {
                return None;
            }
            Err(_) => {}
        }
    }
    Some(users)
}
