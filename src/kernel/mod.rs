// SPDX-License-Identifier: BSD-2-Clause

//! All that touches the kernel. The tools say what they want; here is how it is done.

pub mod bpf;
pub mod cgroup;
pub mod clock;
pub mod endpoints;
pub mod features;
pub mod interfaces;
pub mod namespace;
pub mod privileges;
pub mod ring;
pub mod stop;
pub mod tc;
pub mod uprobes;
