// SPDX-License-Identifier: BSD-2-Clause

//! To act as another user, for a moment and in one thread.

use std::io;
use std::thread;

/// Runs `work` on a thread that has this user's and this group's ids and no other group; it needs
/// CAP_SETUID and CAP_SETGID, which the thread has no more when `work` begins. The C library's
/// functions would change all threads, the system calls change the one that makes them (`setresuid(2)`,
/// "C library/kernel differences").
///
/// # Errors
/// If the ids cannot be changed.
pub fn run_as<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            #[allow(unsafe_code)]
            // SAFETY: the calls take numbers; setgroups reads no group where it is told of none.
            let codes = unsafe {
                [
                    libc::syscall(
                        libc::SYS_setgroups,
                        0_usize,
                        std::ptr::null::<libc::gid_t>(),
                    ),
                    libc::syscall(libc::SYS_setresgid, gid, gid, gid),
                    libc::syscall(libc::SYS_setresuid, uid, uid, uid),
                ]
            };
            if codes.iter().any(|code| *code < 0) {
                return Err(io::Error::last_os_error());
            }
            Ok(work())
        });
        thread
            .join()
            .map_err(|_| io::Error::other("the thread has panicked"))?
    })
}
