// SPDX-License-Identifier: BSD-2-Clause

//! HTTP/2 (RFC 9113), and gRPC upon it: exchanges as streams, headers compressed.

use std::collections::{BTreeMap, BTreeSet};

use super::block::{Assembly, Block, Brought, PADDED};
use super::exchange::{Exchange, Outcome};
use super::frames::{CONTINUATION, Frames, HEADERS, Header, PUSH_PROMISE, Piece, RST_STREAM};
use super::{Context, head};
use crate::tools::sslsniff::mask::http2::PREFACE;
use crate::tools::sslsniff::record::Direction;

const END_STREAM: u8 = 0x1;

/// Streams that are open at once; most servers allow 100 to 250.
const MOST_STREAMS: usize = 256;
/// Streams that were told of before they were at their end, and are remembered.
const MOST_OVER: usize = 1024;
/// What precedes each message of gRPC: a flag and the length.
const GRPC_PREFIX: usize = 5;

#[derive(Debug)]
struct Side {
    frames: Frames,
    headers: Assembly,
    /// Bytes of the body that are to come in the frame of data, before its padding; not known before the first byte,
    /// which says how long that is.
    body: Option<u64>,
}

/// Messages of gRPC in one direction of a stream.
#[derive(Debug, Default)]
struct Counter {
    prefix: [u8; GRPC_PREFIX],
    length: usize,
    left: u64,
    /// Bytes are missing.
    lost: bool,
}

impl Counter {
    /// How many messages end with these bytes.
    fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut messages = 0;
        while !bytes.is_empty() && !self.lost {
            if self.length < GRPC_PREFIX {
                self.prefix[self.length] = bytes[0];
                self.length += 1;
                bytes = &bytes[1..];
                if self.length < GRPC_PREFIX {
                    continue;
                }
                let [_, a, b, c, d] = self.prefix;
                self.left = u64::from(u32::from_be_bytes([a, b, c, d]));
            } else {
                let taken = bytes
                    .len()
                    .min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= taken as u64;
                bytes = &bytes[taken..];
            }
            if self.left == 0 {
                messages += 1;
                self.length = 0;
            }
        }
        messages
    }

    fn skip(&mut self, missing: u64) {
        if self.length == GRPC_PREFIX && missing < self.left {
            self.left -= missing;
        } else {
            self.lost = true;
        }
    }
}

#[derive(Debug)]
struct Stream {
    exchange: Exchange,
    /// By direction.
    counters: [Counter; 2],
}

/// Both directions of a connection.
#[derive(Debug)]
pub(super) struct Two {
    sides: [Side; 2],
    /// Where the requests go, once that is known.
    requests: Option<Direction>,
    streams: BTreeMap<u32, Stream>,
    /// Those that were told of, and of which more may come.
    over: BTreeSet<u32>,
    /// By direction: bytes of the preface that are still to come.
    preface: [usize; 2],
}

impl Two {
    /// With `start`, the connection is seen from its start.
    pub(super) fn new(start: bool, requests: Option<Direction>) -> Self {
        let side = || Side {
            frames: Frames::new(!start),
            headers: Assembly::new(start),
            body: None,
        };
        Self {
            sides: [side(), side()],
            requests,
            streams: BTreeMap::new(),
            over: BTreeSet::new(),
            preface: [0, 0],
        }
    }

    /// The preface has still to come in this direction.
    pub(super) fn expect_preface(&mut self, direction: Direction) {
        self.preface[direction.index()] = PREFACE.len();
    }

    /// Bytes that passed; with `fresh` a call starts with them.
    pub(super) fn bytes(
        &mut self,
        direction: Direction,
        bytes: &[u8],
        fresh: bool,
        context: &mut Context<'_>,
    ) {
        let preface = &mut self.preface[direction.index()];
        let skipped = bytes.len().min(*preface);
        *preface -= skipped;
        let bytes = &bytes[skipped..];
        let mut frames =
            std::mem::replace(&mut self.sides[direction.index()].frames, Frames::new(true));
        frames.bytes(bytes, fresh, |piece| self.piece(direction, &piece, context));
        self.sides[direction.index()].frames = frames;
    }

    /// Bytes that are missing.
    pub(super) fn skip(&mut self, direction: Direction, missing: u64, context: &mut Context<'_>) {
        if self.preface[direction.index()] > 0 {
            // Whether the gap ends in the preface nobody knows.
            self.preface[direction.index()] = 0;
        }
        let mut frames =
            std::mem::replace(&mut self.sides[direction.index()].frames, Frames::new(true));
        frames.skip(missing, |piece| self.piece(direction, &piece, context));
        self.sides[direction.index()].frames = frames;
    }

    /// Bytes of memory that it takes, without what comes out of the budget.
    pub(super) fn held(&self) -> usize {
        let of = |side: &Side| side.frames.held() + side.headers.held();
        self.sides.iter().map(of).sum::<usize>() + self.streams.len() * super::OF_AN_EXCHANGE
    }

    /// The connection is at its end, for this reason.
    pub(super) fn end(&mut self, outcome: Outcome, context: &mut Context<'_>) {
        for (id, mut stream) in std::mem::take(&mut self.streams) {
            self.remember(id);
            stream.exchange.outcome = outcome;
            context.done.push(stream.exchange);
        }
    }

    /// More of this stream is nothing new.
    fn remember(&mut self, id: u32) {
        self.over.insert(id);
        if self.over.len() > MOST_OVER {
            self.over.pop_first();
        }
    }

    fn piece(&mut self, direction: Direction, piece: &Piece<'_>, context: &mut Context<'_>) {
        let side = direction.index();
        match *piece {
            Piece::DataStart(header) => {
                let whole = u64::from(header.length);
                self.sides[side].body = (header.flags & PADDED == 0).then_some(whole);
            }
            Piece::Data(header, bytes, missing) => {
                self.data(direction, header, bytes, missing, context)
            }
            Piece::DataEnd(header) => {
                if header.flags & END_STREAM != 0 {
                    self.stream_end(direction, header.stream, context);
                }
            }
            Piece::Frame(header, payload) => self.frame(direction, header, payload, context),
            Piece::Lost => {
                self.sides[side].headers.lose();
                // Which streams have ended meanwhile nobody knows.
                self.end(Outcome::Gap, context);
            }
        }
    }

    fn data(
        &mut self,
        direction: Direction,
        header: Header,
        mut bytes: &[u8],
        mut missing: u64,
        context: &Context<'_>,
    ) {
        let body = &mut self.sides[direction.index()].body;
        let left = body.get_or_insert_with(|| {
            let rest = u64::from(header.length).saturating_sub(1);
            if let Some((padding, others)) = bytes.split_first() {
                bytes = others;
                rest.saturating_sub(u64::from(*padding))
            } else {
                // The length of the padding is among what is missing.
                missing = missing.saturating_sub(1);
                rest
            }
        });
        // What comes last is padding.
        missing = missing.min(*left);
        *left -= missing;
        bytes = &bytes[..bytes
            .len()
            .min(usize::try_from(*left).unwrap_or(usize::MAX))];
        *left -= bytes.len() as u64;
        let Some(stream) = self.streams.get_mut(&header.stream) else {
            return;
        };
        let counter = &mut stream.counters[direction.index()];
        let body = &mut stream.exchange.message_mut(direction).body;
        if missing > 0 {
            body.skip(missing);
            counter.skip(missing);
        }
        body.push(bytes, context.keep);
        body.messages += counter.count(bytes);
    }

    fn frame(
        &mut self,
        direction: Direction,
        header: Header,
        payload: &[u8],
        context: &mut Context<'_>,
    ) {
        match header.kind {
            HEADERS | PUSH_PROMISE | CONTINUATION => {
                let side = &mut self.sides[direction.index()];
                match side.headers.frame(header, payload) {
                    Brought::Block(block) if block.first.kind == HEADERS => {
                        self.headers(direction, &block, context)
                    }
                    // What is promised is asked for by nobody: only the table is kept up to date.
                    Brought::Block(_) | Brought::Nothing => {}
                    Brought::Malformed(first) if first.kind == HEADERS => {
                        self.malformed(direction, first.stream, context)
                    }
                    Brought::Malformed(_) => {}
                }
            }
            RST_STREAM => {
                let code = payload.try_into().map_or(0, u32::from_be_bytes);
                if let Some(mut stream) = self.streams.remove(&header.stream) {
                    self.remember(header.stream);
                    stream.exchange.outcome = Outcome::Reset(code);
                    context.done.push(stream.exchange);
                }
            }
            _ => {}
        }
    }

    /// A block of headers makes no sense: what it is of is told as such, also if it is nothing but that.
    fn malformed(&mut self, direction: Direction, id: u32, context: &mut Context<'_>) {
        if !self.is_of_interest(id) {
            return;
        }
        let requests = self.requests.unwrap_or(direction);
        let mut exchange = self
            .streams
            .remove(&id)
            .map_or_else(|| stream(id, requests, context), |stream| stream.exchange);
        let start = context.start(direction);
        exchange.message_mut(direction).start.get_or_insert(start);
        exchange.outcome = Outcome::Malformed;
        self.remember(id);
        context.done.push(exchange);
    }

    /// Whether it is a client's stream (RFC 9113, section 5.1.1), and not one that was told of before.
    fn is_of_interest(&self, id: u32) -> bool {
        !id.is_multiple_of(2) && !self.over.contains(&id)
    }

    fn headers(&mut self, direction: Direction, block: &Block, context: &mut Context<'_>) {
        let Block {
            first: frame,
            fields,
            ..
        } = block;
        let has = |name: &[u8]| fields.iter().any(|(one, _)| one.as_deref() == Some(name));
        if has(b":status") {
            self.requests = Some(direction.other());
        } else if has(b":method") || has(b":path") || has(b":scheme") {
            self.requests = Some(direction);
        }
        let Some(requests) = self.requests.filter(|_| self.is_of_interest(frame.stream)) else {
            return;
        };
        if !self.streams.contains_key(&frame.stream) {
            if self.streams.len() >= MOST_STREAMS {
                self.end(Outcome::Open, context);
            }
            let stream = Stream {
                exchange: stream(frame.stream, requests, context),
                counters: Default::default(),
            };
            self.streams.insert(frame.stream, stream);
        }
        let Some(stream) = self.streams.get_mut(&frame.stream) else {
            return;
        };
        let exchange = &mut stream.exchange;
        let (start, show) = (context.start(direction), context.show_secrets);
        exchange.message_mut(direction).start.get_or_insert(start);
        for (name, value) in fields {
            let text = || String::from_utf8_lossy(value).into_owned();
            match name.as_deref() {
                Some(b":method") => exchange.method = exchange.request.afford(text()),
                Some(b":authority") => {
                    let host = head::host(&text()).to_owned();
                    exchange.host = exchange.request.afford(host);
                }
                Some(b":path") => {
                    let path = head::shown_target(&text(), show);
                    exchange.path = exchange.request.afford(path);
                }
                Some(b":status") => {
                    // One below 200 is not the last.
                    exchange.status = std::str::from_utf8(value)
                        .ok()
                        .and_then(|text| text.parse().ok());
                }
                Some([b':', ..]) => {}
                name => {
                    let field = head::field(name, value, show);
                    if exchange.host.is_none() && field.name == "host" {
                        let host = head::host(&field.value).to_owned();
                        exchange.host = exchange.request.afford(host);
                    }
                    exchange.message_mut(direction).add(field);
                }
            }
        }
        if frame.flags & END_STREAM != 0 {
            self.stream_end(direction, frame.stream, context);
        }
    }

    /// One direction of a stream is at its end.
    fn stream_end(&mut self, direction: Direction, id: u32, context: &mut Context<'_>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.exchange.message_mut(direction).end = Some(context.time);
        // The request may go on, to nobody's interest.
        if self.requests == Some(direction.other())
            && let Some(mut stream) = self.streams.remove(&id)
        {
            if stream.exchange.request.end.is_none() {
                self.remember(id);
            }
            stream.exchange.outcome = Outcome::Complete;
            context.done.push(stream.exchange);
        }
    }
}

/// An exchange of which only the stream is known yet.
fn stream(id: u32, requests: Direction, context: &Context<'_>) -> Exchange {
    Exchange {
        stream: Some(id),
        ..context.exchange(requests, "2")
    }
}
