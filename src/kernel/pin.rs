// SPDX-License-Identifier: BSD-2-Clause

//! What stays in the kernel when its process has ended: programs, maps and links under bpffs.
//!
//! A [`Shelf`] is a folder of pins that appears as a whole or not at all: pins are put into a folder
//! beside it, which is then renamed. Whoever changes a shelf has its lock.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use libbpf_rs::libbpf_sys;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::mount::{MsFlags, mount};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use nix::sys::statfs::statfs;
use nix::unistd::{UnlinkatFlags, unlinkat};
use procfs::process::Process;

use crate::failure::Failure;

/// Where systemd and most distributions mount it.
const USUAL: &str = "/sys/fs/bpf";
/// The folder that the tools' shelves are in.
pub const FOLDER: &str = "ebpfkit";
/// `BPF_FS_MAGIC` of `linux/magic.h`.
const MAGIC: i64 = 0xcafe_4a11;

/// The mount point of a bpffs: `wanted`, or the usual one, or any that is mounted; where there is
/// none and `mount` says so, one is mounted at the usual place.
///
/// # Errors
/// `wanted` is none (usage); there is none and none can be mounted (blocked).
pub fn bpffs(wanted: Option<&Path>, may_mount: bool) -> Result<Option<PathBuf>> {
    if let Some(wanted) = wanted {
        if !is_bpffs(wanted) {
            return Err(Failure::usage(format!(
                "{} is no bpffs; expected a folder where one is mounted (mount -t bpf -o mode=0700 bpf FOLDER)",
                wanted.display()
            ))
            .into());
        }
        return Ok(Some(wanted.to_owned()));
    }
    // A service sees only its own folder there, below a place that is none (TemporaryFileSystem= and
    // BindPaths= of systemd), as the mount itself is root's alone.
    if is_bpffs(Path::new(USUAL)) || is_bpffs(&Path::new(USUAL).join(FOLDER)) {
        return Ok(Some(USUAL.into()));
    }
    let mounts = Process::myself()?
        .mountinfo()
        .context("cannot read /proc/self/mountinfo")?;
    let other = mounts.into_iter().find(|mount| mount.fs_type == "bpf");
    if let Some(other) = other {
        return Ok(Some(other.mount_point));
    }
    if !may_mount {
        return Ok(None);
    }
    // A mount in a mount namespace of this process's own, as `ip netns exec` and many a service have
    // it, would end with it, and everything pinned there too.
    if !same_mounts_as_init() {
        return Err(Failure::blocked(
            "no bpffs is mounted in this mount namespace, which is not that of the machine",
            "mount one outside (mount -t bpf -o mode=0700 bpf /sys/fs/bpf); to run in a network namespace, use \
             nsenter --net=FILE, as ip netns exec hides what is mounted below /sys",
        )
        .into());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match mount(Some("bpf"), USUAL, Some("bpf"), flags, Some("mode=0700")) {
        Ok(()) => Ok(Some(USUAL.into())),
        Err(err) => Err(Failure::blocked(
            format!("no bpffs is mounted, and it cannot be mounted at {USUAL} ({err})"),
            format!("as root: mount -t bpf -o mode=0700 bpf {USUAL}"),
        )
        .into()),
    }
}

fn is_bpffs(path: &Path) -> bool {
    #[allow(trivial_numeric_casts, clippy::unnecessary_cast)]
    statfs(path).is_ok_and(|found| found.filesystem_type().0 as i64 & 0xffff_ffff == MAGIC)
}

fn same_mounts_as_init() -> bool {
    let id = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/mnt")).map(|file| file.ino());
    matches!((id("self"), id("1")), (Ok(own), Ok(init)) if own == init)
}

/// A folder of pins under bpffs.
#[derive(Debug, Clone)]
pub struct Shelf {
    parent: PathBuf,
    name: String,
}

/// Hears of what is done to a shelf.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
}

impl Watch {
    /// Becomes readable when something was done.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Forgets what was done until now.
    ///
    /// # Errors
    /// Those of inotify.
    pub fn drain(&self) -> Result<()> {
        loop {
            match self.inotify.read_events() {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(err) => return Err(err).context("cannot hear of what is pinned"),
            }
        }
    }
}

/// Keeps others from changing the shelves of a folder, as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Shelf {
    /// The shelf `name` in the folder `folder` of this bpffs. Nothing is made yet.
    pub fn new(bpffs: &Path, folder: &str, name: &str) -> Self {
        Self {
            parent: bpffs.join(folder),
            name: name.to_owned(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// Where the pin `name` on it is.
    pub fn pin(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// In what the shelves' folder is made, others may neither move it nor put another in its place; that
    /// they may make one first (mode 1777) is found out.
    fn check_mount(&self) -> Result<()> {
        let mount = self.parent.parent().unwrap_or(&self.parent);
        let Ok(found) = fs::metadata(mount) else {
            return Ok(());
        };
        let sticky = found.mode() & 0o1000 != 0;
        let kept = found.mode() & 0o022 == 0 || sticky;
        if is_trusted(found.uid()) && kept {
            return Ok(());
        }
        Err(others_may(mount, &found))
    }

    /// Whether nobody but root and this user may change it, if it is there, or the user of a service
    /// whom root has given the folder.
    ///
    /// # Errors
    /// [`Failure::Blocked`] that names the folder.
    pub fn check(&self) -> Result<()> {
        self.check_mount()?;
        let owner = self.given_to();
        for path in [self.parent.clone(), self.path()] {
            if let Ok(found) = fs::symlink_metadata(&path) {
                mistrust(&path, &found, owner)?;
            }
        }
        Ok(())
    }

    /// The user to whom root has given the folder of the shelves: it is that user's alone, and it is
    /// where nobody but root can make or rename one. Only root looks at another user's.
    pub fn given_to(&self) -> Option<u32> {
        if !nix::unistd::Uid::effective().is_root() {
            return None;
        }
        let above = fs::symlink_metadata(self.parent.parent()?).ok()?;
        let folder = fs::symlink_metadata(&self.parent).ok()?;
        let by_root = above.is_dir() && above.uid() == 0 && above.mode() & 0o022 == 0;
        let to_one = folder.is_dir() && folder.uid() != 0 && folder.mode() & 0o077 == 0;
        (by_root && to_one).then(|| folder.uid())
    }

    /// Hears of pins that are removed from this shelf from now on: what a policy leaves when another has
    /// replaced it.
    ///
    /// # Errors
    /// If inotify's limits are reached (`fs.inotify.max_user_instances`).
    pub fn watch(&self) -> Result<Watch> {
        let at = || format!("cannot watch {}", self.path().display());
        let inotify =
            Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).with_context(at)?;
        inotify
            .add_watch(&self.path(), AddWatchFlags::IN_DELETE)
            .with_context(at)?;
        Ok(Watch { inotify })
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.path().is_dir()
    }

    /// The names of what is pinned on it, in order.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path()) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Waits for the lock, and makes the folder where it is missing, for this user alone.
    ///
    /// # Errors
    /// If the folder cannot be made or opened, or is another user's: who makes pins there has to own it,
    /// or its owner could not use them.
    pub fn lock(&self) -> Result<Lock> {
        if let Some(uid) = self.given_to() {
            return Err(Failure::blocked(
                format!(
                    "{} is of uid {uid}: the pins there are another user's, as those of a service are",
                    self.parent.display()
                ),
                "go on as that user (systemctl reload ebpfkit-tc-guard), or take the guard away first \
                 (ebpfkit tc-guard stop)",
            )
            .into());
        }
        self.lock_to_remove()
    }

    /// As [`Shelf::lock`], for who only takes away: root may do that in a folder that it has given to a
    /// service's user.
    ///
    /// # Errors
    /// If the folder cannot be made or opened.
    pub fn lock_to_remove(&self) -> Result<Lock> {
        let at = || format!("cannot lock {}", self.parent.display());
        self.check_mount()?;
        loop {
            match DirBuilder::new().mode(0o700).create(&self.parent) {
                Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(err).with_context(at);
                }
                _ => {}
            }
            let folder = match File::open(&self.parent) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.with_context(at)?,
            };
            let found = folder.metadata().with_context(at)?;
            mistrust(&self.parent, &found, self.given_to())?;
            let locked = Flock::lock(folder, FlockArg::LockExclusive);
            let file = locked
                .map_err(|(_, err)| io::Error::from(err))
                .with_context(at)?;
            // Who had the lock may have removed the folder meanwhile.
            let number =
                |metadata: io::Result<fs::Metadata>| metadata.ok().map(|found| found.ino());
            if number(fs::metadata(&self.parent)) == number(file.metadata()) {
                return Ok(Lock { _file: file });
            }
        }
    }

    /// Whether a process has left one unfinished, or is at work on it: one that comes, or one that goes.
    pub fn has_draft(&self) -> bool {
        self.drafted().path().is_dir()
    }

    fn drafted(&self) -> Self {
        Self {
            parent: self.parent.clone(),
            name: format!("{}:new", self.name),
        }
    }

    /// An empty shelf that will be this one when it is committed. One that a process left unfinished
    /// is emptied first.
    ///
    /// # Errors
    /// What bpffs says.
    pub fn draft(&self, _lock: &Lock) -> Result<Draft> {
        let draft = self.drafted();
        draft.remove_all()?;
        DirBuilder::new()
            .mode(0o700)
            .create(draft.path())
            .with_context(|| format!("cannot make {}", draft.path().display()))?;
        Ok(Draft {
            draft,
            shelf: self.clone(),
        })
    }

    /// Pins what `fd` is, a program, a map or a link, as `name` on this shelf.
    ///
    /// # Errors
    /// What bpffs says.
    pub fn add(&self, _lock: &Lock, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        pin(fd, &self.pin(name))
    }

    /// Pins what `fd` is as `name`, in one step in place of what has the name.
    ///
    /// # Errors
    /// What bpffs says.
    pub fn replace(&self, _lock: &Lock, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        let fresh = self.pin(&format!("{name}:new"));
        unlink(&fresh)?;
        pin(fd, &fresh)?;
        fs::rename(&fresh, self.pin(name))
            .with_context(|| format!("cannot replace {}", self.pin(name).display()))
    }

    /// Removes the pin `name`, if it is there.
    ///
    /// # Errors
    /// What bpffs says.
    pub fn forget(&self, _lock: &Lock, name: &str) -> Result<()> {
        unlink(&self.pin(name))
    }

    /// Removes the shelf with all its pins, and a draft of it. It has gone in one step, before the
    /// first of its pins.
    ///
    /// # Errors
    /// What bpffs says.
    pub fn remove(&self, lock: &Lock) -> Result<()> {
        let draft = self.draft(lock)?;
        if self.exists() {
            fs::rename(self.path(), draft.draft.path())
                .with_context(|| format!("cannot remove {}", self.path().display()))?;
        }
        draft.draft.remove_all()?;
        // Others may have shelves there.
        let _ = fs::remove_dir(&self.parent);
        Ok(())
    }

    /// Never through a symbolic link: the folder may be another user's, who could put one there.
    fn remove_all(&self) -> Result<()> {
        let at = || format!("cannot remove {}", self.path().display());
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut folder = match Dir::open(&self.path(), flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(()),
            opened => opened.with_context(at)?,
        };
        let names: Result<Vec<_>, _> = folder
            .iter()
            .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
            .collect();
        for name in names.with_context(at)? {
            if ![c".", c".."].contains(&name.as_c_str()) {
                match unlinkat(folder.as_fd(), name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(err) => return Err(err).with_context(at),
                }
            }
        }
        match fs::remove_dir(self.path()) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                Err(err).with_context(|| format!("cannot remove {}", self.path().display()))
            }
            _ => Ok(()),
        }
    }
}

/// A shelf under way. Dropping it removes it, unless it was committed.
#[derive(Debug)]
pub struct Draft {
    draft: Shelf,
    shelf: Shelf,
}

impl Draft {
    /// Pins what `fd` is as `name`.
    ///
    /// # Errors
    /// What bpffs says.
    pub fn add(&self, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        pin(fd, &self.draft.pin(name))
    }

    /// Makes it the shelf, in one step. There must be none.
    ///
    /// # Errors
    /// What bpffs says.
    pub fn commit(self) -> Result<Shelf> {
        if self.shelf.exists() {
            bail!("{} is there already", self.shelf.path().display());
        }
        fs::rename(self.draft.path(), self.shelf.path())
            .with_context(|| format!("cannot make {}", self.shelf.path().display()))?;
        Ok(self.shelf.clone())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = self.draft.remove_all();
    }
}

/// Refuses a folder in which another user may put or move things, but for `owner`.
fn mistrust(path: &Path, found: &fs::Metadata, owner: Option<u32>) -> Result<()> {
    let known = is_trusted(found.uid()) || Some(found.uid()) == owner;
    if known && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(others_may(path, found))
}

fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::Uid::effective().as_raw()
}

fn others_may(path: &Path, found: &fs::Metadata) -> anyhow::Error {
    Failure::blocked(
        format!(
            "{} is of uid {} with mode {:04o}: others may change what is pinned there",
            path.display(),
            found.uid(),
            found.mode() & 0o7777
        ),
        "remove it, and have bpffs for root alone (chmod 0700 /sys/fs/bpf, or mount -t bpf -o mode=0700 bpf FOLDER)",
    )
    .into()
}

fn pin(fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let at = || format!("cannot pin {}", path.display());
    let name = CString::new(path.as_os_str().as_bytes()).with_context(at)?;
    #[allow(unsafe_code)]
    // SAFETY: the path outlives the call.
    let ret = unsafe { libbpf_sys::bpf_obj_pin(fd.as_raw_fd(), name.as_ptr()) };
    if ret < 0 {
        return Err(io::Error::from_raw_os_error(-ret)).with_context(at);
    }
    Ok(())
}

fn unlink(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
