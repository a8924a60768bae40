// SPDX-License-Identifier: BSD-2-Clause

//! Cgroups by their path, followed as they come and go: a service that is started again has a new
//! directory, and with it a new id.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

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

/// What there is to say after a look.
#[derive(Debug, Default)]
pub struct Look {
    /// What has changed since the last one.
    pub changes: Vec<Change>,
    /// What cannot be watched, and why, in words: of each directory and cause once.
    pub troubles: Vec<String>,
}

/// Watches the directories above some cgroups, as far as it may: users own some of them, and can forbid it.
#[derive(Debug)]
pub struct Follower {
    /// Nothing while none can be had.
    inotify: Option<Inotify>,
    root: PathBuf,
    ids: BTreeMap<String, Option<u64>>,
    /// Whether all of it was watched at the last look.
    whole: bool,
    told: BTreeSet<(String, PathBuf)>,
}

impl Follower {
    /// Watches for `paths` below `root`, the cgroup2 mount, whether they are there or not. The first
    /// [`Follower::look`] tells of those that are.
    pub fn new(root: &Path, paths: impl IntoIterator<Item = String>) -> Self {
        Self {
            inotify: None,
            root: root.to_owned(),
            ids: paths.into_iter().map(|path| (path, None)).collect(),
            whole: false,
            told: BTreeSet::new(),
        }
    }

    /// The descriptor that becomes readable when there may be something to look at.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// Whether all is watched; if not, a look is due every now and then.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// What has changed since the last look. A cgroup in a directory that may not be looked into counts as gone.
    pub fn look(&mut self) -> Look {
        let failed = self.watch();
        self.whole = failed.is_empty();
        let mut look = Look {
            changes: Vec::new(),
            troubles: self.tell(failed),
        };
        for (path, known) in &mut self.ids {
            let now = cgroup::id(&self.root, path);
            if now != *known {
                look.changes.push(Change {
                    path: path.clone(),
                    gone: *known,
                    come: now,
                });
                *known = now;
            }
        }
        look
    }

    /// Has the next look, which is due, tell of this cgroup again.
    pub fn forget(&mut self, path: &str) {
        self.whole = false;
        if let Some(id) = self.ids.get_mut(path) {
            *id = None;
        }
    }

    /// Watches every directory above a cgroup that is there; those that cannot be, by cause. One that is watched
    /// already stays so.
    fn watch(&mut self) -> BTreeMap<String, Vec<PathBuf>> {
        let mut failed = BTreeMap::<_, Vec<_>>::new();
        let inotify = self.inotify.take().map_or_else(
            || Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK),
            // What it was does not matter, not even if the queue was too short for it: all are looked at.
            |inotify| drain(&inotify).map(|()| inotify),
        );
        let inotify = match inotify {
            Ok(inotify) => inotify,
            Err(err) => return [(err.to_string(), vec![self.root.clone()])].into(),
        };
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
            match inotify.add_watch(&at, flags) {
                Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(err) => failed.entry(err.to_string()).or_default().push(at),
            }
        }
        self.inotify = Some(inotify);
        failed
    }

    /// A line for each cause that has something new to it.
    fn tell(&mut self, failed: BTreeMap<String, Vec<PathBuf>>) -> Vec<String> {
        let mut lines = Vec::new();
        for (why, places) in failed {
            let mut fresh = places;
            fresh.retain(|at| self.told.insert((why.clone(), at.clone())));
            if let Some(first) = fresh.first() {
                let more = match fresh.len() - 1 {
                    0 => String::new(),
                    more => format!(" and {more} more folders"),
                };
                lines.push(format!(
                    "cannot watch for cgroups in {}{more}: {why}",
                    first.display()
                ));
            }
        }
        lines
    }
}

fn drain(inotify: &Inotify) -> nix::Result<()> {
    loop {
        match inotify.read_events() {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(err) => return Err(err),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn follower(root: &Path, path: &str) -> Follower {
        Follower::new(root, [path.to_owned()])
    }

    fn readable(follower: &Follower) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(follower.fd().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    }

    #[test]
    fn a_directory_that_is_made_again_has_a_new_id() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().join("a.slice/b.service");
        let mut follower = follower(root.path(), "/a.slice/b.service");
        assert_eq!(follower.look().changes, []);

        // Also where what is above it was not there before.
        fs::create_dir(root.path().join("a.slice")).unwrap();
        assert!(readable(&follower));
        assert_eq!(follower.look().changes, []);
        fs::create_dir(&at).unwrap();
        assert!(readable(&follower));
        let come = follower.look().changes;
        let first = cgroup::id(root.path(), "/a.slice/b.service");
        assert_eq!((come[0].gone, come[0].come), (None, first));
        assert_eq!(follower.look().changes, []);

        fs::remove_dir(&at).unwrap();
        // So that the number is not given to the next.
        fs::create_dir(root.path().join("a.slice/other")).unwrap();
        fs::create_dir(&at).unwrap();
        let again = follower.look().changes;
        let second = cgroup::id(root.path(), "/a.slice/b.service");
        assert_ne!(first, second);
        assert_eq!((again[0].gone, again[0].come), (first, second));

        fs::remove_dir(&at).unwrap();
        assert!(readable(&follower));
        let gone = follower.look().changes;
        assert_eq!((gone[0].gone, gone[0].come), (second, None));
    }

    #[test]
    fn what_is_there_at_the_start_is_told_of_first() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("a.slice")).unwrap();
        let mut follower = follower(root.path(), "/a.slice");
        let changes = follower.look().changes;
        assert_eq!(changes[0].path, "/a.slice");
        assert_eq!(changes[0].come, cgroup::id(root.path(), "/a.slice"));
    }

    #[test]
    fn a_cause_is_told_once_for_each_place_and_never_in_many_lines() {
        let mut follower = follower(Path::new("/"), "/a");
        let places = |count| {
            (0..count)
                .map(|at| PathBuf::from(format!("/{at}")))
                .collect()
        };
        let first = follower.tell([(Errno::ENOSPC.to_string(), places(3))].into());
        assert_eq!(
            first,
            ["cannot watch for cgroups in /0 and 2 more folders: ENOSPC: No space left on device"]
        );
        assert!(
            follower
                .tell([(Errno::ENOSPC.to_string(), places(2))].into())
                .is_empty()
        );
        assert_eq!(
            follower
                .tell([(Errno::EACCES.to_string(), places(2))].into())
                .len(),
            1
        );
        let more = follower.tell([(Errno::ENOSPC.to_string(), places(4))].into());
        assert!(more[0].contains("in /3: ENOSPC"), "{more:?}");
    }
}
