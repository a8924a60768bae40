// SPDX-License-Identifier: BSD-2-Clause

//! The libraries that are watched: those that were found at the start, and those that processes map
//! later. These are probed as soon as the kernel tells of them, by a thread that does nothing else,
//! so that a program has yet to make its connection. A library that no process uses any more is let
//! go, so that the file system that it is on can be too.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::descriptors;
use super::discover::{FileId, Found, Library, MappedAs};
use super::event::{Arrived, Skipped};
use super::probes::Attacher;
use super::symbols::Function;
use crate::kernel::hold::{self, Held};
use crate::kernel::maps::{self, Mapping};
use crate::kernel::mmap_events::{Mapped, MmapEvents};
use crate::kernel::privileges::{Capabilities, Capability};
use crate::kernel::stop::Stop;
use crate::kernel::uprobes::{Probes, Scope};

/// How often libraries that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(10);
/// Mappings whose file is remembered.
const MOST_REMEMBERED: usize = 1 << 16;

/// The paths of the libraries and what is in them, by their number in records. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<Mutex<HashMap<u32, Name>>>);

#[derive(Debug)]
struct Name {
    path: Arc<str>,
    functions: Vec<Function>,
}

impl Names {
    /// The path of library `number`, in which `function` was called. Zero is unknown, unless only one
    /// library has that function.
    pub fn get(&self, number: u32, function: Function) -> Option<Arc<str>> {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if number > 0 {
            return names.get(&number).map(|name| Arc::clone(&name.path));
        }
        let mut having = names
            .values()
            .filter(|name| name.functions.contains(&function));
        match (having.next(), having.next()) {
            (Some(only), None) => Some(Arc::clone(&only.path)),
            _ => None,
        }
    }

    /// Gives `number` a path.
    pub fn set(&self, number: u32, path: &str, functions: Vec<Function>) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let path = path.into();
        names.insert(number, Name { path, functions });
    }

    fn remove(&self, number: u32) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.remove(&number);
    }
}

/// A library with its probes.
#[derive(Debug)]
struct Watched {
    number: u32,
    probes: Probes,
    /// They are on their way.
    later: Option<JoinHandle<Probes>>,
    /// Processes that were seen to map it, if a process is why it is watched; there may be others.
    users: HashSet<u32>,
    mapped: Option<MappedAs>,
}

impl Watched {
    /// All probes, once they are there.
    fn into_probes(self) -> Probes {
        let mut probes = self.probes;
        if let Some(Ok(later)) = self.later.map(JoinHandle::join) {
            probes.add(later);
        }
        probes
    }
}

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
    /// Mappings that were looked at: which library they are of, if of any.
    remembered: HashMap<(MappedAs, u64, u64, PathBuf), Option<FileId>>,
    names: Names,
    last: u32,
    /// Numbers that records may still have.
    gone: Vec<u32>,
    /// Since the last sweep, a file was told of that there was no room for.
    told_full: bool,
}

impl Arrivals {
    /// Nothing yet.
    pub fn new(attacher: Attacher, found: Found, names: Names) -> Self {
        Self {
            attacher: Arc::new(attacher),
            found,
            watched: HashMap::new(),
            remembered: HashMap::new(),
            names,
            last: 0,
            gone: Vec::new(),
            told_full: false,
        }
    }

    /// Probes what was found; says what is probed, and what is not.
    ///
    /// # Errors
    /// What the kernel refuses, with the capability that is missing: of a library that is required,
    /// or of all.
    pub fn start(&mut self) -> Result<(Vec<String>, Vec<Skipped>)> {
        let spare = descriptors::spare();
        let mut probed = Vec::new();
        let mut skipped = std::mem::take(&mut self.found.skipped);
        let mut first = None;
        let mut full = false;
        for library in std::mem::take(&mut self.found.libraries) {
            if full && !library.required {
                skipped.push(Skipped::of(&library.path, "no descriptor is left"));
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
                    skipped.push(Skipped::of(&library.path, &why));
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
        let watched = Watched {
            number,
            probes,
            later: None,
            users: users.iter().copied().collect(),
            mapped: library.mapped,
        };
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

    /// Probes what is below a TLS library in a thread of its own: the TLS library itself may be mapped
    /// in this moment, and its probes come first.
    fn probe_below(&mut self, library: Library, pid: Option<u32>, arrived: &Sender<Arrived>) {
        let number = self.name(&library);
        let (id, mapped) = (library.id, library.mapped);
        let (attacher, arrived) = (Arc::clone(&self.attacher), arrived.clone());
        let later = std::thread::Builder::new().spawn(move || {
            let result = attacher.attach(&library, number, Scope::All);
            let (probes, failed) = match result {
                Ok(probes) => (probes, None),
                Err(failed) => (Probes::default(), Some(failed)),
            };
            // Nobody listens once the end has come.
            let _ = arrived.send(Arrived::of(&library, &attacher, pid, failed));
            probes
        });
        let watched = Watched {
            number,
            probes: Probes::default(),
            later: later.ok(),
            users: pid.into_iter().collect(),
            mapped,
        };
        self.watched.insert(id, watched);
    }

    /// Watches on in a thread of its own, until `stop` says so; then takes all probes off.
    ///
    /// # Errors
    /// If no thread can be made.
    pub fn follow(
        mut self,
        mut events: Option<MmapEvents>,
        filter: Filter,
        stop: &Stop,
    ) -> Result<Following> {
        let (sender, arrived) = channel();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("libraries".to_owned())
            .spawn(move || {
                hold::hurry();
                let result = self.work(events.as_mut(), &filter, &stopped, &sender);
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
            thread: Some(thread),
        })
    }

    fn work(
        &mut self,
        mut events: Option<&mut MmapEvents>,
        filter: &Filter,
        stop: &Stop,
        arrived: &Sender<Arrived>,
    ) -> Result<()> {
        let mut swept = Instant::now();
        let mut batch = Vec::new();
        loop {
            let woken = match &events {
                Some(events) => stop.wait(&events.fds(), Some(SWEEP)),
                None => stop.wait(&[], Some(SWEEP)),
            }?;
            if woken.stopped {
                return Ok(());
            }
            let mut lost = 0;
            if let Some(events) = &mut events {
                lost = events.drain(|mapped| batch.push(mapped));
            }
            for mapped in batch.drain(..) {
                self.mapped(mapped, filter, arrived);
            }
            if lost > 0 {
                self.found.again(&|| {
                    stop.wait(&[], Some(Duration::ZERO))
                        .is_ok_and(|woken| woken.stopped)
                })?;
                self.probe_new(None, arrived);
            }
            if swept.elapsed() >= SWEEP {
                self.sweep();
                swept = Instant::now();
            }
        }
    }

    fn mapped(&mut self, mapped: Mapped, filter: &Filter, arrived: &Sender<Arrived>) {
        let (inode, generation) = mapped.inode;
        let id = (mapped.device, inode);
        let key = (id, generation, mapped.offset, mapped.path);
        let library = match self.remembered.get(&key) {
            Some(library) => *library,
            None => {
                let path = &key.3;
                // Not a file, as [vdso] and //anon.
                if inode == 0
                    || (!filter.only.is_empty() && !filter.only.contains(path))
                    || !(filter.process)(mapped.pid)
                {
                    return;
                }
                let mapping = Mapping {
                    range: mapped.range,
                    // Of no interest here.
                    offset: 0,
                    device: mapped.device,
                    inode,
                    path,
                };
                let left_out = self.found.left_out;
                let Some(library) = self.found.mapped(mapped.pid, &mapping) else {
                    if self.found.left_out > left_out {
                        let why = "too much was read of other files; it is looked at again later";
                        self.found.skipped.push(Skipped::of(path, why));
                    }
                    // Anybody can make there be many: one is told of until the next sweep.
                    if self.told_full {
                        self.found.skipped.clear();
                    } else if !self.found.skipped.is_empty() {
                        self.told_full = true;
                        self.probe_new(Some(mapped.pid), arrived);
                    }
                    return;
                };
                // Gone already, or another user's: probed all the same.
                let held = (filter.hold && self.found.libraries.iter().any(Library::is_tls))
                    .then(|| Held::stop(mapped.pid));
                self.probe_new(Some(mapped.pid), arrived);
                drop(held);
                if self.remembered.len() >= MOST_REMEMBERED {
                    self.remembered.clear();
                }
                self.remembered.insert(key, library);
                library
            }
        };
        if let Some(watched) = library.and_then(|id| self.watched.get_mut(&id)) {
            watched.users.insert(mapped.pid);
        }
    }

    /// Probes what the last look has found.
    fn probe_new(&mut self, pid: Option<u32>, arrived: &Sender<Arrived>) {
        let skipped = std::mem::take(&mut self.found.skipped);
        for one in skipped {
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
    fn sweep(&mut self) {
        self.found.refresh();
        self.told_full = false;
        for number in self.gone.drain(..) {
            self.names.remove(number);
        }
        let mut doubtful: HashMap<MappedAs, FileId> = HashMap::new();
        for (id, watched) in &mut self.watched {
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
        if doubtful.is_empty() {
            return;
        }
        // Children, which map nothing themselves, and who was there before.
        let Some(users) = users(&doubtful) else {
            return;
        };
        let mut probes = Probes::default();
        for id in doubtful.into_values() {
            if let Some(users) = users.get(&id) {
                if let Some(watched) = self.watched.get_mut(&id) {
                    watched.users.extend(users);
                }
            } else if let Some(watched) = self.watched.remove(&id) {
                self.gone.push(watched.number);
                probes.add(watched.into_probes());
                self.found.forget(id);
                self.remembered.retain(|_, library| *library != Some(id));
            }
        }
        if !probes.is_empty() {
            // The kernel takes its time, in which others may come.
            let _ = std::thread::Builder::new().spawn(move || drop(probes));
        }
    }
}

/// Who maps which of these files; `None` if that cannot be known.
fn users(files: &HashMap<MappedAs, FileId>) -> Option<HashMap<FileId, Vec<u32>>> {
    let mut users: HashMap<FileId, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        match fs::read(format!("/proc/{pid}/maps")) {
            Ok(maps) => {
                for mapping in maps::executable(&maps) {
                    if let Some(id) = files.get(&(mapping.device, mapping.inode)) {
                        users.entry(*id).or_default().push(pid);
                    }
                }
            }
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

/// The thread at work. Dropping it stops it and waits until all probes are off.
#[derive(Debug)]
pub struct Following {
    stop: Stop,
    arrived: Receiver<Arrived>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Following {
    /// What has arrived since the last time.
    pub fn arrived(&self) -> impl Iterator<Item = Arrived> + '_ {
        self.arrived.try_iter()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_without_a_number_is_known_by_what_it_alone_has() {
        let names = Names::default();
        names.set(1, "/a", vec![Function::Read, Function::Write]);
        names.set(2, "/b", vec![Function::GnutlsRecv]);
        assert_eq!(names.get(2, Function::Read).as_deref(), Some("/b"));
        assert_eq!(names.get(0, Function::Read).as_deref(), Some("/a"));
        assert_eq!(names.get(0, Function::GnutlsRecv).as_deref(), Some("/b"));
        assert_eq!(names.get(0, Function::Free), None);
        names.set(3, "/c", vec![Function::Read]);
        assert_eq!(names.get(0, Function::Read), None);
        assert_eq!(names.get(4, Function::Read), None);
    }
}
