// SPDX-License-Identifier: BSD-2-Clause

//! The command that is run and watched.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::descriptors;
use crate::failure::Failure;
use crate::kernel::stop::Stop;

/// A command under way. Dropping it asks it to end, if it has not.
#[derive(Debug)]
pub struct Running {
    child: Child,
    status: Option<ExitStatus>,
}

impl Running {
    /// Starts `program`; `stop` is stopped when it ends. With `stdout_is_taken` its standard output
    /// goes where standard error goes; `descriptors` is its limit of open files.
    ///
    /// # Errors
    /// [`Failure::Usage`] if there is no such program or it cannot be run.
    pub fn start(
        program: &Path,
        args: &[OsString],
        stdout_is_taken: bool,
        descriptors: Option<descriptors::Limit>,
        stop: &Stop,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args);
        if stdout_is_taken {
            let stderr = io::stderr().as_fd().try_clone_to_owned();
            command.stdout(Stdio::from(
                stderr.context("cannot duplicate standard error")?,
            ));
        }
        if let Some(limit) = descriptors {
            #[allow(unsafe_code)]
            // SAFETY: one system call, which neither allocates nor locks.
            unsafe {
                command.pre_exec(move || descriptors::restore(limit))
            };
        }
        let child = command.spawn().map_err(|err| {
            Failure::usage(format!(
                "cannot run the command {}: {err}",
                program.display()
            ))
        })?;
        let (stop, pid) = (stop.clone(), Pid::from_raw(child.id().cast_signed()));
        thread::spawn(move || {
            // Left for `ended` to reap: until then the number is nobody else's.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            while waitid(Id::Pid(pid), flags) == Err(nix::errno::Errno::EINTR) {}
            stop.stop();
        });
        Ok(Self {
            child,
            status: None,
        })
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Exit status and signal, of which it has one if it ended.
    pub fn outcome(&mut self) -> (Option<i32>, Option<i32>) {
        self.ended()
            .map_or((None, None), |status| (status.code(), status.signal()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended().is_none() {
            // Not reaped, so the number is still its own.
            let _ = kill(
                Pid::from_raw(self.child.id().cast_signed()),
                Signal::SIGTERM,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure;

    #[test]
    fn the_end_of_the_command_ends_the_waiting() {
        let stop = Stop::new().unwrap();
        let args = ["-c".into(), "exit 3".into()];
        let mut command = Running::start(Path::new("sh"), &args, false, None, &stop).unwrap();
        assert!(stop.wait(&[], None).unwrap().stopped);
        assert_eq!(command.outcome(), (Some(3), None));
    }

    #[test]
    fn a_command_that_is_left_behind_is_asked_to_end() {
        let stop = Stop::new().unwrap();
        let command =
            Running::start(Path::new("sleep"), &["1000".into()], false, None, &stop).unwrap();
        drop(command);
        assert!(stop.wait(&[], None).unwrap().stopped);
    }

    #[test]
    fn a_command_that_is_not_there_is_named() {
        let stop = Stop::new().unwrap();
        let err =
            Running::start(Path::new("/no/such/program"), &[], false, None, &stop).unwrap_err();
        assert_eq!(failure::exit_code(&err), failure::USAGE);
        assert!(err.to_string().contains("/no/such/program"), "{err}");
    }
}
