// SPDX-License-Identifier: BSD-2-Clause

//! A policy's programs and maps (tc_guard.bpf.c): loaded beside those of the policy in force, and put
//! behind the gates in one step.

use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use super::gates::{Home, Hook, needed, own, prepare};
use super::plan::Plan;
use super::report::{Key, Verdict};
use crate::endpoint_table::Table;
use crate::failure::Failure;
use crate::kernel::privileges::{Capabilities, Capability};
use crate::kernel::tc::Method;
use crate::kernel::{bpf, cgroup, endpoints as kernel_endpoints, features, namespace};
use crate::skel::tc_guard::types::guard_report;
use crate::skel::tc_guard::{OpenTcGuardSkel, TcGuardSkel, TcGuardSkelBuilder};

/// A policy that is loaded and not yet in force.
pub struct Next {
    pub(super) policy: Programs,
}

impl fmt::Debug for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").finish_non_exhaustive()
    }
}

impl Next {
    /// Which policy it will be.
    pub fn generation(&self) -> u16 {
        self.policy.generation
    }

    /// What has to be pinned for it, with a name for each.
    pub fn held(&self) -> Vec<(String, BorrowedFd<'_>)> {
        self.policy.held()
    }
}

/// What stays when a policy replaces another.
pub(super) struct Kept {
    pub(super) counters: MapHandle,
    pub(super) reports: MapHandle,
    pub(super) events: MapHandle,
    pub(super) callers: MapHandle,
}

/// A policy's programs, and the map of it that is written to while it is in force.
pub(super) struct Programs {
    pub(super) all: Vec<(Hook, OwnedFd)>,
    pub(super) cgroups: MapHandle,
    pub(super) generation: u16,
}

/// How the packet layer finds the network namespace of a socket: `enum netns_by` of `tc_guard_owner.bpf.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetnsBy {
    /// Not at all: whatever came in has no socket then.
    Unknown,
    /// In the socket itself, which takes CAP_PERFMON.
    Inode,
    /// By a helper of the kernel (6.15).
    Cookie,
}

impl NetnsBy {
    /// Whether there is any in this network namespace.
    pub fn any() -> bool {
        Self::of(Home::here()) != Self::Unknown
    }

    /// The best that this kernel and these privileges allow.
    pub fn of(home: Home) -> Self {
        if home.cookie != 0 && features::tc_knows_namespaces() {
            Self::Cookie
        } else if home.inode != 0
            && Capabilities::effective().has(Capability::Perfmon)
            && features::tc_reads_sockets()
        {
            Self::Inode
        } else {
            Self::Unknown
        }
    }
}

/// What programs are loaded for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) method: Method,
    /// The layer in connect() and sendmsg() is used.
    pub(super) calls: bool,
    pub(super) home: Home,
    pub(super) judged: u16,
    pub(super) generation: u16,
}

impl Kept {
    pub(super) fn of(skel: &TcGuardSkel<'_>) -> Result<Self> {
        Ok(Self {
            counters: MapHandle::try_from(&skel.maps.counters)?,
            reports: MapHandle::try_from(&skel.maps.reports)?,
            events: MapHandle::try_from(&skel.maps.events)?,
            callers: MapHandle::try_from(&skel.maps.callers)?,
        })
    }

    pub(super) fn named(&self) -> [(&'static str, &MapHandle); 4] {
        [
            ("counters", &self.counters),
            ("reports", &self.reports),
            ("events", &self.events),
            ("callers", &self.callers),
        ]
    }

    /// Lets a policy that is being loaded use these.
    pub(super) fn lend(&self, open: &mut OpenTcGuardSkel<'_>) -> Result<()> {
        let maps = &mut open.maps;
        maps.counters.reuse_fd(self.counters.as_fd())?;
        maps.reports.reuse_fd(self.reports.as_fd())?;
        maps.events.reuse_fd(self.events.as_fd())?;
        maps.callers.reuse_fd(self.callers.as_fd())?;
        Ok(())
    }
}

impl Programs {
    /// What has to be pinned: the names have the generation, so that those of two policies can be
    /// there together.
    pub(super) fn held(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let generation = self.generation;
        let mut held: Vec<_> = self
            .all
            .iter()
            .map(|(hook, program)| {
                (
                    format!("judge_{}_{generation}", hook.name()),
                    program.as_fd(),
                )
            })
            .collect();
        held.push((format!("cgroups_{generation}"), self.cgroups.as_fd()));
        held
    }

    /// Writes the cgroups that are there to the policy.
    pub(super) fn allow_cgroups(&self, plan: &Plan, cgroup_root: Option<&Path>) -> Result<()> {
        let Some(root) = cgroup_root else {
            return Ok(());
        };
        for (path, rules) in &plan.cgroups {
            if let Some(id) = cgroup::id(root, path) {
                self.cgroups
                    .update(&id.to_ne_bytes(), &rules.to_ne_bytes(), MapFlags::ANY)
                    .with_context(|| format!("cannot write cgroup {path} to the policy"))?;
            }
        }
        Ok(())
    }

    /// Loads the programs and writes `plan` to their maps.
    pub(super) fn load(
        plan: &Plan,
        settings: Settings,
        kept: Option<&Kept>,
    ) -> Result<(Self, Kept)> {
        let Settings { method, calls, .. } = settings;
        let perfmon = Capabilities::effective().has(Capability::Perfmon);
        if !plan.groups.is_empty() && calls && !perfmon {
            return Err(Failure::blocked(
                "rules for groups need CAP_PERFMON, to read a process's supplementary groups",
                "give it, or name users or cgroups instead",
            )
            .into());
        }
        if !(plan.users.is_empty() && plan.groups.is_empty()) && namespace::has_users_of_its_own() {
            return Err(Failure::blocked(
                "this network namespace belongs to a user namespace: its sockets have the numbers that users have \
                 there, and not the machine's",
                "name cgroups in place of users and groups",
            )
            .into());
        }
        if !plan.groups.is_empty() && !calls {
            return Err(Failure::blocked(
                "rules for groups need the hooks in connect() and sendmsg(): packets do not tell",
                "mount cgroup2, leave --packets-only away, or name users or cgroups instead",
            )
            .into());
        }
        let mut storage = MaybeUninit::uninit();
        let mut open = TcGuardSkelBuilder::default()
            .open(&mut storage)
            .map_err(|err| bpf::explain(err, "open the guard", needed(method)))?;
        configure(&mut open, plan, settings)?;
        let netns = NetnsBy::of(settings.home);
        let progs = &mut open.progs;
        for (hook, program, wanted) in [
            (
                Hook::EgressEth,
                &mut progs.egress_eth,
                netns == NetnsBy::Unknown,
            ),
            (
                Hook::EgressIp,
                &mut progs.egress_ip,
                netns == NetnsBy::Unknown,
            ),
            (
                Hook::IngressEth,
                &mut progs.ingress_eth,
                netns == NetnsBy::Unknown,
            ),
            (
                Hook::EgressEth,
                &mut progs.egress_eth_by_inode,
                netns == NetnsBy::Inode,
            ),
            (
                Hook::EgressEth,
                &mut progs.egress_eth_by_cookie,
                netns == NetnsBy::Cookie,
            ),
            (
                Hook::EgressIp,
                &mut progs.egress_ip_by_inode,
                netns == NetnsBy::Inode,
            ),
            (
                Hook::EgressIp,
                &mut progs.egress_ip_by_cookie,
                netns == NetnsBy::Cookie,
            ),
            (
                Hook::IngressEth,
                &mut progs.ingress_eth_by_inode,
                netns == NetnsBy::Inode,
            ),
            (
                Hook::IngressEth,
                &mut progs.ingress_eth_by_cookie,
                netns == NetnsBy::Cookie,
            ),
            (Hook::Connect4, &mut progs.connect4, !perfmon),
            (Hook::Connect6, &mut progs.connect6, !perfmon),
            (Hook::Sendmsg4, &mut progs.sendmsg4, !perfmon),
            (Hook::Sendmsg6, &mut progs.sendmsg6, !perfmon),
            (Hook::Connect4, &mut progs.connect4_perfmon, perfmon),
            (Hook::Connect6, &mut progs.connect6_perfmon, perfmon),
            (Hook::Sendmsg4, &mut progs.sendmsg4_perfmon, perfmon),
            (Hook::Sendmsg6, &mut progs.sendmsg6_perfmon, perfmon),
        ] {
            prepare(hook, program, method, calls);
            if !wanted {
                program.set_autoload(false);
            }
        }
        if let Some(kept) = kept {
            kept.lend(&mut open)?;
        }
        let skel = open
            .load()
            .map_err(|err| bpf::explain(err, "load the guard", needed(method)))?;
        write_maps(&skel, plan)?;
        if kept.is_none() {
            // Whoever finds the table of reports full is counted here; it was made for the first policy,
            // and stays.
            for verdict in [Verdict::Allowed, Verdict::Denied, Verdict::WouldDeny] {
                let entry = [0; size_of::<guard_report>()];
                skel.maps
                    .reports
                    .update(&Key::others(verdict), &entry, MapFlags::ANY)
                    .context("cannot write the table of reports")?;
            }
        }

        let progs = &skel.progs;
        let mut all = Vec::new();
        for (hook, program) in [
            (Hook::EgressEth, &progs.egress_eth),
            (Hook::EgressIp, &progs.egress_ip),
            (Hook::IngressEth, &progs.ingress_eth),
            (Hook::EgressEth, &progs.egress_eth_by_inode),
            (Hook::EgressEth, &progs.egress_eth_by_cookie),
            (Hook::EgressIp, &progs.egress_ip_by_inode),
            (Hook::EgressIp, &progs.egress_ip_by_cookie),
            (Hook::IngressEth, &progs.ingress_eth_by_inode),
            (Hook::IngressEth, &progs.ingress_eth_by_cookie),
            (Hook::Connect4, &progs.connect4),
            (Hook::Connect6, &progs.connect6),
            (Hook::Sendmsg4, &progs.sendmsg4),
            (Hook::Sendmsg6, &progs.sendmsg6),
            (Hook::Connect4, &progs.connect4_perfmon),
            (Hook::Connect6, &progs.connect6_perfmon),
            (Hook::Sendmsg4, &progs.sendmsg4_perfmon),
            (Hook::Sendmsg6, &progs.sendmsg6_perfmon),
        ] {
            if program.autoload() {
                all.push((hook, own(program.as_fd())?));
            }
        }
        let programs = Self {
            all,
            cgroups: MapHandle::try_from(&skel.maps.cgroups)?,
            generation: settings.generation,
        };
        Ok((programs, Kept::of(&skel)?))
    }
}

/// Writes the read-only data.
fn configure(open: &mut OpenTcGuardSkel<'_>, plan: &Plan, settings: Settings) -> Result<()> {
    let rodata = open.maps.rodata_data.as_deref_mut();
    let rodata = rodata.context("the guard has no settings")?;
    rodata.enforcing = plan.enforces().into();
    rodata.silent = (plan.deny == super::policy::Deny::Drop).into();
    rodata.report_allowed = plan.report_allowed.into();
    rodata.endpoint_bits = *plan.table.bitmaps;
    rodata.home_netns = settings.home.cookie;
    rodata.home_inode = settings.home.inode;
    rodata.judged = settings.judged;
    rodata.generation = settings.generation;
    rodata.any_groups = (!plan.groups.is_empty()).into();
    for (to, level) in rodata.cgroup_level.iter_mut().zip(plan.cgroup_levels()) {
        *to = level;
    }
    if plan.report_each {
        rodata.event_interval_ns = 0;
    }
    if let Some(limit) = plan.limit {
        rodata.limit_interval_ns = limit.interval_ns();
        rodata.limit_tolerance_ns = limit.tolerance_ns();
    }
    Ok(())
}

fn write_maps(skel: &TcGuardSkel<'_>, plan: &Plan) -> Result<()> {
    let maps = &skel.maps;
    for (uid, rules) in &plan.users {
        maps.users
            .update(&uid.to_ne_bytes(), &rules.to_ne_bytes(), MapFlags::ANY)
            .with_context(|| format!("cannot allow uid {uid}"))?;
    }
    for (gid, rules) in &plan.groups {
        maps.groups
            .update(&gid.to_ne_bytes(), &rules.to_ne_bytes(), MapFlags::ANY)
            .with_context(|| format!("cannot allow gid {gid}"))?;
    }
    kernel_endpoints::write(&plan.table, &maps.endpoints, &maps.endpoint_ports)?;
    for (key, value) in Table::exact(&plan.endpoints) {
        maps.exact_endpoints
            .update(&key, &value, MapFlags::ANY)
            .context("cannot write the table of endpoints")?;
    }
    for endpoint in 0..plan.endpoints.len() {
        // Who finds the table of limits full (struct bucket_key).
        let mut nobody = [0; 16];
        nobody[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
        nobody[12..].copy_from_slice(&u32::try_from(endpoint)?.to_ne_bytes());
        if plan.limit.is_some() {
            maps.buckets
                .update(&nobody, &[0; 16], MapFlags::ANY)
                .context("cannot write the table of limits")?;
        }
    }
    Ok(())
}
