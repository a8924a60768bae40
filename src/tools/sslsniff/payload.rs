// SPDX-License-Identifier: BSD-2-Clause

//! A payload as lines for people.

use std::io::{self, Write};

use crate::output::{Line, Printable, Style, as_text};

/// Before each line of a payload.
const INDENT: &str = "    ";
/// Bytes in a line of a hex dump.
const HEX_WIDTH: usize = 16;
const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Writes `bytes` below a line: text line by line, anything else, or all with `hex`, as a hex dump
/// that counts from `offset`.
///
/// # Errors
/// Those of the writer.
pub fn lines(line: &mut Line<'_>, bytes: &[u8], offset: u64, hex: bool) -> io::Result<()> {
    match as_text(bytes) {
        Some(text) if !hex => {
            for part in text.strip_suffix('\n').unwrap_or(text).split('\n') {
                let part = part.strip_suffix('\r').unwrap_or(part);
                write!(line, "\n{INDENT}{}", Tabs(part))?;
            }
            Ok(())
        }
        _ => hex_dump(line, bytes, offset),
    }
}

/// Text with its tabs, and all else that [`Printable`] escapes escaped.
struct Tabs<'a>(&'a str);

impl std::fmt::Display for Tabs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, part) in self.0.split('\t').enumerate() {
            if at > 0 {
                f.write_str("\t")?;
            }
            Printable(part).fmt(f)?;
        }
        Ok(())
    }
}

fn hex_dump(line: &mut Line<'_>, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut at = offset;
    for row in bytes.chunks(HEX_WIDTH) {
        line.write_all(b"\n")?;
        line.styled(Style::Dim, format_args!("{INDENT}{at:08x}"))?;
        let mut out = [b' '; HEX_WIDTH * 3];
        let mut shown = [b'.'; HEX_WIDTH];
        for (column, byte) in row.iter().enumerate() {
            // A wider gap in the middle.
            let place = column * 3 + usize::from(column >= HEX_WIDTH / 2);
            out[place] = HEX_DIGITS[usize::from(byte >> 4)];
            out[place + 1] = HEX_DIGITS[usize::from(byte & 15)];
            if byte.is_ascii_graphic() || *byte == b' ' {
                shown[column] = *byte;
            }
        }
        line.write_all(b"  ")?;
        line.write_all(&out)?;
        line.write_all(b"  |")?;
        line.write_all(&shown[..row.len()])?;
        line.write_all(b"|")?;
        at = at.wrapping_add(HEX_WIDTH as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(bytes: &[u8], hex: bool) -> String {
        let mut out = Vec::new();
        lines(&mut Line::new(&mut out, false), bytes, 0x20, hex).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_shown_line_by_line_without_what_a_terminal_obeys() {
        assert_eq!(
            shown(b"GET / HTTP/1.1\r\nA:\tb\r\n\r\n", false),
            "\n    GET / HTTP/1.1\n    A:\tb\n    "
        );
        assert_eq!(shown("a\u{202e}b".as_bytes(), false), "\n    a\\u{202e}b");
        assert_eq!(shown(b"a\rb", false), "\n    a\\rb");
    }

    #[test]
    fn bytes_are_shown_as_a_hex_dump() {
        assert_eq!(
            shown(b"\x1b[31m and some more text", false),
            "\n    00000020  1b 5b 33 31 6d 20 61 6e  64 20 73 6f 6d 65 20 6d  |.[31m and some m|\
             \n    00000030  6f 72 65 20 74 65 78 74                           |ore text|"
        );
        assert!(shown(b"text", true).starts_with("\n    00000020  74 65 78 74 "));
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_shown(bytes in proptest::collection::vec(any::<u8>(), 0..300), hex: bool) {
            for c in shown(&bytes, hex).chars() {
                prop_assert!(c == '\n' || c == '\t' || crate::output::is_printable(c));
            }
        }
    }
}
