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
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

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
    /// Clouds, or endpoints as they were given; empty for all.
    pub endpoints: Vec<String>,
}

impl Rule {
    /// Whether the rule is for the endpoint of this name (clouds that share it, with commas).
    pub fn is_for(&self, endpoint: &str) -> bool {
        self.endpoints.is_empty()
            || endpoint
                .split(',')
                .any(|one| self.endpoints.iter().any(|named| named == one))
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
                let text = endpoint.get_ref();
                let fits = metadata::cloud(text).is_some()
                    || text.parse::<crate::endpoint::Endpoint>().is_ok();
                let what = "cloud, nor ADDR[/PREFIX][:PORT[-PORT]]";
                rule.endpoints.push(check(endpoint, what, fits)?);
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
        assert!(keys.is_for("aws,azure") && keys.is_for("10.0.0.1:80") && !keys.is_for("azure"));
        assert!(rules.list[1].is_for("azure"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (from, to, line, named) in [
            ("\"keys\"", "\"Keys!\"", 5, "\"Keys!\" is no name"),
            ("\"/latest", "\"latest", 6, "\"latest/meta-data"),
            ("\"X-Debug\"", "\"X Debug\"", 7, "\"X Debug\" is no header"),
            ("\"GET\"", "\"get\"", 8, "\"get\" is no method"),
            ("\"aws\"", "\"awz\"", 9, "\"awz\" is no cloud"),
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
