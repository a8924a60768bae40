// SPDX-License-Identifier: BSD-2-Clause

//! A BPF ring buffer, read so that an error in a callback is an error of the reader.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore, RingBuffer, RingBufferBuilder};

/// Reads the records of one ring buffer map.
///
/// A panic in libbpf's callback would abort the process with everything still attached, so the
/// callback returns a `Result`; the first error stops the reading and comes out of
/// [`Ring::drain`].
pub struct Ring<'cb> {
    ring: RingBuffer<'cb>,
    error: Rc<RefCell<Option<anyhow::Error>>>,
}

impl fmt::Debug for Ring<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

/// Any negative number stops libbpf; the error itself is kept beside it.
const STOP: i32 = -libc::ECANCELED;

/// How many records are read before the reader looks at signals again.
const BATCH: usize = 4096;

impl<'cb> Ring<'cb> {
    /// Reads `map`, giving each record to `callback`.
    ///
    /// # Errors
    /// If the map is no ring buffer or cannot be mapped.
    pub fn new<'map: 'cb>(
        map: &'map dyn MapCore,
        mut callback: impl FnMut(&[u8]) -> Result<()> + 'cb,
    ) -> Result<Self> {
        let error = Rc::new(RefCell::new(None));
        let kept = Rc::clone(&error);
        let mut builder = RingBufferBuilder::new();
        builder.add(map, move |record| match callback(record) {
            Ok(()) => 0,
            Err(err) => {
                *kept.borrow_mut() = Some(err);
                STOP
            }
        })?;
        let ring = builder.build().context("cannot map the ring buffer")?;
        Ok(Self { ring, error })
    }

    /// The descriptor that becomes readable when there are records.
    #[allow(unsafe_code)]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: libbpf's epoll descriptor lives as long as the ring, which `self` borrows.
        unsafe { BorrowedFd::borrow_raw(self.ring.epoll_fd()) }
    }

    /// Gives the records that are there, some thousand at most, to the callback; says how many.
    ///
    /// # Errors
    /// The first that the callback returned.
    pub fn drain(&self) -> Result<usize> {
        let read = self.ring.consume_raw_n(BATCH);
        if let Some(err) = self.error.borrow_mut().take() {
            return Err(err);
        }
        usize::try_from(read).map_err(|_| {
            let err = std::io::Error::from_raw_os_error(-read);
            anyhow::Error::from(err).context("cannot read the ring buffer")
        })
    }
}
