// SPDX-License-Identifier: BSD-2-Clause

//! Who holds a TCP socket, from `/proc`: for connections that were there before any hook.

use std::net::SocketAddr;

use procfs::net::TcpNetEntry;
use procfs::process::{FDTarget, all_processes};

/// What `/proc` says of a socket's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The uid that made the socket.
    pub uid: u32,
    /// The one process that has it open; `None` if there are several, or none that can be seen.
    pub pid: Option<u32>,
}

/// The owner of the TCP socket of this network namespace with these addresses. Reads all of
/// `/proc`: a caller keeps the answer.
pub fn owner(local: SocketAddr, remote: SocketAddr) -> Option<Owner> {
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let entry = tables
        .into_iter()
        .flatten()
        .flatten()
        .find(|entry: &TcpNetEntry| {
            same(entry.local_address, local) && same(entry.remote_address, remote)
        })?;
    Some(Owner {
        uid: entry.uid,
        pid: holder(entry.inode),
    })
}

fn same(one: SocketAddr, other: SocketAddr) -> bool {
    one.ip().to_canonical() == other.ip().to_canonical() && one.port() == other.port()
}

fn holder(inode: u64) -> Option<u32> {
    if inode == 0 {
        return None;
    }
    let mut holders = all_processes().ok()?.flatten().filter(|process| {
        process.fd().is_ok_and(|mut fds| {
            fds.any(|fd| fd.is_ok_and(|fd| fd.target == FDTarget::Socket(inode)))
        })
    });
    let first = holders.next()?;
    holders
        .next()
        .is_none()
        .then_some(first.pid.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_of_this_process_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let owner = owner(local, remote).unwrap();
        assert_eq!(owner.uid, nix::unistd::Uid::effective().as_raw());
        assert_eq!(owner.pid, Some(std::process::id()));
    }
}
