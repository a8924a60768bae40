// SPDX-License-Identifier: BSD-2-Clause

//! What passes in the tests of sslsniff's rows, and whether it was shown: folders of unpacked packages, payload of
//! every size, and streams to find it in.

// Each test file is a crate of its own and uses its part.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Ended, sh};
use crate::place::{Place, streams};

pub mod container;

/// The sizes that every row carries.
pub const SIZES: [usize; 8] = [1, 4095, 4096, 8192, 16384, 16385, 100_000, 10_000_000];

/// The folder that packages are unpacked in, see `unpacked`.
pub fn unpacked(name: &str) -> PathBuf {
    let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sslsniff/unpacked");
    PathBuf::from(sh(Command::new(fetch).arg(name)).trim_end())
}

pub fn first_below(root: &Path, patterns: &[&str]) -> PathBuf {
    let found = patterns.iter().find_map(|pattern| {
        let mut find = Command::new("find");
        let output = sh(find.arg(root).args(["-name", pattern]));
        output.lines().next().map(PathBuf::from)
    });
    found.unwrap_or_else(|| panic!("none of {patterns:?} in {}", root.display()))
}

/// Random bytes, the same for the same seed.
pub fn random(size: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..size).map(|_| next()).collect()
}

/// The same as text of letters and digits, for what carries no other.
pub fn random_text(size: usize, seed: u32) -> Vec<u8> {
    const LETTERS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";
    let letter = |byte: u8| LETTERS[usize::from(byte) % LETTERS.len()];
    random(size, seed).into_iter().map(letter).collect()
}

/// Files of a folder whose names are in the order of the payloads.
pub fn payload_files(place: &Place, payloads: &[Vec<u8>]) -> String {
    let folder = place.dir.path().join("payloads");
    std::fs::create_dir(&folder).unwrap();
    for (number, payload) in payloads.iter().enumerate() {
        std::fs::write(folder.join(number.to_string()), payload).unwrap();
    }
    folder.display().to_string()
}

/// A Python with packages that have their own TLS library inside.
pub fn clients() -> String {
    installed("bin/python3")
}

/// A file of what `packaging/install-deps test` makes.
pub fn installed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("build/clients")
        .join(name);
    assert!(
        path.exists(),
        "packaging/install-deps test makes {}",
        path.display()
    );
    path.display().to_string()
}

/// What processes, by their number and the name of a thread, read or wrote, by connection; nothing of it is missing.
pub fn streams_by(ended: &Ended, of: impl Fn(u64, &str) -> bool, direction: &str) -> Vec<Vec<u8>> {
    let mut comms = BTreeMap::new();
    for event in ended.kind("data") {
        comms.insert(
            event["pid"].as_u64().unwrap(),
            event["comm"].as_str().unwrap(),
        );
    }
    let wanted = |((pid, _, way), bytes): ((u64, u64, String), Vec<u8>)| {
        (of(pid, comms[&pid]) && way == direction).then_some(bytes)
    };
    streams(ended).into_iter().filter_map(wanted).collect()
}

/// The same of a name alone.
pub fn streams_of(ended: &Ended, comm: &str, direction: &str) -> Vec<Vec<u8>> {
    streams_by(ended, |_, of| of == comm, direction)
}

/// Each of these is whole and in a row in one of the streams.
pub fn are_in(streams: &[Vec<u8>], wanted: &[Vec<u8>], what: &str) {
    for bytes in wanted {
        let shown = |stream: &Vec<u8>| memchr::memmem::find(stream, bytes).is_some();
        assert!(
            streams.iter().any(shown),
            "{what}: {} bytes are not in {:?}",
            bytes.len(),
            streams.iter().map(Vec::len).collect::<Vec<_>>()
        );
    }
}

/// Each of these was written by one program and read by the other.
pub fn passed(ended: &Ended, from: &str, to: &str, wanted: &[Vec<u8>]) {
    are_in(&streams_of(ended, from, "write"), wanted, from);
    are_in(&streams_of(ended, to, "read"), wanted, to);
}
