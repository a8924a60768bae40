// SPDX-License-Identifier: BSD-2-Clause

//! Which headers and parameters are secret, and how messages of HTTP/1 start.

use crate::output::leading;

/// Headers whose values are secret, in lower case.
const SECRET: &[&[u8]] = &[
    b"authentication-info",
    b"dpop",
    b"proxy-authentication-info",
    b"sec-websocket-protocol",
    b"x-amzn-oidc-data",
];

/// How the names of other such headers end, in lower case: `X-Aws-Ec2-Metadata-Token`, `X-Api-Key`,
/// `X-CSRFToken`. What starts with a dash is such a name without it, too.
const SECRET_ENDS: &[&[u8]] = &[
    b"-access-code",
    b"-assertion",
    b"-auth",
    b"-auth-code",
    b"-authentication",
    b"-authorization",
    b"-bearer",
    b"-cookie",
    b"-credential",
    b"-jwt",
    b"-key",
    b"-mfa-code",
    b"-otp",
    b"-pass",
    b"-pin",
    b"-session",
    b"-session-id",
    b"-sid",
    b"-signature",
    b"-ticket",
    b"-totp",
    b"-verification-code",
    b"accesskey",
    b"apikey",
    b"authkey",
    b"passcode",
    b"passphrase",
    b"passwd",
    b"password",
    b"privatekey",
    b"secret",
    b"secretkey",
    b"sessid",
    b"sessionid",
    b"token",
];

/// Headers whose names end so and whose values are known to everybody (RFC 6455).
const PUBLIC: &[&[u8]] = &[
    b"idempotency-key",
    b"keys",
    b"max-tokens",
    b"sec-websocket-key",
    b"surrogate-key",
];

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
    b"authcode",
    b"code",
    b"code-verifier",
    b"hmac",
    b"id-token-hint",
    b"mac",
    b"mfacode",
    b"otpcode",
    b"pswd",
    b"pw",
    b"pwd",
    b"samlart",
    b"samlresponse",
    b"sig",
    b"sign",
    b"userpass",
    b"wresult",
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
        b'!' | b'#'..=b'\'' | b'*' | b'+' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~' => b'-',
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
pub(in super::super) fn starts_other_request(bytes: &[u8]) -> bool {
    let line = &bytes[..memchr::memchr(b'\n', bytes).unwrap_or(bytes.len())];
    let method = leading(&line[..line.len().min(LONGEST_NAME)], is_name_letter);
    line.get(method) == Some(&b' ')
        && is_other_method(&line[..method])
        && line.windows(8).any(|part| part == b" HTTP/1.")
}

/// Whether a request may start so, with more bytes, whose method is none of those above.
pub(in super::super) fn may_start_other_request(bytes: &[u8]) -> bool {
    let method = leading(&bytes[..bytes.len().min(LONGEST_NAME)], is_name_letter);
    is_other_method(&bytes[..method])
        && bytes.get(method).is_none_or(|byte| *byte == b' ')
        && memchr::memchr(b'\n', bytes).is_none()
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
    // Metadata of gRPC that is no text has this end.
    let name = without_number(name.strip_suffix(b"-bin").unwrap_or(name));
    !PUBLIC.contains(&name)
        && (is_one_secret(name) || name.strip_suffix(b"s").is_some_and(is_one_secret))
}

/// Which two letters end the names and the ends above, by the first of them: a bit for each second one.
const LAST_LETTERS: [u32; 26] = {
    let mut letters = [0; 26];
    let mut list = 0;
    while list < 2 {
        let names = if list == 0 { SECRET } else { SECRET_ENDS };
        let mut at = 0;
        while at < names.len() {
            let name = names[at];
            let (first, second) = (name[name.len() - 2], name[name.len() - 1]);
            letters[(first - b'a') as usize] |= 1 << (second - b'a');
            at += 1;
        }
        list += 1;
    }
    letters
};

/// The same of a name that is not in the plural.
fn is_one_secret(name: &[u8]) -> bool {
    // Of most names nothing else is looked at.
    let last = name.last_chunk().is_some_and(|[first, second]| {
        let letters = LAST_LETTERS.get(usize::from(first.wrapping_sub(b'a')));
        let second = second.wrapping_sub(b'a');
        second < 26 && letters.is_some_and(|letters| letters >> second & 1 == 1)
    });
    last && (SECRET.contains(&name)
        || SECRET_ENDS.iter().any(|end| {
            name.ends_with(end) || end.strip_prefix(b"-").is_some_and(|end| end == name)
        }))
}

/// A name without the number at its end, as that of the second of several.
pub(super) fn without_number(name: &[u8]) -> &[u8] {
    let digits = name.iter().rev().take_while(|one| one.is_ascii_digit());
    let start = &name[..name.len() - digits.count()];
    start.strip_suffix(b"-").unwrap_or(start)
}
