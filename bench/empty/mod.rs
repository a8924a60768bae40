// SPDX-License-Identifier: BSD-2-Clause

//! The program that does nothing, which all others are compared with: `r0 = 0; exit`.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Result, ensure};
use libbpf_rs::libbpf_sys;

/// Loads it as one of this type.
#[allow(unsafe_code)]
pub fn program(kind: libbpf_sys::bpf_prog_type) -> Result<OwnedFd> {
    let mut exit = [
        libbpf_sys::bpf_insn::default(),
        libbpf_sys::bpf_insn::default(),
    ];
    exit[0].code = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
    exit[1].code = 0x95; // BPF_JMP | BPF_EXIT
    // SAFETY: instructions and strings outlive the call; the descriptor that it returns is ours.
    unsafe {
        let fd = libbpf_sys::bpf_prog_load(
            kind,
            c"ebpfkit_empty".as_ptr(),
            c"GPL".as_ptr(),
            exit.as_ptr(),
            2,
            std::ptr::null_mut(),
        );
        ensure!(
            fd >= 0,
            "cannot load the empty program: {}",
            std::io::Error::from_raw_os_error(-fd)
        );
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Nanoseconds that it takes for this packet, of as many runs.
#[allow(unsafe_code)]
pub fn run(program: &OwnedFd, packet: &[u8], runs: u32) -> Result<u64> {
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: libbpf_sys::size_t::try_from(size_of::<libbpf_sys::bpf_test_run_opts>())?,
        data_in: packet.as_ptr().cast(),
        data_size_in: u32::try_from(packet.len())?,
        repeat: i32::try_from(runs)?,
        ..Default::default()
    };
    // SAFETY: packet and options outlive the call.
    let ret = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut opts) };
    ensure!(
        ret == 0,
        "cannot run the empty program: {}",
        std::io::Error::from_raw_os_error(-ret)
    );
    Ok(opts.duration.into())
}
