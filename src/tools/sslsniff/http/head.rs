// SPDX-License-Identifier: BSD-2-Clause

//! Heads of messages: what a request asks for, what an answer says, how long the body is.

use super::exchange::Field;
use crate::tools::sslsniff::mask;

/// Headers that are read of one message; a message with more is no HTTP to any server.
const MOST_HEADERS: usize = 256;

/// How long a body is, and how that is told (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// So many bytes.
    Known(u64),
    /// In chunks that say how long they are.
    Chunked,
    /// Up to the end of the connection.
    UntilClose,
}

/// The head of a message of HTTP/1.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) version: &'static str,
    pub(super) line: StartLine,
    pub(super) fields: Vec<Field>,
    /// What the headers say of the body, if they say anything.
    pub(super) length: Option<Length>,
}

/// The first line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StartLine {
    Request {
        method: String,
        host: Option<String>,
        path: String,
    },
    Response {
        status: u16,
        reason: Option<String>,
    },
}

/// Reads a whole head of a request or an answer; `None` if it is none.
pub(super) fn parse(bytes: &[u8], request: bool, show_secrets: bool) -> Option<Head> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    if request {
        let mut parsed = httparse::Request::new(&mut headers);
        parsed
            .parse(bytes)
            .ok()
            .filter(httparse::Status::is_complete)?;
        let fields = fields(parsed.headers, show_secrets);
        let (method, target) = (parsed.method?, parsed.path?);
        let (authority, path) = split_target(method, target);
        let host = authority.map(str::to_owned).or_else(|| {
            let field = fields.iter().find(|field| is(field, "host"))?;
            Some(host(&field.value).to_owned())
        });
        Some(Head {
            version: version(parsed.version?),
            line: StartLine::Request {
                method: method.to_owned(),
                host,
                path: shown_target(path, show_secrets),
            },
            length: length(parsed.headers)?,
            fields,
        })
    } else {
        let mut parsed = httparse::Response::new(&mut headers);
        parsed
            .parse(bytes)
            .ok()
            .filter(httparse::Status::is_complete)?;
        Some(Head {
            version: version(parsed.version?),
            line: StartLine::Response {
                status: parsed.code?,
                reason: parsed
                    .reason
                    .filter(|text| !text.is_empty())
                    .map(str::to_owned),
            },
            length: length(parsed.headers)?,
            fields: fields(parsed.headers, show_secrets),
        })
    }
}

fn version(minor: u8) -> &'static str {
    if minor == 0 { "1.0" } else { "1.1" }
}

fn is(field: &Field, name: &str) -> bool {
    field.name.eq_ignore_ascii_case(name)
}

/// Host and path of a request's target, which is a path, or to a proxy a whole URL, or the host
/// alone (RFC 9112, section 3.2).
fn split_target<'a>(method: &str, target: &'a str) -> (Option<&'a str>, &'a str) {
    if method == "CONNECT" {
        return (Some(host(target)), "");
    }
    let Some((_, rest)) = target
        .split_once("://")
        .filter(|_| !target.starts_with('/'))
    else {
        return (None, target);
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    (Some(host(authority)), path)
}

/// The host and port of what may have a user and a password before them.
pub(super) fn host(authority: &str) -> &str {
    authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host)
}

/// The same with these masked.
pub(super) fn shown_host(authority: &str) -> String {
    match authority.rsplit_once('@') {
        Some((secret, host)) => mask::hidden(secret.len()) + "@" + host,
        None => authority.to_owned(),
    }
}

/// The target as it may be shown.
pub(super) fn shown_target(target: &str, show_secrets: bool) -> String {
    let mut target = target.to_owned();
    if !show_secrets {
        mask::query(&mut target);
    }
    target
}

/// A field as it may be shown; one without a name may be anything, so it is secret.
pub(super) fn field(name: Option<&[u8]>, value: &[u8], show_secrets: bool) -> Field {
    let text = String::from_utf8_lossy(value);
    let secret = name.is_none_or(mask::is_secret_name);
    let is_host = name.is_some_and(|name| name.eq_ignore_ascii_case(b"host"));
    Field {
        name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        value: match (secret, is_host) {
            _ if show_secrets => text.into_owned(),
            (true, _) => mask::hidden(value.len()),
            (_, true) => shown_host(&text),
            _ => text.into_owned(),
        },
    }
}

fn fields(headers: &[httparse::Header<'_>], show_secrets: bool) -> Vec<Field> {
    headers
        .iter()
        .map(|header| field(Some(header.name.as_bytes()), header.value, show_secrets))
        .collect()
}

/// What the headers say of the body's length; `None` if they contradict each other, so that two
/// programs may read the message differently.
fn length(headers: &[httparse::Header<'_>]) -> Option<Option<Length>> {
    let values = |name: &'static str| {
        headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value.trim_ascii())
    };
    if let Some(last) = values("transfer-encoding").next_back() {
        let last = last.rsplit(|byte| *byte == b',').next().unwrap_or(last);
        return Some(Some(
            if last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                Length::Chunked
            } else {
                Length::UntilClose
            },
        ));
    }
    let mut known = None;
    for value in values("content-length") {
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let value: u64 = std::str::from_utf8(value).ok()?.parse().ok()?;
        if known.is_some_and(|known| known != value) {
            return None;
        }
        known = Some(value);
    }
    Some(known.map(Length::Known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_host_wherever_that_stands() {
        for (head, host, path) in [
            ("GET /a HTTP/1.1\r\nHost: x:81\r\n\r\n", Some("x:81"), "/a"),
            (
                "GET http://y/b?c HTTP/1.1\r\nHost: x\r\n\r\n",
                Some("y"),
                "/b?c",
            ),
            ("GET http://u:p@y HTTP/1.0\r\n\r\n", Some("y"), ""),
            ("GET / HTTP/1.1\r\nHost: u:p@y\r\n\r\n", Some("y"), "/"),
            ("CONNECT u:p@z:1 HTTP/1.1\r\n\r\n", Some("z:1"), ""),
            ("GET /to?u=a://b HTTP/1.0\r\n\r\n", None, "/to?u=a://b"),
            (
                "CONNECT z:443 HTTP/1.1\r\nHost: z:443\r\n\r\n",
                Some("z:443"),
                "",
            ),
        ] {
            let parsed = parse(head.as_bytes(), true, false).unwrap();
            let StartLine::Request {
                host: seen,
                path: shown,
                ..
            } = parsed.line
            else {
                panic!("{head}");
            };
            assert_eq!((seen.as_deref(), shown.as_str()), (host, path));
        }
    }

    #[test]
    fn the_length_of_a_body_is_what_the_headers_say_or_nothing() {
        for (headers, wanted) in [
            ("", Some(None)),
            ("Content-Length: 5\r\n", Some(Some(Length::Known(5)))),
            (
                "Content-Length: 5\r\nContent-Length: 5\r\n",
                Some(Some(Length::Known(5))),
            ),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", None),
            ("Content-Length: +5\r\n", None),
            (
                "Transfer-Encoding: gzip, Chunked\r\nContent-Length: 5\r\n",
                Some(Some(Length::Chunked)),
            ),
            (
                "Transfer-Encoding: gzip\r\n",
                Some(Some(Length::UntilClose)),
            ),
        ] {
            let head = format!("HTTP/1.1 200 OK\r\n{headers}\r\n");
            let parsed = parse(head.as_bytes(), false, false).map(|head| head.length);
            assert_eq!(parsed, wanted, "{headers:?}");
        }
    }

    #[test]
    fn secrets_are_masked_as_the_head_is_read() {
        let text = b"GET /a?token=abc&b=c HTTP/1.1\r\nCookie: abcd\r\n\r\n";
        for (show, path, cookie) in [
            (false, "/a?token=***&b=c", "****"),
            (true, "/a?token=abc&b=c", "abcd"),
        ] {
            let head = parse(text, true, show).unwrap();
            assert_eq!(head.fields[0].value, cookie);
            let StartLine::Request { path: shown, .. } = head.line else {
                panic!()
            };
            assert_eq!(shown, path);
        }
        assert_eq!(field(None, b"abc", false).value, "***");
        assert_eq!(field(Some(b"Host"), b"u:p@y", false).value, "***@y");
        assert_eq!(field(Some(b"Host"), b"u:p@y", true).value, "u:p@y");
    }
}
