// SPDX-License-Identifier: BSD-2-Clause

//! Who may ask, where somebody has said so: by `--allow-user`, or in a policy of tc-guard.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use crate::endpoint::{Endpoint, Protocol};
use crate::failure::Failure;
use crate::process::{self, Identity};
use crate::tools::tc_guard::config;
use crate::tools::tc_guard::policy::{Policy, Rule, Subject};

/// Those that a rule names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Permit {
    /// Where; everywhere if it is empty.
    endpoints: Vec<Endpoint>,
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
    /// Systemd units, or paths below the cgroup2 mount that begin with a slash.
    cgroups: Vec<String>,
}

impl Permit {
    fn is_for(&self, place: SocketAddr) -> bool {
        let holds = |endpoint: &Endpoint| {
            endpoint.contains(place.ip())
                && endpoint.ports.contains(&place.port())
                && endpoint.protocol != Some(Protocol::Udp)
        };
        self.endpoints.is_empty() || self.endpoints.iter().any(holds)
    }

    /// Whether some place of `endpoint` is one of the rule's.
    fn touches(&self, endpoint: &Endpoint) -> bool {
        let touches = |own: &Endpoint| {
            let ports = own.ports.start() <= endpoint.ports.end()
                && endpoint.ports.start() <= own.ports.end();
            ports && (own.contains(endpoint.address) || endpoint.contains(own.address))
        };
        self.endpoints.is_empty() || self.endpoints.iter().any(touches)
    }

    /// Whether one of the rule's endpoints has every place of `endpoint`.
    fn covers(&self, endpoint: &Endpoint) -> bool {
        let covers = |own: &Endpoint| {
            let ports = own.ports.start() <= endpoint.ports.start()
                && endpoint.ports.end() <= own.ports.end();
            let network = own.prefix <= endpoint.prefix && own.contains(endpoint.address);
            ports && network && own.protocol != Some(Protocol::Udp)
        };
        self.endpoints.is_empty() || self.endpoints.iter().any(covers)
    }

    fn names(&self, who: &Identity, unit: &impl Fn(&str) -> Option<String>) -> bool {
        let in_cgroup = |text: &String| {
            let path = if text.starts_with('/') {
                Some(text.clone())
            } else {
                unit(text)
            };
            let (Some(path), Some(cgroup)) = (path, &who.cgroup) else {
                return false;
            };
            let path = path.trim_end_matches('/');
            cgroup
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        who.uid.is_some_and(|uid| self.users.contains(&uid))
            || who.gid.is_some_and(|gid| self.groups.contains(&gid))
            || self.cgroups.iter().any(in_cgroup)
    }
}

/// All rules; they add up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permitted {
    permits: Vec<Permit>,
}

impl Permitted {
    /// These users (names or uids) everywhere, and whom the policy in a file names; `None` if there
    /// is neither.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a file that cannot be read or is wrong, and for users and groups that
    /// are not known.
    pub fn new(users: &[String], policy: Option<&Path>) -> Result<Option<Self>, Failure> {
        let mut permits = Vec::new();
        if !users.is_empty() {
            let users = users.iter().map(|user| Subject::from(user.as_str()));
            permits.push(Permit {
                users: resolved(&users.collect::<Vec<_>>(), "user", process::resolve_user)?,
                ..Permit::default()
            });
        }
        if let Some(path) = policy {
            let file = path.display().to_string();
            let text = std::fs::read_to_string(path)
                .map_err(|err| Failure::usage(format!("policy {file}: {err}")))?;
            permits.extend(Self::of_policy(&config::parse(&file, &text)?)?.permits);
        }
        Ok((!permits.is_empty()).then_some(Self { permits }))
    }

    /// Whom a policy names.
    ///
    /// # Errors
    /// [`Failure::Usage`] for users and groups that are not known.
    pub fn of_policy(policy: &Policy) -> Result<Self, Failure> {
        let permit = |rule: &Rule| -> Result<Permit, Failure> {
            Ok(Permit {
                endpoints: rule.endpoints.clone(),
                users: resolved(&rule.users, "user", process::resolve_user)?,
                groups: resolved(&rule.groups, "group", process::resolve_group)?,
                cgroups: rule.cgroups.iter().map(|one| one.text.clone()).collect(),
            })
        };
        let permits = policy.rules.iter().map(permit).collect::<Result<_, _>>()?;
        Ok(Self { permits })
    }

    /// Whether `who` may ask at `place`: a place that no rule is for is open to all. `unit` finds the
    /// cgroup's path of a systemd unit.
    pub fn allows(
        &self,
        place: SocketAddr,
        who: &Identity,
        unit: impl Fn(&str) -> Option<String>,
    ) -> bool {
        let mut here = self
            .permits
            .iter()
            .filter(|one| one.is_for(place))
            .peekable();
        here.peek().is_none() || here.any(|one| one.names(who, &unit))
    }

    /// The users that may ask at every place of these endpoints: the filter need not look further at
    /// those.
    pub fn everywhere(&self, endpoints: &[Endpoint]) -> BTreeSet<u32> {
        let all = self.permits.iter().flat_map(|one| one.users.iter());
        let mut known: BTreeSet<u32> = all.copied().collect();
        for endpoint in endpoints {
            let mut here = self
                .permits
                .iter()
                .filter(|one| one.touches(endpoint))
                .peekable();
            if here.peek().is_none() {
                continue;
            }
            let whole: Vec<_> = here.filter(|one| one.covers(endpoint)).collect();
            known.retain(|uid| whole.iter().any(|one| one.users.contains(uid)));
        }
        known
    }
}

fn resolved(
    subjects: &[Subject],
    what: &str,
    resolve: impl Fn(&str) -> Option<u32>,
) -> Result<BTreeSet<u32>, Failure> {
    let id = |subject: &Subject| {
        resolve(&subject.text).ok_or_else(|| {
            let place = subject.place.as_ref().map(|place| format!("{place}: "));
            let text = &subject.text;
            let place = place.unwrap_or_default();
            Failure::usage(format!(
                "{place}no {what} {text:?}; expected a name or a number"
            ))
        })
    };
    subjects.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(uid: u32, gid: u32, cgroup: &str) -> Identity {
        Identity {
            uid: Some(uid),
            gid: Some(gid),
            cgroup: Some(cgroup.to_owned()),
            ..Identity::default()
        }
    }

    fn policy(text: &str) -> Permitted {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.toml");
        std::fs::write(&file, text).unwrap();
        Permitted::new(&[], Some(&file)).unwrap().unwrap()
    }

    const POLICY: &str = r#"
[[rule]]
clouds = ["aws"]
users = [0, 7]
groups = [20]
cgroups = ["agent.service", "/own"]
[[rule]]
endpoints = ["10.0.0.1:80"]
users = [0, 8]
"#;

    #[test]
    fn a_policy_says_who_may_ask_where() {
        let permitted = policy(POLICY);
        let unit = |name: &str| {
            (name == "agent.service").then(|| "/system.slice/agent.service".to_owned())
        };
        let aws = "169.254.169.254:80".parse().unwrap();
        let own = "10.0.0.1:80".parse().unwrap();
        let open = "10.0.0.1:81".parse().unwrap();
        for (place, who, expected) in [
            (aws, who(7, 1, "/"), true),
            (aws, who(8, 1, "/"), false),
            (aws, who(8, 20, "/"), true),
            (aws, who(8, 1, "/system.slice/agent.service"), true),
            (aws, who(8, 1, "/system.slice/agent.service/x"), true),
            (aws, who(8, 1, "/system.slice/agent.services"), false),
            (aws, who(8, 1, "/user.slice/agent.service"), false),
            (aws, who(8, 1, "/own/x"), true),
            (own, who(7, 20, "/own"), false),
            (own, who(8, 1, "/"), true),
            (open, who(9, 9, "/"), true),
            (aws, Identity::default(), false),
        ] {
            assert_eq!(
                permitted.allows(place, &who, unit),
                expected,
                "{place} {who:?}"
            );
        }
    }

    #[test]
    fn the_filter_knows_only_who_may_ask_everywhere() {
        let permitted = policy(POLICY);
        let all = |texts: &[&str]| {
            let endpoints: Vec<_> = texts.iter().map(|text| text.parse().unwrap()).collect();
            permitted
                .everywhere(&endpoints)
                .into_iter()
                .collect::<Vec<_>>()
        };
        assert_eq!(all(&["169.254.169.254:80"]), [0, 7]);
        assert_eq!(all(&["10.0.0.1:80"]), [0, 8]);
        assert_eq!(all(&["10.0.0.1:80", "169.254.169.254:80"]), [0]);
        // No rule is for all of these, and none is for the last.
        assert_eq!(all(&["10.0.0.0/24:80"]), Vec::<u32>::new());
        assert_eq!(all(&["10.0.0.1:80-90"]), Vec::<u32>::new());
        assert_eq!(all(&["10.0.0.2:80"]), [0, 7, 8]);
    }

    #[test]
    fn users_are_allowed_everywhere_and_wrong_ones_are_named() {
        assert_eq!(Permitted::new(&[], None).unwrap(), None);
        let permitted = Permitted::new(&["0".to_owned()], None).unwrap().unwrap();
        let place = "10.0.0.1:80".parse().unwrap();
        assert!(permitted.allows(place, &who(0, 0, "/"), |_| None));
        assert!(!permitted.allows(place, &who(1, 0, "/"), |_| None));
        let err = Permitted::new(&["no-such-user".to_owned()], None).unwrap_err();
        assert!(err.to_string().contains("\"no-such-user\""), "{err}");
        let err = Permitted::new(&[], Some(Path::new("/no/such/file"))).unwrap_err();
        assert!(err.to_string().contains("/no/such/file"), "{err}");
    }
}
