// SPDX-License-Identifier: BSD-2-Clause

//! Programs at functions of files, for as long as a value lives.
//!
//! A probe is the file's, not a process's: it covers whoever maps the file, now or later. Files are
//! given by descriptor, so that what was looked at is what is probed, whatever becomes of its path.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::thread;

use anyhow::{Context as _, Result};
use libbpf_rs::{AsRawLibbpf as _, OpenProgramMut, libbpf_sys};

use super::features::Features;
use super::mmap_events;

/// How probes are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A link without a perf event, by which one program runs at entries and, unless it has said there that it has
    /// seen enough, at returns (kernel 6.13); needs as the next.
    Session,
    /// A link without a perf event (kernel 6.6); needs `CAP_BPF` and `CAP_PERFMON`. The programs must
    /// have been loaded for it.
    Multi,
    /// A perf event for each probe, with a cookie (kernel 5.15); needs as the next.
    Linked,
    /// A perf event for each probe; needs `CAP_SYS_ADMIN` since the fix of CVE-2025-38466.
    Classic,
}

impl Method {
    /// The best that the kernel has.
    pub fn of(features: &Features) -> Self {
        if features.uprobe_session {
            Self::Session
        } else if features.uprobe_multi {
            Self::Multi
        } else if features.uprobe_cookie {
            Self::Linked
        } else {
            Self::Classic
        }
    }

    /// The name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "uprobe.session",
            Self::Multi => "uprobe.multi",
            Self::Linked | Self::Classic => "uprobe",
        }
    }

    /// Whether one program serves entries and returns.
    pub fn is_session(self) -> bool {
        self == Self::Session
    }

    /// The type of links, and of the programs for them; `None` where each probe is a perf event.
    fn link(self) -> Option<libbpf_sys::bpf_attach_type> {
        match self {
            Self::Session => Some(libbpf_sys::BPF_TRACE_UPROBE_SESSION),
            Self::Multi => Some(libbpf_sys::BPF_TRACE_UPROBE_MULTI),
            Self::Linked | Self::Classic => None,
        }
    }

    /// Whether programs are told the cookie of the probe.
    pub fn has_cookie(self) -> bool {
        self != Self::Classic
    }
}

/// Whose calls are probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everybody's.
    All,
    /// Those of this process.
    Myself,
}

/// The place of a probe in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the file's start to the function's first instruction.
    pub offset: u64,
    /// What `bpf_get_attach_cookie()` returns; not with [`Method::Classic`].
    pub cookie: u64,
}

/// Makes `program`, before it is loaded, one that `method` attaches.
pub fn prepare(program: &mut OpenProgramMut<'_>, method: Method) {
    if let Some(link) = method.link() {
        #[allow(unsafe_code)]
        // SAFETY: the program is there, and is not loaded. It fails only for one that is.
        unsafe {
            libbpf_sys::bpf_program__set_expected_attach_type(
                program.as_libbpf_object().as_ptr(),
                link,
            )
        };
    }
}

/// Attaches `program`, a kprobe program, to `places` in `file`, at entries or at returns: one link for
/// all of them ([`Method::Multi`]; [`Method::Session`], where `at_return` is to be false), or one for each.
///
/// # Errors
/// What the kernel says, with the place, by its index; zero if it is not known. If it refuses (EPERM,
/// EACCES), a capability is missing.
pub fn attach(
    program: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    places: &[Place],
    at_return: bool,
    method: Method,
    scope: Scope,
) -> Result<Vec<OwnedFd>, (io::Error, usize)> {
    // Any thread may attach: what is opened is open in all of them.
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    match method.link() {
        Some(kind) => {
            let pid = match scope {
                Scope::All => 0,
                Scope::Myself => std::process::id(),
            };
            let link = multi(program, &path, places, at_return, pid, kind);
            Ok(vec![link.map_err(|err| (err, 0))?])
        }
        None => {
            let pid = match scope {
                Scope::All => -1,
                Scope::Myself => 0,
            };
            let one = |(index, place): (usize, &Place)| {
                classic(&path, place.offset, at_return, pid)
                    .and_then(|event| match method {
                        Method::Classic => {
                            mmap_events::set_program(&event, program).map(|()| event)
                        }
                        _ => linked(program, &event, place.cookie),
                    })
                    .map_err(|err| (err, index))
            };
            places.iter().enumerate().map(one).collect()
        }
    }
}

/// `BPF_F_UPROBE_MULTI_RETURN` (linux/bpf.h)
const AT_RETURN: u32 = 1;

/// One link for all places. A `pid` of 0 is everybody.
fn multi(
    program: BorrowedFd<'_>,
    path: &CString,
    places: &[Place],
    at_return: bool,
    pid: u32,
    kind: libbpf_sys::bpf_attach_type,
) -> io::Result<OwnedFd> {
    let offsets: Vec<std::os::raw::c_ulong> = places.iter().map(|place| place.offset).collect();
    let cookies: Vec<u64> = places.iter().map(|place| place.cookie).collect();
    let mut opts = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    opts.__bindgen_anon_1.uprobe_multi.path = path.as_ptr();
    opts.__bindgen_anon_1.uprobe_multi.offsets = offsets.as_ptr();
    opts.__bindgen_anon_1.uprobe_multi.cookies = cookies.as_ptr();
    opts.__bindgen_anon_1.uprobe_multi.cnt = u32::try_from(places.len()).unwrap_or(u32::MAX);
    opts.__bindgen_anon_1.uprobe_multi.flags = if at_return { AT_RETURN } else { 0 };
    opts.__bindgen_anon_1.uprobe_multi.pid = pid;
    #[allow(unsafe_code)]
    // SAFETY: path, offsets and cookies outlive the call; the descriptor that it returns is ours.
    unsafe {
        let fd = libbpf_sys::bpf_link_create(program.as_raw_fd(), 0, kind, &raw const opts);
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A perf event of the kernel's "uprobe" kind; to perf_event_open(2), a `pid` of -1 is everybody, and
/// 0 the caller itself.
fn classic(path: &CString, offset: u64, at_return: bool, pid: i32) -> io::Result<OwnedFd> {
    let kind = number_of("type")?;
    // format/retprobe: "config:0"
    let mut attr = libbpf_sys::perf_event_attr {
        type_: u32::try_from(kind).unwrap_or(u32::MAX),
        size: u32::try_from(size_of::<libbpf_sys::perf_event_attr>()).unwrap_or(u32::MAX),
        config: u64::from(at_return),
        ..Default::default()
    };
    attr.__bindgen_anon_3.uprobe_path = path.as_ptr() as u64;
    attr.__bindgen_anon_4.probe_offset = offset;
    let processor = if pid < 0 { 0 } else { -1 };
    mmap_events::perf_event_open(&attr, pid, processor)
}

/// The program at `event`, which lives as long as what this returns.
fn linked(program: BorrowedFd<'_>, event: &OwnedFd, cookie: u64) -> io::Result<OwnedFd> {
    let mut opts = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    opts.__bindgen_anon_1.perf_event.bpf_cookie = cookie;
    #[allow(unsafe_code)]
    // SAFETY: the options outlive the call; the descriptor that it returns is ours.
    unsafe {
        let fd = libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            event.as_raw_fd(),
            libbpf_sys::BPF_PERF_EVENT,
            &raw const opts,
        );
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A number that the kernel tells about its "uprobe" perf events.
fn number_of(name: &str) -> io::Result<u64> {
    std::fs::read_to_string(format!("/sys/bus/event_source/devices/uprobe/{name}"))?
        .trim()
        .parse()
        .map_err(io::Error::other)
}

/// Probes of one file or of many; dropping them takes them off, returns before entries: a call that
/// returns after its entry was not seen would look like one that was lost.
#[derive(Debug, Default)]
pub struct Probes {
    returns: Vec<OwnedFd>,
    entries: Vec<OwnedFd>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        together(std::mem::take(&mut self.returns));
        together(std::mem::take(&mut self.entries));
    }
}

/// How many threads wait at a time.
const DROPPERS: usize = 64;

/// Drops `links`, many at the same time: the kernel waits some tens of milliseconds for each, until no
/// processor is in the probe any more.
fn together(links: Vec<OwnedFd>) {
    let mut shares: Vec<Vec<OwnedFd>> = Vec::new();
    shares.resize_with(DROPPERS.min(links.len()), Vec::new);
    let count = shares.len().max(1);
    for (index, link) in links.into_iter().enumerate() {
        shares[index % count].push(link);
    }
    thread::scope(|scope| {
        for share in shares {
            // If no thread can be made, they are dropped right here.
            let _ = thread::Builder::new().spawn_scoped(scope, move || drop(share));
        }
    });
}

impl Probes {
    /// Keeps `links`, attached at functions' entries or returns.
    pub fn keep(&mut self, links: Vec<OwnedFd>, at_return: bool) {
        if at_return {
            self.returns.extend(links);
        } else {
            self.entries.extend(links);
        }
    }

    /// Keeps those of `other` too.
    pub fn add(&mut self, mut other: Self) {
        self.returns.append(&mut other.returns);
        self.entries.append(&mut other.entries);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.returns.len() + self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// This process's own executable, to try probes on.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn own_executable() -> Result<std::fs::File> {
    std::fs::File::open("/proc/self/exe").context("cannot open /proc/self/exe")
}
