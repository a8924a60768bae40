// SPDX-License-Identifier: BSD-2-Clause

//! From a policy to what the kernel is told. Pure but for the name service and the cgroup tree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;

use super::policy::{Deny, Limit, Mode, Policy, Rule, Subject};
use crate::endpoint_table::{MAX_PREFIXES, Prefixes, Table, Target, merge};
use crate::failure::Failure;
use crate::kernel::cgroup;
use crate::process::{resolve_group, resolve_user};

/// GUARD_ENFORCED of tc_guard.h: the bit of an endpoint that denies what no rule opens. The other
/// bits of its mask are rules.
pub const ENFORCED: u64 = 1 << 63;

/// As many users, groups and cgroups, each, as the kernel's maps have room for (`MAX_SUBJECTS` of
/// tc_guard_policy.bpf.h).
pub const MOST_SUBJECTS: usize = 16384;

/// GUARD_CGROUP_LEVELS of tc_guard.h: depths at which rules may name cgroups.
pub const CGROUP_LEVELS: usize = 8;

/// What the kernel is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What is guarded; the mask has the rules that open it, and [`ENFORCED`].
    pub endpoints: Vec<Target>,
    /// The same as the programs read it.
    pub table: Table,
    /// Who may, each with the rules that it is a subject of; two mentions add up.
    pub users: BTreeMap<u32, u64>,
    /// The same of group ids.
    pub groups: BTreeMap<u32, u64>,
    /// The same of cgroups, by their path below the cgroup2 mount. They may not be there yet.
    pub cgroups: BTreeMap<String, u64>,
    /// How a denial is answered.
    pub deny: Deny,
    /// What is allowed is reported too.
    pub report_allowed: bool,
    /// Of every user and endpoint.
    pub limit: Option<Limit>,
    /// The layer in connect() and sendmsg() is left out.
    pub packets_only: bool,
    /// Every packet is reported, not one a second of a kind.
    pub report_each: bool,
}

impl Plan {
    /// The plan for `policy`; units are looked up below `cgroup_root`, the cgroup2 mount.
    ///
    /// # Errors
    /// [`Failure::Usage`] that names the text that was wrong.
    pub fn new(policy: &Policy, cgroup_root: Option<&Path>) -> Result<Self> {
        if policy.rules.is_empty() {
            return Err(Failure::usage("a policy without a rule guards nothing").into());
        }
        let endpoints = endpoints(policy)?;
        let mut plan = Self {
            table: table(policy, &endpoints)?,
            endpoints,
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
            cgroups: BTreeMap::new(),
            deny: policy.deny,
            report_allowed: policy.report_allowed,
            limit: policy.limit,
            packets_only: policy.packets_only,
            report_each: false,
        };
        let mut depths = BTreeSet::new();
        for (rule, bit) in policy.rules.iter().zip(bits(&policy.rules)?) {
            plan.add_subjects(rule, bit, cgroup_root, &mut depths)?;
        }
        Ok(plan)
    }

    /// `depths` are those of the cgroups so far.
    fn add_subjects(
        &mut self,
        rule: &Rule,
        bit: u64,
        cgroup_root: Option<&Path>,
        depths: &mut BTreeSet<usize>,
    ) -> Result<()> {
        for user in &rule.users {
            let uid = resolve_user(&user.text).ok_or_else(|| {
                wrong(
                    user,
                    "no user",
                    "a name from the machine's users or a uid of 0 to 4294967294",
                )
            })?;
            *self.users.entry(uid).or_insert(0) |= bit;
            room(user, self.users.len(), "users")?;
        }
        for group in &rule.groups {
            let gid = resolve_group(&group.text).ok_or_else(|| {
                wrong(
                    group,
                    "no group",
                    "a name from the machine's groups or a gid of 0 to 4294967294",
                )
            })?;
            *self.groups.entry(gid).or_insert(0) |= bit;
            room(group, self.groups.len(), "groups")?;
        }
        for cgroup in &rule.cgroups {
            let path = cgroup_path(cgroup, cgroup_root)?;
            depths.insert(depth(&path));
            if depths.len() > CGROUP_LEVELS {
                let expected = format!("cgroups at {CGROUP_LEVELS} different depths at most");
                return Err(wrong(cgroup, "one depth too many:", &expected).into());
            }
            *self.cgroups.entry(path).or_insert(0) |= bit;
            room(cgroup, self.cgroups.len(), "cgroups")?;
        }
        Ok(())
    }

    /// The depths of the cgroups, 1 being right below the root.
    pub fn cgroup_levels(&self) -> Vec<u8> {
        let levels: BTreeSet<_> = self.cgroups.keys().map(|path| depth(path)).collect();
        levels
            .into_iter()
            .map(|level| u8::try_from(level).unwrap_or(u8::MAX))
            .collect()
    }

    /// Whether nobody is allowed anything.
    pub fn allows_nobody(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.cgroups.is_empty()
    }

    /// Whether anything is denied.
    pub fn enforces(&self) -> bool {
        let mut endpoints = self.endpoints.iter();
        endpoints.any(|target| target.mask & ENFORCED != 0)
    }

    /// `enforce`, `audit`, or `mixed` if that depends on the endpoint.
    pub fn mode(&self) -> &'static str {
        let enforced = |target: &Target| target.mask & ENFORCED != 0;
        match (
            self.endpoints.iter().any(enforced),
            self.endpoints.iter().all(enforced),
        ) {
            (_, true) => "enforce",
            (false, _) => "audit",
            _ => "mixed",
        }
    }
}

/// The mask of a packet whose port cannot be read, from those of the ports that it may be for: only a rule
/// that opens all that is enforced of them opens it. Where nothing is enforced, nothing is denied.
pub fn unread(masks: &[u64]) -> u64 {
    let enforced = masks.iter().filter(|mask| **mask & ENFORCED != 0);
    let closed = enforced.clone().count() > 0;
    let asked: Vec<_> = if closed {
        enforced.collect()
    } else {
        masks.iter().collect()
    };
    asked.into_iter().fold(u64::MAX, |all, mask| all & mask)
}

/// 1 right below the root.
fn depth(cgroup: &str) -> usize {
    cgroup.matches('/').count()
}

/// What all rules guard, each endpoint once.
fn endpoints(policy: &Policy) -> Result<Vec<Target>> {
    let mut prefixes = Prefixes::default();
    let mut targets: Vec<Target> = Vec::new();
    for (rule, bit) in policy.rules.iter().zip(bits(&policy.rules)?) {
        let enforced = policy.mode == Mode::Enforce && rule.mode == Mode::Enforce;
        let mask = bit | if enforced { ENFORCED } else { 0 };
        for endpoint in &rule.endpoints {
            prefixes.add(endpoint);
            targets.push(Target {
                endpoint: endpoint.clone(),
                mask,
            });
        }
        if prefixes.count() > MAX_PREFIXES {
            return Err(Failure::usage(format!(
                "{}too many addresses and prefixes; expected {MAX_PREFIXES} in all rules at most",
                before(rule.place.as_ref())
            ))
            .into());
        }
    }
    Ok(merge(targets))
}

/// The table of `endpoints`, which are those of the policy; an error names the rule with which it is too large.
fn table(policy: &Policy, endpoints: &[Target]) -> Result<Table> {
    Table::with(endpoints, unread).map_err(|err| {
        let fits = |count: &usize| {
            let rules = policy.rules[..*count].to_vec();
            let some = Policy {
                rules,
                ..policy.clone()
            };
            self::endpoints(&some).is_ok_and(|some| Table::with(&some, unread).is_ok())
        };
        let counts: Vec<usize> = (1..=policy.rules.len()).collect();
        let first = policy.rules.get(counts.partition_point(fits));
        let place = before(first.and_then(|rule| rule.place.as_ref()));
        Failure::usage(format!("{place}{err}")).into()
    })
}

/// A bit for each rule; rules with the same endpoints and mode share one.
fn bits(rules: &[Rule]) -> Result<Vec<u64>> {
    let most = ENFORCED.trailing_zeros();
    let mut kinds: Vec<(Vec<String>, Mode)> = Vec::new();
    let mut bits = Vec::new();
    for rule in rules {
        let mut endpoints: Vec<_> = rule.endpoints.iter().map(ToString::to_string).collect();
        endpoints.sort();
        endpoints.dedup();
        let kind = (endpoints, rule.mode);
        let found = kinds.iter().position(|known| *known == kind);
        let index = found.unwrap_or_else(|| {
            kinds.push(kind);
            kinds.len() - 1
        });
        if kinds.len() > most as usize {
            return Err(Failure::usage(format!(
                "{}one list of endpoints too many; expected rules for {most} different lists at most",
                before(rule.place.as_ref())
            ))
            .into());
        }
        bits.push(1 << index);
    }
    Ok(bits)
}

/// Of a message: where what it is about is written.
fn before(place: Option<&String>) -> String {
    place.map_or(String::new(), |place| format!("{place}: "))
}

/// Whether there is still room for as many subjects of a kind as there are with this one.
fn room(subject: &Subject, count: usize, kind: &str) -> Result<(), Failure> {
    if count > MOST_SUBJECTS {
        let expected = format!("{MOST_SUBJECTS} {kind} in all rules at most");
        return Err(wrong(subject, "one too many:", &expected));
    }
    Ok(())
}

fn wrong(subject: &Subject, what: &str, expected: &str) -> Failure {
    Failure::usage(format!(
        "{}{what} {:?}; expected {expected}",
        before(subject.place.as_ref()),
        subject.text
    ))
}

/// Ends of the names of units that have a cgroup (systemd.unit(5)).
const UNITS: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

/// The path below the cgroup2 mount of a path or unit. A unit that does not run has the place that
/// systemd gives to those that ask for none.
fn cgroup_path(subject: &Subject, root: Option<&Path>) -> Result<String, Failure> {
    let text = subject.text.as_str();
    let bad = |what: &str| {
        wrong(
            subject,
            what,
            "a path below the cgroup2 mount such as /system.slice, or the name of a systemd unit \
             such as nginx.service",
        )
    };
    if let Some(path) = text.strip_prefix('/') {
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.is_empty() {
            return Err(bad("every process is in the cgroup"));
        }
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(bad("no cgroup can be called"));
        }
        return Ok(format!("/{path}"));
    }
    let is_unit = UNITS
        .iter()
        .any(|end| text.len() > end.len() && text.ends_with(end));
    if !is_unit || text.contains('/') {
        return Err(bad("no path and no unit"));
    }
    if let Some(found) = root.and_then(|root| cgroup::find_unit(root, text)) {
        return Ok(found);
    }
    Ok(match text.strip_suffix(".slice") {
        Some(name) => slice_path(name),
        None => format!("/system.slice/{text}"),
    })
}

/// `a-b` is `/a.slice/a-b.slice` (systemd.slice(5)).
fn slice_path(name: &str) -> String {
    let ends = name
        .match_indices('-')
        .map(|(at, _)| at)
        .filter(|at| *at > 0)
        .chain([name.len()]);
    ends.map(|end| format!("/{}.slice", &name[..end])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure;
    use crate::metadata;

    fn rule(endpoints: &[&str], users: &[&str]) -> Rule {
        Rule {
            endpoints: endpoints.iter().map(|text| text.parse().unwrap()).collect(),
            users: users.iter().map(|user| Subject::from(*user)).collect(),
            ..Rule::default()
        }
    }

    fn plan(rules: Vec<Rule>) -> Result<Plan> {
        let policy = Policy {
            rules,
            ..Policy::default()
        };
        Plan::new(&policy, None)
    }

    fn mask(plan: &Plan, endpoint: &str) -> u64 {
        let found = plan
            .endpoints
            .iter()
            .find(|target| target.endpoint.to_string() == endpoint);
        found.unwrap().mask
    }

    #[test]
    fn a_rule_opens_its_endpoints_to_its_subjects() {
        let mut both = rule(&["10.1.2.3:8080/tcp"], &["root", "54321"]);
        both.endpoints
            .extend(metadata::endpoints(&["aws".to_owned()]).unwrap());
        let plan = plan(vec![both]).unwrap();
        let names: Vec<_> = plan
            .endpoints
            .iter()
            .map(|target| target.endpoint.to_string())
            .collect();
        assert_eq!(
            names,
            [
                "10.1.2.3:8080/tcp",
                "169.254.169.254:80/tcp",
                "[fd00:ec2::254]:80/tcp",
            ]
        );
        assert!(plan.endpoints.iter().all(|t| t.mask == 1 | ENFORCED));
        assert_eq!(plan.users, BTreeMap::from([(0, 1), (54321, 1)]));
    }

    #[test]
    fn a_second_rule_for_a_user_adds_to_the_first() {
        let plan = plan(vec![
            rule(&["10.0.0.1"], &["root", "7"]),
            rule(&["10.0.0.2"], &["root"]),
            rule(&["10.0.0.1"], &["8"]),
        ])
        .unwrap();
        assert_eq!(plan.users, BTreeMap::from([(0, 3), (7, 1), (8, 1)]));
        assert_eq!(mask(&plan, "10.0.0.1"), 1 | ENFORCED);
        assert_eq!(mask(&plan, "10.0.0.2"), 2 | ENFORCED);
    }

    #[test]
    fn what_cannot_be_read_is_opened_by_what_opens_all_that_is_enforced() {
        assert_eq!(unread(&[1 | ENFORCED, 2 | ENFORCED]), ENFORCED);
        assert_eq!(unread(&[3 | ENFORCED, 2 | ENFORCED, 4]), 2 | ENFORCED);
        assert_eq!(unread(&[3, 2]), 2);
    }

    #[test]
    fn an_endpoint_is_enforced_if_one_of_its_rules_is() {
        let audit = |rule: Rule| Rule {
            mode: Mode::Audit,
            ..rule
        };
        let rules = vec![
            rule(&["10.0.0.1"], &["1"]),
            audit(rule(&["10.0.0.1"], &["2"])),
            audit(rule(&["10.0.0.2"], &["2"])),
        ];
        let mixed = plan(rules.clone()).unwrap();
        assert_eq!(mask(&mixed, "10.0.0.1") & ENFORCED, ENFORCED);
        assert_eq!(mask(&mixed, "10.0.0.2") & ENFORCED, 0);
        assert_eq!(mixed.mode(), "mixed");
        let policy = Policy {
            rules,
            mode: Mode::Audit,
            ..Policy::default()
        };
        assert_eq!(Plan::new(&policy, None).unwrap().mode(), "audit");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |users: &[&str], groups: &[&str], cgroups: &[&str]| {
            let own = |texts: &[&str]| texts.iter().map(|text| Subject::from(*text)).collect();
            plan(vec![Rule {
                users: own(users),
                groups: own(groups),
                cgroups: own(cgroups),
                ..rule(&["10.0.0.1"], &[])
            }])
        };
        for (err, named) in [
            (with(&["no such user"], &[], &[]), "\"no such user\""),
            (with(&["-1"], &[], &[]), "\"-1\""),
            (with(&[], &["no such group"], &[]), "\"no such group\""),
            (with(&[], &[], &["/"]), "every process"),
            (with(&[], &[], &["/a/../b"]), "\"/a/../b\""),
            (with(&[], &[], &["nginx"]), "\"nginx\""),
            (with(&[], &[], &[".service"]), "\".service\""),
            (with(&[], &[], &["a/b.service"]), "\"a/b.service\""),
            (plan(Vec::new()), "guards nothing"),
        ] {
            let err = err.unwrap_err();
            assert_eq!(failure::exit_code(&err), failure::USAGE);
            assert!(err.to_string().contains(named), "{err}");
        }
        let placed = Subject {
            text: "nobody at all".to_owned(),
            place: Some("guard.toml:3:5".to_owned()),
        };
        let err = plan(vec![Rule {
            users: vec![placed],
            ..rule(&["10.0.0.1"], &[])
        }]);
        assert!(
            err.unwrap_err()
                .to_string()
                .starts_with("guard.toml:3:5: no user \"nobody at all\"; expected")
        );
    }

    #[test]
    fn units_have_the_path_that_systemd_gives_them() {
        let path = |text: &str| cgroup_path(&Subject::from(text), None).unwrap();
        assert_eq!(path("nginx.service"), "/system.slice/nginx.service");
        assert_eq!(path("system.slice"), "/system.slice");
        assert_eq!(path("a-b-c.slice"), "/a.slice/a-b.slice/a-b-c.slice");
        assert_eq!(path("/kubepods.slice/"), "/kubepods.slice");
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("batch.slice/job.service")).unwrap();
        let found = cgroup_path(&Subject::from("job.service"), Some(root.path())).unwrap();
        assert_eq!(found, "/batch.slice/job.service");
    }

    #[test]
    fn more_than_there_is_room_for_is_refused() {
        let users: Vec<_> = (0..=MOST_SUBJECTS).map(|uid| uid.to_string()).collect();
        let mut many = rule(&["10.0.0.1"], &[]);
        many.users = users.iter().map(|user| Subject::from(&**user)).collect();
        many.users[MOST_SUBJECTS].place = Some("guard.toml:9:1".to_owned());
        assert_eq!(
            plan(vec![many.clone()]).unwrap_err().to_string(),
            "guard.toml:9:1: one too many: \"16384\"; expected 16384 users in all rules at most"
        );
        many.users.pop();
        assert!(plan(vec![many]).is_ok());

        let of_one = |n: usize| Rule {
            place: Some(format!("guard.toml:{n}:1")),
            ..rule(&[&format!("10.0.0.{n}")], &["root"])
        };
        assert_eq!(
            plan((1..=64).map(of_one).collect())
                .unwrap_err()
                .to_string(),
            "guard.toml:64:1: one list of endpoints too many; expected rules for 63 different lists at most"
        );
        assert!(plan((1..=63).map(of_one).collect()).is_ok());

        let of_half = |n: usize| {
            let endpoints: Vec<String> = (0..=2048)
                .map(|i| format!("10.{n}.{}.{}", i / 256, i % 256))
                .collect();
            let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
            Rule {
                place: Some(format!("guard.toml:{n}:1")),
                ..rule(&endpoints, &["root"])
            }
        };
        assert_eq!(
            plan(vec![of_half(1), of_half(1), of_half(2)])
                .unwrap_err()
                .to_string(),
            "guard.toml:2:1: too many addresses and prefixes; expected 4096 in all rules at most"
        );
        assert!(plan(vec![of_half(1), of_half(1)]).is_ok());

        // A range like this takes 63 entries of its own for each address.
        let of_ports = |n: usize| {
            let endpoints: Vec<String> = (0..400)
                .map(|i| format!("10.{n}.{}.{}:1-65534", i / 250, i % 250))
                .collect();
            let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
            Rule {
                place: Some(format!("guard.toml:{n}:1")),
                ..rule(&endpoints, &["root"])
            }
        };
        let err = plan((1..6).map(of_ports).collect()).unwrap_err();
        let expected = "guard.toml:3:1: the endpoints' port ranges make ";
        assert!(err.to_string().starts_with(expected), "{err}");
        assert!(plan((1..3).map(of_ports).collect()).is_ok());

        let cgroups = (1..10).map(|depth| Subject {
            text: "/a".repeat(depth),
            place: Some(format!("guard.toml:{depth}:3")),
        });
        let deep = Rule {
            cgroups: cgroups.collect(),
            ..rule(&["10.0.0.1"], &[])
        };
        let err = plan(vec![deep]).unwrap_err().to_string();
        assert!(
            err.starts_with("guard.toml:9:3: one depth too many: \"/a/a")
                && err.ends_with("; expected cgroups at 8 different depths at most"),
            "{err}"
        );
    }
}
