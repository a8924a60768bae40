// SPDX-License-Identifier: BSD-2-Clause

//! Which TLS implementations a process has in its memory, and which of them cannot be watched, by
//! name: what is not seen is to be no surprise.

use std::collections::HashSet;
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context as _, Result};
use memchr::memmem;
use object::elf::{FileHeader64, SectionHeader64};
use object::read::elf::{FileHeader as _, SectionHeader as _};
use object::{LittleEndian, ReadCache, ReadRef};
use serde::Serialize;

use super::discover;
use super::room::{Reading, stored};
use super::symbols;
use crate::kernel::maps;
use crate::output::{Event, Line, Printable, Stdout, Style};

/// A TLS implementation in a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Use {
    /// The process.
    pub pid: u32,
    /// The file that the process executes it from.
    pub file: String,
    /// What it is.
    pub implementation: &'static str,
    /// What would be probed; nothing if it cannot be watched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<&'static str>,
    /// Why it cannot be watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
}

impl Event for Use {
    fn kind(&self) -> &'static str {
        "tls"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        write!(
            line,
            "process {}: {}: {}: ",
            self.pid,
            Printable(&self.file),
            self.implementation
        )?;
        match self.reason {
            None => line.styled(Style::Good, "can be watched"),
            Some(reason) => {
                line.styled(Style::Bad, "cannot be watched")?;
                write!(line, ": {reason}")
            }
        }
    }
}

/// What cannot be watched and is known by a function that it defines: the function, its name, and why.
const BY_FUNCTION: [(&str, &str, &str); 4] = [
    (
        "JNI_CreateJavaVM",
        "Java (JSSE)",
        "its TLS is bytecode, which has no place in a file",
    ),
    ("SSL_ImportFD", "NSS", "its functions are not OpenSSL's"),
    ("wolfSSL_read", "wolfSSL", "its functions are not OpenSSL's"),
    (
        "mbedtls_ssl_read",
        "Mbed TLS",
        "its functions are not OpenSSL's",
    ),
];

/// What cannot be watched and is known by its text: its name, where that text is, and why.
struct Unwatched {
    implementation: &'static str,
    /// The sections that its text may be in.
    sections: &'static [&'static str],
    /// What is in that, any of these, without the `#`: so that they are not in this program's own constants.
    text: &'static [&'static str],
    reason: &'static str,
}

/// Where Go has the names of its functions: in programs that are to be at one place, and in others, as versions of Go differ.
const GO: [&str; 3] = [".gopclntab", ".data.rel.ro.gopclntab", ".data.rel.ro"];
const CONSTANTS: [&str; 1] = [".rodata"];

const STRIPPED: &str = "it is inside, and the symbols are stripped";
const TOO_LARGE: &str = "it is inside, and the table of its symbols is larger than 32 MiB";

/// The first that fits is it.
const BY_TEXT: [Unwatched; 4] = [
    Unwatched {
        implementation: "Go's crypto/tls",
        sections: &GO,
        text: &["cryp#to/tls."],
        reason: "Go has TLS of its own, and stacks that move under a return probe",
    },
    Unwatched {
        implementation: "BoringSSL",
        sections: &CONSTANTS,
        // As sources are laid out by itself, by Bazel, and in gRPC.
        text: &[
            "boring#ssl/src/ssl/",
            "boring#ssl/ssl/",
            "boring#ssl-with-bazel/ssl/",
        ],
        reason: STRIPPED,
    },
    Unwatched {
        implementation: "OpenSSL",
        sections: &CONSTANTS,
        text: &["ssl#/ssl_lib.c"],
        reason: STRIPPED,
    },
    Unwatched {
        implementation: "rustls",
        sections: &CONSTANTS,
        text: &["/rus#tls-0.", "/rus#tls/src/"],
        reason: "its functions are generic Rust, which has no stable names",
    },
];

/// The longest table of sections' names that is read, in bytes.
const LARGEST_NAMES: u64 = 1 << 20;

/// What is searched at a time.
const PIECE: usize = 1 << 20;

/// Looks into processes, at each file once, as far as there is room.
#[derive(Debug, Default)]
pub struct Inspector {
    seen: HashSet<discover::MappedAs>,
    reading: Reading,
    /// Files that were not looked into, as too much was read of those of their owner.
    pub left_out: usize,
}

/// Files that are remembered to have been looked into.
const MOST_SEEN: usize = 1 << 16;

impl Inspector {
    /// What `pid` has that was not looked into before, in the order of its mappings.
    ///
    /// # Errors
    /// If there is no such process or it may not be looked into.
    pub fn inspect(&mut self, pid: u32) -> Result<Vec<Use>> {
        let mut uses = Vec::new();
        maps::executable(pid, |mapping| {
            let key = (mapping.device, mapping.inode);
            if self.seen.len() >= MOST_SEEN {
                self.seen.clear();
            }
            if self.seen.insert(key)
                && let Some(file) = discover::open_mapping(pid, mapping)
                && let Ok(metadata) = file.metadata()
                && metadata.is_file()
            {
                let found = self.reading.look(&file, &metadata, |file| {
                    look(pid, mapping.path, file, stored(&metadata))
                });
                match found {
                    Some(found) => uses.extend(found),
                    None => self.left_out += 1,
                }
            }
            ControlFlow::Continue(())
        })
        .with_context(|| format!("cannot read /proc/{pid}/maps"))?;
        Ok(uses)
    }

    /// Says that not all was looked into, if so.
    pub fn tell(&self, sink: &Stdout) {
        if self.left_out > 0 {
            sink.note(&format!(
                "{} files were not looked into, as too much was read of others of their owners",
                self.left_out
            ));
        }
    }
}

/// Why a library that is known by its functions is not watched.
const OF_32_BITS: &str = "programs of 32 bits pass arguments in another way";

/// Who has a function of this name.
fn implementation_of(function: &str) -> &'static str {
    if function.starts_with("gnutls_") {
        "GnuTLS"
    } else {
        "OpenSSL or BoringSSL"
    }
}

/// What is in a file of which so many bytes are stored.
fn look(pid: u32, path: &Path, file: impl Read + Seek, stored: u64) -> Option<Use> {
    let file = ReadCache::new(file);
    let offsets = symbols::find_in(&file, stored);
    let functions: Vec<_> = offsets
        .iter()
        .filter(|offsets| symbols::is_tls(offsets))
        .flatten()
        .map(|(function, _)| function.name())
        .collect();
    let use_of = |implementation, functions, reason| Use {
        pid,
        file: path.to_string_lossy().into_owned(),
        implementation,
        functions,
        reason,
    };
    if let Some(first) = functions.first() {
        return Some(use_of(implementation_of(first), functions, None));
    }
    if let Some(function) = symbols::in_32_bits(&file, stored) {
        let implementation = implementation_of(function.name());
        return Some(use_of(implementation, Vec::new(), Some(OF_32_BITS)));
    }
    let names = BY_FUNCTION.map(|(function, ..)| function);
    if let Ok(Some(found)) = symbols::defined(&file, stored, &names) {
        let (_, implementation, reason) = BY_FUNCTION[found];
        return Some(use_of(implementation, Vec::new(), Some(reason)));
    }
    // Where a program that is no Go program has the last of these, and much in it.
    let is_go = place(&file, ".go.buildinfo", stored).is_some();
    let sections: Vec<_> = GO[..if is_go { GO.len() } else { 1 }]
        .iter()
        .chain(&CONSTANTS)
        .filter_map(|section| Some((*section, place(&file, section, stored)?)))
        .collect();
    let mut file = file.into_inner();
    let found = sections.into_iter().find_map(|(section, at)| {
        let texts: Vec<_> = BY_TEXT
            .iter()
            .enumerate()
            .filter(|(_, one)| one.sections.contains(&section))
            .flat_map(|(index, one)| {
                let texts = one.text.iter();
                texts.map(move |text| (index, text.replace('#', "")))
            })
            .collect();
        first_within(&mut file, at, &texts)
    })?;
    let found = &BY_TEXT[found];
    let is_stripped = found.reason == STRIPPED;
    let reason = match offsets {
        Err(err) if is_stripped && err.is::<symbols::TooLarge>() => TOO_LARGE,
        _ => found.reason,
    };
    Some(use_of(found.implementation, Vec::new(), Some(reason)))
}

/// Where the section of this name is: its offset and size, in bytes, unless it is larger than what is stored.
fn place<'data>(file: impl ReadRef<'data>, section: &str, stored: u64) -> Option<(u64, u64)> {
    let header = FileHeader64::<LittleEndian>::parse(file).ok()?;
    let endian = header.endian().ok()?;
    symbols::plain_counts(header).ok()?;
    let sections = header.section_headers(endian, file).ok()?;
    let names = sections.get(usize::try_from(header.shstrndx(endian, file).ok()?).ok()?)?;
    if names.sh_size(endian) > LARGEST_NAMES.min(stored) {
        return None;
    }
    let names = names.data(endian, file).ok()?;
    let is_it = |one: &&SectionHeader64<LittleEndian>| {
        let start = usize::try_from(one.sh_name(endian)).unwrap_or(usize::MAX);
        let name = names.get(start..).unwrap_or_default();
        name.strip_prefix(section.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    };
    sections
        .iter()
        .find(is_it)?
        .file_range(endian)
        .filter(|(_, size)| *size <= stored)
}

/// The smallest of the numbers whose text is within `size` bytes of `file` from `offset` on.
fn first_within(
    file: &mut (impl Read + Seek),
    (offset, size): (u64, u64),
    texts: &[(usize, String)],
) -> Option<usize> {
    let finders: Vec<_> = texts
        .iter()
        .map(|(number, text)| (*number, memmem::Finder::new(text)))
        .collect();
    // So much of a piece is looked at again with the next, as a text may be in both.
    let overlap = texts.iter().map(|(_, text)| text.len()).max()? - 1;
    let mut piece = Vec::new();
    let mut first: Option<usize> = None;
    let mut left = size;
    file.seek(SeekFrom::Start(offset)).ok()?;
    while left > 0 {
        let kept = piece.len().min(overlap);
        piece.drain(..piece.len() - kept);
        let more = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
        piece.resize(kept + more, 0);
        file.read_exact(&mut piece[kept..]).ok()?;
        left -= more as u64;
        let within = finders
            .iter()
            .filter(|(_, finder)| finder.find(&piece).is_some())
            .map(|(number, _)| *number)
            .min();
        first = within.into_iter().chain(first).min();
    }
    first
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Cursor;

    use super::*;

    #[test]
    fn a_process_without_tls_has_none() {
        let mut inspector = Inspector::default();
        assert_eq!(inspector.inspect(std::process::id()).unwrap(), []);
        assert!(inspector.inspect(u32::MAX).is_err());
        assert_eq!(inspector.left_out, 0);
    }

    #[test]
    fn what_there_is_no_room_to_look_into_is_counted() {
        let mut inspector = Inspector {
            reading: Reading::of(1000),
            ..Inspector::default()
        };
        assert_eq!(inspector.inspect(std::process::id()).unwrap(), []);
        assert!(inspector.left_out > 0);
    }

    fn look_at(path: &str, file: &[u8]) -> Option<&'static str> {
        let found = look(7, Path::new(path), Cursor::new(file), file.len() as u64)?;
        assert!(found.reason.is_some() && found.functions.is_empty());
        Some(found.implementation)
    }

    #[test]
    fn files_are_known_by_what_is_in_them_and_not_by_their_names() {
        let exe = fs::read("/proc/self/exe").unwrap();
        for (function, implementation, _) in BY_FUNCTION {
            let file = symbols::tests::of_64_bits(function, true);
            assert_eq!(look_at("/lib/any", &file), Some(implementation));
            let file = symbols::tests::of_64_bits(function, false);
            assert_eq!(look_at("/lib/user", &file), None);
        }
        assert_eq!(look_at("/usr/lib/jvm/lib/server/libjvm.so", &exe), None);
        assert_eq!(look_at("/usr/lib/libc.so.6", b"no ELF file"), None);
        for (function, implementation) in [
            ("SSL_read", "OpenSSL or BoringSSL"),
            ("gnutls_record_recv", "GnuTLS"),
        ] {
            let file = symbols::tests::of_32_bits(function, true);
            assert_eq!(look_at("/lib/libtls.so", &file), Some(implementation));
        }
        // This test's own constants, in place of what makes a file one of BoringSSL.
        let (at, size) = place(exe.as_slice(), ".rodata", exe.len() as u64).unwrap();
        let own = [(3, "lib/server/libjvm.s".to_owned())];
        assert_eq!(
            first_within(&mut Cursor::new(&exe), (at, size), &own),
            Some(3)
        );
        assert_eq!(place(exe.as_slice(), ".no-such", u64::MAX), None);
        assert_eq!(place(exe.as_slice(), ".rodata", 60), None);
        let mut other = exe.clone();
        let boring = "boring#ssl/src/ssl/".replace('#', "");
        let at = usize::try_from(at).unwrap();
        other[at..at + boring.len()].copy_from_slice(boring.as_bytes());
        assert_eq!(look_at("/usr/bin/envoy", &other), Some("BoringSSL"));
    }

    #[test]
    fn a_text_is_found_wherever_pieces_end_and_the_first_that_fits_is_it() {
        let texts = [(5, "needle".to_owned()), (2, "pin".to_owned())];
        for at in PIECE - 7..PIECE + 2 {
            let mut hay = vec![b'.'; 2 * PIECE + 30];
            hay[at..at + 6].copy_from_slice(b"needle");
            let all = (0, hay.len() as u64);
            let found = |hay: &[u8], within| first_within(&mut Cursor::new(hay), within, &texts);
            assert_eq!(found(&hay, all), Some(5), "{at}");
            assert_eq!(found(&hay, (0, at as u64 + 5)), None);
            assert_eq!(found(&hay, (at as u64 + 1, 100)), None);
            // More is said to be there than is.
            assert_eq!(found(&hay, (0, hay.len() as u64 + 1)), None);
            hay[2 * PIECE..2 * PIECE + 3].copy_from_slice(b"pin");
            assert_eq!(found(&hay, all), Some(2));
        }
    }
}
