// SPDX-License-Identifier: BSD-2-Clause

//! Classifiers of a test's own, written instruction by instruction, at interfaces of its namespaces.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use ebpfkit::kernel::interfaces;
use ebpfkit::kernel::tc::{Attachment, Method, Side};
use ebpfkit::tools::tc_guard::Guard;
use libbpf_rs::libbpf_sys;

use super::Netns;

/// `struct bpf_insn`: code, registers (source in the upper half), offset, number.
pub fn instruction(code: u8, registers: u8, offset: u16, number: i32) -> u64 {
    u64::from(code)
        | u64::from(registers) << 8
        | u64::from(offset) << 16
        | u64::from(number.cast_unsigned()) << 32
}

fn load(name: &CStr, program: &[u64], side: Side) -> OwnedFd {
    let opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: match (Guard::method(), side) {
            (Method::Clsact, _) => 0,
            (Method::Tcx, Side::Egress) => libbpf_sys::BPF_TCX_EGRESS,
            (Method::Tcx, Side::Ingress) => libbpf_sys::BPF_TCX_INGRESS,
        },
        ..Default::default()
    };
    #[allow(unsafe_code)]
    // SAFETY: the instructions, the strings and the options outlive the call; the descriptor that it
    // returns is ours.
    unsafe {
        let fd = libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
            name.as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr().cast(),
            program.len() as libbpf_sys::size_t,
            (&raw const opts).cast_mut(),
        );
        assert!(fd >= 0, "{}", std::io::Error::from_raw_os_error(-fd));
        OwnedFd::from_raw_fd(fd)
    }
}

/// A classifier at an interface, ahead of what was there, until its value goes.
pub struct Attached {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Attached {
    pub fn at(
        called: &'static CStr,
        program: Vec<u64>,
        netns: &Netns,
        interface: &str,
        side: Side,
    ) -> Self {
        let name = interface.to_owned();
        let (end, ended) = channel::<()>();
        let (ready, is_ready) = channel();
        let thread = netns.enter(move || {
            let at = interfaces::chosen(&[name]).unwrap().remove(0);
            let program = load(called, &program, side);
            let held = Attachment::new(program.as_fd(), &at, side, Guard::method()).unwrap();
            ready.send(()).unwrap();
            // Until the other end has gone.
            let _ = ended.recv();
            drop(held);
        });
        is_ready.recv().expect("attached");
        Self {
            end: Some(end),
            thread: Some(thread),
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
