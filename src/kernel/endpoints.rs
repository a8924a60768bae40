// SPDX-License-Identifier: BSD-2-Clause

//! Writes a table of endpoints to a program's map.

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore, MapFlags};

use crate::endpoint_table::Table;

/// Fills the maps `endpoints` and `endpoint_ports` of `endpoints.bpf.h`.
///
/// # Errors
/// What the kernel refuses.
pub fn write(table: &Table, addresses: &impl MapCore, ports: &impl MapCore) -> Result<()> {
    let at = "cannot write the table of endpoints";
    for (key, value) in &table.ports {
        ports.update(key, value, MapFlags::ANY).context(at)?;
    }
    for (key, value) in &table.addresses {
        addresses.update(key, value, MapFlags::ANY).context(at)?;
    }
    Ok(())
}
