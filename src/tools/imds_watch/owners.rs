// SPDX-License-Identifier: BSD-2-Clause

//! Who opened a connection: as the hooks recorded it, else as `/proc` shows it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::command_line;
use super::event::{Caller, OpenedIn};
use super::flow::Key;
use super::program::Watch;
use crate::kernel::stacks::Stacks;
use crate::kernel::{cgroup, lineage, namespace, socket_table};
use crate::process::{Directory, Identity};

/// Connections that no hook saw and whose owners, or that there is none, are remembered,
const MOST: usize = 1024;
/// and how long.
const KEPT: Duration = Duration::from_secs(1);
/// Times within [`KEPT`] that all sockets of the machine are looked through for one of them: a sender
/// of packets without a connection is not to keep this program from reading what others send.
const LOOKS: usize = 32;

/// What `/proc` said, and when.
#[derive(Debug)]
struct Remembered<K> {
    all: HashMap<K, (Instant, Option<Identity>)>,
}

impl<K: std::hash::Hash + Eq> Remembered<K> {
    fn get(&self, key: &K, now: Instant) -> Option<Option<Identity>> {
        let (since, identity) = self.all.get(key)?;
        (now.saturating_duration_since(*since) < KEPT).then(|| identity.clone())
    }

    fn keep(&mut self, key: K, identity: Option<Identity>, now: Instant) {
        if self.all.len() >= MOST {
            self.all.clear();
        }
        self.all.insert(key, (now, identity));
    }
}

impl<K> Default for Remembered<K> {
    fn default() -> Self {
        Self {
            all: HashMap::new(),
        }
    }
}

/// How often something was done lately.
#[derive(Debug, Default)]
struct Allowance {
    since: Option<Instant>,
    used: usize,
}

impl Allowance {
    /// Whether it may be done once more.
    fn take(&mut self, now: Instant) -> bool {
        let old = |since: Instant| now.saturating_duration_since(since) >= KEPT;
        if self.since.is_none_or(old) {
            self.since = Some(now);
            self.used = 0;
        }
        self.used += 1;
        self.used <= LOOKS
    }
}

/// The owners of connections.
#[derive(Debug)]
pub struct Owners {
    directory: Directory,
    show_secrets: bool,
    stacks: Option<Stacks>,
    /// By the socket's inode: the next connection may have the same ports.
    known: Remembered<u64>,
    /// Those of connections that were looked for.
    looked_for: Remembered<Key>,
    allowance: Allowance,
    /// The cookie of this network namespace, where the kernel tells it.
    home: Option<u64>,
}

impl Owners {
    /// None yet; `show_secrets`: command lines are given with what may be secret in them; `stacks`: the
    /// functions that opened the connection, too.
    pub fn new(show_secrets: bool, stacks: bool) -> Self {
        Self {
            directory: Directory::new(cgroup::mount_or_part()),
            show_secrets,
            stacks: stacks.then(Stacks::default),
            known: Remembered::default(),
            looked_for: Remembered::default(),
            allowance: Allowance::default(),
            home: namespace::cookie(),
        }
    }

    /// The path, below the cgroup2 mount, of a systemd unit's cgroup.
    pub fn unit(&self, name: &str) -> Option<String> {
        cgroup::find_unit(self.directory.cgroup_root()?, name)
    }

    /// Who opened the connection; what is not known is left out.
    ///
    /// A record is found by addresses and ports alone: where two network namespaces have the same
    /// flow at once, the later one is named for both.
    pub fn of(&mut self, watch: &Watch<'_>, key: Key) -> Caller {
        let (src, dst) = key;
        let mut caller = match watch.opened(src, dst) {
            Some(record) => Caller {
                identity: record.identity(&mut self.directory),
                opened_in: self.stack(watch, &record),
                foreign: self.home.is_some_and(|home| record.netns != home),
                args: record.args,
                parents: record.parents,
            },
            None => Caller {
                identity: self.older(key, watch.sees_all(), Instant::now(), socket_table::find),
                ..Caller::default()
            },
        };
        if caller.parents.is_empty()
            && let Some(pid) = caller.identity.pid
        {
            (caller.args, caller.parents) = lineage::living(pid);
        }
        if !self.show_secrets {
            caller.args = command_line::masked(&caller.args);
        }
        caller
    }

    /// The functions that opened the connection: named while the process lives.
    fn stack(&mut self, watch: &Watch<'_>, record: &lineage::Caller) -> OpenedIn {
        let Some(stacks) = &mut self.stacks else {
            return OpenedIn::default();
        };
        let Some(mut addresses) = watch.stack(record.cookie) else {
            return OpenedIn {
                stack: Vec::new(),
                stack_reason: Some("it was not recorded"),
            };
        };
        // Where a chain of frame pointers ends that nobody has kept.
        addresses.retain(|address| *address != 0);
        let stack = stacks.name(record.who.pid, &addresses);
        OpenedIn {
            stack: stack.frames,
            stack_reason: stack.reason,
        }
    }

    /// Who has the socket open, where no hook saw it being opened. If hooks see all, they see the next connection that
    /// has the same ports, so that this one's owner may be remembered by them.
    fn older(
        &mut self,
        key: Key,
        hooked: bool,
        now: Instant,
        find: impl Fn(SocketAddr, SocketAddr) -> Option<socket_table::Socket>,
    ) -> Identity {
        if let Some(found) = self.looked_for.get(&key, now) {
            return found.unwrap_or_default();
        }
        if !self.allowance.take(now) {
            return Identity::default();
        }
        let found = find(key.0, key.1).map(|socket| self.owner(&socket, now));
        if hooked || found.is_none() {
            self.looked_for.keep(key, found.clone(), now);
        }
        found.unwrap_or_default()
    }

    fn owner(&mut self, socket: &socket_table::Socket, now: Instant) -> Identity {
        if let Some(Some(known)) = self.known.get(&socket.inode, now) {
            return known;
        }
        let mut identity = Identity {
            uid: Some(socket.uid),
            user: self.directory.user(socket.uid),
            ..Identity::default()
        };
        if let Some(pid) = socket_table::holder(socket.inode) {
            self.directory.fill(&mut identity, pid);
        }
        self.known.keep(socket.inode, Some(identity.clone()), now);
        identity
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn key(port: u16) -> Key {
        (
            SocketAddr::from(([10, 0, 0, 1], port)),
            SocketAddr::from(([169, 254, 169, 254], 80)),
        )
    }

    #[test]
    fn packets_without_a_connection_do_not_keep_the_reader_busy() {
        let mut owners = Owners::new(false, false);
        let looks = Cell::new(0);
        let find = |_, _| {
            looks.set(looks.get() + 1);
            None
        };
        let now = Instant::now();
        for _ in 0..100 {
            assert_eq!(owners.older(key(1), true, now, find), Identity::default());
        }
        assert_eq!(looks.get(), 1);
        for port in 0..5000 {
            owners.older(key(port), true, now, find);
        }
        assert_eq!(looks.get(), LOOKS);
        assert!(owners.looked_for.all.len() <= MOST);
        owners.older(key(1), true, now + KEPT, find);
        assert_eq!(looks.get(), LOOKS + 1);
    }

    #[test]
    fn the_owner_of_a_socket_is_named_and_remembered() {
        let mut owners = Owners::new(false, false);
        let now = Instant::now();
        let socket = socket_table::Socket {
            uid: 0,
            inode: u64::MAX,
        };
        let first = owners.older(key(1), true, now, |_, _| Some(socket));
        assert_eq!((first.uid, first.pid), (Some(0), None));
        // However many requests there are on one connection.
        for _ in 0..2 * LOOKS {
            assert_eq!(owners.older(key(1), true, now, |_, _| Some(socket)), first);
        }
        assert_eq!(owners.older(key(2), true, now, |_, _| Some(socket)), first);
        let next = socket_table::Socket {
            uid: 1,
            inode: u64::MAX - 1,
        };
        for (socket, uid) in [(socket, 0), (next, 1)] {
            let found = owners.older(key(3), false, now, |_, _| Some(socket));
            assert_eq!(found.uid, Some(uid));
        }
        assert_eq!(owners.known.get(&u64::MAX, now), Some(Some(first)));
        assert_eq!(owners.known.get(&u64::MAX, now + KEPT), None);
    }
}
