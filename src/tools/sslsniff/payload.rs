// SPDX-License-Identifier: BSD-2-Clause

//! A payload as JSON and as lines for people.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::output::{Line, Printable, Style, leading};

/// Before each line of a payload.
const INDENT: &str = "    ";
/// Bytes in a line of a hex dump.
const HEX_WIDTH: usize = 16;
const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A payload in a JSON line: text as it is, and anything else in base64 (RFC 4648, section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// There is none.
    None,
    /// All of it, as text.
    Text(&'a str),
    /// All of it, encoded.
    Bytes(&'a str),
}

impl<'a> Payload<'a> {
    /// What `bytes` are; `buffer` holds the encoded form.
    pub fn of(bytes: &'a [u8], buffer: &'a mut String) -> Self {
        if bytes.is_empty() {
            return Self::None;
        }
        if let Some(data) = as_text(bytes) {
            return Self::Text(data);
        }
        buffer.clear();
        STANDARD.encode_string(bytes, buffer);
        Self::Bytes(buffer)
    }

    /// As a field of a JSON line.
    pub fn field(self) -> Option<(&'static str, &'a str)> {
        match self {
            Self::None => None,
            Self::Text(data) => Some(("data", data)),
            Self::Bytes(data) => Some(("data_base64", data)),
        }
    }
}

/// `bytes`, if they are UTF-8 without control characters but line ends and tabs.
pub fn as_text(bytes: &[u8]) -> Option<&str> {
    // Without branches, so that many are looked at in one step.
    let plain = |byte: u8| {
        ((byte >= b' ') & (byte != 0x7f)) | (byte == b'\r') | (byte == b'\n') | (byte == b'\t')
    };
    // C1 controls are two bytes each in UTF-8: 0xc2, 0x80 to 0x9f.
    let c1 = |pair: &[u8]| pair[0] == 0xc2 && pair[1] < 0xa0;
    if leading(bytes, plain) < bytes.len() {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?;
    (text.is_ascii() || !bytes.windows(2).any(c1)).then_some(text)
}

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
    use serde::Serialize;

    use super::*;
    use crate::output::{Event, Format, Settings, Sink};

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

    /// An event that has nothing else.
    #[derive(Serialize)]
    struct Only<'a> {
        #[serde(skip)]
        payload: Payload<'a>,
    }

    impl Event for Only<'_> {
        fn kind(&self) -> &'static str {
            "only"
        }

        fn text(&self, _: &mut Line<'_>) -> io::Result<()> {
            Ok(())
        }

        fn long_field(&self) -> Option<(&'static str, &str)> {
            self.payload.field()
        }
    }

    fn json(bytes: &[u8]) -> String {
        let settings = Settings {
            format: Format::Json,
            ..Settings::default()
        };
        let mut line = Vec::new();
        let mut encoded = String::new();
        let event = Only {
            payload: Payload::of(bytes, &mut encoded),
        };
        let mut sink = Sink::new("test", settings, false, &mut line);
        sink.event(time::OffsetDateTime::UNIX_EPOCH, &event)
            .unwrap();
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn json_has_text_as_it_is_and_bytes_in_base64() {
        for (bytes, end) in [
            (&b"a\r\n\tb\"\\"[..], r#","data":"a\r\n\tb\"\\"}"#),
            (
                "\u{202e}\u{e0001}ü".as_bytes(),
                r#","data":"\u202e\udb40\udc01ü"}"#,
            ),
            (b"\0\xff", r#","data_base64":"AP8="}"#),
            ("\u{9b}1m".as_bytes(), r#","data_base64":"wpsxbQ=="}"#),
            (b"", r#""kind":"only"}"#),
        ] {
            let line = json(bytes);
            assert!(line.trim_end().ends_with(end), "{line} {end}");
        }
    }

    proptest! {
        #[test]
        fn json_is_byte_exact(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let json: serde_json::Value = serde_json::from_str(&json(&bytes)).unwrap();
            let back = match (json.get("data"), json.get("data_base64")) {
                (Some(text), None) => text.as_str().unwrap().as_bytes().to_vec(),
                (None, Some(data)) => STANDARD.decode(data.as_str().unwrap()).unwrap(),
                _ => Vec::new(),
            };
            prop_assert_eq!(back, bytes);
        }

        #[test]
        fn any_bytes_can_be_shown(bytes in proptest::collection::vec(any::<u8>(), 0..300), hex: bool) {
            for c in shown(&bytes, hex).chars() {
                prop_assert!(c == '\n' || c == '\t' || crate::output::is_printable(c));
            }
        }
    }
}
