// SPDX-License-Identifier: BSD-2-Clause

//! Puts the pieces that came up together again, flow by flow, within bounds.
//!
//! Clean packets do not come up, so that a gap in the sequence is no fault: a piece behind a gap
//! begins anew, unless something unfinished is waiting for what is between.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::request::{Request, Step, salvage, step};
use super::watchlist::Watchlist;

/// Flows that are followed at once; the one that waits longest makes room.
const MOST_FLOWS: usize = 1024;
/// Bytes that are kept of a flow.
const MOST_BYTES: usize = 64 << 10;
/// Packets that are remembered, to know them when they come again.
const REMEMBERED: usize = 4096;
/// How long an unfinished request waits for the rest of it.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Who sends, and who is to receive.
pub type Key = (SocketAddr, SocketAddr);

/// What is known of a piece besides its bytes.
pub trait Meta: Clone {
    /// Takes from a later piece of the same request what is wanted of it.
    fn absorb(&mut self, later: &Self);
}

impl Meta for () {
    fn absorb(&mut self, (): &Self) {}
}

/// A request, and what was known when its first piece came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<M> {
    /// The flow.
    pub key: Key,
    /// As it was given with the first piece.
    pub meta: M,
    /// What was read.
    pub request: Request,
}

#[derive(Debug)]
struct Flow<M> {
    meta: M,
    /// Sequence number behind the last byte of `bytes`.
    next: u32,
    bytes: Vec<u8>,
    /// Pieces behind a gap.
    later: Vec<(u32, Vec<u8>)>,
    /// What the receiver holds in the place of these bytes, or before them, is not known.
    disputed: bool,
    touched: Instant,
}

/// A piece of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'p> {
    /// The sequence number of its first byte.
    pub seq: u32,
    /// Its bytes.
    pub payload: &'p [u8],
    /// Where the flow's last one ended, if this does not begin there. What lies between may still
    /// come; before that, the receiver may hold other bytes in its place, of pieces that did not come
    /// up.
    pub expected: Option<u32>,
    /// The interface where it was seen.
    pub interface: i32,
}

/// The flows that have something unfinished.
#[derive(Debug)]
pub struct Flows<'l, M> {
    flows: HashMap<Key, Flow<M>>,
    /// The sender and the interface of the last one, by what they have in common.
    seen: HashMap<u64, (SocketAddr, i32)>,
    order: VecDeque<u64>,
    hasher: RandomState,
    list: &'l Watchlist,
}

impl<'l, M: Meta> Flows<'l, M> {
    /// None yet.
    pub fn new(list: &'l Watchlist) -> Self {
        Self {
            flows: HashMap::new(),
            seen: HashMap::new(),
            order: VecDeque::new(),
            hasher: RandomState::new(),
            list,
        }
    }

    /// Whether anything waits for more, and so for [`Flows::expire`].
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Takes a piece; gives the requests that it completes. A packet that is the same as an earlier
    /// one (sent again, or seen on another interface, there perhaps behind another source address) is
    /// left out.
    pub fn push(&mut self, key: Key, piece: Piece<'_>, meta: M, now: Instant) -> Vec<Found<M>> {
        let Piece {
            seq,
            payload,
            expected,
            ..
        } = piece;
        if payload.is_empty() || self.is_known(key, piece) {
            return Vec::new();
        }
        let mut found = Vec::new();
        if !self.flows.contains_key(&key) && self.flows.len() >= MOST_FLOWS {
            let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.touched);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                found.extend(self.give_up(oldest));
            }
        }
        let flow = match self.flows.entry(key) {
            Entry::Occupied(known) => {
                let flow = known.into_mut();
                flow.meta.absorb(&meta);
                flow
            }
            Entry::Vacant(place) => {
                let early =
                    |end: &u32| (1..=MOST_BYTES).contains(&(seq.wrapping_sub(*end) as usize));
                let start = expected.filter(early).unwrap_or(seq);
                place.insert(Flow::new(meta.clone(), start, now))
            }
        };
        flow.touched = now;
        // Where the bytes are held that it is to be compared with, or nothing was there yet, that
        // settles it.
        flow.disputed |= expected.is_some() && !flow.covers(seq);
        let fits = flow.insert(seq, payload);
        let requests = flow.read(self.list);
        // What is left begins in this piece, and belongs to another request.
        let latest = if requests.is_empty() {
            flow.meta.clone()
        } else {
            meta
        };
        let meta = std::mem::replace(&mut flow.meta, latest);
        if flow.is_idle() {
            self.flows.remove(&key);
        }
        found.extend(requests.into_iter().map(|request| Found {
            key,
            meta: meta.clone(),
            request,
        }));
        if !fits {
            found.extend(self.give_up(key));
        }
        found
    }

    /// Gives up on what has waited longer than [`PATIENCE`].
    pub fn expire(&mut self, now: Instant) -> Vec<Found<M>> {
        let stale = |flow: &Flow<M>| now.saturating_duration_since(flow.touched) >= PATIENCE;
        let keys: Vec<_> = self
            .flows
            .iter()
            .filter(|(_, flow)| stale(flow))
            .map(|(key, _)| *key)
            .collect();
        keys.into_iter().flat_map(|key| self.give_up(key)).collect()
    }

    /// Gives up on everything.
    pub fn finish(&mut self) -> Vec<Found<M>> {
        let keys: Vec<_> = self.flows.keys().copied().collect();
        keys.into_iter().flat_map(|key| self.give_up(key)).collect()
    }

    /// On the way through the machine a packet may get another source, but not at one interface:
    /// what has another one there is another packet, whoever made it.
    fn is_known(&mut self, key: Key, piece: Piece<'_>) -> bool {
        let hash = self.hasher.hash_one((key.1, piece.seq, piece.payload));
        let place = (key.0, piece.interface);
        match self.seen.entry(hash) {
            Entry::Occupied(mut known) => {
                let (source, interface) = *known.get();
                if source == key.0 || interface != piece.interface {
                    return true;
                }
                known.insert(place);
                return false;
            }
            Entry::Vacant(free) => free.insert(place),
        };
        self.order.push_back(hash);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        false
    }

    fn give_up(&mut self, key: Key) -> Vec<Found<M>> {
        let Some(flow) = self.flows.remove(&key) else {
            return Vec::new();
        };
        let pieces =
            std::iter::once(flow.bytes).chain(flow.later.into_iter().map(|(_, bytes)| bytes));
        pieces
            .flat_map(|bytes| abandoned(&bytes, self.list))
            .map(|request| Found {
                key,
                meta: flow.meta.clone(),
                request,
            })
            .collect()
    }
}

/// What can be said of bytes that wait no longer for what is missing.
fn abandoned(bytes: &[u8], list: &Watchlist) -> Vec<Request> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (mut request, length) = match step(rest, list) {
            Step::Head { request, length } => (request, length),
            Step::Partial | Step::Broken => (salvage(rest, list), rest.len()),
        };
        request.unparsable = true;
        found.push(request);
        rest = &rest[length..];
    }
    found
}

impl<M> Flow<M> {
    fn new(meta: M, seq: u32, now: Instant) -> Self {
        Self {
            meta,
            next: seq,
            bytes: Vec::new(),
            later: Vec::new(),
            disputed: false,
            touched: now,
        }
    }

    /// Nothing waits for what comes next.
    fn is_idle(&self) -> bool {
        self.bytes.is_empty() && self.later.is_empty()
    }

    /// Whether all that was sent from `seq` on is held, or is yet to come.
    fn covers(&self, seq: u32) -> bool {
        let first = self
            .next
            .wrapping_sub(u32::try_from(self.bytes.len()).unwrap_or(0));
        let begun = !self.is_idle() || seq != self.next;
        begun && seq.wrapping_sub(first).cast_signed() >= 0
    }

    /// Puts a piece where it belongs; false if there is no room for it.
    fn insert(&mut self, seq: u32, payload: &[u8]) -> bool {
        let held = self.bytes.len()
            + self
                .later
                .iter()
                .map(|(_, bytes)| bytes.len())
                .sum::<usize>();
        // Kept even so, to be told about: a packet is at most as long as this again.
        let fits = held + payload.len() <= MOST_BYTES;
        let ahead = seq.wrapping_sub(self.next).cast_signed();
        if ahead == 0 {
            self.append(payload);
        } else if ahead > 0 {
            self.later.push((seq, payload.to_vec()));
        } else {
            let behind = ahead.unsigned_abs() as usize;
            let start = self.bytes.len().checked_sub(behind);
            let known = start.is_some_and(|start| {
                let old = &self.bytes[start..];
                old.iter().zip(payload).all(|(old, new)| old == new)
            });
            if known {
                self.append(payload.get(behind..).unwrap_or_default());
            } else if start.is_none() && payload.len() + self.bytes.len() == behind {
                // The piece before the first one.
                self.bytes.splice(..0, payload.iter().copied());
            } else {
                // Other bytes in the place of those: told about on its own.
                self.later.push((seq, payload.to_vec()));
            }
        }
        while let Some(at) = self.later.iter().position(|(seq, _)| *seq == self.next) {
            let (_, bytes) = self.later.swap_remove(at);
            self.append(&bytes);
        }
        fits
    }

    fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.next = self
            .next
            .wrapping_add(u32::try_from(bytes.len()).unwrap_or(0));
    }

    fn read(&mut self, list: &Watchlist) -> Vec<Request> {
        let mut found = Vec::new();
        while !self.bytes.is_empty() {
            match step(&self.bytes, list) {
                Step::Head {
                    mut request,
                    length,
                } => {
                    self.bytes.drain(..length);
                    request.unparsable |= self.disputed;
                    found.push(request);
                }
                Step::Partial => break,
                Step::Broken => {
                    found.push(salvage(&self.bytes, list));
                    self.bytes.clear();
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
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
        let mut told = 0;
        for seq in 0..100_u32 {
            told += flows
                .push(key(1), piece(seq * 1000 + 7, &[b'a'; 999]), (), now)
                .len();
            let held: usize = flows.flows.values().map(|flow| flow.bytes.len()).sum();
            assert!(held <= MOST_BYTES + 1000);
        }
        assert!(told > 0);
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
}
