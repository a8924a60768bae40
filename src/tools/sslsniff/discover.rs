// SPDX-License-Identifier: BSD-2-Clause

//! Which files define the functions that are probed: those that processes execute from, and the
//! machine's own TLS libraries, for the processes that are still to come.
//!
//! A file is taken for what is in it, not for its name: a program that carries OpenSSL inside, or a
//! library that was bundled under another name, is found like `libssl.so.3`.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use object::ReadCache;

use super::event::{Skipped, Skips};
pub use super::folders::{library_folders, program_file};
use super::room::{Reading, Watching, stored};
use super::symbols::{self, Offsets};
use crate::failure::Failure;
pub(super) use crate::kernel::maps::open as open_mapping;
use crate::kernel::maps::{self, Mapping, open_file as open};
use crate::kernel::uprobes::Method;

/// A file with functions to probe.
#[derive(Debug)]
pub struct Library {
    /// Its path, as the process that was found to use it sees it.
    pub path: PathBuf,
    /// The file itself, open.
    pub file: File,
    /// Where the functions are.
    pub offsets: Offsets,
    /// The user named it: without its probes there is nothing to do.
    pub required: bool,
    /// Which file it is.
    pub id: FileId,
    /// Which version of the file that is.
    pub version: Version,
    /// How a process maps it, if that is how it was found: it concerns nobody once no process does.
    pub mapped: Option<MappedAs>,
}

/// Device and inode, as stat(2) has them.
pub type FileId = (u64, u64);

/// A time of a file's: seconds and nanoseconds, as stat(2) has them.
pub type Time = (i64, i64);

/// When a file was changed last, by the clock that nobody sets back (ctime), and its size: the time of its content (mtime)
/// is what `touch -r` and `cp -p` say.
pub type Version = (Time, u64);

/// Device and inode, as `/proc/PID/maps` has them: overlayfs and btrfs have others there.
pub type MappedAs = ((u32, u32), u64);

/// Where to look.
#[derive(Debug, Default)]
pub struct Places {
    /// These files and nothing else; each must be a library.
    pub only: Vec<PathBuf>,
    /// What these processes execute from; what all do, if empty.
    pub pids: Vec<u32>,
    /// A program that is about to be started.
    pub program: Option<PathBuf>,
    /// How what is found will be probed: how much there is room for.
    pub method: Option<Method>,
}

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// In the order in which they were found, each file once.
    pub libraries: Vec<Library>,
    /// Distinct files that were looked into.
    pub examined: usize,
    /// Processes whose mappings could not be read, for lack of a capability.
    pub hidden: usize,
    /// Files that were not looked into, as too much was read of those of their owner.
    pub left_out: usize,
    /// Libraries that are not kept, as there were too many.
    pub skipped: Skips,
    /// Files that are no libraries, with the time of their last change: an inode's number is used
    /// again when its file is gone.
    others: HashSet<(FileId, Time)>,
    /// With their owners.
    known: HashMap<FileId, u32>,
    reading: Reading,
    watching: Watching,
}

/// How the names of the machine's own libraries start; the first are watched first.
const LIBRARIES: [&[u8]; 3] = [b"libssl.so", b"libgnutls.so", b"libcrypto.so"];

/// Files that are remembered: that are no libraries, or that were met in one search.
const MOST_REMEMBERED: usize = 1 << 16;

/// Looks for libraries, until `stopped` says so; then what was found is not all.
///
/// # Errors
/// [`Failure::Usage`] if one of the files that were named is no library, and that of `/proc`.
pub fn discover(places: &Places, stopped: &dyn Fn() -> bool) -> Result<Found> {
    let mut found = Found::nothing(places.method.unwrap_or(Method::Multi));
    if !places.only.is_empty() {
        for path in &places.only {
            found.named(path)?;
        }
        return Ok(found);
    }
    // What the machine's owner has put there comes before what anybody executes from.
    if let Some(program) = &places.program {
        found.program(program);
    }
    for folder in library_folders() {
        found.folder(&folder, stopped);
    }
    found.processes(&places.pids, &|_, _| true, stopped)?;
    Ok(found)
}

impl Library {
    /// Whether it is a TLS library, and not what is below one.
    pub fn is_tls(&self) -> bool {
        symbols::is_tls(&self.offsets)
    }
}

impl Found {
    /// Nothing yet, and as much room as `method` has descriptors for.
    fn nothing(method: Method) -> Self {
        Self {
            libraries: Vec::new(),
            examined: 0,
            hidden: 0,
            left_out: 0,
            skipped: Skips::default(),
            others: HashSet::new(),
            known: HashMap::new(),
            reading: Reading::default(),
            watching: Watching::by(method),
        }
    }

    fn named(&mut self, path: &Path) -> Result<()> {
        let no_library = |why: &str| Failure::usage(format!("--lib {}: {why}", path.display()));
        let file = open(path).map_err(|err| no_library(&err.to_string()))?;
        let metadata = file
            .metadata()
            .map_err(|err| no_library(&err.to_string()))?;
        let id = id_of(&metadata);
        if self.known.insert(id, metadata.uid()).is_some() {
            return Ok(());
        }
        let offsets =
            symbols::find(&ReadCache::new(&file)).map_err(|err| no_library(&err.to_string()))?;
        if offsets.is_empty() {
            return Err(no_library(
                "it defines none of SSL_read, SSL_write, gnutls_record_recv, gnutls_record_send",
            )
            .into());
        }
        self.examined += 1;
        self.libraries.push(Library {
            path: path.to_owned(),
            file,
            offsets,
            required: true,
            id,
            version: version(&metadata),
            mapped: None,
        });
        Ok(())
    }

    fn processes(
        &mut self,
        pids: &[u32],
        wanted: &dyn Fn(u32, &Path) -> bool,
        stopped: &dyn Fn() -> bool,
    ) -> Result<()> {
        let pids = if pids.is_empty() {
            all_pids()?
        } else {
            pids.to_vec()
        };
        let mut met = HashSet::new();
        for pid in pids {
            if stopped() {
                break;
            }
            let read = maps::executable(pid, |mapping| {
                if stopped() {
                    return ControlFlow::Break(());
                }
                let key = (mapping.device, mapping.inode);
                if !met.contains(&key) && wanted(pid, mapping.path) {
                    if met.len() >= MOST_REMEMBERED {
                        met.clear();
                    }
                    met.insert(key);
                    self.mapped(pid, mapping);
                }
                ControlFlow::Continue(())
            });
            // Else it has ended.
            if read.is_err_and(|err| err.kind() == io::ErrorKind::PermissionDenied) {
                self.hidden += 1;
            }
        }
        Ok(())
    }

    /// Looks again, through all processes, at what is `wanted` of a process: a path.
    ///
    /// # Errors
    /// That of `/proc`.
    pub fn again(
        &mut self,
        wanted: &dyn Fn(u32, &Path) -> bool,
        stopped: &dyn Fn() -> bool,
    ) -> Result<()> {
        self.processes(&[], wanted, stopped)
    }

    /// Looks at what a process executes from: `None` if it cannot be opened (any more) or there is no
    /// room for it now, so that it is to be looked at again; else whether it is a library, and then which. A new one is added to `libraries`.
    pub fn mapped(&mut self, pid: u32, mapping: &Mapping<'_>) -> Option<Option<FileId>> {
        let file = open_mapping(pid, mapping)?;
        let mapped = Some((mapping.device, mapping.inode));
        self.examine(mapping.path, file, false, mapped)
    }

    /// Reads as much again as at the start.
    pub fn refresh(&mut self) {
        self.reading = Reading::default();
    }

    /// Makes room for another library in place of this one.
    pub fn forget(&mut self, id: FileId) {
        if let Some(owner) = self.known.remove(&id) {
            self.watching.give_back(owner);
        }
    }

    /// A library of the machine, which nobody may be using yet.
    fn folder(&mut self, folder: &Path, stopped: &dyn Fn() -> bool) {
        for start in LIBRARIES {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if !stopped()
                    && name.as_encoded_bytes().starts_with(start)
                    && let Ok(path) = fs::canonicalize(entry.path())
                    && let Ok(file) = open(&path)
                {
                    self.examine(&path, file, false, None);
                }
            }
        }
    }

    fn program(&mut self, program: &Path) {
        if let Ok(file) = open(program) {
            self.examine(program, file, true, None);
        }
    }

    fn examine(
        &mut self,
        path: &Path,
        file: File,
        required: bool,
        mapped: Option<MappedAs>,
    ) -> Option<Option<FileId>> {
        let Some(metadata) = file.metadata().ok().filter(Metadata::is_file) else {
            return Some(None);
        };
        let (id, owner) = (id_of(&metadata), metadata.uid());
        if self.known.contains_key(&id) {
            return Some(Some(id));
        }
        let key = (id, (metadata.ctime(), metadata.ctime_nsec()));
        if self.others.contains(&key) {
            return Some(None);
        }
        self.examined += 1;
        // What is no ELF file, or a damaged one, is not to be probed.
        let offsets = self.reading.look(&file, &metadata, |file| {
            symbols::find_in(&ReadCache::new(file), stored(&metadata)).unwrap_or_default()
        });
        let Some(offsets) = offsets else {
            self.left_out += 1;
            return None;
        };
        if offsets.is_empty() {
            if self.others.len() >= MOST_REMEMBERED {
                self.others.clear();
            }
            self.others.insert(key);
            return Some(None);
        }
        if !self.watching.take(owner) {
            self.skipped
                .add(Skipped::of(path, "too many libraries are watched"));
            return None;
        }
        self.known.insert(id, owner);
        self.libraries.push(Library {
            path: path.to_owned(),
            file,
            offsets,
            required,
            id,
            version: version(&metadata),
            mapped,
        });
        Some(Some(id))
    }
}

/// Which file it is.
fn id_of(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

fn version(metadata: &Metadata) -> Version {
    ((metadata.ctime(), metadata.ctime_nsec()), metadata.size())
}

/// Which file a process maps there, and which version of it; `None` if it cannot be opened.
pub(super) fn mapped_file(pid: u32, mapping: &Mapping<'_>) -> Option<(FileId, Version)> {
    let metadata = open_mapping(pid, mapping)?.metadata().ok()?;
    Some((id_of(&metadata), version(&metadata)))
}

/// All processes.
///
/// # Errors
/// That of `/proc`.
pub(super) fn all_pids() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    let mut pids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// `pids` and all who descend from them, as `/proc` shows it now.
pub fn with_descendants(pids: &[u32]) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = procfs::process::all_processes()
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|process| process.stat().ok())
        .map(|stat| (stat.pid.unsigned_abs(), stat.ppid.unsigned_abs()))
        .collect();
    descendants(pids, &parents)
}

/// The same, given each process's number and its parent's.
fn descendants(pids: &[u32], parents: &[(u32, u32)]) -> Vec<u32> {
    let mut family = pids.to_vec();
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        for (pid, ppid) in parents {
            if *ppid == parent && !family.contains(pid) {
                family.push(*pid);
            }
        }
        next += 1;
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_that_is_no_library_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text");
        fs::write(&text, "no library").unwrap();
        for path in [
            text.as_path(),
            dir.path(),
            Path::new("/no/such/file"),
            Path::new("/proc/self/exe"),
        ] {
            let places = Places {
                only: vec![path.to_owned()],
                ..Places::default()
            };
            let err = discover(&places, &|| false).unwrap_err();
            assert_eq!(crate::failure::exit_code(&err), crate::failure::USAGE);
            assert!(err.to_string().contains(path.to_str().unwrap()), "{err}");
        }
    }

    #[test]
    fn what_is_read_of_files_is_bounded() {
        let path = Path::new("/proc/self/exe");
        let mut found = Found::nothing(Method::Multi);
        found.reading = Reading::of(1000);
        let looked = found.examine(path, open(path).unwrap(), false, None);
        assert_eq!((found.examined, found.left_out), (1, 1));
        // Nobody may take it for no library: it is looked at again once there is room.
        assert_eq!(looked, None);
        found.refresh();
        let looked = found.examine(path, open(path).unwrap(), false, None);
        assert_eq!(looked, Some(None));
    }

    #[test]
    fn only_what_is_wanted_is_looked_into_again() {
        let mut found = Found::nothing(Method::Multi);
        found.again(&|_, _| false, &|| false).unwrap();
        assert_eq!(found.examined, 0);
        let own = fs::read_link("/proc/self/exe").unwrap();
        let is_own = |pid: u32, path: &Path| pid == std::process::id() && path == own;
        found.again(&is_own, &|| false).unwrap();
        assert_eq!(found.examined, 1);
    }

    #[test]
    fn a_stop_ends_the_search() {
        let found = discover(&Places::default(), &|| true).unwrap();
        assert_eq!(found.examined, 0);
    }

    #[test]
    fn a_family_is_found_whatever_its_order() {
        let parents = [(5, 4), (4, 3), (3, 1), (9, 1), (1, 0), (6, 4), (7, 7)];
        assert_eq!(descendants(&[3, 7], &parents), [3, 7, 4, 5, 6]);
        assert!(descendants(&[], &parents).is_empty());
    }
}
