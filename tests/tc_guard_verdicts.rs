// SPDX-License-Identifier: BSD-2-Clause

//! The guard's verdicts, one packet at a time by the kernel's test run, against a plain function
//! that says what they should be.

mod common;

mod root {
    use std::cell::Cell;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use ebpfkit::endpoint::{Endpoint, Protocol};
    use ebpfkit::tools::tc_guard::plan::Plan;
    use ebpfkit::tools::tc_guard::policy::Policy;
    use ebpfkit::tools::tc_guard::{Guard, Hook};
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    /// What becomes of a packet: the return codes of linux/pkt_cls.h.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fate {
        /// TC_ACT_UNSPEC: untouched, on to the next program.
        Passes,
        /// TC_ACT_SHOT
        Dropped,
        /// TC_ACT_REDIRECT: turned into an answer.
        Answered,
    }

    impl Fate {
        fn from_code(code: i32) -> Self {
            match code {
                -1 => Self::Passes,
                2 => Self::Dropped,
                7 => Self::Answered,
                other => panic!("return code {other}"),
            }
        }
    }

    fn be16(bytes: &[u8], at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
    }

    /// How far the transport header could be read.
    enum Transport {
        Known {
            protocol: u8,
            dport: u16,
            nothing_out: bool,
            reset: bool,
            /// Eight bytes are there to quote.
            quotable: bool,
            plain: bool,
        },
        /// The protocol, if no header can come before its own.
        Hidden(Option<u8>),
    }

    /// The reference: slow, plain, and written from the RFCs rather than from the program.
    /// `user_may` is what the policy says of the packet's socket.
    fn reference(frame: &[u8], endpoints: &[Endpoint], user_may: bool) -> Fate {
        let mut at = 12;
        let mut tags = 0;
        let network = loop {
            match be16(frame, at) {
                Some(0x0800 | 0x86dd) => break at + 2,
                Some(tag) if tags == 1 || (tags == 0 && matches!(tag, 0x8100 | 0x88a8)) => {
                    tags += 1;
                    at += 4;
                }
                _ => return Fate::Passes,
            }
        };
        let Some((dst, transport)) = network_layer(frame, network) else {
            return Fate::Passes;
        };
        let guarded = endpoints.iter().any(|endpoint| {
            endpoint.address.is_ipv4() == dst.is_ipv4()
                && endpoint.contains(dst)
                && match &transport {
                    Transport::Hidden(protocol) => match (endpoint.protocol, protocol) {
                        (Some(wanted), Some(protocol)) => wanted as u8 == *protocol,
                        (None, Some(protocol)) => {
                            endpoint.ports == (0..=u16::MAX) || matches!(protocol, 6 | 17)
                        }
                        _ => true,
                    },
                    Transport::Known {
                        protocol, dport, ..
                    } => {
                        endpoint.ports.contains(dport)
                            && match endpoint.protocol {
                                Some(wanted) => wanted as u8 == *protocol,
                                // A port range means the protocols that have ports.
                                None => {
                                    endpoint.ports == (0..=u16::MAX) || matches!(protocol, 6 | 17)
                                }
                            }
                    }
                }
        });
        if !guarded || user_may {
            return Fate::Passes;
        }
        match transport {
            Transport::Hidden(_) => Fate::Dropped,
            Transport::Known {
                nothing_out: true,
                reset: true,
                ..
            } => Fate::Passes,
            Transport::Known {
                protocol: 6,
                plain: true,
                ..
            } => Fate::Answered,
            // ICMP is not answered by ICMP. Behind a tag the kernel makes no room for an answer.
            Transport::Known {
                protocol,
                plain: true,
                quotable: true,
                ..
            } if !matches!(protocol, 1 | 58) && tags == 0 => Fate::Answered,
            Transport::Known { .. } => Fate::Dropped,
        }
    }

    fn network_layer(frame: &[u8], network: usize) -> Option<(IpAddr, Transport)> {
        let first = *frame.get(network)?;
        match first >> 4 {
            4 => {
                let header = frame.get(network..network + 20)?;
                let length = usize::from(first & 15) * 4;
                if length < 20 {
                    return None;
                }
                let dst = Ipv4Addr::from(<[u8; 4]>::try_from(&header[16..20]).unwrap());
                let total = usize::from(be16(header, 2)?);
                let fragment = be16(header, 6)?;
                let end = end(frame, network, total);
                let transport = if fragment & 0x1fff != 0 {
                    Transport::Hidden(Some(header[9]))
                } else {
                    let plain = length == 20 && fragment & 0x2000 == 0;
                    transport(frame, network + length, end, header[9], plain)
                };
                Some((dst.into(), transport))
            }
            6 => {
                let header = frame.get(network..network + 40)?;
                let dst = Ipv6Addr::from(<[u8; 16]>::try_from(&header[24..40]).unwrap());
                let total = match usize::from(be16(header, 4)?) {
                    0 => 0,
                    payload => payload + 40,
                };
                let end = end(frame, network, total);
                let transport = extensions(frame, network + 40, end, header[6]);
                Some((IpAddr::V6(dst), transport))
            }
            _ => None,
        }
    }

    fn end(frame: &[u8], network: usize, total: usize) -> usize {
        if total == 0 {
            frame.len()
        } else {
            frame.len().min(network + total)
        }
    }

    fn extensions(frame: &[u8], mut at: usize, end: usize, mut next: u8) -> Transport {
        let mut plain = true;
        for _ in 0..8 {
            if !matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
                return transport(frame, at, end, next, plain);
            }
            plain = false;
            let Some(header) = frame.get(at..at + 4) else {
                return Transport::Hidden(None);
            };
            if next == 44 {
                if be16(header, 2).unwrap() & 0xfff8 != 0 {
                    let next = header[0];
                    let certain = !matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140);
                    return Transport::Hidden(certain.then_some(next));
                }
                at += 8;
            } else if next == 51 {
                at += (usize::from(header[1]) + 2) * 4;
            } else {
                at += (usize::from(header[1]) + 1) * 8;
            }
            next = header[0];
        }
        if matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
            return Transport::Hidden(None);
        }
        transport(frame, at, end, next, plain)
    }

    fn transport(frame: &[u8], at: usize, end: usize, protocol: u8, plain: bool) -> Transport {
        let left = end.saturating_sub(at);
        let known = |dport, nothing_out, reset| Transport::Known {
            protocol,
            dport,
            nothing_out,
            reset,
            quotable: frame.len() >= at + 8,
            plain,
        };
        match protocol {
            6 => {
                let Some(header) = frame.get(at..at + 20) else {
                    return Transport::Hidden(Some(6));
                };
                let length = usize::from(header[12] >> 4) * 4;
                if length < 20 || length > left {
                    return Transport::Hidden(Some(6));
                }
                let flags = header[13];
                let nothing_out = left == length && flags & 0x02 == 0;
                known(be16(header, 2).unwrap(), nothing_out, flags & 0x04 != 0)
            }
            17 => match frame.get(at..at + 8) {
                Some(header) if left >= 8 => known(be16(header, 2).unwrap(), false, false),
                _ => Transport::Hidden(Some(17)),
            },
            _ => known(0, false, false),
        }
    }

    const ENDPOINTS: &[&str] = &[
        "169.254.169.254:80/tcp",
        "[fd00:ec2::254]:80/tcp",
        "10.1.0.0/16:1000-2000",
        "10.1.2.0/24:53/udp",
        "192.0.2.7",
        "[fd00:5::]/32:443",
        "2001:db8::1",
    ];

    fn endpoints() -> Vec<Endpoint> {
        ENDPOINTS.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn plan(root_may: bool) -> Plan {
        let users: &[&str] = if root_may { &["0"] } else { &[] };
        Plan::new(&Policy::of(&endpoints(), users), None).unwrap()
    }

    /// In force, though nowhere attached.
    fn guard(plan: &Plan) -> Guard {
        let guard = Guard::load(plan, Guard::method(), None).unwrap();
        guard.arm().unwrap();
        guard
    }

    /// The kernel's test run wants an Ethernet header and something behind it.
    const SHORTEST: usize = 15;

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
    struct Crafted {
        tags: Vec<u16>,
        dst: IpAddr,
        options: usize,
        extensions: Vec<(u8, u8)>,
        fragment: u16,
        protocol: u8,
        dport: u16,
        flags: u8,
        payload: usize,
        /// How much longer or shorter than the truth the length field is.
        lie: i16,
        cut: Option<usize>,
        flip: Option<(usize, u8)>,
    }

    fn crafted() -> impl Strategy<Value = Crafted> {
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
                    proptest::sample::select([0x8100u16, 0x88a8].as_slice()),
                    0..4,
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
                    tags, dst, options, extensions, fragment, protocol, dport, flags, payload, lie,
                    cut, flip,
                },
            )
    }

    impl Crafted {
        fn frame(&self) -> Vec<u8> {
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

    #[test]
    fn every_generated_packet_is_judged_as_the_reference_says() {
        let endpoints = endpoints();
        let (open, closed) = (guard(&plan(true)), guard(&plan(false)));
        let fates = [const { Cell::new(0u32) }; 3];
        // An emulated machine takes a hundred times as long for a packet.
        let cases = if std::env::var_os("EBPFKIT_VM").is_some() {
            2_000
        } else {
            20_000
        };
        let config = Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        };
        TestRunner::new(config)
            .run(&crafted(), |crafted| {
                let frame = crafted.frame();
                for (guard, root_may) in [(&open, true), (&closed, false)] {
                    let code = match guard.test_run(Hook::EgressEth, &frame, 1) {
                        Ok(ran) => ran.code,
                        // Newer kernels want a whole network header for their test run.
                        Err(_) if frame.len() < SHORTEST + 40 => return Ok(()),
                        Err(err) => panic!("{err:#}"),
                    };
                    let expected = reference(&frame, &endpoints, root_may);
                    prop_assert_eq!(Fate::from_code(code), expected, "{:02x?}", &frame);
                    let seen = &fates[expected as usize];
                    seen.set(seen.get() + 1);
                }
                Ok(())
            })
            .unwrap();
        assert!(
            fates.iter().all(|count| count.get() > cases / 100),
            "the generator is one-sided: {fates:?}"
        );
    }

    /// A packet to `dst`, complete and unremarkable.
    fn packet(dst: &str, protocol: u8, dport: u16) -> Crafted {
        Crafted {
            tags: Vec::new(),
            dst: dst.parse().unwrap(),
            options: 0,
            extensions: Vec::new(),
            fragment: 0,
            protocol,
            dport,
            flags: 0x18,
            payload: 20,
            lie: 0,
            cut: None,
            flip: None,
        }
    }

    fn closed_fate(crafted: &Crafted) -> Fate {
        let guard = guard(&plan(false));
        let ran = guard.test_run(Hook::EgressEth, &crafted.frame(), 1);
        Fate::from_code(ran.unwrap().code)
    }

    #[test]
    fn an_ipv6_packet_is_judged_by_its_own_destination() {
        assert_eq!(closed_fate(&packet("fd00:ec2::254", 6, 80)), Fate::Answered);
        assert_eq!(closed_fate(&packet("fd00:ec2::255", 6, 80)), Fate::Passes);
    }

    #[test]
    fn a_prefix_shorter_than_the_address_guards_its_whole_network() {
        assert_eq!(
            closed_fate(&packet("10.1.255.255", 6, 1000)),
            Fate::Answered
        );
        assert_eq!(closed_fate(&packet("10.2.0.0", 6, 1000)), Fate::Passes);
        assert_eq!(
            closed_fate(&packet("fd00:5:ffff::1", 17, 443)),
            Fate::Answered
        );
    }

    #[test]
    fn an_endpoint_inside_another_keeps_the_rules_of_both() {
        assert_eq!(closed_fate(&packet("10.1.2.3", 17, 53)), Fate::Answered);
        assert_eq!(closed_fate(&packet("10.1.2.3", 6, 1500)), Fate::Answered);
        assert_eq!(closed_fate(&packet("10.1.2.3", 6, 53)), Fate::Passes);
    }

    #[test]
    fn dns_on_the_same_address_stays_open() {
        assert_eq!(
            closed_fate(&packet("169.254.169.254", 17, 53)),
            Fate::Passes
        );
        assert_eq!(closed_fate(&packet("169.254.169.254", 6, 53)), Fate::Passes);
    }

    #[test]
    fn a_vlan_tag_in_the_frame_hides_nothing() {
        for tags in [vec![0x8100], vec![0x88a8, 0x8100]] {
            let tagged = Crafted {
                tags,
                ..packet("169.254.169.254", 6, 80)
            };
            assert_eq!(closed_fate(&tagged), Fate::Answered);
        }
    }

    #[test]
    fn extension_headers_hide_nothing() {
        let hidden = Crafted {
            extensions: vec![(0, 0), (60, 1)],
            ..packet("fd00:ec2::254", 6, 80)
        };
        assert_eq!(closed_fate(&hidden), Fate::Dropped);
        let too_many = Crafted {
            extensions: vec![(60, 0); 9],
            ..packet("fd00:ec2::254", 6, 80)
        };
        assert_eq!(closed_fate(&too_many), Fate::Dropped);
    }

    #[test]
    fn a_fragment_without_ports_is_kept_back() {
        let later = Crafted {
            fragment: 1,
            ..packet("169.254.169.254", 6, 53)
        };
        assert_eq!(closed_fate(&later), Fate::Dropped);
        let of_dns = Crafted {
            protocol: 17,
            ..later
        };
        assert_eq!(closed_fate(&of_dns), Fate::Passes);
    }

    #[test]
    fn a_reset_that_carries_nothing_passes() {
        let reset = Crafted {
            flags: 0x14,
            payload: 0,
            ..packet("169.254.169.254", 6, 80)
        };
        assert_eq!(closed_fate(&reset), Fate::Passes);
        let laden = Crafted {
            payload: 1,
            ..reset
        };
        assert_eq!(closed_fate(&laden), Fate::Answered);
    }

    #[test]
    fn names_of_protocols_agree_with_their_numbers() {
        assert_eq!((Protocol::Tcp as u8, Protocol::Udp as u8), (6, 17));
    }
}
