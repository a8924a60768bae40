// SPDX-License-Identifier: BSD-2-Clause

//! Ways to send past TC that no running process's capabilities show: packet sockets that are open
//! already, and files that give capabilities to whoever runs them.

use std::collections::{BTreeSet, HashSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use procfs::process::{FDTarget, all_processes};

use crate::kernel::file_capabilities;
use crate::kernel::privileges::Capability;

/// A process with a packet socket of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RawSocket {
    /// The process.
    pub pid: u32,
    /// Its effective user now, whoever opened the socket.
    pub uid: u32,
    /// Its name, which it chose itself.
    pub comm: String,
}

/// Processes with packet sockets, but this one, as far as they may be looked at.
pub fn sockets() -> Vec<RawSocket> {
    // packet(7); the last column is the socket's inode (packet_seq_show of net/packet/af_packet.c).
    let table = fs::read_to_string("/proc/net/packet").unwrap_or_default();
    let inodes: HashSet<u64> = inodes(&table).collect();
    if inodes.is_empty() {
        return Vec::new();
    }
    let mut found = BTreeSet::new();
    for process in all_processes().into_iter().flatten().flatten() {
        let Ok(fds) = process.fd() else { continue };
        let mut targets = fds.flatten().map(|fd| fd.target);
        let is_one = |target| matches!(target, FDTarget::Socket(inode) if inodes.contains(&inode));
        if !targets.any(is_one) {
            continue;
        }
        if let Ok(status) = process.status()
            && process.pid.cast_unsigned() != std::process::id()
        {
            found.insert(RawSocket {
                pid: process.pid.cast_unsigned(),
                uid: status.euid,
                comm: status.name,
            });
        }
    }
    found.into_iter().collect()
}

fn inodes(table: &str) -> impl Iterator<Item = u64> {
    let lines = table.lines().skip(1);
    lines.filter_map(|line| line.split_ascii_whitespace().next_back()?.parse().ok())
}

/// A program that gives capabilities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivilegedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Those that matter here.
    pub capabilities: Vec<String>,
}

/// Where programs are, besides what `PATH` says.
const PROGRAMS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Programs in the usual folders and in those of `PATH` whose files give CAP_NET_RAW, CAP_NET_ADMIN,
/// CAP_SYS_ADMIN or CAP_BPF. Others may be anywhere.
pub fn files() -> Vec<PrivilegedFile> {
    let own = env::var_os("PATH").unwrap_or_default();
    let folders: BTreeSet<PathBuf> = env::split_paths(&own)
        .chain(env::split_paths(PROGRAMS))
        .filter_map(|folder| fs::canonicalize(folder).ok())
        .collect();
    folders.iter().flat_map(|folder| files_in(folder)).collect()
}

fn files_in(folder: &Path) -> Vec<PrivilegedFile> {
    let matter = [
        Capability::NetRaw,
        Capability::NetAdmin,
        Capability::SysAdmin,
        Capability::Bpf,
    ];
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let given = file_capabilities::permitted(&path);
        // Not by has(), which takes CAP_SYS_ADMIN for others.
        let capabilities: Vec<_> = matter
            .into_iter()
            .filter(|capability| given.0 & (1 << *capability as u8) != 0)
            .map(|capability| capability.to_string())
            .collect();
        if !capabilities.is_empty() {
            found.push(PrivilegedFile { path, capabilities });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_of_the_table_are_its_last_column() {
        let table = "sk       RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                     00000000 3      3    0003   2     1 0      54321  71234\n\
                     00000000 3      2    88cc   0     1 0      0      99\n";
        assert_eq!(inodes(table).collect::<Vec<_>>(), [71234, 99]);
        assert_eq!(inodes("").count(), 0);
    }
}
