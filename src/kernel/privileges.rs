// SPDX-License-Identifier: BSD-2-Clause

//! Which capabilities this process has, and how to say which it lacks.

use std::fmt;

/// The capabilities that the tools need; the numbers are those of `linux/capability.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Capability {
    /// Signals to other users' processes.
    Kill = 5,
    /// Interfaces, TC and cgroup network hooks.
    NetAdmin = 12,
    /// `AF_PACKET` sockets.
    NetRaw = 13,
    /// Other users' process roots and maps.
    SysPtrace = 19,
    /// What PERFMON and BPF were split from; classic uprobes since the fix of CVE-2025-38466.
    SysAdmin = 21,
    /// Tracing programs, and helpers that read memory (kernel 5.8).
    Perfmon = 38,
    /// Loading programs and making maps (kernel 5.8).
    Bpf = 39,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "CAP_KILL",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        })
    }
}

/// A set of capabilities, as `/proc/PID/status` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// The effective set of this process; empty where `/proc` cannot be read.
    pub fn effective() -> Self {
        let status = procfs::process::Process::myself().and_then(|process| process.status());
        Self(status.map(|status| status.capeff).unwrap_or_default())
    }

    /// Whether `capability` is in the set; CAP_SYS_ADMIN stands for BPF and PERFMON, as it does in
    /// the kernel.
    pub fn has(self, capability: Capability) -> bool {
        let bit = |capability: Capability| self.0 & (1 << capability as u8) != 0;
        bit(capability)
            || matches!(capability, Capability::Bpf | Capability::Perfmon)
                && bit(Capability::SysAdmin)
    }

    /// Those of `needed` that are not in the set.
    pub fn missing(self, needed: &[Capability]) -> Vec<Capability> {
        needed
            .iter()
            .copied()
            .filter(|capability| !self.has(*capability))
            .collect()
    }
}

/// `CAP_BPF, CAP_NET_ADMIN`
pub fn list(capabilities: &[Capability]) -> String {
    let names: Vec<_> = capabilities.iter().map(ToString::to_string).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sys_admin_stands_for_bpf_and_perfmon_only() {
        let admin = Capabilities(1 << 21);
        let all = [Capability::Bpf, Capability::Perfmon, Capability::NetAdmin];
        assert_eq!(admin.missing(&all), [Capability::NetAdmin]);
        assert_eq!(
            list(&Capabilities(0).missing(&all)),
            "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"
        );
    }
}
