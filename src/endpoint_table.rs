// SPDX-License-Identifier: BSD-2-Clause

//! Endpoints in the form that `src/bpf/lib/endpoints.bpf.h` reads: two bits that say no for nearly
//! every address, and a longest-prefix table of rules. Pure: plain values in, plain bytes out.

use std::collections::BTreeMap;

use crate::endpoint::Endpoint;
use crate::failure::Failure;

/// MAX_ENDPOINT_PREFIXES of `endpoints.bpf.h`.
pub const MAX_PREFIXES: usize = 4096;
/// MAX_ENDPOINT_RULES of `endpoints.bpf.h`.
pub const MAX_RULES: usize = 16;

/// Words of one bitmap over 16 bits of an address.
pub const BITMAP_WORDS: usize = 65536 / 64;
/// The bitmaps of the first and last 16 bits of IPv4 addresses and of the first and last 16 bits
/// of IPv6 addresses, in this order (`enum endpoint_bitmap`).
pub type Bitmaps = [[u64; BITMAP_WORDS]; 4];

/// Bytes of `struct endpoint_key`: a prefix length, an address.
pub const KEY_BYTES: usize = 4 + 16;
/// Bytes of `struct endpoint_rule`.
const RULE_BYTES: usize = 24;
/// Bytes of `struct endpoint_rules`.
pub const VALUE_BYTES: usize = 8 + MAX_RULES * RULE_BYTES;

/// An endpoint, and 64 bits that mean something to the tool alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where and which ports.
    pub endpoint: Endpoint,
    /// Handed to the program with every packet that concerns the endpoint.
    pub mask: u64,
}

/// Targets with the same address, ports and protocol become one: its name joins theirs with a
/// comma, its mask has the bits of all. The first of each decides the order.
pub fn merge(targets: impl IntoIterator<Item = Target>) -> Vec<Target> {
    let mut merged: Vec<Target> = Vec::new();
    for target in targets {
        let same = merged.iter_mut().find(|kept| {
            let (kept, new) = (&kept.endpoint, &target.endpoint);
            kept.mapped() == new.mapped()
                && kept.address.is_ipv4() == new.address.is_ipv4()
                && kept.ports == new.ports
                && kept.protocol == new.protocol
        });
        let Some(kept) = same else {
            merged.push(target);
            continue;
        };
        kept.mask |= target.mask;
        let known = kept
            .endpoint
            .name
            .split(',')
            .any(|name| name == target.endpoint.name);
        if !known {
            kept.endpoint.name.push(',');
            kept.endpoint.name.push_str(&target.endpoint.name);
        }
    }
    merged
}

/// What the program reads. A rule's endpoint is an index into the targets that this was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `endpoint_bits` of the program's read-only data.
    pub bitmaps: Box<Bitmaps>,
    /// Keys and values of the map `endpoints`.
    pub entries: Vec<([u8; KEY_BYTES], [u8; VALUE_BYTES])>,
}

/// A prefix of IPv4-mapped space, by family: `::/0` is not all of IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    v4: bool,
    bits: u128,
    length: u8,
}

/// What all IPv4 addresses begin with.
const ALL_V4: Prefix = Prefix {
    v4: true,
    bits: 0xffff << 32,
    length: 96,
};

impl Prefix {
    fn of(endpoint: &Endpoint) -> Self {
        let (address, length) = endpoint.mapped();
        Self {
            v4: endpoint.address.is_ipv4(),
            bits: address.to_bits(),
            length,
        }
    }

    /// Whether every address of `other` is one of this prefix.
    fn covers(self, other: Self) -> bool {
        self.v4 == other.v4 && self.length <= other.length && self.holds(other.bits)
    }

    fn holds(self, bits: u128) -> bool {
        let shift = 128 - u32::from(self.length);
        bits.checked_shr(shift) == self.bits.checked_shr(shift)
    }
}

impl Table {
    /// The table of `targets`.
    ///
    /// # Errors
    /// [`Failure::Usage`] for more prefixes, or more rules for one of them, than the program holds.
    pub fn new(targets: &[Target]) -> Result<Self, Failure> {
        let mut bitmaps: Box<Bitmaps> = Box::new([[0; BITMAP_WORDS]; 4]);
        let mut prefixes = BTreeMap::new();
        for target in targets {
            let prefix = Prefix::of(&target.endpoint);
            prefixes.insert(prefix, &target.endpoint);
            // Longest-prefix match knows no families: without an entry of its own, IPv4 would be
            // found in an IPv6 prefix this short. A prefix of IPv4 always has such an entry or is
            // longer.
            if !prefix.v4 && prefix.length < ALL_V4.length && prefix.holds(ALL_V4.bits) {
                prefixes.entry(ALL_V4).or_insert(&target.endpoint);
            }
            mark(&mut bitmaps, prefix);
        }
        if prefixes.len() > MAX_PREFIXES {
            return Err(Failure::usage(format!(
                "{} addresses or prefixes to guard; at most {MAX_PREFIXES} can be",
                prefixes.len()
            )));
        }
        let mut entries = Vec::with_capacity(prefixes.len());
        for (prefix, endpoint) in prefixes {
            let rules = rules(targets, prefix);
            if rules.len() > MAX_RULES {
                return Err(Failure::usage(format!(
                    "endpoint {endpoint}: {} different ports or protocols, with those of the \
                     prefixes around it; at most {MAX_RULES} can be",
                    rules.len()
                )));
            }
            entries.push((key(prefix), value(&rules)));
        }
        Ok(Self { bitmaps, entries })
    }
}

/// The rules that hold within `prefix`: its own and those of what covers it, most specific first.
fn rules(targets: &[Target], prefix: Prefix) -> Vec<(usize, &Target)> {
    let mut rules: Vec<_> = targets
        .iter()
        .enumerate()
        .filter(|(_, target)| Prefix::of(&target.endpoint).covers(prefix))
        .collect();
    rules.sort_by_key(|(index, target)| (std::cmp::Reverse(target.endpoint.mapped().1), *index));
    rules
}

fn key(prefix: Prefix) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..4].copy_from_slice(&u32::from(prefix.length).to_ne_bytes());
    key[4..].copy_from_slice(&prefix.bits.to_be_bytes());
    key
}

fn value(rules: &[(usize, &Target)]) -> [u8; VALUE_BYTES] {
    let mut value = [0; VALUE_BYTES];
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_ne_bytes();
    value[..4].copy_from_slice(&number(rules.len()));
    let (slots, _) = value[8..].as_chunks_mut::<RULE_BYTES>();
    for (slot, (index, target)) in slots.iter_mut().zip(rules) {
        let endpoint = &target.endpoint;
        slot[..2].copy_from_slice(&endpoint.ports.start().to_ne_bytes());
        slot[2..4].copy_from_slice(&endpoint.ports.end().to_ne_bytes());
        slot[4] = endpoint.protocol.map_or(0, |protocol| protocol as u8);
        slot[8..12].copy_from_slice(&number(*index));
        slot[16..].copy_from_slice(&target.mask.to_ne_bytes());
    }
    value
}

/// Sets the bits of all addresses in `prefix`.
fn mark(bitmaps: &mut Bitmaps, prefix: Prefix) {
    let hosts = 1_u128
        .checked_shl(128 - u32::from(prefix.length))
        .map_or(u128::MAX, |n| n - 1);
    let (low, high) = (prefix.bits, prefix.bits | hosts);
    let (first_shift, first, last) = if prefix.v4 { (16, 0, 1) } else { (112, 2, 3) };
    set(
        &mut bitmaps[first],
        half(low >> first_shift),
        half(high >> first_shift),
    );
    if hosts >= 0xffff {
        set(&mut bitmaps[last], 0, u16::MAX);
    } else {
        set(&mut bitmaps[last], half(low), half(high));
    }
}

/// The last 16 bits.
fn half(bits: u128) -> u16 {
    u16::try_from(bits & 0xffff).unwrap_or(u16::MAX)
}

fn set(bitmap: &mut [u64; BITMAP_WORDS], first: u16, last: u16) {
    for bit in first..=last {
        bitmap[usize::from(bit >> 6)] |= 1 << (bit & 63);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

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

    /// What the program does, in Rust: the index of the endpoint found.
    fn lookup(table: &Table, address: IpAddr, port: u16, protocol: Protocol) -> Option<u32> {
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
        let (_, value) = table
            .entries
            .iter()
            .filter(|(key, _)| {
                let length = u32::from_ne_bytes(key[..4].try_into().unwrap());
                let network = u128::from_be_bytes(key[4..].try_into().unwrap());
                let shift = 128 - length;
                bits.checked_shr(shift) == network.checked_shr(shift)
            })
            .max_by_key(|(key, _)| u32::from_ne_bytes(key[..4].try_into().unwrap()))?;
        let count = u32::from_ne_bytes(value[..4].try_into().unwrap()) as usize;
        let half = |at: &[u8]| u16::from_ne_bytes(at.try_into().unwrap());
        value[8..].chunks(RULE_BYTES).take(count).find_map(|rule| {
            ((rule[4] == 0 || rule[4] == protocol as u8)
                && (half(&rule[..2])..=half(&rule[2..4])).contains(&port))
            .then(|| u32::from_ne_bytes(rule[8..12].try_into().unwrap()))
        })
    }

    #[test]
    fn the_most_specific_endpoint_is_found_and_what_covers_it_still_holds() {
        let targets = [
            target("10.0.0.0/8:53/udp"),
            target("10.1.2.3:80/tcp"),
            target("10.1.0.0/16:80"),
        ];
        let table = Table::new(&targets).unwrap();
        let find = |address: &str, port, protocol| {
            lookup(&table, address.parse().unwrap(), port, protocol)
        };
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
    fn too_many_rules_name_the_endpoint() {
        let targets: Vec<_> = (1..=17)
            .map(|port| target(&format!("10.0.0.0/8:{port}")))
            .collect();
        assert!(Table::new(&targets[..16]).is_ok());
        let err = Table::new(&targets).unwrap_err().to_string();
        assert!(err.contains("10.0.0.0/8") && err.contains("17"), "{err}");
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
}
