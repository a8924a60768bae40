// SPDX-License-Identifier: BSD-2-Clause

//! HTTP/2 with its secrets masked, for those who read frames by themselves: blocks of headers are
//! written anew, uncompressed, so that they can be read from any frame on, and frames stay frames.

use super::block::{Assembly, Block, Brought, END_HEADERS};
use super::exchange::Field;
use super::frames::{CONTINUATION, FRAME_HEADER, Frames, HEADERS, Header, PUSH_PROMISE, Piece};
use super::{PREFACE, head, is_chain, is_first_settings, starts_message};
use crate::tools::sslsniff::mask::Lines;
use crate::tools::sslsniff::record::Direction;

const END_STREAM: u8 = 0x1;
/// The longest frame that every reader takes (RFC 9113, section 4.2).
const LONGEST_FRAME: usize = 16 << 10;
/// "Literal never indexed", with a new name (RFC 7541, section 6.2.3).
const LITERAL: u8 = 0x10;
/// What fits the first byte of a string's length.
const SHORT: usize = 0x7f;
/// What stands for a name that is not known.
const UNKNOWN_NAME: &str = "unknown";

#[derive(Debug)]
struct Side {
    frames: Frames,
    headers: Assembly,
    /// Masks what else is in frames.
    lines: Lines,
    /// Bytes of the preface that are still to come.
    preface: usize,
}

/// Both directions of a connection.
#[derive(Debug)]
pub struct Rewriter {
    sides: [Side; 2],
    /// That there are frames was told by some that look like it: it may be a body of HTTP/1 that does.
    guessed: bool,
}

impl Rewriter {
    /// One for a connection that speaks HTTP/2, which is told by its first bytes.
    pub fn of(direction: Direction, first: &[u8]) -> Option<Box<Self>> {
        let preface = first.starts_with(PREFACE);
        let settings = first.len() >= FRAME_HEADER && is_first_settings(&first[..FRAME_HEADER]);
        let start = preface || settings;
        if !start && !is_chain(first) {
            return None;
        }
        let client = match (preface, settings) {
            (true, _) => Some(direction),
            (_, true) => Some(direction.other()),
            _ => None,
        };
        let side = |direction: Direction| Side {
            frames: Frames::new(!start),
            headers: Assembly::new(start),
            lines: Lines::default(),
            preface: if client == Some(direction) {
                PREFACE.len()
            } else {
                0
            },
        };
        Some(Box::new(Self {
            sides: [side(Direction::Read), side(Direction::Write)],
            guessed: !start,
        }))
    }

    /// Writes what is to be read in place of `bytes`; with `fresh` a call starts with them.
    pub fn bytes(&mut self, direction: Direction, bytes: &[u8], fresh: bool, out: &mut Vec<u8>) {
        let guessed = self.guessed;
        let Side {
            frames,
            headers,
            lines,
            preface,
        } = &mut self.sides[direction.index()];
        if guessed && fresh && (starts_message(bytes, true) || starts_message(bytes, false)) {
            lines.start_message();
        }
        let (start, bytes) = bytes.split_at(bytes.len().min(*preface));
        *preface -= start.len();
        out.extend_from_slice(start);
        frames.bytes(bytes, fresh, |piece| {
            let before = out.len();
            let is_data = match piece {
                Piece::DataStart(header) => {
                    frame(header, header.length, out);
                    false
                }
                Piece::Data(_, bytes, _) => {
                    out.extend_from_slice(bytes);
                    true
                }
                Piece::DataEnd(_) => return,
                Piece::Lost => return headers.lose(),
                Piece::Frame(header, payload) => match header.kind {
                    HEADERS | PUSH_PROMISE | CONTINUATION => {
                        // One that is malformed is left out.
                        if let Brought::Block(block) = headers.frame(header, payload) {
                            anew(&block, out);
                        }
                        return;
                    }
                    _ => {
                        frame(header, header.length, out);
                        out.extend_from_slice(payload);
                        false
                    }
                },
            };
            if is_data || guessed {
                lines.mask(&mut out[before..]);
            }
        });
    }

    /// Bytes of memory that it takes.
    pub fn held(&self) -> usize {
        let of = |side: &Side| side.frames.held() + side.headers.held();
        size_of::<Self>() + self.sides.iter().map(of).sum::<usize>()
    }

    /// So many bytes are missing.
    pub fn skip(&mut self, direction: Direction, missing: u64) {
        let Side {
            frames,
            headers,
            lines,
            preface,
        } = &mut self.sides[direction.index()];
        *preface = 0;
        lines.skip(false);
        frames.skip(missing, |piece| {
            if piece == Piece::Lost {
                headers.lose();
            }
        });
    }
}

/// The header of a frame.
fn frame(header: Header, length: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend([header.kind, header.flags]);
    out.extend(header.stream.to_be_bytes());
}

/// A block anew, in as many frames as it takes.
fn anew(block: &Block, out: &mut Vec<u8>) {
    let first = block.first;
    let mut payload = block.promised.clone();
    for (name, value) in &block.fields {
        let shown = match name.as_deref() {
            Some(b":path") => Field {
                name: ":path".to_owned(),
                value: head::shown_target(&String::from_utf8_lossy(value), false),
            },
            Some(b":authority") => Field {
                name: ":authority".to_owned(),
                value: head::shown_host(&String::from_utf8_lossy(value)),
            },
            name => head::field(name, value, false),
        };
        let name = if shown.name.is_empty() {
            UNKNOWN_NAME
        } else {
            &shown.name
        };
        payload.push(LITERAL);
        string(name.as_bytes(), &mut payload);
        string(shown.value.as_bytes(), &mut payload);
    }
    let mut parts = payload.chunks(LONGEST_FRAME).peekable();
    let mut header = Header {
        flags: first.flags & END_STREAM,
        ..first
    };
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            header.flags |= END_HEADERS;
        }
        frame(header, u32::try_from(part.len()).unwrap_or(0), out);
        out.extend_from_slice(part);
        (header.kind, header.flags) = (CONTINUATION, 0);
    }
}

/// A string as it is, after its length (RFC 7541, sections 5.1 and 5.2).
fn string(bytes: &[u8], out: &mut Vec<u8>) {
    match bytes.len().checked_sub(SHORT) {
        None => out.push(u8::try_from(bytes.len()).unwrap_or(0)),
        Some(mut rest) => {
            out.push(u8::try_from(SHORT).unwrap_or(0));
            while rest >= 0x80 {
                out.push(0x80 | u8::try_from(rest & 0x7f).unwrap_or(0));
                rest >>= 7;
            }
            out.push(u8::try_from(rest).unwrap_or(0));
        }
    }
    out.extend_from_slice(bytes);
}
