// SPDX-License-Identifier: BSD-2-Clause

//! The symbols of an ELF file, alone in memory.
//!
//! A symbolizer maps its files, and whoever may write to a mapped file can end its reader by making it
//! shorter (SIGBUS). So the reader gets a file of its own, which nobody else can open: the same length,
//! with the tables that are read at the same places and holes everywhere else.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader as _, SectionHeader as _};
use object::{LittleEndian, ReadCache};

/// Bytes of a file that are copied: the tables of Node.js are some 30 MiB.
const LARGEST: u64 = 64 << 20;

/// A file system may keep files up to this outside of blocks.
const SMALL_FILE: u64 = 64 << 10;

/// Symbols in memory, as long as this lives.
#[derive(Debug)]
pub struct Copy {
    file: File,
    /// What of it takes memory.
    pub bytes: u64,
}

impl Copy {
    /// Copies what names the functions in `file`, if that is `room` bytes at most.
    ///
    /// # Errors
    /// Why it is no 64-bit little-endian ELF file, or what is wrong in it.
    pub fn of(file: &File, room: u64) -> Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            bail!("this is no regular file");
        }
        // Holes cost whoever made them nothing.
        let stored = metadata.blocks().saturating_mul(512).max(SMALL_FILE);
        let room = room.min(LARGEST).min(stored);
        let ranges = tables(file, metadata.len())?;
        let bytes = ranges.iter().map(|(_, length)| length).sum();
        if bytes > room {
            bail!("its tables are too large");
        }
        let copy = File::from(memfd_create(c"symbols", MFdFlags::MFD_CLOEXEC)?);
        copy.set_len(metadata.len())?;
        let mut buffer = Vec::new();
        for (start, length) in ranges {
            buffer.resize(usize::try_from(length)?, 0);
            file.read_exact_at(&mut buffer, start)?;
            copy.write_all_at(&buffer, start)?;
        }
        Ok(Self { file: copy, bytes })
    }

    /// A path at which this process, and no other, can open it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

/// Where headers, symbols and their names are in a file of `size` bytes: first byte and length.
fn tables(file: &File, size: u64) -> Result<Vec<(u64, u64)>> {
    let endian = LittleEndian;
    let cache = ReadCache::new(file);
    let header = FileHeader64::<LittleEndian>::parse(&cache)?;
    let (sections, segments) = (
        u64::from(header.e_shnum(endian)),
        u64::from(header.e_phnum(endian)),
    );
    if sections == 0 || header.e_phnum(endian) == elf::PN_XNUM {
        bail!("its headers are not counted in the ELF header");
    }
    let mut ranges = vec![
        (0, size_of::<FileHeader64<LittleEndian>>() as u64),
        (
            header.e_phoff(endian),
            segments * u64::from(header.e_phentsize(endian)),
        ),
        (
            header.e_shoff(endian),
            sections * u64::from(header.e_shentsize(endian)),
        ),
    ];
    for section in header.section_headers(endian, &cache)? {
        if matches!(
            section.sh_type(endian),
            elf::SHT_SYMTAB | elf::SHT_DYNSYM | elf::SHT_STRTAB
        ) {
            ranges.push((section.sh_offset(endian), section.sh_size(endian)));
        }
    }
    for (start, length) in &ranges {
        start
            .checked_add(*length)
            .filter(|end| *end <= size)
            .context("a table is not in the file")?;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_copy_has_what_names_functions_and_holes_for_the_rest() {
        let file = File::open("/proc/self/exe").unwrap();
        let copy = Copy::of(&file, u64::MAX).unwrap();
        let (original, copied) = (
            file.metadata().unwrap(),
            std::fs::metadata(copy.path()).unwrap(),
        );
        assert_eq!(original.len(), copied.len());
        assert!(copied.blocks() * 512 < original.blocks() * 512);
        assert!(copied.blocks() * 512 <= copy.bytes + (64 << 10));
        let err = Copy::of(&file, copy.bytes - 1).unwrap_err().to_string();
        assert!(err.contains("too large"), "{err}");
    }

    #[test]
    fn what_is_no_elf_file_is_not_copied() {
        for path in ["/etc/passwd", "/dev/null", "/proc/self/maps"] {
            assert!(
                Copy::of(&File::open(path).unwrap(), u64::MAX).is_err(),
                "{path}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read(at in 16usize..64, byte in any::<u8>()) {
            let whole = File::open("/proc/self/exe").unwrap();
            let mut start = [0; 64];
            whole.read_exact_at(&mut start, 0).unwrap();
            start[at] = byte;
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&start, 0).unwrap();
            // All that the header points to is a hole.
            file.set_len(whole.metadata().unwrap().len()).unwrap();
            if let Ok(copy) = Copy::of(&file, u64::MAX) {
                prop_assert!(copy.bytes <= SMALL_FILE);
            }
        }
    }
}
