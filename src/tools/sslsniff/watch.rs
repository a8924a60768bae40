// SPDX-License-Identifier: BSD-2-Clause

//! The programs in the kernel: loaded, set up and attached as long as a value lives.

use std::fmt;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{Link, MapCore as _, MapFlags, MapHandle, OpenObject, ProgramMut};
use plain::Plain;

use super::event::{Amount, Summary};
use super::function::Function;
use super::holds::{Holds, Maps};
use super::losses::LossKey;
use super::plan::Plan;
use super::probes::{Attacher, Pair, Programs};
use super::session::{Leftovers, Shown};
use crate::kernel::bpf;
use crate::kernel::privileges::{Capabilities, Capability};
use crate::kernel::uprobes::{self, Method};
use crate::process;
use crate::skel::sslsniff::types::{
    connection, connection_key, ssl_counter, ssl_loss, ssl_loss_key, ssl_lost,
};
use crate::skel::sslsniff::{SslsniffSkel, SslsniffSkelBuilder};

/// The causes of loss, with their names in events.
pub(super) const CAUSES: [(ssl_lost, &str); 3] = [
    (ssl_lost::SSL_LOST_RING_FULL, "ring_full"),
    (ssl_lost::SSL_LOST_UNREADABLE, "unreadable"),
    (ssl_lost::SSL_LOST_STATE_FULL, "state_full"),
];

/// How the sockets of connections are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sockets {
    /// By tracepoints (kernel 6.3).
    Tracepoints,
    /// At the functions of TCP: where the kernel can do that, which is found by trying.
    Functions,
}

impl Sockets {
    fn of_this_kernel() -> Self {
        if bpf::has_tracepoint(c"sock_send_length") {
            Self::Tracepoints
        } else {
            Self::Functions
        }
    }
}

/// The kernel's side. Dropping it takes everything off but the probes, which are the
/// [`Attacher`]'s.
pub struct Watch<'obj> {
    // Before the skeleton: fields are dropped in this order.
    followers: Vec<Link>,
    skel: SslsniffSkel<'obj>,
    method: Method,
    sockets: Sockets,
    by_pid: bool,
    keys: bool,
    holds: bool,
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// Libraries that were seen to be one file.
#[derive(Debug)]
pub struct Twins(MapHandle);

impl Twins {
    /// Pairs of numbers that were not taken yet: the second tells of all calls of the first, too.
    pub fn take(&self) -> Vec<(u32, u32)> {
        let number = |bytes: &[u8]| bytes.try_into().map(u32::from_ne_bytes).ok();
        let all: Vec<_> = self.0.keys().collect();
        all.iter()
            .filter_map(|key| {
                let other = self.0.lookup(key, MapFlags::ANY).ok()??;
                self.0.delete(key).ok()?;
                Some((number(key)?, number(&other)?))
            })
            .collect()
    }
}

/// For each function the programs that are attached where probes have no cookies, by the fields of a skeleton;
/// `$what` is how each is borrowed.
macro_rules! classic_programs {
    ($progs:expr, $($what:tt)+) => {
        [
            (Function::Read, $($what)+ $progs.enter_read, Some($($what)+ $progs.leave_read)),
            (Function::Write, $($what)+ $progs.enter_write, Some($($what)+ $progs.leave_write)),
            (Function::ReadEx, $($what)+ $progs.enter_read_ex, Some($($what)+ $progs.leave_read_ex)),
            (Function::WriteEx, $($what)+ $progs.enter_write_ex, Some($($what)+ $progs.leave_write_ex)),
            (Function::DoHandshake, $($what)+ $progs.enter_do_handshake, Some($($what)+ $progs.leave_do_handshake)),
            (Function::Free, $($what)+ $progs.enter_free, None),
            (Function::Peek, $($what)+ $progs.enter_peek, Some($($what)+ $progs.leave_peek)),
            (Function::PeekEx, $($what)+ $progs.enter_peek_ex, Some($($what)+ $progs.leave_peek_ex)),
            (Function::WriteEx2, $($what)+ $progs.enter_write_ex2, Some($($what)+ $progs.leave_write_ex2)),
            (Function::ReadEarlyData, $($what)+ $progs.enter_read_early, Some($($what)+ $progs.leave_read_early)),
            (Function::WriteEarlyData, $($what)+ $progs.enter_write_early, Some($($what)+ $progs.leave_write_early)),
            (Function::Sendfile, $($what)+ $progs.enter_sendfile, Some($($what)+ $progs.leave_sendfile)),
            (Function::Shutdown, $($what)+ $progs.enter_shutdown, Some($($what)+ $progs.leave_shutdown)),
            (Function::GnutlsRecv, $($what)+ $progs.enter_gnutls_recv, Some($($what)+ $progs.leave_gnutls_recv)),
            (Function::GnutlsSend, $($what)+ $progs.enter_gnutls_send, Some($($what)+ $progs.leave_gnutls_send)),
            (Function::GnutlsSend2, $($what)+ $progs.enter_gnutls_send2, Some($($what)+ $progs.leave_gnutls_send2)),
            (Function::GnutlsHandshake, $($what)+ $progs.enter_gnutls_handshake, Some($($what)+ $progs.leave_gnutls_handshake)),
            (Function::GnutlsBye, $($what)+ $progs.enter_gnutls_bye, Some($($what)+ $progs.leave_gnutls_bye)),
            (Function::GnutlsUncork, $($what)+ $progs.enter_gnutls_uncork, Some($($what)+ $progs.leave_gnutls_uncork)),
            (Function::GnutlsDeinit, $($what)+ $progs.enter_gnutls_deinit, None),
            (Function::Ctrl, $($what)+ $progs.enter_ssl_ctrl, None),
            (Function::SetHostName, $($what)+ $progs.enter_set_host_name, None),
            (Function::Clear, $($what)+ $progs.enter_clear, None),
            (Function::SetConnectState, $($what)+ $progs.enter_set_connect_state, None),
            (Function::SetAcceptState, $($what)+ $progs.enter_set_accept_state, None),
            (Function::GetVersion, $($what)+ $progs.enter_get_version, Some($($what)+ $progs.leave_get_version)),
            (Function::GetServername, $($what)+ $progs.enter_get_servername, Some($($what)+ $progs.leave_get_servername)),
            (Function::GetAlpn, $($what)+ $progs.enter_get_alpn, Some($($what)+ $progs.leave_get_alpn)),
            (Function::SessionReused, $($what)+ $progs.enter_session_reused, Some($($what)+ $progs.leave_session_reused)),
            (Function::SetFd, $($what)+ $progs.enter_set_fd, Some($($what)+ $progs.leave_set_fd)),
            (Function::SetRfd, $($what)+ $progs.enter_set_rfd, Some($($what)+ $progs.leave_set_rfd)),
            (Function::SetWfd, $($what)+ $progs.enter_set_wfd, Some($($what)+ $progs.leave_set_wfd)),
            (Function::SetBio, $($what)+ $progs.enter_set_bio, None),
            (Function::Set0Rbio, $($what)+ $progs.enter_set0_rbio, None),
            (Function::Set0Wbio, $($what)+ $progs.enter_set0_wbio, None),
            (Function::Random, $($what)+ $progs.enter_random, None),
            (Function::RandomEx, $($what)+ $progs.enter_random_ex, None),
            (Function::Error, $($what)+ $progs.enter_error, None),
            (Function::ErrorV, $($what)+ $progs.enter_error_v, None),
            (Function::Derive, $($what)+ $progs.enter_derive, Some($($what)+ $progs.leave_derive)),
            (Function::UpRef, $($what)+ $progs.enter_up_ref, None),
        ]
    };
}

impl<'obj> Watch<'obj> {
    /// Loads the programs and sets up the filters of `plan`.
    ///
    /// # Errors
    /// What the kernel refuses, with the capability that is missing.
    pub fn load(
        object: &'obj mut MaybeUninit<OpenObject>,
        plan: &Plan,
        method: Method,
    ) -> Result<Self> {
        let sockets = Sockets::of_this_kernel();
        let mut open = SslsniffSkelBuilder::default()
            .open(object)
            .context("cannot open")?;
        let rodata = open.maps.rodata_data.as_mut().context("no .rodata")?;
        rodata.targ_pids = u8::from(plan.by_pid());
        rodata.targ_uids = u8::from(!plan.uids.is_empty());
        rodata.targ_comms = u8::from(!plan.comms.is_empty());
        rodata.targ_cgroups = u32::try_from(plan.cgroups.len())?;
        rodata.targ_max_bytes = plan.max_bytes;
        rodata.huge_records = u8::from(plan.huge_records());
        rodata.has_cookie = u8::from(method.has_cookie());
        rodata.is_preempted = u8::from(matches!(method, Method::Session | Method::Multi));
        rodata.targ_stacks = u8::from(plan.stacks);
        rodata.targ_secrets = u8::from(plan.keys);
        rodata.hold_all = u8::from(Capabilities::effective().has(Capability::Kill));
        rodata.hold_uid = nix::unistd::geteuid().as_raw();
        rodata.hold_not = std::process::id();
        open.maps.records.set_max_entries(plan.ring)?;
        let progs = &mut open.progs;
        progs.process_forks.set_autoload(plan.by_pid());
        let holds = plan.hold && bpf::has_tracepoint(c"sys_exit");
        for program in [&mut progs.file_mapped, &mut progs.file_executed] {
            program.set_autoload(holds);
        }
        for program in [&mut progs.socket_sends, &mut progs.socket_receives] {
            program.set_autoload(sockets == Sockets::Tracepoints);
        }
        for program in [
            &mut progs.tcp_sends,
            &mut progs.tcp_receives,
            &mut progs.tcp_received,
        ] {
            program.set_autoload(sockets == Sockets::Functions);
        }
        for program in [&mut progs.any_enters, &mut progs.any_leaves] {
            program.set_autoload(!method.is_session());
            uprobes::prepare(program, method);
        }
        progs.any_passes.set_autoload(method.is_session());
        for (_, entry, leave) in classic_programs!(progs, &mut) {
            entry.set_autoload(!method.has_cookie());
            if let Some(leave) = leave {
                leave.set_autoload(!method.has_cookie());
            }
        }
        let needed = [Capability::Bpf, Capability::Perfmon];
        let skel = open
            .load()
            .map_err(|err| bpf::explain(err, "load the probes", &needed))?;
        if !method.has_cookie() {
            let progs = &skel.progs;
            // ENTERS, LEAVES
            for (index, program) in (0_u32..).zip([&progs.any_enters, &progs.any_leaves]) {
                let fd = program.as_fd().as_raw_fd().to_ne_bytes();
                skel.maps
                    .common
                    .update(&index.to_ne_bytes(), &fd, MapFlags::ANY)?;
            }
        }
        for uid in &plan.uids {
            skel.maps
                .uids
                .update(&uid.to_ne_bytes(), &[0], MapFlags::ANY)?;
        }
        for comm in &plan.comms {
            skel.maps.comms.update(comm, &[0], MapFlags::ANY)?;
        }
        for (index, folder) in (0_u32..).zip(&plan.cgroups) {
            let file =
                File::open(folder).with_context(|| format!("cannot open {}", folder.display()))?;
            let cgroups = &skel.maps.cgroups;
            let (index, fd) = (index.to_ne_bytes(), file.as_raw_fd().to_ne_bytes());
            cgroups.update(&index, &fd, MapFlags::ANY)?;
        }
        let watch = Self {
            followers: Vec::new(),
            skel,
            method,
            sockets,
            by_pid: plan.by_pid(),
            keys: plan.keys,
            holds,
        };
        watch.add_pids(&plan.pids)?;
        Ok(watch)
    }

    /// Watches these processes too, if processes are watched by number at all.
    ///
    /// # Errors
    /// If there are too many.
    pub fn add_pids(&self, pids: &[u32]) -> Result<()> {
        for pid in pids {
            self.skel
                .maps
                .pids
                .update(&pid.to_ne_bytes(), &[0], MapFlags::ANY)
                .context("cannot watch so many processes")?;
        }
        Ok(())
    }

    /// Whether processes are watched by their numbers, and none of them is there any more.
    pub fn is_over(&self) -> bool {
        self.by_pid && self.skel.maps.pids.keys().next().is_none()
    }

    /// Tells whether a process is watched, as far as its number says: from any thread.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn by_number(&self) -> Result<Box<dyn Fn(u32) -> bool + Send>> {
        if !self.by_pid {
            return Ok(Box::new(|_| true));
        }
        let pids = MapHandle::try_from(&self.skel.maps.pids)?;
        Ok(Box::new(move |pid| {
            pids.lookup(&pid.to_ne_bytes(), MapFlags::ANY)
                .is_ok_and(|found| found.is_some())
        }))
    }

    /// Follows processes, from before anything of theirs is seen, and their sockets; says why those
    /// cannot be followed, if so.
    ///
    /// # Errors
    /// What the kernel refuses, with the capability that is missing.
    pub fn follow(&mut self) -> Result<Option<String>> {
        let progs = &self.skel.progs;
        let mut followers = vec![&progs.thread_exits, &progs.process_executes];
        if self.by_pid {
            followers.push(&progs.process_forks);
        }
        for program in followers {
            let link = program.attach();
            let needed = [Capability::Perfmon];
            self.followers
                .push(link.map_err(|err| bpf::explain(err, "follow processes", &needed))?);
        }
        let sockets = match self.sockets {
            Sockets::Tracepoints => &[&progs.socket_sends, &progs.socket_receives][..],
            Sockets::Functions => &[&progs.tcp_sends, &progs.tcp_receives, &progs.tcp_received],
        };
        for program in sockets {
            match program.attach() {
                Ok(link) => self.followers.push(link),
                Err(err) => return Ok(Some(format!("{err:#}"))),
            }
        }
        Ok(None)
    }

    /// From now on stops processes that map a file which was not looked into; `None` if that is not wanted, or
    /// this kernel cannot do it.
    ///
    /// # Errors
    /// What the kernel refuses, with the capability that is missing.
    pub fn hold(&self) -> Result<Option<Holds>> {
        if !self.holds {
            return Ok(None);
        }
        let maps = &self.skel.maps;
        let maps = Maps {
            held: MapHandle::try_from(&maps.held)?,
            settled: MapHandle::try_from(&maps.settled)?,
            alive: MapHandle::try_from(&maps.hold_alive)?,
        };
        let progs = &self.skel.progs;
        let attach = || {
            let mut links = Vec::new();
            for program in [&progs.file_mapped, &progs.file_executed] {
                let needed = [Capability::Perfmon];
                let link = program.attach();
                links.push(link.map_err(|err| bpf::explain(err, "hold processes", &needed))?);
            }
            Ok(links)
        };
        Holds::new(maps, attach).map(Some)
    }

    /// The libraries that are one file, by their numbers, from any thread.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn twins(&self) -> Result<Twins> {
        Ok(Twins(MapHandle::try_from(&self.skel.maps.twins)?))
    }

    /// What attaches the programs, from any thread.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn attacher(&self) -> Result<Attacher> {
        let pair = |entry: &ProgramMut<'_>, leave: Option<&ProgramMut<'_>>| {
            anyhow::Ok(Pair {
                entry: entry.as_fd().try_clone_to_owned()?,
                leave: leave
                    .map(|leave| leave.as_fd().try_clone_to_owned())
                    .transpose()?,
            })
        };
        let progs = &self.skel.progs;
        let programs = if self.method.is_session() {
            Programs::Any(pair(&progs.any_passes, None)?)
        } else if self.method.has_cookie() {
            Programs::Any(pair(&progs.any_enters, Some(&progs.any_leaves))?)
        } else {
            let each = classic_programs!(progs, &);
            let pairs = each
                .into_iter()
                .map(|(function, entry, leave)| anyhow::Ok((function, pair(entry, leave)?)));
            Programs::Each(pairs.collect::<Result<_>>()?)
        };
        Ok(Attacher::new(programs, self.method, self.keys))
    }

    /// Runs `start`, and watches the processes that it starts and their children: each is in the
    /// table before it runs its first instruction.
    ///
    /// # Errors
    /// Those of `start`, and of the table.
    pub fn with_children<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        let myself = std::process::id().to_ne_bytes();
        self.skel.maps.pids.update(&myself, &[0], MapFlags::ANY)?;
        let started = start();
        self.skel.maps.pids.delete(&myself)?;
        started
    }

    /// What the kernel's side still knows of a connection whose process is over, and then forgets: how many
    /// bytes were read and written.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn leftovers(&self) -> Result<Leftovers> {
        let connections = MapHandle::try_from(&self.skel.maps.connections)?;
        Ok(Box::new(move |(pid, ssl, since_ns)| {
            let key = connection_key {
                ssl,
                tgid: pid,
                ..connection_key::default()
            };
            #[allow(unsafe_code)]
            // SAFETY: integers without padding of the compiler's.
            let key = unsafe { plain::as_bytes(&key) };
            let value = connections.lookup(key, MapFlags::ANY).ok()??;
            let mut left = connection::default();
            plain::copy_from_bytes(&mut left, &value).ok()?;
            // Another one's by now.
            if left.since_ns != since_ns {
                return None;
            }
            connections.delete(key).ok()?;
            Some(left.offset)
        }))
    }

    /// The ring of records; a handle of its own.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn records(&self) -> Result<MapHandle> {
        Ok(MapHandle::try_from(&self.skel.maps.records)?)
    }

    /// Follows nobody any more; what was sent stays in the ring.
    pub fn detach(&mut self) {
        self.followers.clear();
    }

    /// What the kernel's side has counted.
    ///
    /// # Errors
    /// Those of the map.
    pub fn totals(&self) -> Result<Totals> {
        let mut totals = Totals {
            seen: Amount {
                calls: self.counter(ssl_counter::SSL_SEEN_CALLS.0)?,
                bytes: self.counter(ssl_counter::SSL_SEEN_BYTES.0)?,
            },
            cut: self.counter(ssl_counter::SSL_CUT_BYTES.0)?,
            missed_children: self.counter(ssl_counter::SSL_MISSED_CHILDREN.0)?,
            lost_stacks: self.counter(ssl_counter::SSL_LOST_STACKS.0)?,
            lost_keys: self.counter(ssl_counter::SSL_LOST_KEYS.0)?,
            not_held: self.counter(ssl_counter::SSL_NOT_HELD.0)?,
            lost: [Amount::default(); 3],
        };
        for (amount, (cause, _)) in totals.lost.iter_mut().zip(CAUSES) {
            amount.calls = self.counter(ssl_counter::SSL_LOST_CALLS.0 + cause.0)?;
            amount.bytes = self.counter(ssl_counter::SSL_LOST_BYTES.0 + cause.0)?;
        }
        Ok(totals)
    }

    /// What each process has lost so far, by cause.
    ///
    /// # Errors
    /// Those of the map.
    pub fn losses(&self) -> Result<Vec<(LossKey, Amount, String)>> {
        let losses = &self.skel.maps.losses;
        let mut all = Vec::new();
        for key in losses.keys() {
            let Some(value) = losses.lookup(&key, MapFlags::ANY)? else {
                continue;
            };
            let (mut of, mut loss) = (ssl_loss_key::default(), ssl_loss::default());
            if plain::copy_from_bytes(&mut of, &key).is_ok()
                && plain::copy_from_bytes(&mut loss, &value).is_ok()
            {
                let amount = Amount {
                    calls: loss.calls,
                    bytes: loss.bytes,
                };
                let comm = process::comm(&loss.comm).unwrap_or_default();
                all.push(((of.tgid, of.incarnation, of.cause), amount, comm));
            }
        }
        Ok(all)
    }

    fn counter(&self, which: u32) -> Result<u64> {
        let values = self
            .skel
            .maps
            .counters
            .lookup_percpu(&which.to_ne_bytes(), MapFlags::ANY)?;
        let values = values.context("no such counter")?;
        Ok(values
            .iter()
            .filter_map(|value| value.first_chunk())
            .map(|value| u64::from_ne_bytes(*value))
            .sum())
    }
}

#[allow(unsafe_code)]
// SAFETY: integers and an array of integers, without padding: any bytes are a value.
unsafe impl Plain for ssl_loss_key {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Plain for ssl_loss {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Plain for connection_key {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Plain for connection {}

/// What was seen, and what of it was lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    seen: Amount,
    cut: u64,
    missed_children: u64,
    lost_stacks: u64,
    lost_keys: u64,
    not_held: u64,
    /// In the order of [`CAUSES`].
    lost: [Amount; 3],
}

impl Totals {
    /// Whether anything was lost.
    pub fn any_lost(&self) -> bool {
        self.lost != [Amount::default(); 3]
    }

    /// How often a process was not stopped that was to be.
    pub fn not_held(&self) -> u64 {
        self.not_held
    }

    /// What was lost for the cause of this index.
    pub fn lost(&self, cause: usize) -> Amount {
        self.lost[cause]
    }

    /// The last line, given what was shown.
    pub fn summary(&self, shown: Shown) -> Summary {
        Summary {
            seen: self.seen.calls,
            delivered: shown.calls,
            lost: self.lost.iter().map(|amount| amount.calls).sum(),
            bytes_seen: self.seen.bytes,
            bytes_delivered: shown.bytes,
            bytes_cut: self.cut,
            bytes_lost: self.lost.iter().map(|amount| amount.bytes).sum(),
            lost_by_cause: CAUSES
                .iter()
                .map(|(_, name)| *name)
                .zip(self.lost)
                .collect(),
            missed_children: self.missed_children,
            lost_stacks: self.lost_stacks,
            lost_keys: self.lost_keys,
            not_held: self.not_held,
            connections: shown.connections,
            ..Summary::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::probes::has_return;
    use super::*;

    #[test]
    fn a_function_is_probed_at_its_return_if_there_is_a_program_for_that() {
        let mut object = MaybeUninit::uninit();
        let mut open = SslsniffSkelBuilder::default().open(&mut object).unwrap();
        let progs = &mut open.progs;
        let all = classic_programs!(progs, &mut);
        assert_eq!(all.len(), Function::ALL.len());
        for (function, _, leave) in all {
            assert_eq!(leave.is_some(), has_return(function), "{function:?}");
        }
    }
}
