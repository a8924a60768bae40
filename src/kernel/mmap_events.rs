// SPDX-License-Identifier: BSD-2-Clause

//! Which files processes begin to execute from, told by the kernel as it happens: the records that
//! `perf record` has the same from (`PERF_RECORD_MMAP2`, perf_event_open(2)), of every process.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::libbpf_sys::{self, perf_event_attr, perf_event_mmap_page};
use memmap2::{MmapOptions, MmapRaw};

/// A process has mapped a file to execute from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mapped {
    /// The process, in this process's PID namespace; zero if it has none there.
    pub pid: u32,
    /// First address and the address after the last.
    pub range: (u64, u64),
    /// Where in the file the mapping starts, in bytes.
    pub offset: u64,
    /// The device's numbers, as in `/proc/PID/maps`.
    pub device: (u32, u32),
    /// The inode's number and its generation: numbers are used again after a file is gone.
    pub inode: (u64, u64),
    /// The path in the process's own root.
    pub path: PathBuf,
}

/// Pages of records for each processor; a power of two. An exec takes some 2 KiB.
const PAGES: usize = 16;

/// `PERF_COUNT_SW_DUMMY`: an event that never happens, to have the records of (linux/perf_event.h).
const DUMMY: u64 = 9;

/// The records of all processors.
#[derive(Debug)]
pub struct MmapEvents {
    processors: Vec<Processor>,
}

#[derive(Debug)]
struct Processor {
    fd: OwnedFd,
    ring: MmapRaw,
    page: usize,
    taken: Vec<u8>,
}

impl MmapEvents {
    /// Listens to every processor that is online.
    ///
    /// # Errors
    /// `EACCES` without `CAP_PERFMON`, unless `kernel.perf_event_paranoid` is below 1. Distributions
    /// that know a paranoia of 3 want `CAP_SYS_ADMIN` there.
    pub fn open() -> io::Result<Self> {
        let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
        let processors = numbers(online.trim())
            .ok_or_else(|| io::Error::other("cannot tell which processors are online"))?
            .into_iter()
            .map(Processor::open)
            .collect::<io::Result<_>>()?;
        Ok(Self { processors })
    }

    /// They become readable when there are records.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.processors.iter().map(|one| one.fd.as_fd()).collect()
    }

    /// Gives the records that are there to `callback`; says how many were lost.
    pub fn drain(&mut self, mut callback: impl FnMut(Mapped)) -> u64 {
        self.processors
            .iter_mut()
            .map(|one| {
                one.take();
                parse(&one.taken, &mut callback)
            })
            .sum()
    }
}

impl Processor {
    fn open(number: i32) -> io::Result<Self> {
        let mut attr = perf_event_attr {
            type_: libbpf_sys::PERF_TYPE_SOFTWARE,
            size: u32::try_from(size_of::<perf_event_attr>()).unwrap_or(u32::MAX),
            config: DUMMY,
            ..Default::default()
        };
        // Woken by the first byte.
        attr.set_watermark(1);
        attr.__bindgen_anon_2.wakeup_watermark = 1;
        attr.set_exclude_kernel(1);
        attr.set_mmap(1);
        attr.set_mmap2(1);
        let fd = perf_event_open(&attr, -1, number)?;
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(4096);
        let ring = MmapOptions::new().len((PAGES + 1) * page).map_raw(&fd)?;
        Ok(Self {
            fd,
            ring,
            page,
            taken: Vec::new(),
        })
    }

    /// Copies what is there, and makes room.
    fn take(&mut self) {
        self.taken.clear();
        let size = PAGES * self.page;
        let start = self.ring.as_mut_ptr();
        #[allow(unsafe_code, clippy::cast_ptr_alignment)]
        // SAFETY: the mapping starts with a perf_event_mmap_page, whose head and tail the kernel and
        // we change while it is mapped: as atomics. Page-aligned.
        let (head, tail) = unsafe {
            let control = start.cast::<perf_event_mmap_page>();
            (
                AtomicU64::from_ptr(&raw mut (*control).data_head),
                AtomicU64::from_ptr(&raw mut (*control).data_tail),
            )
        };
        let end = head.load(Ordering::Acquire);
        let begin = tail.load(Ordering::Relaxed);
        let there = usize::try_from(end.wrapping_sub(begin))
            .unwrap_or(size)
            .min(size);
        #[allow(clippy::cast_possible_truncation)]
        let at = (begin % size as u64) as usize;
        let first = there.min(size - at);
        #[allow(unsafe_code)]
        // SAFETY: both are within the data pages behind the first, and the kernel writes nothing
        // between tail and head.
        unsafe {
            let data = start.add(self.page);
            self.taken
                .extend_from_slice(std::slice::from_raw_parts(data.add(at), first));
            self.taken
                .extend_from_slice(std::slice::from_raw_parts(data, there - first));
        }
        tail.store(end, Ordering::Release);
    }
}

/// perf_event_open(2), for a process or a processor.
///
/// # Errors
/// Those of the system call.
pub(super) fn perf_event_open(
    attr: &perf_event_attr,
    pid: i32,
    processor: i32,
) -> io::Result<OwnedFd> {
    #[allow(unsafe_code)]
    // SAFETY: the attributes outlive the call, and say their own size; the descriptor is ours.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(attr),
            pid,
            processor,
            -1,
            libbpf_sys::PERF_FLAG_FD_CLOEXEC,
        );
        let fd = i32::try_from(fd).unwrap_or(-1);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Hands a program to a perf event.
pub(super) fn set_program(event: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    // _IOW('$', 8, __u32) and _IO('$', 0): linux/perf_event.h
    const SET_BPF: libc::Ioctl = 0x4004_2408;
    const ENABLE: libc::Ioctl = 0x2400;
    for (request, value) in [(SET_BPF, program.as_raw_fd()), (ENABLE, 0)] {
        #[allow(unsafe_code)]
        // SAFETY: both take a number.
        let ret = unsafe { libc::ioctl(event.as_raw_fd(), request, value) };
        if ret < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// `PERF_RECORD_LOST`, `PERF_RECORD_MMAP2`
const LOST: u32 = 2;
const MMAP2: u32 = 10;

/// Reads records; says how many were lost. Layout: `enum perf_event_type` in linux/perf_event.h.
fn parse(mut bytes: &[u8], callback: &mut impl FnMut(Mapped)) -> u64 {
    let mut lost = 0;
    while let Some(kind) = word(bytes, 0) {
        let Some(size) = bytes.get(6..8) else { break };
        let size = usize::from(u16::from_ne_bytes([size[0], size[1]]));
        let Some(record) = bytes.get(..size).filter(|record| record.len() >= 8) else {
            break;
        };
        match kind {
            LOST => lost += long(record, 16).unwrap_or(1),
            MMAP2 => {
                if let Some(mapped) = mapped(record) {
                    callback(mapped);
                }
            }
            _ => {}
        }
        bytes = &bytes[size..];
    }
    lost
}

fn mapped(record: &[u8]) -> Option<Mapped> {
    let start = long(record, 16)?;
    let path = record.get(72..)?;
    let end = path.iter().position(|byte| *byte == 0)?;
    Some(Mapped {
        pid: word(record, 8)?,
        range: (start, start.checked_add(long(record, 24)?)?),
        offset: long(record, 32)?,
        device: (word(record, 40)?, word(record, 44)?),
        inode: (long(record, 48)?, long(record, 56)?),
        path: PathBuf::from(OsString::from_vec(path[..end].to_vec())),
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// `0-3,5` in numbers, as `/sys/devices/system/cpu/online` has them.
fn numbers(list: &str) -> Option<Vec<i32>> {
    let mut all = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse::<i32>().ok()?..=last.parse().ok()?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record as the kernel lays it out.
    fn record(path: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        for number in [12_u32, 13] {
            body.extend(number.to_ne_bytes());
        }
        for number in [0x1000_u64, 0x2000, 0x3000] {
            body.extend(number.to_ne_bytes());
        }
        for number in [8_u32, 1] {
            body.extend(number.to_ne_bytes());
        }
        for number in [77_u64, 5] {
            body.extend(number.to_ne_bytes());
        }
        for number in [5_u32, 2] {
            body.extend(number.to_ne_bytes());
        }
        body.extend(path);
        body.push(0);
        body.resize(body.len().next_multiple_of(8), 0);
        framed(MMAP2, &body)
    }

    fn framed(kind: u32, body: &[u8]) -> Vec<u8> {
        let size = u16::try_from(body.len() + 8).unwrap();
        let header = [&kind.to_ne_bytes()[..], &[2, 0], &size.to_ne_bytes()].concat();
        [&header, body].concat()
    }

    #[test]
    fn records_are_read_one_after_the_other_and_losses_added() {
        let mut bytes = record(b"/usr/lib/a b");
        bytes.extend(framed(3, &[0; 24]));
        bytes.extend(framed(LOST, &[[0; 8], 7_u64.to_ne_bytes()].concat()));
        bytes.extend(record(b"/x\xff"));
        let mut found = Vec::new();
        assert_eq!(parse(&bytes, &mut |mapped| found.push(mapped)), 7);
        assert_eq!(found.len(), 2);
        let wanted = Mapped {
            pid: 12,
            range: (0x1000, 0x3000),
            offset: 0x3000,
            device: (8, 1),
            inode: (77, 5),
            path: PathBuf::from("/usr/lib/a b"),
        };
        assert_eq!(found[0], wanted);
    }

    #[test]
    fn processors_are_listed_in_ranges() {
        assert_eq!(numbers("0"), Some(vec![0]));
        assert_eq!(numbers("0-2,5,7-8"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(numbers(""), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse(&bytes, &mut drop);
            let mut bytes = bytes;
            bytes.splice(0..0, record(b"/x"));
            let mut found = 0;
            parse(&bytes, &mut |_| found += 1);
            prop_assert!(found >= 1);
        }
    }
}
