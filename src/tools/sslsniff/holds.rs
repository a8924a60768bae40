// SPDX-License-Identifier: BSD-2-Clause

//! Processes that the kernel stops because they map a file to execute from it that was not looked into yet
//! (`sslsniff_hold.bpf.h`): they go on once it was.
//!
//! A file may be on a file system that never answers, and anybody can have such a one. So a thread that opens no
//! file has each process go on after some seconds, and nobody stopped any more until files are looked into again.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use libbpf_rs::{Link, MapCore as _, MapFlags, MapHandle};
use nix::sys::eventfd::{EfdFlags, EventFd};
use plain::Plain;

use family::{Ancestors, Family};

use crate::kernel::bpf;
use crate::kernel::clock;
use crate::kernel::hold::{self, Held};
use crate::kernel::ring::Ring;
use crate::kernel::stop::Stop;
use crate::skel::sslsniff::types::{ssl_file, ssl_held};

mod family;

/// How long a process waits at most.
const LONGEST: Duration = Duration::from_secs(3);
/// How often the kernel's side is told that this one is there.
const BEAT: Duration = Duration::from_millis(500);
/// How often it is looked whether parents have stopped themselves.
const LOOK: Duration = Duration::from_millis(50);

#[allow(unsafe_code)]
// SAFETY: integers with explicit padding: any bytes are a value.
unsafe impl Plain for ssl_file {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Plain for ssl_held {}

/// The maps of the programs that stop processes.
#[derive(Debug)]
pub struct Maps {
    /// The ring that tells of those that were stopped.
    pub held: MapHandle,
    /// Files for which nobody is.
    pub settled: MapHandle,
    /// When this side was there last.
    pub alive: MapHandle,
}

/// The programs that stop processes. Dropping it stops no more, and has all that wait go on.
pub struct Holds {
    links: Vec<Link>,
    shared: Arc<Shared>,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    maps: Maps,
    /// Who waits, and was not taken over yet.
    incoming: Mutex<Vec<Waiting>>,
    /// Readable while there is one.
    event: EventFd,
    pause: Mutex<Pause>,
}

/// Whether processes are stopped, in step with the kernel's map.
#[derive(Debug, Clone, Copy, Default)]
struct Pause {
    paused: bool,
    /// How often they were not any more.
    times: u64,
}

/// What others may know of it.
#[derive(Clone)]
pub struct Pauses(Arc<Shared>);

impl Pauses {
    /// How often it came to it that processes were not stopped any more, as files were not looked into in time.
    pub fn times(&self) -> u64 {
        self.0.pause().times
    }
}

impl fmt::Debug for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pauses").field(&self.times()).finish()
    }
}

impl fmt::Debug for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holds").finish_non_exhaustive()
    }
}

impl Holds {
    /// By these programs, once `attach` has attached them.
    ///
    /// # Errors
    /// Those of `attach`; if no thread or descriptor can be had.
    pub fn new(maps: Maps, attach: impl FnOnce() -> Result<Vec<Link>>) -> Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared {
            maps,
            incoming: Mutex::default(),
            event,
            pause: Mutex::default(),
        });
        shared.beat();
        let stop = Stop::new()?;
        let (theirs, stopped) = (Arc::clone(&shared), stop.clone());
        let thread = std::thread::Builder::new()
            .name("holds".to_owned())
            .spawn(move || theirs.follow(&stopped))
            .context("cannot make a thread")?;
        // From here on dropping it ends the thread.
        let mut holds = Self {
            links: Vec::new(),
            shared,
            stop,
            thread: Some(thread),
        };
        holds.links = attach()?;
        Ok(holds)
    }

    /// It becomes readable when a process waits.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// Who waits since the last time.
    pub fn take(&self) -> Vec<Waiting> {
        // There may be none.
        let _ = self.shared.event.read();
        std::mem::take(&mut *self.shared.incoming())
    }

    /// Nobody is to wait for this file any more, as long as it stays what it is.
    pub fn settle(&self, file: &[u8]) {
        // Else its next process waits, too.
        let _ = self.shared.maps.settled.update(file, &[0], MapFlags::ANY);
    }

    /// The next process is to wait again for each file.
    pub fn unsettle(&self) {
        for file in self.shared.maps.settled.keys() {
            // It may have made room for another.
            let _ = self.shared.maps.settled.delete(&file);
        }
    }

    /// Files are looked into: processes may wait for it.
    pub fn resume(&self) {
        self.shared.set_paused(false);
    }

    /// What others may know of it, from any thread.
    pub fn pauses(&self) -> Pauses {
        Pauses(Arc::clone(&self.shared))
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        self.links.clear();
        // One may be stopping its process in this moment.
        bpf::wait_for_programs();
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Each goes on as it is dropped.
        self.shared.incoming().clear();
    }
}

impl Shared {
    fn incoming(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_paused(&self, paused: bool) {
        let mut pause = self.pause();
        if paused == pause.paused {
            return;
        }
        pause.paused = paused;
        pause.times += u64::from(paused);
        self.say(*pause);
    }

    /// Says that this side is there.
    fn beat(&self) {
        self.say(*self.pause());
    }

    fn say(&self, pause: Pause) {
        let alive = if pause.paused { 0 } else { clock::boot_ns() };
        // An entry of an array: it is there.
        let _ = self
            .maps
            .alive
            .update(&0_u32.to_ne_bytes(), &alive.to_ne_bytes(), MapFlags::ANY);
    }

    /// Reads who waits, and has each go on that does for too long; at the end all of them.
    fn follow(&self, stop: &Stop) {
        hold::hurry();
        let found = Rc::new(RefCell::new(Vec::new()));
        let new = Rc::clone(&found);
        let ring = Ring::new(&self.maps.held, move |record| {
            new.borrow_mut().extend(Waiting::of(record));
            Ok(())
        });
        let Ok(ring) = ring else {
            // Nobody would have them go on.
            self.set_paused(true);
            return;
        };
        let mut all: Vec<Followed> = Vec::new();
        let mut family = Family::default();
        loop {
            let tick = if all.is_empty() && family.is_empty() {
                BEAT
            } else {
                LOOK
            };
            let woken = stop.wait(&[ring.fd()], Some(tick));
            let stopped = woken.is_ok_and(|woken| woken.stopped);
            let _ = ring.drain();
            let now = Instant::now();
            for (waiting, ancestors) in found.take() {
                all.extend(waiting.watch().map(|held| Followed {
                    since: now,
                    held,
                    ancestors,
                }));
                self.incoming().push(waiting);
                let _ = self.event.write(1);
            }
            let late = |one: &Followed| stopped || now.duration_since(one.since) > LONGEST;
            if all.iter().any(late) {
                if !stopped {
                    self.set_paused(true);
                }
                for one in &all {
                    one.held.upgrade().inspect(|held| held.go_on());
                }
            }
            for one in all.extract_if(.., |one| late(one) || one.held.strong_count() == 0) {
                family.add(one.ancestors, now);
            }
            family.look(all.iter().map(|one| &one.ancestors), now);
            if stopped {
                break;
            }
            self.beat();
        }
        // Who was let go in this moment has a parent that may be about to stop itself.
        for _ in 0..LAST_LOOKS {
            if family.is_empty() {
                break;
            }
            std::thread::sleep(LOOK);
            family.look(std::iter::empty(), Instant::now());
        }
    }
}

/// How often parents are looked at once the end has come.
const LAST_LOOKS: u32 = 5;

/// A process that waits, as the thread that has it go on knows it.
struct Followed {
    since: Instant,
    held: Weak<Held>,
    ancestors: Ancestors,
}

/// A process that was stopped. It goes on once this and all that was cloned from `held` are dropped.
#[derive(Debug)]
pub struct Waiting {
    /// The process, in the initial namespace.
    pub pid: u32,
    /// What it waits for: a key of the map of files.
    pub file: Vec<u8>,
    /// What keeps it; `None` if it has ended, or goes on already.
    pub held: Option<Arc<Held>>,
}

impl Waiting {
    /// `struct ssl_held`, with its ancestors.
    fn of(record: &[u8]) -> Option<(Self, Ancestors)> {
        let held: &ssl_held = plain::from_bytes(record).ok()?;
        let ancestors = Ancestors::of(held.pid, &held.ancestors, held.stopped);
        let waiting = Self {
            pid: held.pid,
            file: record.get(..size_of::<ssl_file>())?.to_vec(),
            held: take_over(held.pid, Held::already(held.pid)).map(Arc::new),
        };
        Some((waiting, ancestors))
    }

    fn watch(&self) -> Option<Weak<Held>> {
        self.held.as_ref().map(Arc::downgrade)
    }
}

/// What keeps a process that was stopped; `None` if it has ended, or goes on at once, as no descriptor is left.
fn take_over(pid: u32, held: io::Result<Held>) -> Option<Held> {
    held.inspect_err(|err| {
        if err.raw_os_error() != Some(libc::ESRCH) {
            hold::let_go(pid);
        }
    })
    .ok()
}

#[cfg(test)]
mod root {
    use std::io::ErrorKind;
    use std::mem::MaybeUninit;
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::kernel::features::Features;
    use crate::kernel::uprobes::Method;
    use crate::tools::sslsniff::plan::Plan;
    use crate::tools::sslsniff::watch::Watch;

    /// Runs a fresh copy of `true` to its end.
    fn run_fresh(program: &Path) {
        let _ = std::fs::remove_file(program);
        std::fs::copy("/bin/true", program).unwrap();
        loop {
            match Command::new(program).status() {
                // Another test starts something in this moment, which has the copy's descriptor still.
                Err(err) if err.kind() == ErrorKind::ExecutableFileBusy => {}
                status => return assert!(status.unwrap().success()),
            }
        }
    }

    #[test]
    fn whoever_there_is_no_descriptor_for_goes_on_at_once() {
        let mut child = Command::new("sleep").arg("0").spawn().unwrap();
        let pid = child.id();
        let held = Held::stop(pid).unwrap();
        std::mem::forget(held);
        let none = io::Error::from_raw_os_error(libc::EMFILE);
        assert!(take_over(pid, Err(none)).is_none());
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn nobody_waits_for_ever_if_files_are_not_looked_into() {
        let name = format!("hold{}", std::process::id());
        let mut comm = [0; 16];
        comm[..name.len()].copy_from_slice(name.as_bytes());
        let plan = Plan {
            comms: vec![comm],
            hold: true,
            ..Plan::default()
        };
        let mut object = MaybeUninit::uninit();
        let watch = Watch::load(&mut object, &plan, Method::of(&Features::probe())).unwrap();
        let holds = watch.hold().unwrap().expect("this kernel can");
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(&name);
        run_fresh(&program);
        assert!(!holds.take().is_empty());
        assert_eq!(holds.pauses().times(), 1);
        run_fresh(&program);
        assert!(holds.take().is_empty());
        assert!(watch.totals().unwrap().not_held() > 0);
        holds.resume();
        run_fresh(&program);
        assert!(!holds.take().is_empty());
    }
}
