// SPDX-License-Identifier: BSD-2-Clause

//! Which files define the functions that are probed: those that processes execute from, and the
//! machine's own TLS libraries, for the processes that are still to come.
//!
//! A file is taken for what is in it, not for its name: a program that carries OpenSSL inside, or a
//! library that was bundled under another name, is found like `libssl.so.3`.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use object::ReadCache;

use super::descriptors;
use super::event::Skipped;
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
    /// How a process maps it, if that is how it was found: it concerns nobody once no process does.
    pub mapped: Option<MappedAs>,
}

/// Device and inode, as stat(2) has them.
pub type FileId = (u64, u64);

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
#[derive(Debug, Default)]
pub struct Found {
    /// In the order in which they were found, each file once.
    pub libraries: Vec<Library>,
    /// Distinct files that were looked into.
    pub examined: usize,
    /// Processes whose mappings could not be read, for lack of a capability.
    pub hidden: usize,
    /// Files that were not looked into, as they were too large in all.
    pub left_out: usize,
    /// Libraries that are not kept, as there were too many.
    pub skipped: Vec<Skipped>,
    /// Files that are no libraries, with the time of their last change: an inode's number is used
    /// again when its file is gone.
    others: HashSet<(FileId, i64, i64)>,
    known: HashSet<FileId>,
    room: Room,
}

/// Bytes of files that are read in all, so that nobody makes the start take forever: an executable's
/// tables are some 100 KiB.
const MOST_READ: u64 = 512 << 20;

/// A file system may keep files up to this outside of blocks.
const SMALL_FILE: u64 = 64 << 10;

/// How the names of the machine's own libraries start; the first are watched first.
const LIBRARIES: [&[u8]; 3] = [b"libssl.so", b"libgnutls.so", b"libcrypto.so"];

/// Files that are remembered not to be libraries.
const MOST_OTHERS: usize = 1 << 16;

/// How much more may be found.
#[derive(Debug)]
struct Room {
    bytes: Cell<u64>,
    libraries: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            bytes: Cell::new(MOST_READ),
            libraries: descriptors::most_libraries(Method::Multi),
        }
    }
}

/// A file that is read as long as there is room.
struct Bounded<'a> {
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

/// Looks for libraries, until `stopped` says so; then what was found is not all.
///
/// # Errors
/// [`Failure::Usage`] if one of the files that were named is no library, and that of `/proc`.
pub fn discover(places: &Places, stopped: &dyn Fn() -> bool) -> Result<Found> {
    let mut found = Found::default();
    if let Some(method) = places.method {
        found.room.libraries = descriptors::most_libraries(method);
    }
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
    found.processes(&places.pids, stopped)?;
    Ok(found)
}

impl Library {
    /// Whether it is a TLS library, and not what is below one.
    pub fn is_tls(&self) -> bool {
        symbols::is_tls(&self.offsets)
    }
}

impl Found {
    fn named(&mut self, path: &Path) -> Result<()> {
        let no_library = |why: &str| Failure::usage(format!("--lib {}: {why}", path.display()));
        let file = open(path).map_err(|err| no_library(&err.to_string()))?;
        let Some((id, ..)) = regular(&file) else {
            return Err(no_library("this is no regular file").into());
        };
        if !self.known.insert(id) {
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
            mapped: None,
        });
        Ok(())
    }

    fn processes(&mut self, pids: &[u32], stopped: &dyn Fn() -> bool) -> Result<()> {
        let pids = if pids.is_empty() {
            all_pids()?
        } else {
            pids.to_vec()
        };
        let mut mapped = HashSet::new();
        for pid in pids {
            if stopped() {
                break;
            }
            let maps = match fs::read(format!("/proc/{pid}/maps")) {
                Ok(maps) => maps,
                Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
                    self.hidden += 1;
                    continue;
                }
                // It has ended.
                Err(_) => continue,
            };
            for mapping in maps::executable(&maps) {
                if stopped() {
                    break;
                }
                if mapped.insert((mapping.device, mapping.inode)) {
                    self.mapped(pid, &mapping);
                }
            }
        }
        Ok(())
    }

    /// Looks again, through all processes.
    ///
    /// # Errors
    /// That of `/proc`.
    pub fn again(&mut self, stopped: &dyn Fn() -> bool) -> Result<()> {
        self.processes(&[], stopped)
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
        self.room.bytes.set(MOST_READ);
    }

    /// Makes room for another library in place of this one.
    pub fn forget(&mut self, id: FileId) {
        self.known.remove(&id);
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
        let Some(key) = regular(&file) else {
            return Some(None);
        };
        let id = key.0;
        if self.known.contains(&id) {
            return Some(Some(id));
        }
        if self.others.contains(&key) {
            return Some(None);
        }
        self.examined += 1;
        let exceeded = Cell::new(false);
        let bounded = Bounded {
            file: &file,
            room: &self.room.bytes,
            exceeded: &exceeded,
        };
        // In units of 512 bytes, whatever the block is; a file system may keep a small file elsewhere.
        let stored = file.metadata().map_or(0, |data| data.blocks());
        let stored = stored.saturating_mul(512).max(SMALL_FILE);
        // What is no ELF file, or a damaged one, is not to be probed.
        let offsets = symbols::find_in(&ReadCache::new(bounded), stored).unwrap_or_default();
        self.left_out += usize::from(exceeded.get());
        if offsets.is_empty() {
            if exceeded.get() {
                return None;
            }
            if self.others.len() >= MOST_OTHERS {
                self.others.clear();
            }
            self.others.insert(key);
            return Some(None);
        }
        if self.known.len() >= self.room.libraries {
            self.skipped
                .push(Skipped::of(path, "too many libraries are watched"));
            return None;
        }
        self.known.insert(id);
        self.libraries.push(Library {
            path: path.to_owned(),
            file,
            offsets,
            required,
            id,
            mapped,
        });
        Some(Some(id))
    }
}

/// Which regular file it is, and the seconds and nanoseconds of its last change.
fn regular(file: &File) -> Option<(FileId, i64, i64)> {
    let metadata = file.metadata().ok()?;
    let id = (metadata.dev(), metadata.ino());
    metadata
        .is_file()
        .then(|| (id, metadata.ctime(), metadata.ctime_nsec()))
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

/// Where the dynamic linker looks: its built-in folders on the distributions, and those of
/// `/etc/ld.so.conf` (ld.so(8), ldconfig(8)).
pub fn library_folders() -> Vec<PathBuf> {
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    let mut folders = Vec::new();
    for root in ["/lib", "/usr/lib", "/usr/local/lib"] {
        folders.push(PathBuf::from(root));
        folders.push(Path::new(root).join(&triplet));
        folders.push(PathBuf::from(format!("{root}64")));
    }
    linker_conf(Path::new("/etc/ld.so.conf"), &mut folders, 0);
    let mut seen = HashSet::new();
    folders.retain(|folder| fs::canonicalize(folder).is_ok_and(|real| seen.insert(real)));
    folders
}

/// How deep files that include files are followed.
const DEEPEST_INCLUDE: usize = 4;

fn linker_conf(path: &Path, folders: &mut Vec<PathBuf>, depth: usize) {
    let Ok(text) = fs::read_to_string(path) else {
        return;
    };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(pattern) = line.strip_prefix("include ") {
            if depth < DEEPEST_INCLUDE {
                for included in glob(Path::new(pattern.trim())) {
                    linker_conf(&included, folders, depth + 1);
                }
            }
        } else if line.starts_with('/') {
            folders.push(PathBuf::from(line));
        }
    }
}

/// The files that `pattern` means, which may have one `*` in its last part.
fn glob(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let Some((start, end)) = name.split_once('*') else {
        return vec![pattern.to_owned()];
    };
    let folder = pattern.parent().unwrap_or(Path::new("/"));
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            name.len() >= start.len() + end.len()
                && name.starts_with(start.as_bytes())
                && name.ends_with(end.as_bytes())
        })
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

/// The file that runs if `program` is started: itself if it names a folder, else the first
/// executable file of that name in `path`, the value of PATH.
pub fn program_file(program: &Path, path: &std::ffi::OsStr) -> Option<PathBuf> {
    let is_program = |file: &Path| {
        fs::metadata(file).is_ok_and(|data| data.is_file() && data.mode() & 0o111 != 0)
    };
    if program.components().count() > 1 || program.is_absolute() {
        return is_program(program).then(|| program.to_owned());
    }
    std::env::split_paths(path)
        .map(|folder| folder.join(program))
        .find(|file| is_program(file))
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
        let mut found = Found::default();
        found.room.bytes.set(1000);
        let looked = found.examine(path, open(path).unwrap(), false, None);
        assert_eq!((found.examined, found.left_out), (1, 1));
        assert!(found.room.bytes.get() < 1000);
        // Nobody may take it for no library: it is looked at again once there is room.
        assert_eq!(looked, None);
        found.refresh();
        let looked = found.examine(path, open(path).unwrap(), false, None);
        assert_eq!(looked, Some(None));
    }

    #[test]
    fn a_stop_ends_the_search() {
        let found = discover(&Places::default(), &|| true).unwrap();
        assert_eq!(found.examined, 0);
    }

    #[test]
    fn linker_configuration_is_followed_and_never_forever() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("ld.so.conf");
        let more = dir.path().join("more.conf");
        fs::write(
            &conf,
            format!(
                "# text\ninclude {}/*.conf\n/a/lib # x\n",
                dir.path().display()
            ),
        )
        .unwrap();
        fs::write(&more, "/b/lib\nrelative\n").unwrap();
        let mut folders = Vec::new();
        linker_conf(&more, &mut folders, 0);
        assert_eq!(folders, [Path::new("/b/lib")]);
        linker_conf(&conf, &mut folders, 0);
        assert!(folders.contains(&PathBuf::from("/a/lib")));
    }

    #[test]
    fn a_family_is_found_whatever_its_order() {
        let parents = [(5, 4), (4, 3), (3, 1), (9, 1), (1, 0), (6, 4), (7, 7)];
        assert_eq!(descendants(&[3, 7], &parents), [3, 7, 4, 5, 6]);
        assert!(descendants(&[], &parents).is_empty());
    }

    #[test]
    fn a_program_is_looked_for_as_a_shell_does() {
        let path = std::ffi::OsStr::new("/no/such:/usr/bin:/bin");
        let cat = program_file(Path::new("cat"), path).unwrap();
        assert!(cat.ends_with("cat") && cat.is_absolute());
        assert_eq!(program_file(Path::new("no-such-program"), path), None);
        assert_eq!(program_file(Path::new("/etc/passwd"), path), None);
        assert_eq!(program_file(&cat, path), Some(cat.clone()));
    }
}
