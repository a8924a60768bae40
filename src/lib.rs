// SPDX-License-Identifier: BSD-2-Clause

//! ebpfkit guards the cloud metadata service and watches TLS, with eBPF.
//!
//! The binary is a thin shell around this library. A tool is a C program under `src/bpf` and a
//! module under [`tools`]; what they share is here. Data flows one way: arguments become a plan,
//! the plan is written to the kernel, records come back and become events, events become lines.

// Nothing that comes from outside ends the program in the middle.
#![warn(clippy::unwrap_used, clippy::expect_used)]

pub mod cli;
pub mod endpoint;
pub mod endpoint_table;
pub mod failure;
pub mod generate;
pub mod kernel;
pub mod metadata;
pub mod output;
pub mod process;
pub mod skel;
pub mod terminal;
pub mod tools;
