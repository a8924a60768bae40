// SPDX-License-Identifier: BSD-2-Clause

//! Who is this process or cgroup: user, executable, systemd unit, container.
//!
//! What is not known stays absent. Names of users come from the name service and are kept, as a
//! lookup may ask the network.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, User};
use serde::Serialize;

/// Who did something, as far as it is known. The serde fields are those of every JSON line that
/// names a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// User id in the initial user namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The user's name, from the name service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Group id in the initial user namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Process id (the kernel's tgid) in the initial PID namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Thread id (the kernel's pid) in the initial PID namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tid: Option<u32>,
    /// The thread's name, at most 15 bytes; whatever the process chose to write there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// The executable, as `/proc/PID/exe` names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// The cgroup's path below the cgroup2 mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The systemd unit that the cgroup belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The container's id, where the cgroup's name is one that Docker, containerd, CRI-O or Podman
    /// gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

impl Identity {
    /// Sets the cgroup, and what its path says of unit and container.
    pub fn set_cgroup(&mut self, path: &str) {
        self.unit = unit_of(path).map(str::to_owned);
        self.container = container_of(path).map(str::to_owned);
        self.cgroup = Some(path.to_owned());
    }
}

/// The text in a kernel `comm` field: up to its first zero byte, with what is not UTF-8 replaced.
pub fn comm(bytes: &[u8]) -> Option<String> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    (end > 0).then(|| String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// The innermost systemd unit in a cgroup path: its last component that ends like a unit which
/// holds processes (`systemd.unit(5)`).
pub fn unit_of(cgroup: &str) -> Option<&str> {
    cgroup
        .rsplit('/')
        .find(|part| part.ends_with(".service") || part.ends_with(".scope"))
}

/// The container's id in a cgroup path: 64 hexadecimal digits, alone or within the names that
/// runtimes make (`docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`,
/// `libpod-ID.scope`).
pub fn container_of(cgroup: &str) -> Option<&str> {
    cgroup.rsplit('/').find_map(|part| {
        let name = part.strip_suffix(".scope").unwrap_or(part);
        let id = name.rsplit(['-', ':']).next().unwrap_or(name);
        (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
    })
}

/// The uid that `text` means: a name from the name service, or a number.
pub fn resolve_user(text: &str) -> Option<u32> {
    if let Ok(Some(user)) = User::from_name(text) {
        return Some(user.uid.as_raw());
    }
    decimal_id(text)
}

/// The gid that `text` means: a name from the name service, or a number.
pub fn resolve_group(text: &str) -> Option<u32> {
    if let Ok(Some(group)) = Group::from_name(text) {
        return Some(group.gid.as_raw());
    }
    decimal_id(text)
}

/// A user or group id: decimal digits only, and not 4294967295, which means "no id" to the kernel.
fn decimal_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|id| *id != u32::MAX)
}

/// Names for numbers, looked up once.
#[derive(Debug, Default)]
pub struct Directory {
    users: HashMap<u32, Option<String>>,
    cgroups: HashMap<u64, String>,
    /// Those that are nowhere, and so never will be: an id is not given twice.
    no_cgroups: HashSet<u64>,
    walks: Walks,
    cgroup_root: Option<PathBuf>,
}

/// Of ids that are nowhere so many are remembered.
const MOST_NO_CGROUPS: usize = 65_536;

/// How long the tree of cgroups may be walked through: who makes cgroups and removes them again, or makes very many, is
/// not to keep others waiting. A tenth of the time, and a second at once.
#[derive(Debug)]
struct Walks {
    left: Duration,
    at: Option<Instant>,
}

const MOST_WALKING: Duration = Duration::from_secs(1);

impl Default for Walks {
    fn default() -> Self {
        Self {
            left: MOST_WALKING,
            at: None,
        }
    }
}

impl Walks {
    /// Whether one may begin now.
    fn may_begin(&mut self, now: Instant) -> bool {
        if let Some(at) = self.at.replace(now) {
            let more = now.saturating_duration_since(at) / 10;
            self.left = (self.left + more).min(MOST_WALKING);
        }
        !self.left.is_zero()
    }

    fn took(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }
}

impl Directory {
    /// A directory that finds cgroups below `cgroup_root`, the cgroup2 mount, where there is one.
    pub fn new(cgroup_root: Option<PathBuf>) -> Self {
        Self {
            cgroup_root,
            ..Self::default()
        }
    }

    /// The cgroup2 mount, where there is one.
    pub fn cgroup_root(&self) -> Option<&Path> {
        self.cgroup_root.as_deref()
    }

    /// The name of `uid`, if it has one.
    pub fn user(&mut self, uid: u32) -> Option<String> {
        self.users
            .entry(uid)
            .or_insert_with(|| {
                User::from_uid(Uid::from_raw(uid))
                    .ok()
                    .flatten()
                    .map(|user| user.name)
            })
            .clone()
    }

    /// The name of `gid`, if it has one.
    pub fn group(gid: u32) -> Option<String> {
        Group::from_gid(Gid::from_raw(gid))
            .ok()
            .flatten()
            .map(|group| group.name)
    }

    /// The path, below the cgroup2 mount, of the cgroup with this id. A cgroup's id is its
    /// directory's inode number (`kernfs_node.id`, on 64-bit kernels since 5.5).
    pub fn cgroup(&mut self, id: u64) -> Option<String> {
        self.cgroup_at(id, Instant::now())
    }

    fn cgroup_at(&mut self, id: u64, now: Instant) -> Option<String> {
        if id == 0 {
            return None;
        }
        if let Some(path) = self.cgroups.get(&id) {
            return Some(path.clone());
        }
        if self.no_cgroups.contains(&id) || !self.walks.may_begin(now) {
            return None;
        }
        let root = self.cgroup_root.clone()?;
        let began = Instant::now();
        self.cgroups.clear();
        index_cgroups(&root, &root, &mut self.cgroups, 0);
        self.walks.took(began.elapsed());
        let path = self.cgroups.get(&id).cloned();
        if path.is_none() {
            if self.no_cgroups.len() >= MOST_NO_CGROUPS {
                self.no_cgroups.clear();
            }
            self.no_cgroups.insert(id);
        }
        path
    }

    /// What `/proc` tells of the process `pid`, added to what `identity` already knows. A process
    /// that has gone adds nothing.
    pub fn fill(&mut self, identity: &mut Identity, pid: u32) {
        self.fill_but_cgroup(identity, pid);
        if identity.cgroup.is_none()
            && let Ok(cgroups) = procfs::process::Process::new(pid.cast_signed())
                .and_then(|process| process.cgroups())
            && let Some(unified) = cgroups.0.iter().find(|group| group.hierarchy == 0)
        {
            identity.set_cgroup(&unified.pathname);
        }
    }

    /// The same without the cgroup, where it is known which it was: the process may be in another by now.
    pub fn fill_but_cgroup(&mut self, identity: &mut Identity, pid: u32) {
        identity.pid = Some(pid);
        if let Ok(process) = procfs::process::Process::new(pid.cast_signed()) {
            identity.exe = process
                .exe()
                .ok()
                .map(|exe| exe.to_string_lossy().into_owned());
            if identity.comm.is_none() {
                identity.comm = process.stat().ok().map(|stat| stat.comm);
            }
            if identity.uid.is_none() {
                identity.uid = process.uid().ok();
            }
        }
        if let Some(uid) = identity.uid {
            identity.user = self.user(uid);
        }
    }
}

/// How deep cgroups are followed; the kernel's own default is no limit, systemd's trees are below
/// ten.
const DEEPEST_CGROUP: usize = 32;

fn index_cgroups(root: &Path, at: &Path, found: &mut HashMap<u64, String>, depth: usize) {
    let Ok(metadata) = fs::symlink_metadata(at) else {
        return;
    };
    let below = at.strip_prefix(root).unwrap_or(at);
    found.insert(metadata.ino(), format!("/{}", below.display()));
    if depth == DEEPEST_CGROUP {
        return;
    }
    let Ok(entries) = fs::read_dir(at) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            index_cgroups(root, &entry.path(), found, depth + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn the_innermost_unit_is_found() {
        assert_eq!(
            unit_of("/system.slice/nginx.service"),
            Some("nginx.service")
        );
        assert_eq!(
            unit_of("/user.slice/user-1000.slice/user@1000.service/app.slice/a.scope/x"),
            Some("a.scope")
        );
        assert_eq!(unit_of("/system.slice"), None);
        assert_eq!(unit_of("/"), None);
    }

    #[test]
    fn containers_of_the_usual_runtimes_are_recognised() {
        for path in [
            format!("/system.slice/docker-{ID}.scope"),
            format!("/docker/{ID}"),
            format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope"),
            format!("/kubepods-burstable-pod1.slice:cri-containerd:{ID}"),
            format!("/kubepods.slice/crio-{ID}.scope/container"),
            format!("/machine.slice/libpod-{ID}.scope"),
        ] {
            assert_eq!(container_of(&path), Some(ID), "{path}");
        }
        assert_eq!(container_of("/system.slice/docker-0123.scope"), None);
    }

    #[test]
    fn users_resolve_by_name_and_by_number() {
        assert_eq!(resolve_user("root"), Some(0));
        assert_eq!(resolve_user("0"), Some(0));
        assert_eq!(resolve_user("54321"), Some(54321));
        for wrong in [
            "",
            "no such user",
            "-1",
            "+1",
            "1.5",
            "0x1",
            "4294967295",
            "4294967296",
        ] {
            assert_eq!(resolve_user(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn comm_ends_at_its_zero_byte() {
        assert_eq!(comm(b"curl\0\0\0junk"), Some("curl".to_owned()));
        assert_eq!(comm(b"\0\0"), None);
        assert_eq!(comm(b"abcdefghijklmno"), Some("abcdefghijklmno".to_owned()));
    }

    #[test]
    fn cgroups_that_are_nowhere_are_looked_for_once_and_never_for_long() {
        let root = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::symlink_metadata(path).unwrap().ino()
        };
        let now = Instant::now();
        let cgroup = |directory: &mut Directory, id| directory.cgroup_at(id, now);
        let mut directory = Directory::new(Some(root.path().to_owned()));
        let first = made("first");
        assert_eq!(cgroup(&mut directory, first).as_deref(), Some("/first"));
        assert_eq!(cgroup(&mut directory, u64::MAX), None);
        // Once walks have taken what there is, what was found stays known, and what is new comes to be later.
        directory.walks.left = Duration::ZERO;
        let second = made("second");
        assert_eq!(cgroup(&mut directory, second), None);
        assert_eq!(cgroup(&mut directory, first).as_deref(), Some("/first"));
        directory.walks.left = MOST_WALKING;
        assert_eq!(cgroup(&mut directory, second).as_deref(), Some("/second"));
        directory.walks.left = MOST_WALKING;
        for _ in 0..100 {
            assert_eq!(cgroup(&mut directory, u64::MAX), None);
        }
        assert_eq!(
            directory.walks.left, MOST_WALKING,
            "it was looked for again"
        );
    }

    #[test]
    fn walks_take_a_tenth_of_the_time() {
        let mut walks = Walks::default();
        let began = Instant::now();
        assert!(walks.may_begin(began));
        walks.took(Duration::from_secs(3));
        assert!(!walks.may_begin(began));
        assert!(walks.may_begin(began + Duration::from_secs(1)));
        assert_eq!(walks.left, Duration::from_millis(100));
        assert!(walks.may_begin(began + Duration::from_secs(100)));
        assert_eq!(walks.left, MOST_WALKING);
    }

    #[test]
    fn proc_tells_of_this_process() {
        let mut identity = Identity::default();
        Directory::default().fill(&mut identity, std::process::id());
        assert_eq!(identity.uid, Some(Uid::effective().as_raw()));
        let exe = std::env::current_exe().unwrap();
        assert_eq!(identity.exe.as_deref(), exe.to_str());
    }
}
