// SPDX-License-Identifier: BSD-2-Clause

//! What lines of JSON are made of, with nothing in them that a terminal may obey.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::{is_printable, leading};

/// Fields of JSON lines, written once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub(super) Vec<u8>);

impl Fields {
    /// Those of `value`, a structure or a map.
    ///
    /// # Errors
    /// If it is none.
    pub fn of(value: &impl Serialize) -> io::Result<Self> {
        let mut fields = Vec::new();
        push_fields(&mut fields, value)?;
        Ok(Self(fields))
    }
}

/// Appends the fields of `value`, a structure or a map, each with a comma ahead.
pub(super) fn push_fields(line: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    let start = line.len();
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut *line, Escaping,
    ))?;
    if line.get(start) != Some(&b'{') || line.pop() != Some(b'}') {
        return Err(io::Error::other("a line of JSON is made of fields"));
    }
    match line.get_mut(start + 1) {
        Some(_) => line[start] = b',',
        None => line.truncate(start),
    }
    Ok(())
}

/// JSON in one line, in whose strings what may not reach a terminal ([`is_printable`]) is escaped:
/// JSON demands that for few characters only, and lines are read on terminals as well.
struct Escaping;

impl serde_json::ser::Formatter for Escaping {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        escaped(writer, fragment)
    }
}

/// Whether a byte is the same in a JSON string. Without branches, so that many are looked at in one step.
fn is_itself(byte: u8) -> bool {
    (b' '..0x7f).contains(&byte) & (byte != b'"') & (byte != b'\\')
}

/// Writes text as it is in a JSON string (RFC 8259, section 7), with what may not reach a terminal escaped: what
/// serde_json does byte by byte, in steps of many bytes.
fn escaped(writer: &mut (impl Write + ?Sized), text: &str) -> io::Result<()> {
    let mut rest = text;
    loop {
        let (start, end) = rest.split_at(leading(rest.as_bytes(), is_itself));
        writer.write_all(start.as_bytes())?;
        let Some(c) = end.chars().next() else {
            return Ok(());
        };
        match c {
            '"' => writer.write_all(b"\\\"")?,
            '\\' => writer.write_all(b"\\\\")?,
            '\n' => writer.write_all(b"\\n")?,
            '\r' => writer.write_all(b"\\r")?,
            '\t' => writer.write_all(b"\\t")?,
            c if is_printable(c) => writer.write_all(c.encode_utf8(&mut [0; 4]).as_bytes())?,
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        rest = &end[c.len_utf8()..];
    }
}

/// `bytes`, if they are text: UTF-8 without control characters but line ends and tabs.
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

/// Appends `bytes` as they are in a JSON string, if they are text ([`as_text`]); else appends nothing, and says so.
/// ASCII is looked at once.
fn push_text(line: &mut Vec<u8>, bytes: &[u8]) -> bool {
    let start = line.len();
    let mut rest = bytes;
    loop {
        let (same, end) = rest.split_at(leading(rest, is_itself));
        line.extend_from_slice(same);
        rest = end;
        let Some((byte, after)) = end.split_first() else {
            return true;
        };
        let escape = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            _ => break,
        };
        line.extend_from_slice(escape);
        rest = after;
    }
    // Not ASCII, or not text: to a Vec nothing is refused.
    let is_text = as_text(rest).is_some_and(|text| escaped(line, text).is_ok());
    if !is_text {
        line.truncate(start);
    }
    is_text
}

/// Appends the field that holds `bytes`.
pub(super) fn push_payload(line: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    let start = line.len();
    line.extend_from_slice(b",\"data\":\"");
    if !push_text(line, bytes) {
        line.truncate(start);
        line.extend_from_slice(b",\"data_base64\":\"");
        let start = line.len();
        let length = base64::encoded_len(bytes.len(), true)
            .ok_or_else(|| io::Error::other("a payload is too long"))?;
        line.resize(start + length, 0);
        STANDARD
            .encode_slice(bytes, &mut line[start..])
            .map_err(io::Error::other)?;
    }
    line.push(b'"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::OffsetDateTime;

    use super::super::{Event, Format, Line, Settings, Sink};
    use super::*;

    #[derive(Serialize)]
    struct Seen {
        comm: &'static str,
    }

    #[derive(Debug, Serialize)]
    struct Only<'a> {
        #[serde(skip)]
        payload: &'a [u8],
        #[serde(skip)]
        constant: Option<Fields>,
    }

    impl Event for Only<'_> {
        fn kind(&self) -> &'static str {
            "only"
        }

        fn text(&self, _: &mut Line<'_>) -> io::Result<()> {
            Ok(())
        }

        fn constant(&self) -> Option<&Fields> {
            self.constant.as_ref()
        }

        fn payload(&self) -> &[u8] {
            self.payload
        }
    }

    fn only(payload: &[u8], constant: Option<Fields>) -> String {
        let settings = Settings {
            format: Format::Json,
            ..Settings::default()
        };
        let mut sink = Sink::new("test", settings, false, Vec::new());
        let event = Only { payload, constant };
        sink.event(OffsetDateTime::UNIX_EPOCH, &event).unwrap();
        String::from_utf8(sink.into_inner()).unwrap()
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
            (b"text\x7f", r#","data_base64":"dGV4dH8="}"#),
            ("\u{9b}1m".as_bytes(), r#","data_base64":"wpsxbQ=="}"#),
            (b"", r#""kind":"only"}"#),
        ] {
            let line = only(bytes, None);
            assert!(line.trim_end().ends_with(end), "{line} {end}");
        }
    }

    #[test]
    fn fields_that_are_constant_stand_after_the_others_and_before_the_payload() {
        let seen = |comm| Seen { comm };
        let constant = |comm| Some(Fields::of(&seen(comm)).unwrap());
        for (payload, constant, end) in [
            (
                &b"x"[..],
                constant("\u{9b}"),
                r#","comm":"\u009b","data":"x"}"#,
            ),
            (b"", constant("a"), r#""kind":"only","comm":"a"}"#),
            (b"", Some(Fields::default()), r#""kind":"only"}"#),
        ] {
            let line = only(payload, constant);
            assert!(line.trim_end().ends_with(end), "{line} {end}");
        }
        assert!(Fields::of(&3).is_err() && Fields::of(&"{}").is_err());
    }

    proptest! {
        #[test]
        fn json_is_byte_exact(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,300}") {
            for bytes in [bytes, text.into_bytes()] {
                let line = only(&bytes, None);
                let json: serde_json::Value = serde_json::from_str(&line).unwrap();
                let back = match (json.get("data"), json.get("data_base64")) {
                    (Some(text), None) => text.as_str().unwrap().as_bytes().to_vec(),
                    (None, Some(data)) => STANDARD.decode(data.as_str().unwrap()).unwrap(),
                    _ => Vec::new(),
                };
                prop_assert_eq!(json.get("data").is_some(), !bytes.is_empty() && as_text(&bytes).is_some());
                prop_assert_eq!(back, bytes);
                prop_assert!(line.trim_end().chars().all(is_printable));
            }
        }
    }
}
