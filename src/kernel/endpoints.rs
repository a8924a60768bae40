// SPDX-License-Identifier: BSD-2-Clause

//! Writes a table of endpoints to a program's map.

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore, MapFlags};

use crate::endpoint_table::Table;

/// Fills the map `endpoints` of `endpoints.bpf.h`.
///
/// # Errors
/// What the kernel refuses.
pub fn write(table: &Table, map: &impl MapCore) -> Result<()> {
    for (key, value) in &table.entries {
        map.update(key, value, MapFlags::ANY)
            .context("cannot write the table of endpoints")?;
    }
    Ok(())
}
