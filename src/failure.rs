// SPDX-License-Identifier: BSD-2-Clause

//! What can go wrong, as the person at the terminal and the script around it see it: a message and
//! an exit status.
//!
//! | status | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | failed |
//! | 2 | wrong usage: an argument or a file says something that cannot be |
//! | 3 | this kernel or these privileges cannot run it |

use std::error::Error;
use std::fmt;
use std::io;

/// Exit status of a run that failed for a reason of its own.
pub const FAILED: u8 = 1;
/// Exit status of a wrong command line or configuration; clap uses the same.
pub const USAGE: u8 = 2;
/// Exit status when the kernel or the privileges do not allow the tool to run.
pub const BLOCKED: u8 = 3;

/// An error whose exit status is not [`FAILED`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The text that was wrong and what was expected.
    Usage(String),
    /// What is missing, and how to get it.
    Blocked {
        /// The thing that this kernel or these privileges lack.
        missing: String,
        /// The one thing that mends it.
        remedy: String,
    },
}

impl Failure {
    /// A wrong argument or file; `message` names the text that was wrong and what was expected.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// A kernel or privileges that cannot run the tool.
    pub fn blocked(missing: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Blocked {
            missing: missing.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) => f.write_str(message),
            Self::Blocked { missing, remedy } => write!(f, "{missing}: {remedy}"),
        }
    }
}

impl Error for Failure {}

/// The exit status for `err`: that of the first [`Failure`] in its chain, else [`FAILED`].
pub fn exit_code(err: &anyhow::Error) -> u8 {
    match find(err) {
        Some(Failure::Usage(_)) => USAGE,
        Some(Failure::Blocked { .. }) => BLOCKED,
        None => FAILED,
    }
}

/// The first [`Failure`] in the chain of `err`.
pub fn find(err: &anyhow::Error) -> Option<&Failure> {
    err.chain()
        .find_map(|cause| cause.downcast_ref::<Failure>())
}

/// Whether `err` comes from writing to a pipe that the reader has closed.
pub fn is_closed_pipe(err: &anyhow::Error) -> bool {
    err.chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// The line for standard error: the chain of `err`, outermost first, with nothing in it that a
/// terminal would obey.
pub fn message(err: &anyhow::Error) -> String {
    format!("ebpfkit: {}", crate::output::Printable(&format!("{err:#}")))
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn a_failure_deep_in_the_chain_decides_the_exit_status() {
        let err = anyhow::Error::from(Failure::usage("no user \"x\"")).context("outer");
        assert_eq!(exit_code(&err), USAGE);
        let err = anyhow::Error::from(Failure::blocked("no BTF", "use a newer kernel"));
        assert_eq!(exit_code(&err), BLOCKED);
        assert_eq!(exit_code(&anyhow!("other")), FAILED);
    }

    #[test]
    fn a_message_carries_the_whole_chain_and_no_escape() {
        let err = anyhow!("in\u{1b}ner").context("outer");
        assert_eq!(message(&err), "ebpfkit: outer: in\\u{1b}ner");
    }

    #[test]
    fn a_closed_pipe_is_recognised_below_a_context() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        let err = Err::<(), _>(closed).context("writing").unwrap_err();
        assert!(is_closed_pipe(&err));
        assert!(!is_closed_pipe(&anyhow!("other")));
    }
}
