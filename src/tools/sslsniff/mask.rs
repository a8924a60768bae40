// SPDX-License-Identifier: BSD-2-Clause

//! Secrets in headers, made unreadable as they pass: every byte of a secret value becomes `*`, so
//! that lengths and offsets stay true.
//!
//! A [`Masker`] follows one direction of a connection, so a value, a header's name or an HTTP/2
//! frame may be split over any number of calls. HTTP/1 is taken line by line, wherever a line
//! starts, as nobody knows where a body ends without reading all of HTTP. In HTTP/2, headers are
//! compressed (RFC 7541): the payloads of the frames that carry them are masked as a whole.

pub(super) mod http2;
mod names;

use std::ops::Range;

use http2::Frames;
pub use names::is_secret_name;
use names::{
    LONGEST_NAME, folded, is_name_letter, is_other_method, is_secret, is_secret_parameter,
    may_start_message, starts_message,
};
pub(super) use names::{
    METHODS, may_start_other_request, starts_answer, starts_other_request, starts_request,
};

use crate::output::leading;

/// What is shown in place of a secret of so many bytes.
pub fn hidden(length: usize) -> String {
    char::from(MASK).to_string().repeat(length)
}

/// Masks the values of secret parameters in the target of a request.
pub fn query(target: &mut String) {
    let mut bytes = std::mem::take(target).into_bytes();
    let mut lines = Lines {
        at: At::Target,
        ..Lines::default()
    };
    // A blank would end the target of a line; what is in HTTP/2 ends where it ends.
    for part in bytes.split_mut(|byte| *byte == b' ') {
        lines.mask(part);
    }
    // Whole values are replaced by ASCII.
    *target = String::from_utf8_lossy(&bytes).into_owned();
}

/// What replaces a secret byte.
const MASK: u8 = b'*';

/// Replaces these parts of `bytes`.
pub fn hide(bytes: &mut [u8], secret: &[Range<usize>]) {
    for part in secret {
        bytes[part.clone()].fill(MASK);
    }
}

/// Adds a part that comes after the others.
fn add(secret: &mut Vec<Range<usize>>, part: Range<usize>) {
    match secret.last_mut() {
        Some(last) if last.end == part.start => last.end = part.end,
        _ if part.is_empty() => {}
        _ => secret.push(part),
    }
}

/// What passes in one direction of a connection.
#[derive(Debug, Clone, Default)]
pub struct Masker {
    lines: Lines,
    frames: Frames,
    /// The stream offset that comes next.
    next: u64,
    /// The connection's first byte is at offset 0.
    start_seen: bool,
    /// The next byte may be in the midst of something, whatever its offset is.
    restarted: bool,
}

impl Masker {
    /// The connection is not older than what was seen of it: the byte at offset 0 is its first.
    pub fn start_seen(&mut self) {
        self.start_seen = true;
    }

    /// Offsets start anew, though the connection may not: what comes may be the rest of anything.
    pub fn restart(&mut self) {
        self.restarted = true;
    }

    /// Adds to `secret` which parts of `bytes` are, in their order. These are at `offset` of the stream, and a call
    /// `starts` with them or goes on.
    pub fn find(
        &mut self,
        offset: u64,
        bytes: &[u8],
        starts: bool,
        secret: &mut Vec<Range<usize>>,
    ) {
        if offset != self.next || self.restarted {
            let missing = offset.wrapping_sub(self.next);
            let message = starts_message(bytes) || bytes.starts_with(http2::PREFACE);
            // Where lines are, nothing is missing within another frame.
            if self.restarted || !self.frames.have_within_other(missing) {
                self.lines.skip(message);
            }
            if std::mem::take(&mut self.restarted) {
                self.frames.restart(bytes, starts);
            } else {
                self.frames.skip(missing);
            }
        }
        self.next = offset.wrapping_add(bytes.len() as u64);
        if starts && (starts_message(bytes) || self.lines.starts_other_request(bytes)) {
            self.lines.start_message();
            self.frames.message();
        }
        let start = self.frames.detect(bytes, starts, self.start_seen);
        self.lines.find(&bytes[..start], 0, secret);
        self.frames
            .find(&bytes[start..], start, &mut self.lines, secret);
    }
}

#[cfg(test)]
impl Masker {
    /// Finds secrets and hides them; says whether there were any.
    fn mask(&mut self, offset: u64, bytes: &mut [u8], starts: bool) -> bool {
        let mut secret = Vec::new();
        self.find(offset, bytes, starts, &mut secret);
        hide(bytes, &secret);
        !secret.is_empty()
    }
}

/// Where in a line the next byte is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum At {
    /// In what may be a header's name.
    #[default]
    Name,
    /// In blanks after it, which no header has and some servers forgive.
    Blank,
    /// In a line that is not, or not secret.
    Rest,
    /// In the length of a body.
    Length,
    /// Before the end of a line with nothing in it.
    Empty,
    /// Before a secret value.
    Space,
    /// In a secret value.
    Value,
    /// In what may be the rest of a secret value, as what was before it is not known.
    Missing,
    /// At the start of a line after a secret value, which may continue it (RFC 9112, obs-fold).
    Fold,
    /// Behind what may be an unknown method: before a target, or in blanks after a name.
    Other,
    /// The same, in what may be the scheme of a whole URL.
    OtherScheme,
    /// In a request's target, in what may be the scheme of a whole URL.
    Scheme,
    /// In what may be a user and a password before the host of one.
    User,
    /// In a request's target, before its query.
    Target,
    /// In the name of a parameter.
    Parameter,
    /// In the secret value of one.
    ParameterValue,
}

impl At {
    /// Whether the next byte may be one of a secret value.
    fn is_secret(self) -> bool {
        matches!(self, Self::Space | Self::Value | Self::ParameterValue)
    }
}

/// Masks line by line, without a look at what the lines are in.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    at: At,
    name: [u8; LONGEST_NAME],
    length: usize,
    /// How long the body is said to be that follows the head under way.
    announced: u64,
    /// Bytes of the body under way.
    body: u64,
    /// The next byte is the first after a body.
    ended: bool,
}

impl Lines {
    /// Bytes are missing: what comes may be the rest of a secret value, to the end of its line,
    /// unless what was missing ends where a message starts.
    pub(super) fn skip(&mut self, message: bool) {
        self.body = 0;
        self.ended = false;
        if self.at.is_secret() {
            self.at = At::Value;
        } else if message {
            self.start();
        } else {
            self.at = At::Missing;
        }
    }

    /// A message starts, though the line before it may have no end, as the last of a body.
    pub(super) fn start_message(&mut self) {
        if !self.at.is_secret() {
            self.start();
            self.announced = 0;
            self.body = 0;
        }
    }

    /// A line with nothing in it: a body may follow, which is masked line by line, too. A message may come
    /// right after it, and is looked for there. It is none if the length was that of an answer without a body,
    /// or of something in a body.
    fn end_head(&mut self) {
        if self.body == 0 {
            self.body = std::mem::take(&mut self.announced);
        }
        self.start();
    }

    fn start(&mut self) {
        self.at = At::Name;
        self.length = 0;
    }

    /// Adds letters to the name; of a long one the end is kept.
    fn push(&mut self, letters: &[u8]) {
        let letters = &letters[letters.len().saturating_sub(LONGEST_NAME)..];
        let room = LONGEST_NAME - letters.len();
        if self.length > room {
            self.name.copy_within(self.length - room..self.length, 0);
            self.length = room;
        }
        self.name[self.length..self.length + letters.len()].copy_from_slice(letters);
        self.length += letters.len();
    }

    /// The name as names are compared.
    fn folded_name(&self) -> ([u8; LONGEST_NAME], usize) {
        (self.name.map(folded), self.length)
    }

    /// Adds a letter to the name of a parameter, in which any may be written as a number.
    fn push_parameter(&mut self, letter: u8) {
        self.push(&[letter]);
        let Some(&[b'%', high, low]) = self.name[..self.length].last_chunk() else {
            return;
        };
        let digit = |letter: u8| char::from(letter).to_digit(16);
        if let (Some(high), Some(low)) = (digit(high), digit(low)) {
            self.length -= 3;
            self.push(&[u8::try_from(high << 4 | low).unwrap_or_default()]);
        }
    }

    /// Whether the line starts as a request of HTTP/1 does.
    fn is_method(&self) -> bool {
        let name = &self.name[..self.length];
        METHODS
            .iter()
            .any(|method| name.eq_ignore_ascii_case(method.as_bytes()))
    }

    /// Masks secrets in the next bytes.
    pub fn mask(&mut self, bytes: &mut [u8]) {
        let mut secret = Vec::new();
        self.find(bytes, 0, &mut secret);
        hide(bytes, &secret);
    }

    /// Whether a call that starts so starts with a request of an unknown method: in a body that is not at its end
    /// anything may look like one.
    fn starts_other_request(&self, bytes: &[u8]) -> bool {
        self.body == 0 && starts_other_request(bytes)
    }

    /// Adds to `secret` which parts of the next bytes are; the first of these is number `at`.
    fn find(&mut self, bytes: &[u8], mut at: usize, secret: &mut Vec<Range<usize>>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if std::mem::take(&mut self.ended)
                && (may_start_message(rest) || starts_other_request(rest))
            {
                self.start_message();
            }
            let within = usize::try_from(self.body)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let size = if within > 0 { within } else { rest.len() };
            let (done, hidden) = self.find_first(&rest[..size]);
            add(secret, at..at + hidden);
            if within > 0 {
                self.body -= done as u64;
                self.ended = self.body == 0;
            }
            rest = &rest[done..];
            at += done;
        }
    }

    /// Looks at the first of these bytes; says at how many, and how many of those, from the first on, are secret.
    fn find_first(&mut self, bytes: &[u8]) -> (usize, usize) {
        let Some(byte) = bytes.first() else {
            return (0, 0);
        };
        // Another line, whose name may start with this very byte.
        if self.at == At::Fold && !matches!(*byte, b' ' | b'\t') {
            self.start();
        }
        match self.at {
            // Most payload is of these two.
            At::Rest => match memchr::memchr(b'\n', bytes) {
                Some(end) => {
                    self.start();
                    (end + 1, 0)
                }
                None => (bytes.len(), 0),
            },
            At::Name if is_name_letter(*byte) => {
                let letters = leading(bytes, is_name_letter);
                self.push(&bytes[..letters]);
                (letters, 0)
            }
            At::User => self.find_user(bytes),
            _ => (1, usize::from(self.step(*byte))),
        }
    }

    /// The name of a header is at its end.
    fn end_name(&mut self) {
        let (name, length) = self.folded_name();
        let name = &name[..length];
        if name == b"content-length" {
            self.announced = 0;
            self.at = At::Length;
        } else if is_secret(name) {
            self.at = At::Space;
        } else {
            self.at = At::Rest;
        }
    }

    /// Goes on in what may be a scheme, up to the second slash after it.
    fn scheme(&mut self, letter: u8) {
        self.push(&[letter]);
        let name = &self.name[..self.length];
        if name.ends_with(b"://") {
            self.at = At::User;
        } else if letter == b'/' && !name.ends_with(b":/") {
            self.at = At::Target;
        }
    }

    /// Goes on behind what may be a method that is not known: only what starts as a path or a whole URL does is a
    /// target.
    fn other(&mut self, letter: u8) {
        if self.at == At::Other {
            self.length = 0;
            if letter == b'/' {
                self.at = At::Target;
                return;
            }
        }
        let first = self.length == 0;
        self.push(&[letter]);
        let name = &self.name[..self.length];
        let goes_on = match letter {
            b'/' => name.ends_with(b":/"),
            b':' | b'+' | b'-' | b'.' | b'0'..=b'9' => !first,
            letter => letter.is_ascii_alphabetic(),
        };
        self.at = if name.ends_with(b"://") {
            At::User
        } else if goes_on {
            At::OtherScheme
        } else {
            At::Rest
        };
    }

    /// Looks for what is before the host of a URL; says how many bytes it and the host are, and how many of those are
    /// secret: up to the host's end all may be a password.
    fn find_user(&mut self, bytes: &[u8]) -> (usize, usize) {
        let end = bytes.iter().position(|byte| b"/?# \r\n".contains(byte));
        let secret = match end {
            Some(end) => bytes[..end].iter().rposition(|byte| *byte == b'@'),
            None => Some(bytes.len()),
        };
        if end.is_some() {
            self.at = At::Target;
        }
        (end.unwrap_or(bytes.len()), secret.unwrap_or(0))
    }

    /// Looks at a byte; says whether it is secret.
    fn step(&mut self, byte: u8) -> bool {
        match (self.at, byte) {
            // A blank: else another line was started.
            (At::Fold, _) => self.at = At::Space,
            (At::Space | At::Value | At::Missing, b'\n') => self.at = At::Fold,
            (At::Space, b' ' | b'\t' | b'\r') | (At::Value | At::Missing, b'\r') => {}
            // No value has these (RFC 9110, section 5.5): it is something else.
            (At::Missing, 0..=0x08 | 0x0b..=0x1f | 0x7f) => self.at = At::Rest,
            (At::Missing, _) => return true,
            (At::Space | At::Value, _) => {
                self.at = At::Value;
                return true;
            }
            (At::Empty, b'\n') => self.end_head(),
            (At::Name, b'\n') if self.length == 0 => self.end_head(),
            (_, b'\n') => self.start(),
            (At::Name, b'\r') if self.length == 0 => self.at = At::Empty,
            (At::Name | At::Blank | At::Other, b':') => self.end_name(),
            (At::Length, b' ' | b'\t' | b'\r') => {}
            (At::Length, b'0'..=b'9') => {
                let digit = u64::from(byte - b'0');
                self.announced = self.announced.saturating_mul(10).saturating_add(digit);
            }
            (At::Name, b' ' | b'\t') if self.is_method() => {
                // The target of CONNECT is a host alone.
                self.at = if self.name[..self.length].eq_ignore_ascii_case(b"CONNECT") {
                    At::User
                } else {
                    At::Scheme
                };
                self.length = 0;
            }
            // Blanks before a name, which no header has and some servers forgive; or before a target.
            (At::Name | At::Scheme, b' ' | b'\t') if self.length == 0 => {}
            (At::Name, b' ') if is_other_method(&self.name[..self.length]) => self.at = At::Other,
            (At::Name | At::Blank | At::Other, b' ' | b'\t') if self.length > 0 => {
                self.at = At::Blank;
            }
            (At::Other | At::OtherScheme, letter) => self.other(letter),
            (At::Scheme | At::Target | At::Parameter | At::ParameterValue, b' ') => {
                self.at = At::Rest;
            }
            // A fragment (#) is sent by few, and may hold a token as a query does.
            (
                At::Scheme | At::Target | At::Parameter | At::ParameterValue,
                b'?' | b'&' | b';' | b'#',
            ) => {
                self.at = At::Parameter;
                self.length = 0;
            }
            (At::Scheme, letter) => self.scheme(letter),
            (At::Target, _) => {}
            (At::Parameter, b'=') => {
                let (name, length) = self.folded_name();
                let secret = is_secret_parameter(&name[..length]);
                self.at = if secret {
                    At::ParameterValue
                } else {
                    At::Target
                };
            }
            (At::ParameterValue, b'\r') => {}
            (At::ParameterValue, _) => return true,
            (At::Parameter, letter) => self.push_parameter(letter),
            _ => self.at = At::Rest,
        }
        false
    }
}

#[cfg(test)]
mod tests;
