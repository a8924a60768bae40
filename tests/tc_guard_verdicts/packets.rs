// SPDX-License-Identifier: BSD-2-Clause

//! Packets, honest and otherwise.

use std::net::{IpAddr, Ipv6Addr};

use proptest::prelude::*;

use super::common::dice::Dice;

/// The kernel's test run wants an Ethernet header and something behind it.
pub const SHORTEST: usize = 15;

fn address() -> impl Strategy<Value = IpAddr> {
    let chosen = [
        "169.254.169.254",
        "169.254.169.253",
        "10.1.0.1",
        "10.1.2.3",
        "10.2.2.3",
        "192.0.2.7",
        "8.8.8.8",
        "fd00:ec2::254",
        "fd00:ec2::253",
        "fd00:5::1",
        "fd00:6::1",
        "2001:db8::1",
        "2001:db8::2",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
    ];
    prop_oneof![
        8 => proptest::sample::select(chosen.to_vec()).prop_map(|text| text.parse().unwrap()),
        1 => any::<[u8; 4]>().prop_map(IpAddr::from),
        1 => any::<[u8; 16]>().prop_map(IpAddr::from),
    ]
}

#[derive(Debug, Clone)]
pub struct Crafted {
    pub tags: Vec<u16>,
    pub dst: IpAddr,
    pub options: usize,
    pub extensions: Vec<(u8, u8)>,
    pub fragment: u16,
    pub protocol: u8,
    pub dport: u16,
    pub flags: u8,
    pub payload: usize,
    /// How much longer or shorter than the truth the length field is.
    pub lie: i16,
    pub cut: Option<usize>,
    pub flip: Option<(usize, u8)>,
}

pub fn crafted() -> impl Strategy<Value = Crafted> {
    let extension = proptest::sample::select([0, 43, 44, 51, 60, 135, 139, 140].as_slice());
    let fragment = proptest::sample::select(
        [
            0, 0, 0, 0, 0x2000, 0x2001, 0x0001, 0x1fff, 0x4000, 0x0008, 0xfff8,
        ]
        .as_slice(),
    );
    let port = prop_oneof![
        4 => proptest::sample::select(
            [80, 79, 81, 53, 443, 999, 1000, 1500, 2000, 2001].as_slice()
        ),
        1 => any::<u16>(),
    ];
    (
        (
            proptest::collection::vec(
                proptest::sample::select([0x8100u16, 0x88a8, 0x9100].as_slice()),
                0..5,
            ),
            address(),
            prop_oneof![4 => Just(0usize), 1 => 1usize..11],
            prop_oneof![
                3 => Just(Vec::new()),
                2 => proptest::collection::vec((extension, 0u8..3), 0..11),
            ],
            fragment,
            prop_oneof![
                6 => Just(6u8), 4 => Just(17u8), 1 => Just(1u8), 1 => Just(58u8), 1 => any::<u8>()
            ],
        ),
        (
            port,
            any::<u8>(),
            0usize..200,
            prop_oneof![6 => Just(0i16), 1 => -80i16..80],
            proptest::option::weighted(0.15, SHORTEST..200),
            proptest::option::weighted(0.15, (14usize..120, any::<u8>())),
        ),
    )
        .prop_map(
            |(
                (tags, dst, options, extensions, fragment, protocol),
                (dport, flags, payload, lie, cut, flip),
            )| Crafted {
                tags,
                dst,
                options,
                extensions,
                fragment,
                protocol,
                dport,
                flags,
                payload,
                lie,
                cut,
                flip,
            },
        )
}

impl Crafted {
    pub fn frame(&self) -> Vec<u8> {
        let mut segment = match self.protocol {
            6 => {
                let mut tcp = vec![0x9c, 0x40];
                tcp.extend(self.dport.to_be_bytes());
                tcp.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 1, 0, 0, 0, 0, 0]);
                tcp
            }
            17 => {
                let mut udp = vec![0x9c, 0x40];
                udp.extend(self.dport.to_be_bytes());
                udp.extend(u16::try_from(8 + self.payload).unwrap().to_be_bytes());
                udp.extend([0, 0]);
                udp
            }
            _ => vec![8, 0, 0, 0, 0, 1, 0, 1],
        };
        segment.extend(std::iter::repeat_n(0xa5, self.payload));
        let lied = |length: usize| {
            let length = i32::try_from(length).unwrap() + i32::from(self.lie);
            u16::try_from(length.max(0)).unwrap().to_be_bytes()
        };

        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in &self.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 100]);
        }
        match self.dst {
            IpAddr::V4(dst) => {
                frame.extend([8, 0]);
                let header = 20 + self.options * 4;
                frame.extend([0x40 | u8::try_from(header / 4).unwrap(), 0]);
                frame.extend(lied(header + segment.len()));
                frame.extend([0, 7]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, self.protocol, 0, 0, 10, 0, 0, 2]);
                frame.extend(dst.octets());
                frame.extend(std::iter::repeat_n(1, self.options * 4));
            }
            IpAddr::V6(dst) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                let mut headers = Vec::new();
                for (index, (kind, length)) in self.extensions.iter().enumerate() {
                    let next = self
                        .extensions
                        .get(index + 1)
                        .map_or(self.protocol, |e| e.0);
                    let mut header = vec![next, *length];
                    header.extend(self.fragment.to_be_bytes());
                    let size = match kind {
                        44 => 8,
                        51 => (usize::from(*length) + 2) * 4,
                        _ => (usize::from(*length) + 1) * 8,
                    };
                    header.resize(size, 0);
                    headers.extend(header);
                }
                frame.extend(lied(headers.len() + segment.len()));
                frame.push(self.extensions.first().map_or(self.protocol, |e| e.0));
                frame.push(64);
                frame.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
                frame.extend(dst.octets());
                frame.extend(headers);
            }
        }
        frame.extend(segment);
        if let Some(cut) = self.cut {
            frame.truncate(cut);
        }
        if let Some((at, bits)) = self.flip
            && let Some(byte) = frame.get_mut(at)
        {
            *byte ^= bits;
        }
        frame
    }
}

impl Dice {
    /// A packet to one of `addresses`, or to any.
    pub fn packet(&mut self, addresses: &[IpAddr]) -> Crafted {
        let dst = match self.below(12) {
            0 => IpAddr::from(u32::try_from(self.roll() >> 32).unwrap().to_be_bytes()),
            1 => IpAddr::from(
                (u128::from(self.roll()) << 64 | u128::from(self.roll())).to_be_bytes(),
            ),
            _ => self.pick(addresses),
        };
        let mut tags = Vec::new();
        while tags.len() < 3 && self.once_in(6) {
            tags.push(self.pick(&[0x8100, 0x88a8, 0x9100]));
        }
        let mut extensions = Vec::new();
        if self.once_in(6) {
            for _ in 0..self.below(11) {
                let kind = self.pick(&[0, 43, 44, 51, 60, 135, 139, 140]);
                extensions.push((kind, u8::try_from(self.below(3)).unwrap()));
            }
        }
        let byte = u8::try_from(self.roll() >> 56).unwrap();
        Crafted {
            tags,
            dst,
            options: if self.once_in(10) { self.below(11) } else { 0 },
            extensions,
            fragment: if self.once_in(8) {
                self.pick(&[0x2000, 0x2001, 0x0001, 0x1fff, 0x4000, 0x0008, 0xfff8])
            } else {
                0
            },
            protocol: self.pick(&[6, 6, 6, 6, 17, 17, 17, 1, 58, byte]),
            dport: if self.once_in(5) {
                u16::try_from(self.roll() >> 48).unwrap()
            } else {
                self.pick(&[
                    80, 80, 80, 80, 79, 81, 53, 443, 443, 999, 1000, 1500, 1500, 2000, 2001,
                ])
            },
            flags: byte.rotate_left(3),
            payload: self.below(200),
            lie: if self.once_in(12) {
                i16::try_from(self.below(160)).unwrap() - 80
            } else {
                0
            },
            cut: self.once_in(12).then(|| SHORTEST + self.below(185)),
            flip: self.once_in(12).then(|| (14 + self.below(106), byte)),
        }
    }
}
