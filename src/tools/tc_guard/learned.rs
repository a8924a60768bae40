// SPDX-License-Identifier: BSD-2-Clause

//! From who used what to a policy that allows just that. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::output::Printable;
use crate::process::Identity;

/// Whom a rule can name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A systemd service of the machine.
    Unit(String),
    /// A cgroup's path.
    Cgroup(String),
    /// A user id, and the user's name where there is one.
    User(u32, Option<String>),
    /// Nobody whom a rule could name; why.
    Nobody(&'static str),
}

impl Subject {
    /// The narrowest that stays the same when the caller is started anew: its container's cgroup, its
    /// service, else its user. The uid of another network namespace's socket is not the machine's:
    /// `foreign` leaves it out.
    pub fn of(identity: &Identity, foreign: bool) -> Self {
        if let Some(path) = &identity.cgroup {
            // First: it may be below the service of what runs all containers.
            if let Some(id) = &identity.container
                && let Some(end) = path.find(id.as_str())
            {
                let rest = &path[end..];
                let end = end + rest.find('/').unwrap_or(rest.len());
                return Self::Cgroup(path[..end].to_owned());
            }
            if let Some(unit) = service(path) {
                return Self::Unit(unit.to_owned());
            }
            if foreign && path != "/" {
                return Self::Cgroup(path.clone());
            }
        }
        match identity.uid {
            Some(uid) if !foreign => Self::User(uid, identity.user.clone()),
            _ if foreign => Self::Nobody("a socket of another network namespace"),
            _ => Self::Nobody("no socket: forwarded, or made by the kernel"),
        }
    }
}

/// The system manager's service in a cgroup path: the first part that is no slice, if it is one.
/// What is below that its own processes may have named.
fn service(path: &str) -> Option<&str> {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let first = parts.find(|part| !part.ends_with(".slice"))?;
    let user = first.starts_with("user@");
    (first.ends_with(".service") && !user).then_some(first)
}

/// What somebody did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Use {
    /// Numbers of endpoints.
    endpoints: BTreeSet<usize>,
    packets: u64,
    callers: BTreeSet<String>,
    imdsv1: u64,
}

/// More names of one subject's programs than that are only counted.
const MOST_CALLERS: usize = 8;
/// More subjects than that are not kept: an attacker may make many, a policy has few.
const MOST_SUBJECTS: usize = 10_000;

/// All that was learned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Learned {
    uses: BTreeMap<Subject, Use>,
    /// Uses by subjects that there was no room for.
    pub left_out: u64,
}

impl Learned {
    /// Takes `count` packets or calls of `identity` to endpoint number `endpoint`.
    pub fn used(&mut self, identity: &Identity, foreign: bool, endpoint: usize, count: u64) {
        let Some(used) = self.of(identity, foreign) else {
            return;
        };
        used.endpoints.insert(endpoint);
        used.packets += count;
    }

    /// Takes a request without a session token.
    pub fn imdsv1(&mut self, identity: &Identity) {
        // A request is not told with its network namespace: only who is known already counts.
        let known = [false, true]
            .map(|foreign| Subject::of(identity, foreign))
            .into_iter()
            .find(|subject| self.uses.contains_key(subject));
        if let Some(used) = known.and_then(|subject| self.uses.get_mut(&subject)) {
            used.imdsv1 += 1;
        }
    }

    fn of(&mut self, identity: &Identity, foreign: bool) -> Option<&mut Use> {
        let subject = Subject::of(identity, foreign);
        if self.uses.len() >= MOST_SUBJECTS && !self.uses.contains_key(&subject) {
            self.left_out += 1;
            return None;
        }
        let used = self.uses.entry(subject).or_default();
        if let Some(caller) = caller(identity)
            && used.callers.len() < MOST_CALLERS
        {
            used.callers.insert(caller);
        }
        Some(used)
    }

    /// How many may be named in rules.
    pub fn subjects(&self) -> usize {
        let nobody = |subject: &&Subject| matches!(subject, Subject::Nobody(_));
        self.uses.len() - self.uses.keys().filter(nobody).count()
    }

    /// The policy, in TOML: the `endpoints` (text and name, by number) are guarded, and open to those
    /// who used them. `head` says what it was learned from, and `imdsv1_known` whether requests were
    /// looked at.
    pub fn policy(&self, head: &str, endpoints: &[(String, String)], imdsv1_known: bool) -> String {
        let mut text = String::new();
        for line in head.lines() {
            comment(&mut text, line);
        }
        if !imdsv1_known {
            comment(
                &mut text,
                "Whether IMDSv1 was used is not known: requests were not looked at.",
            );
        }
        if self.left_out > 0 {
            let left = format!(
                "{} more uses are not in it: too many callers.",
                self.left_out
            );
            comment(&mut text, &left);
        }
        text.push_str(
            "\n# What is guarded, from everybody whom no rule below allows it.\n[[rule]]\n",
        );
        let all = endpoints.iter().map(|(text, _)| text.as_str());
        let _ = writeln!(text, "endpoints = {}", list(all));
        for (subject, used) in &self.uses {
            text.push('\n');
            self.rule(&mut text, subject, used, endpoints);
        }
        text
    }

    fn rule(
        &self,
        text: &mut String,
        subject: &Subject,
        used: &Use,
        endpoints: &[(String, String)],
    ) {
        let names: BTreeSet<_> = used
            .endpoints
            .iter()
            .filter_map(|number| endpoints.get(*number))
            .map(|(_, name)| name.as_str())
            .collect();
        let names = Vec::from_iter(names).join(", ");
        comment(
            text,
            &format!("{} packets and calls to {names}", used.packets),
        );
        for caller in &used.callers {
            comment(text, &format!("by {caller}"));
        }
        if used.imdsv1 > 0 {
            comment(
                text,
                &format!(
                    "{} requests without a session token (IMDSv1): update it, so that IMDSv1 can be \
                     switched off",
                    used.imdsv1
                ),
            );
        }
        let (key, value) = match subject {
            Subject::Unit(unit) => ("cgroups", quoted(unit)),
            Subject::Cgroup(path) => {
                comment(
                    text,
                    "a container's cgroup is another one when it is made anew: a slice above it stays",
                );
                ("cgroups", quoted(path))
            }
            Subject::User(uid, None) => ("users", uid.to_string()),
            Subject::User(_, Some(name)) => ("users", quoted(name)),
            Subject::Nobody(why) => {
                comment(text, &format!("no rule can allow it: {why}"));
                return;
            }
        };
        let used = used
            .endpoints
            .iter()
            .filter_map(|number| endpoints.get(*number));
        let used = list(used.map(|(text, _)| text.as_str()));
        let _ = writeln!(text, "[[rule]]\nendpoints = {used}\n{key} = [{value}]");
    }
}

fn caller(identity: &Identity) -> Option<String> {
    let mut words = Vec::new();
    match (&identity.exe, &identity.comm) {
        (Some(exe), _) => words.push(exe.clone()),
        (None, Some(comm)) => words.push(comm.clone()),
        (None, None) => return None,
    }
    match (&identity.user, identity.uid) {
        (Some(user), _) => words.push(format!("user {user}")),
        (None, Some(uid)) => words.push(format!("uid {uid}")),
        (None, None) => {}
    }
    if let Some(unit) = &identity.unit {
        words.push(format!("unit {unit}"));
    }
    Some(words.join(", "))
}

/// A line that begins with `#`, with nothing in it that would end it.
fn comment(text: &mut String, line: &str) {
    let _ = writeln!(text, "# {}", Printable(line));
}

fn list<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<_> = texts.map(quoted).collect();
    format!("[{}]", quoted.join(", "))
}

/// A basic string of TOML, with all escaped that a terminal may obey.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_ascii_graphic() || c == ' ' => quoted.push(c),
            c => {
                let _ = write!(quoted, "\\U{:08x}", u32::from(c));
            }
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::config;
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn identity(uid: u32, cgroup: &str) -> Identity {
        let mut identity = Identity {
            uid: Some(uid),
            exe: Some("/usr/bin/curl".to_owned()),
            ..Identity::default()
        };
        identity.set_cgroup(cgroup);
        identity
    }

    fn endpoints() -> Vec<(String, String)> {
        ["169.254.169.254:80/tcp", "[fd00:ec2::254]:80/tcp"]
            .map(|text| (text.to_owned(), "aws".to_owned()))
            .to_vec()
    }

    #[test]
    fn the_narrowest_subject_that_stays_is_named() {
        let of = |cgroup: &str, foreign| Subject::of(&identity(7, cgroup), foreign);
        let unit = Subject::Unit("nginx.service".to_owned());
        assert_eq!(of("/system.slice/nginx.service", false), unit);
        assert_eq!(
            of("/system.slice/nginx.service/worker.service", false),
            unit
        );
        let pod = format!("/system.slice/containerd.service/kubepods-x.slice:cri-containerd:{ID}");
        assert_eq!(
            of(&format!("{pod}/init"), true),
            Subject::Cgroup(pod.clone())
        );
        let user = Subject::User(7, None);
        assert_eq!(of("/user.slice/user-7.slice/session-1.scope", false), user);
        assert_eq!(
            of(
                "/user.slice/user-7.slice/user@7.service/app.slice/x.service",
                false
            ),
            user
        );
        assert_eq!(of("/", false), user);
        let container = format!("/kubepods.slice/crio-{ID}.scope");
        assert_eq!(
            of(&format!("{container}/inner"), true),
            Subject::Cgroup(container)
        );
        assert!(matches!(of("/", true), Subject::Nobody(_)));
    }

    #[test]
    fn the_policy_allows_those_who_were_seen_what_they_used() {
        let mut learned = Learned::default();
        let nginx = identity(33, "/system.slice/nginx.service");
        learned.used(&nginx, false, 0, 3);
        learned.used(&nginx, false, 0, 4);
        learned.used(&identity(54321, "/"), false, 1, 1);
        learned.imdsv1(&nginx);
        learned.imdsv1(&identity(9, "/"));
        let text = learned.policy("Learned.", &endpoints(), true);
        let policy = config::parse("learned.toml", &text).unwrap();
        let [all, unit, user] = policy.rules.as_slice() else {
            panic!("{text}");
        };
        assert_eq!(all.endpoints.len(), 2);
        assert!(all.users.is_empty() && all.cgroups.is_empty());
        assert_eq!(unit.cgroups[0].text, "nginx.service");
        assert_eq!(unit.endpoints[0].to_string(), "169.254.169.254:80/tcp");
        assert_eq!(user.users[0].text, "54321");
        assert_eq!(user.endpoints[0].to_string(), "[fd00:ec2::254]:80/tcp");
        for said in [
            "# Learned.\n",
            "# 7 packets and calls to aws\n",
            "# by /usr/bin/curl, uid 33, unit nginx.service\n",
            "# 1 requests without a session token (IMDSv1)",
        ] {
            assert!(text.contains(said), "{said:?} in {text}");
        }
    }

    #[test]
    fn what_no_rule_can_allow_is_a_comment() {
        let mut learned = Learned::default();
        learned.used(&Identity::default(), false, 0, 1);
        let text = learned.policy("", &endpoints(), false);
        assert_eq!(config::parse("learned.toml", &text).unwrap().rules.len(), 1);
        assert!(text.contains("# no rule can allow it: no socket"), "{text}");
        assert_eq!(learned.subjects(), 0);
    }

    proptest! {
        #[test]
        fn no_name_breaks_out_of_its_place(name in ".*", path in ".*") {
            let mut learned = Learned::default();
            let mut hostile = identity(7, &format!("/x/{ID}{path}"));
            hostile.exe = Some(name.clone());
            learned.used(&hostile, false, 0, 1);
            let user = Identity { uid: Some(7), user: Some(name.clone()), ..Identity::default() };
            learned.used(&user, false, 0, 1);
            let text = learned.policy(&name, &endpoints(), true);
            let policy = config::parse("learned.toml", &text).unwrap();
            prop_assert_eq!(policy.rules.len(), 3);
            prop_assert_eq!(&policy.rules[2].users[0].text, &name);
            prop_assert!(text.chars().all(|c| c == '\n' || crate::output::is_printable(c)));
        }
    }
}
