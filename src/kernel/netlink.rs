// SPDX-License-Identifier: BSD-2-Clause

//! What rtnetlink says of this network namespace: interfaces that come and go, and the filters at a
//! clsact qdisc.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::{Context as _, Result, bail};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

use super::tc::Side;

/// The multicast group of interface messages (`linux/rtnetlink.h`, RTNLGRP_LINK).
const GROUP_LINK: u32 = 1;
/// Bytes of `struct nlmsghdr` (`linux/netlink.h`).
const NETLINK_HEADER_LEN: usize = 16;
/// Room for one read. A dump comes in pieces of 32 KiB at most (`netlink_dump` of
/// net/netlink/af_netlink.c); of a longer interface message only the start is looked at.
const ROOM: usize = 64 * 1024;

/// What has become of the interfaces since the last look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Whether any came, went, or became another: then the list is to be read anew.
    pub any: bool,
    /// Indexes of those that went, in order. One that has gone may have come again under its index.
    pub gone: Vec<i32>,
}

impl Changes {
    /// Takes what one read brought: messages, each with a `struct ifinfomsg`.
    fn take(&mut self, mut bytes: &[u8]) {
        while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
            let kind = message.message_type();
            if kind == libc::RTM_NEWLINK || kind == libc::RTM_DELLINK {
                self.any = true;
            }
            // struct ifinfomsg of linux/rtnetlink.h: family, padding and type, then the index. An
            // interface that leaves a bridge is told of as deleted, too, with the bridge's family.
            let start = &bytes[NETLINK_HEADER_LEN..];
            if kind == libc::RTM_DELLINK
                && let [family, _, _, _, a, b, c, d, ..] = *start
                && i32::from(family) == libc::AF_UNSPEC
            {
                self.gone.push(i32::from_ne_bytes([a, b, c, d]));
            }
            // Messages are aligned to 4 bytes (NLMSG_ALIGNTO).
            let length = message.length() as usize;
            let Some(rest) = bytes.get(length.next_multiple_of(4)..) else {
                break;
            };
            bytes = rest;
        }
    }
}

/// Hears of interfaces as they come and go.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Listens from now on; whoever lists the interfaces after this misses none.
    ///
    /// # Errors
    /// If there is no socket to be had.
    pub fn new() -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.add_membership(GROUP_LINK)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = open().context("cannot listen for network interfaces")?;
        Ok(Self { socket })
    }

    /// The descriptor that becomes readable when there are changes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What has changed since the last call. More messages than the kernel had room for count as a
    /// change: then `gone` may be incomplete, and the list of interfaces says the rest.
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub fn changes(&self) -> Result<Changes> {
        let mut changes = Changes::default();
        let mut buffer = Vec::with_capacity(ROOM);
        loop {
            buffer.clear();
            match self.socket.recv_from(&mut buffer, 0) {
                // Port 0 is the kernel's: other processes may send to this socket as well.
                Ok((_, from)) if from.port_number() == 0 => changes.take(&buffer),
                Ok(_) => {}
                Err(err) => match Errno::from_raw(err.raw_os_error().unwrap_or_default()) {
                    Errno::EAGAIN => return Ok(changes),
                    Errno::EINTR => {}
                    // Messages were lost (netlink(7)).
                    Errno::ENOBUFS => changes.any = true,
                    _ => return Err(err).context("cannot hear of network interfaces"),
                },
            }
        }
    }
}

/// A filter at a clsact qdisc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// 1 runs first.
    pub priority: u32,
    /// Its number within its priority.
    pub handle: u32,
    /// `bpf`, `u32`, `flower`, …
    pub kind: String,
    /// The BPF program's id.
    pub program: Option<u32>,
    /// The BPF filter's name.
    pub name: Option<String>,
}

/// The filters at `side` of the interface `index`, in the order in which they run; none where there
/// is no clsact qdisc or no such interface.
///
/// # Errors
/// What the kernel says.
pub fn filters(index: i32, side: Side) -> Result<Vec<Filter>> {
    let mut request = NetlinkMessage::new(
        NetlinkHeader::default(),
        RouteNetlinkMessage::GetTrafficFilter(TcMessage::from_parts(
            TcHeader {
                index,
                parent: TcHandle {
                    major: TcHandle::CLSACT.major,
                    minor: match side {
                        Side::Egress => TcHandle::MIN_EGRESS,
                        Side::Ingress => TcHandle::MIN_INGRESS,
                    },
                },
                ..TcHeader::default()
            },
            Vec::new(),
        ))
        .into(),
    );
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let at = || format!("cannot list the filters of interface {index}");
    let mut socket = Socket::new(NETLINK_ROUTE).with_context(at)?;
    socket.bind(&SocketAddr::new(0, 0)).with_context(at)?;
    socket
        .send_to(&bytes, &SocketAddr::new(0, 0), 0)
        .with_context(at)?;
    let mut found = Vec::new();
    let mut buffer = Vec::with_capacity(ROOM);
    loop {
        buffer.clear();
        let (_, from) = socket.recv_from(&mut buffer, 0).with_context(at)?;
        if from.port_number() == 0 && take_filters(&buffer, &mut found).with_context(at)? {
            found.sort_by_key(|filter: &Filter| filter.priority);
            return Ok(found);
        }
    }
}

/// Takes what one read of a dump brought; says whether that was the last.
fn take_filters(mut bytes: &[u8], found: &mut Vec<Filter>) -> Result<bool> {
    while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
        match message.message_type() {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                // struct nlmsgerr begins with the negative error number.
                let code = bytes[NETLINK_HEADER_LEN..].first_chunk::<4>();
                let code = code.map_or(0, |code| i32::from_ne_bytes(*code));
                match Errno::from_raw(-code) {
                    // No such interface, or none with such a qdisc.
                    Errno::ENODEV | Errno::EINVAL | Errno::ENOENT => return Ok(true),
                    errno => return Err(io::Error::from(errno).into()),
                }
            }
            libc::RTM_NEWTFILTER => {
                let length = (message.length() as usize).min(bytes.len());
                if let Some(filter) = filter(&bytes[..length])? {
                    found.push(filter);
                }
            }
            _ => {}
        }
        let length = message.length() as usize;
        match bytes.get(length.next_multiple_of(4)..) {
            Some(rest) => bytes = rest,
            None => break,
        }
    }
    Ok(false)
}

/// The filter in a message; none in the one that only announces a priority.
fn filter(message: &[u8]) -> Result<Option<Filter>> {
    let Some(payload) = message.get(NETLINK_HEADER_LEN..) else {
        bail!("a message that is cut off");
    };
    let header = TcHeader::parse(payload)?;
    let handle = u32::from(header.handle);
    if handle == 0 {
        return Ok(None);
    }
    let mut filter = Filter {
        // The protocol is in the lower half (linux/rtnetlink.h, struct tcmsg).
        priority: header.info >> 16,
        handle,
        kind: "filter".to_owned(),
        program: None,
        name: None,
    };
    // Another's filter may have attributes that this library does not understand: it is there all
    // the same.
    let attributes = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
        Ok(NetlinkMessage {
            payload: NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(message)),
            ..
        }) => message.attributes,
        _ => Vec::new(),
    };
    for attribute in attributes {
        match attribute {
            TcAttribute::Kind(kind) => filter.kind = kind,
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(id),
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => {
                            filter.name = Some(name);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Some(filter))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link_message(kind: u16, family: u8, index: i32, extra: usize) -> Vec<u8> {
        let length = 16 + 16 + extra;
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(length).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([family, 0, 1, 0]);
        bytes.extend(index.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn interfaces_that_come_and_go_are_told_apart() {
        let mut changes = Changes::default();
        changes.take(&[]);
        assert_eq!(changes, Changes::default());
        let mut bytes = link_message(libc::RTM_NEWLINK, 0, 7, 5);
        bytes.extend(link_message(libc::RTM_DELLINK, 0, 9, 0));
        changes.take(&bytes);
        assert!(changes.any);
        assert_eq!(changes.gone, [9]);
    }

    #[test]
    fn a_port_that_leaves_its_bridge_has_not_gone() {
        let mut changes = Changes::default();
        let family = u8::try_from(libc::AF_BRIDGE).unwrap();
        changes.take(&link_message(libc::RTM_DELLINK, family, 9, 0));
        assert!(changes.any && changes.gone.is_empty());
    }

    #[test]
    fn the_monitor_is_calm_when_nothing_happens() {
        // Without the right to make a network namespace: of this one.
        let calm = || {
            let monitor = Monitor::new().unwrap();
            monitor.changes().unwrap()
        };
        match crate::kernel::namespace::isolated(calm) {
            Some(changes) => assert_eq!(changes, Changes::default()),
            None => assert!(calm().gone.is_empty()),
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            Changes::default().take(&bytes);
            let _ = take_filters(&bytes, &mut Vec::new());
            let mut framed = link_message(libc::RTM_NEWTFILTER, 0, 1, 0);
            let length = u32::try_from(16 + bytes.len()).unwrap();
            framed.truncate(16);
            framed[..4].copy_from_slice(&length.to_ne_bytes());
            framed.extend(&bytes);
            let _ = take_filters(&framed, &mut Vec::new());
        }
    }
}
