// SPDX-License-Identifier: BSD-2-Clause

//! Where the functions of a TLS library are in its file. The file is anybody's: whatever is in it,
//! the answer is offsets or an error.

use anyhow::{Result, bail};
use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _};
use object::{LittleEndian, ReadRef};

use super::function::Function;

/// Functions, each with the bytes from the file's start to its first instruction.
pub type Offsets = Vec<(Function, u64)>;

/// Whether these are of a TLS library, and not of what is below one (libcrypto).
pub fn is_tls(offsets: &Offsets) -> bool {
    offsets
        .iter()
        .any(|(function, _)| function.makes_a_library())
}

/// Whether these are of the library below a TLS library.
fn is_crypto(offsets: &Offsets) -> bool {
    let has = |function| offsets.iter().any(|(one, _)| *one == function);
    (has(Function::Random) || has(Function::RandomEx))
        && (has(Function::Error) || has(Function::ErrorV))
}

/// The largest symbol or string table that is read; that of node is some 20 MiB.
const LARGEST_TABLE: u64 = 32 << 20;

/// Symbol names are compared within this many bytes.
const LONGEST_NAME: usize = 32;

/// Finds the functions in `file`: in the dynamic symbols or, where those have none, in the symbol
/// table that linkers leave for debuggers. Empty if it is no TLS library: it defines neither `SSL_read`
/// nor `SSL_write` nor GnuTLS's; and is none for one to use, as libcrypto.
///
/// # Errors
/// Why it is no 64-bit little-endian ELF file, or what is wrong in it.
pub fn find<'data>(file: impl ReadRef<'data>) -> Result<Offsets> {
    find_in(file, u64::MAX)
}

/// The same for a file of which so many bytes are stored: tables that are mostly holes cost their
/// reader time and memory, and whoever made them nothing.
///
/// # Errors
/// As [`find`].
pub fn find_in<'data>(file: impl ReadRef<'data>, stored: u64) -> Result<Offsets> {
    let mut below = Offsets::new();
    let tls = tables(file, stored, |table| {
        let mut found = in_table(&table);
        let all: Vec<_> = found.iter().map(|(function, _)| *function).collect();
        found.retain(|(function, _)| {
            function
                .successor()
                .is_none_or(|successor| !all.contains(&successor))
        });
        if is_tls(&found) {
            return Some(found);
        }
        if is_crypto(&found) {
            below = found;
        }
        None
    });
    match tls {
        Err(err) if below.is_empty() || !err.is::<TooLarge>() => Err(err),
        tls => Ok(tls.ok().flatten().unwrap_or(below)),
    }
}

/// The place in `names` of the first function that `file`, of which so many bytes are stored, defines of these.
///
/// # Errors
/// As [`find`].
pub fn defined<'data>(
    file: impl ReadRef<'data>,
    stored: u64,
    names: &[&str],
) -> Result<Option<usize>> {
    tables(file, stored, |table| {
        table
            .functions()
            .find_map(|(_, name)| names.iter().position(|one| one.as_bytes() == name))
    })
}

/// A table of symbols in which something may be was not read.
#[derive(Debug)]
pub struct TooLarge;

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("its table of symbols is too large")
    }
}

impl std::error::Error for TooLarge {}

/// One table of a file's symbols.
struct Table<'data> {
    symbols: &'data [elf::Sym64<LittleEndian>],
    strings: &'data [u8],
    segments: &'data [elf::ProgramHeader64<LittleEndian>],
}

impl Table<'_> {
    /// The functions that are defined here, with their names, as far as those are short.
    fn functions(&self) -> impl Iterator<Item = (&elf::Sym64<LittleEndian>, &[u8])> {
        self.symbols
            .iter()
            .filter(|symbol| symbol.st_type() == elf::STT_FUNC)
            .filter(|symbol| symbol.st_shndx(LittleEndian) != elf::SHN_UNDEF)
            .filter_map(|symbol| {
                let start = usize::try_from(symbol.st_name(LittleEndian)).ok()?;
                Some((symbol, name(self.strings.get(start..)?)?))
            })
    }
}

/// What `look` finds in the dynamic symbols or, where it finds nothing there, in the symbol table that linkers leave
/// for debuggers.
fn tables<'data, T>(
    file: impl ReadRef<'data>,
    stored: u64,
    mut look: impl FnMut(Table<'data>) -> Option<T>,
) -> Result<Option<T>> {
    let header = FileHeader64::<LittleEndian>::parse(file)?;
    let endian = header.endian()?;
    plain_counts(header)?;
    let sections = header.section_headers(endian, file)?;
    let segments = header.program_headers(endian, file)?;
    let (mut all, mut too_large) = (0u64, false);
    for kind in [elf::SHT_DYNSYM, elf::SHT_SYMTAB] {
        let Some(table) = sections
            .iter()
            .find(|section| section.sh_type(endian) == kind)
        else {
            continue;
        };
        let strings = usize::try_from(table.sh_link(endian)).ok();
        let Some(strings) = strings.and_then(|index| sections.get(index)) else {
            continue;
        };
        if table.sh_size(endian) > LARGEST_TABLE || strings.sh_size(endian) > LARGEST_TABLE {
            too_large = true;
            continue;
        }
        all += table.sh_size(endian) + strings.sh_size(endian);
        if all > stored {
            bail!("its tables are larger than what is stored of it");
        }
        let found = look(Table {
            symbols: table.data_as_array(endian, file)?,
            strings: strings.data(endian, file)?,
            segments,
        });
        if found.is_some() {
            return Ok(found);
        }
    }
    if too_large {
        return Err(TooLarge.into());
    }
    Ok(None)
}

/// The first function of a TLS library that `file` defines, of which so many bytes are stored, if it is one of
/// 32 bits, whose calls have their arguments elsewhere.
pub fn in_32_bits<'data>(file: impl ReadRef<'data>, stored: u64) -> Option<Function> {
    let header = FileHeader32::<LittleEndian>::parse(file).ok()?;
    let endian = header.endian().ok()?;
    if header.e_shnum.get(endian) == 0 {
        return None;
    }
    let sections = header.section_headers(endian, file).ok()?;
    let table = sections
        .iter()
        .find(|section| section.sh_type(endian) == elf::SHT_DYNSYM)?;
    let strings = sections.get(usize::try_from(table.sh_link(endian)).ok()?)?;
    let sizes = [table, strings].map(|one| u64::from(one.sh_size.get(endian)));
    if sizes.iter().sum::<u64>() > LARGEST_TABLE.min(stored) {
        return None;
    }
    let symbols: &[elf::Sym32<LittleEndian>] = table.data_as_array(endian, file).ok()?;
    let strings = strings.data(endian, file).ok()?;
    symbols
        .iter()
        .filter(|symbol| symbol.st_type() == elf::STT_FUNC)
        .filter(|symbol| symbol.st_shndx(endian) != elf::SHN_UNDEF)
        .filter_map(|symbol| {
            let start = usize::try_from(symbol.st_name(endian)).ok()?;
            Function::of(name(strings.get(start..)?)?)
        })
        .find(|function| function.makes_a_library())
}

/// The name that these bytes start with, unless it is longer than any that is looked for.
fn name(bytes: &[u8]) -> Option<&[u8]> {
    let name = &bytes[..bytes.len().min(LONGEST_NAME)];
    let end = name.iter().position(|byte| *byte == 0)?;
    Some(&name[..end])
}

/// Refuses the forms that count headers elsewhere, in 32 bits and more: no library has that many,
/// and the count would be how much is read.
pub(super) fn plain_counts(header: &FileHeader64<LittleEndian>) -> Result<()> {
    let elsewhere =
        header.e_shnum.get(LittleEndian) == 0 || header.e_phnum.get(LittleEndian) == elf::PN_XNUM;
    if elsewhere {
        bail!("its headers are not counted in the ELF header");
    }
    Ok(())
}

fn in_table(table: &Table<'_>) -> Offsets {
    let mut found = Offsets::new();
    for (symbol, name) in table.functions() {
        if let Some(function) = Function::of(name)
            && let Some(offset) = file_offset(symbol.st_value(LittleEndian), table.segments)
            && !found.iter().any(|(known, _)| *known == function)
        {
            found.push((function, offset));
        }
    }
    found
}

/// Where the instruction that is mapped at `address` is in the file.
fn file_offset(address: u64, segments: &[elf::ProgramHeader64<LittleEndian>]) -> Option<u64> {
    let endian = LittleEndian;
    segments.iter().find_map(|segment| {
        let flags = segment.p_flags(endian);
        if segment.p_type(endian) != elf::PT_LOAD || !flags.contains(elf::PF_X) {
            return None;
        }
        let within = address.checked_sub(segment.p_vaddr(endian))?;
        if within >= segment.p_filesz(endian) {
            return None;
        }
        segment.p_offset(endian).checked_add(within)
    })
}

/// Where a program starts.
///
/// # Errors
/// As [`find`].
pub fn entry<'data>(file: impl ReadRef<'data>) -> Result<Option<u64>> {
    let header = FileHeader64::<LittleEndian>::parse(file)?;
    let endian = header.endian()?;
    plain_counts(header)?;
    let segments = header.program_headers(endian, file)?;
    Ok(file_offset(header.e_entry(LittleEndian), segments))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The executable of this test, a real ELF file with a large `.symtab`.
    fn real() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    /// An ELF file with one executable segment (file offset 0x1000 at address 0x11000), a table
    /// of `kind` and its strings.
    fn crafted(kind: u32, symbols: &[(&str, u64, bool)]) -> Vec<u8> {
        let mut strings = vec![0];
        let mut table = vec![0; 24];
        for (name, value, defined) in symbols {
            table.extend(u32::try_from(strings.len()).unwrap().to_le_bytes());
            table.extend([0x12, 0]); // STB_GLOBAL, STT_FUNC
            table.extend(u16::from(*defined).to_le_bytes());
            table.extend(value.to_le_bytes());
            table.extend(0u64.to_le_bytes());
            strings.extend(name.as_bytes());
            strings.push(0);
        }
        let (table_at, strings_at) = (0x200, 0x200 + table.len());
        let sections_at = strings_at + strings.len();
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend([3, 0, 62, 0, 1, 0, 0, 0]);
        for word in [0x11000, 64, sections_at as u64] {
            file.extend(u64::to_le_bytes(word));
        }
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, 1, 64, 3, 0] {
            file.extend(half.to_le_bytes());
        }
        file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, R + X
        for word in [0x1000u64, 0x11000, 0x11000, 0x1000, 0x1000, 0x1000] {
            file.extend(word.to_le_bytes());
        }
        file.resize(table_at, 0);
        file.extend(&table);
        file.extend(&strings);
        file.extend([0; 64]);
        for (kind, at, size, link, entry) in [
            (kind, table_at, table.len(), 2u32, 24u64),
            (3, strings_at, strings.len(), 0, 0),
        ] {
            file.extend(0u32.to_le_bytes());
            file.extend(kind.to_le_bytes());
            for word in [0, 0, at as u64, size as u64] {
                file.extend(u64::to_le_bytes(word));
            }
            file.extend(link.to_le_bytes());
            file.extend(0u32.to_le_bytes());
            file.extend(8u64.to_le_bytes());
            file.extend(entry.to_le_bytes());
        }
        file
    }

    /// A file with this dynamic symbol, defined or not.
    pub(in super::super) fn of_64_bits(name: &str, defined: bool) -> Vec<u8> {
        crafted(11, &[(name, 0x11010, defined)])
    }

    /// A file of 32 bits with this dynamic symbol, defined or not.
    pub(in super::super) fn of_32_bits(name: &str, defined: bool) -> Vec<u8> {
        let mut strings = vec![0];
        strings.extend(name.as_bytes());
        strings.push(0);
        let mut table = vec![0; 16];
        for word in [1u32, 0x11010, 0] {
            table.extend(word.to_le_bytes());
        }
        table.extend([0x12, 0]); // STB_GLOBAL, STT_FUNC
        table.extend(u16::from(defined).to_le_bytes());
        let (table_at, strings_at) = (52, 52 + table.len());
        let sections_at = u32::try_from(strings_at + strings.len()).unwrap();
        let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend([3, 0, 3, 0, 1, 0, 0, 0]);
        for word in [0, 0, sections_at, 0] {
            file.extend(u32::to_le_bytes(word));
        }
        for half in [52u16, 32, 0, 40, 3, 0] {
            file.extend(half.to_le_bytes());
        }
        file.extend(&table);
        file.extend(&strings);
        file.extend([0; 40]);
        for (kind, at, size, link, entry) in [
            (11, table_at, table.len(), 2, 16),
            (3, strings_at, strings.len(), 0, 0),
        ] {
            let (at, size) = (u32::try_from(at).unwrap(), u32::try_from(size).unwrap());
            for word in [0, kind, 0, 0, at, size, link, 0, 4, entry] {
                file.extend(u32::to_le_bytes(word));
            }
        }
        file
    }

    #[test]
    fn a_library_of_32_bits_is_known_as_one_and_not_taken_for_another() {
        let of = |name, defined| {
            let file = of_32_bits(name, defined);
            assert!(find(file.as_slice()).is_err());
            in_32_bits(file.as_slice(), file.len() as u64)
        };
        assert_eq!(of("SSL_write", true), Some(Function::Write));
        assert_eq!(of("gnutls_record_send", true), Some(Function::GnutlsSend));
        for (name, defined) in [("SSL_write", false), ("SSL_free", true), ("write", true)] {
            assert_eq!(of(name, defined), None, "{name}");
        }
        let file = of_32_bits("SSL_read", true);
        assert_eq!(in_32_bits(file.as_slice(), 10), None);
        for cut in 0..file.len() {
            assert_eq!(in_32_bits(&file[..cut], u64::MAX), None, "{cut}");
        }
        assert_eq!(in_32_bits(real().as_slice(), u64::MAX), None);
    }

    #[test]
    fn a_table_that_is_too_large_is_an_error_unless_the_other_one_tells() {
        let large = |symbols| {
            let mut file = crafted(11, symbols);
            let sections = u64::from_le_bytes(file[40..48].try_into().unwrap());
            let size = usize::try_from(sections).unwrap() + 64 + 32;
            file[size..size + 8].copy_from_slice(&(LARGEST_TABLE + 24).to_le_bytes());
            file
        };
        let err = find(large(&[("SSL_read", 0x11010, true)]).as_slice()).unwrap_err();
        assert!(err.is::<TooLarge>(), "{err}");
        assert!(defined(large(&[]).as_slice(), u64::MAX, &["SSL_read"]).is_err());
    }

    const SYMBOLS: &[(&str, u64, bool)] = &[
        ("SSL_read", 0x11010, true),
        ("SSL_write", 0x11020, true),
        ("SSL_write_early_data", 0x11030, true),
        ("gnutls_global_init", 0x11050, true),
        ("SSL_free", 0, false),
        ("SSL_do_handshake", 0x22000, true),
        ("read", 0x11040, true),
    ];

    #[test]
    fn functions_are_found_in_either_table_at_their_file_offsets() {
        for kind in [11, 2] {
            let found = find(crafted(kind, SYMBOLS).as_slice()).unwrap();
            assert_eq!(
                found,
                [
                    (Function::Read, 0x1010),
                    (Function::Write, 0x1020),
                    (Function::WriteEarlyData, 0x1030)
                ]
            );
        }
    }

    #[test]
    fn functions_have_the_numbers_of_the_header_file() {
        let text = include_str!("../../bpf/sslsniff.h");
        let start = text.find("enum ssl_function {").unwrap();
        let names: Vec<_> = text[start..]
            .lines()
            .skip(1)
            .map(str::trim)
            .take_while(|line| !line.starts_with("SSL_FUNCTIONS"))
            .filter(|line| line.contains("_FN_"))
            .collect();
        assert_eq!(names.len(), Function::ALL.len());
        for (number, function) in Function::ALL.into_iter().enumerate() {
            assert_eq!(usize::try_from(function.number()).unwrap(), number);
            let gnutls = function.name().starts_with("gnutls_");
            assert_eq!(names[number].starts_with("GNUTLS_"), gnutls, "{function:?}");
        }
    }

    #[test]
    fn a_user_of_a_library_is_no_library() {
        let user = crafted(11, &[("SSL_read", 0, false), ("SSL_write", 0, false)]);
        assert_eq!(find(user.as_slice()).unwrap(), []);
        assert_eq!(find(real().as_slice()).unwrap(), []);
    }

    #[test]
    fn what_a_tls_library_uses_is_found_too_and_is_none_itself() {
        let of = |symbols| find(crafted(11, symbols).as_slice()).unwrap();
        let old = of(&[
            ("RAND_bytes", 0x11010, true),
            ("ERR_put_error", 0x11020, true),
        ]);
        assert_eq!(old, [(Function::Random, 0x1010), (Function::Error, 0x1020)]);
        assert!(!is_tls(&old));
        let new = of(&[
            ("RAND_bytes", 0x11010, true),
            ("RAND_bytes_ex", 0x11020, true),
            ("ERR_vset_error", 0x11030, true),
            ("EVP_KDF_derive", 0x11040, true),
        ]);
        let functions: Vec<_> = new.iter().map(|(function, _)| *function).collect();
        assert_eq!(
            functions,
            [Function::RandomEx, Function::ErrorV, Function::Derive]
        );
        assert_eq!(of(&[("RAND_bytes", 0x11010, true)]), []);
        assert!(is_tls(&of(SYMBOLS)));
    }

    #[test]
    fn the_entry_of_a_program_is_in_its_file() {
        assert_eq!(
            entry(crafted(11, SYMBOLS).as_slice()).unwrap(),
            Some(0x1000)
        );
        let real = real();
        let offset = entry(real.as_slice()).unwrap().unwrap();
        assert!(offset < real.len() as u64);
    }

    #[test]
    fn tables_that_are_mostly_holes_are_refused() {
        let file = crafted(11, SYMBOLS);
        assert!(
            !find_in(file.as_slice(), file.len() as u64)
                .unwrap()
                .is_empty()
        );
        assert!(find_in(file.as_slice(), 60).is_err());
    }

    #[test]
    fn what_is_no_elf_file_is_an_error() {
        for wrong in [b"".as_slice(), b"#!/bin/sh\n", b"\x7fELF"] {
            assert!(find(wrong).is_err());
        }
    }

    proptest! {
        #[test]
        fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let _ = find(bytes.as_slice());
            let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
            elf.extend(bytes);
            let _ = find(elf.as_slice());
            let _ = entry(elf.as_slice());
        }

        #[test]
        fn a_damaged_file_does_no_harm(
            damage in proptest::collection::vec((0usize..1000, any::<u8>()), 1..40),
            length in 0usize..1200,
        ) {
            let mut elf = crafted(11, SYMBOLS);
            for (at, byte) in damage {
                let at = at % elf.len();
                elf[at] = byte;
            }
            elf.truncate(length);
            let _ = find(elf.as_slice());
            let _ = entry(elf.as_slice());
        }
    }
}
