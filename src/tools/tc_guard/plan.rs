// SPDX-License-Identifier: BSD-2-Clause

//! From arguments to what is to be guarded and from whom. Pure but for the name service.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::endpoint::Endpoint;
use crate::endpoint_table::{Target, merge};
use crate::failure::Failure;
use crate::metadata;
use crate::process::resolve_user;

/// How a denied packet's sender hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Deny {
    /// At once: a TCP reset, or an ICMP message that says "prohibited"
    #[default]
    Reset,
    /// Not at all
    Drop,
}

/// The rule of the command line: every user given to every endpoint given. Rules are bits, so that
/// more of them cost a packet nothing.
pub const RULE: u64 = 1;

/// What the kernel is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What is guarded; the mask has the rules that open it.
    pub endpoints: Vec<Target>,
    /// Who may, each with the rules that it is a subject of; two mentions add up.
    pub users: BTreeMap<u32, u64>,
    /// Nothing is denied; what would be is reported.
    pub audit: bool,
    /// How a denial is answered.
    pub deny: Deny,
    /// What is allowed is reported too.
    pub report_allowed: bool,
}

/// As many users as the kernel's map has room for (`MAX_USERS` of tc_guard.bpf.c).
const MOST_USERS: usize = 16384;

impl Plan {
    /// The plan for these clouds (names of the catalogue, or `all`), endpoints and users (names or
    /// numbers).
    ///
    /// # Errors
    /// [`Failure::Usage`] that names the text that was wrong.
    pub fn new(clouds: &[String], endpoints: &[Endpoint], users: &[String]) -> Result<Self> {
        let mut guarded: Vec<_> = metadata::endpoints(clouds)?;
        guarded.extend_from_slice(endpoints);
        let mut allowed = BTreeMap::new();
        for user in users {
            let uid = resolve_user(user).ok_or_else(|| {
                Failure::usage(format!(
                    "no user {user:?}; expected a name from the machine's users or a uid of 0 to \
                     4294967294"
                ))
            })?;
            *allowed.entry(uid).or_insert(0) |= RULE;
        }
        if allowed.len() > MOST_USERS {
            return Err(Failure::usage(format!(
                "{} users are more than the {MOST_USERS} that can be allowed",
                allowed.len()
            ))
            .into());
        }
        Ok(Self {
            endpoints: merge(guarded.into_iter().map(|endpoint| Target {
                endpoint,
                mask: RULE,
            })),
            users: allowed,
            audit: false,
            deny: Deny::default(),
            report_allowed: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure;

    fn plan(clouds: &[&str], endpoints: &[&str], users: &[&str]) -> Result<Plan> {
        let own = |texts: &[&str]| {
            texts
                .iter()
                .map(|&text| text.to_owned())
                .collect::<Vec<_>>()
        };
        let endpoints: Vec<_> = endpoints.iter().map(|text| text.parse().unwrap()).collect();
        Plan::new(&own(clouds), &endpoints, &own(users))
    }

    #[test]
    fn clouds_and_endpoints_are_guarded_together() {
        let plan = plan(&["aws"], &["10.1.2.3:8080/tcp"], &["root", "54321"]).unwrap();
        let names: Vec<_> = plan
            .endpoints
            .iter()
            .map(|target| target.endpoint.to_string())
            .collect();
        assert_eq!(
            names,
            [
                "169.254.169.254:80/tcp",
                "[fd00:ec2::254]:80/tcp",
                "10.1.2.3:8080/tcp"
            ]
        );
        assert_eq!(plan.users, BTreeMap::from([(0, RULE), (54321, RULE)]));
    }

    #[test]
    fn a_user_named_twice_is_one_user() {
        let plan = plan(&["aws"], &[], &["root", "0"]).unwrap();
        assert_eq!(plan.users, BTreeMap::from([(0, RULE)]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (err, named) in [
            (plan(&["asw"], &[], &[]), "\"asw\""),
            (plan(&["aws"], &[], &["no such user"]), "\"no such user\""),
            (plan(&["aws"], &[], &["-1"]), "\"-1\""),
        ] {
            let err = err.unwrap_err();
            assert_eq!(failure::exit_code(&err), failure::USAGE);
            assert!(err.to_string().contains(named), "{err}");
        }
    }

    #[test]
    fn more_users_than_there_is_room_for_are_refused() {
        let users: Vec<_> = (0..=MOST_USERS).map(|uid| uid.to_string()).collect();
        let err = Plan::new(&["aws".to_owned()], &[], &users).unwrap_err();
        assert!(err.to_string().contains("16385 users"), "{err}");
    }
}
