// SPDX-License-Identifier: BSD-2-Clause

//! The generated skeletons: the only `include!` of generated code and the only blanket allows.

#![allow(
    missing_docs,
    missing_debug_implementations,
    unsafe_code,
    dead_code,
    non_camel_case_types,
    non_snake_case,
    unused,
    trivial_numeric_casts,
    clippy::all,
    clippy::absolute_paths,
    clippy::clone_on_ref_ptr,
    clippy::expect_used,
    clippy::ptr_as_ptr,
    clippy::redundant_closure_for_method_calls,
    clippy::undocumented_unsafe_blocks,
    clippy::uninlined_format_args,
    clippy::unwrap_used,
    clippy::use_self,
    clippy::wildcard_imports
)]

pub mod tc_guard {
    include!(concat!(env!("OUT_DIR"), "/tc_guard.skel.rs"));
}

pub mod guard_gate {
    include!(concat!(env!("OUT_DIR"), "/guard_gate.skel.rs"));
}

pub mod guard_sight {
    include!(concat!(env!("OUT_DIR"), "/guard_sight.skel.rs"));
}

pub mod imds_watch {
    include!(concat!(env!("OUT_DIR"), "/imds_watch.skel.rs"));
}

pub mod sslsniff {
    include!(concat!(env!("OUT_DIR"), "/sslsniff.skel.rs"));
}
