// SPDX-License-Identifier: BSD-2-Clause

//! What `/proc/PID/maps` says of executable mappings of files. Paths are any bytes a process likes,
//! so this reads bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A file that is mapped to be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping<'a> {
    /// First address and the address after the last: the mapping's name in `/proc/PID/map_files`.
    pub range: (u64, u64),
    /// The device's numbers.
    pub device: (u32, u32),
    /// The inode's number.
    pub inode: u64,
    /// The path in the process's own root, with the kernel's escapes and marks.
    pub path: &'a Path,
}

/// The executable mappings of files in the text of a `/proc/PID/maps`; a line that is none, or that
/// makes no sense, is passed over.
pub fn executable(maps: &[u8]) -> impl Iterator<Item = Mapping<'_>> {
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
    let (range, permissions, _offset) = (text()?, text()?, text()?);
    if permissions.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let (device, inode) = (text()?, text()?.parse().ok()?);
    if inode == 0 {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    let path = fields.next()?.trim_ascii_start();
    Some(Mapping {
        range: (hex(start)?, hex(end)?),
        device: (hex(major)?.try_into().ok()?, hex(minor)?.try_into().ok()?),
        inode,
        path: Path::new(OsStr::from_bytes(path)),
    })
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
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
                device: (0xfe, 1),
                inode: 123,
                path: Path::new("/usr/bin/c at"),
            }
        );
        assert_eq!(found[1].path.as_os_str().as_bytes(), b"/tmp/\xff (deleted)");
    }

    proptest! {
        #[test]
        fn any_text_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            executable(&bytes).for_each(drop);
        }

        #[test]
        fn any_line_of_fields_is_read(line in "[0-9a-f]{0,20}-[0-9a-f]{0,20} r-x[ps] [0-9a-f]{0,9} [0-9a-f]{0,9}:[0-9a-f]{0,9} [0-9]{0,25} .*") {
            executable(line.as_bytes()).for_each(drop);
        }
    }
}
