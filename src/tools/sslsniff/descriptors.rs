// SPDX-License-Identifier: BSD-2-Clause

//! Descriptors: every probe is one, and anybody can make there be many libraries to probe.

use std::fs::File;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use super::function::Function;
use super::probes::has_return;
use crate::kernel::uprobes::Method;

/// What is kept free while probes are attached: for the ring, the command and `/proc`.
const SPARE: usize = 16;

/// As [`most_libraries`], however many descriptors there may be.
const MOST_LIBRARIES: usize = 1024;

/// Soft and hard limit of open files.
pub type Limit = (rlim_t, rlim_t);

/// Allows this process as many descriptors as it may have; returns the limit before, for the command
/// that is started: programs that use select(2) rely on the usual one.
pub fn raise() -> Option<Limit> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok()?;
    Some((soft, hard))
}

/// Sets the limit, as in a child before its program runs; one system call.
///
/// # Errors
/// Those of setrlimit(2).
pub fn restore((soft, hard): Limit) -> std::io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?)
}

/// As many libraries as may be found: each holds a descriptor until its probes are attached, and these
/// hold some from then on; all else, the programs above all, takes some as well. Generous figures.
pub fn most_libraries(method: Method) -> usize {
    let entries = Function::ALL.len();
    let returns = Function::ALL
        .into_iter()
        .filter(|one| has_return(*one))
        .count();
    // Of no library all; OpenSSL has most of them.
    let functions = (entries + returns) as rlim_t;
    let (others, each) = match method {
        // A program and a link for entries, the same for returns.
        Method::Session | Method::Multi => (64, 4),
        // For each function.
        Method::Linked => (64, functions),
        // A program for each as well.
        Method::Classic => (64 + functions, functions),
    };
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let room = soft.saturating_sub(others) / each;
    usize::try_from(room).map_or(MOST_LIBRARIES, |room| room.clamp(1, MOST_LIBRARIES))
}

/// Descriptors to drop when room is needed; fewer, if there are not so many.
pub fn spare() -> Vec<File> {
    (0..SPARE)
        .map_while(|_| File::open("/dev/null").ok())
        .collect()
}
