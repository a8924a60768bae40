// SPDX-License-Identifier: BSD-2-Clause

//! Which way the kernel would send a packet.

use std::io;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteLwEnCapType, RouteMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Room for an answer: one message of some hundred bytes.
const ROOM: usize = 8 * 1024;

/// Where a packet to an address leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The interface's index.
    pub interface: i32,
    /// What the route puts in front of the packet before it gets there, so that it is no more the packet of an
    /// address; nothing for most routes (`ip route … encap`, `linux/lwtunnel.h`).
    pub encapsulation: Option<&'static str>,
}

/// The route of a packet of this process's to `address`, without a mark; nothing if there is none.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn to(address: IpAddr) -> Result<Option<Route>> {
    let Some(route) = ask(address, RouteFlags::empty())? else {
        return Ok(None);
    };
    // What a packet gets, older kernels (5.10) say without the encapsulation; the table's entry has it.
    let entry = ask(address, RouteFlags::FibMatch)?;
    Ok(Some(Route {
        encapsulation: entry
            .and_then(|entry| entry.encapsulation)
            .or(route.encapsulation),
        ..route
    }))
}

fn ask(address: IpAddr, flags: RouteFlags) -> Result<Option<Route>> {
    let at = || format!("cannot ask for the route to {address}");
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        },
        destination_prefix_length: if address.is_ipv4() { 32 } else { 128 },
        flags,
        ..RouteHeader::default()
    };
    let destination = RouteAttribute::Destination(RouteAddress::from(address));
    message.attributes.push(destination);
    let mut request = NetlinkMessage::new(
        NetlinkHeader::default(),
        RouteNetlinkMessage::GetRoute(message).into(),
    );
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE).with_context(at)?;
    socket.bind(&SocketAddr::new(0, 0)).with_context(at)?;
    socket
        .send_to(&bytes, &SocketAddr::new(0, 0), 0)
        .with_context(at)?;
    let mut buffer = Vec::with_capacity(ROOM);
    loop {
        buffer.clear();
        let (_, from) = socket.recv_from(&mut buffer, 0).with_context(at)?;
        // Port 0 is the kernel's: other processes may send to this socket as well.
        if from.port_number() == 0 {
            return answer(&buffer).with_context(at);
        }
    }
}

/// What an answer says.
fn answer(bytes: &[u8]) -> Result<Option<Route>> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)?;
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(route_of(&route)),
        NetlinkPayload::Error(error) => match error.to_io() {
            err if is_no_route(&err) => Ok(None),
            err => Err(err.into()),
        },
        other => anyhow::bail!("an answer of another kind: {other:?}"),
    }
}

/// No route, or one that refuses (`ip route add unreachable`, `prohibit`, `blackhole`).
fn is_no_route(err: &io::Error) -> bool {
    matches!(
        err.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
    )
}

fn route_of(route: &RouteMessage) -> Option<Route> {
    let mut interface = None;
    let mut encapsulation = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = i32::try_from(*index).ok(),
            RouteAttribute::EncapType(kind) => encapsulation = name(*kind),
            _ => {}
        }
    }
    let interface = interface?;
    Some(Route {
        interface,
        encapsulation,
    })
}

/// Of one that changes the packet before its interface sees it. Those of tunnels (`ip`, `ip6`, `xfrm`) leave that
/// to the tunnel's own interface.
fn name(kind: RouteLwEnCapType) -> Option<&'static str> {
    match kind {
        RouteLwEnCapType::Mpls => Some("mpls"),
        RouteLwEnCapType::Ila => Some("ila"),
        RouteLwEnCapType::Seg6 => Some("seg6"),
        RouteLwEnCapType::Seg6Local => Some("seg6local"),
        RouteLwEnCapType::Bpf => Some("bpf"),
        RouteLwEnCapType::Rpl => Some("rpl"),
        RouteLwEnCapType::Other(_) => Some("of a kind that is not known"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_own_address_is_reached_by_loopback() {
        let route = to("127.0.0.1".parse().unwrap()).unwrap().unwrap();
        assert_eq!((route.interface, route.encapsulation), (1, None));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = answer(&bytes);
            let mut framed = Vec::from(u32::try_from(16 + bytes.len()).unwrap().to_ne_bytes());
            framed.extend(libc::RTM_NEWROUTE.to_ne_bytes());
            framed.extend([0; 10]);
            framed.extend(&bytes);
            let _ = answer(&framed);
        }
    }
}
