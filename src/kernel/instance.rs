// SPDX-License-Identifier: BSD-2-Clause

//! One process at a time, per network namespace: a name that only one can hold, and that is free
//! again with its process, whatever ends it.
//!
//! The name is that of a unix socket in the abstract namespace (`unix(7)`), which is a network
//! namespace's own. Anybody may take such a name first. So who holds it is looked up, and a holder
//! who is neither root nor this user keeps nobody out.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::{Context as _, Result};
use nix::unistd::Uid;
use procfs::process::{FDTarget, all_processes};

/// The name, held as long as this value lives.
#[derive(Debug)]
pub struct Instance {
    // Never read: the name is free when it is dropped.
    _socket: UnixDatagram,
}

/// Who has the name.
#[derive(Debug)]
pub enum Claim {
    /// This process, now.
    Ours(Instance),
    /// A process of root or of this user; its id, if `/proc` shows it.
    Taken(Option<u32>),
    /// A process of another user, who is not to be believed.
    Squatted {
        /// The process id.
        pid: u32,
        /// Its user.
        uid: u32,
    },
}

/// Takes `name`, if nobody has it.
///
/// # Errors
/// If sockets cannot be had.
pub fn claim(name: &str) -> Result<Claim> {
    let address = SocketAddr::from_abstract_name(name).context("a socket's name")?;
    match UnixDatagram::bind_addr(&address) {
        Ok(socket) => Ok(Claim::Ours(Instance { _socket: socket })),
        Err(err) if err.kind() == io::ErrorKind::AddrInUse => Ok(judge(holder(name))),
        Err(err) => Err(err).with_context(|| format!("cannot take the name @{name}")),
    }
}

/// The process id of who has `name`, if it is a process of root or of this user.
pub fn running(name: &str) -> Option<u32> {
    match judge(holder(name)) {
        Claim::Taken(pid) => pid,
        _ => None,
    }
}

fn judge(holder: Option<(u32, u32)>) -> Claim {
    match holder {
        Some((pid, uid)) if uid != 0 && uid != Uid::effective().as_raw() => {
            Claim::Squatted { pid, uid }
        }
        other => Claim::Taken(other.map(|(pid, _)| pid)),
    }
}

/// The process, and its user, that has the socket of this name in this network namespace.
fn holder(name: &str) -> Option<(u32, u32)> {
    let path = format!("@{name}");
    // What /proc/net links to is the network namespace of the process's first thread.
    let sockets = procfs::net::unix().ok()?;
    let inode = sockets
        .iter()
        .find(|socket| socket.path.as_ref().and_then(|at| at.to_str()) == Some(&path))?
        .inode;
    all_processes().ok()?.flatten().find_map(|process| {
        let has_it = process
            .fd()
            .ok()?
            .flatten()
            .any(|fd| matches!(fd.target, FDTarget::Socket(number) if number == inode));
        let uid = has_it.then(|| process.uid().ok()).flatten()?;
        Some((process.pid.cast_unsigned(), uid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_once_and_is_free_again() {
        let name = format!("ebpfkit-test-{}", std::process::id());
        let Claim::Ours(first) = claim(&name).unwrap() else {
            panic!("the name is taken");
        };
        let me = std::process::id();
        assert!(matches!(claim(&name).unwrap(), Claim::Taken(Some(pid)) if pid == me));
        assert_eq!(running(&name), Some(me));
        drop(first);
        assert_eq!(running(&name), None);
        assert!(matches!(claim(&name).unwrap(), Claim::Ours(_)));
    }

    #[test]
    fn another_user_keeps_nobody_out() {
        let other = Uid::effective().as_raw() + 1;
        assert!(matches!(
            judge(Some((7, other))),
            Claim::Squatted { pid: 7, uid } if uid == other
        ));
        assert!(matches!(judge(Some((7, 0))), Claim::Taken(Some(7))));
        assert!(matches!(judge(None), Claim::Taken(None)));
    }
}
