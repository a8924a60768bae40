// SPDX-License-Identifier: BSD-2-Clause

//! The guard's part in the kernel: gates that are attached, and behind them the programs of the
//! policy in force.
//!
//! Everything here is held by descriptors of its own, so that a policy can go while the gates stay,
//! and all of it can be pinned.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use libbpf_rs::{ErrorKind, MapCore as _, MapFlags, MapHandle};

use super::event::Summary;
pub use super::gates::Hook;
use super::gates::{FIRST_BANK, Gate, Gates, SECOND_BANK, needed};
use super::plan::Plan;
pub use super::programs::Next;
use super::programs::{Kept, NetnsBy, Programs, Settings};
use super::report::{self, Key, Reason, Verdict};
use crate::failure::Failure;
use crate::kernel::interfaces::{Interface, Layout};
use crate::kernel::pin::Shelf;
use crate::kernel::program::{self, Ran};
use crate::kernel::tc::{Attachment, Method, Side};
use crate::kernel::{bpf, cgroup, clock, features};
use crate::skel::tc_guard::types::{guard_counter, guard_verdict};

/// The guard in the kernel. It judges nothing until it is attached and armed.
pub struct Guard {
    gates: Gates,
    policy: Programs,
    kept: Kept,
    method: Method,
}

/// MAX_REPORTS of tc_guard_report.bpf.h.
const MOST_REPORTS: usize = 32768;
/// Nanoseconds after which an entry of the table of reports may be dropped: what is still on its way to
/// it, or to whoever reads, has arrived.
const QUIET_NS: u64 = 10_000_000_000;

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

impl Guard {
    /// The better of the ways to attach that this kernel has.
    pub fn method() -> Method {
        if features::tcx() {
            Method::Tcx
        } else {
            Method::Clsact
        }
    }

    /// Loads gates, and `plan`'s programs behind them. The layer in connect() and sendmsg() is loaded if
    /// the plan wants it and `cgroup_root`, the cgroup2 mount, is given.
    ///
    /// # Errors
    /// What the kernel refuses; missing capabilities are named. [`Failure::Usage`] for more endpoints
    /// than there is room for.
    pub fn load(plan: &Plan, method: Method, cgroup_root: Option<&Path>) -> Result<Self> {
        if !bpf::has_btf() {
            return Err(Failure::blocked(
                "this kernel does not describe its types (/sys/kernel/btf/vmlinux)",
                "use a kernel built with CONFIG_DEBUG_INFO_BTF",
            )
            .into());
        }
        let root = cgroup_root.filter(|_| !plan.packets_only);
        let (gates, home) = Gates::load(method, root)?;
        let settings = Settings {
            method,
            calls: root.is_some() && home.cookie != 0,
            home,
            judged: random_mark()?,
            generation: 0,
        };
        let (policy, kept) = Programs::load(plan, settings, None)?;
        let guard = Self {
            gates,
            policy,
            kept,
            method,
        };
        guard.gates.write(|state| {
            state.judged = settings.judged;
            state.since_ns = clock::boot_ns();
        })?;
        guard.gates.fill(FIRST_BANK, &guard.policy)?;
        Ok(guard)
    }

    /// The guard that is pinned on `shelf`.
    ///
    /// # Errors
    /// If something is missing there.
    pub fn open(shelf: &Shelf) -> Result<Self> {
        let names = shelf.names();
        let map = |name: &str| {
            MapHandle::from_pinned_path(shelf.pin(name))
                .with_context(|| format!("cannot open {}", shelf.pin(name).display()))
        };
        let mut all = Vec::new();
        for hook in Hook::PACKETS.into_iter().chain(Hook::CALLS) {
            let gate = format!("gate_{}", hook.name());
            if names.contains(&gate) {
                all.push(Gate {
                    hook,
                    program: program::open(&shelf.pin(&gate))?,
                    slot: map(&format!("slot_{}", hook.name()))?,
                });
            }
        }
        let gates = Gates {
            all,
            state: map("state")?,
        };
        let generation = gates.read()?.generation;
        let mut programs = Vec::new();
        for gate in &gates.all {
            let name = format!("judge_{}_{generation}", gate.hook.name());
            if names.contains(&name) {
                programs.push((gate.hook, program::open(&shelf.pin(&name))?));
            }
        }
        Ok(Self {
            policy: Programs {
                all: programs,
                cgroups: map(&format!("cgroups_{generation}"))?,
                generation,
            },
            kept: Kept {
                counters: map("counters")?,
                reports: map("reports")?,
                events: map("events")?,
                callers: map("callers")?,
            },
            gates,
            method: Self::method(),
        })
    }

    /// Loads the programs of a policy that is to replace the one in force. Counters and reports go on;
    /// the reports of the new policy have a generation of their own.
    ///
    /// # Errors
    /// Those of [`Guard::load`].
    pub fn prepare(&self, plan: &Plan, cgroup_root: Option<&Path>) -> Result<Next> {
        let state = self.gates.read()?;
        let has_calls = self.gates.program(Hook::Connect4).is_some();
        let settings = Settings {
            method: self.method,
            calls: has_calls && !plan.packets_only && state.home.cookie != 0,
            home: state.home,
            judged: state.judged,
            generation: state.generation.wrapping_add(1),
        };
        let (policy, _) = Programs::load(plan, settings, Some(&self.kept))?;
        policy.allow_cgroups(plan, cgroup_root)?;
        Ok(Next { policy })
    }

    /// Puts the policy that was prepared in force, in one step at all hooks: no packet is judged by a
    /// part of each. The one that it replaces stays in its bank until the next comes, as a processor
    /// may still be on its way there.
    ///
    /// # Errors
    /// What the kernel refuses; the old policy stays in force then.
    pub fn switch(&mut self, next: Next) -> Result<()> {
        let bank = match self.gates.read()?.armed {
            FIRST_BANK => SECOND_BANK,
            _ => FIRST_BANK,
        };
        self.gates.fill(bank, &next.policy)?;
        self.gates.write(|state| {
            state.armed = bank;
            state.generation = next.policy.generation;
        })?;
        self.policy = next.policy;
        Ok(())
    }

    /// Starts to judge, at all hooks that are attached, in one step.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn arm(&self) -> Result<()> {
        self.gates.write(|state| state.armed = FIRST_BANK)
    }

    /// Stops to judge, at all hooks in one step.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn disarm(&self) -> Result<()> {
        self.gates.write(|state| state.armed = 0)
    }

    /// Whether it judges.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn armed(&self) -> Result<bool> {
        Ok(self.gates.read()?.armed != 0)
    }

    /// When it was loaded, on the kernel's boot clock; which policy is in force now, whoever put it
    /// there; and the cookie of the network namespace that it guards, or 0 if that is not known.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn facts(&self) -> Result<(u64, u16, u64)> {
        let state = self.gates.read()?;
        Ok((state.since_ns, state.generation, state.home.cookie))
    }

    /// The gates' programs, by hook.
    pub fn gates(&self) -> impl Iterator<Item = (Hook, BorrowedFd<'_>)> {
        let gates = self.gates.all.iter();
        gates.map(|gate| (gate.hook, gate.program.as_fd()))
    }

    /// Attaches to `interfaces`, to the egress of each and the ingress of veth: to all of them or, if
    /// one fails, to none.
    ///
    /// # Errors
    /// What the kernel refuses; missing capabilities are named.
    pub fn attach(&self, interfaces: &[Interface]) -> Result<Vec<Attachment>> {
        let mut attached = Vec::new();
        for interface in interfaces {
            interface.readable()?;
            let egress = match interface.layout {
                Layout::Ethernet => Hook::EgressEth,
                Layout::Network | Layout::Unknown(_) => Hook::EgressIp,
            };
            attached.push(self.attach_to(interface, Side::Egress, egress)?);
            if interface.veth {
                attached.push(self.attach_to(interface, Side::Ingress, Hook::IngressEth)?);
            }
        }
        Ok(attached)
    }

    fn attach_to(&self, interface: &Interface, side: Side, hook: Hook) -> Result<Attachment> {
        let gate = self.gates.program(hook).context("no gate of this kind")?;
        Attachment::new(gate, interface, side, self.method)
            .map_err(|err| bpf::explain_any(err, "attach the guard", needed(self.method)))
    }

    /// Attaches the layer in connect() and sendmsg() to the root of the cgroup2 tree; nothing if it was
    /// not loaded. The hooks are gone with their descriptors.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn attach_calls(&self, cgroup_root: &Path) -> Result<Vec<OwnedFd>> {
        let at = || format!("cannot attach to the cgroup {}", cgroup_root.display());
        let cgroup = File::open(cgroup_root).with_context(at)?;
        let calls = self.gates.all.iter().filter(|gate| self.judges(gate.hook));
        calls
            .filter_map(|gate| {
                Hook::CALLS
                    .contains(&gate.hook)
                    .then(|| gate.hook.attach_type(self.method))?
                    .map(|hook| (gate, hook))
            })
            .map(|(gate, hook)| {
                cgroup::attach(gate.program.as_fd(), &cgroup, hook).with_context(at)
            })
            .collect()
    }

    fn judges(&self, hook: Hook) -> bool {
        self.policy.all.iter().any(|(judged, _)| *judged == hook)
    }

    /// Whether the layer in connect() and sendmsg() was loaded.
    pub fn calls(&self) -> bool {
        self.judges(Hook::Connect4)
    }

    /// How the gates attach to interfaces.
    pub fn attach_method(&self) -> Method {
        self.method
    }

    /// Which policy is in force: 0 for the first.
    pub fn generation(&self) -> u16 {
        self.policy.generation
    }

    /// The ring of events.
    pub fn events(&self) -> &MapHandle {
        &self.kept.events
    }

    /// Everything that has to be pinned for the guard to outlive its process, with a name for each;
    /// besides, the links that attach it.
    pub fn held(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let mut held = Vec::new();
        for gate in &self.gates.all {
            held.push((format!("gate_{}", gate.hook.name()), gate.program.as_fd()));
            held.push((format!("slot_{}", gate.hook.name()), gate.slot.as_fd()));
        }
        held.push(("state".to_owned(), self.gates.state.as_fd()));
        held.extend(self.policy.held());
        for (name, map) in self.kept.named() {
            held.push((name.to_owned(), map.as_fd()));
        }
        held
    }

    /// Writes those of the plan's cgroups that are there to the policy.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn allow_cgroups(&self, plan: &Plan, cgroup_root: Option<&Path>) -> Result<()> {
        self.policy.allow_cgroups(plan, cgroup_root)
    }

    /// The subjects that are cgroups: `id` is allowed what `rules` open, or nothing any more.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn allow_cgroup(&self, id: u64, rules: Option<u64>) -> Result<()> {
        let key = id.to_ne_bytes();
        let map = &self.policy.cgroups;
        match rules {
            Some(rules) => map.update(&key, &rules.to_ne_bytes(), MapFlags::ANY),
            None => match map.delete(&key) {
                Err(err) if err.kind() == ErrorKind::NotFound => Ok(()),
                deleted => deleted,
            },
        }
        .with_context(|| format!("cannot write cgroup {id} to the policy"))
    }

    /// What the guard says to `packet` at a hook of the packet layer, run `repeat` times, once it is
    /// armed. The packet has no socket but that which the kernel's test run gives it: one of this
    /// network namespace, whose uid is 0.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn test_run(&self, hook: Hook, packet: &[u8], repeat: u32) -> Result<Ran> {
        let gate = self.gates.program(hook).context("no gate of this kind")?;
        program::test_run(gate, packet, repeat).context("cannot run the guard")
    }

    fn counter(&self, index: u32) -> Result<u64> {
        let values = self
            .kept
            .counters
            .lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)?
            .context("no such counter")?;
        Ok(values
            .iter()
            .filter_map(|value| Some(u64::from_ne_bytes(value.as_slice().try_into().ok()?)))
            .sum())
    }

    /// Packets and calls per key, since the start.
    ///
    /// # Errors
    /// If the kernel does not give them.
    pub fn reports(&self) -> Result<Vec<(Key, u64)>> {
        reports(&self.kept.reports)
    }

    /// The table of them.
    pub fn table(&self) -> &MapHandle {
        &self.kept.reports
    }

    /// Has whoever sees a gate at its hook find `said`, as long as the gate is there.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn say(&self, said: &MapHandle) -> Result<()> {
        for (hook, gate) in self.gates() {
            if Hook::PACKETS.contains(&hook) {
                program::bind(gate, said.as_fd())
                    .context("cannot bind what the guard says of itself to a gate")?;
            }
        }
        Ok(())
    }

    /// Makes room in the table of reports when half of it is in use: entries of which all has been told, as
    /// `told` says, and which were last told of `QUIET` ago, are dropped, and handed to `dropped`.
    ///
    /// # Errors
    /// If the kernel does not give them.
    pub fn make_room(
        &self,
        told: impl Fn(Key, u64) -> bool,
        mut dropped: impl FnMut(Key),
    ) -> Result<()> {
        let map = &self.kept.reports;
        let entries: Vec<_> = map.keys().collect();
        if entries.len() < MOST_REPORTS / 2 {
            return Ok(());
        }
        let now = clock::boot_ns();
        for bytes in entries {
            let Some(value) = map.lookup(&bytes, MapFlags::ANY)? else {
                continue;
            };
            let key = Key::from_bytes(&bytes)?;
            let total = report::total_from_bytes(&value)?;
            let last = report::last_from_bytes(&value)?;
            let quiet = now.saturating_sub(last) > QUIET_NS;
            if key.reason != Reason::Others && quiet && told(key, total) {
                map.delete(&bytes)?;
                dropped(key);
            }
        }
        Ok(())
    }

    /// Drops the reports of policies that were replaced `ago` policies before or earlier.
    ///
    /// # Errors
    /// If the kernel does not give them.
    pub fn forget_reports(&self, ago: u16) -> Result<()> {
        let map = &self.kept.reports;
        let entries: Vec<_> = map.keys().collect();
        for bytes in entries {
            let key = Key::from_bytes(&bytes)?;
            let age = self.policy.generation.wrapping_sub(key.generation);
            if key.reason != Reason::Others && age >= ago {
                // Another process may have been faster.
                let _ = map.delete(&bytes);
            }
        }
        Ok(())
    }

    /// The kernel's counters; `delivered` packets were told of.
    ///
    /// # Errors
    /// If the kernel does not give them.
    pub fn summary(&self, report_allowed: bool, delivered: u64) -> Result<Summary> {
        let verdict = |verdict: guard_verdict| self.counter(verdict.0);
        let counter = |counter: guard_counter| self.counter(counter.0);
        let allowed = verdict(guard_verdict::GUARD_ALLOWED)?;
        let denied = verdict(guard_verdict::GUARD_DENIED)?;
        let would_deny = verdict(guard_verdict::GUARD_WOULD_DENY)?;
        let seen = denied + would_deny + if report_allowed { allowed } else { 0 };
        Ok(Summary {
            seen,
            delivered,
            lost: seen.saturating_sub(delivered),
            allowed,
            denied,
            would_deny,
            passed: verdict(guard_verdict::GUARD_PASSED)?,
            calls: counter(guard_counter::GUARD_CALLS)?,
            resets: counter(guard_counter::GUARD_RESETS)?,
            prohibited: counter(guard_counter::GUARD_PROHIBITED)?,
            unanswered: counter(guard_counter::GUARD_UNANSWERED)?,
            limited: counter(guard_counter::GUARD_LIMITED)?,
            events_lost: counter(guard_counter::GUARD_EVENTS_LOST)?,
            unwritten: 0,
        })
    }

    /// Whether sockets of other network namespaces are told from the machine's own in the packet layer.
    pub fn knows_namespaces(&self) -> bool {
        self.gates
            .read()
            .is_ok_and(|state| NetnsBy::of(state.home) != NetnsBy::Unknown)
    }
}

/// Packets and calls per key in a table of reports.
///
/// # Errors
/// If the kernel does not give them.
fn reports(table: &MapHandle) -> Result<Vec<(Key, u64)>> {
    let mut found = Vec::new();
    for key in table.keys() {
        if let Some(value) = table.lookup(&key, MapFlags::ANY)? {
            found.push((Key::from_bytes(&key)?, report::total_from_bytes(&value)?));
        }
    }
    Ok(found)
}

/// How many packets and calls of this user were denied for who it is, by a guard's table of reports; `None` if the
/// kernel does not say.
pub fn denials(table: &MapHandle, uid: u32) -> Option<u64> {
    let reports = reports(table).ok()?;
    let of = |(key, _): &&(Key, u64)| key.verdict == Verdict::Denied && key.uid == Some(uid);
    Some(reports.iter().filter(of).map(|(_, total)| total).sum())
}

/// What packets are marked with that were judged as they came in: nobody else's number, and not 0,
/// which is no mark; nor is it 0 with the bit that makes the other mark of it (`GUARD_COUNTED`).
fn random_mark() -> Result<u16> {
    let mut bytes = [0; 2];
    File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(match u16::from_ne_bytes(bytes) {
        0 | 0x8000 => 1,
        mark => mark,
    })
}
