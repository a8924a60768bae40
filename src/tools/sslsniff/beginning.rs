// SPDX-License-Identifier: BSD-2-Clause

//! How connections begin: hellos and alerts, which pass sockets in the clear. They are read from pieces, as
//! system calls passed them; whatever is in those, the answer is what the ends said or nothing.
//!
//! Who speaks may not be known yet: a server that keeps TLS and its socket apart reads the client's
//! hello before there is a connection. Such pieces are kept by their socket.

use std::collections::{HashMap, VecDeque};

use tls_parser::{
    TlsExtension, TlsRecordType, parse_tls_client_hello_extensions,
    parse_tls_handshake_client_hello, parse_tls_handshake_server_hello, parse_tls_raw_record,
    parse_tls_server_hello_extensions,
};

use super::event::{Facts, Trouble};
use super::record::Direction;

/// Beginnings that are followed at a time, and bytes that wait for their rest in all of them: the oldest
/// make room.
const MOST: usize = 4096;
const MOST_BYTES: usize = 4 << 20;

/// Handshake messages (RFC 8446, 4).
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// The name of a server (RFC 6066, 3).
const HOST_NAME: u8 = 0;

/// What a server's hello has in place of a random number if it is a `HelloRetryRequest` (RFC 8446, 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// The first version in which sessions are resumed by keys, and not by their identifiers.
const TLS_1_3: u16 = 0x0304;

/// One direction.
#[derive(Debug, Default)]
struct Side {
    bytes: Vec<u8>,
    /// Nothing more is of interest.
    done: bool,
}

/// What is known of the beginning of a connection.
#[derive(Debug, Default)]
pub struct Beginning {
    sides: [Side; 2],
    /// From hellos.
    facts: Facts,
    /// From alerts.
    trouble: Trouble,
    /// The random number of the client's hello.
    random: Option<[u8; 32]>,
    /// The identifier of the session that the client wants to resume, or one without a meaning.
    session: Option<Vec<u8>>,
}

impl Beginning {
    fn waiting(&self) -> usize {
        self.sides.iter().map(|side| side.bytes.len()).sum()
    }

    fn side(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::Read => &mut self.sides[0],
            Direction::Write => &mut self.sides[1],
        }
    }

    /// Reads on in what passed in a direction.
    fn push(&mut self, direction: Direction, bytes: &[u8]) {
        let side = self.side(direction);
        if side.done {
            return;
        }
        side.bytes.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut side.bytes);
        if self.read(direction, &bytes) {
            self.side(direction).done = true;
        } else {
            self.side(direction).bytes = bytes;
        }
    }

    /// Whether nothing more is to be read.
    fn read(&mut self, direction: Direction, mut bytes: &[u8]) -> bool {
        let mut messages = Vec::new();
        loop {
            match bytes.first().copied().map(TlsRecordType) {
                None => return false,
                Some(
                    TlsRecordType::Handshake
                    | TlsRecordType::ChangeCipherSpec
                    | TlsRecordType::Alert,
                ) => {}
                Some(_) => return true,
            }
            if bytes.get(1).is_some_and(|major| *major != 3) {
                return true;
            }
            let (rest, record) = match parse_tls_raw_record(bytes) {
                Ok(parsed) => parsed,
                Err(err) => return !err.is_incomplete(),
            };
            bytes = rest;
            match record.hdr.record_type {
                TlsRecordType::Handshake => {
                    messages.extend_from_slice(record.data);
                    match self.message(&messages) {
                        None => {}
                        Some(true) => return true,
                        Some(false) => messages.clear(),
                    }
                }
                TlsRecordType::Alert => {
                    // An encrypted one is longer.
                    if let [_, description] = record.data {
                        self.trouble.alert(*description, direction);
                    }
                    return true;
                }
                _ => {}
            }
        }
    }

    /// Reads a hello; `None` if it is not all there, else whether nothing more is of interest.
    fn message(&mut self, bytes: &[u8]) -> Option<bool> {
        let (head, rest) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
        let body = rest.get(..length)?;
        match head[0] {
            CLIENT_HELLO => self.client_hello(body),
            SERVER_HELLO => return Some(self.server_hello(body) != Some(true)),
            _ => {}
        }
        Some(true)
    }

    fn client_hello(&mut self, body: &[u8]) {
        let Ok((_, hello)) = parse_tls_handshake_client_hello(body) else {
            return;
        };
        self.random = hello.random.try_into().ok();
        self.session = Some(hello.session_id.unwrap_or_default().to_vec());
        let extensions = hello.ext.map(parse_tls_client_hello_extensions);
        let Some(Ok((_, extensions))) = extensions else {
            return;
        };
        for extension in extensions {
            if let TlsExtension::SNI(names) = extension
                && let Some((_, name)) = names.iter().find(|(kind, _)| kind.0 == HOST_NAME)
            {
                self.facts.sni = Some(String::from_utf8_lossy(name).into_owned());
            }
        }
    }

    /// Whether it is only a request to say hello again.
    fn server_hello(&mut self, body: &[u8]) -> Option<bool> {
        let (_, hello) = parse_tls_handshake_server_hello(body).ok()?;
        let retry = hello.random == RETRY;
        let mut version = hello.version.0;
        let mut by_key = false;
        let extensions = hello.ext.map(parse_tls_server_hello_extensions);
        if let Some(Ok((_, extensions))) = extensions {
            for extension in extensions {
                match extension {
                    TlsExtension::SupportedVersions(versions) => {
                        version = versions.first().map_or(version, |first| first.0);
                    }
                    TlsExtension::ALPN(protocols) => {
                        let protocol = protocols.first();
                        self.facts.alpn = protocol.map(|name| String::from_utf8_lossy(name).into());
                    }
                    TlsExtension::PreSharedKey(_) => by_key = true,
                    _ => {}
                }
            }
        }
        self.facts.version = version_name(version).map(str::to_owned);
        self.facts.cipher = Some(match hello.cipher.get_ciphersuite() {
            Some(suite) => suite.name.to_owned(),
            None => format!("0x{:04x}", hello.cipher.0),
        });
        if !retry {
            self.facts.resumed = if version >= TLS_1_3 {
                Some(by_key)
            } else {
                let echo = hello.session_id.unwrap_or_default();
                let session = self.session.as_deref();
                session.map(|session| !echo.is_empty() && session == echo)
            };
        }
        Some(retry)
    }
}

/// Whether a piece starts with a client's hello.
pub fn is_client_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [22, 3, _, _, _, CLIENT_HELLO, ..])
}

/// As `SSL_get_version` names versions.
fn version_name(version: u16) -> Option<&'static str> {
    match version {
        0x0300 => Some("SSLv3"),
        0x0301 => Some("TLSv1"),
        0x0302 => Some("TLSv1.1"),
        0x0303 => Some("TLSv1.2"),
        TLS_1_3 => Some("TLSv1.3"),
        _ => None,
    }
}

/// Adds what is in `new` to what is known; says whether there is any news.
pub fn learn(facts: &mut Facts, new: &Facts) -> bool {
    let mut news = new.resumed.is_some() && new.resumed != facts.resumed;
    facts.resumed = new.resumed.or(facts.resumed);
    for (known, new) in [
        (&mut facts.sni, &new.sni),
        (&mut facts.alpn, &new.alpn),
        (&mut facts.version, &new.version),
        (&mut facts.cipher, &new.cipher),
    ] {
        if new.is_some() && new != known {
            known.clone_from(new);
            news = true;
        }
    }
    news
}

/// Whose beginning: a connection's, or what passed a socket of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// Process, pointer, and since when it is known.
    Connection((u32, u64, u64)),
    /// Process and socket.
    Socket((u32, u64)),
}

/// All that is under way.
#[derive(Debug, Default)]
pub struct Beginnings {
    all: HashMap<Whose, Beginning>,
    /// In the order in which they came; some are gone.
    order: VecDeque<Whose>,
    bytes: usize,
}

/// What there is to know of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// From hellos.
    pub facts: Facts,
    /// From alerts.
    pub trouble: Trouble,
    /// The random number of the client's hello.
    pub random: Option<[u8; 32]>,
}

impl Beginnings {
    /// Adds a piece; returns what is known now.
    pub fn push(&mut self, whose: Whose, direction: Direction, bytes: &[u8]) -> Known {
        if !self.all.contains_key(&whose) {
            self.order.push_back(whose);
        }
        let one = self.all.entry(whose).or_default();
        self.bytes -= one.waiting();
        one.push(direction, bytes);
        self.bytes += one.waiting();
        let known = one.known();
        self.make_room();
        known
    }

    /// What passed a socket is this connection's; returns what is known of it.
    pub fn claim(&mut self, socket: (u32, u64), connection: (u32, u64, u64)) -> Option<Known> {
        let one = self.all.remove(&Whose::Socket(socket))?;
        let known = one.known();
        let whose = Whose::Connection(connection);
        if let Some(before) = self.all.insert(whose, one) {
            self.bytes -= before.waiting();
        }
        self.order.push_back(whose);
        self.make_room();
        Some(known)
    }

    /// Nothing more is to be known of it.
    pub fn forget(&mut self, whose: Whose) {
        if let Some(one) = self.all.remove(&whose) {
            self.bytes -= one.waiting();
        }
    }

    fn make_room(&mut self) {
        // Of what was forgotten its place in the order is left.
        while self.order.len() > MOST || self.bytes > MOST_BYTES {
            match self.order.pop_front() {
                Some(oldest) => self.forget(oldest),
                None => return,
            }
        }
    }
}

impl Beginning {
    fn known(&self) -> Known {
        Known {
            facts: self.facts.clone(),
            trouble: self.trouble.clone(),
            random: self.random,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_length(size: usize, bytes: &[u8]) -> Vec<u8> {
        let length = bytes.len().to_be_bytes();
        [&length[length.len() - size..], bytes].concat()
    }

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind, 3, 3][..], &with_length(2, body)].concat()
    }

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &with_length(2, body)].concat()
    }

    /// Version, random number and session, then `rest`, then extensions.
    fn hello(
        kind: u8,
        random: [u8; 32],
        session: &[u8],
        rest: &[u8],
        extensions: &[u8],
    ) -> Vec<u8> {
        let body = [
            &[3, 3][..],
            &random,
            &with_length(1, session),
            rest,
            &with_length(2, extensions),
        ];
        record(22, &[&[kind][..], &with_length(3, &body.concat())].concat())
    }

    /// A client's hello for a.example.
    pub(in super::super) fn client(session: &[u8]) -> Vec<u8> {
        let name = [&[0][..], &with_length(2, b"a.example")].concat();
        let sni = extension(0, &with_length(2, &name));
        hello(1, [7; 32], session, &[0, 2, 0x13, 1, 1, 0], &sni)
    }

    /// Says TLS 1.3.
    pub(in super::super) const SUPPORTED: [u8; 6] = [0, 43, 0, 2, 3, 4];

    /// A server's hello.
    pub(in super::super) fn server(
        random: [u8; 32],
        session: &[u8],
        cipher: u16,
        extensions: &[u8],
    ) -> Vec<u8> {
        let rest = [&cipher.to_be_bytes()[..], &[0]].concat();
        hello(2, random, session, &rest, extensions)
    }

    fn facts(client: &[u8], server: &[u8]) -> Facts {
        let mut beginnings = Beginnings::default();
        let whose = Whose::Connection((1, 2, 3));
        beginnings.push(whose, Direction::Write, client);
        beginnings.push(whose, Direction::Read, server).facts
    }

    #[test]
    fn hellos_tell_what_is_agreed_upon() {
        let alpn = extension(16, &with_length(2, &with_length(1, b"h2")));
        let told = facts(&client(b""), &server([9; 32], b"", 0xc02f, &alpn));
        let expected = Facts {
            sni: Some("a.example".to_owned()),
            alpn: Some("h2".to_owned()),
            version: Some("TLSv1.2".to_owned()),
            cipher: Some("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".to_owned()),
            resumed: Some(false),
        };
        assert_eq!(told, expected);
        let told = facts(&client(b"x"), &server([9; 32], b"x", 0x1302, &SUPPORTED));
        assert_eq!(told.version.as_deref(), Some("TLSv1.3"));
        assert_eq!(told.cipher.as_deref(), Some("TLS_AES_256_GCM_SHA384"));
        assert_eq!(told.resumed, Some(false));
        let told = facts(&client(b""), &server([9; 32], b"", 0xfafa, &[]));
        assert_eq!(told.cipher.as_deref(), Some("0xfafa"));
    }

    #[test]
    fn sessions_are_resumed_by_their_identifier_or_by_a_key() {
        let resumed = |session: &[u8], echo: &[u8], extensions: &[u8]| {
            facts(&client(session), &server([9; 32], echo, 0x1301, extensions)).resumed
        };
        assert_eq!(resumed(b"id", b"id", &[]), Some(true));
        assert_eq!(resumed(b"id", b"ie", &[]), Some(false));
        assert_eq!(resumed(b"", b"", &[]), Some(false));
        let key = extension(41, &[0, 0]);
        let by_key = [&SUPPORTED[..], &key].concat();
        assert_eq!(resumed(b"id", b"id", &by_key), Some(true));
        // Without the client's hello nobody knows.
        let known = facts(b"", &server([9; 32], b"id", 0x1301, &[]));
        assert_eq!(known.resumed, None);
    }

    #[test]
    fn a_request_to_say_hello_again_is_no_end() {
        let again = server(RETRY, b"", 0x1301, &SUPPORTED);
        let change = record(20, &[1]);
        let last = server([9; 32], b"", 0x1303, &SUPPORTED);
        let told = facts(&client(b""), &[&again[..], &change].concat());
        assert_eq!((told.version.is_some(), told.resumed), (true, None));
        let told = facts(&client(b""), &[again, change, last].concat());
        let cipher = "TLS_CHACHA20_POLY1305_SHA256";
        assert_eq!(told.cipher.as_deref(), Some(cipher));
        assert_eq!(told.resumed, Some(false));
    }

    #[test]
    fn hellos_are_read_in_pieces_and_from_several_records() {
        let whole = client(b"id");
        let mut beginnings = Beginnings::default();
        let whose = Whose::Socket((1, 2));
        for byte in &whole[..whole.len() - 1] {
            let known = beginnings.push(whose, Direction::Read, &[*byte]);
            assert_eq!(known, Known::default());
        }
        assert!(beginnings.bytes > 0);
        let rest = &whole[whole.len() - 1..];
        let known = beginnings.push(whose, Direction::Read, rest);
        assert_eq!(known.random, Some([7; 32]));
        assert_eq!(beginnings.bytes, 0);
        let known = beginnings.claim((1, 2), (1, 5, 6)).unwrap();
        assert_eq!(known.facts.sni.as_deref(), Some("a.example"));
        assert_eq!(beginnings.claim((1, 2), (1, 5, 6)), None);

        let (one, other) = whole[5..].split_at(20);
        let split = [record(22, one), record(22, other)].concat();
        let known = beginnings.push(whose, Direction::Read, &split);
        assert_eq!(known.random, Some([7; 32]));
    }

    #[test]
    fn an_alert_in_the_clear_has_its_name_and_its_sender() {
        let mut beginnings = Beginnings::default();
        let whose = Whose::Connection((1, 2, 3));
        let known = beginnings.push(whose, Direction::Read, &record(21, &[2, 70]));
        assert_eq!(known.trouble.alert.as_deref(), Some("protocol_version"));
        assert_eq!(known.trouble.alert_from, Some("peer"));
        for (bytes, alert) in [
            (&[1, 0][..], None),
            (&[2, 250], Some("250")),
            (&[7; 19], None),
        ] {
            let mut beginnings = Beginnings::default();
            let known = beginnings.push(whose, Direction::Write, &record(21, bytes));
            assert_eq!(known.trouble.alert.as_deref(), alert);
        }
    }

    #[test]
    fn what_never_ends_makes_room_for_others() {
        let mut beginnings = Beginnings::default();
        let mut start = vec![22, 3, 3, 0x40, 0];
        start.resize(4000, 1);
        for number in 0..10_000 {
            let whose = Whose::Connection((1, number, 1));
            beginnings.push(whose, Direction::Read, &start);
            beginnings.push(whose, Direction::Write, &start);
        }
        assert!(beginnings.bytes <= MOST_BYTES);
        assert!(beginnings.order.len() <= MOST && beginnings.all.len() <= MOST);
        let waiting: usize = beginnings.all.values().map(Beginning::waiting).sum();
        assert_eq!(beginnings.bytes, waiting);
        for number in 0..10_000 {
            beginnings.forget(Whose::Connection((1, number, 1)));
        }
        assert_eq!((beginnings.bytes, beginnings.all.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5),
            kind in 20u8..24,
            message in 0u8..4,
        ) {
            let mut beginnings = Beginnings::default();
            let whose = Whose::Connection((1, 2, 3));
            let body: Vec<u8> = pieces.concat();
            let framed = record(kind, &[&[message][..], &with_length(3, &body)].concat());
            beginnings.push(whose, Direction::Write, &framed);
            for piece in &pieces {
                beginnings.push(whose, Direction::Read, piece);
            }
        }

        #[test]
        fn a_damaged_hello_does_no_harm(damage in proptest::collection::vec((0usize..200, any::<u8>()), 1..10)) {
            for whole in [client(b"id"), server([9; 32], b"id", 0x1301, &SUPPORTED)] {
                let mut bytes = whole;
                for (at, byte) in &damage {
                    let at = at % bytes.len();
                    bytes[at] = *byte;
                }
                let mut beginnings = Beginnings::default();
                beginnings.push(Whose::Socket((1, 2)), Direction::Write, &bytes);
            }
        }
    }
}
