// SPDX-License-Identifier: BSD-2-Clause

//! All that touches the kernel. The tools say what they want; here is how it is done.

pub mod bpf;
pub mod cgroup;
pub mod cgroup_follow;
pub mod clock;
pub mod endpoints;
pub mod features;
pub mod file_capabilities;
pub mod hold;
pub mod hooks;
pub mod identity;
pub mod instance;
pub mod interfaces;
pub mod lineage;
pub mod maps;
pub mod mmap_events;
pub mod namespace;
pub mod netlink;
pub mod packet_socket;
pub mod pin;
pub mod privileges;
pub mod program;
pub mod ring;
pub mod route;
pub mod socket_table;
pub mod stacks;
pub mod stop;
pub mod tc;
pub mod text;
pub mod uprobes;
pub mod user;
