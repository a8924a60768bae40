// SPDX-License-Identifier: BSD-2-Clause

use proptest::prelude::*;

use super::super::watchlist::tests::plain;
use super::*;

fn flows() -> Flows<'static, ()> {
    Flows::new(plain())
}

fn key(port: u16) -> Key {
    (
        SocketAddr::from(([10, 0, 0, 1], port)),
        SocketAddr::from(([169, 254, 169, 254], 80)),
    )
}

fn paths(found: Vec<Found<()>>) -> Vec<Option<String>> {
    found.into_iter().map(|found| found.request.path).collect()
}

fn piece(seq: u32, payload: &[u8]) -> Piece<'_> {
    Piece {
        seq,
        payload,
        expected: None,
        interface: 1,
    }
}

const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn every_split_gives_the_same_request() {
    let (mut flows, now) = (flows(), Instant::now());
    for at in 1..REQUEST.len() {
        let (first, second) = REQUEST.split_at(at);
        // The sequence number wraps between the pieces.
        let (seq, next) = (0_u32.wrapping_sub(u32::try_from(at).unwrap()), 0);
        let port = u16::try_from(at).unwrap();
        flows.seen.clear();
        assert_eq!(flows.push(key(port), piece(seq, first), (), now), []);
        assert_eq!(
            paths(flows.push(key(port), piece(next, second), (), now)),
            [Some("/a".to_owned())]
        );
        assert!(flows.is_empty());
    }
}

#[test]
fn a_packet_that_comes_again_is_one_request() {
    let (mut flows, now) = (flows(), Instant::now());
    assert_eq!(flows.push(key(1), piece(5, REQUEST), (), now).len(), 1);
    assert_eq!(flows.push(key(1), piece(5, REQUEST), (), now).len(), 0);
    // The same behind another source address, at another interface and at the same.
    let mut elsewhere = piece(5, REQUEST);
    elsewhere.interface = 2;
    assert_eq!(flows.push(key(2), elsewhere, (), now).len(), 0);
    assert_eq!(flows.push(key(2), piece(5, REQUEST), (), now).len(), 1);
    assert_eq!(flows.push(key(2), piece(6, REQUEST), (), now).len(), 1);
    assert!(flows.is_empty());
}

#[test]
fn what_lies_over_bytes_that_nobody_saw_is_unparsable() {
    let (mut flows, now) = (flows(), Instant::now());
    let over = |seq: u32, payload| Piece {
        expected: Some(seq + 3),
        ..piece(seq, payload)
    };
    assert!(
        flows.push(key(1), over(5, REQUEST), (), now)[0]
            .request
            .unparsable
    );
    // Over bytes that are held: those say what to make of it.
    flows.push(key(1), piece(500, &REQUEST[..9]), (), now);
    let found = flows.push(key(1), over(504, &REQUEST[4..]), (), now);
    assert!(!found[0].request.unparsable);
    // Over what was before those: together they are a whole head.
    let (before, held) = (b"PUT /b HTTP/1.1\r\nX: ", b"GET /a HTTP/1.1\r\n");
    flows.push(key(1), piece(900, held), (), now);
    flows.push(key(1), over(880, before), (), now);
    let found = flows.push(key(1), piece(917, b"\r\n"), (), now);
    assert_eq!(found[0].request.path.as_deref(), Some("/b"));
    assert!(found[0].request.unparsable);
    assert!(flows.is_empty());
}

#[test]
fn what_came_too_early_waits_for_what_is_before_it() {
    let (mut flows, now) = (flows(), Instant::now());
    let early = |seq: u32, payload, expected| Piece {
        expected: Some(expected),
        ..piece(seq, payload)
    };
    // The sequence numbers wrap.
    let start = 0_u32.wrapping_sub(10);
    let at = |place: u32| start.wrapping_add(place);
    let end = at(u32::try_from(REQUEST.len()).unwrap());
    let third = early(at(20), &REQUEST[20..], start);
    assert_eq!(flows.push(key(1), third, (), now), []);
    let second = early(at(8), &REQUEST[8..20], end);
    assert_eq!(flows.push(key(1), second, (), now), []);
    let first = early(start, &REQUEST[..8], end);
    let found = flows.push(key(1), first, (), now);
    assert!(found.len() == 1 && !found[0].request.unparsable);
    assert_eq!(paths(found), [Some("/a".to_owned())]);
    assert!(flows.is_empty());
    // What is before it never comes: each request in it is told about.
    let two = REQUEST.repeat(2);
    assert_eq!(flows.push(key(1), early(500, &two, 400), (), now), []);
    let found = flows.expire(now + PATIENCE);
    assert!(found.iter().all(|one| one.request.unparsable));
    assert_eq!(paths(found), [Some("/a".to_owned()), Some("/a".to_owned())]);
    // Other bytes at the same place: both are told about.
    flows.push(key(1), early(910, &REQUEST[10..], 900), (), now);
    let other = REQUEST.to_ascii_uppercase();
    flows.push(key(1), early(910, &other[10..], 900), (), now);
    let found = flows.push(key(1), early(900, &REQUEST[..10], 928), (), now);
    assert_eq!(paths(found), [Some("/a".to_owned())]);
    let found = flows.finish();
    assert!(found.len() == 1 && found[0].request.unparsable);
    // Far ahead of what was there, nothing is waited for.
    let far = early(1 << 30, REQUEST, 5);
    assert!(flows.push(key(1), far, (), now)[0].request.unparsable);
}

#[test]
fn a_request_behind_another_is_not_given_what_is_known_of_that() {
    #[derive(Debug, Clone, PartialEq)]
    struct Numbers(Vec<u32>);
    impl Meta for Numbers {
        fn absorb(&mut self, later: &Self) {
            self.0.extend(&later.0);
        }

        fn held(&self) -> usize {
            0
        }
    }
    let (mut flows, now) = (Flows::<Numbers>::new(plain()), Instant::now());
    let mut push = |seq, bytes: &[u8], number| {
        let found = flows.push(key(1), piece(seq, bytes), Numbers(vec![number]), now);
        found.into_iter().map(|one| one.meta.0).collect::<Vec<_>>()
    };
    let end = [&REQUEST[9..], &REQUEST[..9]].concat();
    assert_eq!(push(0, &REQUEST[..9], 1), Vec::<Vec<u32>>::new());
    assert_eq!(push(9, &end, 2), [[1, 2]]);
    assert_eq!(push(9 + REQUEST.len() as u32, &REQUEST[9..], 3), [[2, 3]]);
}

#[test]
fn pipelined_requests_are_told_apart_and_no_body_hides_one() {
    for header in [
        "Content-Length: 5",
        "Content-Length: 0",
        "Content-Length: 99999",
        "Transfer-Encoding: chunked",
    ] {
        let (mut flows, now) = (flows(), Instant::now());
        let mut bytes = format!("GET /b HTTP/1.1\r\n{header}\r\n\r\n").into_bytes();
        let head = bytes.len();
        bytes.extend(REQUEST);
        let found = flows.push(key(1), piece(5, &bytes), (), now);
        assert_eq!(found[0].request.unparsable, !header.ends_with(" 0"));
        let expected = [Some("/b".to_owned()), Some("/a".to_owned())];
        assert_eq!(paths(found), expected);
        let (first, second) = bytes.split_at(head);
        assert_eq!(
            paths(flows.push(key(1), piece(500, first), (), now)),
            expected[..1]
        );
        let next = 500 + u32::try_from(first.len()).unwrap();
        assert_eq!(
            paths(flows.push(key(1), piece(next, second), (), now)),
            expected[1..]
        );
        assert!(flows.is_empty());
    }
}

#[test]
fn a_body_is_no_request_and_what_is_behind_it_is_one() {
    let body = b"{\n\"GETTER\": \"/y\"\n}GET";
    let head = format!("PUT /t HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
    let bytes = [head.as_bytes(), body, REQUEST].concat();
    for at in 1..bytes.len() {
        let (mut flows, now) = (flows(), Instant::now());
        let (first, second) = bytes.split_at(at);
        let mut found = flows.push(key(1), piece(5, first), (), now);
        let next = 5 + u32::try_from(at).unwrap();
        found.extend(flows.push(key(1), piece(next, second), (), now));
        assert!(found.iter().all(|one| !one.request.unparsable), "{at}");
        assert_eq!(paths(found), [Some("/t".to_owned()), Some("/a".to_owned())]);
        assert!(flows.is_empty());
    }
}

#[test]
fn a_body_that_does_not_come_is_waited_out_and_one_that_does_is_not_kept() {
    let (mut flows, now) = (flows(), Instant::now());
    let head = b"PUT /t HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n";
    let mut seq = u32::try_from(head.len()).unwrap();
    assert_eq!(flows.push(key(1), piece(0, head), (), now).len(), 1);
    for number in 0..100_u32 {
        let payload = format!("{number:09}\n").repeat(999);
        assert_eq!(
            flows.push(key(1), piece(seq, payload.as_bytes()), (), now),
            []
        );
        assert_eq!(flows.held, 0);
        seq += 9990;
    }
    assert!(!flows.is_empty());
    assert_eq!(flows.expire(now + PATIENCE), []);
    assert!(flows.is_empty());
    let found = flows.push(key(1), piece(seq, REQUEST), (), now);
    assert!(found.len() == 1 && !found[0].request.unparsable);
}

#[test]
fn a_request_in_a_body_is_told_about() {
    let (before, after) = ("a=b\r\n", "\r\nrest");
    for method in ["PUT", "POST"] {
        let (mut flows, now) = (flows(), Instant::now());
        let head = format!("{method} /t HTTP/1.1\r\nContent-Length: 999\r\n\r\n");
        let bytes = [
            head.as_bytes(),
            before.as_bytes(),
            REQUEST,
            after.as_bytes(),
        ]
        .concat();
        let mut found = Vec::new();
        // Each byte on its own: the line is put together again.
        for (seq, byte) in (7..).zip(bytes.chunks(1)) {
            found.extend(flows.push(key(1), piece(seq, byte), (), now));
        }
        found.extend(flows.finish());
        assert!(!found[0].request.unparsable && found[1].request.unparsable);
        let all = paths(found);
        assert_eq!(all[..2], [Some("/t".to_owned()), Some("/a".to_owned())]);
    }
}

#[test]
fn what_never_ends_is_told_about() {
    let (mut flows, now) = (flows(), Instant::now());
    flows.push(key(1), piece(5, b"GET /a HTTP/1.1\r\nHos"), (), now);
    flows.push(key(1), piece(500, b"behind a gap"), (), now);
    assert!(flows.expire(now).is_empty());
    let found = flows.expire(now + PATIENCE);
    assert!(found.iter().all(|found| found.request.unparsable));
    assert_eq!(paths(found), [Some("/a".to_owned()), None]);
    assert!(flows.is_empty());
}

#[test]
fn memory_is_bounded() {
    let (mut flows, now) = (flows(), Instant::now());
    for seq in 0..MOST_FLOWS + 10 {
        let seq = u32::try_from(seq).unwrap();
        let found = flows.push(
            key(u16::try_from(seq).unwrap()),
            piece(seq, b"GET /a"),
            (),
            now,
        );
        assert_eq!(found.len(), usize::from(seq as usize >= MOST_FLOWS));
    }
    assert_eq!(flows.finish().len(), MOST_FLOWS);
    assert_eq!(flows.held, 0);
    let mut told = 0;
    for seq in 0..100_u32 {
        told += flows
            .push(key(1), piece(seq * 1000 + 7, &[b'a'; 999]), (), now)
            .len();
        let held: usize = flows.flows.values().map(|flow| flow.bytes.len()).sum();
        assert!(held <= MOST_BYTES + 1000);
    }
    assert!(told > 0);
    flows.finish();
    // Single bytes behind a gap take more room than they have.
    for seq in 0..10 * MOST_PIECES as u32 {
        flows.push(key(1), piece(2 * seq, b"a"), (), now);
        let pieces = flows.flows.values().map(|flow| flow.later.len());
        assert!(pieces.sum::<usize>() <= MOST_PIECES);
    }
    // The oldest make room, however few they are.
    flows.finish();
    for number in 0..2 * MOST_HELD / MOST_BYTES {
        let port = u16::try_from(number).unwrap();
        let found = flows.push(key(port), piece(7, &[b'a'; MOST_BYTES]), (), now);
        assert_eq!(found.len(), usize::from(number >= MOST_HELD / MOST_BYTES));
        assert!(flows.held <= MOST_HELD + MOST_BYTES);
    }
    flows.finish();
    assert_eq!(flows.held, 0);
}

proptest! {
    #[test]
    fn no_pieces_are_too_strange(pieces in prop::collection::vec(
        (0..3_u16, any::<bool>(), 0..64_u32, prop::collection::vec(any::<u8>(), 0..40)), 0..40)) {
        thread_local!(static KEPT: std::cell::RefCell<Flows<'static, ()>> = std::cell::RefCell::new(flows()));
        KEPT.with_borrow_mut(|flows| {
            for (port, wrap, seq, bytes) in pieces {
                let seq = if wrap { seq.wrapping_sub(32) } else { seq };
                flows.push(key(port), piece(seq, &bytes), (), Instant::now());
            }
            flows.finish();
            assert!(flows.is_empty());
        });
    }
}
