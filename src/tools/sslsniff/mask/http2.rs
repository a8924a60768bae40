// SPDX-License-Identifier: BSD-2-Clause

//! The frames of HTTP/2 (RFC 9113), as far as masking needs them.

use super::MASK;

/// What a client sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length (3), type (1), flags (1), stream (4).
const FRAME_HEADER: usize = 9;
/// A server's first SETTINGS frame; there are some ten settings of six bytes each.
const LONGEST_SETTINGS: u32 = 6 * 40;

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The first bytes of the stream are still to tell.
    #[default]
    Unknown,
    /// It is something else.
    Other,
    /// In a frame's header.
    Header,
    /// In a frame's payload.
    Payload { left: u32, secret: bool },
    /// Bytes are missing, and with them where frames start: all may be secret.
    Astray,
}

/// One direction of a connection that may speak HTTP/2.
#[derive(Debug, Default)]
pub(super) struct Frames {
    mode: Mode,
    /// The stream's first bytes, then the header under way.
    head: [u8; PREFACE.len()],
    length: usize,
}

impl Frames {
    /// Looks whether the stream is HTTP/2, by its first bytes; says where in `bytes` frames start.
    pub(super) fn detect(&mut self, offset: u64, bytes: &[u8]) -> usize {
        match self.mode {
            Mode::Unknown => {}
            Mode::Other => return bytes.len(),
            _ => return 0,
        }
        if offset != self.length as u64 {
            self.mode = Mode::Other;
            return bytes.len();
        }
        for (at, byte) in bytes.iter().enumerate() {
            self.head[self.length] = *byte;
            self.length += 1;
            let head = &self.head[..self.length];
            if head == PREFACE {
                (self.mode, self.length) = (Mode::Header, 0);
                return at + 1;
            }
            if head.len() == FRAME_HEADER && is_first_settings(head) {
                // Nothing in settings is secret.
                let left = length_of(head);
                self.length = 0;
                self.mode = payload(left, false);
                return at + 1;
            }
            if !PREFACE.starts_with(head) && !may_be_settings(head) {
                self.mode = Mode::Other;
                return bytes.len();
            }
        }
        bytes.len()
    }

    /// Bytes are missing.
    pub(super) fn skip(&mut self, missing: u64) {
        self.mode = match self.mode {
            Mode::Unknown | Mode::Other => Mode::Other,
            Mode::Payload { left, secret } if u64::from(left) >= missing => {
                payload(left - u32::try_from(missing).unwrap_or(left), secret)
            }
            _ => Mode::Astray,
        };
    }

    /// Masks what `detect` found to be frames.
    pub(super) fn mask(&mut self, bytes: &mut [u8]) -> bool {
        let mut masked = false;
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.mode {
                Mode::Unknown | Mode::Other => return masked,
                Mode::Astray => {
                    rest.fill(MASK);
                    return true;
                }
                Mode::Header => {
                    let taken = rest.len().min(FRAME_HEADER - self.length);
                    let (now, later) = rest.split_at_mut(taken);
                    self.head[self.length..self.length + taken].copy_from_slice(now);
                    self.length += taken;
                    rest = later;
                    if self.length == FRAME_HEADER {
                        let kind = self.head[3];
                        let secret = matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION);
                        self.mode = payload(length_of(&self.head), secret);
                        self.length = 0;
                    }
                }
                Mode::Payload { left, secret } => {
                    let taken = rest.len().min(left as usize);
                    let (now, later) = rest.split_at_mut(taken);
                    if secret {
                        now.fill(MASK);
                        masked = true;
                    }
                    rest = later;
                    self.mode = payload(left - u32::try_from(taken).unwrap_or(left), secret);
                }
            }
        }
        masked
    }
}

fn payload(left: u32, secret: bool) -> Mode {
    if left == 0 {
        Mode::Header
    } else {
        Mode::Payload { left, secret }
    }
}

fn length_of(header: &[u8]) -> u32 {
    u32::from_be_bytes([0, header[0], header[1], header[2]])
}

/// A server starts with a SETTINGS frame that is no acknowledgement, on stream 0.
fn is_first_settings(header: &[u8]) -> bool {
    let length = length_of(header);
    header[3..] == [SETTINGS, 0, 0, 0, 0, 0]
        && length <= LONGEST_SETTINGS
        && length.is_multiple_of(6)
}

/// Whether the first bytes of a frame's header allow [`is_first_settings`].
fn may_be_settings(start: &[u8]) -> bool {
    let rest = [SETTINGS, 0, 0, 0, 0, 0];
    start.len() < FRAME_HEADER
        && start.iter().take(2).all(|byte| *byte == 0)
        && start
            .iter()
            .skip(3)
            .zip(rest)
            .all(|(byte, wanted)| *byte == wanted)
}

#[cfg(test)]
mod tests {
    use super::super::Masker;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, if kind == 4 { 0 } else { 1 }]);
        frame.extend(payload);
        frame
    }

    /// Data, headers, data; with what must come of it.
    fn stream(start: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut stream = start.to_vec();
        let mut masked = start.to_vec();
        for (kind, shown) in [(4, true), (1, false), (9, false), (0, true), (1, false)] {
            let bytes = frame(kind, b"cookie");
            stream.extend(&bytes);
            masked.extend(&bytes[..9]);
            masked.extend(if shown { b"cookie" } else { b"******" });
        }
        (stream, masked)
    }

    #[test]
    fn frames_that_carry_headers_are_masked_however_the_stream_is_cut() {
        for start in [super::PREFACE.as_slice(), b""] {
            let (stream, masked) = stream(start);
            for size in 1..stream.len() {
                let mut masker = Masker::default();
                let mut out = Vec::new();
                for piece in stream.chunks(size) {
                    let mut piece = piece.to_vec();
                    masker.mask(out.len() as u64, &mut piece);
                    out.extend(piece);
                }
                assert_eq!(out, masked, "pieces of {size}");
            }
        }
    }

    #[test]
    fn after_a_gap_that_hides_where_frames_start_all_is_masked() {
        let (stream, masked) = stream(super::PREFACE);
        let mut masker = Masker::default();
        let mut piece = stream[..30].to_vec();
        masker.mask(0, &mut piece);
        let mut piece = stream[60..].to_vec();
        assert!(masker.mask(60, &mut piece));
        assert!(piece.iter().all(|byte| *byte == b'*'));

        // Within one frame's payload the gap hides nothing.
        let mut masker = Masker::default();
        let mut piece = stream[..34].to_vec();
        masker.mask(0, &mut piece);
        let mut piece = stream[37..].to_vec();
        masker.mask(37, &mut piece);
        assert_eq!(piece, &masked[37..]);
    }
}
