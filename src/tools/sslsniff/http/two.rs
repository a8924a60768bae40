// SPDX-License-Identifier: BSD-2-Clause

//! HTTP/2 (RFC 9113), and gRPC upon it: exchanges as streams, headers compressed.

use std::collections::BTreeMap;

use super::exchange::{Exchange, Outcome};
use super::frames::{CONTINUATION, Frames, HEADERS, Header, PUSH_PROMISE, Piece, RST_STREAM};
use super::hpack::{Blocks, Pair};
use super::{Context, head};
use crate::tools::sslsniff::mask::http2::PREFACE;
use crate::tools::sslsniff::record::Direction;

const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The longest block of headers that is followed.
pub(super) const LONGEST_BLOCK: usize = 256 << 10;
/// Streams that are open at once; most servers allow 100 to 250.
const MOST_STREAMS: usize = 256;
/// What precedes each message of gRPC: a flag and the length.
const GRPC_PREFIX: usize = 5;

#[derive(Debug)]
struct Side {
    frames: Frames,
    blocks: Blocks,
    /// The block under way, and the frame that it started with.
    block: Vec<u8>,
    first: Header,
    /// Bytes of padding at the end of the frame of data; not known before its first byte.
    padding: Option<u64>,
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
    /// By direction: bytes of the preface that are still to come.
    preface: [usize; 2],
}

impl Two {
    /// With `start`, the connection is seen from its start.
    pub(super) fn new(start: bool, requests: Option<Direction>) -> Self {
        let side = || Side {
            frames: Frames::new(!start),
            blocks: if start {
                Blocks::from_start()
            } else {
                Blocks::in_use()
            },
            block: Vec::new(),
            first: Header::default(),
            padding: None,
        };
        Self {
            sides: [side(), side()],
            requests,
            streams: BTreeMap::new(),
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
        let of = |side: &Side| side.frames.held() + side.blocks.held() + side.block.capacity();
        self.sides.iter().map(of).sum::<usize>() + self.streams.len() * super::OF_AN_EXCHANGE
    }

    /// The connection is at its end, for this reason.
    pub(super) fn end(&mut self, outcome: Outcome, context: &mut Context<'_>) {
        for (_, mut stream) in std::mem::take(&mut self.streams) {
            stream.exchange.outcome = outcome;
            context.done.push(stream.exchange);
        }
    }

    fn piece(&mut self, direction: Direction, piece: &Piece<'_>, context: &mut Context<'_>) {
        let side = direction.index();
        match *piece {
            Piece::DataStart(header) => {
                self.sides[side].padding = (header.flags & PADDED == 0).then_some(0);
            }
            Piece::Data(header, bytes, missing) => {
                self.data(direction, header, bytes, missing, context)
            }
            Piece::DataEnd(header) => {
                // The padding came last, and was taken for data.
                let padding = self.sides[side].padding.take().unwrap_or(0);
                if let Some(stream) = self.streams.get_mut(&header.stream) {
                    let body = &mut stream.exchange.message_mut(direction).body;
                    body.length = body.length.saturating_sub(padding);
                }
                if header.flags & END_STREAM != 0 {
                    self.stream_end(direction, header.stream, context);
                }
            }
            Piece::Frame(header, payload) => self.frame(direction, header, payload, context),
            Piece::Lost => {
                self.sides[side].blocks = Blocks::in_use();
                self.sides[side].block.clear();
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
        missing: u64,
        context: &Context<'_>,
    ) {
        let padding = &mut self.sides[direction.index()].padding;
        if padding.is_none() {
            match bytes.split_first() {
                Some((length, rest)) => (*padding, bytes) = (Some(u64::from(*length)), rest),
                // The length of the padding is among what is missing.
                None => *padding = Some(0),
            }
        }
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
        let side = &mut self.sides[direction.index()];
        match header.kind {
            HEADERS | PUSH_PROMISE => {
                side.block.clear();
                side.first = header;
                let Some(block) = fragment(header, payload) else {
                    return self.malformed(direction, context);
                };
                if header.kind == PUSH_PROMISE {
                    // What is promised is asked for by nobody: only the table is kept up to date.
                    side.block
                        .extend_from_slice(block.get(4..).unwrap_or_default());
                } else {
                    side.block.extend_from_slice(block);
                }
            }
            CONTINUATION => side.block.extend_from_slice(payload),
            RST_STREAM => {
                let code = payload.try_into().map_or(0, u32::from_be_bytes);
                if let Some(mut stream) = self.streams.remove(&header.stream) {
                    stream.exchange.outcome = Outcome::Reset(code);
                    context.done.push(stream.exchange);
                }
                return;
            }
            _ => return,
        }
        if side.block.len() > LONGEST_BLOCK {
            return self.malformed(direction, context);
        }
        if header.flags & END_HEADERS == 0 {
            return;
        }
        let block = std::mem::take(&mut side.block);
        let first = side.first;
        match side.blocks.decode(&block) {
            None => self.malformed(direction, context),
            Some(fields) if first.kind == HEADERS => {
                self.headers(direction, first, &fields, context)
            }
            Some(_) => {}
        }
    }

    /// A block that makes no sense: the table is not known any more.
    fn malformed(&mut self, direction: Direction, context: &mut Context<'_>) {
        let side = &mut self.sides[direction.index()];
        let first = side.first;
        side.blocks = Blocks::in_use();
        side.block.clear();
        if let Some(mut stream) = self.streams.remove(&first.stream) {
            stream.exchange.outcome = Outcome::Malformed;
            context.done.push(stream.exchange);
        }
    }

    fn headers(
        &mut self,
        direction: Direction,
        frame: Header,
        fields: &[Pair],
        context: &mut Context<'_>,
    ) {
        let has = |name: &[u8]| fields.iter().any(|(one, _)| one.as_deref() == Some(name));
        if has(b":status") {
            self.requests = Some(direction.other());
        } else if has(b":method") || has(b":path") || has(b":scheme") {
            self.requests = Some(direction);
        }
        let Some(requests) = self.requests else {
            return;
        };
        if !self.streams.contains_key(&frame.stream) {
            if self.streams.len() >= MOST_STREAMS {
                self.end(Outcome::Open, context);
            }
            let stream = Stream {
                exchange: Exchange {
                    stream: Some(frame.stream),
                    ..context.exchange(requests, "2")
                },
                counters: Default::default(),
            };
            self.streams.insert(frame.stream, stream);
        }
        let Some(stream) = self.streams.get_mut(&frame.stream) else {
            return;
        };
        let exchange = &mut stream.exchange;
        let (time, show) = (context.time, context.show_secrets);
        exchange.message_mut(direction).start.get_or_insert(time);
        for (name, value) in fields {
            let text = || String::from_utf8_lossy(value).into_owned();
            match name.as_deref() {
                Some(b":method") => exchange.method = exchange.request.afford(text()),
                Some(b":authority") => exchange.host = exchange.request.afford(text()),
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
                        exchange.host = exchange.request.afford(field.value.clone());
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
            stream.exchange.outcome = Outcome::Complete;
            context.done.push(stream.exchange);
        }
    }
}

/// The part of a block in a frame, without padding and priority.
pub(super) fn fragment(header: Header, mut payload: &[u8]) -> Option<&[u8]> {
    if header.flags & PADDED != 0 {
        let (padding, rest) = payload.split_first()?;
        payload = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
    }
    if header.kind == HEADERS && header.flags & PRIORITY != 0 {
        payload = payload.get(5..)?;
    }
    Some(payload)
}
