// SPDX-License-Identifier: BSD-2-Clause

//! `struct caller` of `src/bpf/lib/lineage.bpf.h`: a process with its parents, executable and command
//! line, as they were when a hook saw it.

use procfs::process::Process;

use crate::kernel::identity::{IDENTITY_BYTES, Record};
use crate::process::{self, Directory, Identity};

/// `LINEAGE_PARENTS`, `EXECUTABLE_PATH`, `EXECUTABLE_NAME` and `LINEAGE_ARGS`.
const PARENTS: usize = 4;
const EXE: usize = 256;
const NAME: usize = 64;
const ARGS: usize = 256;
/// Bytes of `struct lineage_parent`.
const PARENT_BYTES: usize = 20;
/// Bytes of `struct executable` behind its length, padding included.
const EXE_BYTES: usize = EXE + NAME + 4;
/// Bytes of `struct caller`; behind the arguments there are four of padding.
pub const CALLER_BYTES: usize =
    IDENTITY_BYTES + PARENTS * PARENT_BYTES + 4 + EXE_BYTES + 4 + ARGS + 4 + 8 + 8;

/// A process above another.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Parent {
    /// Process id in the initial PID namespace.
    pub pid: u32,
    /// The name of its first thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
}

/// What a hook recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The task.
    pub who: Record,
    /// From the nearest on, four at most.
    pub parents: Vec<Parent>,
    /// The executable's path in the process's mount namespace, if all of it was recorded.
    pub exe: Option<String>,
    /// Whether the hook could read more than the task itself.
    pub complete: bool,
    /// Of the socket that it connected; no two sockets have the same.
    pub cookie: u64,
    /// Of the network namespace that it did so in.
    pub netns: u64,
    /// The command line; without the arguments behind the first 256 bytes, and then with `…`.
    pub args: Vec<String>,
}

impl Caller {
    /// Reads a record; `None` if it has not [`CALLER_BYTES`] bytes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != CALLER_BYTES {
            return None;
        }
        let (who, rest) = bytes.split_at(IDENTITY_BYTES);
        let (parents, rest) = rest.split_at(PARENTS * PARENT_BYTES);
        let (exe_length, rest) = rest.split_at(4);
        let (exe, rest) = rest.split_at(EXE_BYTES);
        let (args_length, rest) = rest.split_at(4);
        let (args, rest) = rest.split_at(ARGS);
        let word = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?));
        let parents = parents.chunks(PARENT_BYTES).map_while(|one| {
            let pid = word(one).filter(|pid| *pid != 0)?;
            let comm = process::comm(&one[4..]);
            Some(Parent { pid, comm })
        });
        let exe_length = word(exe_length)? as usize;
        let args_length = (word(args_length)? as usize).min(ARGS);
        let parents: Vec<_> = parents.collect();
        Some(Self {
            who: Record::parse(who)?,
            complete: !parents.is_empty() || exe_length > 0 || args_length > 0,
            parents,
            exe: path(exe, exe_length),
            args: arguments(&args[..args_length]),
            cookie: u64::from_ne_bytes(*rest.get(4..)?.first_chunk()?),
            netns: u64::from_ne_bytes(*rest.last_chunk()?),
        })
    }

    /// The record, and what `/proc` adds while the process lives. What the hook saw comes first: the
    /// process may be another program by now, and another process may have its number.
    pub fn identity(&self, directory: &mut Directory) -> Identity {
        let mut identity = self.who.identity(directory);
        // A path that is too long to be recorded is none: what /proc says is of whatever runs there
        // now, which the caller may have chosen.
        if self.complete {
            identity.exe.clone_from(&self.exe);
        }
        identity
    }
}

/// Command line and parents of a process that is there, from `/proc`; for one that no hook has seen.
pub fn living(pid: u32) -> (Vec<String>, Vec<Parent>) {
    let process = |pid: u32| Process::new(pid.cast_signed()).ok();
    let Some(first) = process(pid) else {
        return (Vec::new(), Vec::new());
    };
    let parent = |of: &Process| {
        let pid = of.stat().ok()?.ppid.cast_unsigned();
        let one = (pid > 0).then(|| process(pid)).flatten()?;
        let comm = one.stat().ok().map(|stat| stat.comm);
        Some((Parent { pid, comm }, one))
    };
    let mut parents = Vec::new();
    let mut above = parent(&first);
    while let Some((found, one)) = above
        && parents.len() < PARENTS
    {
        parents.push(found);
        above = parent(&one);
    }
    let mut line = first.cmdline().unwrap_or_default().join("\0").into_bytes();
    line.push(0);
    line.truncate(ARGS);
    (arguments(&line), parents)
}

/// The path of an executable as `src/bpf/lib/executable.bpf.h` records it: names from the file up, each
/// with a zero byte behind it. Names of `NAME` - 1 bytes or longer are cut, and such a path is none.
pub fn path(bytes: &[u8], length: usize) -> Option<String> {
    if length == 0 || length >= EXE {
        return None;
    }
    let names: Vec<_> = bytes.get(..length - 1)?.split(|byte| *byte == 0).collect();
    if names.iter().any(|name| name.len() >= NAME - 1) {
        return None;
    }
    let names = names.iter().rev().map(|name| String::from_utf8_lossy(name));
    Some(names.fold(String::new(), |path, name| path + "/" + &name))
}

fn arguments(bytes: &[u8]) -> Vec<String> {
    let (whole, cut) = match bytes.strip_suffix(b"\0") {
        Some(whole) => (whole, false),
        None => (bytes, bytes.len() == ARGS),
    };
    if whole.is_empty() {
        return Vec::new();
    }
    let mut args: Vec<_> = whole
        .split(|byte| *byte == 0)
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect();
    if cut || bytes.len() == ARGS {
        args.push("…".to_owned());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(exe: &[u8], exe_length: u32, args: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IDENTITY_BYTES];
        for pid in [7_u32, 1, 0, 0] {
            bytes.extend(pid.to_ne_bytes());
            bytes.extend(b"sh\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        }
        bytes.extend(exe_length.to_ne_bytes());
        let mut field = exe.to_vec();
        field.resize(EXE_BYTES, 0);
        bytes.extend(field);
        bytes.extend(u32::try_from(args.len()).unwrap().to_ne_bytes());
        let mut field = args.to_vec();
        field.resize(ARGS + 4, 0);
        bytes.extend(field);
        bytes.extend(99_u64.to_ne_bytes());
        bytes.extend(77_u64.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_record_is_as_long_as_the_kernel_writes_it() {
        let written = size_of::<crate::skel::imds_watch::types::caller>();
        assert_eq!(CALLER_BYTES, written);
    }

    #[test]
    fn a_record_is_read_field_by_field() {
        let bytes = record(b"curl\0bin\0usr\0", 13, b"curl\0-s\0\0");
        let caller = Caller::parse(&bytes).unwrap();
        assert_eq!(caller.exe.as_deref(), Some("/usr/bin/curl"));
        assert_eq!(caller.args, ["curl", "-s", ""]);
        assert_eq!((caller.cookie, caller.netns), (99, 77));
        let pids: Vec<_> = caller.parents.iter().map(|one| one.pid).collect();
        assert_eq!(pids, [7, 1]);
        assert_eq!(caller.parents[0].comm.as_deref(), Some("sh"));
        assert_eq!(Caller::parse(&bytes[1..]), None);
    }

    #[test]
    fn an_executable_that_was_not_recorded_is_not_taken_from_what_runs_now() {
        let mut directory = Directory::new(None);
        let mut exe = |bytes: &[u8]| {
            let mut caller = Caller::parse(bytes).unwrap();
            caller.who.pid = std::process::id();
            caller.who.boot_ns = u64::MAX;
            caller.identity(&mut directory).exe
        };
        let long = [&[b'a'; NAME - 1][..], b"\0"].concat();
        assert_eq!(exe(&record(&long, NAME as u32, b"x\0")), None);
        assert_eq!(exe(&record(b"", 0, b"")), None);
        // Where the hook could not read a task at all, there is nothing better.
        let mut bare = record(b"", 0, b"");
        bare[IDENTITY_BYTES..][..PARENTS * PARENT_BYTES].fill(0);
        assert!(exe(&bare).is_some());
    }

    #[test]
    fn proc_tells_the_same_of_a_process_that_is_there() {
        let (args, parents) = living(std::process::id());
        assert!(!args.is_empty());
        assert_eq!(
            parents[0].pid,
            nix::unistd::getppid().as_raw().cast_unsigned()
        );
        assert!((1..=PARENTS).contains(&parents.len()));
        assert_eq!(living(u32::MAX), (Vec::new(), Vec::new()));
    }

    #[test]
    fn what_was_cut_is_not_taken_for_the_whole() {
        let parse =
            |exe: &[u8], length, args: &[u8]| Caller::parse(&record(exe, length, args)).unwrap();
        assert_eq!(parse(b"a\0", EXE as u32, b"").exe, None);
        assert_eq!(parse(b"", 0, b"").exe, None);
        let long = [&[b'a'; NAME - 1][..], b"\0"].concat();
        assert_eq!(parse(&long, NAME as u32, b"").exe, None);
        let cut = parse(b"", 0, &[b'x'; ARGS]);
        assert_eq!(cut.args.last().map(String::as_str), Some("…"));
        assert_eq!(parse(b"", u32::MAX, b"").exe, None);
    }
}
