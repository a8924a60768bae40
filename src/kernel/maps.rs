// SPDX-License-Identifier: BSD-2-Clause

//! What `/proc/PID/maps` says of executable mappings. Paths are any bytes a process likes, so this
//! reads bytes.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

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

/// Bytes of a line that are kept: a path of PATH_MAX with each byte escaped. The folders of a process's file may
/// be so deep that its path is megabytes.
const LONGEST_LINE: usize = 4 * 4096 + 128;

/// Hands the executable mappings of files of a process to `each`, until that says that it is enough. They may be
/// tens of thousands: no more than a line is kept. A line that makes no sense is passed over.
///
/// # Errors
/// Those of opening and reading `/proc/PID/maps`.
pub fn executable(pid: u32, each: impl FnMut(&Mapping<'_>) -> ControlFlow<()>) -> io::Result<()> {
    executable_in(
        BufReader::new(File::open(format!("/proc/{pid}/maps"))?),
        each,
    )
}

fn executable_in(
    mut maps: impl BufRead,
    mut each: impl FnMut(&Mapping<'_>) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut line = Vec::new();
    while next_line(&mut maps, &mut line)? {
        if let Some(mapping) = mapping(&line).filter(|mapping| mapping.inode != 0)
            && each(&mapping).is_break()
        {
            break;
        }
    }
    Ok(())
}

/// Reads a line without its end, and no more of it than [`LONGEST_LINE`] into memory; says whether there was one.
fn next_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut any = false;
    loop {
        let there = from.fill_buf()?;
        if there.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = memchr::memchr(b'\n', there);
        let part = end.map_or(there, |end| &there[..end]);
        let room = LONGEST_LINE.saturating_sub(line.len());
        line.extend_from_slice(&part[..part.len().min(room)]);
        let taken = part.len() + usize::from(end.is_some());
        from.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// The executable mappings in the text of a `/proc/PID/maps`, those too of memory that is no file's: what a
/// just-in-time compiler makes.
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
    let root = File::open(format!("/proc/{pid}/root")).ok()?;
    let file = open_in(&root, mapping.path).ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && metadata.ino() == mapping.inode).then_some(file)
}

/// The same as [`open_file`] by a path below this folder: the links on the way are a process's own, and none leads out
/// of its root (openat2(2), kernel 5.6).
fn open_in(root: &File, path: &Path) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    regular(&File::from(openat2(root, path, how)?))
}

/// Opens a regular file, and nothing else: what a path leads to is looked at before it is opened, as opening a
/// device may do something, and opening a pipe wait for its other end. Nor is the end of another's lease on
/// the file waited for.
///
/// # Errors
/// Those of open(2); also if it is no regular file.
pub fn open_file(path: &Path) -> io::Result<File> {
    regular(&open_with(libc::O_PATH, path)?)
}

fn open_with(flags: i32, path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Opens what this descriptor (O_PATH) is of.
fn regular(place: &File) -> io::Result<File> {
    if !place.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "this is no regular file",
        ));
    }
    let itself = format!("/proc/self/fd/{}", place.as_raw_fd());
    open_with(libc::O_NONBLOCK | libc::O_NOCTTY, Path::new(&itself))
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
        let found: Vec<_> = regions(maps).filter(|mapping| mapping.inode != 0).collect();
        let mut streamed = Vec::new();
        let stop_at = |most: usize, streamed: &mut Vec<(u64, u64)>| {
            let mut few = BufReader::with_capacity(7, maps.as_slice());
            executable_in(&mut few, |mapping| {
                streamed.push(mapping.range);
                if streamed.len() < most {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
            .unwrap();
        };
        stop_at(9, &mut streamed);
        assert_eq!(streamed, [found[0].range, found[1].range]);
        streamed.clear();
        stop_at(1, &mut streamed);
        assert_eq!(streamed.len(), 1);
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

    #[test]
    fn of_a_path_without_end_the_start_is_kept_and_the_next_line_is_read() {
        let mut maps = b"1000-2000 r-xp 0 0:1 9 /".to_vec();
        maps.resize(3 << 20, b'x');
        maps.extend(b"\n3000-4000 r-xp 0 0:1 10 /b\n");
        let mut found = Vec::new();
        executable_in(maps.as_slice(), |mapping| {
            found.push((mapping.inode, mapping.path.as_os_str().len()));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(found.len(), 2);
        assert!(found[0].0 == 9 && found[0].1 < LONGEST_LINE, "{found:?}");
        assert_eq!(found[1], (10, 2));
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (socket, file) = (dir.path().join("socket"), dir.path().join("file"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [&pipe, &socket, dir.path(), Path::new("/dev/null")] {
            let err = open_file(path).unwrap_err();
            assert_eq!(err.to_string(), "this is no regular file", "{path:?}");
        }
        std::fs::write(&file, "text").unwrap();
        assert_eq!(
            io::read_to_string(open_file(&file).unwrap()).unwrap(),
            "text"
        );
        assert_eq!(
            open_file(&dir.path().join("none")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn no_link_leads_out_of_a_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("file"), "inside").unwrap();
        for (link, to) in [
            ("absolute", "/file"),
            ("up", "../../../file"),
            ("out", "/etc/passwd"),
        ] {
            std::os::unix::fs::symlink(to, dir.path().join(link)).unwrap();
        }
        for path in ["file", "/file", "/absolute", "/up"] {
            let file = open_in(&root, Path::new(path)).unwrap();
            assert_eq!(io::read_to_string(file).unwrap(), "inside", "{path}");
        }
        let err = open_in(&root, Path::new("/out")).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::NotFound);
    }

    proptest! {
        #[test]
        fn any_text_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            regions(&bytes).for_each(drop);
            let few = BufReader::with_capacity(5, bytes.as_slice());
            executable_in(few, |_| ControlFlow::Continue(())).unwrap();
        }

        #[test]
        fn any_line_of_fields_is_read(line in "[0-9a-f]{0,20}-[0-9a-f]{0,20} r-x[ps] [0-9a-f]{0,9} [0-9a-f]{0,9}:[0-9a-f]{0,9} [0-9]{0,25} .*") {
            regions(line.as_bytes()).for_each(drop);
        }
    }
}
