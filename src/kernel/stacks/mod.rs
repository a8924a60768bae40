// SPDX-License-Identifier: BSD-2-Clause

//! From instruction pointers in a process to names of functions.
//!
//! What is read belongs to the process's user: its list of mappings, the files in it, the map that a
//! just-in-time compiler wrote. All of it is bounded, names are cut, and what makes no sense is a frame
//! without a name.

mod copy;
mod names;
mod perf_map;
mod record;

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};
use serde::{Serialize, Serializer};

use self::copy::Copy;
use self::perf_map::PerfMap;
pub use self::record::{MOST_FRAMES, STACK_BYTES, parse};
use super::maps::{self, Mapping};

/// How long a list of mappings is taken for true.
const FRESH: Duration = Duration::from_secs(1);
/// Processes that are remembered, and frames, and files; beyond, all is forgotten and read anew.
const MOST_PROCESSES: usize = 1024;
const MOST_FRAMES_KEPT: usize = 1 << 16;
const MOST_FILES: usize = 512;
/// Bytes of symbols that are kept in memory.
const MOST_SYMBOLS: u64 = 192 << 20;
/// Mappings of a process that are kept.
const MOST_MAPPINGS: usize = 1 << 14;

/// A function that a thread is in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// Of the instruction that runs next in it: of a caller the one behind the call.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "hexadecimal"
    )]
    pub address: Option<u64>,
    /// Its name, of 256 bytes at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<Arc<str>>,
    /// Bytes from its start to the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The file that it is in, as the process sees it, or what the kernel calls the memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<Arc<str>>,
    /// Bytes from the file's start to the address, where the name is not known.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "hexadecimal"
    )]
    pub file_offset: Option<u64>,
}

#[allow(clippy::ref_option)] // serde's way to call it
fn hexadecimal<S: Serializer>(number: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{:#x}", number.unwrap_or_default()))
}

/// `send_all+0x1f (/usr/bin/prog)`; not fit for a terminal as it is.
impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.function, self.offset, self.file_offset, self.address) {
            (Some(function), Some(offset), ..) => write!(f, "{function}+{offset:#x}")?,
            (Some(function), ..) => write!(f, "{function}")?,
            (None, _, Some(offset), _) => write!(f, "+{offset:#x}")?,
            (None, _, _, Some(address)) => write!(f, "{address:#x}")?,
            _ => write!(f, "?")?,
        }
        match &self.file {
            Some(file) => write!(f, " ({file})"),
            None => Ok(()),
        }
    }
}

/// What is known of a stack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stack {
    /// The innermost first.
    pub frames: Vec<Frame>,
    /// Why it ends early, or has no names.
    pub reason: Option<&'static str>,
}

/// Reasons of [`Stack`].
const GONE: &str =
    "the process's mappings could not be read: it has ended, or may not be looked into";
const UNREADABLE: &str = "the stack could not be read";
const BROKEN: &str = "code without frame pointers";
const LONGER: &str = "only the innermost frames are recorded";

/// A mapping that is kept.
#[derive(Debug)]
struct Region {
    range: (u64, u64),
    offset: u64,
    device: (u32, u32),
    inode: u64,
    path: Arc<str>,
    /// What the mapping's file is called in [`Stacks::files`], once it was opened.
    file: Option<Option<FileId>>,
}

/// Device, inode, and the time of the last change.
type FileId = (u64, u64, i64, i64);

#[derive(Debug, Default)]
struct Process {
    /// In the order of addresses.
    regions: Vec<Region>,
    /// When they were read.
    read: Option<Instant>,
    frames: HashMap<u64, Frame>,
    perf_map: Option<PerfMap>,
}

/// Names the functions in stacks, and remembers them.
pub struct Stacks {
    symbolizer: Symbolizer,
    processes: HashMap<u32, Process>,
    /// Of files that make no sense `None`.
    files: HashMap<FileId, Option<Copy>>,
    frames: usize,
    symbols: u64,
}

impl fmt::Debug for Stacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stacks")
            .field("processes", &self.processes.len())
            .field("files", &self.files.len())
            .finish_non_exhaustive()
    }
}

impl Default for Stacks {
    fn default() -> Self {
        // Names are taken apart in `names`, where they are bounded.
        let builder = Symbolizer::builder()
            .enable_auto_reload(false)
            .enable_code_info(false)
            .enable_inlined_fns(false)
            .enable_demangling(false);
        Self {
            symbolizer: builder.build(),
            processes: HashMap::new(),
            files: HashMap::new(),
            frames: 0,
            symbols: 0,
        }
    }
}

impl Stacks {
    /// Reads the mappings of a process that is new, or may be another program by now, while it lives:
    /// its stacks have names then also if it ends before they are read.
    pub fn meet(&mut self, pid: u32) {
        let now = Instant::now();
        if self.processes.len() >= MOST_PROCESSES && !self.processes.contains_key(&pid) {
            *self = Self::default();
        }
        let process = self.processes.entry(pid).or_default();
        if let Ok(text) = fs::read(format!("/proc/{pid}/maps"))
            && process.update(&text)
        {
            self.frames -= process.frames.len().min(self.frames);
            process.frames.clear();
            process.perf_map = None;
        }
        process.read = Some(now);
    }

    /// Names the functions at `addresses`, the instruction pointers of a thread of process `pid`: the
    /// innermost first, each but it a return address.
    pub fn name(&mut self, pid: u32, addresses: &[u64]) -> Stack {
        if addresses.is_empty() {
            return Stack {
                frames: Vec::new(),
                reason: Some(UNREADABLE),
            };
        }
        if self.frames >= MOST_FRAMES_KEPT || self.files.len() >= MOST_FILES {
            *self = Self::default();
        }
        let stale = |process: &Process| {
            process.read.is_none_or(|read| read.elapsed() > FRESH)
                || (process.find(addresses[0]).is_none() && !process.regions.is_empty())
        };
        if self.processes.get(&pid).is_none_or(stale) {
            self.meet(pid);
        }
        let mut stack = Stack::default();
        if addresses.len() >= MOST_FRAMES {
            stack.reason = Some(LONGER);
        }
        for address in addresses {
            let frame = self.frame(pid, *address);
            let mapped = frame.file.is_some();
            let known = self
                .processes
                .get(&pid)
                .is_some_and(|process| !process.regions.is_empty());
            if known && !mapped {
                // No code: what was taken for a frame pointer was none.
                stack.reason = Some(BROKEN);
                break;
            }
            if !known {
                stack.reason = Some(GONE);
            }
            stack.frames.push(frame);
        }
        stack
    }

    fn frame(&mut self, pid: u32, address: u64) -> Frame {
        let unknown = Frame {
            address: Some(address),
            ..Frame::default()
        };
        let Some(process) = self.processes.get_mut(&pid) else {
            return unknown;
        };
        if let Some(frame) = process.frames.get(&address) {
            return frame.clone();
        }
        // A call may be a function's last instruction; what is behind it is another function's.
        let within = address.saturating_sub(1);
        let Some(index) = process.find(within) else {
            return unknown;
        };
        let mut frame = Frame {
            file: Some(Arc::clone(&process.regions[index].path)),
            ..unknown
        };
        let found = if process.regions[index].inode == 0 {
            process.jitted(pid, within)
        } else {
            let region = &mut process.regions[index];
            let offset = within - region.range.0 + region.offset;
            frame.file_offset = Some(offset + (address - within));
            let id = match region.file {
                Some(id) => id,
                None => {
                    let room = MOST_SYMBOLS.saturating_sub(self.symbols);
                    let id = open(pid, region, &mut self.files, room, &mut self.symbols);
                    *region.file.insert(id)
                }
            };
            id.and_then(|id| self.files.get(&id)?.as_ref())
                .and_then(|copy| symbol(&self.symbolizer, copy, offset))
        };
        if let Some((name, offset)) = found {
            frame.function = Some(name.into());
            frame.offset = Some(offset + (address - within));
            frame.file_offset = None;
        }
        process.frames.insert(address, frame.clone());
        self.frames += 1;
        frame
    }
}

impl Process {
    /// Takes the mappings of `text`; says whether they are others than before.
    fn update(&mut self, text: &[u8]) -> bool {
        let mappings = || maps::regions(text).take(MOST_MAPPINGS);
        let same = |(region, mapping): (&Region, Mapping<'_>)| {
            (region.range, region.offset, region.device, region.inode)
                == (mapping.range, mapping.offset, mapping.device, mapping.inode)
        };
        if mappings().count() == self.regions.len() && self.regions.iter().zip(mappings()).all(same)
        {
            return false;
        }
        self.regions = mappings()
            .map(|mapping| Region {
                range: mapping.range,
                offset: mapping.offset,
                device: mapping.device,
                inode: mapping.inode,
                path: match mapping.path.to_string_lossy() {
                    nothing if nothing.is_empty() => "[anon]".into(),
                    path => path.into(),
                },
                file: None,
            })
            .collect();
        true
    }

    fn find(&self, address: u64) -> Option<usize> {
        let after = self
            .regions
            .partition_point(|region| region.range.0 <= address);
        let index = after.checked_sub(1)?;
        (address < self.regions[index].range.1).then_some(index)
    }

    /// A function that the process itself has made.
    fn jitted(&mut self, pid: u32, address: u64) -> Option<(String, u64)> {
        let map = match &self.perf_map {
            Some(map) if map.find(address).is_some() => map,
            // It may have grown since.
            _ => self.perf_map.insert(PerfMap::of(pid)?),
        };
        let (name, offset) = map.find(address)?;
        Some((name.to_owned(), offset))
    }
}

/// Takes the symbols of the file that is mapped there.
fn open(
    pid: u32,
    region: &Region,
    files: &mut HashMap<FileId, Option<Copy>>,
    room: u64,
    symbols: &mut u64,
) -> Option<FileId> {
    let mapping = Mapping {
        range: region.range,
        offset: region.offset,
        device: region.device,
        inode: region.inode,
        path: region.path.as_ref().as_ref(),
    };
    let file = maps::open(pid, &mapping).or_else(|| by_path(&mapping))?;
    let metadata = file.metadata().ok()?;
    let id = (
        metadata.dev(),
        metadata.ino(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    );
    files.entry(id).or_insert_with(|| {
        let copy = Copy::of(&file, room).ok()?;
        *symbols += copy.bytes;
        Some(copy)
    });
    Some(id)
}

/// Opens the file of a process that has ended: what has its path here, if it is the same. Where overlayfs or
/// btrfs show one device in `maps` and another to stat(2) that is not known.
fn by_path(mapping: &Mapping<'_>) -> Option<File> {
    let device = libc::makedev(mapping.device.0, mapping.device.1);
    let same = |metadata: &Metadata| {
        metadata.is_file() && (metadata.dev(), metadata.ino()) == (device, mapping.inode)
    };
    let metadata = fs::metadata(mapping.path).ok()?;
    let file = same(&metadata)
        .then(|| maps::open_file(mapping.path))?
        .ok()?;
    file.metadata()
        .is_ok_and(|found| same(&found))
        .then_some(file)
}

/// The function at `offset` of a file, and how far into it that is.
fn symbol(symbolizer: &Symbolizer, copy: &Copy, offset: u64) -> Option<(String, u64)> {
    let source = Source::Elf(Elf {
        debug_syms: false,
        ..Elf::new(copy.path())
    });
    // It reads what anybody wrote: a table that makes it panic is one without names.
    let found = catch_unwind(AssertUnwindSafe(|| {
        match symbolizer.symbolize_single(&source, Input::FileOffset(offset)) {
            Ok(Symbolized::Sym(symbol)) => {
                Some((names::readable(&symbol.name), symbol.offset as u64))
            }
            _ => None,
        }
    }));
    found.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_this_process_have_names_and_others_end_the_stack() {
        let mut stacks = Stacks::default();
        let here =
            frames_of_this_process_have_names_and_others_end_the_stack as fn() as usize as u64;
        let stack = stacks.name(std::process::id(), &[here + 4, here + 5, 0x10, here + 6]);
        assert_eq!(stack.frames.len(), 2);
        assert_eq!(stack.reason, Some(BROKEN));
        for (frame, offset) in stack.frames.iter().zip([4, 5]) {
            let function = frame.function.as_deref().unwrap();
            assert!(
                function.ends_with("frames_of_this_process_have_names_and_others_end_the_stack"),
                "{function}"
            );
            assert_eq!(frame.offset, Some(offset));
            let exe = std::env::current_exe().unwrap();
            assert_eq!(frame.file.as_deref(), exe.to_str());
        }
    }

    #[test]
    fn a_process_that_was_met_keeps_its_names_when_it_has_ended() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let pid = child.id();
        let mut stacks = Stacks::default();
        // Until it is `sleep` and its libraries are there.
        let myself = std::process::id();
        stacks.meet(myself);
        let here = libc::getpid as *const () as u64;
        let mine = &stacks.processes[&myself];
        let mine = &mine.regions[mine.find(here).unwrap()];
        let (inode, within) = (mine.inode, here - mine.range.0);
        let main = loop {
            stacks.meet(pid);
            let regions = &stacks.processes[&pid].regions;
            if let Some(libc) = regions.iter().find(|region| region.inode == inode) {
                break libc.range.0 + within + 2;
            }
        };
        let before = Stacks::default().name(pid, &[main]);
        let function = before.frames[0].function.as_deref().unwrap();
        assert!(function.ends_with("getpid"), "{function}");
        child.kill().unwrap();
        child.wait().unwrap();
        stacks.processes.get_mut(&pid).unwrap().read = None;
        assert_eq!(stacks.name(pid, &[main]), before);
        let never_met = Stacks::default().name(pid, &[main]);
        assert_eq!(never_met.reason, Some(GONE));
        assert_eq!(never_met.frames[0].address, Some(main));
    }

    #[test]
    fn an_empty_stack_says_why() {
        let stack = Stacks::default().name(1, &[]);
        assert_eq!(stack.reason, Some(UNREADABLE));
    }

    #[test]
    fn frames_are_written_as_far_as_they_are_known() {
        let mut frame = Frame {
            address: Some(0x1234),
            ..Frame::default()
        };
        assert_eq!(frame.to_string(), "0x1234");
        frame.file = Some("/bin/a".into());
        frame.file_offset = Some(0x34);
        assert_eq!(frame.to_string(), "+0x34 (/bin/a)");
        (frame.function, frame.offset, frame.file_offset) = (Some("f".into()), Some(1), None);
        assert_eq!(frame.to_string(), "f+0x1 (/bin/a)");
        let json = serde_json::to_value(&frame).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"address": "0x1234", "function": "f", "offset": 1, "file": "/bin/a"})
        );
    }
}
