// SPDX-License-Identifier: BSD-2-Clause

//! Programs at functions of files, for as long as a value lives.
//!
//! A probe is the file's, not a process's: it covers whoever maps the file, now or later. Files are
//! given by descriptor, so that what was looked at is what is probed, whatever becomes of its path.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::{self, NonNull};
use std::thread;

use anyhow::{Context as _, Result};
use libbpf_rs::{AsRawLibbpf as _, Link, OpenProgramMut, Program, libbpf_sys};

use super::features::Features;

/// How probes are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A link without a perf event (kernel 6.6); needs `CAP_BPF` and `CAP_PERFMON`. The programs must
    /// have been loaded for it.
    Multi,
    /// A perf event for each probe; needs `CAP_SYS_ADMIN` since the fix of CVE-2025-38466.
    Classic,
}

impl Method {
    /// The best that the kernel has.
    pub fn of(features: &Features) -> Self {
        if features.uprobe_multi {
            Self::Multi
        } else {
            Self::Classic
        }
    }

    /// The name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Multi => "uprobe.multi",
            Self::Classic => "uprobe",
        }
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
    /// At the function's return instead of at its entry.
    pub at_return: bool,
    /// What `bpf_get_attach_cookie()` returns; only [`Method::Multi`] has it.
    pub cookie: u64,
}

/// Makes `program`, before it is loaded, one that `method` attaches.
pub fn prepare(program: &mut OpenProgramMut<'_>, method: Method) {
    if method == Method::Multi {
        #[allow(unsafe_code)]
        // SAFETY: the program is there, and is not loaded. It fails only for one that is.
        unsafe {
            libbpf_sys::bpf_program__set_expected_attach_type(
                program.as_libbpf_object().as_ptr(),
                libbpf_sys::BPF_TRACE_UPROBE_MULTI,
            )
        };
    }
}

/// Attaches `program`, a kprobe program, to `place` in `file`.
///
/// # Errors
/// What the kernel says. If it refuses (EPERM, EACCES), a capability is missing.
pub fn attach(
    program: &Program<'_>,
    file: BorrowedFd<'_>,
    place: Place,
    method: Method,
    scope: Scope,
) -> io::Result<Link> {
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    match method {
        Method::Multi => {
            let pid = match scope {
                Scope::All => -1,
                Scope::Myself => std::process::id().cast_signed(),
            };
            multi(program, &path, place, pid)
        }
        Method::Classic => {
            // To perf_event_open(2), 0 is the caller itself.
            let pid = match scope {
                Scope::All => -1,
                Scope::Myself => 0,
            };
            classic(program, &path, place, pid)
        }
    }
}

fn multi(program: &Program<'_>, path: &CString, place: Place, pid: i32) -> io::Result<Link> {
    let offset: std::os::raw::c_ulong = place.offset;
    let opts = libbpf_sys::bpf_uprobe_multi_opts {
        sz: size_of::<libbpf_sys::bpf_uprobe_multi_opts>() as libbpf_sys::size_t,
        offsets: &raw const offset,
        cookies: &raw const place.cookie,
        cnt: 1,
        retprobe: place.at_return,
        ..Default::default()
    };
    #[allow(unsafe_code)]
    // SAFETY: the program is loaded, and path and options outlive the call.
    let link = unsafe {
        libbpf_sys::bpf_program__attach_uprobe_multi(
            program.as_libbpf_object().as_ptr(),
            pid,
            path.as_ptr(),
            ptr::null(),
            &raw const opts,
        )
    };
    own(link)
}

fn classic(program: &Program<'_>, path: &CString, place: Place, pid: i32) -> io::Result<Link> {
    let opts = libbpf_sys::bpf_uprobe_opts {
        sz: size_of::<libbpf_sys::bpf_uprobe_opts>() as libbpf_sys::size_t,
        retprobe: place.at_return,
        ..Default::default()
    };
    #[allow(unsafe_code)]
    // SAFETY: the program is loaded, and path and options outlive the call.
    let link = unsafe {
        libbpf_sys::bpf_program__attach_uprobe_opts(
            program.as_libbpf_object().as_ptr(),
            pid,
            path.as_ptr(),
            place.offset,
            &raw const opts,
        )
    };
    own(link)
}

/// Makes libbpf's answer a link, or the error that it left in errno.
fn own(link: *mut libbpf_sys::bpf_link) -> io::Result<Link> {
    let Some(link) = NonNull::new(link) else {
        return Err(io::Error::last_os_error());
    };
    #[allow(unsafe_code)]
    // SAFETY: libbpf made the link for us, and nobody else has it.
    let link = unsafe { Link::from_ptr(link) };
    Ok(link)
}

/// Probes of one file or of many; dropping them takes them off, returns before entries: a call that
/// returns after its entry was not seen would look like one that was lost.
#[derive(Debug, Default)]
pub struct Probes {
    returns: Vec<Link>,
    entries: Vec<Link>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        together(std::mem::take(&mut self.returns));
        together(std::mem::take(&mut self.entries));
    }
}

/// Drops `links` at the same time: the kernel waits some tens of milliseconds for each, until no
/// processor is in the probe any more.
fn together(links: Vec<Link>) {
    thread::scope(|scope| {
        for link in links {
            // If no thread can be made, the link is dropped right here.
            let _ = thread::Builder::new().spawn_scoped(scope, move || drop(link));
        }
    });
}

impl Probes {
    /// Keeps `link`, attached at a function's entry or return.
    pub fn keep(&mut self, link: Link, at_return: bool) {
        if at_return {
            self.returns.push(link);
        } else {
            self.entries.push(link);
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
