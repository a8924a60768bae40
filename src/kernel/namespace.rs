// SPDX-License-Identifier: BSD-2-Clause

//! A network namespace to try things in.

use std::thread;

use nix::sched::{CloneFlags, unshare};

/// Runs `work` on a thread in a new network namespace, which has a loopback interface that is down
/// and nothing else, and is gone when the thread ends. `None` if none can be made (CAP_SYS_ADMIN is
/// needed).
pub fn isolated<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| unshare(CloneFlags::CLONE_NEWNET).ok().map(|()| work()));
        thread.join().ok().flatten()
    })
}
