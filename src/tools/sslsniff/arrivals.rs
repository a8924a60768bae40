// SPDX-License-Identifier: BSD-2-Clause

//! The libraries that are watched: those that were found at the start, and those that processes map
//! later. These are probed as soon as the kernel tells of them, by a thread that does nothing else,
//! so that a program has yet to make its connection. A library that no process uses any more is let
//! go, so that the file system that it is on can be too.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::descriptors;
use super::discover::{self, FileId, Found, Library, MappedAs};
use super::event::{Arrived, Skipped, Skips};
use super::function::Function;
use super::holds::{Holds, Pauses, Waiting};
pub use super::names::Names;
use super::probes::Attacher;
use super::scans::Scans;
use super::watch::Twins;
use crate::kernel::hold::{self, Held};
use crate::kernel::maps::{self, Mapping};
use crate::kernel::mmap_events::{Mapped, MmapEvents};
use crate::kernel::stop::Stop;
use crate::kernel::uprobes::{Probes, Scope};

use watched::Watched;

mod twins;
mod watched;

/// How often libraries that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(10);
/// Mappings whose file is remembered.
const MOST_REMEMBERED: usize = 1 << 16;

impl Arrived {
    /// A library that was found, and why it is not probed, if so.
    fn of(
        library: &Library,
        attacher: &Attacher,
        pid: Option<u32>,
        failed: Option<(io::Error, Function)>,
    ) -> Self {
        let functions = library.offsets.iter().map(|(function, _)| *function);
        let functions = functions.filter(|function| attacher.wants(*function));
        Self {
            library: library.path.to_string_lossy().into_owned(),
            pid,
            functions: if failed.is_none() {
                functions.map(Function::name).collect()
            } else {
                Vec::new()
            },
            reason: failed.map(|(err, function)| format!("{}: {err}", function.name())),
        }
    }
}

/// Whose mappings are looked at.
pub struct Filter {
    /// These files only, if any.
    pub only: Vec<PathBuf>,
    /// Whether a process is watched.
    pub process: Box<dyn Fn(u32) -> bool + Send>,
    /// Processes wait until their new library is probed.
    pub hold: bool,
}

impl Filter {
    /// Whether a library at `path` in the root of process `pid` is of interest.
    fn wants(&self, pid: u32, path: &Path) -> bool {
        (self.only.is_empty() || self.only.iter().any(|only| only == path)) && (self.process)(pid)
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter")
            .field("only", &self.only)
            .finish_non_exhaustive()
    }
}

/// What is watched.
#[derive(Debug)]
pub struct Arrivals {
    attacher: Arc<Attacher>,
    found: Found,
    watched: HashMap<FileId, Watched>,
    /// Mappings that were looked at: which library they are of, if of any. Of paths, which anybody can make long, only a
    /// hash, with a seed that nobody knows.
    remembered: HashMap<(MappedAs, u64, u64, u64), Option<FileId>>,
    seed: RandomState,
    names: Names,
    twins: Twins,
    last: u32,
    /// Numbers that records may still have.
    gone: Vec<u32>,
    /// Since the last sweep, a file was told of that there was no room for.
    told_full: bool,
    /// Processes that the kernel has stopped until what they map was looked into.
    waiting: Vec<Waiting>,
}

impl Arrivals {
    /// Nothing yet.
    pub fn new(attacher: Attacher, found: Found, names: Names, twins: Twins) -> Self {
        Self {
            attacher: Arc::new(attacher),
            found,
            watched: HashMap::new(),
            remembered: HashMap::new(),
            seed: RandomState::new(),
            names,
            twins,
            last: 0,
            gone: Vec::new(),
            told_full: false,
            waiting: Vec::new(),
        }
    }

    /// Probes what was found; says what is probed, and what is not.
    ///
    /// # Errors
    /// What the kernel refuses, with the capability that is missing: of a library that is required,
    /// or of all.
    pub fn start(&mut self) -> Result<(Vec<String>, Skips)> {
        let spare = descriptors::spare();
        let mut probed = Vec::new();
        let mut skipped = std::mem::take(&mut self.found.skipped);
        let mut first = None;
        let mut full = false;
        for library in std::mem::take(&mut self.found.libraries) {
            if full && !library.required {
                skipped.add(Skipped::of(&library.path, "no descriptor is left"));
                continue;
            }
            // What anybody maps was found here: that it cannot be probed must not keep the rest from
            // being watched. Its probes so far are dropped.
            match self.probe(&library, &[]) {
                Ok(()) => probed.push(library.path.to_string_lossy().into_owned()),
                Err((err, function)) => {
                    full |= matches!(err.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
                    let why = format!("{}: {err}", function.name());
                    let err = self.attacher.refused(err, function, &library.path);
                    if library.required {
                        return Err(err);
                    }
                    skipped.add(Skipped::of(&library.path, &why));
                    first.get_or_insert(err);
                }
            }
        }
        drop(spare);
        match first {
            Some(err) if self.watched.is_empty() => Err(err),
            _ => Ok((probed, skipped)),
        }
    }

    fn probe(&mut self, library: &Library, users: &[u32]) -> Result<(), (io::Error, Function)> {
        let number = self.name(library);
        let probes = self
            .attacher
            .attach(library, number, Scope::All)
            .inspect_err(|_| self.names.remove(number))?;
        let watched = Watched::new(library, number, probes, users);
        self.watched.insert(library.id, watched);
        Ok(())
    }

    /// Gives a library its number, before its first record.
    fn name(&mut self, library: &Library) -> u32 {
        self.last += 1;
        let functions = library.offsets.iter().map(|(one, _)| *one).collect();
        self.names
            .set(self.last, &library.path.to_string_lossy(), functions);
        self.last
    }

    /// What keeps a process that the kernel has stopped.
    fn keeps(&self, pid: u32) -> Option<Arc<Held>> {
        let mut waiting = self.waiting.iter().filter(|waiting| waiting.pid == pid);
        waiting.find_map(|waiting| waiting.held.clone())
    }

    /// Probes what is below a TLS library in a thread of its own: the TLS library itself may be mapped
    /// in this moment, and its probes come first. A process that waits does so until these are there.
    fn probe_below(&mut self, library: Library, pid: Option<u32>, arrived: &Sender<Arrived>) {
        let number = self.name(&library);
        let mut watched = Watched::new(&library, number, Probes::default(), pid.as_slice());
        let id = library.id;
        let (attacher, arrived) = (Arc::clone(&self.attacher), arrived.clone());
        let held = pid.and_then(|pid| self.keeps(pid));
        let later = std::thread::Builder::new().spawn(move || {
            let result = attacher.attach(&library, number, Scope::All);
            drop(held);
            let (probes, failed) = match result {
                Ok(probes) => (probes, None),
                Err(failed) => (Probes::default(), Some(failed)),
            };
            // Nobody listens once the end has come.
            let _ = arrived.send(Arrived::of(&library, &attacher, pid, failed));
            probes
        });
        watched.later = later.ok();
        self.watched.insert(id, watched);
    }

    /// Watches on in a thread of its own, until `stop` says so; then takes all probes off.
    ///
    /// # Errors
    /// If no thread can be made.
    pub fn follow(
        mut self,
        mut events: Option<MmapEvents>,
        holds: Option<Holds>,
        filter: Filter,
        stop: &Stop,
    ) -> Result<Following> {
        let (sender, arrived) = channel();
        let stopped = stop.clone();
        let pauses = holds.as_ref().map(Holds::pauses);
        let thread = std::thread::Builder::new()
            .name("libraries".to_owned())
            .spawn(move || {
                hold::hurry();
                let result = self.work(events.as_mut(), holds.as_ref(), &filter, &stopped, &sender);
                drop(holds);
                let mut all = Probes::default();
                for (_, watched) in self.watched.drain() {
                    all.add(watched.into_probes());
                }
                drop(all);
                if result.is_err() {
                    // Nobody would notice new libraries any more.
                    stopped.stop();
                }
                result
            })
            .context("cannot make a thread")?;
        Ok(Following {
            stop: stop.clone(),
            arrived,
            pauses,
            thread: Some(thread),
        })
    }

    fn work(
        &mut self,
        mut events: Option<&mut MmapEvents>,
        holds: Option<&Holds>,
        filter: &Filter,
        stop: &Stop,
        arrived: &Sender<Arrived>,
    ) -> Result<()> {
        let mut swept = Instant::now();
        let mut scans = Scans::default();
        let mut batch = Vec::new();
        let stopped = || {
            stop.wait(&[], Some(Duration::ZERO))
                .is_ok_and(|woken| woken.stopped)
        };
        loop {
            let wait = Some(scans.wait(Instant::now(), SWEEP));
            let mut sources = events.as_ref().map_or_else(Vec::new, |events| events.fds());
            sources.extend(holds.map(Holds::fd));
            if stop.wait(&sources, wait)?.stopped {
                return Ok(());
            }
            // Before the mappings, which the kernel told of before.
            if let Some(holds) = holds {
                self.waiting = holds.take();
            }
            let mut lost = 0;
            if let Some(events) = &mut events {
                lost = events.drain(|mapped| batch.push(mapped));
            }
            let mut unsettled = HashSet::new();
            for mapped in batch.drain(..) {
                let pid = mapped.pid;
                if !self.mapped(mapped, filter, arrived) {
                    unsettled.insert(pid);
                }
            }
            if lost > 0 {
                scans.need(Instant::now());
                for pid in self
                    .waiting
                    .iter()
                    .map(|waiting| waiting.pid)
                    .collect::<Vec<_>>()
                {
                    self.maps(pid, filter, arrived);
                    unsettled.insert(pid);
                }
            }
            if let Some(holds) = holds {
                for waiting in self.waiting.drain(..) {
                    if !unsettled.contains(&waiting.pid) {
                        holds.settle(&waiting.file);
                    }
                }
                holds.resume();
            }
            let now = Instant::now();
            if scans.is_due(now) {
                self.found
                    .again(&|pid, path| filter.wants(pid, path), &stopped)?;
                self.probe_new(None, arrived);
                scans.done(now, Instant::now());
            }
            if swept.elapsed() >= SWEEP {
                self.sweep(holds, filter, arrived);
                swept = Instant::now();
            }
        }
    }

    /// Looks at all that a process maps.
    fn maps(&mut self, pid: u32, filter: &Filter, arrived: &Sender<Arrived>) {
        // It may have ended.
        let _ = maps::executable(pid, |mapping| {
            let mapped = Mapped {
                pid,
                range: mapping.range,
                offset: mapping.offset,
                device: mapping.device,
                inode: (mapping.inode, 0),
                path: mapping.path.to_owned(),
            };
            self.mapped(mapped, filter, arrived);
            ControlFlow::Continue(())
        });
    }

    /// Looks at what a process maps; says whether it is known now what that is.
    fn mapped(&mut self, mapped: Mapped, filter: &Filter, arrived: &Sender<Arrived>) -> bool {
        let (inode, generation) = mapped.inode;
        let id = (mapped.device, inode);
        let path = self.seed.hash_one(&mapped.path);
        let key = (id, generation, mapped.offset, path);
        let mapping = Mapping {
            range: mapped.range,
            // Of no interest here.
            offset: 0,
            device: mapped.device,
            inode,
            path: &mapped.path,
        };
        let remembered = self.remembered.get(&key).copied();
        // Not a file, as [vdso] and //anon.
        if remembered.is_none() && (inode == 0 || !filter.wants(mapped.pid, mapping.path)) {
            return true;
        }
        let mut library = remembered.or_else(|| self.look(mapped.pid, &mapping, filter, arrived));
        if let Some(Some(id)) = library
            && self.is_rewritten(id, mapped.pid, &mapping)
        {
            library = self.look(mapped.pid, &mapping, filter, arrived);
            // Nobody tells of the calls of those that were left to it.
            if !self.watched.contains_key(&id) {
                self.part_twins(id, filter, arrived);
            }
        }
        let Some(library) = library else { return false };
        if self.remembered.len() >= MOST_REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.insert(key, library);
        if let Some(watched) = library.and_then(|id| self.watched.get_mut(&id)) {
            watched.is_used_by(mapped.pid);
        }
        true
    }

    /// Looks into a file, and probes it if it is a library that is not watched yet. `None` if it is to be looked at
    /// again, else which library it is, if any.
    fn look(
        &mut self,
        pid: u32,
        mapping: &Mapping<'_>,
        filter: &Filter,
        arrived: &Sender<Arrived>,
    ) -> Option<Option<FileId>> {
        let left_out = self.found.left_out;
        let looked = self.found.mapped(pid, mapping);
        if looked.is_none() {
            if self.found.left_out > left_out {
                let why = "too much was read of other files; it is looked at again later";
                self.found.skipped.add(Skipped::of(mapping.path, why));
            }
            // Anybody can make there be many: one is told of until the next sweep.
            if self.told_full {
                self.found.skipped = Skips::default();
            } else if !self.found.skipped.is_empty() {
                self.told_full = true;
                self.probe_new(Some(pid), arrived);
            }
            return None;
        }
        // Gone already, or another user's: probed all the same.
        let waits = self.waiting.iter().any(|waiting| waiting.pid == pid);
        let held = (filter.hold && !waits && self.found.libraries.iter().any(Library::is_tls))
            .then(|| Held::stop(pid));
        self.probe_new(Some(pid), arrived);
        drop(held);
        looked
    }

    /// Whether the file was written to since it was probed, so that the places of its functions are others: then
    /// its probes are taken off, before a program meets one in the middle of an instruction.
    fn is_rewritten(&mut self, id: FileId, pid: u32, mapping: &Mapping<'_>) -> bool {
        let Some(watched) = self.watched.get(&id) else {
            return false;
        };
        // Under another number it is the same file in another overlayfs.
        let rewritten = discover::mapped_file(pid, mapping)
            .is_some_and(|(now, version)| now == id && version != watched.version);
        if rewritten {
            drop(self.unwatch(id));
        }
        rewritten
    }

    /// Forgets a library; its probes are to be dropped.
    fn unwatch(&mut self, id: FileId) -> Option<Probes> {
        let watched = self.watched.remove(&id)?;
        self.gone.push(watched.number);
        self.found.forget(id);
        self.remembered.retain(|_, library| *library != Some(id));
        Some(watched.into_probes())
    }

    /// Probes what the last look has found.
    fn probe_new(&mut self, pid: Option<u32>, arrived: &Sender<Arrived>) {
        let skipped = std::mem::take(&mut self.found.skipped);
        for one in skipped.named {
            // Nobody listens once the end has come.
            let _ = arrived.send(Arrived {
                library: one.path,
                pid,
                functions: Vec::new(),
                reason: Some(one.reason),
            });
        }
        for library in std::mem::take(&mut self.found.libraries) {
            if library.is_tls() {
                let result = self.probe(&library, pid.as_slice());
                let _ = arrived.send(Arrived::of(&library, &self.attacher, pid, result.err()));
            } else {
                self.probe_below(library, pid, arrived);
            }
        }
    }

    /// Lets go of libraries that no process maps any more.
    fn sweep(&mut self, holds: Option<&Holds>, filter: &Filter, arrived: &Sender<Arrived>) {
        self.found.refresh();
        self.told_full = false;
        // What was no library may have been written to since.
        self.remembered.retain(|_, library| library.is_some());
        for number in self.gone.drain(..) {
            self.names.remove(number);
        }
        let mut probes = self.join_twins();
        let doubtful = watched::without_users(&mut self.watched);
        if !doubtful.is_empty() {
            self.let_go(doubtful, &mut probes, holds, filter, arrived);
        }
        if !probes.is_empty() {
            // The kernel takes its time, in which others may come.
            let _ = std::thread::Builder::new().spawn(move || drop(probes));
        }
    }

    /// Lets go of those of `doubtful` that no process maps; their probes are to be dropped.
    fn let_go(
        &mut self,
        doubtful: HashMap<MappedAs, FileId>,
        probes: &mut Probes,
        holds: Option<&Holds>,
        filter: &Filter,
        arrived: &Sender<Arrived>,
    ) {
        // Whoever comes from here on waits; whoever came before is found.
        if let Some(holds) = holds {
            holds.unsettle();
        }
        // Children, which map nothing themselves, and who was there before.
        let Some(users) = watched::users(&doubtful) else {
            return;
        };
        for id in doubtful.into_values() {
            if let Some(users) = users.get(&id) {
                if let Some(watched) = self.watched.get_mut(&id) {
                    watched.users.extend(users);
                }
            } else if let Some(gone) = self.unwatch(id) {
                probes.add(gone);
                self.part_twins(id, filter, arrived);
            }
        }
    }
}

/// The thread at work. Dropping it stops it and waits until all probes are off.
#[derive(Debug)]
pub struct Following {
    stop: Stop,
    arrived: Receiver<Arrived>,
    pauses: Option<Pauses>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Following {
    /// What has arrived since the last time.
    pub fn arrived(&self) -> impl Iterator<Item = Arrived> + '_ {
        self.arrived.try_iter()
    }

    /// How often it came to it that processes were not held any more, as files were not looked into in time.
    pub fn pauses(&self) -> u64 {
        self.pauses.as_ref().map_or(0, Pauses::times)
    }

    /// Stops, and waits until all probes are off.
    ///
    /// # Errors
    /// Why it stopped before.
    pub fn end(&mut self) -> Result<()> {
        self.stop.stop();
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(anyhow::anyhow!(
                "the thread that follows libraries has failed"
            )),
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // Whoever wanted to know has asked.
        let _ = self.end();
    }
}
