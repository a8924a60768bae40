// SPDX-License-Identifier: BSD-2-Clause

//! The frames of HTTP/2 (RFC 9113) in one direction, out of pieces of any size.

pub(super) use super::super::mask::http2::{
    CONTINUATION, DATA, FRAME_HEADER, HEADERS, PUSH_PROMISE, RST_STREAM,
};
use super::super::mask::http2::{is_chain, length_of};

/// The longest payload of a frame that is read as a whole; those with data are not.
const LONGEST: usize = 256 << 10;

/// What is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// A frame of data starts.
    DataStart(Header),
    /// Some of its payload, or so many bytes of it that are missing.
    Data(Header, &'a [u8], u64),
    /// It is at its end.
    DataEnd(Header),
    /// A whole frame of another type.
    Frame(Header, &'a [u8]),
    /// Bytes are missing, or make no sense: nobody knows where frames start.
    Lost,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    /// Bytes of the payload.
    pub(super) length: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Header,
    Data(u64),
    Payload(usize),
    /// A frame may start where a call starts.
    Lost,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Frames {
    at: At,
    header: Header,
    /// The header or the payload under way.
    buffer: Vec<u8>,
}

impl Frames {
    /// With `lost`, frames are looked for where a call starts, else the next byte starts one.
    pub(super) fn new(lost: bool) -> Self {
        Self {
            at: if lost { At::Lost } else { At::Header },
            header: Header::default(),
            buffer: Vec::new(),
        }
    }

    /// Hands what is in `bytes` to `each`; with `fresh` a call starts with them.
    pub(super) fn bytes(&mut self, mut bytes: &[u8], fresh: bool, mut each: impl FnMut(Piece<'_>)) {
        if self.at == At::Lost && fresh && is_chain(bytes) {
            self.at = At::Header;
        }
        while !bytes.is_empty() {
            match self.at {
                At::Lost => return,
                At::Header => {
                    let taken = bytes.len().min(FRAME_HEADER - self.buffer.len());
                    self.buffer.extend_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    if self.buffer.len() == FRAME_HEADER {
                        self.frame_starts(&mut each);
                    }
                }
                At::Data(left) => {
                    let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    each(Piece::Data(self.header, &bytes[..taken], 0));
                    bytes = &bytes[taken..];
                    self.data(left - taken as u64, &mut each);
                }
                At::Payload(length) => {
                    let taken = bytes.len().min(length - self.buffer.len());
                    self.buffer.extend_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    if self.buffer.len() == length {
                        each(Piece::Frame(self.header, &self.buffer));
                        self.buffer.clear();
                        self.at = At::Header;
                    }
                }
            }
        }
    }

    /// Bytes of memory that it takes.
    pub(super) fn held(&self) -> usize {
        self.buffer.capacity()
    }

    /// So many bytes are missing.
    pub(super) fn skip(&mut self, missing: u64, mut each: impl FnMut(Piece<'_>)) {
        match self.at {
            At::Lost => {}
            At::Data(left) if missing <= left => {
                each(Piece::Data(self.header, &[], missing));
                self.data(left - missing, &mut each);
            }
            _ => self.lose(&mut each),
        }
    }

    fn lose(&mut self, each: &mut impl FnMut(Piece<'_>)) {
        self.at = At::Lost;
        self.buffer.clear();
        each(Piece::Lost);
    }

    fn frame_starts(&mut self, each: &mut impl FnMut(Piece<'_>)) {
        let length = length_of(&self.buffer);
        let id = [
            self.buffer[5] & 0x7f,
            self.buffer[6],
            self.buffer[7],
            self.buffer[8],
        ];
        self.header = Header {
            kind: self.buffer[3],
            flags: self.buffer[4],
            stream: u32::from_be_bytes(id),
            length,
        };
        self.buffer.clear();
        if self.header.kind == DATA {
            each(Piece::DataStart(self.header));
            return self.data(u64::from(length), each);
        }
        match usize::try_from(length).unwrap_or(usize::MAX) {
            0 => {
                each(Piece::Frame(self.header, &[]));
                self.at = At::Header;
            }
            length if length > LONGEST => self.lose(each),
            length => self.at = At::Payload(length),
        }
    }

    fn data(&mut self, left: u64, each: &mut impl FnMut(Piece<'_>)) {
        self.at = if left == 0 {
            each(Piece::DataEnd(self.header));
            At::Header
        } else {
            At::Data(left)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_the_same_however_they_are_cut() {
        let mut stream = vec![0, 0, 0, 4, 1, 0, 0, 0, 0];
        stream.extend([0, 0, 3, 1, 4, 0, 0, 0, 1, 7, 8, 9]);
        stream.extend([0, 0, 5, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4, 5]);
        for size in 1..=stream.len() {
            let mut frames = Frames::new(false);
            let (mut seen, mut data) = (Vec::new(), Vec::new());
            for piece in stream.chunks(size) {
                frames.bytes(piece, true, |piece| match piece {
                    Piece::Frame(header, payload) => seen.push((header.kind, payload.to_vec())),
                    Piece::Data(_, bytes, _) => data.extend_from_slice(bytes),
                    Piece::DataEnd(header) => seen.push((header.kind, data.clone())),
                    _ => {}
                });
            }
            assert_eq!(
                seen,
                [(4, vec![]), (1, vec![7, 8, 9]), (0, vec![1, 2, 3, 4, 5])],
                "{size}"
            );
        }
    }

    #[test]
    fn a_gap_within_data_is_counted_and_any_other_is_lost() {
        let mut frames = Frames::new(false);
        let mut seen = Vec::new();
        let note = |piece: Piece<'_>, seen: &mut Vec<String>| seen.push(format!("{piece:?}"));
        frames.bytes(&[0, 0, 5, 0, 0, 0, 0, 0, 1, 1], true, |piece| {
            note(piece, &mut seen)
        });
        frames.skip(4, |piece| note(piece, &mut seen));
        assert!(
            seen[2].ends_with("[], 4)") && seen[3].starts_with("DataEnd"),
            "{seen:?}"
        );
        frames.bytes(&[0, 0, 1], true, |piece| note(piece, &mut seen));
        frames.skip(1, |piece| note(piece, &mut seen));
        assert_eq!(seen[4], "Lost");
        // No chain of frames, then one.
        frames.bytes(b"some text that is no frame", true, |piece| {
            note(piece, &mut seen)
        });
        assert_eq!(seen.len(), 5);
        frames.bytes(&[0, 0, 0, 4, 1, 0, 0, 0, 0], true, |piece| {
            note(piece, &mut seen)
        });
        assert!(seen[5].starts_with("Frame"), "{seen:?}");
    }
}
