// SPDX-License-Identifier: BSD-2-Clause

//! The programs of the machine as a program in the kernel sees them (`guard_sight.bpf.c`), for a guard without
//! CAP_SYS_ADMIN: their names, and what is behind those that are gates.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io::Read as _;
use std::mem::MaybeUninit;

use anyhow::{Context as _, Result};
use libbpf_rs::Iter;
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use plain::Plain;

use super::gates::{self, Behind};
use crate::skel::guard_sight::GuardSightSkelBuilder;
use crate::skel::guard_sight::types::seen_program;

#[allow(unsafe_code)]
// SAFETY: integers and arrays of bytes without padding: any bytes are a value.
unsafe impl Plain for seen_program {}

/// What is known of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    name: String,
    behind: Option<Behind>,
}

/// Looks when it is asked first, and then remembers.
#[derive(Debug, Default)]
pub struct Sight {
    programs: OnceCell<HashMap<u32, Program>>,
}

impl Sight {
    /// The name of program `id`; `None` if it is not to be known.
    pub fn name(&self, id: u32) -> Option<&str> {
        self.programs().get(&id).map(|one| one.name.as_str())
    }

    /// What there is behind program `id`, a gate; `None` if that is not to be known.
    pub fn behind(&self, id: u32) -> Option<Behind> {
        self.programs().get(&id).and_then(|one| one.behind)
    }

    fn programs(&self) -> &HashMap<u32, Program> {
        // Without CAP_PERFMON nothing is known.
        self.programs.get_or_init(|| look().unwrap_or_default())
    }
}

fn look() -> Result<HashMap<u32, Program>> {
    let mut object = MaybeUninit::uninit();
    let skel = GuardSightSkelBuilder::default().open(&mut object)?.load()?;
    let link = skel.progs.see_program.attach()?;
    let mut bytes = Vec::new();
    Iter::new(&link)?
        .read_to_end(&mut bytes)
        .context("cannot read of programs")?;
    Ok(bytes
        .chunks_exact(size_of::<seen_program>())
        .filter_map(|chunk| {
            let mut seen = seen_program::default();
            seen.copy_from_bytes(chunk).ok()?;
            Some((seen.id, Program::of(&seen)))
        })
        .collect())
}

impl Program {
    fn of(seen: &seen_program) -> Self {
        let name = seen.name.split(|byte| *byte == 0).next();
        let known = seen.has_state != 0 && seen.has_slot != 0;
        Self {
            name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
            behind: known.then(|| {
                Behind::of(
                    gates::armed(&seen.state),
                    seen.behind.map(|behind| behind != 0),
                )
            }),
        }
    }
}
