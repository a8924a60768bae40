// SPDX-License-Identifier: BSD-2-Clause

//! What follows a request's head: whether everybody would say how long it is, and whether it may be
//! taken for a request.

/// What the headers that were read say of what follows the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    /// Nothing.
    None,
    /// A body of so many bytes.
    Body(u64),
    /// Another protocol, or a body whose length services may disagree about, and so about what they
    /// read next: that can hide a request.
    Disputed,
}

impl Announced {
    /// With one more header.
    pub fn with(self, name: &str, value: &[u8]) -> Self {
        let length = match name.to_ascii_lowercase().as_str() {
            "content-length" => length(value.trim_ascii()).map_or(Self::Disputed, Self::Body),
            "transfer-encoding" | "upgrade" | "expect" => Self::Disputed,
            _ => return self,
        };
        match self {
            Self::None => length,
            known if known == length => known,
            _ => Self::Disputed,
        }
    }
}

/// A length as everybody reads it: zeros, or digits that begin with none.
fn length(value: &[u8]) -> Option<u64> {
    let zeros = !value.is_empty() && value.iter().all(|byte| *byte == b'0');
    let plain = !value.starts_with(b"0") && value.iter().all(u8::is_ascii_digit);
    if zeros {
        return Some(0);
    }
    let digits = str::from_utf8(value).ok()?;
    plain.then(|| digits.parse().ok()).flatten()
}

/// Methods, one of which a request begins with that is read where a body should be.
const METHODS: &[&str] = &[
    "GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE",
];

/// Of a part of a body: how many bytes at its beginning are no request to a service that does not know
/// of bodies, and whether one begins behind those. Where it ends too early to say, the rest waits.
/// `part` begins with a line, or with a packet, which such a service may read on its own.
pub fn harmless(part: &[u8]) -> (usize, bool) {
    let mut at = 0;
    while at < part.len() {
        match begins_request(&part[at..]) {
            Some(true) => return (at, true),
            None => return (at, false),
            Some(false) => {
                let end = part[at..].iter().position(|byte| *byte == b'\n');
                at = end.map_or(part.len(), |end| at + end + 1);
            }
        }
    }
    (at, false)
}

/// Whether a line is a request's first; `None` if it ends too early to say.
fn begins_request(line: &[u8]) -> Option<bool> {
    let line = line.trim_ascii_start();
    let letters = line.iter().take_while(|byte| byte.is_ascii_alphabetic());
    let (word, rest) = line.split_at(letters.count());
    let begins = |method: &&str| {
        let begin = method.as_bytes().get(..word.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(word))
    };
    let mut methods = METHODS.iter().copied().filter(begins).peekable();
    if word.is_empty() || methods.peek().is_none() {
        return Some(false);
    }
    let first = rest.first()?;
    let is_blank = |byte: &u8| b" \t".contains(byte);
    if !is_blank(first) || methods.all(|method| method.len() != word.len()) {
        return Some(false);
    }
    let target = rest.trim_ascii_start();
    let scheme = b"http://";
    let known = target.len().min(scheme.len());
    let is_absolute = target[..known].eq_ignore_ascii_case(&scheme[..known]);
    match target.first() {
        Some(b'/') => Some(true),
        Some(_) if !is_absolute => Some(false),
        Some(_) if known == scheme.len() => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_in_a_body_is_found_wherever_a_line_begins() {
        for (part, expected) in [
            ("{\"expires_in\":3600}", (19, false)),
            ("<?xml?>\n<Health/>\n", (18, false)),
            ("GET /x HTTP/1.1\r\n", (0, true)),
            ("{\n \tget  /x", (2, true)),
            ("{\r\nPOST http://x/", (3, true)),
            ("{\nGET", (2, false)),
            ("{\nG", (2, false)),
            ("{\nGET ", (2, false)),
            ("{\nGET htt", (2, false)),
            ("GETX /x", (7, false)),
            ("GE /x", (5, false)),
            ("GET x", (5, false)),
            ("a GET /x", (8, false)),
            ("", (0, false)),
        ] {
            assert_eq!(harmless(part.as_bytes()), expected, "{part:?}");
        }
    }
}
