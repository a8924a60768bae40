// SPDX-License-Identifier: BSD-2-Clause

//! Threads that come first, and processes that wait for them.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// A process that is stopped by `SIGSTOP`. Dropping it lets it go on.
#[derive(Debug)]
pub struct Held {
    process: OwnedFd,
}

impl Held {
    /// Stops `pid`; `None` if it is stopped or traced already, which is somebody else's affair.
    ///
    /// # Errors
    /// Those of pidfd_open(2) (kernel 5.3) and pidfd_send_signal(2): `ESRCH` if it has ended, `EPERM`
    /// if it is another user's and `CAP_KILL` is missing.
    pub fn stop(pid: u32) -> io::Result<Option<Self>> {
        // Before its state is read, so that both are of the same process.
        let process = open(pid)?;
        if is_stopped(&fs::read(format!("/proc/{pid}/stat"))?) {
            return Ok(None);
        }
        signal(&process, libc::SIGSTOP)?;
        Ok(Some(Self { process }))
    }

    /// Takes over `pid`, which was stopped for us.
    ///
    /// # Errors
    /// Those of pidfd_open(2): `ESRCH` if it has ended.
    pub fn already(pid: u32) -> io::Result<Self> {
        open(pid).map(|process| Self { process })
    }
}

/// Lets `pid` go on, whichever process has that number now: where no descriptor is left to hold on to it.
pub fn let_go(pid: u32) {
    #[allow(unsafe_code)]
    // SAFETY: two numbers.
    let _ = unsafe { libc::kill(pid.cast_signed(), libc::SIGCONT) };
}

/// A process that may stop itself because a child of it was stopped, as su(1) and nsenter(1) do: they wait until
/// somebody lets them go on.
#[derive(Debug)]
pub struct Parent {
    /// Its number.
    pub pid: u32,
    process: OwnedFd,
}

impl Parent {
    /// `pid`, if it is the parent of `child`.
    pub fn of(child: u32, pid: u32) -> Option<Self> {
        // Before it is known to be the parent, so that both are the same process.
        let process = open(pid).ok()?;
        let stat = fs::read(format!("/proc/{child}/stat")).ok()?;
        (parent(&stat) == Some(pid)).then_some(Self { pid, process })
    }

    /// Lets it go on if it is stopped; says whether it was.
    pub fn go_on_if_stopped(&self) -> bool {
        let stat = fs::read(format!("/proc/{}/stat", self.pid));
        // Of another process with this number, which the descriptor knows.
        stat.is_ok_and(|stat| state(&stat) == Some(b'T'))
            && signal(&self.process, libc::SIGCONT).is_ok()
    }
}

impl Held {
    /// Lets it go on before this is dropped.
    pub fn go_on(&self) {
        // It may have been killed meanwhile.
        let _ = signal(&self.process, libc::SIGCONT);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.go_on();
    }
}

/// Has the calling thread come before others, if that is allowed (`CAP_SYS_NICE`): for one that has
/// little to do, and at once.
pub fn hurry() {
    #[allow(unsafe_code)]
    // SAFETY: three numbers; 0 is the calling thread (setpriority(2), on Linux).
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}

/// A descriptor of the process `pid`, which stays the same process's (pidfd_open(2), kernel 5.3).
///
/// # Errors
/// `ESRCH` if there is none.
pub(super) fn open(pid: u32) -> io::Result<OwnedFd> {
    #[allow(unsafe_code)]
    // SAFETY: two numbers; the descriptor that it returns is ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        match i32::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Sends `signal` to the process of a descriptor.
///
/// # Errors
/// Those of pidfd_send_signal(2): `ESRCH` if it has ended.
pub(super) fn signal(process: &OwnedFd, signal: i32) -> io::Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: numbers, and no information to go with the signal.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the text of a `/proc/PID/stat` is of a process that is stopped (T) or traced (t).
fn is_stopped(stat: &[u8]) -> bool {
    matches!(state(stat), Some(b'T' | b't'))
}

/// The state in the text of a `/proc/PID/stat`.
fn state(stat: &[u8]) -> Option<u8> {
    behind_name(stat)?.first().copied()
}

/// The number of the parent in the text of a `/proc/PID/stat`.
fn parent(stat: &[u8]) -> Option<u32> {
    let fields = str::from_utf8(behind_name(stat)?).ok()?;
    fields.split(' ').nth(1)?.parse().ok()
}

/// What follows the name, which may have anything in it.
fn behind_name(stat: &[u8]) -> Option<&[u8]> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(end + 2..)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_state_is_behind_the_name() {
        assert!(is_stopped(b"7 (a) R) T 1 7"));
        assert!(is_stopped(b"7 (a) t 1"));
        assert!(!is_stopped(b"7 (a T) S 1"));
        assert!(!is_stopped(b""));
        assert_eq!(parent(b"7 (a) R) T 1 7"), Some(1));
        assert_eq!(parent(b"7 (a 2 3"), None);
    }

    #[test]
    fn a_parent_that_is_stopped_goes_on_and_nobody_else_is_taken_for_it() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let own = std::process::id();
        let parent = Parent::of(child.id(), own).unwrap();
        assert!(!parent.go_on_if_stopped());
        assert!(Parent::of(own, child.id()).is_none());
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 100 & echo $!; kill -STOP $$; kill $!"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(shell.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let parent = Parent::of(line.trim().parse().unwrap(), shell.id()).unwrap();
        while !parent.go_on_if_stopped() {
            std::thread::yield_now();
        }
        assert!(shell.wait().unwrap().success());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_waits_as_long_as_it_is_held_and_nobody_holds_it_twice() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let stopped = || {
            let stat = fs::read(format!("/proc/{}/stat", child.id())).unwrap();
            is_stopped(&stat)
        };
        let held = Held::stop(child.id()).unwrap().unwrap();
        while !stopped() {
            std::thread::yield_now();
        }
        assert!(Held::stop(child.id()).unwrap().is_none());
        drop(held);
        while stopped() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
