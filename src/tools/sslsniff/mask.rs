// SPDX-License-Identifier: BSD-2-Clause

//! Secrets in headers, made unreadable as they pass: every byte of a secret value becomes `*`, so
//! that lengths and offsets stay true.
//!
//! A [`Masker`] follows one direction of a connection, so a value, a header's name or an HTTP/2
//! frame may be split over any number of calls. HTTP/1 is taken line by line, wherever a line
//! starts, as nobody knows where a body ends without reading all of HTTP. In HTTP/2, headers are
//! compressed (RFC 7541): the payloads of the frames that carry them are masked as a whole.

pub(super) mod http2;

use http2::Frames;

/// Headers whose values are secret, in lower case.
const SECRET: &[&[u8]] = &[
    b"authorization",
    b"cookie",
    b"dpop",
    b"password",
    b"sec-websocket-protocol",
    b"secret",
    b"set-cookie2",
    b"token",
    b"x-amzn-oidc-data",
];

/// How the names of other such headers end, in lower case: `X-Aws-Ec2-Metadata-Token`, `X-Api-Key`.
const SECRET_ENDS: &[&[u8]] = &[
    b"-assertion",
    b"-auth",
    b"-authorization",
    b"-cookie",
    b"-credential",
    b"-credentials",
    b"-jwt",
    b"-key",
    b"-passphrase",
    b"-passwd",
    b"-password",
    b"-secret",
    b"-session",
    b"-session-id",
    b"-token",
    b"apikey",
    b"authtoken",
];

/// Headers whose names end so and whose values are known to everybody (RFC 6455).
const PUBLIC: &[&[u8]] = &[b"sec-websocket-key", b"surrogate-key", b"idempotency-key"];

/// Of a longer name the end is compared; longer than any of the names and ends above.
const LONGEST_NAME: usize = 32;

/// How the first line of a message of HTTP/1 starts.
const MESSAGES: &[&[u8]] = &[
    b"HTTP/1.",
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"TRACE ",
    b"PATCH ",
];

/// Parameters of a query whose values are secret, besides those that are named as a secret header
/// is: keys, codes and signatures of OAuth 2 (RFC 6749), of signed URLs of AWS, Azure and Google.
const SECRET_PARAMETERS: &[&[u8]] = &[
    b"auth",
    b"code",
    b"jwt",
    b"key",
    b"passwd",
    b"pwd",
    b"sig",
    b"signature",
    b"x-amz-signature",
    b"x-goog-signature",
];

/// Whether the parameter of this name, in lower case and with dashes, has a secret value.
fn is_secret_parameter(name: &[u8]) -> bool {
    is_secret(name) || SECRET_PARAMETERS.contains(&name)
}

/// `letter` as names are compared.
fn folded(letter: u8) -> u8 {
    match letter {
        b'_' => b'-',
        letter => letter.to_ascii_lowercase(),
    }
}

/// Whether the header of this name has a secret value.
pub fn is_secret_name(name: &[u8]) -> bool {
    let name: Vec<u8> = name
        .trim_ascii()
        .iter()
        .map(|letter| folded(*letter))
        .collect();
    is_secret(&name)
}

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
    lines.mask(&mut bytes);
    // Whole values are replaced by ASCII.
    *target = String::from_utf8_lossy(&bytes).into_owned();
}

/// Whether the header of this name, in lower case, has a secret value.
fn is_secret(name: &[u8]) -> bool {
    SECRET.contains(&name)
        || SECRET_ENDS.iter().any(|end| name.ends_with(end)) && !PUBLIC.contains(&name)
}

/// What replaces a secret byte.
const MASK: u8 = b'*';

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

    /// Masks secrets in `bytes`, which are at `offset` of the stream, and with which a call `starts`
    /// or goes on; says whether there were any.
    pub fn mask(&mut self, offset: u64, bytes: &mut [u8], starts: bool) -> bool {
        if offset != self.next || self.restarted {
            let message = MESSAGES.iter().any(|start| bytes.starts_with(start));
            self.lines.skip(message);
            if std::mem::take(&mut self.restarted) {
                self.frames.restart(bytes, starts);
            } else {
                self.frames.skip(offset.wrapping_sub(self.next));
            }
        }
        self.next = offset.wrapping_add(bytes.len() as u64);
        let start = self.frames.detect(bytes, starts, self.start_seen);
        let (lines, frames) = bytes.split_at_mut(start);
        let in_lines = self.lines.mask(lines);
        let in_frames = self.frames.mask(frames);
        in_lines || in_frames
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
    /// Before a secret value.
    Space,
    /// In a secret value.
    Value,
    /// At the start of a line after a secret value, which may continue it (RFC 9112, obs-fold).
    Fold,
    /// In a request's target, before its query.
    Target,
    /// In the name of a parameter.
    Parameter,
    /// In the secret value of one.
    ParameterValue,
}

/// Masks line by line, without a look at what the lines are in.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    at: At,
    name: [u8; LONGEST_NAME],
    length: usize,
}

impl Lines {
    /// Bytes are missing: what comes may be the rest of a secret value, to the end of its line,
    /// unless what was missing ends where a message starts.
    fn skip(&mut self, message: bool) {
        if message && !matches!(self.at, At::Space | At::Value | At::ParameterValue) {
            self.start();
        } else {
            self.at = At::Value;
        }
    }

    fn start(&mut self) {
        self.at = At::Name;
        self.length = 0;
    }

    /// Adds a letter to the name; of a long one the end is kept.
    fn push(&mut self, letter: u8) {
        if self.length == LONGEST_NAME {
            self.name.copy_within(1.., 0);
            self.length -= 1;
        }
        self.name[self.length] = folded(letter);
        self.length += 1;
    }

    /// Whether the line starts as a request of HTTP/1 does.
    fn is_method(&self) -> bool {
        let name = &self.name[..self.length];
        MESSAGES.iter().any(|start| {
            let method = start.strip_suffix(b" ").unwrap_or_default();
            !name.is_empty() && name.eq_ignore_ascii_case(method)
        })
    }

    /// Masks secrets in the next bytes; says whether there were any.
    pub fn mask(&mut self, bytes: &mut [u8]) -> bool {
        let mut masked = false;
        let mut rest = bytes.iter_mut();
        while let Some(byte) = rest.next() {
            if self.at == At::Rest {
                // The long way of all payload that is not secret.
                if *byte == b'\n' || rest.any(|byte| *byte == b'\n') {
                    self.start();
                }
                continue;
            }
            masked |= self.step(byte);
        }
        masked
    }

    fn step(&mut self, byte: &mut u8) -> bool {
        if self.at == At::Fold {
            if matches!(*byte, b' ' | b'\t') {
                self.at = At::Space;
                return false;
            }
            self.start();
        }
        match (self.at, *byte) {
            (At::Space | At::Value, b'\n') => self.at = At::Fold,
            (At::Space, b' ' | b'\t' | b'\r') | (At::Value, b'\r') => {}
            (At::Space | At::Value, _) => {
                self.at = At::Value;
                *byte = MASK;
                return true;
            }
            (_, b'\n') => self.start(),
            (At::Name | At::Blank, b':') => {
                let secret = is_secret(&self.name[..self.length]);
                self.at = if secret { At::Space } else { At::Rest };
            }
            (At::Name, b' ') if self.is_method() => self.at = At::Target,
            (At::Name | At::Blank, b' ' | b'\t') if self.length > 0 => self.at = At::Blank,
            (At::Target | At::Parameter | At::ParameterValue, b' ') => self.at = At::Rest,
            // A fragment (#) is sent by few, and may hold a token as a query does.
            (At::Target | At::Parameter | At::ParameterValue, b'?' | b'&' | b';' | b'#') => {
                self.at = At::Parameter;
                self.length = 0;
            }
            (At::Target, _) => {}
            (At::Parameter, b'=') => {
                let secret = is_secret_parameter(&self.name[..self.length]);
                self.at = if secret {
                    At::ParameterValue
                } else {
                    At::Target
                };
            }
            (At::ParameterValue, b'\r') => {}
            (At::ParameterValue, _) => {
                *byte = MASK;
                return true;
            }
            (At::Parameter, letter) => self.push(letter),
            (At::Name, letter) if letter.is_ascii_alphanumeric() || b"-_.".contains(&letter) => {
                self.push(letter);
            }
            _ => self.at = At::Rest,
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `text` in pieces of these sizes, the last as often as needed.
    fn pieces(text: &[u8], sizes: &[usize]) -> Vec<u8> {
        let mut masker = Masker::default();
        masker.start_seen();
        let mut out = Vec::new();
        let mut sizes = sizes.iter();
        let mut size = 1;
        let mut rest = text;
        while !rest.is_empty() {
            size = sizes.next().copied().unwrap_or(size).clamp(1, rest.len());
            let mut piece = rest[..size].to_vec();
            masker.mask(out.len() as u64, &mut piece, true);
            out.extend(piece);
            rest = &rest[size..];
        }
        out
    }

    const REQUEST: &[u8] =
        b"GET / HTTP/1.1\r\nHost: a\r\nAUTHORIZATION:  Bearer x\r\n y\r\nCookie:\r\n\
        X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 60\r\nset-cookie: id=1; a:b\nDate: now\r\n\r\nbody";
    const MASKED: &[u8] =
        b"GET / HTTP/1.1\r\nHost: a\r\nAUTHORIZATION:  ********\r\n *\r\nCookie:\r\n\
        X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 60\r\nset-cookie: *********\nDate: now\r\n\r\nbody";

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    #[test]
    fn only_values_of_secret_headers_are_masked() {
        assert_eq!(text(&pieces(REQUEST, &[REQUEST.len()])), text(MASKED));
    }

    #[test]
    fn secret_parameters_of_a_request_are_masked_and_others_are_not() {
        for (line, masked) in [
            (
                "GET /a?b=c&access_token=abc&d=e HTTP/1.1",
                "GET /a?b=c&access_token=***&d=e HTTP/1.1",
            ),
            (
                "POST /a?X-Amz-Signature=ab#id_token=c HTTP/1.1",
                "POST /a?X-Amz-Signature=**#id_token=* HTTP/1.1",
            ),
            (
                "GET /token=abc?tokens=1&keys=2&code HTTP/1.1",
                "GET /token=abc?tokens=1&keys=2&code HTTP/1.1",
            ),
            ("GET /?sig=a=b", "GET /?sig=***"),
        ] {
            let line = format!("{line}\r\nHost: a?token=b\r\n").into_bytes();
            for size in [line.len(), 1, 3] {
                let shown = text(&pieces(&line, &[size]));
                assert_eq!(shown, format!("{masked}\r\nHost: a?token=b\r\n"), "{size}");
            }
        }
    }

    #[test]
    fn after_a_gap_the_rest_of_a_line_is_masked_and_other_lines_are_not() {
        let mut masker = Masker::default();
        let mut piece = b"Cookie: abc".to_vec();
        assert!(masker.mask(0, &mut piece, true));
        let mut piece = b"def\r\nHost: a".to_vec();
        assert!(masker.mask(100, &mut piece, true));
        assert_eq!(text(&piece), "***\r\nHost: a");
        let mut piece = b"c2Vj: x\r\nHost: a\r\nCookie: x".to_vec();
        assert!(masker.mask(1000, &mut piece, true));
        assert_eq!(text(&piece), "*******\r\nHost: a\r\nCookie: *");
    }

    #[test]
    fn after_a_restart_the_rest_of_a_value_is_masked() {
        let frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x01\x04\0\0\0\x01coo";
        for (before, after, shown) in [
            (
                &b"Cookie: abc"[..],
                &b"def\r\nHost: a"[..],
                &b"***\r\nHost: a"[..],
            ),
            (b"Cookie: abc", b"GET / HTTP", b"**********"),
            (b"Host: a\r\n\r\n", b"GET / HTTP", b"GET / HTTP"),
            // In a frame with headers, and between frames.
            (frames, b"kie\0\0\x01\0\0", b"********"),
            (
                &frames[..24],
                b"\0\0\x03\x01\x04\0\0\0\x01abc",
                b"\0\0\x03\x01\x04\0\0\0\x01***",
            ),
            (&frames[..24], b"abc", b"***"),
        ] {
            let mut masker = Masker::default();
            masker.start_seen();
            masker.mask(0, &mut before.to_vec(), true);
            masker.restart();
            let mut piece = after.to_vec();
            masker.mask(0, &mut piece, true);
            assert_eq!(text(&piece), text(shown));
        }
        // Nothing is known of what was before.
        let mut masker = Masker::default();
        masker.restart();
        let mut piece = b"def\r\nHost: a".to_vec();
        masker.mask(0, &mut piece, true);
        assert_eq!(text(&piece), "***\r\nHost: a");
    }

    #[test]
    fn a_message_that_starts_after_a_gap_is_shown() {
        let mut masker = Masker::default();
        masker.mask(0, &mut b"GET / HTTP/1.1\r\nHo".to_vec(), true);
        let mut piece = b"HTTP/1.1 200 OK\r\nSet-Cookie: a".to_vec();
        assert!(masker.mask(100, &mut piece, true));
        assert_eq!(text(&piece), "HTTP/1.1 200 OK\r\nSet-Cookie: *");
    }

    #[test]
    fn every_header_that_holds_a_token_of_a_cloud_is_masked() {
        for header in crate::metadata::CLOUDS.iter().filter_map(|one| one.header) {
            // Their values are constants.
            let harmless = ["metadata", "metadata-flavor"].contains(&header);
            assert_eq!(is_secret(header.as_bytes()), !harmless, "{header}");
        }
    }

    #[test]
    fn names_that_say_what_they_hold_are_masked() {
        let long = format!("x-{}-token", "a".repeat(100));
        for name in [
            "Api-Key",
            "apikey",
            "X_API_KEY",
            "Job-Token",
            "Ocp-Apim-Subscription-Key",
            "Private-Token",
            "Proxy-Authorization",
            "Set-Cookie",
            "X-Access-Token",
            "X-Amz-Security-Token",
            "X-Auth-Token",
            "X-Client-Secret",
            "X-Csrf-Token",
            "X-Functions-Key",
            "X-Gitlab-Token",
            "X-Goog-Iam-Authorization-Token",
            "X-Password",
            "X-Vault-Token",
            "Cookie ",
            "Authorization \t",
            &long,
        ] {
            let line = format!("{name}: abc\r\n").into_bytes();
            let wanted = format!("{name}: ***\r\n");
            assert_eq!(text(&pieces(&line, &[line.len()])), wanted);
            assert_eq!(text(&pieces(&line, &[1])), wanted);
        }
        for name in [
            "Host",
            "Sec-WebSocket-Key",
            "Token-Type",
            "The token",
            " Cookie",
        ] {
            let line = format!("{name}: abc\r\n").into_bytes();
            assert_eq!(pieces(&line, &[line.len()]), line, "{name}");
        }
    }

    proptest! {
        #[test]
        fn how_the_stream_is_cut_makes_no_difference(
            sizes in proptest::collection::vec(1usize..40, 1..20),
        ) {
            let whole = pieces(REQUEST, &[REQUEST.len()]);
            prop_assert_eq!(pieces(REQUEST, &sizes), whole);
        }

        #[test]
        fn what_has_no_header_is_left_alone(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
            sizes in proptest::collection::vec(1usize..400, 1..20),
        ) {
            // Nine random bytes that look like a SETTINGS frame are HTTP/2.
            prop_assume!(bytes.get(3) != Some(&4));
            prop_assert_eq!(pieces(&bytes, &sizes), bytes);
        }
    }
}
