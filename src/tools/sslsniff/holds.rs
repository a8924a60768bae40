// SPDX-License-Identifier: BSD-2-Clause

//! Processes that the kernel stops because they map a file to execute from it that was not looked into yet
//! (`sslsniff_hold.bpf.h`): they go on once it was.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use libbpf_rs::{Link, MapCore as _, MapFlags, MapHandle};
use plain::Plain;

use crate::kernel::bpf;
use crate::kernel::hold::Held;
use crate::kernel::ring::Ring;
use crate::skel::sslsniff::types::{ssl_file, ssl_held};

#[allow(unsafe_code)]
// SAFETY: integers with explicit padding: any bytes are a value.
unsafe impl Plain for ssl_file {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Plain for ssl_held {}

/// The programs that stop processes. Dropping it stops no more, and has all that wait go on.
pub struct Holds {
    links: Vec<Link>,
    held: MapHandle,
    settled: MapHandle,
}

impl fmt::Debug for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holds").finish_non_exhaustive()
    }
}

impl Holds {
    /// By these attached programs, which tell of processes in one map and look files up in another.
    pub fn new(links: Vec<Link>, held: MapHandle, settled: MapHandle) -> Self {
        Self {
            links,
            held,
            settled,
        }
    }

    /// What reads who waits, in the thread that is to answer.
    ///
    /// # Errors
    /// If the map cannot be mapped.
    pub fn reader(&self) -> Result<Reader<'_>> {
        let waiting = Rc::new(RefCell::new(Vec::new()));
        let found = Rc::clone(&waiting);
        let ring = Ring::new(&self.held, move |record| {
            found.borrow_mut().extend(Waiting::of(record));
            Ok(())
        })?;
        Ok(Reader {
            ring,
            waiting,
            settled: &self.settled,
        })
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        self.links.clear();
        // One may be stopping its process in this moment.
        bpf::wait_for_programs();
        if let Ok(reader) = self.reader() {
            // Each goes on as it is dropped.
            while reader.take().is_ok_and(|waiting| !waiting.is_empty()) {}
        }
    }
}

/// Reads who waits.
#[derive(Debug)]
pub struct Reader<'a> {
    ring: Ring<'a>,
    waiting: Rc<RefCell<Vec<Waiting>>>,
    settled: &'a MapHandle,
}

impl Reader<'_> {
    /// It becomes readable when a process waits.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }

    /// Who waits since the last time.
    ///
    /// # Errors
    /// If the ring cannot be read.
    pub fn take(&self) -> Result<Vec<Waiting>> {
        self.ring.drain()?;
        Ok(self.waiting.take())
    }

    /// The next process is to wait again for each file.
    pub fn unsettle(&self) {
        for file in self.settled.keys() {
            // It may have made room for another.
            let _ = self.settled.delete(&file);
        }
    }

    /// Nobody is to wait for this file any more, as long as it stays what it is.
    pub fn settle(&self, file: &[u8]) {
        // Else its next process waits, too.
        let _ = self.settled.update(file, &[0], MapFlags::ANY);
    }
}

/// A process that was stopped. It goes on once this and all that was cloned from `held` are dropped.
#[derive(Debug)]
pub struct Waiting {
    /// The process, in the initial namespace.
    pub pid: u32,
    /// What it waits for: a key of the map of files.
    pub file: Vec<u8>,
    /// What keeps it; `None` if it has ended.
    pub held: Option<Arc<Held>>,
}

impl Waiting {
    /// `struct ssl_held`
    fn of(record: &[u8]) -> Option<Self> {
        let held: &ssl_held = plain::from_bytes(record).ok()?;
        Some(Self {
            pid: held.pid,
            file: record.get(..size_of::<ssl_file>())?.to_vec(),
            held: Held::already(held.pid).ok().map(Arc::new),
        })
    }
}
