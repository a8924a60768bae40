// SPDX-License-Identifier: BSD-2-Clause

//! Lines on their way out by a thread of their own: whoever does not read them, or has the disk full,
//! holds nobody up. What there is no room for is counted.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Bytes that wait to be written, at most: some thousands of lines.
const ROOM: usize = 1 << 20;
/// How long the end waits for a reader who takes nothing.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause after which a descriptor that somebody has made non-blocking is tried again.
const PAUSE: Duration = Duration::from_millis(10);

/// Where lines go. Clones are the same outlet.
#[derive(Debug, Clone)]
pub struct Outlet {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    come: Condvar,
    /// Something was written, or failed.
    gone: Condvar,
    /// Becomes readable when writing fails.
    failed: EventFd,
}

#[derive(Debug, Default)]
struct State {
    queue: Vec<u8>,
    /// Bytes that the thread has taken, and not yet written.
    taken: Vec<u8>,
    unwritten: u64,
    error: Option<io::Error>,
    /// Nobody will ever read.
    closed: bool,
}

fn lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

impl Outlet {
    /// An outlet to a copy of this descriptor.
    ///
    /// # Errors
    /// If no descriptor is left, or no thread.
    pub fn new(to: impl AsFd) -> Result<Self> {
        let file = File::from(to.as_fd().try_clone_to_owned().context("an output")?);
        let failed = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .context("cannot make an eventfd")?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            come: Condvar::new(),
            gone: Condvar::new(),
            failed,
        });
        let working = Arc::clone(&shared);
        // It ends with the process: it may be at a write that never returns.
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || working.write_out(file))
            .context("cannot start a thread")?;
        Ok(Self { shared })
    }

    /// A writer of whole lines to it, which never waits.
    pub fn writer(&self) -> Lines {
        Lines {
            outlet: self.clone(),
            line: Vec::new(),
        }
    }

    /// Becomes readable when writing has failed, see [`Outlet::error`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.failed.as_fd()
    }

    /// Why writing failed, once for each time. A closed pipe stays so.
    pub fn error(&self) -> Option<io::Error> {
        let _ = self.shared.failed.read();
        let mut state = self.shared.lock();
        state
            .error
            .take()
            .or_else(|| state.closed.then(|| io::ErrorKind::BrokenPipe.into()))
    }

    /// Lines that could not be written so far.
    pub fn unwritten(&self) -> u64 {
        self.shared.lock().unwritten
    }

    /// Waits until all is written, as long as somebody takes any of it. What is left counts as unwritten.
    pub fn finish(&self) {
        let mut state = self.shared.lock();
        loop {
            let left = state.queue.len() + state.taken.len();
            if left == 0 {
                return;
            }
            let waited = self.shared.gone.wait_timeout(state, PATIENCE);
            let (now, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            state = now;
            if waited.timed_out() && state.queue.len() + state.taken.len() == left {
                state.unwritten += lines(&state.queue) + lines(&state.taken);
                state.queue.clear();
                return;
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        if state.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if state.queue.len() + line.len() > ROOM {
            state.unwritten += lines(line);
        } else {
            state.queue.extend_from_slice(line);
            self.come.notify_one();
        }
        Ok(())
    }

    fn write_out(&self, mut file: File) {
        let mut within_a_line = false;
        loop {
            let mut state = self.lock();
            while state.queue.is_empty() {
                state = self
                    .come
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let mut bytes = std::mem::take(&mut state.queue);
            if within_a_line {
                bytes.insert(0, b'\n');
            }
            state.taken.clone_from(&bytes);
            drop(state);
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                match file.write(rest) {
                    Ok(0) => self.fail(io::ErrorKind::WriteZero.into(), &mut rest),
                    Ok(written) => {
                        within_a_line = rest.get(written - 1) != Some(&b'\n');
                        rest = &rest[written..];
                        let mut state = self.lock();
                        let done = state.taken.len().saturating_sub(rest.len());
                        state.taken.drain(..done);
                        self.gone.notify_all();
                    }
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
                    Err(err) => self.fail(err, &mut rest),
                }
            }
        }
    }

    fn fail(&self, err: io::Error, rest: &mut &[u8]) {
        let mut state = self.lock();
        state.closed |= err.kind() == io::ErrorKind::BrokenPipe;
        state.unwritten += lines(rest);
        state.taken.clear();
        *rest = &[];
        state.error = Some(err);
        let _ = self.failed.write(1);
        self.gone.notify_all();
    }
}

/// Writes whole lines to an outlet.
#[derive(Debug)]
pub struct Lines {
    outlet: Outlet,
    /// What has come of a line.
    line: Vec<u8>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.last() == Some(&b'\n') {
            let pushed = self.outlet.shared.push(&self.line);
            self.line.clear();
            pushed?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let (read, write) = io::pipe().unwrap();
        let outlet = Outlet::new(&write).unwrap();
        drop(write);
        let mut lines = outlet.writer();
        let reader = thread::spawn(move || {
            let mut text = vec![0; 6 * 1000];
            let mut read = read;
            read.read_exact(&mut text).unwrap();
            text
        });
        let mut wanted = String::new();
        for number in 10_000..11_000 {
            write!(lines, "{number}").unwrap();
            lines.write_all(b"\n").unwrap();
            wanted.push_str(&format!("{number}\n"));
        }
        outlet.finish();
        assert_eq!(outlet.unwritten(), 0);
        assert_eq!(String::from_utf8(reader.join().unwrap()).unwrap(), wanted);
    }

    #[test]
    fn nobody_who_reads_holds_nobody_up_and_each_line_is_counted() {
        let (mut read, write) = io::pipe().unwrap();
        let outlet = Outlet::new(&write).unwrap();
        drop(write);
        let mut lines = outlet.writer();
        let line = [[b'x'; 999].as_slice(), b"\n"].concat();
        for _ in 0..3000 {
            lines.write_all(&line).unwrap();
        }
        assert!(outlet.unwritten() > 0);
        outlet.finish();
        // What is unwritten, and what can be read still: in the pipe, and in the thread's hands.
        let unwritten = outlet.unwritten();
        let mut got = vec![0; (3000 - usize::try_from(unwritten).unwrap()) * 1000];
        read.read_exact(&mut got).unwrap();
        assert_eq!(lines_of(&got) + unwritten, 3000);
    }

    fn lines_of(bytes: &[u8]) -> u64 {
        super::lines(bytes)
    }

    #[test]
    fn a_full_disk_is_told_of_and_a_closed_pipe_stays_closed() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let outlet = Outlet::new(&full).unwrap();
        outlet.writer().write_all(b"a\nb\n").unwrap();
        outlet.finish();
        assert_eq!(outlet.unwritten(), 2);
        let said = outlet.error().unwrap();
        assert_eq!(said.kind(), io::ErrorKind::StorageFull);
        assert!(outlet.error().is_none());

        let (read, write) = io::pipe().unwrap();
        drop(read);
        let outlet = Outlet::new(&write).unwrap();
        outlet.writer().write_all(b"a\n").unwrap();
        outlet.finish();
        for _ in 0..2 {
            assert_eq!(outlet.error().unwrap().kind(), io::ErrorKind::BrokenPipe);
        }
        assert!(outlet.writer().write_all(b"b\n").is_err());
    }
}
