// SPDX-License-Identifier: BSD-2-Clause

//! Who holds a TCP socket, from `/proc`: for connections that were there before any hook.

use std::net::SocketAddr;

use procfs::net::TcpNetEntry;
use procfs::process::{FDTarget, all_processes};

/// A socket that a process has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// The uid that made the socket.
    pub uid: u32,
    /// Tells it from every other socket there is: addresses and ports come again.
    pub inode: u64,
}

/// The TCP socket of this network namespace with these addresses. One that is closed has no owner
/// any more (the table says root), and is not found.
pub fn find(local: SocketAddr, remote: SocketAddr) -> Option<Socket> {
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let entry = tables
        .into_iter()
        .flatten()
        .flatten()
        .find(|entry: &TcpNetEntry| {
            entry.inode != 0
                && same(entry.local_address, local)
                && same(entry.remote_address, remote)
        })?;
    Some(Socket {
        uid: entry.uid,
        inode: entry.inode,
    })
}

fn same(one: SocketAddr, other: SocketAddr) -> bool {
    one.ip().to_canonical() == other.ip().to_canonical() && one.port() == other.port()
}

/// The one process that has the socket open; `None` if there are several, or none that can be
/// seen. Reads all of `/proc`: a caller keeps the answer for a moment.
pub fn holder(inode: u64) -> Option<u32> {
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
        let socket = find(local, remote).unwrap();
        assert_eq!(socket.uid, nix::unistd::Uid::effective().as_raw());
        assert_eq!(holder(socket.inode), Some(std::process::id()));
        drop(stream);
        assert_eq!(find(local, remote), None);
    }
}
