// SPDX-License-Identifier: BSD-2-Clause

//! What `/proc/PID/maps` says of executable mappings. Paths are any bytes a process likes, so this
//! reads bytes.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// What is mapped to be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping<'a> {
    /// First address and the address after the last: the mapping's name in `/proc/PID/map_files`.
    pub range: (u64, u64),
    /// Where in the file the mapping starts, in bytes.
    pub offset: u64,
    /// The device's numbers.
    pub device: (u32, u32),
    /// The inode's number; 0 for memory that is no file's.
    pub inode: u64,
    /// The path in the process's own root, with the kernel's escapes and marks; of memory what the
    /// kernel calls it (`[vdso]`), or nothing.
    pub path: &'a Path,
}

/// The executable mappings of files in the text of a `/proc/PID/maps`; a line that is none, or that
/// makes no sense, is passed over.
pub fn executable(maps: &[u8]) -> impl Iterator<Item = Mapping<'_>> {
    regions(maps).filter(|mapping| mapping.inode != 0)
}

/// The same with memory that is no file's: what a just-in-time compiler makes.
pub fn regions(maps: &[u8]) -> impl Iterator<Item = Mapping<'_>> {
    maps.split(|byte| *byte == b'\n').filter_map(mapping)
}

/// `start-end perms offset major:minor inode path` (proc(5)).
fn mapping(line: &[u8]) -> Option<Mapping<'_>> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let mut text = || {
        fields
            .next()
            .and_then(|field| std::str::from_utf8(field).ok())
    };
    let (range, permissions, offset) = (text()?, text()?, text()?);
    if permissions.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let (device, inode) = (text()?, text()?.parse().ok()?);
    let (start, end) = range.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    let path = fields.next()?.trim_ascii_start();
    Some(Mapping {
        range: (hex(start)?, hex(end)?),
        offset: hex(offset)?,
        device: (hex(major)?.try_into().ok()?, hex(minor)?.try_into().ok()?),
        inode,
        path: Path::new(OsStr::from_bytes(path)),
    })
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

/// Opens what is mapped: by the mapping itself (`CAP_CHECKPOINT_RESTORE`, kernel 5.9, or
/// `CAP_SYS_ADMIN`), which is exact also if the file was deleted or replaced; else by its path in the
/// process's root, where the inode must be the same. The device may be another: overlayfs and btrfs
/// show one in `maps` and another to stat(2).
pub fn open(pid: u32, mapping: &Mapping<'_>) -> Option<File> {
    let (start, end) = mapping.range;
    let itself = format!("/proc/{pid}/map_files/{start:x}-{end:x}");
    if let Ok(file) = open_file(Path::new(&itself)) {
        return Some(file);
    }
    let path = mapping.path.strip_prefix("/").ok()?;
    let file = open_file(&Path::new(&format!("/proc/{pid}/root")).join(path)).ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && metadata.ino() == mapping.inode).then_some(file)
}

/// Opens without waiting for the other end of what may be a pipe, and without becoming the owner of
/// what may be a terminal.
///
/// # Errors
/// Those of open(2).
pub fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_executable_mappings_of_files_count() {
        let maps = b"\
55d8a0000000-55d8a0002000 r--p 00000000 fe:01 123                        /usr/bin/cat\n\
55d8a0002000-55d8a0007000 r-xp 00002000 fe:01 123                        /usr/bin/c at\n\
7fff1a9f0000-7fff1a9f2000 r-xp 00000000 00:00 0                          [vdso]\n\
7f0000000000-7f0000001000 rwxp 00000000 00:00 0 \n\
7f0000002000-7f0000003000 r-xp 00000000 00:2a 9 /tmp/\xff (deleted)\n\
junk\n\n";
        let found: Vec<_> = executable(maps).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0],
            Mapping {
                range: (0x55d8_a000_2000, 0x55d8_a000_7000),
                offset: 0x2000,
                device: (0xfe, 1),
                inode: 123,
                path: Path::new("/usr/bin/c at"),
            }
        );
        assert_eq!(found[1].path.as_os_str().as_bytes(), b"/tmp/\xff (deleted)");
        let all: Vec<_> = regions(maps).map(|one| one.path).collect();
        assert_eq!(all.len(), 4);
        assert_eq!((all[1], all[2]), (Path::new("[vdso]"), Path::new("")));
    }

    proptest! {
        #[test]
        fn any_text_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            regions(&bytes).for_each(drop);
        }

        #[test]
        fn any_line_of_fields_is_read(line in "[0-9a-f]{0,20}-[0-9a-f]{0,20} r-x[ps] [0-9a-f]{0,9} [0-9a-f]{0,9}:[0-9a-f]{0,9} [0-9]{0,25} .*") {
            regions(line.as_bytes()).for_each(drop);
        }
    }
}
