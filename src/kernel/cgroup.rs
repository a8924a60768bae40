// SPDX-License-Identifier: BSD-2-Clause

//! Control groups: where cgroup2 is mounted (not everywhere at /sys/fs/cgroup), which directory is a
//! systemd unit's, and hooks of a cgroup.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use libbpf_rs::ProgramAttachType;
use procfs::process::Process;

use super::program;

/// The inode of the whole tree's uppermost directory (`kernfs_create_root`, on 64-bit kernels since 5.5). Within
/// a cgroup namespace a mount looks whole, but is the namespace's part.
const ROOT_INODE: u64 = 1;

/// The mount point of the whole cgroup2 tree, as this process sees it.
pub fn mount() -> Option<PathBuf> {
    mounted(|at| fs::metadata(at).is_ok_and(|at| at.ino() == ROOT_INODE))
}

/// The same or, within a cgroup namespace, that of its part: who only watches sees at least what is in there.
pub fn mount_or_part() -> Option<PathBuf> {
    mount().or_else(|| mounted(|_| true))
}

fn mounted(wanted: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let mounts = Process::myself().ok()?.mountinfo().ok()?;
    let root = mounts.into_iter().find(|mount| {
        mount.fs_type == "cgroup2" && mount.root == "/" && wanted(&mount.mount_point)
    })?;
    Some(root.mount_point)
}

/// The id of the cgroup at `path` below `root`, if it is there: its directory's inode number
/// (`kernfs_node.id`, on 64-bit kernels since 5.5).
pub fn id(root: &Path, path: &str) -> Option<u64> {
    let metadata = fs::symlink_metadata(root.join(path.trim_start_matches('/'))).ok()?;
    metadata.is_dir().then(|| metadata.ino())
}

/// Attaches a program to the hook of a cgroup, beside those of others; gone with the descriptor.
///
/// # Errors
/// What the kernel refuses.
pub fn attach(
    program: BorrowedFd<'_>,
    cgroup: &File,
    hook: ProgramAttachType,
) -> io::Result<OwnedFd> {
    program::link(program, cgroup.as_raw_fd(), hook as u32, None)
}

/// The path of a systemd unit's cgroup below `root`, if it runs.
///
/// Only slices are looked into, which are the system manager's: a user's own manager, and whatever a
/// service makes below its own cgroup, can call a directory anything.
pub fn find_unit(root: &Path, unit: &str) -> Option<String> {
    find_in_slice(root, "", unit, 0)
}

/// Slices nest by their names' dashes; nobody has that many.
const DEEPEST_SLICE: usize = 16;

fn find_in_slice(root: &Path, at: &str, unit: &str, depth: usize) -> Option<String> {
    let here = root.join(at.trim_start_matches('/'));
    let direct = format!("{at}/{unit}");
    if fs::symlink_metadata(here.join(unit)).is_ok_and(|metadata| metadata.is_dir()) {
        return Some(direct);
    }
    if depth == DEEPEST_SLICE {
        return None;
    }
    let mut slices: Vec<_> = fs::read_dir(here)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(".slice"))
        .collect();
    slices.sort();
    slices
        .iter()
        .find_map(|slice| find_in_slice(root, &format!("{at}/{slice}"), unit, depth + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_found_in_slices_and_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "system.slice/nginx.service",
            "system.slice/system-getty.slice/getty@tty1.service",
            "user.slice/user-1000.slice/user@1000.service/app.slice/forged.service",
            "system.slice/nginx.service/nested.service",
        ] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let find = |unit| find_unit(root.path(), unit);
        assert_eq!(
            find("nginx.service").as_deref(),
            Some("/system.slice/nginx.service")
        );
        assert_eq!(
            find("getty@tty1.service").as_deref(),
            Some("/system.slice/system-getty.slice/getty@tty1.service")
        );
        assert_eq!(
            find("user-1000.slice").as_deref(),
            Some("/user.slice/user-1000.slice")
        );
        assert_eq!(find("forged.service"), None);
        assert_eq!(find("nested.service"), None);
        assert_eq!(
            id(root.path(), "/system.slice").unwrap(),
            fs::metadata(root.path().join("system.slice"))
                .unwrap()
                .ino()
        );
        assert_eq!(id(root.path(), "/no.slice"), None);
    }
}
