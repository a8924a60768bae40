// SPDX-License-Identifier: BSD-2-Clause

//! Network namespaces: this one, and one to try things in.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// A number that this network namespace has and no other, since the machine was booted
/// (SO_NETNS_COOKIE, kernel 5.14).
pub fn cookie() -> Option<u64> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .ok()?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).ok()?;
    #[allow(unsafe_code)]
    // SAFETY: the kernel writes eight bytes at most to the cookie, which outlives the call.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (ret == 0 && cookie != 0).then_some(cookie)
}

/// The number of this thread's network namespace among the inodes of nsfs: no other has it while this one exists; 0 if
/// nobody says (namespaces(7)).
pub fn inode() -> u32 {
    let found = fs::metadata("/proc/thread-self/ns/net");
    // Of nsfs, where numbers have 32 bits (ns_common.inum).
    found.map_or(0, |file| u32::try_from(file.ino()).unwrap_or(0))
}

/// Runs `work` on a thread in a new network namespace, which has a loopback interface that is down
/// and nothing else, and is gone when the thread ends. `None` if none can be made (CAP_SYS_ADMIN is
/// needed).
pub fn isolated<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| unshare(CloneFlags::CLONE_NEWNET).ok().map(|()| work()));
        thread.join().ok().flatten()
    })
}
