// SPDX-License-Identifier: BSD-2-Clause

//! A policy in a TOML file. Pure: text in, a [`Policy`] or an error with its place out.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::policy::{Deny, Limit, Mode, Policy, Rule, Subject, interface_name};
use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::metadata;

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    deny: Deny,
    limit: Option<Spanned<String>>,
    #[serde(default)]
    report_allowed: bool,
    #[serde(default)]
    packets_only: bool,
    #[serde(default)]
    interfaces: Vec<Spanned<String>>,
    #[serde(default, rename = "rule")]
    rules: Vec<Spanned<FileRule>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileRule {
    #[serde(default)]
    clouds: Vec<Spanned<String>>,
    #[serde(default)]
    endpoints: Vec<Spanned<String>>,
    #[serde(default)]
    users: Vec<Spanned<Id>>,
    #[serde(default)]
    groups: Vec<Spanned<Id>>,
    #[serde(default)]
    cgroups: Vec<Spanned<String>>,
    #[serde(default)]
    mode: Mode,
}

/// A user or group: a name, or a number with or without quotes.
#[derive(Debug)]
struct Id(String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name in quotes or a number of 0 to 4294967294")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Id, E> {
                Ok(Id(name.to_owned()))
            }

            // Numbers that are no id are found out, with the others, where names are looked up.
            fn visit_i64<E: Error>(self, number: i64) -> Result<Id, E> {
                Ok(Id(number.to_string()))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Id, E> {
                Ok(Id(number.to_string()))
            }

            fn visit_i128<E: Error>(self, number: i128) -> Result<Id, E> {
                Ok(Id(number.to_string()))
            }

            fn visit_u128<E: Error>(self, number: u128) -> Result<Id, E> {
                Ok(Id(number.to_string()))
            }
        }

        deserializer.deserialize_any(Text)
    }
}

/// Finds places in a text.
struct Places<'t> {
    file: &'t str,
    text: &'t str,
}

impl Places<'_> {
    /// `FILE:LINE:COLUMN`, both from 1, the column in characters.
    fn at(&self, span: &Range<usize>) -> String {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before[start..].chars().count() + 1;
        format!("{}:{line}:{column}", self.file)
    }

    fn wrong(&self, span: &Range<usize>, what: impl std::fmt::Display) -> Failure {
        Failure::usage(format!("{}: {what}", self.at(span)))
    }

    fn parse<T: FromStr<Err = Failure>>(&self, text: &Spanned<String>) -> Result<T, Failure> {
        text.get_ref()
            .parse()
            .map_err(|err| self.wrong(&text.span(), err))
    }

    fn subject(&self, text: String, span: &Range<usize>) -> Subject {
        Subject {
            text,
            place: Some(self.at(span)),
        }
    }

    fn rule(&self, rule: &Spanned<FileRule>) -> Result<Rule, Failure> {
        let written = rule.get_ref();
        let mut endpoints = Vec::new();
        for cloud in &written.clouds {
            let found = metadata::endpoints(std::slice::from_ref(cloud.get_ref()));
            endpoints.extend(found.map_err(|err| self.wrong(&cloud.span(), err))?);
        }
        for endpoint in &written.endpoints {
            endpoints.push(self.parse::<Endpoint>(endpoint)?);
        }
        if endpoints.is_empty() {
            return Err(self.wrong(
                &rule.span(),
                "a rule without clouds or endpoints guards nothing; expected clouds = [\"aws\"] or \
                 endpoints = [\"ADDR[/PREFIX][:PORT[-PORT]][/tcp|udp]\"]",
            ));
        }
        let ids = |ids: &[Spanned<Id>]| -> Vec<_> {
            let subject = |id: &Spanned<Id>| self.subject(id.get_ref().0.clone(), &id.span());
            ids.iter().map(subject).collect()
        };
        let cgroups = written.cgroups.iter();
        Ok(Rule {
            endpoints,
            users: ids(&written.users),
            groups: ids(&written.groups),
            cgroups: cgroups
                .map(|cgroup| self.subject(cgroup.get_ref().clone(), &cgroup.span()))
                .collect(),
            mode: written.mode,
            place: Some(self.at(&rule.span())),
        })
    }
}

/// The policy in the bytes of a file, as [`parse`] reads it.
///
/// # Errors
/// [`Failure::Usage`], as of [`parse`].
pub fn parse_bytes(file: &str, bytes: &[u8]) -> Result<Policy, Failure> {
    let text = std::str::from_utf8(bytes).map_err(|err| {
        let end = err.valid_up_to();
        let text = String::from_utf8_lossy(&bytes[..end]);
        let places = Places { file, text: &text };
        let byte = bytes.get(end).copied().unwrap_or_default();
        places.wrong(
            &(end..end),
            format!("the byte 0x{byte:02x} is no text; expected UTF-8"),
        )
    })?;
    parse(file, text)
}

/// What the parser says, in the words of TOML.
fn in_plain_words(message: &str) -> String {
    message
        .replace(
            "invalid type: map, expected a sequence",
            "a table; expected [[rule]], in double brackets, for each rule",
        )
        .replace("expected a sequence", "expected a list in brackets")
}

/// The policy in `text`; `file` is what messages call it.
///
/// # Errors
/// [`Failure::Usage`] that names file, line and column, what is there and what was expected.
pub fn parse(file: &str, text: &str) -> Result<Policy, Failure> {
    let places = Places { file, text };
    let written: File = toml::from_str(text).map_err(|err| {
        let span = err.span().unwrap_or_default();
        places.wrong(&span, in_plain_words(err.message()))
    })?;
    if written.rules.is_empty() {
        return Err(Failure::usage(format!(
            "{file}: no [[rule]]: a policy without one guards nothing"
        )));
    }
    let rules = written.rules.iter().map(|rule| places.rule(rule));
    let interfaces = written
        .interfaces
        .iter()
        .map(|name| interface_name(name.get_ref()).map_err(|err| places.wrong(&name.span(), err)));
    Ok(Policy {
        rules: rules.collect::<Result<_, _>>()?,
        mode: written.mode,
        deny: written.deny,
        report_allowed: written.report_allowed,
        limit: match &written.limit {
            Some(limit) => Some(places.parse::<Limit>(limit)?),
            None => None,
        },
        packets_only: written.packets_only,
        interfaces: interfaces.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
mode = "enforce"
deny = "drop"
limit = "500/s"
report-allowed = true
packets-only = true
interfaces = ["eth0"]

[[rule]]
clouds = ["aws"]
endpoints = ["10.0.0.1:8080/tcp"]
users = ["root", 1000, "1001"]
groups = ["adm", 7]
cgroups = ["amazon-ssm-agent.service", "/kubepods.slice"]

[[rule]]
endpoints = ["10.0.0.2"]
mode = "audit"
"#;

    #[test]
    fn everything_that_can_be_written_is_read() {
        let policy = parse("guard.toml", FULL).unwrap();
        assert_eq!((policy.mode, policy.deny), (Mode::Enforce, Deny::Drop));
        assert_eq!(policy.limit.map(|limit| limit.0.get()), Some(500));
        assert!(policy.report_allowed && policy.packets_only);
        assert_eq!(policy.interfaces, ["eth0"]);
        let [first, second] = policy.rules.as_slice() else {
            panic!("{:?}", policy.rules);
        };
        assert_eq!(first.endpoints.len(), 3);
        let texts = |subjects: &[Subject]| -> Vec<_> {
            subjects
                .iter()
                .map(|subject| subject.text.clone())
                .collect()
        };
        assert_eq!(texts(&first.users), ["root", "1000", "1001"]);
        assert_eq!(texts(&first.groups), ["adm", "7"]);
        assert_eq!(
            texts(&first.cgroups),
            ["amazon-ssm-agent.service", "/kubepods.slice"]
        );
        assert_eq!(first.users[1].place.as_deref(), Some("guard.toml:12:18"));
        assert_eq!((second.mode, second.users.len()), (Mode::Audit, 0));
    }

    #[test]
    fn what_is_not_written_is_as_on_the_command_line() {
        let policy = parse("f", "[[rule]]\nclouds = [\"aws\"]\n").unwrap();
        let expected = Policy {
            rules: policy.rules.clone(),
            ..Policy::default()
        };
        assert_eq!(policy, expected);
    }

    #[test]
    fn an_error_names_the_place_and_what_was_expected() {
        for (text, place, expected) in [
            ("", "f:", "no [[rule]]"),
            ("mode = \"enforced\"\n", "f:1:8:", "`enforce` or `audit`"),
            (
                "\nmood = 1\n",
                "f:2:1:",
                "unknown field `mood`, expected one of",
            ),
            (
                "[[rule]]\nusers = []\n",
                "f:1:1:",
                "guards nothing; expected clouds",
            ),
            (
                "[[rule]]\nclouds = [\"aws\", \"asw\"]\n",
                "f:2:18:",
                "\"asw\"",
            ),
            (
                "[[rule]]\nendpoints = [\n  \"10.0.0.1:0\",\n]\n",
                "f:3:3:",
                "\"0\" is no port of 1 to 65535",
            ),
            (
                "limit = \"5\"\n[[rule]]\nclouds = [\"aws\"]\n",
                "f:1:9:",
                "expected packets a second",
            ),
            (
                "[[rule]]\nclouds = [\"aws\"]\nusers = [true]\n",
                "f:3:10:",
                "expected a name in quotes or a number",
            ),
            (
                "interfaces = [\"eth0\",\n\"an-interface-name\"]\n[[rule]]\nclouds = [\"aws\"]\n",
                "f:2:1:",
                "\"an-interface-name\"; expected 1 to 15 bytes",
            ),
            (
                "[rule]\nclouds = [\"aws\"]\n",
                "f:1:1:",
                "expected [[rule]], in double brackets",
            ),
            (
                "[[rule]]\nclouds = \"aws\"\n",
                "f:2:10:",
                "string \"aws\", expected a list in brackets",
            ),
            ("[[rule]\n", "f:1:8:", "unclosed array table, expected"),
            (
                "[[rule]]\nclouds = [\"aws\"]\nclouds = [\"gcp\"]\n",
                "f:3:1:",
                "duplicate",
            ),
        ] {
            let err = parse("f", text).unwrap_err().to_string();
            assert!(
                err.starts_with(place) && err.contains(expected),
                "{text:?}: {err}"
            );
        }
    }

    #[test]
    fn what_is_no_text_is_named_with_its_place() {
        let bytes = b"[[rule]]\n# gr\xc3\xbc\xdfe\n";
        let err = parse_bytes("f", bytes).unwrap_err().to_string();
        assert_eq!(err, "f:2:6: the byte 0xdf is no text; expected UTF-8");
        assert!(parse_bytes("f", FULL.as_bytes()).is_ok());
    }

    #[test]
    fn a_number_that_is_no_id_is_named_with_its_place() {
        for number in ["-1", "4294967295", "99999999999999999999"] {
            let text = format!("[[rule]]\nclouds = [\"aws\"]\nusers = [0, {number}]\n");
            let policy = parse("f", &text).unwrap();
            let err = super::super::plan::Plan::new(&policy, None).unwrap_err();
            let said = err.to_string();
            assert!(
                said.starts_with("f:3:13: ")
                    && said.contains(number)
                    && said.contains("4294967294"),
                "{said}"
            );
        }
        let err = parse(
            "f",
            "[[rule]]\nusers = [999999999999999999999999999999999999999999]\n",
        );
        let said = err.unwrap_err().to_string();
        assert!(said.starts_with("f:2:10: "), "{said}");
    }

    #[test]
    fn no_text_makes_the_reader_panic() {
        use proptest::prelude::*;
        let near = proptest::collection::vec((0..FULL.len(), any::<char>()), 0..6);
        proptest!(|(edits in near, any in ".*")| {
            let mut text: Vec<char> = FULL.chars().collect();
            for (at, with) in edits {
                text[at] = with;
            }
            let _ = parse("f", &text.into_iter().collect::<String>());
            let _ = parse("f", &any);
        });
    }
}
