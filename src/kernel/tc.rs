// SPDX-License-Identifier: BSD-2-Clause

//! A program at an interface's TC hook, for as long as a value lives.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use libbpf_rs::{TC_EGRESS, TC_INGRESS, TcHook, TcHookBuilder, libbpf_sys};

use super::interfaces::Interface;
use super::{netlink, program};

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
    /// A filter at a clsact qdisc, under a priority ahead of the filters that are there, or right behind
    /// one that has the first.
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
    side: Side,
    held: Held,
    kept: bool,
}

#[derive(Debug)]
enum Held {
    /// Dropping the link detaches.
    Tcx {
        link: OwnedFd,
    },
    Clsact {
        hook: TcHook,
    },
}

impl Attachment {
    /// Attaches `program` to `side` of `interface`, ahead of what is there.
    ///
    /// # Errors
    /// What the kernel says; the interface may be gone.
    pub fn new(
        program: BorrowedFd<'_>,
        interface: &Interface,
        side: Side,
        method: Method,
    ) -> Result<Self> {
        let held = match method {
            Method::Tcx => Held::Tcx {
                link: attach_tcx(program, interface, side)?,
            },
            Method::Clsact => attach_clsact(program, interface, side)?,
        };
        Ok(Self {
            interface: interface.clone(),
            side,
            held,
            kept: false,
        })
    }

    /// Where it is attached.
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// On which side.
    pub fn side(&self) -> Side {
        self.side
    }

    /// The link, where it is attached by one: pinned, it stays when this value goes.
    pub fn link(&self) -> Option<BorrowedFd<'_>> {
        match &self.held {
            Held::Tcx { link } => Some(link.as_fd()),
            Held::Clsact { .. } => None,
        }
    }
}

impl Attachment {
    /// Leaves it attached when this value goes: by its link, if that is pinned, or as a filter.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Held::Clsact { hook } = &mut self.held
            && !self.kept
        {
            // An interface that has gone took its filters with it. The qdisc stays: destroying it
            // would take everybody's filters along.
            let _ = hook.detach();
        }
    }
}

/// The program's attach type, set before it was loaded, is that of the side.
fn attach_tcx(program: BorrowedFd<'_>, interface: &Interface, side: Side) -> Result<OwnedFd> {
    let opts = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags: libbpf_sys::BPF_F_BEFORE,
        ..Default::default()
    };
    let hook = match side {
        Side::Egress => libbpf_sys::BPF_TCX_EGRESS,
        Side::Ingress => libbpf_sys::BPF_TCX_INGRESS,
    };
    program::link(program, interface.index, hook, Some(&opts))
        .with_context(|| format!("cannot attach to {} by TCX", interface.name))
}

/// Priorities have 16 bits (`linux/rtnetlink.h`, TC_H_MAJ of `tcm_info`).
const LAST_PRIORITY: u32 = 0xffff;

fn attach_clsact(program: BorrowedFd<'_>, interface: &Interface, side: Side) -> Result<Held> {
    let mut hook = TcHookBuilder::new(program)
        .ifindex(interface.index)
        .replace(false)
        .hook(match side {
            Side::Egress => TC_EGRESS,
            Side::Ingress => TC_INGRESS,
        });
    let at = || format!("cannot attach to {} by clsact", interface.name);
    hook.create().with_context(at)?;
    // The kernel's choice is behind all that were given a priority below 32768 (tc_new_tfilter of
    // net/sched/cls_api.c). Nothing goes ahead of 1: then it is the next that is free.
    let taken: Vec<_> = netlink::filters(interface.index, side)?
        .iter()
        .map(|filter| filter.priority)
        .collect();
    let ahead = match taken.iter().min() {
        Some(1) => (2..=LAST_PRIORITY).find(|priority| !taken.contains(priority)),
        Some(first) => Some(first - 1),
        None => None,
    };
    if let Some(priority) = ahead {
        hook.priority(priority);
    }
    let mut hook = hook.attach().with_context(at)?;
    if hook.get_handle() == 0 || hook.get_priority() == 0 {
        let _ = hook.detach();
        bail!("{}: the kernel did not say under which priority", at());
    }
    Ok(Held::Clsact { hook })
}
