// SPDX-License-Identifier: BSD-2-Clause

//! The guard's part in the kernel: gates that are attached, and behind them the programs of the
//! policy in force.
//!
//! Everything here is held by descriptors of its own, so that a policy can go while the gates stay,
//! and all of it can be pinned.

use std::fmt;
use std::fs::File;
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{ErrorKind, MapCore as _, MapFlags, MapHandle, OpenProgramMut, ProgramAttachType};

use super::event::Summary;
use super::plan::{self, Plan};
use super::report::{self, Key, Reason, Verdict};
use crate::endpoint_table::Table;
use crate::failure::Failure;
use crate::kernel::interfaces::Interface;
use crate::kernel::pin::Shelf;
use crate::kernel::privileges::{Capabilities, Capability};
use crate::kernel::program::{self, Ran};
use crate::kernel::tc::{Attachment, Method, Side};
use crate::kernel::{bpf, cgroup, clock, endpoints as kernel_endpoints, features, namespace};
use crate::skel::guard_gate::types::bss;
use crate::skel::guard_gate::{GuardGateSkel, GuardGateSkelBuilder};
use crate::skel::tc_guard::types::{guard_counter, guard_report, guard_verdict};
use crate::skel::tc_guard::{OpenTcGuardSkel, TcGuardSkel, TcGuardSkelBuilder};

/// What loading and attaching need. Before kernel 6.6 a program may compare packet pointers with
/// CAP_PERFMON only (commit d75e30dddf73); of later ones, 6.12 was seen to refuse the judging programs
/// without it, and 6.18 and 7.2 to take them. It is named where it is missing and the kernel refuses.
pub fn needed(_: Method) -> &'static [Capability] {
    &[Capability::Bpf, Capability::NetAdmin, Capability::Perfmon]
}

/// Where a gate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that leave by an interface with Ethernet headers.
    EgressEth,
    /// Packets that leave by an interface without.
    EgressIp,
    /// Packets that come in from a container.
    IngressEth,
    /// connect() of an IPv4 socket.
    Connect4,
    /// connect() of an IPv6 socket.
    Connect6,
    /// sendmsg() of an IPv4 socket, to an address.
    Sendmsg4,
    /// sendmsg() of an IPv6 socket, to an address.
    Sendmsg6,
}

impl Hook {
    /// Those of the packet layer.
    pub const PACKETS: [Self; 3] = [Self::EgressEth, Self::EgressIp, Self::IngressEth];
    /// Those of the layer in connect() and sendmsg().
    pub const CALLS: [Self; 4] = [
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
    ];

    /// The name of the programs and slots.
    pub fn name(self) -> &'static str {
        match self {
            Self::EgressEth => "egress_eth",
            Self::EgressIp => "egress_ip",
            Self::IngressEth => "ingress_eth",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
        }
    }

    /// What the program's attach type has to be before it is loaded; a program for clsact has none.
    fn attach_type(self, method: Method) -> Option<ProgramAttachType> {
        match (self, method) {
            (Self::EgressEth | Self::EgressIp, Method::Tcx) => Some(ProgramAttachType::TcxEgress),
            (Self::IngressEth, Method::Tcx) => Some(ProgramAttachType::TcxIngress),
            (Self::EgressEth | Self::EgressIp | Self::IngressEth, Method::Clsact) => None,
            (Self::Connect4, _) => Some(ProgramAttachType::CgroupInet4Connect),
            (Self::Connect6, _) => Some(ProgramAttachType::CgroupInet6Connect),
            (Self::Sendmsg4, _) => Some(ProgramAttachType::CgroupUdp4Sendmsg),
            (Self::Sendmsg6, _) => Some(ProgramAttachType::CgroupUdp6Sendmsg),
        }
    }
}

/// The guard in the kernel. It judges nothing until it is attached and armed.
pub struct Guard {
    gates: Gates,
    policy: Programs,
    kept: Kept,
    method: Method,
}

/// One hook's gate, and the slot behind it.
struct Gate {
    hook: Hook,
    program: OwnedFd,
    slot: MapHandle,
}

/// A policy that is loaded and not yet in force.
pub struct Next {
    policy: Programs,
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

/// MAX_REPORTS of tc_guard_report.bpf.h.
const MOST_REPORTS: usize = 32768;
/// Nanoseconds after which an entry of the table of reports may be dropped: what is still on its way to
/// it, or to whoever reads, has arrived.
const QUIET_NS: u64 = 10_000_000_000;

/// The banks of the slots, as `armed` of guard_gate.bpf.c has them.
const FIRST_BANK: u8 = 1;
const SECOND_BANK: u8 = 2;

/// What stays attached.
struct Gates {
    all: Vec<Gate>,
    /// The global variables of guard_gate.bpf.c.
    state: MapHandle,
}

/// What stays when a policy replaces another.
struct Kept {
    counters: MapHandle,
    reports: MapHandle,
    events: MapHandle,
    callers: MapHandle,
}

/// A policy's programs, and the map of it that is written to while it is in force.
struct Programs {
    all: Vec<(Hook, OwnedFd)>,
    cgroups: MapHandle,
    generation: u16,
}

/// What programs are loaded for.
#[derive(Debug, Clone, Copy)]
struct Settings {
    method: Method,
    /// The layer in connect() and sendmsg() is used.
    calls: bool,
    /// The cookie of the guarded network namespace, or 0.
    home_netns: u64,
    judged: u16,
    generation: u16,
}

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
        let (gates, home_netns) = Gates::load(method, root)?;
        let settings = Settings {
            method,
            calls: root.is_some() && home_netns != 0,
            home_netns,
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
            calls: has_calls && !plan.packets_only && state.home_netns != 0,
            home_netns: state.home_netns,
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
        Ok((state.since_ns, state.generation, state.home_netns))
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
            let egress = if interface.ethernet {
                Hook::EgressEth
            } else {
                Hook::EgressIp
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
            None => map.delete(&key),
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
        let mut out = vec![0; packet.len() + 256];
        program::test_run(gate, packet, &mut out, repeat).context("cannot run the guard")
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
        let map = &self.kept.reports;
        let mut found = Vec::new();
        for key in map.keys() {
            if let Some(value) = map.lookup(&key, MapFlags::ANY)? {
                found.push((Key::from_bytes(&key)?, report::total_from_bytes(&value)?));
            }
        }
        Ok(found)
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
            .is_ok_and(|state| state.home_netns != 0 && features::tc_knows_namespaces())
    }
}

impl Gates {
    /// With the cookie of this network namespace, or 0 where nothing tells it.
    fn load(method: Method, cgroup_root: Option<&Path>) -> Result<(Self, u64)> {
        let known = namespace::cookie();
        let mut storage = MaybeUninit::uninit();
        let mut open = GuardGateSkelBuilder::default()
            .open(&mut storage)
            .map_err(|err| bpf::explain(err, "open the guard", needed(method)))?;
        let progs = &mut open.progs;
        for (hook, program) in [
            (Hook::EgressEth, &mut progs.gate_egress_eth),
            (Hook::EgressIp, &mut progs.gate_egress_ip),
            (Hook::IngressEth, &mut progs.gate_ingress_eth),
            (Hook::Connect4, &mut progs.gate_connect4),
            (Hook::Connect6, &mut progs.gate_connect6),
            (Hook::Sendmsg4, &mut progs.gate_sendmsg4),
            (Hook::Sendmsg6, &mut progs.gate_sendmsg6),
        ] {
            prepare(hook, program, method, cgroup_root.is_some());
        }
        progs
            .learn_netns
            .set_autoload(cgroup_root.is_some() && known.is_none());
        let mut skel = open
            .load()
            .map_err(|err| bpf::explain(err, "load the guard", needed(method)))?;
        let home_netns = match (known, cgroup_root) {
            (Some(cookie), _) => cookie,
            (None, Some(root)) => learn_netns(&mut skel, root)?,
            (None, None) => 0,
        };
        let (progs, maps) = (&skel.progs, &skel.maps);
        let mut all = Vec::new();
        for (hook, program, slot) in [
            (
                Hook::EgressEth,
                &progs.gate_egress_eth,
                &maps.slot_egress_eth,
            ),
            (Hook::EgressIp, &progs.gate_egress_ip, &maps.slot_egress_ip),
            (
                Hook::IngressEth,
                &progs.gate_ingress_eth,
                &maps.slot_ingress_eth,
            ),
            (Hook::Connect4, &progs.gate_connect4, &maps.slot_connect4),
            (Hook::Connect6, &progs.gate_connect6, &maps.slot_connect6),
            (Hook::Sendmsg4, &progs.gate_sendmsg4, &maps.slot_sendmsg4),
            (Hook::Sendmsg6, &progs.gate_sendmsg6, &maps.slot_sendmsg6),
        ] {
            if !program.autoload() {
                continue;
            }
            all.push(Gate {
                hook,
                program: own(program.as_fd())?,
                slot: MapHandle::try_from(slot)?,
            });
        }
        let gates = Self {
            all,
            state: MapHandle::try_from(&maps.bss)?,
        };
        gates.write(|state| state.home_netns = home_netns)?;
        Ok((gates, home_netns))
    }

    /// Puts a policy's programs into the slots of a bank.
    fn fill(&self, bank: u8, policy: &Programs) -> Result<()> {
        let key = u32::from(bank - 1).to_ne_bytes();
        for gate in &self.all {
            let at = || format!("cannot put a program behind {}", gate.hook.name());
            match policy.all.iter().find(|(hook, _)| *hook == gate.hook) {
                Some((_, program)) => gate
                    .slot
                    .update(&key, &program.as_raw_fd().to_ne_bytes(), MapFlags::ANY)
                    .with_context(at)?,
                // What an earlier policy has left there.
                None => match gate.slot.delete(&key) {
                    Err(err) if err.kind() != ErrorKind::NotFound => {
                        return Err(err).with_context(at);
                    }
                    _ => {}
                },
            }
        }
        Ok(())
    }

    fn program(&self, hook: Hook) -> Option<BorrowedFd<'_>> {
        let gate = self.all.iter().find(|gate| gate.hook == hook)?;
        Some(gate.program.as_fd())
    }

    fn read(&self) -> Result<State> {
        let bytes = self.state.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)?;
        let bytes = bytes.context("the gates have no state")?;
        Ok(State::from_bytes(&bytes))
    }

    fn write(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let key = 0_u32.to_ne_bytes();
        let bytes = self.state.lookup(&key, MapFlags::ANY)?;
        let mut bytes = bytes.context("the gates have no state")?;
        let mut state = State::from_bytes(&bytes);
        change(&mut state);
        state.to_bytes(&mut bytes);
        self.state
            .update(&key, &bytes, MapFlags::ANY)
            .context("cannot write the state of the gates")
    }
}

/// The global variables of guard_gate.bpf.c, where user space has a say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    armed: u8,
    judged: u16,
    generation: u16,
    since_ns: u64,
    home_netns: u64,
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes
        .get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok());
    found.unwrap_or([0; N])
}

fn set_field(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + value.len()) {
        to.copy_from_slice(value);
    }
}

impl State {
    fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            armed: field::<1>(bytes, offset_of!(bss, armed))[0],
            judged: u16::from_ne_bytes(field(bytes, offset_of!(bss, judged))),
            generation: u16::from_ne_bytes(field(bytes, offset_of!(bss, generation))),
            since_ns: u64::from_ne_bytes(field(bytes, offset_of!(bss, since_ns))),
            home_netns: u64::from_ne_bytes(field(bytes, offset_of!(bss, home_netns))),
        }
    }

    fn to_bytes(self, bytes: &mut [u8]) {
        set_field(bytes, offset_of!(bss, armed), &[self.armed]);
        set_field(bytes, offset_of!(bss, judged), &self.judged.to_ne_bytes());
        set_field(
            bytes,
            offset_of!(bss, generation),
            &self.generation.to_ne_bytes(),
        );
        set_field(
            bytes,
            offset_of!(bss, since_ns),
            &self.since_ns.to_ne_bytes(),
        );
        set_field(
            bytes,
            offset_of!(bss, home_netns),
            &self.home_netns.to_ne_bytes(),
        );
    }
}

impl Kept {
    fn of(skel: &TcGuardSkel<'_>) -> Result<Self> {
        Ok(Self {
            counters: MapHandle::try_from(&skel.maps.counters)?,
            reports: MapHandle::try_from(&skel.maps.reports)?,
            events: MapHandle::try_from(&skel.maps.events)?,
            callers: MapHandle::try_from(&skel.maps.callers)?,
        })
    }

    fn named(&self) -> [(&'static str, &MapHandle); 4] {
        [
            ("counters", &self.counters),
            ("reports", &self.reports),
            ("events", &self.events),
            ("callers", &self.callers),
        ]
    }

    /// Lets a policy that is being loaded use these.
    fn lend(&self, open: &mut OpenTcGuardSkel<'_>) -> Result<()> {
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
    fn held(&self) -> Vec<(String, BorrowedFd<'_>)> {
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
    fn allow_cgroups(&self, plan: &Plan, cgroup_root: Option<&Path>) -> Result<()> {
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
    fn load(plan: &Plan, settings: Settings, kept: Option<&Kept>) -> Result<(Self, Kept)> {
        let Settings { method, calls, .. } = settings;
        let table = Table::with(&plan.endpoints, plan::unread)?;
        let perfmon = Capabilities::effective().has(Capability::Perfmon);
        if !plan.groups.is_empty() && calls && !perfmon {
            return Err(Failure::blocked(
                "rules for groups need CAP_PERFMON, to read a process's supplementary groups",
                "give it, or name users or cgroups instead",
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
        configure(&mut open, plan, &table, settings)?;
        let namespaces = settings.home_netns != 0 && features::tc_knows_namespaces();
        let progs = &mut open.progs;
        for (hook, program, wanted) in [
            (Hook::EgressEth, &mut progs.egress_eth, !namespaces),
            (Hook::EgressIp, &mut progs.egress_ip, !namespaces),
            (Hook::IngressEth, &mut progs.ingress_eth, !namespaces),
            (Hook::EgressEth, &mut progs.egress_eth_ns, namespaces),
            (Hook::EgressIp, &mut progs.egress_ip_ns, namespaces),
            (Hook::IngressEth, &mut progs.ingress_eth_ns, namespaces),
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
        write_maps(&skel, plan, &table)?;
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
            (Hook::EgressEth, &progs.egress_eth_ns),
            (Hook::EgressIp, &progs.egress_ip_ns),
            (Hook::IngressEth, &progs.ingress_eth_ns),
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

fn prepare(hook: Hook, program: &mut OpenProgramMut<'_>, method: Method, calls: bool) {
    let wanted = calls || Hook::PACKETS.contains(&hook);
    program.set_autoload(wanted);
    if let Some(kind) = hook.attach_type(method) {
        program.set_attach_type(kind);
    }
}

/// Writes the read-only data.
fn configure(
    open: &mut OpenTcGuardSkel<'_>,
    plan: &Plan,
    table: &Table,
    settings: Settings,
) -> Result<()> {
    let rodata = open.maps.rodata_data.as_deref_mut();
    let rodata = rodata.context("the guard has no settings")?;
    rodata.enforcing = plan.enforces().into();
    rodata.silent = (plan.deny == super::policy::Deny::Drop).into();
    rodata.report_allowed = plan.report_allowed.into();
    rodata.endpoint_bits = *table.bitmaps;
    rodata.home_netns = settings.home_netns;
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

fn write_maps(skel: &TcGuardSkel<'_>, plan: &Plan, table: &Table) -> Result<()> {
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
    kernel_endpoints::write(table, &maps.endpoints, &maps.endpoint_ports)?;
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

/// Before kernel 5.14 no system call tells a network namespace's cookie: a program does, in a
/// connect() of a socket of ours that sends nothing.
fn learn_netns(skel: &mut GuardGateSkel<'_>, root: &Path) -> Result<u64> {
    let pid = nix::unistd::Pid::this().as_raw();
    let tid = nix::unistd::gettid().as_raw();
    let Some(state) = skel.maps.bss_data.as_deref_mut() else {
        bail!("the gates have no state");
    };
    state.asking = u64::from(pid.cast_unsigned()) << 32 | u64::from(tid.cast_unsigned());
    let at = || format!("cannot attach to the cgroup {}", root.display());
    let cgroup = File::open(root).with_context(at)?;
    let hook = ProgramAttachType::CgroupInet4Connect;
    let learning =
        cgroup::attach(skel.progs.learn_netns.as_fd(), &cgroup, hook).with_context(at)?;
    // connect() of a datagram socket sends nothing, and the hook runs whether there is a route or not.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").context("cannot make a socket")?;
    let _ = socket.connect("127.0.0.1:9");
    drop(learning);
    let state = MapHandle::try_from(&skel.maps.bss)?;
    let bytes = state.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)?;
    let state = State::from_bytes(&bytes.unwrap_or_default());
    Ok(state.home_netns)
}

/// A descriptor that stays when the object has gone.
fn own(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}

/// What packets are marked with that were judged as they came in: nobody else's number, and not 0,
/// which is no mark; nor is it 0 with the bit that makes the other mark of it (`GUARD_COUNTED`).
fn random_mark() -> Result<u16> {
    let mut bytes = [0; 2];
    File::open("/dev/urandom")
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(match u16::from_ne_bytes(bytes) {
        0 | 0x8000 => 1,
        mark => mark,
    })
}
