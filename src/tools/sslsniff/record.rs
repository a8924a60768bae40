// SPDX-License-Identifier: BSD-2-Clause

//! What the kernel side sends: bytes to values, whatever the bytes are.

use std::net::{IpAddr, SocketAddr};

use plain::Plain;

use super::function::Function;
use crate::skel::sslsniff::types::ssl_addresses as Addresses;
pub use crate::skel::sslsniff::types::ssl_derived as Derived;
pub use crate::skel::sslsniff::types::ssl_record as Header;
use crate::skel::sslsniff::types::{ssl_direction, ssl_kind, ssl_via};

#[allow(unsafe_code)]
// SAFETY: integers and arrays of integers with explicit padding: any bytes are a value.
unsafe impl Plain for Header {}

#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Plain for Addresses {}

#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Plain for Derived {}

/// `SSL_FLAG_LAST`
pub const FLAG_LAST: u8 = 1;
/// `SSL_FLAG_GAP`
pub const FLAG_GAP: u8 = 2;
/// `SSL_FLAG_DONE`
pub const FLAG_DONE: u8 = 4;

/// `SSL_FLAG_PEEK`
pub const FLAG_PEEK: u8 = 8;
/// `SSL_FLAG_FAILED`
pub const FLAG_FAILED: u8 = 16;
/// `SSL_FLAG_BORING`
pub const FLAG_BORING: u8 = 32;

/// `AF_INET`, `AF_INET6`
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

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
        /// They stay to be read again (`SSL_peek`).
        repeated: bool,
    },
    /// A handshake came to an end.
    Handshake {
        /// Which call did it.
        function: Function,
        /// How it ended.
        outcome: Outcome,
    },
    /// The program has said that it is done.
    Shutdown {
        /// Which call did it.
        function: Function,
        /// The peer has said so too.
        both: bool,
    },
    /// The connection was freed.
    Close,
    /// The connection's socket is known, or is another than before.
    Peer {
        /// Its own address.
        local: SocketAddr,
        /// The other end's.
        peer: SocketAddr,
        /// How that is known.
        via: &'static str,
        /// Which socket: no other has this number at the time.
        socket: u64,
    },
    /// The connection has another stream in place of its socket.
    NoPeer,
    /// The process is over, or another program from now on, and its connections with it.
    Exit,
    /// Bytes that passed a socket as a connection began; it is not known whose if `ssl` is zero.
    Hello {
        /// Where the bytes go.
        direction: Direction,
        /// The first of those that passed in a system call.
        bytes: &'a [u8],
        /// Which socket, as above.
        socket: u64,
    },
    /// The library said why a call fails.
    Error {
        /// The reason's number.
        reason: u32,
        /// The number is one of BoringSSL's.
        boring: bool,
    },
    /// A key was derived.
    Secret {
        /// From what, and the key.
        derived: &'a [u8],
    },
    /// Where the call was made that the thread's next record is about.
    Stack {
        /// A `struct user_stack`.
        stack: &'a [u8],
    },
    /// What the program asked or told the library.
    Fact {
        /// With which call.
        function: Function,
        /// The answer, or what was told.
        text: &'a [u8],
    },
}

impl What<'_> {
    /// Whether it is told beside a call, by who knows nothing of the call's library.
    pub fn is_aside(&self) -> bool {
        matches!(
            self,
            Self::Peer { .. }
                | Self::NoPeer
                | Self::Hello { .. }
                | Self::Error { .. }
                | Self::Secret { .. }
        )
    }
}

/// How a handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It has failed, or the connection was freed before it was done.
    Failed,
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
    let function = *Function::ALL.get(usize::from(header.function))?;
    let payload = || {
        let payload = bytes.get(size_of::<Header>()..)?;
        payload.get(..usize::try_from(header.captured).ok()?)
    };
    let direction = || match ssl_direction(u32::from(header.direction)) {
        ssl_direction::SSL_READ => Some(Direction::Read),
        ssl_direction::SSL_WRITE => Some(Direction::Write),
        _ => None,
    };
    let what = match ssl_kind(u32::from(header.kind)) {
        ssl_kind::SSL_DATA => What::Data {
            function,
            direction: direction()?,
            payload: payload()?,
            repeated: header.flags & FLAG_PEEK != 0,
        },
        ssl_kind::SSL_HANDSHAKE => What::Handshake {
            function,
            outcome: if header.flags & FLAG_DONE != 0 {
                Outcome::Done
            } else {
                Outcome::Failed
            },
        },
        ssl_kind::SSL_SHUTDOWN => What::Shutdown {
            function,
            both: header.flags & FLAG_DONE != 0,
        },
        ssl_kind::SSL_CLOSE => What::Close,
        ssl_kind::SSL_PEER => {
            let mut addresses = Addresses::default();
            plain::copy_from_bytes(&mut addresses, payload()?).ok()?;
            let address = |bytes: [u8; 16], port| {
                let ip = match addresses.family {
                    AF_INET => IpAddr::from(*bytes.first_chunk::<4>()?),
                    AF_INET6 => IpAddr::from(bytes).to_canonical(),
                    _ => return None,
                };
                Some(SocketAddr::new(ip, port))
            };
            What::Peer {
                local: address(addresses.local, addresses.local_port)?,
                peer: address(addresses.peer, addresses.peer_port)?,
                via: match ssl_via(u32::from(header.via)) {
                    ssl_via::SSL_VIA_CALL => "call",
                    ssl_via::SSL_VIA_SET_FD => "set_fd",
                    ssl_via::SSL_VIA_CIPHERTEXT => "ciphertext",
                    _ => return None,
                },
                socket: header.offset,
            }
        }
        ssl_kind::SSL_NO_PEER => What::NoPeer,
        ssl_kind::SSL_EXIT => What::Exit,
        ssl_kind::SSL_HELLO => What::Hello {
            direction: direction()?,
            bytes: payload()?,
            socket: header.offset,
        },
        ssl_kind::SSL_ERROR => What::Error {
            reason: u32::try_from(header.offset).ok()?,
            boring: header.flags & FLAG_BORING != 0,
        },
        ssl_kind::SSL_SECRET => What::Secret {
            derived: payload()?,
        },
        ssl_kind::SSL_STACK => What::Stack { stack: payload()? },
        ssl_kind::SSL_FACT => What::Fact {
            function,
            text: payload()?,
        },
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
                payload: b"hello",
                repeated: false
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
            ("SSL_FLAG_PEEK", FLAG_PEEK),
            ("SSL_FLAG_FAILED", FLAG_FAILED),
            ("SSL_FLAG_BORING", FLAG_BORING),
        ] {
            assert!(
                text.contains(&format!("#define {name} {value}\n")),
                "{name}"
            );
        }
    }

    /// A record that says that the socket is known.
    pub(in super::super) fn socket(family: u16) -> Vec<u8> {
        let mut addresses = Addresses {
            family,
            local_port: 1000,
            peer_port: 443,
            ..Addresses::default()
        };
        addresses.local[..4].copy_from_slice(&[10, 0, 0, 1]);
        addresses.peer[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
        let mut header = written(0, 0);
        (header.kind, header.flags) = (4, 0);
        #[allow(unsafe_code)]
        // SAFETY: the addresses are Plain: integers without padding of the compiler's.
        let bytes = unsafe { plain::as_bytes(&addresses) };
        encode(&header, bytes)
    }

    #[test]
    fn addresses_of_both_families_are_read_and_of_no_other() {
        let peer = |family| match decode(&socket(family)).map(|record| record.what) {
            Some(What::Peer {
                local, peer, via, ..
            }) => Some((local.to_string(), peer.to_string(), via)),
            other => {
                assert!(other.is_none());
                None
            }
        };
        let v6 = peer(AF_INET6).unwrap();
        assert_eq!((v6.1.as_str(), v6.2), ("192.0.2.1:443", "call"));
        assert_eq!(peer(AF_INET).unwrap().0, "10.0.0.1:1000");
        assert_eq!(peer(1), None);
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
