// SPDX-License-Identifier: BSD-2-Clause

use std::net::{IpAddr, Ipv6Addr};

use proptest::prelude::*;

use super::layout::half;
use super::*;
use crate::endpoint::Protocol;

fn target(text: &str) -> Target {
    Target {
        endpoint: text.parse().unwrap(),
        mask: 0,
    }
}

fn bit(bitmap: &[u64; BITMAP_WORDS], half: u16) -> bool {
    bitmap[usize::from(half >> 6)] >> (half & 63) & 1 == 1
}

fn lookup(table: &Table, address: IpAddr, port: u16, protocol: Protocol) -> Option<u32> {
    search(table, address, port, protocol as u8, Question::Port).map(|(endpoint, _)| endpoint)
}

/// What the program does, in Rust: the index of the endpoint found, and the mask.
fn search(
    table: &Table,
    address: IpAddr,
    port: u16,
    protocol: u8,
    question: Question,
) -> Option<(u32, u64)> {
    let (possible, bits) = match address {
        IpAddr::V4(v4) => {
            let bits = u128::from(v4.to_bits());
            let first = bit(&table.bitmaps[0], half(bits >> 16));
            (
                first && bit(&table.bitmaps[1], half(bits)),
                v4.to_ipv6_mapped().to_bits(),
            )
        }
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            (
                bit(&table.bitmaps[2], half(bits >> 112)) && bit(&table.bitmaps[3], half(bits)),
                bits,
            )
        }
    };
    if !possible {
        return None;
    }
    let group = longest(&table.addresses, &bits.to_be_bytes())?;
    let mut asked = [0; 8];
    asked[..4].copy_from_slice(&u32::from_ne_bytes(*group).to_be_bytes());
    asked[4] = protocol;
    asked[5] = question as u8;
    asked[6..].copy_from_slice(&port.to_be_bytes());
    let value = longest(&table.ports, &asked)?;
    Some((
        u32::from_ne_bytes(value[8..12].try_into().unwrap()),
        u64::from_ne_bytes(value[..8].try_into().unwrap()),
    ))
}

/// What an LPM trie of the kernel answers.
fn longest<'t, const K: usize, V>(entries: &'t [([u8; K], V)], asked: &[u8]) -> Option<&'t V> {
    let length = |key: &[u8; K]| u32::from_ne_bytes(key[..4].try_into().unwrap());
    let bit = |bytes: &[u8], at: u32| bytes[at as usize / 8] >> (7 - at % 8) & 1;
    entries
        .iter()
        .filter(|(key, _)| (0..length(key)).all(|at| bit(&key[4..], at) == bit(asked, at)))
        .max_by_key(|(key, _)| length(key))
        .map(|(_, value)| value)
}

#[test]
fn what_is_exact_is_what_the_table_says() {
    let targets: Vec<_> = [
        ("169.254.169.254:80/tcp", 1),
        ("169.254.0.0/16:80", 2),
        ("169.254.169.254", 4),
        ("169.254.169.254:53/udp", 8),
        ("[fd00::1]:443", 16),
        ("0.0.0.0/0:8080", 32),
    ]
    .into_iter()
    .map(|(text, mask)| Target {
        mask,
        ..target(text)
    })
    .collect();
    let table = Table::new(&targets).unwrap();
    let exact = Table::exact(&targets);
    assert_eq!(exact.len(), 6);
    for (key, value) in &exact {
        let address = Ipv6Addr::from(<[u8; 16]>::try_from(&key[..16]).unwrap());
        let port = u16::from_be_bytes([key[16], key[17]]);
        let found = search(
            &table,
            address.to_canonical(),
            port,
            key[18],
            Question::Port,
        );
        let (endpoint, mask) = found.unwrap();
        assert_eq!(value[..8], mask.to_ne_bytes());
        assert_eq!(value[8..12], endpoint.to_ne_bytes());
    }
}

#[test]
fn the_most_specific_endpoint_is_found_and_what_covers_it_still_holds() {
    let targets = [
        target("10.0.0.0/8:53/udp"),
        target("10.1.2.3:80/tcp"),
        target("10.1.0.0/16:80"),
    ];
    let table = Table::new(&targets).unwrap();
    let find =
        |address: &str, port, protocol| lookup(&table, address.parse().unwrap(), port, protocol);
    assert_eq!(find("10.1.2.3", 80, Protocol::Tcp), Some(1));
    assert_eq!(find("10.1.2.3", 80, Protocol::Udp), Some(2));
    assert_eq!(find("10.1.2.3", 53, Protocol::Udp), Some(0));
    assert_eq!(find("10.1.2.3", 53, Protocol::Tcp), None);
    assert_eq!(find("10.1.255.255", 80, Protocol::Tcp), Some(2));
    assert_eq!(find("10.255.0.1", 53, Protocol::Udp), Some(0));
    assert_eq!(find("11.1.2.3", 80, Protocol::Tcp), None);
}

#[test]
fn all_of_ipv6_is_none_of_ipv4_and_the_other_way_round() {
    for (all, inside, outside) in [
        ("::/0", "fd00::1", "1.2.3.4"),
        ("0.0.0.0/0", "1.2.3.4", "fd00::1"),
    ] {
        // The second target lets `outside` pass the bitmaps.
        let targets = [
            target(all),
            target(&format!("{outside}/32").replace("::1/32", "::1")),
        ];
        let table = Table::new(&targets).unwrap();
        let find = |address: &str| lookup(&table, address.parse().unwrap(), 80, Protocol::Tcp);
        assert_eq!(find(inside), Some(0));
        assert_eq!(find(outside), Some(1));
    }
    let table = Table::new(&[target("::/0"), target("1.2.0.0/16:443")]).unwrap();
    assert_eq!(
        lookup(&table, "1.2.3.4".parse().unwrap(), 80, Protocol::Tcp),
        None
    );
}

#[test]
fn rules_of_overlapping_endpoints_add_up() {
    let with = |text: &str, mask| Target {
        mask,
        ..target(text)
    };
    let targets = [
        with("10.0.0.0/8", 1),
        with("10.1.2.3:80-90/tcp", 2),
        with("10.1.2.3:85/tcp", 4),
    ];
    let table = Table::new(&targets).unwrap();
    let find = |port| search(&table, "10.1.2.3".parse().unwrap(), port, 6, Question::Port);
    assert_eq!(find(79), Some((0, 1)));
    assert_eq!(find(80), Some((1, 3)));
    assert_eq!(find(85), Some((1, 7)));
    assert_eq!(find(91), Some((0, 1)));
}

#[test]
fn what_cannot_be_read_is_whatever_it_may_be() {
    let targets = [
        target("10.1.2.3:80/tcp"),
        target("10.1.2.4"),
        target("10.1.2.5:7"),
    ];
    let table = Table::new(&targets).unwrap();
    let find = |address: &str, protocol, question| {
        search(&table, address.parse().unwrap(), 0, protocol, question).map(|found| found.0)
    };
    assert_eq!(find("10.1.2.3", 6, Question::Protocol), Some(0));
    assert_eq!(find("10.1.2.3", 17, Question::Protocol), None);
    assert_eq!(find("10.1.2.3", 0, Question::Anything), Some(0));
    assert_eq!(find("10.1.2.4", 0, Question::Protocol), Some(1));
    assert_eq!(find("10.1.2.4", 0, Question::Port), Some(1));
    assert_eq!(find("10.1.2.5", 17, Question::Protocol), Some(2));
    assert_eq!(find("10.1.2.5", 0, Question::Port), None);
}

#[test]
fn a_range_of_ports_is_made_of_few_prefixes() {
    assert_eq!(port_prefixes(0, 65535), [(0, 0)]);
    assert_eq!(port_prefixes(80, 80), [(80, 16)]);
    assert_eq!(port_prefixes(1, 6), [(1, 16), (2, 15), (4, 15), (6, 16)]);
    assert_eq!(port_prefixes(1, 65534).len(), 30);
    assert_eq!(port_prefixes(65535, 65535), [(65535, 16)]);
}

#[test]
fn many_endpoints_fit_and_too_many_are_refused() {
    let mut targets: Vec<_> = (0..1500)
        .map(|n| target(&format!("10.0.{}.{}:80/tcp", n / 250, n % 250)))
        .collect();
    assert_eq!(Table::new(&targets).unwrap().ports.len(), 4500);
    for target in &mut targets {
        target.endpoint.protocol = None;
        target.endpoint.ports = 1..=65534;
    }
    let err = Table::new(&targets).map(drop).unwrap_err().to_string();
    assert!(err.contains("at most 65536"), "{err}");
}

#[test]
fn clouds_at_the_same_address_become_one() {
    let named = |name: &str, mask| {
        let mut target = target("169.254.169.254:80/tcp");
        target.endpoint.name = name.to_owned();
        target.mask = mask;
        target
    };
    let merged = merge([
        named("aws", 1),
        named("azure", 2),
        named("aws", 4),
        target("1.1.1.1"),
    ]);
    assert_eq!(merged.len(), 2);
    assert_eq!(
        (merged[0].endpoint.name.as_str(), merged[0].mask),
        ("aws,azure", 7)
    );
}

fn any_target() -> impl Strategy<Value = Target> {
    // Few distinct bits, so that prefixes nest and addresses hit.
    (
        any::<bool>(),
        0..4_u8,
        0..=128_u8,
        0..3_u16,
        prop::option::of(any::<bool>()),
    )
        .prop_map(|(v4, seed, length, port, protocol)| {
            let length = if v4 { length % 33 } else { length };
            let (address, prefix) = (address(v4, seed), if v4 { length + 96 } else { length });
            let mapped = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            let network = crate::endpoint::mask(mapped, prefix);
            let address = if v4 {
                IpAddr::V4(network.to_ipv4_mapped().unwrap())
            } else {
                IpAddr::V6(network)
            };
            let endpoint = Endpoint {
                name: String::new(),
                address,
                prefix: length,
                ports: port..=port + 1,
                protocol: protocol.map(|tcp| if tcp { Protocol::Tcp } else { Protocol::Udp }),
            };
            Target { endpoint, mask: 0 }
        })
}

fn address(v4: bool, seed: u8) -> IpAddr {
    let bits = [0, 0xa9fe_a9fe, 0xffff_ffff, 0x0a01_0203][usize::from(seed)];
    if v4 {
        IpAddr::V4(bits.into())
    } else {
        let bits = u128::from(bits);
        IpAddr::V6((bits << 96 | bits).into())
    }
}

proptest! {
    #[test]
    fn a_lookup_finds_what_the_endpoints_say(
        targets in prop::collection::vec(any_target(), 0..12),
        v4: bool, seed in 0..4_u8, flip in 0..129_u32, port in 0..5_u16, tcp: bool,
    ) {
        let table = Table::new(&targets).unwrap();
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let address = match address(v4, seed) {
            IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() ^ 1_u32.checked_shl(flip).unwrap_or(0)).into()),
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() ^ 1_u128.checked_shl(flip).unwrap_or(0)).into()),
        };
        let expected = targets
            .iter()
            .enumerate()
            .filter(|(_, Target { endpoint, .. })| {
                endpoint.contains(address)
                    && endpoint.ports.contains(&port)
                    && endpoint.protocol.is_none_or(|wanted| wanted == protocol)
            })
            .max_by_key(|(index, target)| (target.endpoint.prefix, std::cmp::Reverse(*index)))
            .map(|(index, _)| u32::try_from(index).unwrap());
        prop_assert_eq!(lookup(&table, address, port, protocol), expected);
    }
}
