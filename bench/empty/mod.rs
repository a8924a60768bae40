// SPDX-License-Identifier: BSD-2-Clause

//! The program that does nothing, which all others are compared with: `r0 = 0; exit`; and how they are timed.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Instant;

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

/// Runs it on this packet.
#[allow(unsafe_code)]
pub fn run(program: &OwnedFd, packet: &[u8], runs: u32) -> Result<()> {
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
    Ok(())
}

/// Something that is timed: it does the same so many times.
pub type Timed<'a> = Box<dyn FnMut(u32) -> Result<()> + 'a>;

/// Nanoseconds that one time of each takes, with fractions: the kernel itself gives whole ones, which is one in ten of
/// what the empty program takes.
///
/// Each is the shortest of many short rounds, in which all have their turn, spread over seconds. Where another
/// machine works on the other half of a processor core, what has many instructions takes half as long again, and
/// what has few does not: a round counts in which it did not.
pub fn shortest(all: &mut [Timed<'_>], rounds: u32, runs: u32) -> Result<Vec<f64>> {
    let mut nanos = vec![f64::MAX; all.len()];
    for _ in 0..rounds {
        for (nanos, timed) in nanos.iter_mut().zip(&mut *all) {
            let begun = Instant::now();
            timed(runs)?;
            *nanos = nanos.min(begun.elapsed().as_secs_f64() * 1e9 / f64::from(runs));
        }
    }
    Ok(nanos)
}
