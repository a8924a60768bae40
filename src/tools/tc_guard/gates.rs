// SPDX-License-Identifier: BSD-2-Clause

//! The gates: what stays attached while policies come and go (guard_gate.bpf.c).

use std::fs::File;
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{ErrorKind, MapCore as _, MapFlags, MapHandle, OpenProgramMut, ProgramAttachType};

use super::programs::Programs;
use crate::kernel::privileges::Capability;
use crate::kernel::tc::Method;
use crate::kernel::{bpf, cgroup, namespace, program};
use crate::skel::guard_gate::types::bss;
use crate::skel::guard_gate::{GuardGateSkel, GuardGateSkelBuilder};

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
    pub(super) fn attach_type(self, method: Method) -> Option<ProgramAttachType> {
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

/// How an attached program or filter of this name is known as a gate: the kernel keeps 15 bytes.
const GATES: [&str; 2] = ["gate_egress_", "gate_ingress_"];

/// Whether an attached program or filter of this name is a gate of the packet layer.
pub fn is_gate(name: &str) -> bool {
    GATES.iter().any(|gate| name.starts_with(gate))
}

/// One hook's gate, and the slot behind it.
pub(super) struct Gate {
    pub(super) hook: Hook,
    pub(super) program: OwnedFd,
    pub(super) slot: MapHandle,
}

/// The banks of the slots, as `armed` of guard_gate.bpf.c has them.
pub(super) const FIRST_BANK: u8 = 1;
pub(super) const SECOND_BANK: u8 = 2;
/// How many there are.
const BANKS: usize = 2;

/// What stays attached.
pub(super) struct Gates {
    pub(super) all: Vec<Gate>,
    /// The global variables of guard_gate.bpf.c.
    pub(super) state: MapHandle,
}

impl Gates {
    /// With what this network namespace is known by.
    pub(super) fn load(method: Method, cgroup_root: Option<&Path>) -> Result<(Self, Home)> {
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
        let home = Home {
            cookie: home_netns,
            inode: namespace::inode(),
        };
        gates.write(|state| state.home = home)?;
        Ok((gates, home))
    }

    /// Puts a policy's programs into the slots of a bank.
    pub(super) fn fill(&self, bank: u8, policy: &Programs) -> Result<()> {
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

    pub(super) fn program(&self, hook: Hook) -> Option<BorrowedFd<'_>> {
        let gate = self.all.iter().find(|gate| gate.hook == hook)?;
        Some(gate.program.as_fd())
    }

    pub(super) fn read(&self) -> Result<State> {
        let bytes = self.state.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)?;
        let bytes = bytes.context("the gates have no state")?;
        Ok(State::from_bytes(&bytes))
    }

    pub(super) fn write(&self, change: impl FnOnce(&mut State)) -> Result<()> {
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
pub(super) struct State {
    pub(super) armed: u8,
    pub(super) judged: u16,
    pub(super) generation: u16,
    pub(super) since_ns: u64,
    pub(super) home: Home,
}

/// What the guarded network namespace is known by; each 0 where nothing tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Home {
    /// Its cookie: no other has had it since the machine was booted.
    pub cookie: u64,
    /// Its number among the inodes of nsfs.
    pub inode: u32,
}

impl Home {
    /// What this thread's network namespace is known by, as far as system calls tell it.
    pub fn here() -> Self {
        Self {
            cookie: namespace::cookie().unwrap_or(0),
            inode: namespace::inode(),
        }
    }
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

/// Which bank the gate with these variables asks: 1, 2, or 0 for none.
pub(super) fn armed(state: &[u8]) -> u8 {
    State::from_bytes(state).armed
}

impl State {
    fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            armed: field::<1>(bytes, offset_of!(bss, armed))[0],
            judged: u16::from_ne_bytes(field(bytes, offset_of!(bss, judged))),
            generation: u16::from_ne_bytes(field(bytes, offset_of!(bss, generation))),
            since_ns: u64::from_ne_bytes(field(bytes, offset_of!(bss, since_ns))),
            home: Home {
                cookie: u64::from_ne_bytes(field(bytes, offset_of!(bss, home_netns))),
                inode: u32::from_ne_bytes(field(bytes, offset_of!(bss, home_inode))),
            },
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
            &self.home.cookie.to_ne_bytes(),
        );
        set_field(
            bytes,
            offset_of!(bss, home_inode),
            &self.home.inode.to_ne_bytes(),
        );
    }
}

pub(super) fn prepare(hook: Hook, program: &mut OpenProgramMut<'_>, method: Method, calls: bool) {
    let wanted = calls || Hook::PACKETS.contains(&hook);
    program.set_autoload(wanted);
    if let Some(kind) = hook.attach_type(method) {
        program.set_attach_type(kind);
    }
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
    Ok(state.home.cookie)
}

/// A descriptor that stays when the object has gone.
pub(super) fn own(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}

/// The name of what a guard says of itself, as a map.
pub const STATEMENT: &str = "statement";

/// What there is behind a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Nothing that judges or ever will: its guard has ended, and the kernel has emptied its slot.
    Nothing,
    /// A policy that is not in force: its guard begins, or goes.
    Waiting,
    /// A policy in force.
    Judging,
}

impl Behind {
    /// By the bank that is armed, and by which banks have a program.
    pub fn of(armed: u8, held: [bool; BANKS]) -> Self {
        let bank = armed.checked_sub(FIRST_BANK);
        if bank.is_some_and(|bank| held.get(usize::from(bank)) == Some(&true)) {
            Self::Judging
        } else if armed == 0 && held.contains(&true) {
            Self::Waiting
        } else {
            Self::Nothing
        }
    }
}

/// What can be seen of a gate by its program id, whosever it is, which takes CAP_SYS_ADMIN.
#[derive(Debug)]
pub struct Seen {
    maps: Vec<MapHandle>,
}

impl Seen {
    /// `None` if it cannot be seen.
    pub fn of(gate: u32) -> Option<Self> {
        let maps = program::maps(gate).ok()?;
        Some(Self { maps })
    }

    fn state(&self) -> Option<State> {
        let state = named(&self.maps, |name| name.ends_with(".bss"))?;
        let key = 0_u32.to_ne_bytes();
        let state = state.lookup(&key, MapFlags::ANY).ok()??;
        Some(State::from_bytes(&state))
    }

    /// What there is behind it.
    pub fn behind(&self) -> Option<Behind> {
        let armed = self.state()?.armed;
        let mut held = [false; BANKS];
        for (bank, held) in (FIRST_BANK..).zip(&mut held) {
            *held = self.judge(bank)?.is_some();
        }
        Some(Behind::of(armed, held))
    }

    /// The program id of the policy in a bank.
    fn judge(&self, bank: u8) -> Option<Option<u32>> {
        let slot = named(&self.maps, |name| name.starts_with("slot_"))?;
        let index = u32::from(bank.checked_sub(FIRST_BANK)?);
        let behind = slot.lookup(&index.to_ne_bytes(), MapFlags::ANY);
        let id = |bytes: Vec<u8>| bytes.first_chunk().copied().map(u32::from_ne_bytes);
        Some(behind.ok()?.and_then(id))
    }

    /// What a guard that is not pinned says of itself, and the table of what it reports.
    pub fn said(&self) -> Option<(&MapHandle, MapHandle)> {
        let statement = named(&self.maps, |name| name == STATEMENT)?;
        let judge = program::maps(self.judge(self.state()?.armed)??).ok()?;
        let mut judge = judge.into_iter();
        Some((statement, judge.find(|map| map.name() == "reports")?))
    }
}

fn named(maps: &[MapHandle], wanted: impl Fn(&str) -> bool) -> Option<&MapHandle> {
    let mut maps = maps.iter();
    maps.find(|map| map.name().to_str().is_some_and(&wanted))
}
