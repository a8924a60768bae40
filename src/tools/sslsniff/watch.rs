// SPDX-License-Identifier: BSD-2-Clause

//! The programs in the kernel: loaded, set up and attached as long as a value lives.

use std::fmt;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, anyhow};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{ErrorKind, Link, MapCore as _, MapFlags, MapHandle, OpenObject, ProgramMut};
use time::OffsetDateTime;

use super::descriptors;
use super::discover::Library;
use super::event::{Amount, Lost, Skipped, Summary};
use super::plan::Plan;
use super::session::Shown;
use super::symbols::Function;
use crate::kernel::bpf;
use crate::kernel::privileges::Capability;
use crate::kernel::uprobes::{self, Method, Place, Probes, Scope};
use crate::output::Sink;
use crate::skel::sslsniff::types::{ssl_counter, ssl_lost};
use crate::skel::sslsniff::{SslsniffSkel, SslsniffSkelBuilder};

/// The causes of loss, with their names in events.
const CAUSES: [(ssl_lost, &str); 3] = [
    (ssl_lost::SSL_LOST_RING_FULL, "ring_full"),
    (ssl_lost::SSL_LOST_UNREADABLE, "unreadable"),
    (ssl_lost::SSL_LOST_STATE_FULL, "state_full"),
];

/// The kernel's side. Dropping it takes everything off.
pub struct Watch<'obj> {
    // Before the skeleton: fields are dropped in this order.
    probes: Probes,
    followers: Vec<Link>,
    skel: SslsniffSkel<'obj>,
    method: Method,
    by_pid: bool,
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
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
        let mut open = SslsniffSkelBuilder::default()
            .open(object)
            .context("cannot open")?;
        let rodata = open.maps.rodata_data.as_mut().context("no .rodata")?;
        rodata.targ_pids = u8::from(plan.by_pid());
        rodata.targ_uids = u8::from(!plan.uids.is_empty());
        rodata.targ_comms = u8::from(!plan.comms.is_empty());
        rodata.targ_max_bytes = plan.max_bytes;
        rodata.has_cookie = u8::from(method == Method::Multi);
        rodata.huge_records = u8::from(plan.huge_records());
        open.maps.records.set_max_entries(plan.ring)?;
        open.progs.process_forks.set_autoload(plan.by_pid());
        let progs = &mut open.progs;
        for program in [
            &mut progs.enter_read,
            &mut progs.leave_read,
            &mut progs.enter_write,
            &mut progs.leave_write,
            &mut progs.enter_read_ex,
            &mut progs.leave_read_ex,
            &mut progs.enter_write_ex,
            &mut progs.leave_write_ex,
            &mut progs.enter_do_handshake,
            &mut progs.leave_do_handshake,
            &mut progs.enter_free,
        ] {
            uprobes::prepare(program, method);
        }
        let needed = [Capability::Bpf, Capability::Perfmon];
        let skel = open
            .load()
            .map_err(|err| bpf::explain(err, "load the probes", &needed))?;
        for uid in &plan.uids {
            skel.maps
                .uids
                .update(&uid.to_ne_bytes(), &[0], MapFlags::ANY)?;
        }
        for comm in &plan.comms {
            skel.maps.comms.update(comm, &[0], MapFlags::ANY)?;
        }
        let watch = Self {
            probes: Probes::default(),
            followers: Vec::new(),
            skel,
            method,
            by_pid: plan.by_pid(),
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

    /// Attaches to `libraries`, whoever uses them; says which of them are left out.
    ///
    /// # Errors
    /// What the kernel refuses, with the capability that is missing: of a library that is required,
    /// or of all.
    pub fn attach(&mut self, libraries: &[Library]) -> Result<Vec<Skipped>> {
        // Processes are followed before anything of theirs is seen.
        let mut followers = vec![&self.skel.progs.thread_exits];
        if self.by_pid {
            followers.push(&self.skel.progs.process_forks);
        }
        for program in followers {
            let link = program.attach();
            let needed = [Capability::Perfmon];
            self.followers
                .push(link.map_err(|err| bpf::explain(err, "follow processes", &needed))?);
        }
        self.attach_for(libraries, Scope::All)
    }

    /// Attaches the probes alone.
    ///
    /// # Errors
    /// As [`Watch::attach`].
    pub fn attach_for(&mut self, libraries: &[Library], scope: Scope) -> Result<Vec<Skipped>> {
        let spare = descriptors::spare();
        let mut skipped: Vec<Skipped> = Vec::new();
        let mut first = None;
        let mut full = false;
        for (index, library) in libraries.iter().enumerate() {
            if full && !library.required {
                skipped.push(Skipped::of(index, library, "no descriptor is left"));
                continue;
            }
            // What anybody maps was found here: that it cannot be probed must not keep the rest from
            // being watched. Its probes so far are dropped.
            match self.probes_of(library, index as u64 + 1, scope) {
                Ok(probes) => self.probes.add(probes),
                Err((err, function)) => {
                    full |= matches!(err.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
                    let why = format!("{}: {err}", function.name());
                    let err = self.refused(err.into(), function.name(), library);
                    if library.required {
                        return Err(err);
                    }
                    skipped.push(Skipped::of(index, library, &why));
                    first.get_or_insert(err);
                }
            }
        }
        drop(spare);
        match first {
            Some(err) if self.probes.is_empty() => Err(err),
            _ => Ok(skipped),
        }
    }

    fn probes_of(
        &self,
        library: &Library,
        number: u64,
        scope: Scope,
    ) -> Result<Probes, (io::Error, Function)> {
        let mut probes = Probes::default();
        // Entries first: a return whose entry was not seen would look like one that was lost.
        for at_return in [false, true] {
            for (function, offset) in &library.offsets {
                let Some(program) = self.program(*function, at_return) else {
                    continue;
                };
                let place = Place {
                    offset: *offset,
                    at_return,
                    cookie: number,
                };
                let file = library.file.as_fd();
                let link = uprobes::attach(program, file, place, self.method, scope)
                    .map_err(|err| (err, *function))?;
                probes.keep(link, at_return);
            }
        }
        Ok(probes)
    }

    fn refused(&self, err: libbpf_rs::Error, function: &str, library: &Library) -> anyhow::Error {
        let what = format!("probe {function} in {}", library.path.display());
        let needed: &[_] = match self.method {
            Method::Multi => &[Capability::Bpf, Capability::Perfmon],
            Method::Classic => &[Capability::SysAdmin],
        };
        // perf_event_open(2) says EACCES; libbpf has one kind for both.
        if err.kind() == ErrorKind::PermissionDenied {
            return bpf::explain(err, &what, needed);
        }
        anyhow!(err).context(format!("cannot {what}"))
    }

    fn program(&self, function: Function, at_return: bool) -> Option<&ProgramMut<'obj>> {
        let progs = &self.skel.progs;
        let (entry, leave) = match function {
            Function::Read => (&progs.enter_read, Some(&progs.leave_read)),
            Function::Write => (&progs.enter_write, Some(&progs.leave_write)),
            Function::ReadEx => (&progs.enter_read_ex, Some(&progs.leave_read_ex)),
            Function::WriteEx => (&progs.enter_write_ex, Some(&progs.leave_write_ex)),
            Function::DoHandshake => (&progs.enter_do_handshake, Some(&progs.leave_do_handshake)),
            Function::Free => (&progs.enter_free, None),
        };
        if at_return { leave } else { Some(entry) }
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

    /// The ring of records; a handle of its own.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn records(&self) -> Result<MapHandle> {
        Ok(MapHandle::try_from(&self.skel.maps.records)?)
    }

    /// Takes the probes off; what they sent stays in the ring.
    pub fn detach(&mut self) {
        self.probes = Probes::default();
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
            lost: [Amount::default(); 3],
        };
        for (amount, (cause, _)) in totals.lost.iter_mut().zip(CAUSES) {
            amount.calls = self.counter(ssl_counter::SSL_LOST_CALLS.0 + cause.0)?;
            amount.bytes = self.counter(ssl_counter::SSL_LOST_BYTES.0 + cause.0)?;
        }
        Ok(totals)
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

/// What was seen, and what of it was lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    seen: Amount,
    cut: u64,
    missed_children: u64,
    /// In the order of [`CAUSES`].
    lost: [Amount; 3],
}

impl Totals {
    /// Becomes `now`, with a line for each cause that has grown.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn report<W: Write>(&mut self, now: Self, sink: &mut Sink<W>) -> io::Result<()> {
        let grown = now.lost.iter().zip(&self.lost).zip(CAUSES);
        for ((now, before), (_, cause)) in grown {
            if now != before {
                let amount = Amount {
                    calls: now.calls.saturating_sub(before.calls),
                    bytes: now.bytes.saturating_sub(before.bytes),
                };
                sink.event(OffsetDateTime::now_utc(), &Lost { cause, amount })?;
            }
        }
        *self = now;
        sink.flush()
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
            connections: shown.connections,
            ..Summary::default()
        }
    }
}
