// SPDX-License-Identifier: BSD-2-Clause

//! From a packet's bytes, beginning at the network header, to the piece of a stream in it.

use std::net::{IpAddr, SocketAddr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};

/// `ETH_P_8021Q` and `ETH_P_8021AD` of `linux/if_ether.h`,
const VLAN: [u16; 2] = [0x8100, 0x88a8];
/// `ETH_P_IP` and `ETH_P_IPV6`.
const IP: [u16; 2] = [0x0800, 0x86dd];
const VLAN_TAG: usize = 4;
/// `MAX_TAGS` of `imds_watch.bpf.c`.
const MOST_TAGS: usize = 8;

/// What a packet brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'p> {
    /// Payload of a TCP connection.
    Piece {
        /// Who sends.
        src: SocketAddr,
        /// Who is to receive.
        dst: SocketAddr,
        /// The sequence number of the payload's first byte.
        seq: u32,
        /// The sequence number that the sender expects from the receiver.
        ack: u32,
        /// The connection ends: no answer comes behind this.
        ends: bool,
        /// The bytes.
        payload: &'p [u8],
        /// Whether they can be taken for what the receiver reads: not so in a fragment, with
        /// urgent data, or where the packet was cut, as the filter does where its sender can still
        /// change it; nor where its header does not say how long it is, and so that it was cut.
        reliable: bool,
    },
    /// An IP packet without ports that can be read: a later fragment, or a broken one.
    Opaque {
        /// Who sends.
        src: IpAddr,
        /// Who is to receive.
        dst: IpAddr,
    },
    /// Nobody knows what: it is not what the filter has seen, or it can be read in two ways.
    Unreadable,
}

impl Packet<'_> {
    /// Whether one of its addresses is `wanted`.
    fn concerns(&self, wanted: impl Fn(IpAddr) -> bool) -> bool {
        match self {
            Self::Piece { src, dst, .. } => wanted(dst.ip()) || wanted(src.ip()),
            Self::Opaque { src, dst } => wanted(*dst) || wanted(*src),
            Self::Unreadable => false,
        }
    }
}

/// Reads a packet that came up; VLAN tags may still be in it, whatever the link says, and `wanted` tells by an address
/// at either end which reading is meant.
pub fn decode(bytes: &[u8], wanted: impl Fn(IpAddr) -> bool) -> Packet<'_> {
    let mut readings = starts(bytes)
        .filter_map(|at| ip(bytes.get(at..)?))
        .filter(|packet| packet.concerns(&wanted));
    match (readings.next(), readings.next()) {
        (Some(packet), None) => packet,
        _ => Packet::Unreadable,
    }
}

/// Where an IP header may begin: at the start, and behind each tag, as long as the one before says that another
/// one or the header follows.
fn starts(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let mut next = Some(0);
    let mut is_last = false;
    std::iter::from_fn(move || {
        let at = next?;
        let kind = bytes.get(at + 2..at + VLAN_TAG);
        let kind = kind.and_then(|kind| Some(u16::from_be_bytes(kind.try_into().ok()?)));
        let goes_on = kind.is_some_and(|kind| VLAN.contains(&kind) || IP.contains(&kind));
        let is_end = is_last || !goes_on || at == MOST_TAGS * VLAN_TAG;
        next = (!is_end).then_some(at + VLAN_TAG);
        is_last = kind.is_some_and(|kind| IP.contains(&kind));
        Some(at)
    })
}

fn ip(bytes: &[u8]) -> Option<Packet<'_>> {
    let sliced = LaxSlicedPacket::from_ip(bytes).ok()?;
    let (src, dst, ip, sized): (IpAddr, IpAddr, _, _) = match sliced.net.as_ref()? {
        LaxNetSlice::Ipv4(v4) => {
            let header = v4.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                v4.payload(),
                header.total_len() > 0,
            )
        }
        LaxNetSlice::Ipv6(v6) => {
            let header = v6.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                v6.payload(),
                header.payload_length() > 0,
            )
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        return Some(Packet::Opaque { src, dst });
    };
    Some(Packet::Piece {
        src: SocketAddr::new(src, tcp.source_port()),
        dst: SocketAddr::new(dst, tcp.destination_port()),
        // A SYN counts as one byte before the payload (RFC 9293, 3.4).
        seq: tcp.sequence_number().wrapping_add(u32::from(tcp.syn())),
        ack: tcp.acknowledgment_number(),
        ends: tcp.fin() || tcp.rst(),
        payload: tcp.payload(),
        reliable: sized && !ip.fragmented && !ip.incomplete && !tcp.urg(),
    })
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn tcp(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [169, 254, 169, 254], 64)
            .tcp(1234, 80, 99, 1024)
            .write(&mut bytes, payload)
            .unwrap();
        bytes
    }

    fn is_piece(packet: &Packet<'_>, expected: &[u8]) {
        let Packet::Piece {
            src,
            dst,
            seq,
            payload,
            reliable,
            ..
        } = packet
        else {
            panic!("{packet:?}");
        };
        assert_eq!(
            (src.to_string().as_str(), dst.port()),
            ("10.0.0.1:1234", 80)
        );
        assert_eq!((*seq, *payload, *reliable), (99, expected, true));
    }

    #[test]
    fn a_piece_ends_where_ip_says_not_where_the_frame_ends() {
        let mut bytes = tcp(b"GET");
        bytes.extend([0; 10]);
        is_piece(&decode(&bytes, |_| true), b"GET");
    }

    /// Tags as they follow each other: behind each number the type of what is behind it.
    fn tagged(tags: usize, packet: &[u8]) -> Vec<u8> {
        let mut bytes = [0x40, 7, 0x81, 0x00].repeat(tags.saturating_sub(1));
        if tags > 0 {
            bytes.extend([0x40, 7, 0x08, 0x00]);
        }
        [&bytes, packet].concat()
    }

    fn is_endpoint(address: IpAddr) -> bool {
        address.to_string() == "169.254.169.254"
    }

    #[test]
    fn tags_within_the_packet_are_skipped() {
        for tags in 0..=MOST_TAGS {
            let bytes = tagged(tags, &tcp(b"GET"));
            is_piece(&decode(&bytes, is_endpoint), b"GET");
        }
        let bytes = tagged(MOST_TAGS + 1, &tcp(b"GET"));
        assert_eq!(decode(&bytes, is_endpoint), Packet::Unreadable);
    }

    #[test]
    fn what_can_be_read_in_two_ways_or_in_none_is_unreadable() {
        assert_eq!(decode(b"E", is_endpoint), Packet::Unreadable);
        // The source of the one is the destination of the other, whose header begins with the tag.
        let mut bytes = tagged(1, &tcp(b"GET"));
        bytes[0] = 0x45;
        bytes[16..20].copy_from_slice(&[169, 254, 169, 254]);
        assert_eq!(decode(&bytes, is_endpoint), Packet::Unreadable);
    }

    #[test]
    fn a_packet_that_was_cut_or_hides_that_it_was_is_not_reliable() {
        let whole = tcp(b"GET");
        let mut six = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 64)
            .tcp(1234, 80, 99, 1024)
            .write(&mut six, b"GET")
            .unwrap();
        let is_reliable = |bytes: &[u8]| match decode(bytes, |_| true) {
            Packet::Piece { reliable, .. } => reliable,
            other => panic!("{other:?}"),
        };
        for (mut bytes, length) in [(whole, 2), (six, 4)] {
            assert!(is_reliable(&bytes));
            assert!(!is_reliable(&bytes[..bytes.len() - 1]));
            // As packets have it that are longer than it can say (BIG TCP).
            bytes[length..length + 2].copy_from_slice(&[0, 0]);
            assert!(!is_reliable(&bytes));
        }
    }

    #[test]
    fn a_later_fragment_is_opaque() {
        let mut bytes = tcp(b"GET");
        bytes[7] = 1;
        assert!(matches!(decode(&bytes, |_| true), Packet::Opaque { .. }));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(mut bytes in prop::collection::vec(any::<u8>(), 0..200),
                                    v6: bool, force: bool) {
            if let Some(first) = bytes.first_mut().filter(|_| force) {
                *first = if v6 { 0x60 } else { 0x45 };
            }
            let _ = decode(&bytes, |_| true);
        }
    }
}
