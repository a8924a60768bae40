// SPDX-License-Identifier: BSD-2-Clause

use proptest::prelude::*;
use serde_json::Value;
use time::macros::datetime;

use super::super::beginning::tests as hellos;
use super::super::function::Function;
use super::super::record::Header;
use super::super::record::tests::{encode, written};
use super::*;
use crate::output::Settings;

fn session(format: Format, style: Style) -> Session<Vec<u8>> {
    let settings = Settings {
        format,
        ..Settings::default()
    };
    let sink = Sink::new("sslsniff", settings, false, Vec::new());
    let names = Names::default();
    names.set(1, "/lib/libssl.so.3", vec![Function::Read, Function::Write]);
    Session::new(sink, style, names, Directory::default())
}

fn feed(session: &mut Session<Vec<u8>>, header: &Header, payload: &[u8]) {
    let time = datetime!(2026-01-02 03:04:05 UTC);
    session.record(&encode(header, payload), |_| time).unwrap();
}

fn text(session: Session<Vec<u8>>) -> String {
    String::from_utf8(session.sink.into_inner()).unwrap()
}

fn events(session: Session<Vec<u8>>) -> Vec<Value> {
    text(session)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_call_is_a_line_with_all_that_is_known() {
    let mut session = session(Format::Json, Style::default());
    feed(&mut session, &written(0, 5), b"GET /");
    let events = events(session);
    let event = &events[0];
    for (name, value) in [
        ("kind", Value::from("data")),
        ("direction", "write".into()),
        ("function", "SSL_write".into()),
        ("library", "/lib/libssl.so.3".into()),
        ("connection", 1.into()),
        ("offset", 0.into()),
        ("length", 5.into()),
        ("captured", 5.into()),
        ("data", "GET /".into()),
        ("pid", 7.into()),
        ("tid", 8.into()),
        ("uid", 0.into()),
        ("comm", "curl".into()),
    ] {
        assert_eq!(event[name], value, "{name}");
    }
    assert!(event.get("missing").is_none() && event.get("masked").is_none());
}

#[test]
fn a_peer_is_not_shown_any_more_once_any_record_says_that_there_is_none() {
    let mut session = session(Format::Json, Style::default());
    let time = datetime!(2026-01-02 03:04:05 UTC);
    session.record(&record::tests::socket(2), |_| time).unwrap();
    feed(&mut session, &written(0, 1), b"a");
    let none = Header {
        no_peer: 1,
        ..written(1, 1)
    };
    feed(&mut session, &none, b"b");
    session.record(&record::tests::socket(2), |_| time).unwrap();
    feed(&mut session, &written(2, 1), b"c");
    let peers: Vec<bool> = events(session)
        .iter()
        .map(|event| event.get("peer").is_some())
        .collect();
    assert_eq!(peers, [true, false, true]);
}

#[test]
fn a_connection_that_starts_anew_without_a_handshake_shows_no_rest_of_a_secret() {
    for (handshake, shown) in [(false, "***\r\nA: b"), (true, "def\r\nA: b")] {
        let mut session = session(Format::Json, Style::default());
        feed(&mut session, &written(0, 19), b"GET /\r\nCookie: abc");
        let again = Header {
            since_ns: 2,
            ..written(0, 9)
        };
        if handshake {
            let done = Header {
                kind: 1,
                function: 4,
                flags: record::FLAG_DONE,
                length: 0,
                ..again
            };
            feed(&mut session, &done, b"");
        }
        feed(&mut session, &again, b"def\r\nA: b");
        let events = events(session);
        assert_eq!(events.last().unwrap()["data"], shown, "{events:?}");
    }
}

#[test]
fn of_a_connection_whose_start_was_not_seen_the_first_line_is_masked_unless_a_message_starts() {
    let value = (&b"c2VjcmV0\r\nDate: a"[..], "********\r\nDate: a");
    let request = (&b"GET /\r\nDate: a"[..], "GET /\r\nDate: a");
    for (sent, shown) in [value, request] {
        for direction in [0, 1] {
            let mut session = session(Format::Json, Style::default());
            let header = Header {
                direction,
                ..written(0, sent.len().try_into().unwrap())
            };
            feed(&mut session, &header, sent);
            assert_eq!(events(session)[0]["data"], shown);
        }
    }
    // The hello comes first.
    let mut session = session(Format::Json, Style::default());
    feed_hello(&mut session, hello(0x1000, 1, &hellos::client(b"")));
    feed(&mut session, &written(0, 18), value.0);
    let data = events(session).pop().unwrap();
    assert_eq!(data["data"], "c2VjcmV0\r\nDate: a");
    assert!(data.get("masked").is_none());
}

#[test]
fn a_stack_is_told_with_the_next_call_on_its_object_and_once() {
    let style = Style {
        stacks: true,
        ..Style::default()
    };
    let mut session = session(Format::Json, style);
    let size = crate::kernel::stacks::STACK_BYTES;
    let stack = Header {
        kind: crate::skel::sslsniff::types::ssl_kind::SSL_STACK
            .0
            .try_into()
            .unwrap(),
        captured: size.try_into().unwrap(),
        ..written(0, 0)
    };
    let other = Header {
        ssl: written(0, 0).ssl + 1,
        ..stack
    };
    feed(&mut session, &stack, &vec![0; size]);
    feed(&mut session, &written(0, 1), b"a");
    feed(&mut session, &written(1, 1), b"b");
    feed(&mut session, &other, &vec![0; size]);
    feed(&mut session, &written(2, 1), b"c");
    let told = events(session);
    let stacks: Vec<_> = told.iter().map(|event| &event["stack"]).collect();
    assert_eq!(stacks.len(), 3);
    assert_eq!(stacks[0][0]["function"], "SSL_write");
    assert_eq!(stacks[0][0]["file"], "/lib/libssl.so.3");
    assert_eq!(told[0]["stack_reason"], "the stack could not be read");
    assert!(stacks[1].is_null() && stacks[2].is_null(), "{stacks:?}");
}

#[test]
fn text_is_a_line_and_the_payload_below_it() {
    let mut session = session(Format::Text, Style::default());
    feed(&mut session, &written(0, 100), b"GET /\r\nCookie: abc\r\n");
    let mut late = written(200, 2);
    late.direction = 1;
    feed(&mut session, &late, b"\n\x01");
    assert_eq!(
        text(session),
        "03:04:05.000 curl[7] #1 -> SSL_write 100 bytes, 20 shown\n    GET /\n    Cookie: ***\n\
         03:04:05.000 curl[7] #1 -> SSL_write 2 bytes at 200, 100 lost before\n    \
         000000c8  0a 01                                             |..|\n"
    );
}

#[test]
fn ends_are_told_from_when_they_are_known_and_never_guessed() {
    let mut session = session(Format::Json, Style::default());
    let time = datetime!(2026-01-02 03:04:05 UTC);
    feed(&mut session, &written(0, 1), b"a");
    let socket = super::super::record::tests::socket(10);
    session.record(&socket, |_| time).unwrap();
    feed(&mut session, &written(1, 1), b"b");
    assert_eq!(session.shown().calls, 2);
    let events = events(session);
    assert_eq!(events.len(), 2);
    assert!(events[0].get("peer").is_none() && events[0].get("peer_via").is_none());
    assert_eq!(events[1]["peer"], "192.0.2.1:443");
    assert_eq!(events[1]["peer_via"], "call");
}

#[test]
fn what_is_read_again_moves_no_offset_and_is_masked_alike() {
    let mut session = session(Format::Json, Style::default());
    let secret = b"Cookie: abc\r\n";
    feed(&mut session, &done(), b"");
    let mut peek = written(0, 13);
    (peek.direction, peek.function) = (0, 6);
    peek.flags = FLAG_LAST | record::FLAG_PEEK;
    feed(&mut session, &peek, secret);
    let mut read = written(0, 13);
    (read.direction, read.function) = (0, 0);
    feed(&mut session, &read, secret);
    let events = &events(session)[1..];
    assert_eq!(events[0]["repeated"], true);
    for event in events {
        assert_eq!(event["data"], "Cookie: ***\r\n");
        assert!(event.get("missing").is_none());
    }
    assert!(events[1].get("repeated").is_none());
}

#[test]
fn the_time_that_a_call_takes_is_shown_on_request() {
    for latency in [false, true] {
        let style = Style {
            latency,
            ..Style::default()
        };
        let mut session = session(Format::Text, style);
        let mut call = written(0, 1);
        call.duration_ns = 12_345;
        feed(&mut session, &call, b"a");
        assert_eq!(text(session).contains("1 bytes in 12.3 us\n"), latency);
    }
}

#[test]
fn facts_are_told_once() {
    let mut session = session(Format::Json, Style::default());
    let mut fact = written(0, 0);
    (fact.kind, fact.flags) = (5, 0);
    for (function, text) in [(19, &b"a.example"[..]), (22, b"h2"), (22, b"h2"), (23, b"")] {
        fact.function = function;
        feed(&mut session, &fact, text);
    }
    assert_eq!(session.shown().calls, 0);
    let events = events(session);
    assert_eq!(events.len(), 3);
    assert_eq!(events[2]["kind"], "negotiated");
    assert_eq!(events[2]["sni"], "a.example");
    assert_eq!(events[2]["alpn"], "h2");
    assert_eq!(events[2]["resumed"], true);
}

#[test]
fn what_was_lost_last_is_told_as_the_connection_is_closed() {
    let close = |read, written_| Header {
        kind: 2,
        ..written(read, written_)
    };
    let closed = |format, close: Header| {
        let mut session = session(format, Style::default());
        feed(&mut session, &written(0, 5), b"GET /");
        feed(&mut session, &close, b"");
        text(session)
    };
    let whole = closed(Format::Json, close(0, 5));
    assert!(!whole.contains("missing"), "{whole}");
    let cut = closed(Format::Json, close(3, 15));
    let last: Value = serde_json::from_str(cut.lines().last().unwrap()).unwrap();
    assert_eq!(last["read_missing"], 3);
    assert_eq!(last["written_missing"], 10);
    let cut = closed(Format::Text, close(3, 15));
    assert!(
        cut.ends_with("close, 3 bytes read (the last 3 lost), 15 written (the last 10 lost)\n"),
        "{cut}"
    );
}

#[test]
fn a_connection_keeps_its_number_until_it_is_freed() {
    let mut session = session(Format::Json, Style::default());
    feed(&mut session, &written(0, 1), b"a");
    let mut other = written(0, 1);
    other.ssl += 1;
    feed(&mut session, &other, b"b");
    let mut close = written(10, 20);
    close.kind = 2;
    feed(&mut session, &close, b"");
    feed(&mut session, &written(0, 1), b"c");
    assert_eq!(session.shown().calls, 4);
    let events = events(session);
    let numbers: Vec<_> = events
        .iter()
        .map(|event| event["connection"].as_u64())
        .collect();
    assert_eq!(numbers, [Some(1), Some(2), Some(1), Some(3)]);
    assert_eq!(events[2]["kind"], "close");
    assert_eq!(
        (&events[2]["read"], &events[2]["written"]),
        (&10.into(), &20.into())
    );
}

#[test]
fn a_call_with_a_gap_or_without_its_end_is_not_delivered_whole() {
    let mut session = session(Format::Json, Style::default());
    let mut first = written(0, 1);
    first.flags = 0;
    feed(&mut session, &first, b"a");
    let mut last = written(5, 1);
    last.flags = FLAG_LAST | FLAG_GAP;
    feed(&mut session, &last, b"b");
    assert_eq!(session.shown().calls, 0);
    assert_eq!(session.shown().bytes, 2);
    assert_eq!(events(session)[1]["missing"], 4);
}

#[test]
fn secrets_are_shown_only_when_wanted() {
    let secret = b"Authorization: Basic eA==\r\n";
    for show_secrets in [false, true] {
        let style = Style {
            show_secrets,
            ..Style::default()
        };
        let mut session = session(Format::Json, style);
        feed(&mut session, &written(0, 20), &secret[..20]);
        feed(&mut session, &written(20, 7), &secret[20..]);
        let events = events(session);
        assert_eq!(
            events[1]["data"],
            if show_secrets {
                " eA==\r\n"
            } else {
                "*****\r\n"
            }
        );
        assert_eq!(events[1].get("masked").is_some(), !show_secrets);
    }
}

proptest! {
    #[test]
    fn any_record_is_shown_or_counted(
        bytes in proptest::collection::vec(any::<u8>(), 120..300),
        kind in 0u8..7,
        function in 0u8..26,
        captured in 0u8..100,
    ) {
        for format in [Format::Json, Format::Text] {
            let mut session = session(format, Style::default());
            let mut bytes = bytes.clone();
            let at = std::mem::offset_of!(Header, kind);
            bytes[at..at + 3].copy_from_slice(&[kind, function, 1]);
            let at = std::mem::offset_of!(Header, captured);
            bytes[at..at + 4].copy_from_slice(&[captured, 0, 0, 0]);
            session.record(&bytes, |_| datetime!(2026-01-02 03:04:05 UTC)).unwrap();
        }
    }
}

/// What passed socket 77 while no call was under way, or within one of the connection.
fn hello(ssl: u64, direction: u8, bytes: &[u8]) -> (Header, &[u8]) {
    let header = Header {
        kind: 7,
        ssl,
        since_ns: u64::from(ssl > 0),
        direction,
        offset: 77,
        flags: 0,
        ..written(0, 0)
    };
    (header, bytes)
}

/// The connection is on socket 77: known by the hello that it sent there.
fn sent_there(session: &mut Session<Vec<u8>>) {
    let mut record = record::tests::socket(10);
    let mut header = Header::default();
    plain::copy_from_bytes(&mut header, &record).unwrap();
    (header.offset, header.via) = (77, 2);
    let payload = record.split_off(size_of::<Header>());
    feed(session, &header, &payload);
}

fn done() -> Header {
    Header {
        kind: 1,
        function: 4,
        flags: record::FLAG_DONE | FLAG_LAST,
        ..written(0, 0)
    }
}

fn feed_hello(session: &mut Session<Vec<u8>>, (header, bytes): (Header, &[u8])) {
    feed(session, &header, bytes);
}

#[test]
fn what_a_server_read_before_its_connection_was_known_is_told_of_it() {
    let mut session = session(Format::Json, Style::default());
    feed_hello(&mut session, hello(0, 0, &hellos::client(b"id")));
    assert_eq!(session.shown().connections, 0);
    sent_there(&mut session);
    let server = hellos::server([9; 32], b"id", 0x1301, &hellos::SUPPORTED);
    feed_hello(&mut session, hello(0x1000, 1, &server));
    feed(&mut session, &done(), b"");
    let event = &events(session)[0];
    assert_eq!(event["kind"], "handshake");
    assert_eq!(event["sni"], "a.example");
    assert_eq!(event["cipher"], "TLS_AES_128_GCM_SHA256");
    assert_eq!(event["peer_via"], "ciphertext");
}

#[test]
fn what_hellos_say_is_a_line_where_no_call_is_for_the_handshake() {
    let mut session = session(Format::Json, Style::default());
    let server = hellos::server([9; 32], b"", 0x1301, &hellos::SUPPORTED);
    feed_hello(&mut session, hello(0x1000, 1, &hellos::client(b"")));
    feed_hello(&mut session, hello(0x1000, 0, &server));
    feed(&mut session, &written(0, 5), b"hello");
    feed(&mut session, &written(5, 5), b"hello");
    let kinds: Vec<_> = events(session)
        .iter()
        .map(|event| (event["kind"].clone(), event["cipher"].is_string()))
        .collect();
    let expected = [("negotiated", true), ("data", false), ("data", false)];
    assert_eq!(kinds, expected.map(|(kind, cipher)| (kind.into(), cipher)));
}

#[test]
fn what_a_client_reads_outside_of_its_calls_is_told_of_it_until_the_socket_is_another() {
    let server = hellos::server([9; 32], b"", 0x1301, &hellos::SUPPORTED);
    for (another, known) in [(false, true), (true, false)] {
        let mut session = session(Format::Json, Style::default());
        sent_there(&mut session);
        feed_hello(&mut session, hello(0x1000, 1, &hellos::client(b"id")));
        if another {
            // Somebody else's, passed on.
            feed_hello(&mut session, hello(0, 1, &hellos::client(b"other")));
        }
        feed_hello(&mut session, hello(0, 0, &server));
        feed(&mut session, &done(), b"");
        let event = &events(session)[0];
        assert_eq!(event["version"].is_string(), known, "{event}");
        assert_eq!(event["sni"], "a.example");
    }
}

#[test]
fn the_first_reason_is_told_and_forgotten_once_all_is_well() {
    let error = |reason: u64| Header {
        kind: 8,
        offset: reason,
        flags: 0,
        ..written(0, 0)
    };
    for (well, told) in [(false, true), (true, false)] {
        let mut session = session(Format::Json, Style::default());
        feed(&mut session, &error(134), b"");
        feed(&mut session, &error(407), b"");
        if well {
            feed(&mut session, &done(), b"");
        }
        let failed = Header {
            flags: FLAG_LAST,
            ..done()
        };
        feed(&mut session, &failed, b"");
        let events = events(session);
        let event = events.last().unwrap();
        assert_eq!(event["result"], "failed");
        assert_eq!(event["reason"] == "certificate verify failed", told);
        assert_eq!(event.get("reason").is_some(), told);
    }
}

#[test]
fn a_connection_that_is_given_something_else_has_no_ends_any_more() {
    let mut session = session(Format::Json, Style::default());
    sent_there(&mut session);
    feed(&mut session, &written(0, 5), b"hello");
    let given = Header {
        kind: 10,
        flags: 0,
        ..written(0, 0)
    };
    feed(&mut session, &given, b"");
    feed(&mut session, &written(5, 5), b"hello");
    let events = events(session);
    assert!(events[0]["peer"].is_string() && events[1].get("peer").is_none());
}

#[test]
fn what_a_process_never_freed_is_closed_as_it_ends_and_no_other() {
    let left = |key: Key| (key.1 == 0x1000).then_some([3, 7]);
    let mut session = session(Format::Json, Style::default()).with_leftovers(Box::new(left));
    for (pid, ssl) in [(7, 0x1000), (7, 0x2000), (9, 0x1000)] {
        let header = Header {
            pid,
            ssl,
            ..written(0, 5)
        };
        feed(&mut session, &header, b"hello");
    }
    let exit = Header {
        kind: 11,
        ssl: 0,
        since_ns: 0,
        time_ns: 100,
        flags: 0,
        ..written(0, 0)
    };
    // Nothing is left of it for the second.
    for _ in 0..2 {
        feed(&mut session, &exit, b"");
    }
    assert_eq!(session.connections.len(), 1);
    assert_eq!(session.latest.len(), 1);
    let all = events(session);
    let closed: Vec<_> = all
        .iter()
        .filter(|event| event["kind"] == "close")
        .collect();
    let of = |event: &Value, name: &str| event[name].as_u64();
    assert_eq!(closed.len(), 2, "{all:?}");
    for (event, (number, read, written, missing)) in
        closed.iter().zip([(1, 3, 7, Some(2)), (2, 0, 5, None)])
    {
        assert_eq!(event["unfreed"], true);
        assert_eq!(of(event, "connection"), Some(number));
        assert_eq!(of(event, "read"), Some(read));
        assert_eq!(of(event, "written"), Some(written));
        assert_eq!(of(event, "written_missing"), missing);
        assert_eq!(of(event, "duration_ns"), Some(99));
    }
}
