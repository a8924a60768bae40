// SPDX-License-Identifier: BSD-2-Clause

use loona_hpack::Encoder;
use proptest::prelude::*;
use time::macros::datetime;

use super::super::event::MadeIn;
use super::*;
use crate::output::{Event as _, Line};

mod two;

const START: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

/// A connection that is fed by hand; each piece comes a millisecond after the last.
struct Wire {
    http: Http,
    connection: u64,
    offsets: [u64; 2],
    pieces: i64,
    who: Identity,
}

impl Wire {
    fn new() -> Self {
        Self {
            http: Http::new(100, false),
            connection: 1,
            offsets: [0, 0],
            pieces: 0,
            who: Identity {
                pid: Some(7),
                comm: Some("curl".to_owned()),
                ..Identity::default()
            },
        }
    }

    fn time(&self) -> OffsetDateTime {
        START + time::Duration::milliseconds(self.pieces)
    }

    fn piece(&mut self, direction: Direction, bytes: &[u8], length: usize) {
        self.pieces += 1;
        let time = self.time();
        let who = self.who.clone();
        let data = data(&who, self.connection, direction, bytes, length);
        let offset = self.offsets[direction.index()];
        self.offsets[direction.index()] += length as u64;
        self.http.data(time, &Data { offset, ..data });
    }

    fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.piece(Direction::Write, bytes, bytes.len());
    }

    fn read(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.piece(Direction::Read, bytes, bytes.len());
    }

    fn skip(&mut self, direction: Direction, missing: u64) {
        self.offsets[direction.index()] += missing;
    }

    fn close(&mut self) -> bool {
        let time = self.time();
        self.http.close(time, 1, [0, 0])
    }

    /// The lines of what is done, without who and which connection.
    fn lines(&mut self) -> Vec<String> {
        let shown = |exchange: &Exchange| {
            let mut out = Vec::new();
            exchange.text(&mut Line::new(&mut out, false)).unwrap();
            let line = String::from_utf8(out).unwrap();
            line.strip_prefix("curl[7] #1 ").unwrap().to_owned()
        };
        self.http.done().iter().map(shown).collect()
    }
}

const NOWHERE: &Ends = &Ends {
    local: None,
    peer: None,
    peer_via: None,
};

/// A call at offset 0.
fn data<'a>(
    who: &'a Identity,
    connection: u64,
    direction: Direction,
    bytes: &'a [u8],
    length: usize,
) -> Data<'a> {
    Data {
        direction: direction.name(),
        function: "SSL_write",
        connection,
        offset: 0,
        length: length as u64,
        captured: u32::try_from(bytes.len()).unwrap(),
        missing: None,
        repeated: false,
        duration_ns: None,
        took: std::time::Duration::ZERO,
        ends: NOWHERE,
        masked: false,
        library: None,
        common: None,
        made: MadeIn::default(),
        who,
        bytes,
        raw: bytes,
        starts: true,
        hex: false,
    }
}

#[test]
fn connections_that_never_finish_what_they_start_take_little_memory() {
    let mut wire = Wire::new();
    let head = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(60_000));
    let mut frames = PREFACE.to_vec();
    frames.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // Headers, of which the last byte of 200,001 does not come.
    frames.extend([3, 13, 65, 1, 0, 0, 0, 0, 1]);
    frames.resize(200_000, 0x82);
    let mut most = 0;
    for connection in 1..3000 {
        (wire.connection, wire.offsets) = (connection, [0, 0]);
        wire.write(if connection % 2 == 0 {
            head.as_bytes()
        } else {
            &frames
        });
        most = most.max(wire.http.held);
        assert!(wire.http.held <= MOST_HELD);
        let sum: usize = wire
            .http
            .conversations
            .values()
            .map(|one| one.protocol.held())
            .sum();
        assert_eq!(sum, wire.http.held);
    }
    assert!(most > MOST_HELD / 2, "{most}");
    wire.http.finish(START);
    assert_eq!(wire.http.held, 0);
    assert!(!wire.http.done().is_empty());
}

#[test]
fn frames_without_headers_make_no_table() {
    let mut wire = Wire::new();
    // WINDOW_UPDATE, as if of a connection that is older.
    wire.write([0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert!(matches!(
        wire.http.conversations[&1].protocol,
        Protocol::Two(_)
    ));
    assert!(wire.http.held < 4096, "{}", wire.http.held);
}

#[test]
fn lengths_that_cannot_be_are_borne() {
    for start in [
        &b"POST / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\nx"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ] {
        let mut wire = Wire::new();
        wire.write(start);
        let who = Identity::default();
        let data = Data {
            offset: start.len() as u64,
            length: u64::MAX,
            ..data(&who, 1, Direction::Write, b"x", 1)
        };
        wire.http.data(START, &data);
        wire.http.finish(START);
    }
    let mut body = Body::default();
    body.skip(u64::MAX);
    body.skip(1);
    body.push(b"x", 0);
    assert_eq!((body.length, body.missing), (u64::MAX, u64::MAX));
}

#[test]
fn secrets_in_lines_of_bodies_are_masked_unless_they_are_wanted() {
    for (show, shown) in [
        (false, "Authorization: ***\nx"),
        (true, "Authorization: abc\nx"),
    ] {
        let mut wire = Wire::new();
        wire.http = Http::new(100, show);
        wire.write("POST / HTTP/1.1\r\nContent-Length: 20\r\n\r\nAuthorization: a");
        wire.write("bc\nx");
        wire.http.finish(START);
        assert_eq!(wire.http.done()[0].request.body.kept(), shown.as_bytes());
    }
}

#[test]
fn a_message_has_no_more_than_so_many_fields() {
    let mut message = Message {
        body: Body::new(&Budget::new(1 << 20), false),
        ..Message::default()
    };
    for _ in 0..1000 {
        message.add(Field {
            name: "x".to_owned(),
            value: String::new(),
        });
    }
    assert_eq!(message.fields.len(), 256);
}

#[test]
fn a_request_and_its_answer_are_a_line() {
    let mut wire = Wire::new();
    wire.write("GET /a?token=abc HTTP/1.1\r\nHost: example.com\r\n\r\n");
    assert!(wire.lines().is_empty());
    wire.read("HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhel");
    wire.read("lo");
    assert_eq!(
        wire.lines(),
        ["-> GET example.com /a?token=*** 404 2.000 ms, request 0 bytes, answer 5 bytes"]
    );
    assert!(wire.close());
    assert!(wire.lines().is_empty());
}

#[test]
fn json_has_what_is_known_and_nothing_else() {
    let mut wire = Wire::new();
    wire.read("POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc");
    wire.write("HTTP/1.0 200 OK\r\n\r\nthe answer");
    wire.close();
    let json = serde_json::to_value(&wire.http.done()[0]).unwrap();
    let wanted = serde_json::json!({
        "connection": 1, "role": "server", "version": "1.0", "method": "POST", "path": "/",
        "status": 200, "outcome": "complete", "duration_ns": 1_000_000, "wait_ns": 1_000_000,
        "request_bytes": 3, "response_bytes": 10, "pid": 7, "comm": "curl",
    });
    assert_eq!(json, wanted);
}

/// Three requests at once, with bodies of each kind, and their answers.
const REQUESTS: &str = "PUT /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
    4\r\nWiki\r\n5;x=y\r\npedia\r\n0\r\nTrailer: z\r\n\r\n\
    HEAD /2 HTTP/1.1\r\nHost: b\r\n\r\n\
    \r\nPOST /3 HTTP/1.1\r\nHost: c\r\nContent-Length: 2\r\n\r\nhi";
const ANSWERS: &str = "HTTP/1.1 100 Continue\r\n\r\n\
    HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
    HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n\
    HTTP/1.1 204 No Content\r\n\r\n";
const LINES: [&str; 3] = [
    "PUT a /1 201 request 9 answer 3",
    "HEAD b /2 200 request 0 answer 0",
    "POST c /3 204 request 2 answer 0",
];

fn short(exchange: &Exchange) -> String {
    assert_eq!(exchange.outcome, Outcome::Complete);
    format!(
        "{} {} {} {} request {} answer {}",
        exchange.method.as_deref().unwrap(),
        exchange.host.as_deref().unwrap(),
        exchange.path.as_deref().unwrap(),
        exchange.status.unwrap(),
        exchange.request.body.length,
        exchange.response.body.length
    )
}

#[test]
fn requests_and_answers_are_paired_however_they_are_cut() {
    for size in 1..=REQUESTS.len() {
        let mut wire = Wire::new();
        for piece in REQUESTS.as_bytes().chunks(size) {
            wire.write(piece);
        }
        for piece in ANSWERS.as_bytes().chunks(size) {
            wire.read(piece);
        }
        let lines: Vec<_> = wire.http.done().iter().map(short).collect();
        assert_eq!(lines, LINES, "pieces of {size}");
    }
}

#[test]
fn bytes_that_are_missing_in_a_body_are_counted() {
    let mut wire = Wire::new();
    wire.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.read("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n1234567890");
    wire.skip(Direction::Read, 80);
    wire.read("1234567890");
    assert_eq!(
        wire.lines(),
        ["-> GET a / 200 2.000 ms, request 0 bytes, answer 100 bytes (80 not seen)"]
    );
    // Cut by --max-bytes.
    wire.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n";
    wire.piece(Direction::Read, head, head.len() + 60);
    assert!(wire.lines()[0].ends_with("answer 60 bytes (60 not seen)"));
}

#[test]
fn after_a_gap_that_hides_a_head_nothing_is_guessed() {
    let mut wire = Wire::new();
    wire.write("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.read("HTTP/1.1 200 OK\r\nX-");
    wire.skip(Direction::Read, 300);
    wire.read("the rest of a body that says HTTP/1.1 200 OK");
    assert_eq!(
        wire.lines(),
        ["-> GET a /1 no answer, request 0 bytes, answer 0 bytes, the rest is not known: bytes are missing"
            .replace(" no answer", " ?")]
    );
    wire.write("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.write("GET /3 HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.read("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    // The answer to /2 may have been in what was not understood.
    let lines = wire.lines();
    assert!(lines[0].starts_with("-> GET a /2 no answer"), "{lines:?}");
    assert!(lines[1].starts_with("-> GET a /3 200 "), "{lines:?}");
}

#[test]
fn an_answer_without_its_request_is_of_an_unknown_one() {
    let mut wire = Wire::new();
    wire.read("the end of a body");
    wire.read("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    wire.write("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.read("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let lines = wire.lines();
    assert_eq!(lines[0], "-> ? ? ? 200, answer 0 bytes");
    assert!(lines[1].starts_with("-> GET a /2 200 "), "{lines:?}");
}

#[test]
fn what_is_no_http_is_said_to_be_none() {
    let mut wire = Wire::new();
    wire.write(b"\x00\x00\x00\x08\x04\xd2\x16\x2f");
    wire.read("N");
    assert!(!wire.close());
    let mut wire = Wire::new();
    wire.write("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n");
    wire.read(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x05GET / HTTP/1.1\r\n\r\n");
    wire.write("GET /no HTTP/1.1\r\n\r\n");
    assert_eq!(wire.lines().len(), 1);
    assert!(wire.close());
    assert!(wire.lines().is_empty());
}

#[test]
fn a_request_of_any_method_is_one() {
    for size in [4, 40] {
        let mut wire = Wire::new();
        for piece in b"MERGE /a HTTP/1.1\r\nHost: h\r\n\r\n".chunks(size) {
            wire.write(piece);
        }
        wire.read("HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n");
        let lines = wire.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("MERGE h /a 405"), "{lines:?}");
    }
    // As other protocols start.
    for start in ["EHLO host\r\n", "USER me\r\n", "A123 LOGIN a b\r\n"] {
        let mut wire = Wire::new();
        wire.write(start);
        wire.read("250 OK\r\n");
        assert!(!wire.close());
    }
}

#[test]
fn what_is_missing_at_the_end_of_a_connection_is_a_gap() {
    for (length, wanted) in [
        ("Content-Length: 10\r\n", "(4 not seen)"),
        // Up to the connection's end.
        ("", "(4 not seen)"),
        ("Content-Length: 20\r\n", "closed before its end"),
    ] {
        let mut wire = Wire::new();
        wire.write("GET / HTTP/1.1\r\n\r\n");
        wire.read(format!("HTTP/1.1 200 OK\r\n{length}\r\n"));
        wire.read("123456");
        let time = wire.time();
        assert!(wire.http.close(time, 1, [4, 0]));
        let lines = wire.lines();
        assert!(lines[0].contains("(4 not seen)"), "{lines:?}");
        assert!(lines[0].contains(wanted), "{lines:?}");
    }
}

#[test]
fn what_is_written_starts_as_the_call_is_made() {
    let mut wire = Wire::new();
    let who = wire.who.clone();
    let request = b"GET / HTTP/1.1\r\n\r\n";
    let took = std::time::Duration::from_millis(30);
    let call = data(&who, 1, Direction::Write, request, request.len());
    wire.http.data(START, &Data { took, ..call });
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let call = data(&who, 1, Direction::Read, answer, answer.len());
    let later = START + time::Duration::milliseconds(5);
    wire.http.data(later, &Data { took, ..call });
    let exchange = wire.http.done().remove(0);
    assert_eq!(exchange.request.start, Some(START - took));
    assert_eq!(exchange.response.start, Some(later));
    assert_eq!(exchange.response.end, Some(later));
}

#[test]
fn the_end_of_a_connection_ends_what_is_under_way() {
    for (head, outcome) in [
        ("HTTP/1.1 200 OK\r\n\r\nabc", "answer 3 bytes"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            "answer 3 bytes, closed before its end",
        ),
        ("", "no answer, request 0 bytes, closed before its end"),
    ] {
        let mut wire = Wire::new();
        wire.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        wire.read(head);
        wire.close();
        let lines = wire.lines();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with(outcome), "{lines:?}");
    }
}

#[test]
fn bytes_that_are_only_looked_at_count_once() {
    let mut wire = Wire::new();
    wire.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
    wire.piece(Direction::Read, answer, answer.len());
    wire.offsets[0] = 0;
    wire.read(answer);
    assert_eq!(wire.lines().len(), 1);
}
