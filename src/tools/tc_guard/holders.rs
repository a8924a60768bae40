// SPDX-License-Identifier: BSD-2-Clause

//! Who could send past a TC program, or take it off: processes by their capabilities and namespaces.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use procfs::process::{Process, all_processes};

use crate::kernel::privileges::{Capabilities, Capability};
use crate::process::{Directory, container_of, unit_of};

/// A process, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its name, which it chose itself.
    pub comm: String,
    /// Its cgroup2 path.
    pub cgroup: Option<String>,
    /// What it may do now, or may let itself do: its permitted set.
    pub capabilities: Capabilities,
    /// Whether it is in this network namespace.
    pub same_network: bool,
    /// Whether it is in this user namespace: the capabilities of another one count for nothing in
    /// the network namespace of this one.
    pub same_users: bool,
}

/// All processes but kernel threads and this one; those that cannot be looked at are counted.
pub fn processes() -> (Vec<Holder>, usize) {
    let me = std::process::id().cast_signed();
    let own = Process::myself().ok();
    let namespace = |process: &Process, name: &str| {
        let all = process.namespaces().ok()?;
        all.0.get(OsStr::new(name)).map(|found| found.identifier)
    };
    let own_network = own.as_ref().and_then(|own| namespace(own, "net"));
    let own_users = own.as_ref().and_then(|own| namespace(own, "user"));
    let mut found = Vec::new();
    let mut hidden = 0;
    for process in all_processes().into_iter().flatten().flatten() {
        let Ok(status) = process.status() else {
            continue;
        };
        // A kernel thread has no memory of its own (proc(5), VmSize).
        if process.pid == me || status.vmsize.is_none() {
            continue;
        }
        let (network, users) = (namespace(&process, "net"), namespace(&process, "user"));
        if network.is_none() || users.is_none() {
            hidden += usize::from(process.stat().is_ok());
            continue;
        }
        let cgroups = process.cgroups().ok();
        found.push(Holder {
            pid: process.pid.cast_unsigned(),
            uid: status.euid,
            comm: status.name,
            cgroup: cgroups.and_then(|groups| {
                let unified = groups.0.into_iter().find(|group| group.hierarchy == 0);
                unified.map(|group| group.pathname)
            }),
            capabilities: Capabilities(status.capprm),
            same_network: network == own_network,
            same_users: users == own_users,
        });
    }
    (found, hidden)
}

/// Processes that are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The name, and in text the unit or container and the user.
    pub who: String,
    /// Their ids, in order.
    pub pids: Vec<u32>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Those of other users than root that may send raw packets from this network namespace.
    pub raw: Vec<Group>,
    /// Those of other users than root that may take programs off interfaces here.
    pub masters: Vec<Group>,
    /// How many of root's there are that may do both.
    pub root: usize,
    /// How many are in a user namespace of their own.
    pub other_users: usize,
    /// How many of those are in this network namespace nevertheless.
    pub other_users_here: usize,
}

/// Sorts them out.
pub fn survey(processes: &[Holder], directory: &mut Directory) -> Survey {
    let mut survey = Survey::default();
    let mut raw = BTreeMap::<String, Vec<u32>>::new();
    let mut masters = BTreeMap::<String, Vec<u32>>::new();
    for process in processes {
        if !process.same_users {
            survey.other_users += 1;
            survey.other_users_here += usize::from(process.same_network);
            continue;
        }
        let has = |capability| process.capabilities.has(capability);
        // It may enter any network namespace, so that its own does not matter.
        let anywhere = has(Capability::SysAdmin);
        if process.uid == 0 && process.same_network && anywhere {
            survey.root += 1;
            continue;
        }
        let here = process.same_network || anywhere;
        if here && (has(Capability::NetAdmin) || anywhere) {
            masters
                .entry(who(process, directory))
                .or_default()
                .push(process.pid);
        } else if here && has(Capability::NetRaw) {
            raw.entry(who(process, directory))
                .or_default()
                .push(process.pid);
        }
    }
    let groups = |found: BTreeMap<String, Vec<u32>>| {
        let group = |(who, mut pids): (String, Vec<u32>)| {
            pids.sort_unstable();
            Group { who, pids }
        };
        found.into_iter().map(group).collect()
    };
    survey.raw = groups(raw);
    survey.masters = groups(masters);
    survey
}

fn who(process: &Holder, directory: &mut Directory) -> String {
    let user = match directory.user(process.uid) {
        Some(name) => format!("user {name}"),
        None => format!("uid {}", process.uid),
    };
    let cgroup = process.cgroup.as_deref().unwrap_or_default();
    let place = match (container_of(cgroup), unit_of(cgroup)) {
        (Some(id), _) => format!(", container {}", &id[..12]),
        (None, Some(unit)) => format!(", {unit}"),
        (None, None) => String::new(),
    };
    format!("{} ({user}{place})", process.comm)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: u64 = 1 << 13;
    const ADMIN: u64 = 1 << 12;
    const ALL: u64 = u64::MAX;

    fn process(pid: u32, uid: u32, capabilities: u64) -> Holder {
        Holder {
            pid,
            uid,
            comm: "ping".to_owned(),
            cgroup: Some("/system.slice/ping.service".to_owned()),
            capabilities: Capabilities(capabilities),
            same_network: true,
            same_users: true,
        }
    }

    #[test]
    fn who_may_send_raw_packets_is_told_together() {
        let found = survey(
            &[
                process(9, 54321, RAW),
                process(8, 54321, RAW),
                process(7, 54321, 0),
                process(6, 54321, ADMIN | RAW),
                process(5, 0, ALL),
            ],
            &mut Directory::default(),
        );
        let group = |pids: &[u32]| Group {
            who: "ping (uid 54321, ping.service)".to_owned(),
            pids: pids.to_vec(),
        };
        assert_eq!(found.raw, [group(&[8, 9])]);
        assert_eq!(found.masters, [group(&[6])]);
        assert_eq!((found.root, found.other_users), (1, 0));
    }

    #[test]
    fn capabilities_of_another_user_namespace_count_for_nothing_here() {
        let mut inside = process(9, 54321, ALL);
        inside.same_users = false;
        let found = survey(&[inside], &mut Directory::default());
        assert!(found.raw.is_empty() && found.masters.is_empty());
        assert_eq!((found.other_users, found.other_users_here), (1, 1));
    }

    #[test]
    fn raw_packets_in_another_network_namespace_are_judged_as_they_come_in() {
        let mut elsewhere = process(9, 0, RAW | ADMIN);
        elsewhere.same_network = false;
        let found = survey(&[elsewhere.clone()], &mut Directory::default());
        assert_eq!(found, Survey::default());
        // Who may enter this one is another matter.
        elsewhere.capabilities = Capabilities(ALL);
        let found = survey(&[elsewhere], &mut Directory::default());
        assert_eq!(found.masters.len(), 1);
    }

    #[test]
    fn this_machine_has_processes() {
        // One that may be looked at: it is this user's.
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let (found, _) = processes();
        child.kill().unwrap();
        child.wait().unwrap();
        let seen = found.iter().find(|process| process.pid == child.id());
        let seen = seen.expect("the child is listed");
        assert!(seen.same_network && seen.same_users, "{seen:?}");
        assert_eq!(seen.uid, nix::unistd::Uid::effective().as_raw());
        assert!(
            found
                .iter()
                .all(|process| process.pid != std::process::id())
        );
    }
}
