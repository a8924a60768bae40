// SPDX-License-Identifier: BSD-2-Clause

//! Blocks of headers in one direction of HTTP/2, out of the frames that they are in (RFC 9113, section 4.3).

use super::frames::{CONTINUATION, HEADERS, Header, PUSH_PROMISE};
use super::hpack::{Blocks, Pair};

pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The longest block of headers that is followed, in bytes.
const LONGEST_BLOCK: usize = 256 << 10;

/// What a frame has brought.
#[derive(Debug)]
pub(super) enum Brought {
    /// Nothing yet, or nothing that is known.
    Nothing,
    /// A whole block.
    Block(Block),
    /// One that makes no sense, which started with this frame: the table is not known any more.
    Malformed(Header),
}

/// A block of headers.
#[derive(Debug)]
pub(super) struct Block {
    /// The frame that it started with.
    pub(super) first: Header,
    /// What precedes the fields: the number of the stream that is promised.
    pub(super) promised: Vec<u8>,
    pub(super) fields: Vec<Pair>,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Assembly {
    blocks: Blocks,
    /// The frame that the block under way started with, and its bytes so far.
    first: Option<Header>,
    bytes: Vec<u8>,
}

impl Assembly {
    /// With `start`, the connection is seen from its start.
    pub(super) fn new(start: bool) -> Self {
        Self {
            blocks: if start {
                Blocks::from_start()
            } else {
                Blocks::in_use()
            },
            first: None,
            bytes: Vec::new(),
        }
    }

    /// Bytes of memory that it takes.
    pub(super) fn held(&self) -> usize {
        self.blocks.held() + self.bytes.capacity()
    }

    /// Frames are missing: what was under way is not known, nor what the table has.
    pub(super) fn lose(&mut self) {
        self.blocks = Blocks::in_use();
        self.first = None;
        self.bytes.clear();
    }

    /// Takes a frame of headers.
    pub(super) fn frame(&mut self, header: Header, payload: &[u8]) -> Brought {
        let first = match header.kind {
            HEADERS | PUSH_PROMISE => {
                self.bytes.clear();
                let Some(part) = fragment(header, payload) else {
                    return self.malformed(header);
                };
                self.bytes.extend_from_slice(part);
                *self.first.insert(header)
            }
            CONTINUATION => match self.first {
                Some(first) if first.stream == header.stream => {
                    self.bytes.extend_from_slice(payload);
                    first
                }
                // Of a block whose start was not seen: what it adds to the table is not known.
                _ => {
                    self.lose();
                    return Brought::Nothing;
                }
            },
            _ => return Brought::Nothing,
        };
        if self.bytes.len() > LONGEST_BLOCK {
            return self.malformed(first);
        }
        if header.flags & END_HEADERS == 0 {
            return Brought::Nothing;
        }
        self.first = None;
        let bytes = std::mem::take(&mut self.bytes);
        let promised = if first.kind == PUSH_PROMISE { 4 } else { 0 };
        let decoded = bytes
            .split_at_checked(promised)
            .and_then(|(promised, block)| Some((promised.to_vec(), self.blocks.decode(block)?)));
        match decoded {
            Some((promised, fields)) => Brought::Block(Block {
                first,
                promised,
                fields,
            }),
            None => self.malformed(first),
        }
    }

    fn malformed(&mut self, first: Header) -> Brought {
        self.lose();
        Brought::Malformed(first)
    }
}

/// The part of a block in a frame, without padding and priority.
fn fragment(header: Header, mut payload: &[u8]) -> Option<&[u8]> {
    if header.flags & PADDED != 0 {
        let (padding, rest) = payload.split_first()?;
        payload = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
    }
    if header.kind == HEADERS && header.flags & PRIORITY != 0 {
        payload = payload.get(5..)?;
    }
    Some(payload)
}
