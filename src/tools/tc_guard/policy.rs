// SPDX-License-Identifier: BSD-2-Clause

//! A policy as its author writes it: rules that open endpoints to subjects. The command line and a
//! file (see [`super::config`]) both become one; [`super::plan`] makes of it what the kernel is told.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::Deserialize;

use crate::endpoint::Endpoint;
use crate::failure::Failure;

/// What happens to whoever no rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is denied.
    #[default]
    Enforce,
    /// It passes, and is reported.
    Audit,
}

impl Mode {
    /// The name in events and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        }
    }
}

/// How a denied packet's sender hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deny {
    /// At once: a TCP reset, or an ICMP message that says "prohibited"
    #[default]
    Reset,
    /// Not at all
    Drop,
}

impl Deny {
    /// The name in events and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Drop => "drop",
        }
    }
}

/// Packets a second that a user may send to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub NonZeroU32);

/// More would be no limit to anything: the interval between two packets is in whole nanoseconds.
const HIGHEST_LIMIT: u32 = 1_000_000;

/// `N/s`
impl FromStr for Limit {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let digits = text.strip_suffix("/s").unwrap_or_default();
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = plain.then(|| digits.parse::<NonZeroU32>().ok()).flatten();
        match number {
            Some(number) if number.get() <= HIGHEST_LIMIT => Ok(Self(number)),
            _ => Err(Failure::usage(format!(
                "limit {text:?}: expected packets a second, 1/s to {HIGHEST_LIMIT}/s"
            ))),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

impl Limit {
    /// Nanoseconds from one packet to the next.
    pub fn interval_ns(self) -> u64 {
        1_000_000_000 / u64::from(self.0.get())
    }

    /// How much earlier than due a packet may come: bursts of a tenth of a second's packets, and of
    /// ten at least, which is a small request as a whole.
    pub fn tolerance_ns(self) -> u64 {
        100_000_000.max(self.interval_ns() * 9)
    }
}

/// Opens endpoints to subjects. Rules add up: who may by any of them may.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// What is guarded, and opened to the subjects. Never empty.
    pub endpoints: Vec<Endpoint>,
    /// Names or uids.
    pub users: Vec<Subject>,
    /// Names or gids.
    pub groups: Vec<Subject>,
    /// Systemd units, or paths below the cgroup2 mount that begin with a slash.
    pub cgroups: Vec<Subject>,
    /// What happens to others. An endpoint of several rules is enforced if one of them is.
    pub mode: Mode,
}

/// Somebody, and where that is written: for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// What the author wrote.
    pub text: String,
    /// The place (`FILE:LINE:COLUMN`), unless it is the command line.
    pub place: Option<String>,
}

impl From<&str> for Subject {
    fn from(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            place: None,
        }
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// In the order in which they were written.
    pub rules: Vec<Rule>,
    /// Of all rules; [`Mode::Audit`] goes before their own.
    pub mode: Mode,
    /// How a denial is answered.
    pub deny: Deny,
    /// What is allowed is reported too.
    pub report_allowed: bool,
    /// Of every user and endpoint.
    pub limit: Option<Limit>,
    /// The layer in connect() and sendmsg() is left out.
    pub packets_only: bool,
    /// Interfaces to guard; all but loopback if none is named.
    pub interfaces: Vec<String>,
}

/// The longest name of an interface in bytes (`IFNAMSIZ` less the zero byte).
const LONGEST_INTERFACE: usize = 15;

/// The name of an interface, if the kernel would take it (`dev_valid_name()`).
///
/// # Errors
/// [`Failure::Usage`] that names it: no interface can ever be called so.
pub fn interface_name(text: &str) -> Result<String, Failure> {
    let odd = |c: char| c.is_ascii_whitespace() || c == '\u{b}' || matches!(c, '/' | ':' | '\0');
    let fits = (1..=LONGEST_INTERFACE).contains(&text.len());
    if fits && text != "." && text != ".." && !text.contains(odd) {
        return Ok(text.to_owned());
    }
    Err(Failure::usage(format!(
        "no interface can be called {text:?}; expected 1 to {LONGEST_INTERFACE} bytes without blanks, \"/\" \
         and \":\""
    )))
}

impl Policy {
    /// One rule, as tests and examples want it.
    pub fn of(endpoints: &[Endpoint], users: &[&str]) -> Self {
        Self {
            rules: vec![Rule {
                endpoints: endpoints.to_vec(),
                users: users.iter().map(|user| Subject::from(*user)).collect(),
                ..Rule::default()
            }],
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_interface_can_have_is_named() {
        for name in ["eth0", "br-0123456789ab", "veth@x", "wlé"] {
            assert_eq!(interface_name(name).unwrap(), name);
        }
        for name in [
            "",
            ".",
            "..",
            "eth 0",
            "eth0:1",
            "a/b",
            "br-0123456789abc",
            "a\n",
        ] {
            let err = interface_name(name).unwrap_err().to_string();
            assert!(err.contains(&format!("{name:?}; expected")), "{err}");
        }
    }

    #[test]
    fn a_limit_is_a_number_a_second() {
        let limit: Limit = "500/s".parse().unwrap();
        assert_eq!(limit.interval_ns(), 2_000_000);
        assert_eq!(limit.tolerance_ns(), 100_000_000);
        assert_eq!(
            "1/s".parse::<Limit>().unwrap().tolerance_ns(),
            9_000_000_000
        );
        assert_eq!(limit.to_string(), "500/s");
        for wrong in [
            "",
            "500",
            "0/s",
            "-1/s",
            "+1/s",
            "1/m",
            "1000001/s",
            "1.5/s",
        ] {
            let err = wrong.parse::<Limit>().unwrap_err().to_string();
            assert!(err.contains(&format!("{wrong:?}")), "{err}");
        }
    }
}
