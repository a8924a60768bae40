// SPDX-License-Identifier: BSD-2-Clause

//! What this kernel can do, found by trying. Facts only; the tools decide what follows.

use libbpf_rs::{ProgramType, libbpf_sys};

use super::bpf;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// The kernel's own types are there (`CONFIG_DEBUG_INFO_BTF`).
    pub btf: bool,
    /// TC programs attach by link (TCX, kernel 6.6).
    pub tcx: bool,
    /// One link attaches to many functions (uprobe.multi, kernel 6.6).
    pub uprobe_multi: bool,
    /// So does one for entries and returns (uprobe.session, kernel 6.13).
    pub uprobe_session: bool,
    /// Programs at uprobes are told which of their probes it is (`bpf_get_attach_cookie`, kernel 5.15).
    pub uprobe_cookie: bool,
}

impl Features {
    /// Tries each. What the privileges do not allow to be tried counts as absent.
    pub fn probe() -> Self {
        Self {
            btf: bpf::has_btf(),
            tcx: tcx(),
            uprobe_multi: bpf::links_uprobes(libbpf_sys::BPF_TRACE_UPROBE_MULTI),
            uprobe_session: bpf::links_uprobes(libbpf_sys::BPF_TRACE_UPROBE_SESSION),
            uprobe_cookie: ProgramType::Kprobe
                .is_helper_supported(libbpf_sys::BPF_FUNC_get_attach_cookie)
                .unwrap_or(false),
        }
    }
}

/// The loopback interface has index 1 in every network namespace.
const LOOPBACK: i32 = 1;

/// Asks which programs are at the TCX egress of the loopback interface; an older kernel does not
/// know the question (EINVAL).
pub fn tcx() -> bool {
    let mut count = 0;
    let mut flags = 0;
    #[allow(unsafe_code)]
    // SAFETY: a query with room for no program id writes the count and the flags only.
    let ret = unsafe {
        libbpf_sys::bpf_prog_query(
            LOOPBACK,
            libbpf_sys::BPF_TCX_EGRESS,
            0,
            &raw mut flags,
            std::ptr::null_mut(),
            &raw mut count,
        )
    };
    // Without CAP_NET_ADMIN the question is understood and refused.
    ret != -libc::EINVAL
}

/// Whether a TC program can ask for a socket's network namespace (`bpf_get_netns_cookie`, there since
/// kernel 6.15).
pub fn tc_knows_namespaces() -> bool {
    tc_has(libbpf_sys::BPF_FUNC_get_netns_cookie)
}

/// Whether a TC program can look into a socket (`bpf_probe_read_kernel`, there since kernel 5.8, with CAP_PERFMON).
pub fn tc_reads_sockets() -> bool {
    tc_has(libbpf_sys::BPF_FUNC_probe_read_kernel)
}

fn tc_has(helper: libbpf_sys::bpf_func_id) -> bool {
    let known = ProgramType::SchedCls.is_helper_supported(helper);
    known.unwrap_or(false)
}

/// Whether a program at a cgroup's connect hook can read the task that connects
/// (`bpf_get_current_task`, with CAP_PERFMON).
pub fn cgroup_reads_tasks() -> bool {
    let known =
        ProgramType::CgroupSockAddr.is_helper_supported(libbpf_sys::BPF_FUNC_get_current_task);
    known.unwrap_or(false)
}
