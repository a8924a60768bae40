// SPDX-License-Identifier: BSD-2-Clause

//! Programs by their descriptor: what outlives the object that they were loaded from.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapHandle, libbpf_sys};

/// What the kernel's own test run of a program says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// The program's return value; that of the last run.
    pub code: i32,
    /// Nanoseconds that one run took.
    pub nanos: u32,
    /// The packet as the program leaves it.
    pub packet: Vec<u8>,
}

/// By how much a program may make its packet longer.
const GROWTH: usize = 256;

/// Runs a program on `packet` `repeat` times. The interface that it sees is its network namespace's
/// loopback.
///
/// # Errors
/// What the kernel refuses.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8], repeat: u32) -> io::Result<Ran> {
    let mut out = vec![0; packet.len() + GROWTH];
    let length = |length: usize| u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput);
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: packet.as_ptr().cast(),
        data_size_in: length(packet.len())?,
        data_out: out.as_mut_ptr().cast(),
        data_size_out: length(out.len())?,
        repeat: i32::try_from(repeat).map_err(|_| io::ErrorKind::InvalidInput)?,
        ..Default::default()
    };
    #[allow(unsafe_code)]
    // SAFETY: packet, output and options outlive the call, and their lengths are given.
    let ret = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut opts) };
    if ret < 0 {
        return Err(io::Error::from_raw_os_error(-ret));
    }
    out.truncate(usize::try_from(opts.data_size_out).unwrap_or(usize::MAX));
    Ok(Ran {
        code: opts.retval.cast_signed(),
        nanos: opts.duration,
        packet: out,
    })
}

/// Attaches a program by a link: to a cgroup's directory, or an interface's index as `target`. The
/// program is gone from there with the descriptor, unless the link is pinned.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn link(
    program: BorrowedFd<'_>,
    target: i32,
    attach_type: libbpf_sys::bpf_attach_type,
    opts: Option<&libbpf_sys::bpf_link_create_opts>,
) -> io::Result<OwnedFd> {
    #[allow(unsafe_code)]
    // SAFETY: the options outlive the call; the descriptor that comes back is ours alone.
    unsafe {
        let fd = libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            target,
            attach_type,
            opts.map_or(std::ptr::null(), std::ptr::from_ref),
        );
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The program or link that is pinned at `path`.
///
/// # Errors
/// If there is none.
pub fn open(path: &Path) -> Result<OwnedFd> {
    let at = || format!("cannot open {}", path.display());
    let name = CString::new(path.as_os_str().as_bytes()).with_context(at)?;
    #[allow(unsafe_code)]
    // SAFETY: the path outlives the call; the descriptor that comes back is ours alone.
    unsafe {
        let fd = libbpf_sys::bpf_obj_get(name.as_ptr());
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd)).with_context(at);
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The kernel's number of a program.
///
/// # Errors
/// What the kernel says.
pub fn id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut length = size_of_val(&info) as u32;
    #[allow(unsafe_code)]
    // SAFETY: the kernel writes at most `length` bytes of a C struct of integers.
    let ret = unsafe {
        libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut length)
    };
    if ret < 0 {
        return Err(io::Error::from_raw_os_error(-ret));
    }
    Ok(info.id)
}

/// Has `map` stay as long as `program` does, and be among those that [`maps`] gives of it (kernel 5.10).
///
/// # Errors
/// What the kernel says.
pub fn bind(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: both descriptors outlive the call, and no options are given.
    let ret = unsafe {
        libbpf_sys::bpf_prog_bind_map(program.as_raw_fd(), map.as_raw_fd(), std::ptr::null())
    };
    if ret < 0 {
        return Err(io::Error::from_raw_os_error(-ret));
    }
    Ok(())
}

/// The maps of the program with this number, whosever it is.
///
/// # Errors
/// What the kernel says: to see another's takes CAP_SYS_ADMIN.
pub fn maps(program: u32) -> io::Result<Vec<MapHandle>> {
    #[allow(unsafe_code)]
    // SAFETY: the descriptor that it returns is ours.
    let program = unsafe {
        let fd = libbpf_sys::bpf_prog_get_fd_by_id(program);
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        OwnedFd::from_raw_fd(fd)
    };
    // MAX_USED_MAPS of linux/bpf_verifier.h
    let mut ids = [0_u32; 64];
    let mut info = libbpf_sys::bpf_prog_info {
        nr_map_ids: 64,
        map_ids: ids.as_mut_ptr() as u64,
        ..Default::default()
    };
    let mut length = size_of_val(&info) as u32;
    #[allow(unsafe_code)]
    // SAFETY: the kernel writes at most `length` bytes of a C struct of integers, and as many numbers of
    // maps as there is room for.
    let ret = unsafe {
        libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut length)
    };
    if ret < 0 {
        return Err(io::Error::from_raw_os_error(-ret));
    }
    let count = (info.nr_map_ids as usize).min(ids.len());
    let open = |id: &u32| MapHandle::from_map_id(*id).map_err(io::Error::other);
    ids[..count].iter().map(open).collect()
}
