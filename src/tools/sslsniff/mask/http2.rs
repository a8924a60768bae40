// SPDX-License-Identifier: BSD-2-Clause

//! The frames of HTTP/2 (RFC 9113), as far as masking needs them.

use std::ops::Range;

use super::{Lines, add};

/// What a client sends first.
pub(in super::super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length (3), type (1), flags (1), stream (4).
pub(in super::super) const FRAME_HEADER: usize = 9;
/// A server's first SETTINGS frame; there are some ten settings of six bytes each.
const LONGEST_SETTINGS: u32 = 6 * 40;
/// The largest frame of headers that is taken for one where frames are only guessed: what Go's server, which
/// takes the most, reads of them at all.
const LARGEST_HEADERS: u32 = 1 << 20;

pub(in super::super) const DATA: u8 = 0;
pub(in super::super) const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
pub(in super::super) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub(in super::super) const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
pub(in super::super) const CONTINUATION: u8 = 9;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The first bytes of the stream are still to tell.
    #[default]
    Unknown,
    /// It is something else.
    Other,
    /// Its first bytes were not seen: each call may start with a frame.
    Unsure,
    /// In a frame's header.
    Header,
    /// In the payload of a frame of this type.
    Payload { left: u32, kind: u8 },
    /// Bytes are missing, and with them where frames start: all may be secret.
    Astray,
}

/// One direction of a connection that may speak HTTP/2.
#[derive(Debug, Clone, Default)]
pub(super) struct Frames {
    mode: Mode,
    /// That there are frames was told by some that look like it: it may be a body of HTTP/1 that does.
    guessed: bool,
    /// The stream's first bytes, then the header under way.
    head: [u8; PREFACE.len()],
    length: usize,
}

impl Frames {
    /// Looks whether the stream is HTTP/2, by its first bytes; says where in `bytes` frames start.
    ///
    /// Where the first bytes of the connection were not seen for sure, frames are looked for where
    /// `starts`: a call's first bytes.
    pub(super) fn detect(&mut self, bytes: &[u8], starts: bool, seen: bool) -> usize {
        let fresh = self.length == 0;
        match self.mode {
            Mode::Unknown => {}
            Mode::Other => return self.detect_switch(bytes, starts),
            Mode::Unsure => return self.detect_chain(bytes, starts),
            _ => return 0,
        }
        for (at, byte) in bytes.iter().enumerate() {
            self.head[self.length] = *byte;
            self.length += 1;
            let head = &self.head[..self.length];
            if head == PREFACE {
                (self.mode, self.length) = (Mode::Header, 0);
                self.guessed = !seen;
                return at + 1;
            }
            if head.len() == FRAME_HEADER && is_first_settings(head) {
                let left = length_of(head);
                self.length = 0;
                self.mode = payload(left, SETTINGS);
                self.guessed = !seen;
                return at + 1;
            }
            if !PREFACE.starts_with(head) && !may_be_settings(head) {
                self.length = 0;
                if seen {
                    self.mode = Mode::Other;
                    return bytes.len();
                }
                self.mode = Mode::Unsure;
                return self.detect_chain(bytes, starts && fresh);
            }
        }
        bytes.len()
    }

    /// A message of HTTP/1 starts: if nothing came before, there will be no frames.
    pub(super) fn message(&mut self) {
        if self.mode == Mode::Unknown && self.length == 0 {
            self.mode = Mode::Other;
        }
    }

    fn detect_chain(&mut self, bytes: &[u8], starts: bool) -> usize {
        if starts && is_chain(bytes) {
            (self.mode, self.length) = (Mode::Header, 0);
            self.guessed = true;
            return 0;
        }
        bytes.len()
    }

    /// Behind something else HTTP/2 may start anew, as through a proxy (CONNECT).
    fn detect_switch(&mut self, bytes: &[u8], starts: bool) -> usize {
        let settings = bytes.get(..FRAME_HEADER).is_some_and(is_first_settings);
        let frames = if !starts {
            None
        } else if bytes.starts_with(PREFACE) {
            Some(PREFACE.len())
        } else if settings && is_chain(bytes) {
            Some(0)
        } else {
            None
        };
        if frames.is_some() {
            (self.mode, self.length) = (Mode::Header, 0);
            self.guessed = true;
        }
        frames.unwrap_or(bytes.len())
    }

    /// Whether so many bytes are within a frame that is known to be one, and is none of a body.
    pub(super) fn have_within_other(&self, missing: u64) -> bool {
        match self.mode {
            Mode::Payload { left, kind } => {
                !self.guessed && kind != DATA && missing <= u64::from(left)
            }
            _ => false,
        }
    }

    /// Bytes are missing.
    pub(super) fn skip(&mut self, missing: u64) {
        self.mode = match self.mode {
            Mode::Unknown | Mode::Unsure => {
                self.length = 0;
                Mode::Unsure
            }
            Mode::Other => Mode::Other,
            Mode::Payload { left, kind } if u64::from(left) >= missing => {
                payload(left - u32::try_from(missing).unwrap_or(left), kind)
            }
            _ => Mode::Astray,
        };
    }

    /// Nobody knows whether bytes are missing: frames go on only where a call starts with one.
    pub(super) fn restart(&mut self, bytes: &[u8], starts: bool) {
        self.mode = match self.mode {
            Mode::Unknown if self.length == 0 => Mode::Unknown,
            Mode::Unknown | Mode::Unsure => Mode::Unsure,
            Mode::Other => Mode::Other,
            Mode::Header if self.length == 0 && starts && is_chain(bytes) => Mode::Header,
            _ => Mode::Astray,
        };
        self.length = 0;
    }

    /// Adds to `secret` which parts are of what `detect` found to be frames, the first byte of which is number `at`; bodies
    /// go to `lines`, and where frames are guessed all else that is no secret of theirs.
    pub(super) fn find(
        &mut self,
        bytes: &[u8],
        mut at: usize,
        lines: &mut Lines,
        secret: &mut Vec<Range<usize>>,
    ) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = match self.mode {
                Mode::Unknown | Mode::Other | Mode::Unsure => return,
                Mode::Astray => {
                    add(secret, at..at + rest.len());
                    return;
                }
                Mode::Header => {
                    let taken = rest.len().min(FRAME_HEADER - self.length);
                    let now = &rest[..taken];
                    self.head[self.length..self.length + taken].copy_from_slice(now);
                    self.length += taken;
                    if self.guessed {
                        lines.find(now, at, secret);
                    }
                    if self.length == FRAME_HEADER {
                        self.mode = payload(length_of(&self.head), self.head[3]);
                        self.length = 0;
                    }
                    taken
                }
                Mode::Payload { left, kind } => {
                    let taken = rest.len().min(left as usize);
                    match kind {
                        HEADERS | PUSH_PROMISE | CONTINUATION => add(secret, at..at + taken),
                        DATA => lines.find(&rest[..taken], at, secret),
                        _ if self.guessed => lines.find(&rest[..taken], at, secret),
                        _ => {}
                    }
                    self.mode = payload(left - u32::try_from(taken).unwrap_or(left), kind);
                    taken
                }
            };
            rest = &rest[taken..];
            at += taken;
        }
    }
}

fn payload(left: u32, kind: u8) -> Mode {
    if left == 0 {
        Mode::Header
    } else {
        Mode::Payload { left, kind }
    }
}

pub(in super::super) fn length_of(header: &[u8]) -> u32 {
    u32::from_be_bytes([0, header[0], header[1], header[2]])
}

/// Whether `bytes` are frames, one after the other to their end or beyond.
pub(in super::super) fn is_chain(mut bytes: &[u8]) -> bool {
    if bytes.len() < FRAME_HEADER {
        return false;
    }
    while bytes.len() >= FRAME_HEADER {
        let (header, rest) = bytes.split_at(FRAME_HEADER);
        if !is_plausible(header) {
            return false;
        }
        let length = usize::try_from(length_of(header)).unwrap_or(usize::MAX);
        bytes = rest.get(length..).unwrap_or_default();
    }
    true
}

/// Whether a frame may start so: by its type, the flags and the length that the type has, and the
/// stream that it belongs to (RFC 9113, section 6). Other types are extensions, with nothing secret;
/// a connection that has them has these too.
fn is_plausible(header: &[u8]) -> bool {
    let (kind, flags) = (header[3], header[4]);
    let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
    let length = length_of(header);
    let (known, connection, fits) = match kind {
        DATA => (0x09, Some(false), true),
        HEADERS => (0x2d, Some(false), length <= LARGEST_HEADERS),
        PRIORITY => (0, Some(false), length == 5),
        RST_STREAM => (0, Some(false), length == 4),
        SETTINGS => (
            0x01,
            Some(true),
            length.is_multiple_of(6) && length <= LONGEST_SETTINGS,
        ),
        PUSH_PROMISE => (0x0c, Some(false), (4..=LARGEST_HEADERS).contains(&length)),
        PING => (0x01, Some(true), length == 8),
        GOAWAY => (0, Some(true), length >= 8),
        WINDOW_UPDATE => (0, None, length == 4),
        CONTINUATION => (0x04, Some(false), length <= LARGEST_HEADERS),
        _ => return false,
    };
    let stream_fits = connection.is_none_or(|connection| connection == (stream == 0));
    flags & !known == 0 && fits && stream < 1 << 31 && stream_fits
}

/// A server starts with a SETTINGS frame that is no acknowledgement, on stream 0.
pub(in super::super) fn is_first_settings(header: &[u8]) -> bool {
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
                    masker.mask(out.len() as u64, &mut piece, true);
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
        masker.mask(0, &mut piece, true);
        let mut piece = stream[60..].to_vec();
        assert!(masker.mask(60, &mut piece, true));
        assert!(piece.iter().all(|byte| *byte == b'*'));

        // Within one frame's payload the gap hides nothing.
        let mut masker = Masker::default();
        masker.start_seen();
        let mut piece = stream[..34].to_vec();
        masker.mask(0, &mut piece, true);
        let mut piece = stream[37..].to_vec();
        masker.mask(37, &mut piece, true);
        assert_eq!(piece, &masked[37..]);
    }

    #[test]
    fn frames_of_a_connection_that_is_older_are_masked_from_a_call_that_starts_with_them() {
        let (frames, masked) = stream(b"");
        // SETTINGS, which a server starts with, has passed: the rest starts with HEADERS.
        let (frames, masked) = (&frames[15..], &masked[15..]);
        for cut in [frames.len(), 9, 12, 16, 20] {
            let mut masker = Masker::default();
            let mut out = frames.to_vec();
            let (first, second) = out.split_at_mut(cut);
            assert_eq!(
                masker.mask(0, first, true),
                cut > 9,
                "the first {cut} bytes"
            );
            masker.mask(cut as u64, second, false);
            assert_eq!(out, masked, "the first {cut} bytes");
        }
        // A call of something else comes first.
        let mut masker = Masker::default();
        let mut before = b"the end of a payload".to_vec();
        assert!(!masker.mask(0, &mut before, true));
        let mut out = frames.to_vec();
        assert!(masker.mask(before.len() as u64, &mut out, true));
        assert_eq!(out, masked);
    }

    #[test]
    fn frames_are_masked_where_the_preface_was_lost_or_cut() {
        let (frames, masked) = stream(super::PREFACE);
        for seen in [0, 10, 23] {
            let mut masker = Masker::default();
            masker.start_seen();
            masker.mask(0, &mut frames[..seen].to_vec(), true);
            let mut out = frames[24..].to_vec();
            masker.mask(24, &mut out, true);
            assert_eq!(out, masked[24..], "{seen} bytes of the preface");
        }
    }

    #[test]
    fn a_connection_that_was_seen_from_its_start_is_not_taken_for_frames_later() {
        let frames = frame(1, b"no HTTP/2");
        for first in [&b"x"[..], b"GET / HTTP/1.1\r\n", &frames] {
            let mut masker = Masker::default();
            masker.start_seen();
            let mut piece = first.to_vec();
            assert!(!masker.mask(0, &mut piece, true));
            let mut piece = frames.clone();
            assert!(!masker.mask(first.len() as u64, &mut piece, true));
            assert_eq!(piece, frames);
        }
    }

    /// What is shown of these calls of a connection that may be older.
    fn shown(calls: &[&[u8]]) -> Vec<u8> {
        let mut masker = Masker::default();
        let mut shown = Vec::new();
        for call in calls {
            let mut piece = call.to_vec();
            masker.mask(shown.len() as u64, &mut piece, true);
            shown.extend(piece);
        }
        shown
    }

    #[test]
    fn a_body_that_looks_like_frames_hides_no_header_after_it() {
        let body = [
            &[0, 0x40, 0, 0, 0, 0, 0, 0, 1][..],
            b"the rest of a body\r\n",
        ]
        .concat();
        let request = b"GET /?token=abc HTTP/1.1\r\nCookie: abc\r\n\r\n";
        let masked = b"GET /?token=*** HTTP/1.1\r\nCookie: ***\r\n\r\n";
        // What a body says of frames counts for nothing once a message was seen first.
        let headers = frame(1, b"text");
        for first in [&b"POST / HTTP/1.1\r\n\r\n"[..], b"HTTP/1.1 200 OK\r\n\r\n"] {
            assert_eq!(
                shown(&[first, &body, request, &headers]),
                [first, &body, masked, &headers].concat()
            );
        }
        // Else lines are looked for in the data of frames, or what looks like it.
        let settings = [&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], &body].concat();
        for start in [&settings[..], super::PREFACE] {
            assert_eq!(
                shown(&[start, &body, request]),
                [start, &body, masked].concat()
            );
        }
        for first in [&b"the end of a payload"[..], b""] {
            assert_eq!(
                shown(&[first, &body, request]),
                [first, &body, masked].concat()
            );
        }
    }

    #[test]
    fn what_goes_through_a_proxy_may_be_frames() {
        let (request, _) = stream(super::PREFACE);
        let (answer, _) = stream(b"");
        for (before, frames) in [
            (&b"CONNECT host:443 HTTP/1.1\r\n\r\n"[..], request),
            (b"HTTP/1.1 200 OK\r\n\r\n", answer),
        ] {
            let mut masker = Masker::default();
            masker.start_seen();
            masker.mask(0, &mut before.to_vec(), true);
            let mut out = frames.clone();
            masker.mask(before.len() as u64, &mut out, true);
            assert_ne!(out, frames);
            let end = out.len() - 6;
            assert_eq!(out[end..], *b"******");
        }
    }

    #[test]
    fn lines_of_a_body_that_look_like_secret_headers_are_masked() {
        let mut bytes = super::PREFACE.to_vec();
        bytes.extend(frame(0, b"a=b\nCookie: abc\nx"));
        let mut masker = Masker::default();
        assert!(masker.mask(0, &mut bytes, true));
        assert!(bytes.ends_with(b"a=b\nCookie: ***\nx"));
    }

    #[test]
    fn random_bytes_are_hardly_ever_frames() {
        // xorshift64
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut chains = 0;
        for _ in 0..100_000 {
            let mut bytes = Vec::new();
            for _ in 0..8 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                bytes.extend(state.to_le_bytes());
            }
            chains += u32::from(super::is_chain(&bytes));
        }
        assert!(chains < 100, "{chains}");
    }

    #[test]
    fn a_message_of_mqtt_is_no_frame_of_headers() {
        // PUBLISH, retained, of 16,391 bytes, to `topic`; the connection is older than what was seen of it.
        let mut message = b"1\x87\x80\x01\0\x05topic".to_vec();
        message.resize(16395, b'.');
        let mut masker = Masker::default();
        let mut before = b" \x02\0\0\x90\x03\0\x01\0".to_vec();
        assert!(!masker.mask(0, &mut before, true));
        let mut out = message.clone();
        assert!(!masker.mask(9, &mut out, true));
        assert_eq!(out, message);
        let largest = [
            &super::LARGEST_HEADERS.to_be_bytes()[1..],
            &[1, 4, 0, 0, 0, 1],
        ]
        .concat();
        assert!(super::is_chain(&largest));
    }

    #[test]
    fn text_is_never_frames() {
        for text in [
            "GET / HTTP/1.1\r\n",
            "\t\t\t\t\t\t\t\t\t\t",
            "\r\n\r\n\r\n\r\n\r\n",
        ] {
            assert!(!super::is_chain(text.as_bytes()), "{text:?}");
        }
    }
}
