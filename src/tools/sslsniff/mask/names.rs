// SPDX-License-Identifier: BSD-2-Clause

//! Which headers and parameters are secret, and how messages of HTTP/1 start.

use crate::output::leading;

/// Headers whose values are secret, in lower case.
const SECRET: &[&[u8]] = &[
    b"authentication",
    b"authorization",
    b"bearer",
    b"cookie",
    b"dpop",
    b"otp",
    b"pin",
    b"sec-websocket-protocol",
    b"session",
    b"ticket",
    b"x-amzn-oidc-data",
];

/// How the names of other such headers end, in lower case: `X-Aws-Ec2-Metadata-Token`, `X-Api-Key`,
/// `X-CSRFToken`.
const SECRET_ENDS: &[&[u8]] = &[
    b"-assertion",
    b"-auth",
    b"-auth-code",
    b"-authentication",
    b"-authorization",
    b"-bearer",
    b"-cookie",
    b"-credential",
    b"-credentials",
    b"-jwt",
    b"-key",
    b"-mfa-code",
    b"-otp",
    b"-pass",
    b"-passphrase",
    b"-pin",
    b"-session",
    b"-session-id",
    b"-sid",
    b"-ticket",
    b"-totp",
    b"-verification-code",
    b"apikey",
    b"passcode",
    b"passwd",
    b"password",
    b"secret",
    b"sessid",
    b"sessionid",
    b"token",
];

/// Headers whose names end so and whose values are known to everybody (RFC 6455).
const PUBLIC: &[&[u8]] = &[b"sec-websocket-key", b"surrogate-key", b"idempotency-key"];

/// Of a longer name the end is compared; longer than any of the names and ends above.
pub(super) const LONGEST_NAME: usize = 32;

/// Methods that start a request: those of RFC 9110, RFC 5789, WebDAV (RFC 4918, 3253, 5323), and
/// what caches and RFC 10008 add.
pub(in super::super) const METHODS: [&str; 22] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "SEARCH",
    "MKCALENDAR",
    "PURGE",
    "QUERY",
    "BIND",
];

/// Parameters of a query whose values are secret, besides those that are named as a secret header
/// is: keys, codes, assertions and signatures of OAuth 2 (RFC 6749 and 7521), of SAML and CAS, of signed URLs
/// of AWS, Azure and Google.
const SECRET_PARAMETERS: &[&[u8]] = &[
    b"assertion",
    b"auth",
    b"code",
    b"jwt",
    b"key",
    b"pass",
    b"pwd",
    b"samlresponse",
    b"sig",
    b"signature",
    b"x-amz-signature",
    b"x-goog-signature",
];

/// Whether the parameter of this name, in lower case and with dashes, has a secret value. Of `user[token]` and
/// `token[]` that is told by the innermost name.
pub(super) fn is_secret_parameter(name: &[u8]) -> bool {
    let name = name
        .rsplit(|letter| matches!(letter, b'[' | b']'))
        .find(|part| !part.iter().all(u8::is_ascii_digit))
        .unwrap_or_default();
    is_secret(name) || SECRET_PARAMETERS.contains(&name)
}

/// `letter` as names are compared: all that may be between words is one.
pub(super) fn folded(letter: u8) -> u8 {
    match letter {
        b'!' | b'#'..=b'\'' | b'*' | b'+' | b'^' | b'_' | b'`' | b'|' | b'~' => b'-',
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

/// Whether a request of HTTP/1 starts so.
pub(in super::super) fn starts_request(bytes: &[u8]) -> bool {
    METHODS.iter().any(|method| {
        bytes.first() == method.as_bytes().first()
            && bytes
                .strip_prefix(method.as_bytes())
                .is_some_and(|rest| rest.first() == Some(&b' '))
    })
}

/// Whether a request of HTTP/1 starts so whose method is none of those above, by its whole first line.
pub(super) fn starts_other_request(bytes: &[u8]) -> bool {
    let line = &bytes[..memchr::memchr(b'\n', bytes).unwrap_or(bytes.len())];
    let method = leading(&line[..line.len().min(LONGEST_NAME)], is_name_letter);
    line.get(method) == Some(&b' ')
        && is_other_method(&line[..method])
        && line.windows(8).any(|part| part == b" HTTP/1.")
}

/// Whether it may be a method that somebody made up, and is no word of a text: those are in capitals by custom
/// (RFC 9110, section 9.1).
pub(super) fn is_other_method(name: &[u8]) -> bool {
    name.len() < LONGEST_NAME
        && name.iter().any(u8::is_ascii_uppercase)
        && !name.iter().any(u8::is_ascii_lowercase)
}

/// Whether an answer of HTTP/1 starts so.
pub(in super::super) fn starts_answer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"HTTP/1.")
}

/// Whether a message of HTTP/1 starts so.
pub(super) fn starts_message(bytes: &[u8]) -> bool {
    starts_request(bytes) || starts_answer(bytes)
}

/// Whether a message of HTTP/1 starts so, or may do so with more bytes.
pub(super) fn may_start_message(bytes: &[u8]) -> bool {
    let begins = |whole: &[u8]| whole.first() == bytes.first() && whole.starts_with(bytes);
    starts_message(bytes)
        || begins(b"HTTP/1.")
        || METHODS.iter().any(|method| begins(method.as_bytes()))
}

/// Whether it may be in a header's name (RFC 9110, section 5.6.2), or is one of few others: `,@\]}` and DEL.
pub(super) fn is_name_letter(byte: u8) -> bool {
    // Without branches, so that many are looked at in one step, and with few steps.
    let small = byte | 0x20;
    (small.wrapping_sub(b'`') < 27)
        | (small.wrapping_sub(b'|') < 4)
        | (byte.wrapping_sub(b'0') < 10)
        | (byte.wrapping_sub(b'*') < 5)
        | (byte.wrapping_sub(b'#') < 5)
        | (byte == b'!')
}

/// Whether the header of this name, in lower case, has a secret value.
pub(super) fn is_secret(name: &[u8]) -> bool {
    let name = without_number(name);
    // Of most names no end is looked at any further.
    let last = name.last_chunk::<2>();
    SECRET.contains(&name)
        || SECRET_ENDS
            .iter()
            .any(|end| end.last_chunk() == last && name.ends_with(end))
            && !PUBLIC.contains(&name)
}

/// A name without the number at its end, as that of the second of several.
pub(super) fn without_number(name: &[u8]) -> &[u8] {
    let digits = name.iter().rev().take_while(|one| one.is_ascii_digit());
    let start = &name[..name.len() - digits.count()];
    start.strip_suffix(b"-").unwrap_or(start)
}
