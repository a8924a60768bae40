// SPDX-License-Identifier: BSD-2-Clause

//! The automaton that the socket filter runs over a request's bytes.
//!
//! It knows one form of request head, the plain one that clients send, and raises a flag where a
//! header or path of interest has just been read. Whatever is not of that form (a bare line feed,
//! a folded header, a tab where a space is due, an encoded or dotted path, a body, another
//! protocol) leads to the dead state, and the packet goes up to user space, which has a real
//! parser. So the automaton may be strict: what it refuses is not lost, only not cheap.

mod machine;

use std::sync::LazyLock;

use anyhow::{Result, ensure};

use self::machine::Machine;
use super::hosts::Hosts;
use super::paths::{Class, OWNED, TOKENS};
use super::rules::{self, Rules};
use crate::metadata;

/// `SCAN_ENTRIES` of `imds_watch.h`.
pub const ENTRIES: usize = 1 << STATE_BITS;
/// `SCAN_STATE_BITS` of `imds_watch.h`: the lower bits of an entry; the flags are above them.
const STATE_BITS: u32 = 17;

/// A well-formed head ends here; the highest bit of an entry, as the program tests the sign.
pub const END: u16 = 1 << 14;
/// Something that is to be told about whatever else the request has: a header of a proxy, a name that
/// is not the service's, a path that hands out secrets, what a rule names.
pub const SUSPICIOUS: u16 = 1 << 13;
/// A body is announced, or another protocol: services disagree about where the next request begins.
pub const BODY: u16 = 1 << 12;
/// A line ends here; gone in the finished table, whose flags have 15 bits.
const LINE: u32 = 1 << 16;
/// The line is a Host header; gone in the finished table.
const HOST: u32 = 1 << 17;
/// Its value is the service's; gone in the finished table.
const SERVICE: u32 = 1 << 18;
/// The lowest flags are one per header of [`headers`]; as many above say that the path is one
/// where that header does not count.
const HEADER_FLAGS: usize = 6;
/// The flags of [`headers`].
pub const SCANNED: u16 = (1 << HEADER_FLAGS) - 1;

/// Headers that the automaton has no flag for: where a service wants one of these, every request goes
/// up. They are few there: Azure's WireServer is for the machine's agent alone.
const UNSCANNED: &[&str] = &[
    "x-ms-containerid",
    "x-ms-version",
    "x-ms-vmagentlog-containerid",
];

/// The headers that the automaton knows which make a request one that its cloud wants to see, in lower
/// case; the place of each is the number of its flag.
pub fn headers() -> Vec<&'static str> {
    let mut headers = metadata::headers();
    headers.retain(|header| !UNSCANNED.contains(header));
    headers
}

/// The flag of `header`: one of [`SCANNED`] for one of [`headers`], one above them for those that user
/// space alone looks at, and 0 for any other.
pub fn header_flag(header: &str) -> u16 {
    // Kept: it is asked for with each header that is read.
    static FLAGS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
        headers()
            .into_iter()
            .chain(UNSCANNED.iter().copied())
            .collect()
    });
    FLAGS
        .iter()
        .position(|known| *known == header)
        .map_or(0, |bit| 1 << bit)
}

/// The flags of these headers.
pub fn header_flags(headers: &[&str]) -> u16 {
    headers
        .iter()
        .fold(0, |all, header| all | header_flag(header))
}

/// Whether a header of this name, in lower case, says that a proxy passed the request on.
pub fn is_forwarding_header(name: &str) -> bool {
    FORWARDING.contains(&name) || name.starts_with(FORWARDING_PREFIX)
}

/// Headers that proxies add.
const FORWARDING: &[&str] = &[
    "forwarded",
    "forwarded-for",
    "via",
    "x-forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "client-ip",
    "true-client-ip",
    // Cloudflare, Fastly, Envoy; RFC 8586, which content delivery networks send.
    "cf-connecting-ip",
    "fastly-client-ip",
    "x-envoy-external-address",
    "cdn-loop",
];
const FORWARDING_PREFIX: &str = "x-forwarded-";

const METHOD: &str = "(GET|HEAD|PUT|POST|DELETE|OPTIONS|PATCH)";
/// Segments without encoding, parameters or dots alone: `//`, `/./` and `/../` are left to the
/// real parser, and so is everything that decoders disagree about.
const PATH: &str = "(/|(/([A-Za-z0-9_~!$&'()*+,:=@-]|\\.[A-Za-z0-9_~!$&'()*+,:=@-]\
                    |\\.\\.[A-Za-z0-9._~!$&'()*+,:=@-])[A-Za-z0-9._~!$&'()*+,:=@-]*)+/?)";
const QUERY: &str = "\\?[A-Za-z0-9._~!$&'()*+,:=@/?-]*";
const NAME: &str = "[!#$%&'*+.^_`|~0-9A-Za-z-]+";
/// Field values: RFC 9110, 5.5.
const VALUE: &str = "[\\t\\x20-\\x7e\\x80-\\xff]*";
/// The first byte of a value that is not empty.
const NOT_EMPTY: &str = "[\\t ]*[\\x21-\\x7e\\x80-\\xff]";

/// Expressions, each with the flags that are raised at the byte that completes it.
type Patterns = Vec<(String, u32)>;

/// A request line, compared from its first byte.
///
/// An absolute target (RFC 9112, 3.2.2) is not of the plain form: only proxies send it.
fn line_patterns(rules: &Rules) -> Patterns {
    let mut patterns = vec![(
        format!("{METHOD} {PATH}({QUERY})? HTTP/1\\.[01]\\r\\n"),
        LINE,
    )];
    for (path, header) in TOKENS {
        let flag = header_flag(header).into();
        patterns.push((format!("PUT {path}[? ]"), flag));
    }
    for (name, wanted) in OWNED {
        let first = match *name {
            "0" => "[0-9]".to_owned(),
            name => format!("(?i:{name})[/? ]"),
        };
        let others = SCANNED & !header_flags(wanted);
        let flags = u32::from(others) << HEADER_FLAGS;
        patterns.push((format!("{METHOD} /{first}"), flags));
    }
    for class in Class::patterns() {
        patterns.push((format!("{METHOD} {class}"), SUSPICIOUS.into()));
    }
    for path in rules.list.iter().flat_map(|rule| &rule.paths) {
        let path = rules::expression(path);
        patterns.push((format!("{METHOD} {path}"), SUSPICIOUS.into()));
    }
    patterns
}

/// A header line or the empty line, compared from its first byte.
fn header_patterns(hosts: &Hosts, rules: &Rules) -> Patterns {
    let mut patterns = vec![
        ("\\r\\n".to_owned(), END.into()),
        (format!("{NAME}:{VALUE}\\r\\n"), LINE),
        (format!("(?i:host):{VALUE}\\r\\n"), HOST),
        (
            format!("(?i:host):[\\t ]*({})[\\t ]*\\r\\n", hosts.expression()),
            SERVICE,
        ),
    ];
    for header in headers() {
        // Azure refuses any value but this one.
        let value = if header == "metadata" {
            "[\\t ]*(?i:true)[\\t ]*\\r"
        } else {
            NOT_EMPTY
        };
        let flag = header_flag(header).into();
        patterns.push((format!("(?i:{header}):{value}"), flag));
    }
    let forwarding = FORWARDING.join("|");
    patterns.push((
        format!("(?i:{forwarding}|{FORWARDING_PREFIX}[!#$%&'*+.^_`|~0-9a-z-]*):"),
        SUSPICIOUS.into(),
    ));
    for name in rules.list.iter().flat_map(|rule| &rule.headers) {
        let name: String = name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_string()
                } else {
                    format!("\\{c}")
                }
            })
            .collect();
        patterns.push((format!("(?i:{name}):"), SUSPICIOUS.into()));
    }
    patterns.push((
        "(?i:transfer-encoding|upgrade|expect):".to_owned(),
        BODY.into(),
    ));
    // Any value but zeros, the empty one included.
    for value in ["[^0\\t ]", "0+[^0\\t \\r]", "0+[\\t ]+[^\\t \\r]"] {
        patterns.push((format!("(?i:content-length):[\\t ]*{value}"), BODY.into()));
    }
    patterns
}

/// What the program reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanner {
    /// For each byte its class.
    pub classes: [u8; 256],
    /// At `state + class` the next state in the low 17 bits and the flags that it raises in the
    /// high ones. A state is the place of its row; the dead state is 0.
    pub table: Vec<u32>,
    /// The state before a request's first byte.
    pub start: u32,
}

impl Scanner {
    /// The automaton of this module's patterns, for a service of these names, and of the rules.
    ///
    /// # Errors
    /// If a pattern is wrong, or the table has no room for all of them: without rules neither is so.
    pub fn new(hosts: &Hosts, rules: &Rules) -> Result<Self> {
        ensure!(headers().len() <= HEADER_FLAGS, "more headers than flags");
        let line = Machine::of(&line_patterns(rules))?;
        let header = Machine::of(&header_patterns(hosts, rules))?;
        Machine::glued(line, header).pruned().minimized().table()
    }

    /// What the program does with the bytes of one packet's payload: whether they are complete
    /// requests and nothing else, each with one of the `required` flags (if any of [`SCANNED`] is)
    /// that counts on its path, and none of the others.
    pub fn clean(&self, payload: &[u8], required: u16) -> bool {
        let required = required & SCANNED;
        let (mut entry, mut flags, mut clean) = (self.start, 0, true);
        for byte in payload {
            let class = u32::from(self.classes[usize::from(*byte)]);
            entry = self.table[((entry & ((1 << STATE_BITS) - 1)) + class) as usize];
            flags |= u16::try_from(entry >> STATE_BITS).unwrap_or(0);
            if flags & END != 0 {
                clean &= flags & (SUSPICIOUS | BODY) == 0;
                clean &= required == 0 || flags & !(flags >> HEADER_FLAGS) & required != 0;
                flags = 0;
            }
        }
        clean && entry >> STATE_BITS & u32::from(END) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "X-aws-ec2-metadata-token: abc\r\n";

    fn scanner() -> Scanner {
        let endpoints = vec!["169.254.169.254:80".parse().unwrap()];
        Scanner::new(&Hosts::new(&[], endpoints), &Rules::default()).unwrap()
    }

    fn clean(text: &str) -> bool {
        let required = header_flag("x-aws-ec2-metadata-token");
        // Compiled once: it takes a while in a debug build.
        static SCANNER: std::sync::OnceLock<Scanner> = std::sync::OnceLock::new();
        SCANNER
            .get_or_init(scanner)
            .clean(text.as_bytes(), required)
    }

    fn get(target: &str) -> String {
        format!("GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n{TOKEN}\r\n")
    }

    #[test]
    fn what_clients_send_with_a_token_is_clean() {
        for text in [
            get("/"),
            get("/latest/meta-data/"),
            get("/latest/meta-data/instance-id"),
            get("/instance?api-version=2021-02-01&format=json"),
            get("/.hidden/a..b/..c"),
            format!(
                "GET /a HTTP/1.0\r\nUser-Agent: a b (c; d) \t\u{fc}\r\nX:\r\n{}\r\n",
                TOKEN.to_uppercase()
            ),
            "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 1\r\n\r\n"
                .to_owned(),
            "PUT /latest/api/token HTTP/1.1\r\nContent-Length: 0\r\n\r\n".to_owned(),
            get("/a").repeat(3),
        ] {
            assert!(clean(&text), "{text:?}");
        }
    }

    #[test]
    fn a_missing_or_empty_token_is_not_clean() {
        for text in [
            get("/").replace(TOKEN, ""),
            get("/").replace("abc", " "),
            get("/").replace("abc", ""),
            get("/").replace(TOKEN, "X: X-aws-ec2-metadata-token: abc\r\n"),
            get("/").replace("token:", "token-ttl-seconds:"),
            get("/").replace("token:", "tokens:"),
            "GET /latest/api/token HTTP/1.1\r\n\r\n".to_owned(),
            "PUT /latest/api/tokens HTTP/1.1\r\n\r\n".to_owned(),
            format!("{}{}", get("/"), get("/").replace(TOKEN, "")),
            format!("{}{}", get("/").replace(TOKEN, ""), get("/")),
        ] {
            assert!(!clean(&text), "{text:?}");
        }
    }

    #[test]
    fn a_header_counts_only_on_a_path_of_its_service() {
        static SCANNER: std::sync::OnceLock<Scanner> = std::sync::OnceLock::new();
        let scanner = SCANNER.get_or_init(scanner);
        for (target, wanted) in [
            ("/latest/meta-data/", "X-aws-ec2-metadata-token"),
            ("/2021-07-15/meta-data/", "X-aws-ec2-metadata-token"),
            ("/computeMetadata/v1/", "Metadata-Flavor"),
            ("/metadata?x", "Metadata"),
            ("/opc/v2/vnics/", "Authorization"),
            ("/v1/instance", "Metadata-Token"),
        ] {
            for header in headers() {
                let text = format!("GET {target} HTTP/1.1\r\n{header}: true\r\n\r\n");
                let clean = scanner.clean(text.as_bytes(), SCANNED);
                let ec2 = wanted.starts_with("X-aws") && header.starts_with("x-aliyun");
                let expected = header.eq_ignore_ascii_case(wanted) || ec2;
                assert_eq!(clean, expected, "{text}");
                let text = text.replace(target, "/x");
                assert!(scanner.clean(text.as_bytes(), SCANNED));
            }
        }
    }

    #[test]
    fn proxies_secrets_and_bodies_are_not_clean() {
        for header in [
            "X-Forwarded-For",
            "x-forwarded-host",
            "FORWARDED",
            "Via",
            "X-Real-IP",
            "Transfer-Encoding",
            "Upgrade",
        ] {
            let text = get("/").replace("Host:", &format!("{header}: x\r\nHost:"));
            assert!(!clean(&text), "{text:?}");
        }
        for target in [
            "/latest/user-data",
            "/LATEST/user-Data?x",
            "/latest/user-data/",
            "/latest/meta-data/iam/security-credentials/",
            "/a?b=c&recursive=true",
            "/a?recursive",
        ] {
            assert!(!clean(&get(target)), "{target}");
        }
        assert!(!clean(
            &get("/").replace("Host:", "Content-Length: 5\r\nHost:")
        ));
        for value in ["  010", "", " ", "0 0", "+0", "0,0", "0x"] {
            let text = get("/").replace("Host:", &format!("Content-Length:{value}\r\nHost:"));
            assert!(!clean(&text), "{text:?}");
        }
    }

    #[test]
    fn every_other_form_is_not_clean() {
        for target in [
            "/a//b",
            "/a/./b",
            "/a/../b",
            "/a/..",
            "/%61",
            "/a\\b",
            "/a;b",
            "*",
            "a",
            "",
            "/a?%62",
            "/a#b",
            "ftp://x/",
            "http://169.254.169.254/a",
        ] {
            assert!(!clean(&get(target)), "{target}");
        }
        let text = get("/");
        for (from, to) in [
            ("\r\n", "\n"),
            ("GET /", "get /"),
            ("GET ", "GET\t"),
            ("GET ", "GET  "),
            ("Host:", "Host :"),
            ("Host:", " Host:"),
            ("HTTP/1.1", "HTTP/2.0"),
            ("HTTP/1.1", "http/1.1"),
            ("\r\n\r\n", "\r\n\r\nbody"),
            ("\r\n\r\n", "\r\n"),
            ("abc", "a\0c"),
        ] {
            assert!(!clean(&text.replace(from, to)), "{from:?} {to:?}");
        }
        assert!(!clean("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
        assert!(!clean("\x16\x03\x01"));
        assert!(!clean(""));
    }

    #[test]
    fn no_part_of_a_request_is_clean() {
        let text = get("/latest/meta-data/");
        for at in 1..text.len() {
            assert!(!clean(&text[..at]) && !clean(&text[at..]), "{at}");
        }
    }
}
