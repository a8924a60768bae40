// SPDX-License-Identifier: BSD-2-Clause

//! A user's own rules, from a TOML file, checked as they are loaded:
//!
//! ```toml
//! # Names of the service besides those that are known.
//! hosts = ["imds.example.internal"]
//!
//! [[rule]]
//! name = "keys"
//! paths = ["/latest/meta-data/public-keys/**"]
//! headers = ["X-Debug"]
//! methods = ["GET"]
//! endpoints = ["aws"]
//! ```
//!
//! A request is found by a rule if each list that the rule has holds something of it: a path, a
//! header, the method, the endpoint.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use crate::endpoint::{Endpoint, Protocol};
use crate::failure::Failure;
use crate::metadata;

/// More bytes than a file of rules has.
const LONGEST_FILE: u64 = 1 << 20;
/// Rules at most: the scanner in the kernel has room for about as many paths.
const MOST_RULES: usize = 256;

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// More names of the service, in lower case.
    pub hosts: Vec<String>,
    /// The rules, in the file's order.
    pub list: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// What events call it.
    pub name: String,
    /// Patterns of paths; `*` stands for anything within a segment, `**` for anything.
    pub paths: Vec<String>,
    /// Names of headers, in lower case.
    pub headers: Vec<String>,
    /// Methods.
    pub methods: Vec<String>,
    /// Where requests go that it is for; empty for all.
    pub endpoints: Vec<Place>,
    /// The file's line where its name is, counted from 1.
    pub line: usize,
}

/// Where requests go that a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A cloud's service, where that is watched under the cloud's name.
    Cloud(String),
    /// These addresses and ports.
    Endpoint(Endpoint),
}

impl Place {
    /// What `text` says; `None` if it is neither, or is not of TCP.
    fn parse(text: &str) -> Option<Self> {
        if metadata::cloud(text).is_some() {
            return Some(Self::Cloud(text.to_owned()));
        }
        let endpoint: Endpoint = text.parse().ok()?;
        (endpoint.protocol != Some(Protocol::Udp)).then_some(Self::Endpoint(endpoint))
    }

    /// Whether a request to `address`, and port where it is known, is there, which `watched` is for.
    fn has(&self, watched: &Endpoint, address: IpAddr, port: Option<u16>) -> bool {
        match self {
            Self::Cloud(cloud) => watched.name.split(',').any(|name| name == cloud),
            Self::Endpoint(own) => {
                own.contains(address) && port.is_none_or(|port| own.ports.contains(&port))
            }
        }
    }

    /// Whether any request to what is `watched` is there.
    fn meets(&self, watched: &Endpoint) -> bool {
        match self {
            Self::Cloud(_) => self.has(watched, watched.address, None),
            // Of two networks with a common address one is within the other.
            Self::Endpoint(own) => {
                (own.contains(watched.address) || watched.contains(own.address))
                    && own.ports.start() <= watched.ports.end()
                    && watched.ports.start() <= own.ports.end()
            }
        }
    }
}

impl Rule {
    /// Whether the rule is for a request to `address`, and port where it is known, for which this is
    /// `watched`.
    pub fn is_for(&self, watched: &Endpoint, address: IpAddr, port: Option<u16>) -> bool {
        let mut places = self.endpoints.iter();
        self.endpoints.is_empty() || places.any(|one| one.has(watched, address, port))
    }
}

/// The regular expression of a path pattern, compared from the path's start without regard to case.
pub fn expression(pattern: &str) -> String {
    let mut expression = String::from("(?i:");
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("**") {
            expression.push_str("[^? ]*");
            rest = after;
            continue;
        }
        rest = &rest[first.len_utf8()..];
        match first {
            '*' => expression.push_str("[^/? ]*"),
            plain if plain.is_ascii_alphanumeric() || "/_-".contains(plain) => {
                expression.push(plain);
            }
            special => {
                expression.push('\\');
                expression.push(special);
            }
        }
    }
    expression.push_str(")[? ]");
    expression
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    hosts: Vec<Spanned<String>>,
    #[serde(default)]
    rule: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<String>,
    #[serde(default)]
    paths: Vec<Spanned<String>>,
    #[serde(default)]
    headers: Vec<Spanned<String>>,
    #[serde(default)]
    methods: Vec<Spanned<String>>,
    #[serde(default)]
    endpoints: Vec<Spanned<String>>,
}

impl Rules {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Failure::Usage`] with the file, the line, the text that is wrong and what was expected.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let wrong = |why: &dyn std::fmt::Display| Failure::usage(format!("rules {shown}: {why}"));
        let size = fs::metadata(path).map_err(|err| wrong(&err))?.len();
        if size > LONGEST_FILE {
            return Err(wrong(&format!("longer than {LONGEST_FILE} bytes")));
        }
        let text = fs::read_to_string(path).map_err(|err| wrong(&err))?;
        Self::parse(&text)
            .map_err(|(line, why)| Failure::usage(format!("rules {shown}:{line}: {why}")))
    }

    /// The rules that no request can be found by, as they are for none of what is `watched`.
    pub fn unmet(&self, watched: &[Endpoint]) -> Vec<&Rule> {
        let meets = |place: &Place| watched.iter().any(|one| place.meets(one));
        let rules = self.list.iter();
        rules
            .filter(|rule| !rule.endpoints.is_empty() && !rule.endpoints.iter().any(meets))
            .collect()
    }

    /// The rules in `text`; else the line, counted from 1, and what is wrong there.
    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let line_of = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let file: File = toml::from_str(text).map_err(|err| {
            let line = err.span().map_or(1, |span| line_of(span.start));
            (line, err.message().to_owned())
        })?;
        let check = |one: &Spanned<String>, what: &str, fits: bool| {
            if fits {
                return Ok(one.get_ref().clone());
            }
            let line = line_of(one.span().start);
            Err((line, format!("{:?} is no {what}", one.get_ref())))
        };
        let mut rules = Self::default();
        for host in &file.hosts {
            let fits = is_host(host.get_ref());
            rules.hosts.push(
                check(host, "host name (letters, digits, - and .)", fits)?.to_ascii_lowercase(),
            );
        }
        for entry in &file.rule {
            let name = entry.name.get_ref();
            let fits = (1..=64).contains(&name.len())
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            let name = check(
                &entry.name,
                "name of a rule: 1 to 64 of a-z, 0-9 and -",
                fits,
            )?;
            let line = line_of(entry.name.span().start);
            if rules.list.iter().any(|rule| rule.name == name) {
                return Err((line, format!("there are two rules {name:?}")));
            }
            if entry.paths.is_empty() && entry.headers.is_empty() {
                return Err((
                    line,
                    format!("rule {name:?} has neither paths nor headers: it would find nothing"),
                ));
            }
            if rules.list.len() >= MOST_RULES {
                return Err((line, format!("more than {MOST_RULES} rules")));
            }
            let mut rule = Rule {
                name,
                line,
                ..Rule::default()
            };
            for path in &entry.paths {
                let what = "path pattern: it starts with / or *, and has no space, ? or control \
                            character";
                rule.paths
                    .push(check(path, what, is_pattern(path.get_ref()))?);
            }
            for header in &entry.headers {
                let fits = is_token(header.get_ref());
                rule.headers
                    .push(check(header, "header name", fits)?.to_ascii_lowercase());
            }
            for method in &entry.methods {
                let text = method.get_ref();
                let fits = is_token(text) && text.to_ascii_uppercase() == *text;
                rule.methods
                    .push(check(method, "method such as GET", fits)?);
            }
            for endpoint in &entry.endpoints {
                let place = Place::parse(endpoint.get_ref());
                let what = "cloud, nor ADDR[/PREFIX][:PORT[-PORT]][/tcp]";
                check(endpoint, what, place.is_some())?;
                rule.endpoints.extend(place);
            }
            rules.list.push(rule);
        }
        Ok(rules)
    }
}

fn is_host(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

fn is_pattern(text: &str) -> bool {
    (1..=512).contains(&text.len())
        && text.starts_with(['/', '*'])
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'?')
}

/// RFC 9110, 5.6.2.
fn is_token(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::super::paths::Targets;
    use super::*;

    const WHOLE: &str = r#"
hosts = ["IMDS.example"]

[[rule]]
name = "keys"
paths = ["/latest/meta-data/public-keys/**"]
headers = ["X-Debug"]
methods = ["GET"]
endpoints = ["aws", "10.0.0.1:80"]

[[rule]]
name = "debug"
headers = ["x-debug"]
"#;

    #[test]
    fn a_file_is_read_whole() {
        let rules = Rules::parse(WHOLE).unwrap();
        assert_eq!(rules.hosts, ["imds.example"]);
        assert_eq!(rules.list.len(), 2);
        let keys = &rules.list[0];
        assert_eq!(keys.headers, ["x-debug"]);
        assert_eq!((keys.line, rules.list[1].line), (5, 12));
    }

    fn endpoint(text: &str, name: &str) -> Endpoint {
        Endpoint {
            name: name.to_owned(),
            ..text.parse().unwrap()
        }
    }

    #[test]
    fn a_rule_is_for_clouds_and_endpoints_however_they_are_written() {
        let shared = endpoint("169.254.169.254:80/tcp", "aws,azure");
        let network = endpoint("10.213.0.0/24:8080/tcp", "10.213.0.0/24:8080");
        let imds: IpAddr = "169.254.169.254".parse().unwrap();
        let own = |last: u8| IpAddr::from([10, 213, 0, last]);
        for (place, watched, address, port, expected) in [
            ("aws", &shared, imds, 80, true),
            ("azure", &shared, imds, 80, true),
            ("gcp", &shared, imds, 80, false),
            ("aws", &network, own(1), 8080, false),
            ("169.254.169.254", &shared, imds, 80, true),
            ("169.254.169.254:80/tcp", &shared, imds, 80, true),
            ("169.254.169.254:81", &shared, imds, 80, false),
            ("10.213.0.0/24:8080", &network, own(1), 8080, true),
            ("10.213.0.1:8080/tcp", &network, own(1), 8080, true),
            ("10.213.0.1:8080", &network, own(1), 8080, true),
            ("10.213.0.1:8080", &network, own(2), 8080, false),
            ("10.0.0.0/8:8000-9000", &network, own(2), 8080, true),
        ] {
            let rule = Rule {
                endpoints: vec![Place::parse(place).unwrap()],
                ..Rule::default()
            };
            let is_for = rule.is_for(watched, address, Some(port));
            assert_eq!(is_for, expected, "{place} {address}");
            let all = Rules {
                list: vec![rule],
                ..Rules::default()
            };
            let unmet = !all.unmet(std::slice::from_ref(watched)).is_empty();
            // One address of a network is met by others' requests.
            assert_eq!(unmet, !expected && address != own(2), "{place}");
        }
        assert!(Rule::default().is_for(&shared, imds, None));
        assert!(Rules::default().unmet(&[]).is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (from, to, line, named) in [
            ("\"keys\"", "\"Keys!\"", 5, "\"Keys!\" is no name"),
            ("\"/latest", "\"latest", 6, "\"latest/meta-data"),
            ("\"X-Debug\"", "\"X Debug\"", 7, "\"X Debug\" is no header"),
            ("\"GET\"", "\"get\"", 8, "\"get\" is no method"),
            ("\"aws\"", "\"awz\"", 9, "\"awz\" is no cloud"),
            ("0.1:80\"", "0.1:80/udp\"", 9, "0.1:80/udp\" is no cloud"),
            ("\"debug\"", "\"keys\"", 12, "two rules \"keys\""),
            (
                "headers = [\"x-debug\"]",
                "",
                12,
                "neither paths nor headers",
            ),
            ("methods", "method", 8, "unknown field `method`"),
            ("\"IMDS.example\"", "\"a/b\"", 2, "\"a/b\" is no host"),
            ("[[rule]]\nname = \"debug\"", "[[rule]\n", 11, ""),
        ] {
            let text = WHOLE.replacen(from, to, 1);
            let (at, why) = Rules::parse(&text).unwrap_err();
            assert_eq!(at, line, "{to}: {why}");
            assert!(why.contains(named), "{to}: {why}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let err = Rules::read(Path::new("/no/such/file")).unwrap_err();
        assert!(err.to_string().contains("/no/such/file"), "{err}");
    }

    #[test]
    fn stars_stand_for_a_part_of_a_segment_or_for_anything() {
        for (pattern, path, expected) in [
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/", true),
            ("/a/*", "/a/b/c", false),
            ("/a/**", "/a/b/c", true),
            ("**/c", "/a/b/c", true),
            ("/A/b.c", "/a/B.C", true),
            ("/a/b.c", "/a/bxc", false),
            ("/a", "/a?x=y", true),
            ("/a", "/ab", false),
            ("/a(b|c)+$", "/a(b|c)+$", true),
        ] {
            let targets = Targets::new(&[expression(pattern)]).unwrap();
            assert_eq!(
                targets.matches(path).len(),
                usize::from(expected),
                "{pattern} {path}"
            );
        }
    }
}
