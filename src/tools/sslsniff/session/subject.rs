// SPDX-License-Identifier: BSD-2-Clause

//! What the lines of a connection have in common: who is at which end of it.

use std::io;
use std::sync::Arc;

use serde::Serialize;

use super::super::arrivals::Names;
use super::super::event::Ends;
use super::super::function::Function;
use super::super::record::Header;
use crate::output::Fields;
use crate::process::{self, Directory, Identity};

/// That of one.
#[derive(Debug, Default)]
pub(in super::super) struct Subject {
    number: u64,
    who: Identity,
    ends: Ends,
    library: Option<Arc<str>>,
    /// What the last three were made from, as far as records tell.
    comm: [u8; 16],
    cgroup: u64,
    library_number: Option<u32>,
    /// All of them as JSON has them, unless one has changed since.
    fields: Option<Fields>,
}

/// As JSON has them.
#[derive(Serialize)]
struct Common<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    library: Option<&'a str>,
    connection: u64,
    #[serde(flatten)]
    ends: &'a Ends,
    #[serde(flatten)]
    who: &'a Identity,
}

impl Subject {
    /// Of the connection with this number, of which nothing is known yet.
    pub fn new(number: u64) -> Self {
        Self {
            number,
            ..Self::default()
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn who(&self) -> &Identity {
        &self.who
    }

    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    pub fn library(&self) -> Option<&Arc<str>> {
        self.library.as_ref()
    }

    pub fn set_ends(&mut self, ends: Ends) {
        self.fields = None;
        self.ends = ends;
    }

    /// Brings `who` up to date: a thread, a name or a user may change between two calls.
    pub fn identify(&mut self, header: &Header, directory: &mut Directory) {
        let who = &mut self.who;
        let ids = (Some(header.tid), Some(header.gid), Some(header.uid));
        let same = ids == (who.tid, who.gid, who.uid)
            && who.user.is_some()
            && (self.comm, self.cgroup) == (header.comm, header.cgroup);
        if same {
            return;
        }
        self.fields = None;
        if who.uid != ids.2 || who.user.is_none() {
            who.user = directory.user(header.uid);
        }
        (who.tid, who.gid, who.uid) = ids;
        if self.comm != header.comm {
            self.comm = header.comm;
            who.comm = process::comm(&header.comm);
        }
        if self.cgroup != header.cgroup {
            self.cgroup = header.cgroup;
            if let Some(path) = directory.cgroup(header.cgroup) {
                who.set_cgroup(&path);
            }
        }
    }

    /// Adds what /proc says of the process.
    pub fn fill(&mut self, pid: u32, directory: &mut Directory) {
        self.fields = None;
        directory.fill(&mut self.who, pid);
    }

    /// Names the library that the record is of.
    pub fn name_library(&mut self, header: &Header, libraries: &Names) {
        if self.library_number != Some(header.library) {
            self.fields = None;
            let function = Function::ALL.get(usize::from(header.function));
            self.library_number = Some(header.library);
            self.library = function.and_then(|function| libraries.get(header.library, *function));
        }
    }

    /// Has [`Self::fields`] ready.
    ///
    /// # Errors
    /// None that is known.
    pub fn write_fields(&mut self) -> io::Result<()> {
        if self.fields.is_none() {
            self.fields = Some(Fields::of(&Common {
                library: self.library.as_deref(),
                connection: self.number,
                ends: &self.ends,
                who: &self.who,
            })?);
        }
        Ok(())
    }

    /// All of it as fields of JSON, if it was written since it changed last.
    pub fn fields(&self) -> Option<&Fields> {
        self.fields.as_ref()
    }
}
