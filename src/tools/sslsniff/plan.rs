// SPDX-License-Identifier: BSD-2-Clause

//! From arguments to what is written to the kernel: pure, and printable.

use std::ffi::OsString;
use std::path::PathBuf;

use super::Args;
use super::cgroups;
use crate::failure::Failure;
use crate::process;

/// The longest name of a thread, without the zero byte at its end (`TASK_COMM_LEN`).
pub const LONGEST_COMM: usize = 15;
/// The largest record but one: see `huge_records` in `sslsniff.bpf.c`.
const SMALLEST_RING: u64 = 64 << 10;
/// The kernel's limit is memory; this is one for typing mistakes.
const LARGEST_RING: u64 = 1 << 30;
/// Below this the ring has no room for several records of 64 KiB.
const SMALLEST_RING_FOR_HUGE: u64 = 512 << 10;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Processes that are watched, with their children; all, if neither these nor a command are
    /// given.
    pub pids: Vec<u32>,
    /// Users that are watched; all, if empty.
    pub uids: Vec<u32>,
    /// Names of threads that are watched, filled up with zeros; all, if empty.
    pub comms: Vec<[u8; 16]>,
    /// Folders of cgroups that are watched, with those below; all, if empty.
    pub cgroups: Vec<PathBuf>,
    /// Bytes that are copied of a call at most.
    pub max_bytes: u64,
    /// Bytes of the ring; a power of two.
    pub ring: u32,
    /// Where calls were made is told.
    pub stacks: bool,
    /// Keys are told.
    pub keys: bool,
    /// Processes wait until what they map was looked into.
    pub hold: bool,
    /// The only files to probe, if any.
    pub only: Vec<PathBuf>,
    /// What to run and watch: the program and its arguments.
    pub command: Option<(PathBuf, Vec<OsString>)>,
}

impl Default for Plan {
    /// Everything, of everybody.
    fn default() -> Self {
        Self {
            pids: Vec::new(),
            uids: Vec::new(),
            comms: Vec::new(),
            cgroups: Vec::new(),
            max_bytes: u64::MAX,
            ring: 64 << 10,
            stacks: false,
            keys: false,
            hold: false,
            only: Vec::new(),
            command: None,
        }
    }
}

impl Plan {
    /// What `args` say.
    ///
    /// # Errors
    /// [`Failure::Usage`], with the text that is wrong.
    pub fn of(args: &Args) -> Result<Self, Failure> {
        let mut plan = Self {
            pids: args.pid.clone(),
            uids: Vec::new(),
            comms: Vec::new(),
            cgroups: Vec::new(),
            max_bytes: if args.no_payload {
                0
            } else {
                args.max_bytes.unwrap_or(u64::MAX)
            },
            ring: u32::try_from(args.buffer).unwrap_or(u32::MAX),
            stacks: args.stack,
            keys: args.keylog.is_some(),
            hold: args.hold,
            only: args.lib.clone(),
            command: args
                .command
                .split_first()
                .map(|(program, args)| (PathBuf::from(program), args.to_vec())),
        };
        for pid in &args.pid {
            let status = std::fs::read(format!("/proc/{pid}/status"))
                .map_err(|_| Failure::usage(format!("--pid {pid}: no such process")))?;
            // A thread has a folder in /proc as well, which is only not listed.
            if let Some(process) = process_of(&status)
                && process != *pid
            {
                return Err(Failure::usage(format!(
                    "--pid {pid}: {pid} is a thread of process {process}"
                )));
            }
        }
        for user in &args.user {
            let uid = process::resolve_user(user)
                .ok_or_else(|| Failure::usage(format!("--user {user:?}: no such user")))?;
            plan.uids.push(uid);
        }
        for comm in &args.comm {
            plan.comms.push(comm_key(comm)?);
        }
        for text in &args.cgroup {
            let mount = crate::kernel::cgroup::mount();
            plan.cgroups
                .extend(cgroups::resolve(text, mount.as_deref())?);
        }
        if plan.cgroups.len() > cgroups::MOST {
            return Err(Failure::usage(format!(
                "--cgroup: {} cgroups are meant, and {} at most can be watched",
                plan.cgroups.len(),
                cgroups::MOST
            )));
        }
        Ok(plan)
    }

    /// Whether processes are watched by number.
    pub fn by_pid(&self) -> bool {
        !self.pids.is_empty() || self.command.is_some()
    }

    /// Whether the ring has room for several of the largest records.
    pub fn huge_records(&self) -> bool {
        u64::from(self.ring) >= SMALLEST_RING_FOR_HUGE
    }
}

/// The process that the text of a `/proc/PID/status` is about, or is of a thread of.
fn process_of(status: &[u8]) -> Option<u32> {
    let number = status
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"Tgid:"))?;
    std::str::from_utf8(number).ok()?.trim().parse().ok()
}

fn comm_key(comm: &str) -> Result<[u8; 16], Failure> {
    let mut key = [0; 16];
    if comm.is_empty() || comm.len() > LONGEST_COMM || comm.contains('\0') {
        return Err(Failure::usage(format!(
            "--comm {comm:?}: a thread's name has 1 to {LONGEST_COMM} bytes (see /proc/PID/comm)"
        )));
    }
    key[..comm.len()].copy_from_slice(comm.as_bytes());
    Ok(key)
}

/// A number of bytes: digits, and K, M or G for powers of 1024.
///
/// # Errors
/// What is wrong with it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let wrong = || "expected a number of bytes, as in 4096, 64K or 16M".to_owned();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// The size of a ring.
///
/// # Errors
/// What is wrong with it.
pub fn parse_ring(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if !size.is_power_of_two() || !(SMALLEST_RING..=LARGEST_RING).contains(&size) {
        return Err("expected a power of two from 64K to 1G".to_owned());
    }
    Ok(size)
}

/// A process's number.
///
/// # Errors
/// What is wrong with it.
pub fn parse_pid(text: &str) -> Result<u32, String> {
    let pid: Option<i32> = text.parse().ok().filter(|pid| *pid > 0);
    pid.filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
        .map(i32::unsigned_abs)
        .ok_or_else(|| "expected a process's number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("16m"), Ok(16 << 20));
        assert_eq!(parse_size("1G"), Ok(1 << 30));
        for wrong in [
            "",
            "K",
            "-1",
            "+1",
            "1.5M",
            "1KB",
            "0x10",
            "18014398509481984K",
            "é",
        ] {
            assert!(parse_size(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_ring_is_a_power_of_two_that_holds_records() {
        assert_eq!(parse_ring("64K"), Ok(65536));
        assert_eq!(parse_ring("1G"), Ok(1 << 30));
        for wrong in ["0", "4096", "65537", "3M", "2G"] {
            assert!(parse_ring(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_pid_is_a_positive_number() {
        assert_eq!(parse_pid("1"), Ok(1));
        for wrong in ["0", "-1", "+1", "", "x", "4294967296", "2147483648"] {
            assert!(parse_pid(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_thread_belongs_to_a_process() {
        let status = std::fs::read("/proc/thread-self/status").unwrap();
        assert_eq!(process_of(&status), Some(std::process::id()));
        assert_eq!(process_of(b"Name:\t\xff\nTgid:\t12\nPid:\t13\n"), Some(12));
        for wrong in [&b""[..], b"Tgid:", b"Tgid:\tx\n", b"Name:\tx"] {
            assert_eq!(process_of(wrong), None);
        }
    }

    #[test]
    fn a_name_that_no_thread_can_have_is_refused() {
        assert_eq!(comm_key("curl").unwrap(), *b"curl\0\0\0\0\0\0\0\0\0\0\0\0");
        assert!(comm_key("abcdefghijklmno").is_ok());
        for wrong in ["", "abcdefghijklmnop", "a\0b"] {
            let err = comm_key(wrong).unwrap_err();
            assert!(err.to_string().contains(&format!("{wrong:?}")), "{err}");
        }
    }
}
