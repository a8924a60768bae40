// SPDX-License-Identifier: BSD-2-Clause

//! Cgroups by their path, followed as they come and go: a service that is started again has a new
//! directory, and with it a new id.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::cgroup;

/// What has changed about a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its path below the cgroup2 mount.
    pub path: String,
    /// The id that means nothing any more.
    pub gone: Option<u64>,
    /// The id that it has now.
    pub come: Option<u64>,
}

/// Watches the directories above some cgroups.
#[derive(Debug)]
pub struct Follower {
    inotify: Inotify,
    root: PathBuf,
    ids: BTreeMap<String, Option<u64>>,
}

impl Follower {
    /// Watches for `paths` below `root`, the cgroup2 mount, whether they are there or not. The first
    /// [`Follower::changes`] tells of those that are.
    ///
    /// # Errors
    /// If inotify's limits are reached (`fs.inotify.max_user_watches`).
    pub fn new(root: &Path, paths: impl IntoIterator<Item = String>) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .context("cannot watch for cgroups")?;
        Ok(Self {
            inotify,
            root: root.to_owned(),
            ids: paths.into_iter().map(|path| (path, None)).collect(),
        })
    }

    /// The descriptor that becomes readable when [`Follower::changes`] may have something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// What has changed since it was asked last.
    ///
    /// # Errors
    /// Those of inotify.
    pub fn changes(&mut self) -> Result<Vec<Change>> {
        // What it was does not matter, not even if the queue was too short for it: all are looked at.
        while self.drain()? {}
        self.watch()?;
        let mut changes = Vec::new();
        for (path, known) in &mut self.ids {
            let now = cgroup::id(&self.root, path);
            if now != *known {
                changes.push(Change {
                    path: path.clone(),
                    gone: *known,
                    come: now,
                });
                *known = now;
            }
        }
        Ok(changes)
    }

    fn drain(&self) -> Result<bool> {
        match self.inotify.read_events() {
            Ok(events) => Ok(!events.is_empty()),
            Err(Errno::EAGAIN) => Ok(false),
            Err(err) => Err(err).context("cannot watch for cgroups"),
        }
    }

    /// Watches every directory above a cgroup that is there. One that is watched already stays so.
    fn watch(&self) -> Result<()> {
        let above: BTreeSet<&str> = self
            .ids
            .keys()
            .flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at]))
            .collect();
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        for path in above {
            let at = self.root.join(path.trim_start_matches('/'));
            match self.inotify.add_watch(&at, flags) {
                Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(err) => {
                    return Err(err)
                        .with_context(|| format!("cannot watch for cgroups in {}", at.display()));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn follower(root: &Path, path: &str) -> Follower {
        Follower::new(root, [path.to_owned()]).unwrap()
    }

    fn readable(follower: &Follower) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(follower.fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    }

    #[test]
    fn a_directory_that_is_made_again_has_a_new_id() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().join("a.slice/b.service");
        let mut follower = follower(root.path(), "/a.slice/b.service");
        assert_eq!(follower.changes().unwrap(), []);

        // Also where what is above it was not there before.
        fs::create_dir(root.path().join("a.slice")).unwrap();
        assert!(readable(&follower));
        assert_eq!(follower.changes().unwrap(), []);
        fs::create_dir(&at).unwrap();
        assert!(readable(&follower));
        let come = follower.changes().unwrap();
        let first = cgroup::id(root.path(), "/a.slice/b.service");
        assert_eq!((come[0].gone, come[0].come), (None, first));
        assert_eq!(follower.changes().unwrap(), []);

        fs::remove_dir(&at).unwrap();
        // So that the number is not given to the next.
        fs::create_dir(root.path().join("a.slice/other")).unwrap();
        fs::create_dir(&at).unwrap();
        let again = follower.changes().unwrap();
        let second = cgroup::id(root.path(), "/a.slice/b.service");
        assert_ne!(first, second);
        assert_eq!((again[0].gone, again[0].come), (first, second));

        fs::remove_dir(&at).unwrap();
        assert!(readable(&follower));
        let gone = follower.changes().unwrap();
        assert_eq!((gone[0].gone, gone[0].come), (second, None));
    }

    #[test]
    fn what_is_there_at_the_start_is_told_of_first() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("a.slice")).unwrap();
        let mut follower = follower(root.path(), "/a.slice");
        let changes = follower.changes().unwrap();
        assert_eq!(changes[0].path, "/a.slice");
        assert_eq!(changes[0].come, cgroup::id(root.path(), "/a.slice"));
    }
}
