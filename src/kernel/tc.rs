// SPDX-License-Identifier: BSD-2-Clause

//! A program at an interface's TC hook, for as long as a value lives.

use std::io;
use std::os::fd::AsFd as _;
use std::ptr::NonNull;

use anyhow::{Context as _, Result, bail};
use libbpf_rs::libbpf_sys;
use libbpf_rs::{AsRawLibbpf as _, Link, Program, TC_EGRESS, TC_INGRESS, TcHook, TcHookBuilder};

use super::interfaces::Interface;

/// The side of an interface, seen from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Packets that leave.
    Egress,
    /// Packets that arrive.
    Ingress,
}

/// How programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A TCX link (kernel 6.6): gone with its descriptor, and never in another program's place.
    Tcx,
    /// A filter at a clsact qdisc, under a priority that the kernel picks: ahead of the filters
    /// that are there.
    Clsact,
}

impl Method {
    /// The name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// A program at work on an interface; dropping it takes it off.
#[derive(Debug)]
pub struct Attachment {
    interface: Interface,
    held: Held,
}

#[derive(Debug)]
enum Held {
    // Never read: dropping the link detaches.
    Tcx { _link: Link },
    Clsact { hook: TcHook },
}

impl Attachment {
    /// Attaches `program` to `side` of `interface`, ahead of what is there.
    ///
    /// # Errors
    /// What the kernel says; the interface may be gone.
    pub fn new(
        program: &Program<'_>,
        interface: &Interface,
        side: Side,
        method: Method,
    ) -> Result<Self> {
        let held = match method {
            Method::Tcx => Held::Tcx {
                _link: attach_tcx(program, interface)?,
            },
            Method::Clsact => attach_clsact(program, interface, side)?,
        };
        Ok(Self {
            interface: interface.clone(),
            held,
        })
    }

    /// Where it is attached.
    pub fn interface(&self) -> &Interface {
        &self.interface
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Held::Clsact { hook } = &mut self.held {
            // An interface that has gone took its filters with it. The qdisc stays: destroying it
            // would take everybody's filters along.
            let _ = hook.detach();
        }
    }
}

/// The side is in the program's attach type, set before it was loaded.
fn attach_tcx(program: &Program<'_>, interface: &Interface) -> Result<Link> {
    let opts = libbpf_sys::bpf_tcx_opts {
        sz: size_of::<libbpf_sys::bpf_tcx_opts>() as libbpf_sys::size_t,
        flags: libbpf_sys::BPF_F_BEFORE,
        ..Default::default()
    };
    #[allow(unsafe_code)]
    // SAFETY: the program is loaded and the options outlive the call; a link that comes back is
    // ours alone.
    unsafe {
        let link = libbpf_sys::bpf_program__attach_tcx(
            program.as_libbpf_object().as_ptr(),
            interface.index,
            &raw const opts,
        );
        match NonNull::new(link) {
            Some(link) => Ok(Link::from_ptr(link)),
            None => Err(io::Error::last_os_error())
                .with_context(|| format!("cannot attach to {} by TCX", interface.name)),
        }
    }
}

fn attach_clsact(program: &Program<'_>, interface: &Interface, side: Side) -> Result<Held> {
    let mut hook = TcHookBuilder::new(program.as_fd())
        .ifindex(interface.index)
        .replace(false)
        .hook(match side {
            Side::Egress => TC_EGRESS,
            Side::Ingress => TC_INGRESS,
        });
    let at = || format!("cannot attach to {} by clsact", interface.name);
    hook.create().with_context(at)?;
    let hook = hook.attach().with_context(at)?;
    if hook.get_handle() == 0 || hook.get_priority() == 0 {
        bail!("{}: the kernel did not say under which priority", at());
    }
    Ok(Held::Clsact { hook })
}
