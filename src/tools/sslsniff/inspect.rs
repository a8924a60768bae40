// SPDX-License-Identifier: BSD-2-Clause

//! Which TLS implementations a process has in its memory, and which of them cannot be watched, by
//! name: what is not seen is to be no surprise.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use memchr::memmem;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader as _, SectionHeader as _};
use object::{LittleEndian, ReadCache, ReadRef};
use serde::Serialize;

use super::discover;
use super::symbols;
use crate::kernel::maps;
use crate::output::{Event, Line, Printable, Style};

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

/// What cannot be watched: its name, how its files are known, and why.
struct Unwatched {
    implementation: &'static str,
    /// A section that only its files have.
    section: Option<&'static str>,
    /// The start of the file's name.
    name: Option<&'static str>,
    /// What is in its constants, any of these: the end of a text, and its start. They are apart, so that
    /// they are not in this program's own constants.
    text: &'static [(&'static str, &'static str)],
    reason: &'static str,
}

/// The first that fits is it.
const UNWATCHED: [Unwatched; 8] = [
    Unwatched {
        implementation: "Go's crypto/tls",
        section: Some(".gopclntab"),
        name: None,
        text: &[("to/tls.", "cryp")],
        reason: "Go has TLS of its own, and stacks that move under a return probe",
    },
    Unwatched {
        implementation: "Java (JSSE)",
        section: None,
        name: Some("libjvm.so"),
        text: &[],
        reason: "its TLS is bytecode, which has no place in a file",
    },
    Unwatched {
        implementation: "NSS",
        section: None,
        name: Some("libssl3.so"),
        text: &[],
        reason: "its functions are not OpenSSL's",
    },
    Unwatched {
        implementation: "wolfSSL",
        section: None,
        name: Some("libwolfssl.so"),
        text: &[],
        reason: "its functions are not OpenSSL's",
    },
    Unwatched {
        implementation: "Mbed TLS",
        section: None,
        name: Some("libmbedtls.so"),
        text: &[],
        reason: "its functions are not OpenSSL's",
    },
    Unwatched {
        implementation: "BoringSSL",
        section: None,
        name: None,
        text: &[("ssl/src/ssl/", "boring"), ("ssl/ssl/", "boring")],
        reason: "it is inside, and the symbols are stripped",
    },
    Unwatched {
        implementation: "OpenSSL",
        section: None,
        name: None,
        text: &[("/ssl_lib.c", "ssl")],
        reason: "it is inside, and the symbols are stripped",
    },
    Unwatched {
        implementation: "rustls",
        section: None,
        name: None,
        text: &[("tls-0.", "/rus"), ("tls/src/", "/rus")],
        reason: "its functions are generic Rust, which has no stable names",
    },
];

/// Bytes of a section that are searched.
const LARGEST_SECTION: u64 = 128 << 20;

/// What `pid` has, in the order of its mappings.
///
/// # Errors
/// If there is no such process or it may not be looked into.
pub fn inspect(pid: u32) -> Result<Vec<Use>> {
    inspect_new(pid, &mut HashSet::new())
}

/// The same of what is not in `seen` yet, by device and inode.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_new(pid: u32, seen: &mut HashSet<discover::MappedAs>) -> Result<Vec<Use>> {
    let path = format!("/proc/{pid}/maps");
    let maps = fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    let mut uses = Vec::new();
    for mapping in maps::executable(&maps) {
        if !seen.insert((mapping.device, mapping.inode)) {
            continue;
        }
        let Some(file) = discover::open_mapping(pid, &mapping) else {
            continue;
        };
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let file = ReadCache::new(&file);
        let name = mapping.path.to_string_lossy().into_owned();
        uses.extend(look(pid, name, mapping.path, &file));
    }
    Ok(uses)
}

fn look<'data>(pid: u32, name: String, path: &Path, file: impl ReadRef<'data>) -> Option<Use> {
    let offsets = symbols::find(file).unwrap_or_default();
    let functions: Vec<_> = offsets
        .iter()
        .filter(|_| symbols::is_tls(&offsets))
        .map(|(function, _)| function.name())
        .collect();
    if let Some(first) = functions.first() {
        let implementation = if first.starts_with("gnutls_") {
            "GnuTLS"
        } else {
            "OpenSSL or BoringSSL"
        };
        return Some(Use {
            pid,
            file: name,
            implementation,
            functions,
            reason: None,
        });
    }
    let found = UNWATCHED.iter().find(|one| fits(one, path, file))?;
    Some(Use {
        pid,
        file: name,
        implementation: found.implementation,
        functions: Vec::new(),
        reason: Some(found.reason),
    })
}

fn fits<'data>(one: &Unwatched, path: &Path, file: impl ReadRef<'data>) -> bool {
    if let Some(start) = one.name {
        let name = path.file_name().unwrap_or_default();
        return name.as_encoded_bytes().starts_with(start.as_bytes());
    }
    let texts: Vec<_> = one
        .text
        .iter()
        .map(|(end, start)| format!("{start}{end}"))
        .collect();
    contains(file, one.section.unwrap_or(".rodata"), &texts).unwrap_or(false)
}

/// Whether the section of this name has any of the texts in it.
fn contains<'data>(
    file: impl ReadRef<'data>,
    section: &str,
    texts: &[impl AsRef<str>],
) -> object::Result<bool> {
    let header = FileHeader64::<LittleEndian>::parse(file)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, file)?;
    let Some((_, found)) = sections.section_by_name(endian, section.as_bytes()) else {
        return Ok(false);
    };
    let (_, size) = found.file_range(endian).unwrap_or((0, 0));
    if found.sh_type(endian) == elf::SHT_NOBITS || size > LARGEST_SECTION {
        return Ok(false);
    }
    let bytes = found.data(endian, file)?;
    Ok(texts
        .iter()
        .any(|text| memmem::find(bytes, text.as_ref().as_bytes()).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_tls_has_none() {
        assert_eq!(inspect(std::process::id()).unwrap(), []);
        assert!(inspect(u32::MAX).is_err());
    }

    #[test]
    fn files_are_known_by_their_name_or_by_what_is_in_them() {
        let exe = fs::read("/proc/self/exe").unwrap();
        let name = |path: &str| look(7, path.to_owned(), Path::new(path), exe.as_slice());
        let java = name("/usr/lib/jvm/lib/server/libjvm.so").unwrap();
        assert_eq!(java.implementation, "Java (JSSE)");
        assert!(java.reason.is_some());
        assert_eq!(name("/usr/lib/libc.so.6"), None);
        // This test's own constants.
        assert_eq!(
            contains(exe.as_slice(), ".rodata", &["libwolfssl.so"]),
            Ok(true)
        );
        assert_eq!(
            contains(exe.as_slice(), ".no-such", &["libwolfssl.so"]),
            Ok(false)
        );
        assert!(contains(&b"no ELF file"[..], ".rodata", &["x"]).is_err());
    }
}
