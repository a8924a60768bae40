// SPDX-License-Identifier: BSD-2-Clause

//! A request as httparse reads it, without a header's value: what was asked for, and what is to be
//! said about it.

use std::collections::HashSet;

use httparse::{EMPTY_HEADER, Status};

use super::body::Announced;
use super::paths::{Class, TOKENS, is_open, unneeded, wanted};
use super::scanner::{header_flag, header_flags, is_forwarding_header};
use super::watchlist::Watchlist;

/// More headers than any client sends.
const MAX_HEADERS: usize = 128;
/// Bytes of a path, or of a name in a query, that are kept.
const LONGEST_TEXT: usize = 1024;

/// What is known of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// The method, where one could be read.
    pub method: Option<String>,
    /// The path as it was sent, without scheme, host and query.
    pub path: Option<String>,
    /// The names in the query; never a value.
    pub query: Vec<String>,
    /// The names of the headers, as they were sent.
    pub headers: Vec<String>,
    /// The flags ([`header_flag`]) of the headers that are there and not empty.
    pub tokens: u16,
    /// The flags of those that the path's service wants; 0 where the path could be anyone's.
    pub wanted: u16,
    /// A service that wants no header may answer the path.
    pub open: bool,
    /// The flags of those without which their service answers the path all the same.
    pub headerless: u16,
    /// A proxy has added a header.
    pub forwarded: bool,
    /// The path hands out credentials.
    pub credentials: bool,
    /// The path hands out user data.
    pub user_data: bool,
    /// The query asks for all that is below the path.
    pub recursive: bool,
    /// The path is of a version of the service that wants no header.
    pub legacy: bool,
    /// A Host header, or the target's authority, is not the service's.
    pub foreign_host: bool,
    /// The places in the watchlist of the rules that it has something of, endpoints aside.
    pub rules: Vec<usize>,
    /// Not a request, or none that everybody would read in the same way.
    pub unparsable: bool,
    /// The head is not all there, or cannot be read to its end: a header that is missing may have
    /// been in the rest.
    pub cut: bool,
}

/// What the bytes of a stream begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A whole head of `length` bytes.
    Head {
        /// What it says.
        request: Request,
        /// Bytes of the head.
        length: usize,
        /// Bytes of the body that follows, where everybody would say so. What follows a head that is
        /// not read by all in the same way is read as the next one, whatever body it announces: there
        /// are services that do the same.
        body: u64,
    },
    /// The beginning of a head.
    Partial,
    /// No head.
    Broken,
}

/// Reads the head that `bytes` begin with.
pub fn step(bytes: &[u8], list: &Watchlist) -> Step {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let length = match parsed.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Step::Partial,
        Err(_) => return Step::Broken,
    };
    let mut request = Request {
        method: parsed.method.map(str::to_owned),
        ..Request::default()
    };
    let mut announced = Announced::None;
    for header in parsed.headers.iter() {
        announced = announced.with(header.name, header.value);
        request.header(header.name, header.value, list);
    }
    request.target(parsed.path, list);
    // httparse takes a bare line feed for a line's end; not every service does.
    let head = &bytes[..length];
    let lines = head.iter().filter(|byte| **byte == b'\n').count();
    request.unparsable |= head.windows(2).filter(|two| two == b"\r\n").count() != lines;
    let sends = matches!(request.method.as_deref(), Some("PUT" | "POST"));
    let body = match announced {
        Announced::None | Announced::Body(0) => 0,
        Announced::Body(length) if sends && !request.unparsable => length,
        Announced::Body(_) | Announced::Disputed => {
            request.unparsable = true;
            0
        }
    };
    Step::Head {
        request,
        length,
        body,
    }
}

/// What can be said of bytes that are no whole head: the request line and the header names, as far
/// as they are there.
pub fn salvage(bytes: &[u8], list: &Watchlist) -> Request {
    let mut request = Request {
        unparsable: true,
        cut: true,
        ..Request::default()
    };
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let Some(first) = lines.next() else {
        return request;
    };
    let mut words = first.splitn(3, |byte| *byte == b' ');
    let (method, target) = match (words.next(), words.next(), words.next()) {
        (Some(method), Some(target), Some(_)) => (method, target),
        // A whole line, in the form of HTTP/0.9, which has no other method.
        (Some(b"GET"), Some(target), None) if target.ends_with(b"\n") => {
            (&b"GET"[..], target.trim_ascii_end())
        }
        _ => return request,
    };
    let is_method = (1..=20).contains(&method.len()) && method.iter().all(u8::is_ascii_alphabetic);
    if !is_method || !(target.starts_with(b"/") || target.starts_with(b"http://")) {
        return request;
    }
    request.method = Some(String::from_utf8_lossy(method).into_owned());
    for line in lines.take(MAX_HEADERS).filter(|line| line.ends_with(b"\n")) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        if let Ok(name) = str::from_utf8(&line[..colon])
            && (1..=64).contains(&name.len())
            && name.as_bytes().iter().all(is_token)
        {
            request.header(name, &line[colon + 1..], list);
        }
    }
    request.target(Some(&String::from_utf8_lossy(target)), list);
    request
}

impl Request {
    /// Bytes that it keeps.
    pub fn held(&self) -> usize {
        let names = self.query.iter().chain(&self.headers);
        let texts = names.map(|name| name.len() + size_of::<String>());
        let path = self.path.as_ref().map_or(0, String::len);
        size_of::<Self>() + path + texts.sum::<usize>()
    }

    fn header(&mut self, name: &str, value: &[u8], list: &Watchlist) {
        let lower = name.to_ascii_lowercase();
        let value = value.trim_ascii();
        self.headers.push(kept(name));
        self.forwarded |= is_forwarding_header(&lower);
        if lower == "host" {
            self.foreign_host |= !list.is_service(&String::from_utf8_lossy(value));
        }
        let counts = match lower.as_str() {
            // Azure refuses any other.
            "metadata" => value.eq_ignore_ascii_case(b"true"),
            _ => !value.is_empty(),
        };
        if counts {
            self.tokens |= header_flag(&lower);
        }
    }

    /// After all headers: rules look at both.
    fn target(&mut self, target: Option<&str>, list: &Watchlist) {
        let target = target.unwrap_or("");
        let (authority, local) = split(target);
        self.foreign_host |= authority.is_some_and(|host| !list.is_service(host));
        self.unparsable |= !is_plain(target);
        // A fragment is for the client alone. A service that is sent one all the same cuts it off, or
        // does not.
        let shown = local.split('?').next().unwrap_or_default();
        let local = local.split('#').next().unwrap_or_default();
        let (path, query) = local.split_once('?').unwrap_or((local, ""));
        let plain = normal(path);
        self.path = (!target.is_empty()).then(|| kept(shown));
        let mut known = HashSet::new();
        self.query = query
            .split(['&', ';'])
            .filter(|pair| !pair.is_empty())
            .map(|pair| kept(pair.split_once('=').map_or(pair, |(name, _)| name)))
            .filter(|name| known.insert(name.clone()))
            .take(MAX_HEADERS)
            .collect();
        // Some services take a semicolon for what "&" is.
        let query = decoded(query).replace(';', "&");
        for one in [local, &plain, &format!("/?{query}")] {
            for class in list.classes(one) {
                match class {
                    Class::Credentials => self.credentials = true,
                    Class::UserData => self.user_data = true,
                    Class::Recursive => self.recursive |= asks_for_all(&query),
                    Class::Legacy => self.legacy = true,
                }
            }
        }
        self.rules = list.rules(self.method.as_deref(), &[path, &plain], &self.headers);
        self.wanted = wanted(&plain).map_or(0, header_flags);
        self.open = is_open(&plain);
        self.headerless = header_flags(unneeded(&plain, &query));
        if self.method.as_deref() == Some("PUT") {
            for (token, header) in TOKENS {
                if plain == *token {
                    self.tokens |= header_flag(header);
                }
            }
        }
    }
}

/// Whether a query says `recursive` and does not say `false` of it.
fn asks_for_all(query: &str) -> bool {
    query.split('&').any(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        name.eq_ignore_ascii_case("recursive") && !value.eq_ignore_ascii_case("false")
    })
}

/// Whether a target has nothing in it that services read differently: a fragment, a backslash, a
/// percent sign that encodes nothing, or a byte that is not ASCII (RFC 3986, 2).
fn is_plain(target: &str) -> bool {
    let encodes = |rest: &str| {
        let digits = rest.as_bytes().iter().take(2);
        digits.filter(|byte| byte.is_ascii_hexdigit()).count() == 2
    };
    target.bytes().all(|byte| byte.is_ascii_graphic())
        && !target.contains(['#', '\\'])
        && target.split('%').skip(1).all(encodes)
}

/// At most [`LONGEST_TEXT`] bytes of `text`.
fn kept(text: &str) -> String {
    let mut end = text.len().min(LONGEST_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// A target's authority, if it has one, and the rest.
fn split(target: &str) -> (Option<&str>, &str) {
    let scheme = target
        .split_once("://")
        .filter(|(scheme, _)| scheme.bytes().all(|byte| byte.is_ascii_alphabetic()));
    match scheme {
        Some((_, rest)) => {
            let (authority, local) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            (Some(authority), if local.is_empty() { "/" } else { local })
        }
        None => (None, target),
    }
}

/// A path as the most lenient service would read it: percent-encoding undone twice, backslashes as
/// slashes, parameters and dot segments gone.
fn normal(path: &str) -> String {
    let plain = decoded(&decoded(path)).replace('\\', "/");
    let plain = plain.split('#').next().unwrap_or_default();
    let mut segments: Vec<&str> = Vec::new();
    for segment in plain.split('/') {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    format!("/{}", segments.join("/"))
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = |offset: usize| {
            bytes
                .get(at + offset)
                .and_then(|digit| char::from(*digit).to_digit(16))
        };
        if *byte == b'%'
            && let (Some(high), Some(low)) = (hex(1), hex(2))
        {
            plain.push(u8::try_from(high << 4 | low).unwrap_or_default());
            at += 3;
        } else {
            plain.push(*byte);
            at += 1;
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::body::harmless;
    use super::super::watchlist::tests::plain;
    use super::*;

    fn head(text: &str) -> Request {
        match step(text.as_bytes(), plain()) {
            Step::Head { request, .. } => request,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn names_are_kept_and_values_are_not() {
        let request = head(
            "GET /a/b?x=secret&recursive=true&flag HTTP/1.1\r\nHost: h\r\n\
             X-aws-ec2-metadata-token: secret\r\nX-Forwarded-For: secret\r\n\r\n",
        );
        assert_eq!(request.path.as_deref(), Some("/a/b"));
        assert_eq!(request.query, ["x", "recursive", "flag"]);
        assert_eq!(
            request.headers,
            ["Host", "X-aws-ec2-metadata-token", "X-Forwarded-For"]
        );
        assert_eq!(request.tokens, header_flag("x-aws-ec2-metadata-token"));
        assert!(request.forwarded && request.recursive && !request.unparsable);
        assert!(!format!("{request:?}").contains("secret"));
    }

    #[test]
    fn a_secret_path_is_found_behind_every_disguise() {
        for target in [
            "/latest/user-data",
            "//latest//user-data",
            "/latest/./user-data",
            "/latest/x/../user-data",
            "/latest/%75ser-data",
            "/latest/%2575ser-data",
            "/latest\\user-data",
            "/latest/user-data;x=y",
            "/latest/meta-data/..%2fuser-data",
            "http://169.254.169.254/latest/user-data",
            "/x?%72ecursive=true",
            "/latest/user-data#x",
            "/latest/user-data%23x",
            "/latest/user-data#/../x",
            "/x?a=b;recursive=true",
            "/x?a=b%3Brecursive=true",
        ] {
            let request = head(&format!("GET {target} HTTP/1.1\r\n\r\n"));
            assert!(request.user_data || request.recursive, "{target}");
        }
        assert!(!head("GET /latest/meta-data/ HTTP/1.1\r\n\r\n").user_data);
    }

    #[test]
    fn every_kind_of_path_is_told_apart() {
        let of = |target: &str| {
            let one = head(&format!("GET {target} HTTP/1.1\r\n\r\n"));
            [one.credentials, one.user_data, one.recursive, one.legacy]
        };
        for (target, expected) in [
            (
                "/computeMetadata/v1/?recursive=true",
                [false, false, true, false],
            ),
            (
                "/computeMetadata/v1/?Recursive",
                [false, false, true, false],
            ),
            ("/computeMetadata/v1/?recursive=false", [false; 4]),
            (
                "/computeMetadata/v1beta1/instance/",
                [false, false, false, true],
            ),
            ("/0.1/meta-data/", [false, false, false, true]),
            ("/opc/v1/vnics/", [false, false, false, true]),
            ("/opc/%761/instance/", [false, true, false, true]),
            ("/opc/v2/identity/key.pem", [true, false, false, false]),
            (
                "/opc/v1/instance/metadata/user_data",
                [false, true, false, true],
            ),
            ("/opc/v1x/", [false; 4]),
        ] {
            assert_eq!(of(target), expected, "{target}");
        }
    }

    #[test]
    fn a_host_that_is_not_the_service_is_foreign() {
        let host = |text: &str| head(&format!("GET {text}\r\n\r\n")).foreign_host;
        assert!(!host("/ HTTP/1.1\r\nHost: 169.254.169.254"));
        assert!(!host("/ HTTP/1.0"));
        assert!(host("/ HTTP/1.1\r\nHost: rebound.example"));
        assert!(host(
            "/ HTTP/1.1\r\nHost: 169.254.169.254\r\nHost: rebound.example"
        ));
        assert!(host(
            "http://rebound.example/ HTTP/1.1\r\nHost: 169.254.169.254"
        ));
        assert!(!host("http://169.254.169.254:80/ HTTP/1.1"));
    }

    #[test]
    fn an_empty_token_is_none_and_azure_wants_true() {
        let tokens = |header: &str| head(&format!("GET / HTTP/1.1\r\n{header}\r\n\r\n")).tokens;
        assert_eq!(tokens("X-aws-ec2-metadata-token:  "), 0);
        assert_eq!(tokens("Metadata: false"), 0);
        assert_eq!(tokens("METADATA: True"), header_flag("metadata"));
    }

    #[test]
    fn to_ask_for_a_token_is_to_have_one() {
        let aws = header_flag("x-aws-ec2-metadata-token");
        assert_ne!(
            head("PUT /latest/api/token HTTP/1.1\r\n\r\n").tokens & aws,
            0
        );
        assert_eq!(head("GET /latest/api/token HTTP/1.1\r\n\r\n").tokens, 0);
    }

    #[test]
    fn what_services_read_differently_is_unparsable() {
        for text in [
            "GET / HTTP/1.1\nHost: x\n\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: 05\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 2\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length:\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 0 0\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: +0\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n",
            "GET / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
        ] {
            assert!(head(text).unparsable, "{text:?}");
        }
        assert!(!head("PUT / HTTP/1.1\r\nContent-Length: 0\r\n\r\n").unparsable);
        for target in ["/a#b", "/a\\b", "/a%zz", "/a%4", "/\u{e9}", "/?a=%"] {
            let text = format!("GET {target} HTTP/1.1\r\n\r\n");
            let unparsable = match step(text.as_bytes(), plain()) {
                Step::Head { request, .. } => request.unparsable,
                Step::Broken => salvage(text.as_bytes(), plain()).unparsable,
                Step::Partial => false,
            };
            assert!(unparsable, "{target}");
        }
        for target in ["/a%20b", "/a?b=%2F&c=[d]", "http://169.254.169.254/a"] {
            let text = format!("GET {target} HTTP/1.1\r\n\r\n");
            assert!(!head(&text).unparsable, "{target}");
        }
    }

    #[test]
    fn the_length_of_a_body_is_known_where_nobody_disputes_it() {
        let body = |text: &str| match step(text.as_bytes(), plain()) {
            Step::Head { request, body, .. } => (body, request.unparsable),
            other => panic!("{text:?}: {other:?}"),
        };
        for (method, expected) in [
            ("PUT", (5, false)),
            ("POST", (5, false)),
            ("GET", (0, true)),
        ] {
            let text = format!("{method} /machine HTTP/1.1\r\nContent-Length: 5\r\n\r\n");
            assert_eq!(body(&text), expected, "{method}");
            let twice = text.replace("\r\n\r\n", "\r\ncontent-length:5\r\n\r\n");
            assert_eq!(body(&twice), expected, "{method}");
            assert_eq!(body(&text.replace("/machine", "/a#b")), (0, true));
        }
        assert_eq!(
            body("PUT / HTTP/1.1\r\nContent-Length: 00\r\n\r\n"),
            (0, false)
        );
    }

    #[test]
    fn the_rest_of_a_request_tells_no_value() {
        let list = plain();
        for rest in [
            "ken: hidden\r\nHost: x\r\n\r\n",
            "GET hidden",
            "hidden hidden hidden\r\n",
        ] {
            assert_eq!(
                salvage(rest.as_bytes(), list),
                Request {
                    unparsable: true,
                    cut: true,
                    ..Request::default()
                }
            );
        }
        let oldest = salvage(b"GET /latest/user-data\r\n", list);
        assert!(oldest.user_data && oldest.path.as_deref() == Some("/latest/user-data"));
        assert_eq!(salvage(b"GET /hidden", list).path, None);
        let cut = salvage(
            b"GET /latest/user-data HTTP/1.1\r\nVia: hidden\r\nX: hid",
            list,
        );
        assert!(cut.forwarded && cut.user_data);
        assert_eq!(cut.headers, ["Via"]);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let list = plain();
            let _ = (step(&bytes, list), salvage(&bytes, list));
            assert!(harmless(&bytes).0 <= bytes.len());
            let mut text = b"GET /".to_vec();
            text.extend(&bytes);
            text.extend(b" HTTP/1.1\r\n\r\n");
            let _ = (step(&text, list), salvage(&text, list));
        }
    }
}
