// SPDX-License-Identifier: BSD-2-Clause

//! HTTP/2 and gRPC.

use super::*;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, stream]);
    frame.extend(payload);
    frame
}

fn block(encoder: &mut Encoder<'_>, fields: &[(&str, &str)]) -> Vec<u8> {
    encoder.encode(
        fields
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes())),
    )
}

/// Two calls of gRPC at once on one connection: what the client and what the server sends.
fn calls() -> (Vec<u8>, Vec<u8>) {
    let (mut up, mut down) = (Encoder::new(), Encoder::new());
    let mut client = PREFACE.to_vec();
    client.extend(frame(4, 0, 0, &[]));
    let mut server = frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]);
    for stream in [1, 3] {
        let path = format!("/pkg.Service/Call{stream}?key=abc");
        let head = block(
            &mut up,
            &[
                (":method", "POST"),
                (":scheme", "https"),
                (":path", &path),
                (":authority", "example.com"),
                ("content-type", "application/grpc"),
                ("x-api-key", "secret"),
            ],
        );
        // Padded, with a priority, and continued.
        let mut first = vec![2, 0, 0, 0, 0, 16];
        first.extend_from_slice(&head[..10]);
        first.extend([0, 0]);
        client.extend(frame(1, 0x28, stream, &first));
        client.extend(frame(9, 4, stream, &head[10..]));
    }
    for stream in [1, 3] {
        client.extend(frame(0, 0x9, stream, &[1, 0, 0, 0, 0, 2, 7, 7, 0]));
        let head = block(
            &mut down,
            &[(":status", "200"), ("content-type", "application/grpc")],
        );
        server.extend(frame(1, 4, stream, &head));
        server.extend(frame(0, 0, stream, &[0, 0, 0, 0, 1, 9, 0, 0, 0, 0, 0]));
        let trailers = block(
            &mut down,
            &[("grpc-status", if stream == 1 { "0" } else { "5" })],
        );
        server.extend(frame(1, 5, stream, &trailers));
    }
    (client, server)
}

#[test]
fn calls_of_grpc_are_lines_however_they_are_cut() {
    let (client, server) = calls();
    for size in 1..=client.len() {
        let mut wire = Wire::new();
        client.chunks(size).for_each(|piece| wire.write(piece));
        server.chunks(size).for_each(|piece| wire.read(piece));
        let done = wire.http.done();
        assert_eq!(done.len(), 2, "pieces of {size}");
        for (exchange, (stream, code)) in done.iter().zip([(1, 0), (3, 5)]) {
            assert_eq!(
                (exchange.stream, exchange.grpc_status()),
                (Some(stream), Some(code))
            );
            assert_eq!(
                exchange.path.as_deref(),
                Some(&*format!("/pkg.Service/Call{stream}?key=***"))
            );
            assert_eq!(exchange.host.as_deref(), Some("example.com"));
            assert_eq!(exchange.request.field("x-api-key"), Some("******"));
            assert_eq!(exchange.outcome, Outcome::Complete);
            assert_eq!(
                (exchange.request.body.length, exchange.request.body.messages),
                (7, 1)
            );
            assert_eq!(
                (
                    exchange.response.body.length,
                    exchange.response.body.messages
                ),
                (11, 2)
            );
        }
    }
}

#[test]
fn a_server_that_speaks_first_is_followed_too() {
    let (client, server) = calls();
    let mut wire = Wire::new();
    wire.write(&server[..15]);
    wire.read(&client[..40]);
    wire.read(&client[40..]);
    wire.write(&server[15..]);
    let done = wire.http.done();
    assert_eq!(done.len(), 2);
    assert_eq!(done[0].direction, Direction::Read);
}

#[test]
fn headers_from_before_the_start_are_unknown_not_wrong() {
    let (client, server) = calls();
    // Where the second stream's headers start, and its answer's.
    let at = |bytes: &[u8], start: &[u8]| {
        bytes
            .windows(start.len())
            .rposition(|part| part == start)
            .unwrap()
    };
    let second = at(&client, &[1, 0x28, 0, 0, 0, 3]) - 3;
    let answer = at(&server, &[1, 4, 0, 0, 0, 3]) - 3;
    let mut wire = Wire::new();
    wire.write(b"bytes of a frame that was under way");
    wire.write(&client[second..]);
    wire.read(&server[answer..]);
    let done = wire.http.done();
    assert_eq!(done.len(), 1);
    let exchange = &done[0];
    assert_eq!(exchange.method.as_deref(), Some("POST"));
    assert_eq!(exchange.path.as_deref(), Some("/pkg.Service/Call3?key=***"));
    // Sent in full with the first request only.
    assert_eq!(exchange.request.field("x-api-key"), None);
    let unknown = exchange
        .request
        .fields
        .iter()
        .filter(|field| field.name.is_empty());
    assert!(unknown.count() >= 1, "{:?}", exchange.request.fields);
    assert_eq!(exchange.status, Some(200));
    // Its name was sent with the first answer only.
    assert_eq!(exchange.grpc_status(), None);
}

#[test]
fn a_gap_between_frames_ends_what_is_under_way() {
    let (client, server) = calls();
    let mut wire = Wire::new();
    wire.write(&client);
    wire.read(&server[..20]);
    wire.skip(Direction::Read, 10);
    wire.read(&server[30..]);
    let lines = wire.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].contains("POST example.com /pkg.Service/Call1?key=*** no answer"),
        "{lines:?}"
    );
    assert!(lines[0].ends_with("bytes are missing"), "{lines:?}");
}

#[test]
fn a_stream_that_is_given_up_says_so() {
    let (client, _) = calls();
    let mut wire = Wire::new();
    wire.write(&client);
    wire.read(frame(4, 0, 0, &[]));
    wire.read(frame(3, 0, 1, &[0, 0, 0, 8]));
    assert!(wire.lines()[0].ends_with("reset with 8"));
}

#[test]
fn frames_written_anew_have_the_same_headers_with_secrets_masked() {
    let (client, server) = calls();
    for size in [client.len(), 100, 50] {
        let mut rewriter = Rewriter::of(Direction::Write, &client).unwrap();
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for piece in client.chunks(size) {
            rewriter.bytes(Direction::Write, piece, true, &mut up);
        }
        rewriter.bytes(Direction::Read, &server, true, &mut down);
        assert!(up.windows(6).any(|part| part == b"******"));
        assert!(!up.windows(6).any(|part| part == b"secret"));
        assert!(up.windows(11).any(|part| part == b"example.com"));
        // They are read as the others are, with nothing hidden.
        let mut wire = Wire::new();
        wire.http = Http::new(100, true);
        wire.write(&up);
        wire.read(&down);
        let done = wire.http.done();
        assert_eq!(done.len(), 2);
        for exchange in &done {
            assert_eq!(exchange.request.field("x-api-key"), Some("******"));
            assert!(exchange.path.as_deref().unwrap().ends_with("?key=***"));
            assert_eq!(
                (exchange.request.body.length, exchange.response.body.length),
                (7, 11)
            );
            assert!(exchange.grpc_status().is_some());
        }
    }
    assert!(Rewriter::of(Direction::Write, b"GET / HTTP/1.1\r\n\r\n").is_none());
}

#[test]
fn a_value_of_any_length_is_written_anew() {
    for length in [0, 126, 127, 128, 254, 255, 16_383, 40_000] {
        let mut client = PREFACE.to_vec();
        let value = "v".repeat(length);
        let head = block(
            &mut Encoder::new(),
            &[(":method", "GET"), (":path", "/"), ("x-long", &value)],
        );
        client.extend(frame(1, 5, 1, &head));
        let mut out = Vec::new();
        let mut rewriter = Rewriter::of(Direction::Write, &client).unwrap();
        rewriter.bytes(Direction::Write, &client, true, &mut out);
        let mut wire = Wire::new();
        wire.write(&out);
        wire.http.finish(START);
        assert_eq!(
            wire.http.done()[0].request.field("x-long"),
            Some(&*value),
            "{length}"
        );
    }
}

/// The start of a connection with a request of these fields on stream 1, as the client sends it.
fn request(encoder: &mut Encoder<'_>, more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = vec![(":method", "POST"), (":path", "/"), (":authority", "u:p@h")];
    fields.extend(more);
    let mut client = PREFACE.to_vec();
    client.extend(frame(1, 4, 1, &block(encoder, &fields)));
    client
}

#[test]
fn padding_is_no_part_of_a_body_wherever_a_frame_is_cut() {
    // Each with a message of two bytes, and 20 bytes of padding.
    let padded = [&[20, 0, 0, 0, 0, 2, 7, 7][..], &[0; 20]].concat();
    let mut client = request(&mut Encoder::new(), &[("content-type", "application/grpc")]);
    client.extend(frame(0, 8, 1, &padded));
    client.extend(frame(0, 9, 1, &padded));
    // More padding than there is a frame for.
    client.extend(frame(0, 9, 1, &[9, 1, 1]));
    let answer = block(&mut Encoder::new(), &[(":status", "200")]);
    for size in [client.len(), 1, 7] {
        let mut wire = Wire::new();
        client.chunks(size).for_each(|piece| wire.write(piece));
        wire.read(frame(1, 5, 1, &answer));
        let done = wire.http.done();
        let body = &done[0].request.body;
        assert_eq!((body.length, body.messages), (14, 2), "{size}");
        assert_eq!(body.kept(), [0, 0, 0, 0, 2, 7, 7, 0, 0, 0, 0, 2, 7, 7]);
        assert!(body.is_whole());
        assert_eq!(done[0].host.as_deref(), Some("h"));
    }
    // The length of the padding and what follows are lost: all that is left is taken for the body.
    let mut wire = Wire::new();
    wire.write(&client[..client.len() - 12 - padded.len()]);
    wire.skip(Direction::Write, 4);
    wire.write(&client[client.len() - 12 - padded.len() + 4..]);
    wire.read(frame(1, 5, 1, &answer));
    let body = &wire.http.done()[0].request.body;
    assert_eq!((body.length, body.missing), (7 + 27, 3));
}

#[test]
fn the_rest_of_a_block_whose_start_was_not_seen_is_not_read_as_one() {
    // A literal with incremental indexing, as it may stand in the midst of a value.
    let stray = [&[0x40, 5][..], b"x-abc", &[6], b"secret"].concat();
    let indexed = [0x83, 0x84, 0xbe];
    let mut frames = frame(9, 4, 1, &stray);
    frames.extend(frame(1, 5, 3, &indexed));
    let mut wire = Wire::new();
    wire.write(&frames);
    wire.http.finish(START);
    let done = wire.http.done();
    assert_eq!(done.len(), 1);
    assert_eq!(done[0].method.as_deref(), Some("POST"));
    assert_eq!(done[0].request.field("x-abc"), None);
    // Nor is it where the start was lost, or is another stream's.
    let start = request(&mut Encoder::new(), &[]);
    let open = frame(1, 0, 3, &[0x83]);
    for (gap, stream) in [(5, 3), (0, 5)] {
        let mut wire = Wire::new();
        let mut out = Vec::new();
        let mut rewriter = Rewriter::of(Direction::Write, &start).unwrap();
        wire.write(&start);
        wire.write(&open);
        rewriter.bytes(
            Direction::Write,
            &[&start[..], &open].concat(),
            true,
            &mut out,
        );
        wire.skip(Direction::Write, gap);
        if gap > 0 {
            rewriter.skip(Direction::Write, gap);
        }
        let stray = frame(9, 4, stream, &stray);
        wire.write(&stray);
        rewriter.bytes(Direction::Write, &stray, true, &mut out);
        wire.http.finish(START);
        for exchange in wire.http.done() {
            assert_eq!(exchange.request.field("x-abc"), None);
        }
        assert!(!out.windows(6).any(|part| part == b"secret"), "{gap}");
    }
}

#[test]
fn a_block_that_makes_no_sense_is_told_of() {
    for head in [vec![0x40, 0x7f], vec![0x83; (256 << 10) + 1]] {
        let mut wire = Wire::new();
        wire.write(PREFACE);
        for (number, part) in head.chunks(16 << 10).enumerate() {
            let end = (number + 1) * (16 << 10) >= head.len();
            let kind = if number == 0 { 1 } else { 9 };
            wire.write(frame(kind, if end { 5 } else { 0 }, 1, part));
        }
        // Its answer is nothing more.
        wire.read(frame(4, 0, 0, &[]));
        let answer = block(&mut Encoder::new(), &[(":status", "400")]);
        wire.read(frame(1, 5, 1, &answer));
        let lines = wire.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].ends_with("the rest is no HTTP"), "{lines:?}");
    }
}

#[test]
fn what_is_pushed_and_what_comes_late_is_no_request() {
    let (mut up, mut down) = (Encoder::new(), Encoder::new());
    let mut wire = Wire::new();
    wire.write(request(&mut up, &[]));
    let promised = block(&mut down, &[(":method", "GET"), (":path", "/pushed")]);
    wire.read(frame(4, 0, 0, &[]));
    wire.read(frame(5, 4, 1, &[&[0, 0, 0, 2][..], &promised].concat()));
    let answer = block(&mut down, &[(":status", "200")]);
    wire.read(frame(1, 4, 2, &answer));
    wire.read(frame(0, 1, 2, b"pushed"));
    let answer = block(&mut down, &[(":status", "201")]);
    wire.read(frame(1, 5, 1, &answer));
    // The request's trailers come after its answer.
    wire.write(frame(1, 5, 1, &block(&mut up, &[("x-late", "1")])));
    wire.http.finish(START);
    let lines = wire.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("POST h / 201"), "{lines:?}");
}

#[test]
fn a_body_that_looks_like_frames_is_written_with_secrets_masked() {
    let body = [&[0, 0x40, 0, 0, 0, 0, 0, 0, 1][..], b"the rest\r\n"].concat();
    let request = b"GET /?token=abc HTTP/1.1\r\nCookie: abc\r\n\r\n";
    let mut rewriter = Rewriter::of(Direction::Write, &body).unwrap();
    let mut out = Vec::new();
    rewriter.bytes(Direction::Write, &body, true, &mut out);
    rewriter.bytes(Direction::Write, request, true, &mut out);
    let masked = b"GET /?token=*** HTTP/1.1\r\nCookie: ***\r\n\r\n";
    assert_eq!(out, [&body[..], masked].concat());
    // In the frames of one that is HTTP/2 for sure, lines of a body that look so are masked, too.
    let mut client = super::PREFACE.to_vec();
    client.extend(frame(0, 0, 1, b"Cookie: abc"));
    let mut rewriter = Rewriter::of(Direction::Write, &client).unwrap();
    let mut out = Vec::new();
    rewriter.bytes(Direction::Write, &client, true, &mut out);
    assert!(out.ends_with(b"Cookie: ***"));
}

#[test]
fn a_path_with_blanks_is_masked_to_its_end() {
    let mut client = PREFACE.to_vec();
    let head = block(
        &mut Encoder::new(),
        &[(":method", "GET"), (":path", "/a b?token=abc d&x=1")],
    );
    client.extend(frame(1, 5, 1, &head));
    let mut wire = Wire::new();
    wire.write(&client);
    wire.http.finish(START);
    let path = wire.http.done()[0].path.clone();
    assert_eq!(path.as_deref(), Some("/a b?token=*** *&x=1"));
}

proptest! {
    #[test]
    fn any_bytes_are_followed_and_what_is_kept_is_given_back(
        pieces in proptest::collection::vec(
            (any::<bool>(), 0u64..20, prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..100),
                Just(REQUESTS.as_bytes().to_vec()),
                Just(ANSWERS.as_bytes().to_vec()),
                Just(calls().0),
                Just(calls().1),
                Just(b"GET / HTTP/1.1\r\nContent-Length: 7\r\n\r\n".to_vec()),
                Just(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n".to_vec()),
            ]),
            0..30,
        ),
    ) {
        let mut wire = Wire::new();
        for (write, missing, bytes) in pieces {
            let direction = if write { Direction::Write } else { Direction::Read };
            // Often nothing is missing.
            wire.skip(direction, missing.saturating_sub(15));
            wire.piece(direction, &bytes, bytes.len());
            if let Some(mut rewriter) = Rewriter::of(direction, &bytes) {
                rewriter.skip(direction, missing);
                rewriter.bytes(direction, &bytes, true, &mut Vec::new());
            }
        }
        wire.http.finish(START);
        for exchange in wire.http.done() {
            let mut out = Vec::new();
            exchange.text(&mut Line::new(&mut out, false)).unwrap();
            for c in String::from_utf8(out).unwrap().chars() {
                prop_assert!(crate::output::is_printable(c));
            }
            serde_json::to_string(&exchange).unwrap();
        }
        prop_assert_eq!(wire.http.budget.left(), MOST_KEPT);
    }
}
