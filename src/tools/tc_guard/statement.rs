// SPDX-License-Identifier: BSD-2-Clause

//! What a pinned guard says of itself, for whoever asks when its process has ended: the policy as it
//! was written, and what became of it. Pure.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::plan::Plan;
use super::policy::{Deny, Mode, Policy, Rule, Subject};
use crate::endpoint::Endpoint;

/// Of this layout. A program that finds another one leaves that guard alone.
const VERSION: u32 = 3;

/// A policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    version: u32,
    /// The file that the policy was read from; the command line where there is none.
    pub config: Option<PathBuf>,
    /// Whether the command line added to the file.
    pub mixed: bool,
    /// Nanoseconds since 1970 at which it came into force.
    pub in_force_ns: i64,
    /// The plan's endpoints by their number in reports.
    pub endpoints: Vec<Named>,
    /// `enforce`, `audit` or `mixed`.
    pub mode: String,
    /// How many users may.
    pub users: usize,
    /// How many groups may.
    pub groups: usize,
    /// How many cgroups may.
    pub cgroups: usize,
    /// Whether sockets of other network namespaces are told from the machine's own in the packet layer.
    pub namespaces: bool,
    policy: Written,
}

/// An endpoint and what events call it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The cloud's name, or the text.
    pub name: String,
    /// `ADDR[/PREFIX][:PORT[-PORT]][/tcp|udp]`
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    rules: Vec<WrittenRule>,
    audit: bool,
    drop: bool,
    report_allowed: bool,
    limit: Option<String>,
    packets_only: bool,
    interfaces: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct WrittenRule {
    endpoints: Vec<Named>,
    users: Vec<String>,
    groups: Vec<String>,
    cgroups: Vec<String>,
    audit: bool,
}

impl From<&Endpoint> for Named {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            name: endpoint.name.clone(),
            text: endpoint.to_string(),
        }
    }
}

impl Named {
    fn endpoint(&self) -> Result<Endpoint> {
        let mut endpoint: Endpoint = self.text.parse()?;
        endpoint.name.clone_from(&self.name);
        Ok(endpoint)
    }
}

impl Statement {
    /// About `policy`, which was read from `config`, or is `mixed` from it and the command line, and
    /// became `plan`, in force since `now`, by programs that tell network namespaces apart or do not.
    pub fn new(
        policy: &Policy,
        config: Option<PathBuf>,
        mixed: bool,
        plan: &Plan,
        namespaces: bool,
        now: OffsetDateTime,
    ) -> Self {
        let texts = |subjects: &[Subject]| subjects.iter().map(|s| s.text.clone()).collect();
        let rule = |rule: &Rule| WrittenRule {
            endpoints: rule.endpoints.iter().map(Named::from).collect(),
            users: texts(&rule.users),
            groups: texts(&rule.groups),
            cgroups: texts(&rule.cgroups),
            audit: rule.mode == Mode::Audit,
        };
        Self {
            version: VERSION,
            config,
            mixed,
            in_force_ns: i64::try_from(now.unix_timestamp_nanos()).unwrap_or_default(),
            endpoints: plan
                .endpoints
                .iter()
                .map(|at| (&at.endpoint).into())
                .collect(),
            mode: plan.mode().to_owned(),
            users: plan.users.len(),
            groups: plan.groups.len(),
            cgroups: plan.cgroups.len(),
            namespaces,
            policy: Written {
                rules: policy.rules.iter().map(rule).collect(),
                audit: policy.mode == Mode::Audit,
                drop: policy.deny == Deny::Drop,
                report_allowed: policy.report_allowed,
                limit: policy.limit.map(|limit| limit.to_string()),
                packets_only: policy.packets_only,
                interfaces: policy.interfaces.clone(),
            },
        }
    }

    /// The policy as it was written, where it was written on the command line or in a file.
    ///
    /// # Errors
    /// If the statement is none of this program's.
    pub fn policy(&self) -> Result<Policy> {
        let subjects = |texts: &[String]| {
            texts
                .iter()
                .map(|text| Subject::from(text.as_str()))
                .collect()
        };
        let mode = |audit| if audit { Mode::Audit } else { Mode::Enforce };
        let rule = |rule: &WrittenRule| -> Result<Rule> {
            Ok(Rule {
                endpoints: rule
                    .endpoints
                    .iter()
                    .map(Named::endpoint)
                    .collect::<Result<_>>()?,
                users: subjects(&rule.users),
                groups: subjects(&rule.groups),
                cgroups: subjects(&rule.cgroups),
                mode: mode(rule.audit),
                place: None,
            })
        };
        let written = &self.policy;
        Ok(Policy {
            rules: written.rules.iter().map(rule).collect::<Result<_>>()?,
            mode: mode(written.audit),
            deny: if written.drop {
                Deny::Drop
            } else {
                Deny::Reset
            },
            report_allowed: written.report_allowed,
            limit: written.limit.as_deref().map(str::parse).transpose()?,
            packets_only: written.packets_only,
            interfaces: written.interfaces.clone(),
        })
    }

    /// How a denial is answered.
    pub fn deny(&self) -> Deny {
        if self.policy.drop {
            Deny::Drop
        } else {
            Deny::Reset
        }
    }

    /// Packets a second of every user, as it was written.
    pub fn limit(&self) -> Option<&str> {
        self.policy.limit.as_deref()
    }

    /// Whether what is allowed is reported.
    pub fn report_allowed(&self) -> bool {
        self.policy.report_allowed
    }

    /// Interfaces that are to be guarded; all but loopback if it is empty.
    pub fn interfaces(&self) -> &[String] {
        &self.policy.interfaces
    }

    /// The names of the endpoints by their number in reports.
    pub fn names(&self) -> Vec<String> {
        self.endpoints.iter().map(|at| at.name.clone()).collect()
    }

    /// As text.
    ///
    /// # Errors
    /// A path that is not UTF-8.
    pub fn to_text(&self) -> Result<String> {
        serde_json::to_string(self).context("cannot write down the policy")
    }

    /// From its text.
    ///
    /// # Errors
    /// If it is none, or of another version.
    pub fn from_text(text: &str) -> Result<Self> {
        let statement: Self = serde_json::from_str(text)
            .context("the pinned guard is not of this version of ebpfkit")?;
        if statement.version != VERSION {
            bail!("the pinned guard is not of this version of ebpfkit");
        }
        Ok(statement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let endpoints: Vec<Endpoint> = ["169.254.169.254:80/tcp", "[fd00::]/64:1-5"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let mut policy = Policy::of(&endpoints, &["root", "54321"]);
        policy.rules[0].endpoints[0].name = "aws".to_owned();
        policy.rules[0].mode = Mode::Audit;
        policy.rules.push(Rule {
            endpoints: endpoints[1..].to_vec(),
            groups: vec!["0".into()],
            cgroups: vec!["/system.slice".into()],
            ..Rule::default()
        });
        policy.limit = Some("100/s".parse().unwrap());
        policy.deny = Deny::Drop;
        policy.interfaces = vec!["eth0".to_owned()];
        policy
    }

    fn statement(policy: &Policy, plan: &Plan) -> Statement {
        Statement::new(policy, None, false, plan, true, OffsetDateTime::UNIX_EPOCH)
    }

    #[test]
    fn a_policy_comes_back_as_it_was_written() {
        let policy = policy();
        let plan = Plan::new(&policy, None).unwrap();
        let statement = statement(&policy, &plan);
        let back = Statement::from_text(&statement.to_text().unwrap()).unwrap();
        assert_eq!(back, statement);
        assert_eq!(back.policy().unwrap(), policy);
        assert_eq!(back.names(), ["aws", "[fd00::]/64:1-5"]);
        assert_eq!(Plan::new(&back.policy().unwrap(), None).unwrap(), plan);
    }

    #[test]
    fn another_versions_statement_is_refused() {
        let policy = policy();
        let plan = Plan::new(&policy, None).unwrap();
        let mut statement = statement(&policy, &plan);
        statement.version += 1;
        Statement::from_text(&statement.to_text().unwrap()).unwrap_err();
        Statement::from_text("{}").unwrap_err();
    }
}
