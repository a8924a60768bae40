// SPDX-License-Identifier: BSD-2-Clause

//! `struct identity` and `struct flow` of `src/bpf/lib/identity.bpf.h`.

use std::net::{IpAddr, SocketAddr};

use procfs::process::Process;

use crate::process::{self, Directory, Identity};

/// Bytes of `struct identity`.
pub const IDENTITY_BYTES: usize = 48;
/// Bytes of `struct flow`.
pub const FLOW_BYTES: usize = 36;

/// A task as a hook in its own context recorded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The cgroup2 directory's inode number.
    pub cgroup: u64,
    /// Nanoseconds since boot, suspend included.
    pub boot_ns: u64,
    /// Process id in the initial PID namespace.
    pub pid: u32,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Group id in the initial user namespace.
    pub gid: u32,
    /// The thread's name.
    pub comm: Option<String>,
}

impl Record {
    /// Reads a record; `None` if it has not [`IDENTITY_BYTES`] bytes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; IDENTITY_BYTES] = bytes.try_into().ok()?;
        let (longs, _) = bytes.as_chunks::<8>();
        let (words, _) = bytes.as_chunks::<4>();
        let word = |index: usize| u32::from_ne_bytes(words[index]);
        Some(Self {
            cgroup: u64::from_ne_bytes(longs[0]),
            boot_ns: u64::from_ne_bytes(longs[1]),
            pid: word(4),
            tid: word(5),
            uid: word(6),
            gid: word(7),
            comm: process::comm(&bytes[32..]),
        })
    }

    /// Whether the process is still there: one of the same number that began later is another.
    fn is_alive(&self) -> bool {
        let stat = Process::new(self.pid.cast_signed()).and_then(|process| process.stat());
        // Of the same clock as `boot_ns`, in ticks (proc_pid_stat(5)), cut off and not rounded.
        stat.is_ok_and(|stat| {
            let ns_per_tick = 1_000_000_000 / procfs::ticks_per_second().max(1);
            stat.starttime.saturating_mul(ns_per_tick) <= self.boot_ns
        })
    }

    /// All that is known of the task: the record, and what `/proc` adds while the process lives.
    pub fn identity(&self, directory: &mut Directory) -> Identity {
        let mut identity = Identity {
            uid: Some(self.uid),
            gid: Some(self.gid),
            pid: Some(self.pid),
            tid: Some(self.tid),
            comm: self.comm.clone(),
            ..Identity::default()
        };
        if let Some(path) = directory.cgroup(self.cgroup) {
            identity.set_cgroup(&path);
        }
        if !self.is_alive() {
            identity.user = directory.user(self.uid);
        } else if self.cgroup == 0 || directory.cgroup_root().is_none() {
            directory.fill(&mut identity, self.pid);
        } else {
            directory.fill_but_cgroup(&mut identity, self.pid);
        }
        identity
    }
}

/// The key of a map of flows, as the local socket sees the flow.
pub fn flow_key(local: SocketAddr, remote: SocketAddr) -> [u8; FLOW_BYTES] {
    let mut key = [0; FLOW_BYTES];
    key[..16].copy_from_slice(&mapped(local.ip()));
    key[16..32].copy_from_slice(&mapped(remote.ip()));
    key[32..34].copy_from_slice(&local.port().to_ne_bytes());
    key[34..].copy_from_slice(&remote.port().to_ne_bytes());
    key
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_field_by_field() {
        let mut bytes = Vec::new();
        bytes.extend(7_u64.to_ne_bytes());
        bytes.extend(8_u64.to_ne_bytes());
        for word in [1_u32, 2, 3, 4] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(b"curl\0\0\0\0\0\0\0\0\0\0\0\0");
        let record = Record::parse(&bytes).unwrap();
        assert_eq!((record.cgroup, record.boot_ns), (7, 8));
        assert_eq!(
            (record.pid, record.tid, record.uid, record.gid),
            (1, 2, 3, 4)
        );
        assert_eq!(record.comm.as_deref(), Some("curl"));
        assert_eq!(Record::parse(&bytes[1..]), None);
    }

    #[test]
    fn a_later_process_of_the_same_number_is_another_one() {
        let mut directory = Directory::new(None);
        let mut record = Record {
            cgroup: 0,
            boot_ns: u64::MAX,
            pid: std::process::id(),
            tid: 1,
            uid: 0,
            gid: 0,
            comm: Some("caller".to_owned()),
        };
        let living = record.identity(&mut directory);
        assert!(living.exe.is_some() && living.user.is_some());
        record.boot_ns = 1;
        let gone = record.identity(&mut directory);
        assert_eq!((gone.exe, gone.cgroup), (None, None));
        assert_eq!((gone.pid, gone.user), (Some(record.pid), living.user));
    }

    #[test]
    fn a_flow_has_mapped_addresses_and_ports_in_host_order() {
        let key = flow_key(
            "1.2.3.4:5".parse().unwrap(),
            "[fd00::1]:80".parse().unwrap(),
        );
        assert_eq!(key[10..16], [0xff, 0xff, 1, 2, 3, 4]);
        assert_eq!((key[16], key[31]), (0xfd, 1));
        assert_eq!(key[32..34], 5_u16.to_ne_bytes());
        assert_eq!(key[34..], 80_u16.to_ne_bytes());
    }
}
