// SPDX-License-Identifier: BSD-2-Clause

//! Waiting for work, and for the signal that ends it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// SIGINT, SIGTERM and SIGHUP, as a descriptor that becomes readable and stays so. No signal
/// interrupts a system call of the main thread: the handler is a thread's.
#[derive(Debug, Clone)]
pub struct Stop {
    event: Arc<EventFd>,
}

impl Stop {
    /// Takes over the signals; once in a process.
    ///
    /// # Errors
    /// If another handler is in place already, or no descriptor is left.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::new()?;
        let event = Arc::clone(&stop.event);
        ctrlc::set_handler(move || {
            let _ = event.write(1);
        })
        .context("cannot handle signals")?;
        Ok(stop)
    }

    /// One that only [`Stop::stop`] ends.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn new() -> Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .context("cannot make an eventfd")?;
        Ok(Self {
            event: Arc::new(event),
        })
    }

    /// Ends the waiting, now and from now on.
    pub fn stop(&self) {
        let _ = self.event.write(1);
    }

    /// Waits until one of `sources` is readable, or hung up, or `timeout` is over; says for each
    /// whether it is.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub fn wait(&self, sources: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<Woken> {
        let mut fds: Vec<_> = sources
            .iter()
            .copied()
            .chain([self.event.as_fd()])
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = match left {
                None => PollTimeout::NONE,
                // Up, not down: a wait of half a millisecond is no busy loop.
                Some(left) => PollTimeout::try_from(left.as_nanos().div_ceil(1_000_000))
                    .unwrap_or(PollTimeout::MAX),
            };
            match poll(&mut fds, left) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(err) => return Err(io::Error::from(err)).context("cannot wait for events"),
            }
        }
        let mut ready: Vec<bool> = fds
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        let stopped = ready.pop().unwrap_or(true);
        Ok(Woken { ready, stopped })
    }
}

/// Why a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Woken {
    /// For each source, in the order given, whether it has something.
    pub ready: Vec<bool>,
    /// Whether the program is to end.
    pub stopped: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_ends_every_later_wait() {
        let stop = Stop::new().unwrap();
        let calm = stop.wait(&[], Some(Duration::ZERO)).unwrap();
        assert!(!calm.stopped);
        stop.clone().stop();
        for _ in 0..2 {
            assert!(stop.wait(&[], None).unwrap().stopped);
        }
    }

    #[test]
    fn a_readable_source_is_named() {
        let stop = Stop::new().unwrap();
        let (quiet, _quiet_writer) = nix::unistd::pipe().unwrap();
        let (busy, writer) = nix::unistd::pipe().unwrap();
        nix::unistd::write(&writer, b"x").unwrap();
        let woken = stop.wait(&[quiet.as_fd(), busy.as_fd()], None).unwrap();
        assert_eq!(
            woken,
            Woken {
                ready: vec![false, true],
                stopped: false
            }
        );
    }
}
