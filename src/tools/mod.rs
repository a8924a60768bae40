// SPDX-License-Identifier: BSD-2-Clause

//! The tools. Each has `Args`, `run()` and `diagnose()`; what is pure of a tool stands beside
//! them.

pub mod doctor;
pub mod imds_watch;
pub mod sslsniff;
pub mod tc_guard;
