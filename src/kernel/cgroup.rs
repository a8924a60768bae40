// SPDX-License-Identifier: BSD-2-Clause

//! Where cgroup2 is mounted: not everywhere at /sys/fs/cgroup.

use std::path::PathBuf;

use procfs::process::Process;

/// The mount point of the whole cgroup2 tree, as this process sees it.
pub fn mount() -> Option<PathBuf> {
    let mounts = Process::myself().ok()?.mountinfo().ok()?;
    let root = mounts
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2" && mount.root == "/")?;
    Some(root.mount_point)
}
