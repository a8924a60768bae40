// SPDX-License-Identifier: BSD-2-Clause

//! `/tmp/perf-PID.map`: what a just-in-time compiler says of the functions that it made (Node.js with
//! `--perf-basic-prof`, Python 3.12 with `-X perf`, Java agents). Lines of `start size name`, the numbers
//! hexadecimal (`tools/perf/Documentation/jit-interface.txt` of Linux). The process's owner may write to
//! it whatever he likes.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::names;

/// Bytes that are read of it: some 200,000 functions.
const LARGEST: u64 = 16 << 20;

/// Functions, by their first address.
#[derive(Debug, Default)]
pub struct PerfMap {
    /// First address, size, name.
    functions: Vec<(u64, u64, String)>,
}

impl PerfMap {
    /// Reads the map of process `pid` in the process's own root, if it is a regular file of the process's
    /// user or of root; no path leads out of that root, and nothing is waited for.
    pub fn of(pid: u32) -> Option<Self> {
        let owner = std::fs::metadata(format!("/proc/{pid}")).ok()?.uid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let root = File::open(format!("/proc/{pid}/root")).ok()?;
        // The process's number where it counts itself is the last.
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let inner = numbers.and_then(|numbers| numbers.split_whitespace().last());
        let path = format!("tmp/perf-{}.map", inner.unwrap_or(&pid.to_string()));
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let file = File::from(openat2(root.as_fd(), Path::new(&path), how).ok()?);
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || (metadata.uid() != owner && metadata.uid() != 0) {
            return None;
        }
        let mut text = Vec::new();
        file.take(LARGEST).read_to_end(&mut text).ok()?;
        Some(Self::parse(&text))
    }

    fn parse(text: &[u8]) -> Self {
        let lines = text.split(|byte| *byte == b'\n');
        let mut functions: Vec<_> = lines.filter_map(function).collect();
        // Stable: of two at one address the later line is the newer function.
        functions.sort_by_key(|(start, ..)| *start);
        Self { functions }
    }

    /// The function that has `address`, and how far into it that is.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        let after = self
            .functions
            .partition_point(|(start, ..)| *start <= address);
        let (start, size, name) = self.functions.get(after.checked_sub(1)?)?;
        let offset = address - start;
        (offset < *size).then_some((name, offset))
    }
}

fn function(line: &[u8]) -> Option<(u64, u64, String)> {
    let mut fields = line.splitn(3, |byte| *byte == b' ');
    let mut number = || {
        let digits = std::str::from_utf8(fields.next()?).ok()?;
        u64::from_str_radix(digits.trim_start_matches("0x"), 16).ok()
    };
    let (start, size) = (number()?, number()?);
    let name = String::from_utf8_lossy(fields.next()?);
    Some((start, size, names::readable(&name)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn functions_are_found_by_any_of_their_addresses() {
        let map = PerfMap::parse(
            b"2000 10 second\n1000 20 LazyCompile:~get /a b.js:3\nnonsense\n1000 20 newer\n0x3000 1 x",
        );
        assert_eq!(map.find(0x1000), Some(("newer", 0)));
        assert_eq!(map.find(0x101f), Some(("newer", 0x1f)));
        assert_eq!(map.find(0x1020), None);
        assert_eq!(map.find(0x2001), Some(("second", 1)));
        assert_eq!(map.find(0xfff), None);
        assert_eq!(map.find(0x3000), Some(("x", 0)));
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let pid = std::process::id();
        let path = std::path::PathBuf::from(format!("/tmp/perf-{pid}.map"));
        assert!(PerfMap::of(pid).is_none());
        std::fs::write(&path, "10 10 mine\n").unwrap();
        assert_eq!(PerfMap::of(pid).unwrap().find(0x11), Some(("mine", 1)));
        std::fs::remove_file(&path).unwrap();
        // Nobody writes to it: to wait for that would be for ever.
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let found = PerfMap::of(pid);
        std::fs::remove_file(&path).unwrap();
        assert!(found.is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_read(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            line in "[0-9a-f]{0,20} [0-9a-f]{0,20} .{0,9}",
            address in any::<u64>(),
        ) {
            PerfMap::parse(&bytes).find(address);
            PerfMap::parse(line.as_bytes()).find(address);
        }
    }
}
