// SPDX-License-Identifier: BSD-2-Clause

//! The programs at the functions of one library, from any thread.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use anyhow::anyhow;
use libbpf_rs::ErrorKind;

use super::discover::Library;
use super::function::Function;
use crate::kernel::bpf;
use crate::kernel::privileges::Capability;
use crate::kernel::uprobes::{self, Method, Place, Probes, Scope};

/// `SSL_COOKIE_FUNCTION`: bits of a cookie that are the library's number.
const COOKIE_FUNCTION: u32 = 32;

/// Programs for the entry and the return of functions.
#[derive(Debug)]
pub struct Pair {
    /// At the entry.
    pub entry: OwnedFd,
    /// At the return, if that is of interest.
    pub leave: Option<OwnedFd>,
}

/// Loaded programs, by what they are attached to.
#[derive(Debug)]
pub enum Programs {
    /// One pair for all functions, where probes have cookies.
    Any(Pair),
    /// A pair for each, where they have none.
    Each(HashMap<Function, Pair>),
}

/// Attaches programs to libraries.
#[derive(Debug)]
pub struct Attacher {
    programs: Programs,
    method: Method,
    /// Keys are wanted.
    keys: bool,
}

/// Whether something is to be told when the function returns.
pub fn has_return(function: Function) -> bool {
    !matches!(
        function,
        Function::Free
            | Function::GnutlsDeinit
            | Function::Ctrl
            | Function::SetBio
            | Function::Set0Rbio
            | Function::Set0Wbio
            | Function::Random
            | Function::RandomEx
            | Function::Error
            | Function::ErrorV
            | Function::SetHostName
            | Function::Clear
            | Function::SetConnectState
            | Function::SetAcceptState
            | Function::UpRef
    )
}

impl Attacher {
    /// One that attaches these.
    pub fn new(programs: Programs, method: Method, keys: bool) -> Self {
        Self {
            programs,
            method,
            keys,
        }
    }

    /// Whether the function is probed where a library has it.
    pub fn wants(&self, function: Function) -> bool {
        self.keys || function != Function::Derive
    }

    /// Attaches to `library`, which is `number` in records.
    ///
    /// # Errors
    /// What the kernel says, with a function that it says it of; then nothing stays attached.
    pub fn attach(
        &self,
        library: &Library,
        number: u32,
        scope: Scope,
    ) -> Result<Probes, (io::Error, Function)> {
        let mut probes = Probes::default();
        // Entries first: a return whose entry was not seen would look like one that was lost.
        for at_return in [false, true] {
            let functions: Vec<_> = library
                .offsets
                .iter()
                .filter(|(function, _)| self.wants(*function))
                .filter(|(function, _)| !at_return || has_return(*function))
                .map(|(function, offset)| {
                    let place = Place {
                        offset: *offset,
                        cookie: u64::from(function.number()) << COOKIE_FUNCTION | u64::from(number),
                    };
                    (*function, place)
                })
                .collect();
            self.at(library, &functions, at_return, scope, &mut probes)?;
        }
        Ok(probes)
    }

    fn at(
        &self,
        library: &Library,
        functions: &[(Function, Place)],
        at_return: bool,
        scope: Scope,
        probes: &mut Probes,
    ) -> Result<(), (io::Error, Function)> {
        let method = self.method;
        let mut attach = |pair: &Pair, functions: &[(Function, Place)]| {
            let program = if at_return {
                pair.leave.as_ref()
            } else {
                Some(&pair.entry)
            };
            let (Some(program), Some((first, _))) = (program, functions.first()) else {
                return Ok(());
            };
            let places: Vec<_> = functions.iter().map(|(_, place)| *place).collect();
            let file = library.file.as_fd();
            let links = uprobes::attach(program.as_fd(), file, &places, at_return, method, scope);
            let links = links.map_err(|(err, at)| {
                (
                    err,
                    functions.get(at).map_or(*first, |(function, _)| *function),
                )
            })?;
            probes.keep(links, at_return);
            Ok(())
        };
        match &self.programs {
            Programs::Any(pair) => attach(pair, functions),
            Programs::Each(pairs) => functions
                .iter()
                .filter_map(|one| Some((pairs.get(&one.0)?, one)))
                .try_for_each(|(pair, one)| attach(pair, std::slice::from_ref(one))),
        }
    }

    /// Says what is missing where the kernel refuses.
    pub fn refused(&self, err: io::Error, function: Function, library: &Path) -> anyhow::Error {
        let what = format!("probe {} in {}", function.name(), library.display());
        let needed: &[_] = match self.method {
            Method::Session | Method::Multi => &[Capability::Bpf, Capability::Perfmon],
            Method::Linked | Method::Classic => &[Capability::SysAdmin],
        };
        let err = libbpf_rs::Error::from(err);
        // perf_event_open(2) says EACCES; libbpf has one kind for both.
        if err.kind() == ErrorKind::PermissionDenied {
            return bpf::explain(err, &what, needed);
        }
        anyhow!(err).context(format!("cannot {what}"))
    }
}
