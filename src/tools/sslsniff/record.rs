// SPDX-License-Identifier: BSD-2-Clause

//! What the kernel side sends: bytes to values, whatever the bytes are.

use plain::Plain;

use super::symbols::Function;
pub use crate::skel::sslsniff::types::ssl_record as Header;
use crate::skel::sslsniff::types::{ssl_direction, ssl_kind};

#[allow(unsafe_code)]
// SAFETY: integers and arrays of integers with explicit padding: any bytes are a value.
unsafe impl Plain for Header {}

/// `SSL_FLAG_LAST`
pub const FLAG_LAST: u8 = 1;
/// `SSL_FLAG_GAP`
pub const FLAG_GAP: u8 = 2;
/// `SSL_FLAG_DONE`
pub const FLAG_DONE: u8 = 4;

/// Where bytes go, seen from the program that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the peer.
    Read,
    /// To the peer.
    Write,
}

impl Direction {
    /// The name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What<'a> {
    /// A part of what a call read or wrote.
    Data {
        /// Which call.
        function: Function,
        /// Where the bytes go.
        direction: Direction,
        /// Those that were copied.
        payload: &'a [u8],
    },
    /// A handshake was done, or the connection was freed before.
    Handshake {
        /// Whether it was done.
        done: bool,
    },
    /// The connection was freed.
    Close,
}

/// A record: the header's values, and what they mean.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// As the kernel wrote it.
    pub header: Header,
    /// What it tells.
    pub what: What<'a>,
}

/// Reads a record; `None` if it is too short for what it says it has, or says what nobody knows.
pub fn decode(bytes: &[u8]) -> Option<Record<'_>> {
    let mut header = Header::default();
    plain::copy_from_bytes(&mut header, bytes).ok()?;
    let what = match ssl_kind(u32::from(header.kind)) {
        ssl_kind::SSL_DATA => {
            let function = *Function::ALL.get(usize::from(header.function))?;
            let direction = match ssl_direction(u32::from(header.direction)) {
                ssl_direction::SSL_READ => Direction::Read,
                ssl_direction::SSL_WRITE => Direction::Write,
                _ => return None,
            };
            let payload = bytes.get(size_of::<Header>()..)?;
            let payload = payload.get(..usize::try_from(header.captured).ok()?)?;
            What::Data {
                function,
                direction,
                payload,
            }
        }
        ssl_kind::SSL_HANDSHAKE => What::Handshake {
            done: header.flags & FLAG_DONE != 0,
        },
        ssl_kind::SSL_CLOSE => What::Close,
        _ => return None,
    };
    Some(Record { header, what })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record as the kernel lays it out.
    pub(in super::super) fn encode(header: &Header, payload: &[u8]) -> Vec<u8> {
        let mut header = *header;
        header.captured = u32::try_from(payload.len()).unwrap();
        #[allow(unsafe_code)]
        // SAFETY: the header is Plain: integers without padding of the compiler's.
        let bytes = unsafe { plain::as_bytes(&header) };
        [bytes, payload].concat()
    }

    /// A call of `SSL_write` on the first connection of process 7.
    pub(in super::super) fn written(offset: u64, length: u64) -> Header {
        let mut header = Header {
            time_ns: 1,
            ssl: 0x1000,
            since_ns: 1,
            offset,
            length,
            call_length: length,
            pid: 7,
            tid: 8,
            uid: 0,
            gid: 0,
            library: 1,
            kind: 0,
            function: 1,
            direction: 1,
            flags: FLAG_LAST,
            ..Header::default()
        };
        header.comm[..4].copy_from_slice(b"curl");
        header
    }

    #[test]
    fn the_payload_is_what_the_header_says_and_no_more() {
        let mut bytes = encode(&written(0, 5), b"hello");
        bytes.extend(b"what was in the ring before");
        let record = decode(&bytes).unwrap();
        let (function, direction) = (Function::Write, Direction::Write);
        assert_eq!(
            record.what,
            What::Data {
                function,
                direction,
                payload: b"hello"
            }
        );
    }

    #[test]
    fn the_constants_are_those_of_the_header_file() {
        let text = include_str!("../../bpf/sslsniff.h");
        for (name, value) in [
            ("SSL_FLAG_LAST", FLAG_LAST),
            ("SSL_FLAG_GAP", FLAG_GAP),
            ("SSL_FLAG_DONE", FLAG_DONE),
        ] {
            assert!(
                text.contains(&format!("#define {name} {value}\n")),
                "{name}"
            );
        }
    }

    #[test]
    fn a_record_that_is_cut_is_none() {
        let bytes = encode(&written(0, 5), b"hello");
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_none(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
        }
    }
}
