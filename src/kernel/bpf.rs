// SPDX-License-Identifier: BSD-2-Clause

//! Loading programs: libbpf's messages where they belong, and errors that say what is missing.

use std::os::fd::AsRawFd as _;

use anyhow::Error;
use libbpf_rs::{ErrorKind, PrintLevel, libbpf_sys, set_print};

use super::privileges::{self, Capabilities, Capability};
use crate::failure::Failure;
use crate::output::{Printable, say};

/// Sends libbpf's messages to standard error: warnings with `-v`, everything with `-vv`, else
/// nothing, as the error that comes back says what matters.
pub fn set_verbosity(verbose: u8) {
    let level = match verbose {
        0 => {
            set_print(None);
            return;
        }
        1 => PrintLevel::Warn,
        2 => PrintLevel::Info,
        _ => PrintLevel::Debug,
    };
    set_print(Some((level, |_, message| {
        for line in message.lines() {
            say(format_args!("{}", Printable(line)));
        }
    })));
}

/// Makes a libbpf error one that the user can act on: where it is a refusal and capabilities of
/// `needed` are missing, they are named and the exit status is that of a blocked tool.
pub fn explain(err: libbpf_rs::Error, what: &str, needed: &[Capability]) -> Error {
    let kind = err.kind();
    explain_kind(
        kind,
        Error::from(err),
        what,
        needed,
        Capabilities::effective(),
    )
}

/// As [`explain`], for an error that has a libbpf error or one of the system in its chain.
pub fn explain_any(err: Error, what: &str, needed: &[Capability]) -> Error {
    let refused = err.chain().any(|cause| {
        cause
            .downcast_ref::<libbpf_rs::Error>()
            .is_some_and(|err| err.kind() == REFUSED)
            || cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|err| err.kind() == std::io::ErrorKind::PermissionDenied)
    });
    let kind = if refused { REFUSED } else { ErrorKind::Other };
    explain_kind(kind, err, what, needed, Capabilities::effective())
}

const REFUSED: ErrorKind = ErrorKind::PermissionDenied;

fn explain_kind(
    kind: ErrorKind,
    err: Error,
    what: &str,
    needed: &[Capability],
    held: Capabilities,
) -> Error {
    let missing = held.missing(needed);
    if kind == REFUSED && !missing.is_empty() {
        let are = if missing.len() == 1 { "is" } else { "are" };
        let missing = privileges::list(&missing);
        return Failure::blocked(
            format!("cannot {what}: {missing} {are} missing"),
            format!(
                "run as root, or give the process {} (setpriv --ambient-caps, \
                 AmbientCapabilities= in a unit)",
                privileges::list(needed)
            ),
        )
        .into();
    }
    // libbpf-rs keeps the error number to itself; EACCES is the verifier's, and no question of memory.
    let not_permitted = format!("{err:#}").ends_with("(os error 1)");
    if not_permitted && memory_is_limited() {
        return Failure::blocked(
            format!("cannot {what}: {err:#}"),
            "a kernel before 5.11 counts maps against RLIMIT_MEMLOCK, so raise it (ulimit -l \
             unlimited, LimitMEMLOCK=infinity in a unit); else a security module or a seccomp \
             filter refuses bpf()",
        )
        .into();
    }
    err.context(format!("cannot {what}"))
}

/// Whether there is a limit to locked memory, that libbpf could not raise.
fn memory_is_limited() -> bool {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft != RLIM_INFINITY)
}

/// Whether this kernel describes its own types, which every program here is relocated by.
pub fn has_btf() -> bool {
    std::path::Path::new("/sys/kernel/btf/vmlinux").exists()
}

/// A program that does nothing, of type BPF_PROG_TYPE_KPROBE and this expected attach type, for
/// probing and for measuring: `r0 = 0; exit`.
///
/// # Errors
/// What the kernel says.
pub fn empty_kprobe(
    attach_type: libbpf_sys::bpf_attach_type,
) -> std::io::Result<std::os::fd::OwnedFd> {
    empty(libbpf_sys::BPF_PROG_TYPE_KPROBE, attach_type)
}

/// The same of another type.
fn empty(
    kind: libbpf_sys::bpf_prog_type,
    attach_type: libbpf_sys::bpf_attach_type,
) -> std::io::Result<std::os::fd::OwnedFd> {
    let mut exit = [
        libbpf_sys::bpf_insn::default(),
        libbpf_sys::bpf_insn::default(),
    ];
    exit[0].code = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
    exit[1].code = 0x95; // BPF_JMP | BPF_EXIT
    let opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: attach_type,
        ..Default::default()
    };
    #[allow(unsafe_code)]
    // SAFETY: the instructions, the strings and the options outlive the call; the descriptor that
    // it returns is ours.
    unsafe {
        let fd = libbpf_sys::bpf_prog_load(
            kind,
            c"ebpfkit_probe".as_ptr(),
            c"GPL".as_ptr(),
            exit.as_ptr(),
            exit.len() as libbpf_sys::size_t,
            (&raw const opts).cast_mut(),
        );
        if fd < 0 {
            return Err(std::io::Error::from_raw_os_error(-fd));
        }
        Ok(std::os::fd::FromRawFd::from_raw_fd(fd))
    }
}

/// Whether this kernel has a tracepoint of this name, found by attaching to it.
pub fn has_tracepoint(name: &std::ffi::CStr) -> bool {
    let Ok(program) = empty(libbpf_sys::BPF_PROG_TYPE_RAW_TRACEPOINT, 0) else {
        return false;
    };
    #[allow(unsafe_code)]
    // SAFETY: the name outlives the call; the descriptor that it returns is ours.
    unsafe {
        let fd = libbpf_sys::bpf_raw_tracepoint_open(name.as_ptr(), program.as_raw_fd());
        if fd >= 0 {
            let link: std::os::fd::OwnedFd = std::os::fd::FromRawFd::from_raw_fd(fd);
            drop(link);
        }
        fd >= 0
    }
}

/// Waits until each program that was running has ended: one at a tracepoint may still be after it was detached.
pub fn wait_for_programs() {
    /// `MEMBARRIER_CMD_GLOBAL` (linux/membarrier.h): a grace period of RCU, in which programs run. A kernel that was
    /// told to leave processors alone (`nohz_full`) has none; programs take microseconds.
    const GLOBAL: libc::c_int = 1;
    #[allow(unsafe_code)]
    // SAFETY: numbers.
    let ret = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if ret != 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Whether this kernel attaches a link of `attach_type` to many user-space addresses at once.
pub(super) fn links_uprobes(attach_type: libbpf_sys::bpf_attach_type) -> bool {
    let Ok(program) = empty_kprobe(attach_type) else {
        return false;
    };
    let mut opts = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let offset: std::os::raw::c_ulong = 0;
    opts.__bindgen_anon_1.uprobe_multi.path = c"/".as_ptr();
    opts.__bindgen_anon_1.uprobe_multi.offsets = &raw const offset;
    opts.__bindgen_anon_1.uprobe_multi.cnt = 1;
    #[allow(unsafe_code)]
    // SAFETY: path and offsets outlive the call; "/" is a folder, so that no link is ever made.
    let fd = unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), -1, attach_type, &raw const opts)
    };
    // The kernel that knows the type gets as far as the path and says that it is no regular file
    // (kernel/trace/bpf_trace.c, bpf_uprobe_multi_link_attach); an older one says EINVAL.
    fd == -libc::EBADF
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::failure;

    #[test]
    fn a_refusal_names_the_capability_that_is_missing() {
        let needed = [Capability::Bpf, Capability::NetAdmin];
        let err = explain_kind(
            ErrorKind::PermissionDenied,
            anyhow!("EPERM"),
            "load the guard",
            &needed,
            Capabilities(1 << 39),
        );
        assert_eq!(failure::exit_code(&err), failure::BLOCKED);
        assert!(
            failure::message(&err).contains("CAP_NET_ADMIN is missing"),
            "{err:#}"
        );
    }

    #[test]
    fn another_error_stays_what_it_is() {
        let err = explain_kind(
            ErrorKind::InvalidInput,
            anyhow!("EINVAL"),
            "load the guard",
            &[Capability::Bpf],
            Capabilities(0),
        );
        assert_eq!(failure::exit_code(&err), failure::FAILED);
        assert_eq!(format!("{err:#}"), "cannot load the guard: EINVAL");
    }
}
