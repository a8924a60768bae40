// SPDX-License-Identifier: BSD-2-Clause

//! Puts the pieces that came up together again, flow by flow, within bounds.
//!
//! Clean packets do not come up, so that a gap in the sequence is no fault: a piece behind a gap
//! begins anew, unless something unfinished is waiting for what is between.

#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::body::harmless;
use super::request::{Request, Step, salvage, step};
use super::watchlist::Watchlist;

/// Flows that are followed at once; the one that waits longest makes room.
const MOST_FLOWS: usize = 1024;
/// Bytes that are kept of a flow,
const MOST_BYTES: usize = 64 << 10;
/// and pieces that lie behind a gap.
const MOST_PIECES: usize = 256;
/// Bytes that are kept of all flows, with what is known of their pieces; the flow that waits longest
/// makes room.
const MOST_HELD: usize = 32 << 20;
/// Bytes that a piece behind a gap takes besides its own.
const PIECE_BYTES: usize = 64;
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

    /// Bytes of packets that it keeps.
    fn held(&self) -> usize;
}

impl Meta for () {
    fn absorb(&mut self, (): &Self) {}

    fn held(&self) -> usize {
        0
    }
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

impl<M: Meta> Found<M> {
    /// Bytes that it keeps.
    pub fn held(&self) -> usize {
        self.request.held() + self.meta.held()
    }
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
    /// Bytes that are to come first, of the body of the last request.
    body: u64,
    /// What comes next is in a body, and may be a request to some services.
    hidden: bool,
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
    /// Bytes that all of them hold.
    held: usize,
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
            held: 0,
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
        while self.held >= MOST_HELD
            || !self.flows.contains_key(&key) && self.flows.len() >= MOST_FLOWS
        {
            let others = self.flows.iter().filter(|(other, _)| **other != key);
            let Some(oldest) = others.min_by_key(|(_, flow)| flow.touched) else {
                break;
            };
            let oldest = *oldest.0;
            found.extend(self.give_up(oldest));
        }
        let before = self.flows.get(&key).map_or(0, Flow::held);
        let flow = match self.flows.entry(key) {
            Entry::Occupied(known) => {
                let flow = known.into_mut();
                if flow.bytes.is_empty() && flow.later.is_empty() {
                    // Of a body nothing waits: what comes next begins in this piece.
                    flow.meta = meta.clone();
                } else {
                    flow.meta.absorb(&meta);
                }
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
        self.held = self.held - before + flow.held();
        if flow.is_idle() {
            self.remove(key);
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

    fn remove(&mut self, key: Key) -> Option<Flow<M>> {
        let flow = self.flows.remove(&key)?;
        self.held -= flow.held();
        Some(flow)
    }

    fn give_up(&mut self, key: Key) -> Vec<Found<M>> {
        let Some(flow) = self.remove(key) else {
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
            Step::Head {
                request, length, ..
            } => (request, length),
            Step::Partial | Step::Broken => (salvage(rest, list), rest.len()),
        };
        request.unparsable = true;
        found.push(request);
        rest = &rest[length..];
    }
    found
}

impl<M: Meta> Flow<M> {
    fn new(meta: M, seq: u32, now: Instant) -> Self {
        Self {
            meta,
            next: seq,
            bytes: Vec::new(),
            later: Vec::new(),
            disputed: false,
            body: 0,
            hidden: false,
            touched: now,
        }
    }

    /// Bytes that are kept.
    fn held(&self) -> usize {
        let pieces = self
            .later
            .iter()
            .map(|(_, bytes)| bytes.len() + PIECE_BYTES);
        self.bytes.len() + pieces.sum::<usize>() + self.meta.held()
    }

    /// Nothing waits for what comes next.
    fn is_idle(&self) -> bool {
        self.bytes.is_empty() && self.later.is_empty() && self.body == 0
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
        let fits = held + payload.len() <= MOST_BYTES && self.later.len() < MOST_PIECES;
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
            if self.body > 0 {
                if !self.pass_body() {
                    break;
                }
                continue;
            }
            match step(&self.bytes, list) {
                Step::Head {
                    mut request,
                    length,
                    body,
                } => {
                    self.bytes.drain(..length);
                    request.unparsable |= self.disputed || std::mem::take(&mut self.hidden);
                    self.body = if request.unparsable { 0 } else { body };
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

    /// Leaves out what is there of a body; false if it is not at its end. A line of it that may be a
    /// request is read as one.
    fn pass_body(&mut self) -> bool {
        let length = usize::try_from(self.body).unwrap_or(usize::MAX);
        let there = self.bytes.len().min(length);
        let (mut passed, begins) = harmless(&self.bytes[..there]);
        if !begins && there == length {
            passed = there;
        }
        self.bytes.drain(..passed);
        self.body -= u64::try_from(passed).unwrap_or(0);
        if begins {
            self.body = 0;
            self.hidden = true;
        }
        self.body == 0
    }
}
