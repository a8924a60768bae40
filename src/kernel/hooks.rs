// SPDX-License-Identifier: BSD-2-Clause

//! What is attached at a TC hook, whoever attached it, in the order in which it runs.

use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use libbpf_rs::libbpf_sys;

use super::netlink;
use super::tc::Side;

/// Something at a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// How it is attached.
    pub how: How,
    /// The id of the BPF program, where it is one.
    pub program: Option<u32>,
    /// The program's or the filter's name, where it can be seen: another's needs CAP_SYS_ADMIN.
    pub name: Option<String>,
}

/// How something is attached at a TC hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// By TCX (kernel 6.6), which runs ahead of all filters.
    Tcx,
    /// As a filter of this kind and priority at a clsact qdisc.
    Filter {
        /// `bpf`, `u32`, `flower`, …
        kind: String,
        /// 1 runs first.
        priority: u32,
        /// Its number within the priority.
        handle: u32,
    },
}

/// What is at `side` of the interface `index`, first to last.
///
/// # Errors
/// What the kernel says.
pub fn at(index: i32, side: Side) -> Result<Vec<Attached>> {
    let mut found: Vec<_> = tcx(index, side)?
        .into_iter()
        .map(|id| Attached {
            how: How::Tcx,
            program: Some(id),
            name: program_name(id),
        })
        .collect();
    found.extend(netlink::filters(index, side)?.into_iter().map(|filter| {
        Attached {
            how: How::Filter {
                kind: filter.kind,
                priority: filter.priority,
                handle: filter.handle,
            },
            program: filter.program,
            name: filter
                .name
                .or_else(|| filter.program.and_then(program_name)),
        }
    }));
    Ok(found)
}

/// Removes a filter from `side` of the interface `index`; the qdisc stays, as others may use it. What
/// has gone already is no error.
///
/// # Errors
/// What the kernel says.
pub fn remove_filter(index: i32, side: Side, priority: u32, handle: u32) -> Result<()> {
    let hook = libbpf_sys::bpf_tc_hook {
        sz: size_of::<libbpf_sys::bpf_tc_hook>() as libbpf_sys::size_t,
        ifindex: index,
        attach_point: match side {
            Side::Egress => libbpf_sys::BPF_TC_EGRESS,
            Side::Ingress => libbpf_sys::BPF_TC_INGRESS,
        },
        ..Default::default()
    };
    let opts = libbpf_sys::bpf_tc_opts {
        sz: size_of::<libbpf_sys::bpf_tc_opts>() as libbpf_sys::size_t,
        handle,
        priority,
        ..Default::default()
    };
    #[allow(unsafe_code)]
    // SAFETY: both structs outlive the call.
    let ret = unsafe { libbpf_sys::bpf_tc_detach(&raw const hook, &raw const opts) };
    match -ret {
        0 | libc::ENOENT | libc::ENODEV | libc::EINVAL => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno))
            .with_context(|| format!("cannot remove a filter from interface {index}")),
    }
}

/// Program ids at a TCX hook, in the order in which they run; none on a kernel that has no TCX.
fn tcx(index: i32, side: Side) -> Result<Vec<u32>> {
    let hook = match side {
        Side::Egress => libbpf_sys::BPF_TCX_EGRESS,
        Side::Ingress => libbpf_sys::BPF_TCX_INGRESS,
    };
    // The kernel allows 64 (BPF_MPROG_MAX of linux/bpf_mprog.h).
    let mut ids = [0_u32; 64];
    let mut opts = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as libbpf_sys::size_t,
        prog_ids: ids.as_mut_ptr(),
        ..Default::default()
    };
    opts.__bindgen_anon_1.count = 64;
    #[allow(unsafe_code)]
    // SAFETY: the kernel writes at most `count` ids, for which there is room.
    let (ret, count) = unsafe {
        let ret = libbpf_sys::bpf_prog_query_opts(index, hook, &raw mut opts);
        (ret, opts.__bindgen_anon_1.count)
    };
    match -ret {
        0 => Ok(ids[..usize::try_from(count)?.min(ids.len())].to_vec()),
        // A kernel before 6.6; or an interface that has gone, or that nothing is attached to.
        libc::EINVAL | libc::ENODEV | libc::ENOENT => Ok(Vec::new()),
        errno => Err(io::Error::from_raw_os_error(errno))
            .with_context(|| format!("cannot ask what is attached to interface {index}")),
    }
}

/// The name of the program with this id, if it can be seen.
fn program_name(id: u32) -> Option<String> {
    #[allow(unsafe_code)]
    // SAFETY: the descriptor that it returns is ours.
    let fd = unsafe {
        let fd = libbpf_sys::bpf_prog_get_fd_by_id(id);
        if fd < 0 {
            return None;
        }
        OwnedFd::from_raw_fd(fd)
    };
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut length = u32::try_from(size_of_val(&info)).ok()?;
    #[allow(unsafe_code)]
    // SAFETY: the kernel writes at most `length` bytes of a C struct of integers.
    let ret = unsafe {
        use std::os::fd::AsRawFd as _;
        libbpf_sys::bpf_prog_get_info_by_fd(fd.as_fd().as_raw_fd(), &raw mut info, &raw mut length)
    };
    if ret < 0 {
        return None;
    }
    // C's char has a sign on x86-64, and none on arm64.
    let bytes: Vec<u8> = info.name.iter().map(|c| c.to_ne_bytes()[0]).collect();
    crate::process::comm(&bytes)
}
