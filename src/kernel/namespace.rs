// SPDX-License-Identifier: BSD-2-Clause

//! Network namespaces: this one, and one to try things in.

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
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

/// Whether this thread's network namespace belongs to a user namespace other than the initial one: what the kernel says of
/// its sockets' users are numbers of that one. No, where nobody says.
pub fn has_users_of_its_own() -> bool {
    /// PROC_USER_INIT_INO of linux/proc_ns.h
    const INITIAL: u64 = 0xefff_fffd;
    /// _IO(0xb7, 1), linux/nsfs.h (4.9)
    const NS_GET_USERNS: libc::Ioctl = 0xb701;

    let Ok(netns) = File::open("/proc/thread-self/ns/net") else {
        return false;
    };
    #[allow(unsafe_code)]
    // SAFETY: the call takes no pointer; the descriptor that it returns is ours.
    let owner = unsafe {
        let fd = libc::ioctl(netns.as_raw_fd(), NS_GET_USERNS);
        (fd >= 0).then(|| File::from(OwnedFd::from_raw_fd(fd)))
    };
    owner
        .and_then(|owner| owner.metadata().ok())
        .is_some_and(|owner| owner.ino() != INITIAL)
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
