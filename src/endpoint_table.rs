// SPDX-License-Identifier: BSD-2-Clause

//! Endpoints in the form that `src/bpf/lib/endpoints.bpf.h` reads: two bits that say no for nearly
//! every address, then a table from addresses to groups and one from a group's ports to what is
//! there. Pure: plain values in, plain bytes out.

use std::collections::{BTreeMap, BTreeSet};

use crate::endpoint::{ANY_PORT, Endpoint, Protocol};
use crate::failure::Failure;

/// MAX_ENDPOINT_PREFIXES of `endpoints.bpf.h`.
pub const MAX_PREFIXES: usize = 4096;
/// MAX_ENDPOINT_PORTS of `endpoints.bpf.h`.
pub const MAX_PORTS: usize = 65536;

/// Words of one bitmap over 16 bits of an address.
pub const BITMAP_WORDS: usize = 65536 / 64;
/// The bitmaps of the first and last 16 bits of IPv4 addresses and of the first and last 16 bits
/// of IPv6 addresses, in this order (`enum endpoint_bitmap`).
pub type Bitmaps = [[u64; BITMAP_WORDS]; 4];

/// Bytes of `struct endpoint_key`: a prefix length, an address.
pub const KEY_BYTES: usize = 4 + 16;
/// Bytes of `struct endpoint_port_key`: a prefix length, a group, a protocol, a question, a port.
pub const PORT_KEY_BYTES: usize = 4 + 8;
/// Bytes of `struct endpoint_target`: a mask, an index, padding.
pub const TARGET_BYTES: usize = 16;

/// Bytes of `struct exact_key` of `tc_guard_policy.bpf.h`: an address, a port, a protocol, padding.
pub const EXACT_KEY_BYTES: usize = 16 + 4;

/// `enum endpoint_question` of `endpoints.bpf.h`.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Question {
    Port = 0,
    Protocol = 1,
    Anything = 2,
}

/// The protocols that the program tells apart: TCP, UDP, and all others as 0.
const PROTOCOLS: [u8; 3] = [Protocol::Tcp as u8, Protocol::Udp as u8, 0];

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

/// What the program reads. Its indices are into the targets that this was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `endpoint_bits` of the program's read-only data.
    pub bitmaps: Box<Bitmaps>,
    /// Keys and values of the map `endpoints`.
    pub addresses: Vec<([u8; KEY_BYTES], [u8; 4])>,
    /// Keys and values of the map `endpoint_ports`.
    pub ports: Vec<([u8; PORT_KEY_BYTES], [u8; TARGET_BYTES])>,
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
    /// The table of `targets`. Where a packet's port cannot be read, the masks of all that it may go to
    /// are or-ed.
    ///
    /// # Errors
    /// [`Failure::Usage`] for more prefixes or ports than the program holds.
    pub fn new(targets: &[Target]) -> Result<Self, Failure> {
        Self::with(targets, |masks| {
            masks.iter().fold(0, |all, mask| all | mask)
        })
    }

    /// The table of `targets`. `unread` makes one mask of those that are at the ports a packet may go to
    /// whose port cannot be read; there is one at least.
    ///
    /// # Errors
    /// Those of [`Table::new`].
    pub fn with(targets: &[Target], unread: fn(&[u64]) -> u64) -> Result<Self, Failure> {
        let mut bitmaps: Box<Bitmaps> = Box::new([[0; BITMAP_WORDS]; 4]);
        let mut prefixes = BTreeSet::new();
        for target in targets {
            let prefix = Prefix::of(&target.endpoint);
            prefixes.insert(prefix);
            // Longest-prefix match knows no families: without an entry of its own, IPv4 would be
            // found in an IPv6 prefix this short. A prefix of IPv4 always has such an entry or is
            // longer.
            if !prefix.v4 && prefix.length < ALL_V4.length && prefix.holds(ALL_V4.bits) {
                prefixes.insert(ALL_V4);
            }
            mark(&mut bitmaps, prefix);
        }
        if prefixes.len() > MAX_PREFIXES {
            return Err(Failure::usage(format!(
                "{} addresses or prefixes to guard; at most {MAX_PREFIXES} can be",
                prefixes.len()
            )));
        }
        let mut table = Self {
            bitmaps,
            addresses: Vec::new(),
            ports: Vec::new(),
        };
        // Prefixes with the same targets at the same ports share a group.
        let mut groups: BTreeMap<Vec<Segments>, u32> = BTreeMap::new();
        for prefix in prefixes {
            let covering = covering(targets, prefix);
            let segments: Vec<_> = PROTOCOLS
                .iter()
                .map(|protocol| segments(&covering, *protocol))
                .collect();
            let next = u32::try_from(groups.len()).unwrap_or(u32::MAX);
            let group = *groups.entry(segments).or_insert_with_key(|segments| {
                table.write_group(next, segments, &covering, unread);
                next
            });
            table.addresses.push((key(prefix), group.to_ne_bytes()));
        }
        if table.ports.len() > MAX_PORTS {
            return Err(Failure::usage(format!(
                "the endpoints' port ranges make {} entries; at most {MAX_PORTS} can be",
                table.ports.len()
            )));
        }
        Ok(table)
    }

    /// What is at each single port of a single address that a target names, with TCP or UDP, in the form
    /// of `exact_endpoints` of `tc_guard_policy.bpf.h`: the same that the table says of it. As many as
    /// there may be prefixes, twice, at most.
    pub fn exact(targets: &[Target]) -> BTreeMap<[u8; EXACT_KEY_BYTES], [u8; TARGET_BYTES]> {
        let mut exact = BTreeMap::new();
        for target in targets {
            let prefix = Prefix::of(&target.endpoint);
            let port = *target.endpoint.ports.start();
            if prefix.length != 128 || port != *target.endpoint.ports.end() {
                continue;
            }
            let covering = covering(targets, prefix);
            for protocol in [Protocol::Tcp as u8, Protocol::Udp as u8] {
                let here = covering.iter().copied().filter(|(_, target)| {
                    holds(target, protocol) && target.endpoint.ports.contains(&port)
                });
                if exact.len() < 2 * MAX_PREFIXES
                    && let Some(what) = What::all(here)
                {
                    exact.insert(exact_key(prefix, port, protocol), what.value());
                }
            }
        }
        exact
    }

    fn write_group(
        &mut self,
        group: u32,
        segments: &[Segments],
        covering: &[(usize, &Target)],
        unread: fn(&[u64]) -> u64,
    ) {
        // What cannot be read is taken for whatever it may be.
        let any = |segments: &[Segments], meant: &dyn Fn(&Target) -> bool| {
            let (endpoint, _) = covering.iter().find(|(_, target)| meant(target))?;
            let masks: Vec<_> = segments
                .iter()
                .flatten()
                .map(|segment| segment.what.mask)
                .collect();
            Some(What {
                endpoint: *endpoint,
                mask: unread(&masks),
            })
        };
        for (protocol, segments) in PROTOCOLS.iter().zip(segments) {
            for segment in segments {
                for (port, length) in port_prefixes(segment.first, segment.last) {
                    let key = port_key(group, *protocol, Question::Port, port, length);
                    self.ports.push((key, segment.what.value()));
                }
            }
            let segments = std::slice::from_ref(segments);
            if let Some(what) = any(segments, &|target| holds(target, *protocol)) {
                let key = port_key(group, *protocol, Question::Protocol, 0, 16);
                self.ports.push((key, what.value()));
            }
        }
        if let Some(what) = any(segments, &|_| true) {
            self.ports
                .push((port_key(group, 0, Question::Anything, 0, 16), what.value()));
        }
    }
}

/// What is at a port: the most specific endpoint, and the masks of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct What {
    endpoint: usize,
    mask: u64,
}

impl What {
    /// Of targets in order, the first of them the most specific; none for none.
    fn all<'t>(targets: impl Iterator<Item = (usize, &'t Target)>) -> Option<Self> {
        targets.fold(None, |what, (index, target)| {
            let what = what.unwrap_or(Self {
                endpoint: index,
                mask: 0,
            });
            Some(Self {
                mask: what.mask | target.mask,
                ..what
            })
        })
    }

    fn value(self) -> [u8; TARGET_BYTES] {
        let mut value = [0; TARGET_BYTES];
        value[..8].copy_from_slice(&self.mask.to_ne_bytes());
        let endpoint = u32::try_from(self.endpoint).unwrap_or(u32::MAX);
        value[8..12].copy_from_slice(&endpoint.to_ne_bytes());
        value
    }
}

/// Ports of one protocol with the same at each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Segment {
    first: u16,
    last: u16,
    what: What,
}

/// In order, without overlap.
type Segments = Vec<Segment>;

/// The targets that hold within `prefix`: its own and those of what covers it, most specific first.
fn covering(targets: &[Target], prefix: Prefix) -> Vec<(usize, &Target)> {
    let mut covering: Vec<_> = targets
        .iter()
        .enumerate()
        .filter(|(_, target)| Prefix::of(&target.endpoint).covers(prefix))
        .collect();
    covering.sort_by_key(|(index, target)| (std::cmp::Reverse(target.endpoint.mapped().1), *index));
    covering
}

/// Whether `target` means this protocol, one of [`PROTOCOLS`]. A range of ports means the protocols
/// that have ports.
fn holds(target: &Target, protocol: u8) -> bool {
    match target.endpoint.protocol {
        Some(wanted) => wanted as u8 == protocol,
        None => protocol != 0 || target.endpoint.ports == ANY_PORT,
    }
}

/// What is at each port of `protocol`.
fn segments(covering: &[(usize, &Target)], protocol: u8) -> Segments {
    let meant: Vec<_> = covering
        .iter()
        .copied()
        .filter(|(_, target)| holds(target, protocol))
        .collect();
    // Something changes only where a range begins or one has ended.
    let mut edges: BTreeSet<u32> = BTreeSet::new();
    for (_, target) in &meant {
        edges.insert(u32::from(*target.endpoint.ports.start()));
        edges.insert(u32::from(*target.endpoint.ports.end()) + 1);
    }
    let edges: Vec<_> = edges.into_iter().collect();
    edges
        .windows(2)
        .filter_map(|edge| {
            let first = u16::try_from(edge[0]).ok()?;
            let last = u16::try_from(edge[1] - 1).ok()?;
            let here = meant
                .iter()
                .copied()
                .filter(|(_, target)| target.endpoint.ports.contains(&first));
            Some(Segment {
                first,
                last,
                what: What::all(here)?,
            })
        })
        .collect()
}

/// The fewest prefixes (port and length in bits) that make up `first` to `last`.
fn port_prefixes(first: u16, last: u16) -> Vec<(u16, u8)> {
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    let mut prefixes = Vec::new();
    while at < end {
        // The largest power of two that begins here and does not go beyond.
        let aligned = if at == 0 {
            16
        } else {
            at.trailing_zeros().min(16)
        };
        let fitting = (end - at).ilog2();
        let bits = aligned.min(fitting);
        prefixes.push((
            u16::try_from(at).unwrap_or(u16::MAX),
            16 - u8::try_from(bits).unwrap_or(0),
        ));
        at += 1 << bits;
    }
    prefixes
}

fn key(prefix: Prefix) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..4].copy_from_slice(&u32::from(prefix.length).to_ne_bytes());
    key[4..].copy_from_slice(&prefix.bits.to_be_bytes());
    key
}

fn exact_key(prefix: Prefix, port: u16, protocol: u8) -> [u8; EXACT_KEY_BYTES] {
    let mut key = [0; EXACT_KEY_BYTES];
    key[..16].copy_from_slice(&prefix.bits.to_be_bytes());
    key[16..18].copy_from_slice(&port.to_be_bytes());
    key[18] = protocol;
    key
}

/// `length` bits of the port count.
fn port_key(
    group: u32,
    protocol: u8,
    question: Question,
    port: u16,
    length: u8,
) -> [u8; PORT_KEY_BYTES] {
    let mut key = [0; PORT_KEY_BYTES];
    key[..4].copy_from_slice(&(48 + u32::from(length)).to_ne_bytes());
    key[4..8].copy_from_slice(&group.to_be_bytes());
    key[8] = protocol;
    key[9] = question as u8;
    key[10..].copy_from_slice(&port.to_be_bytes());
    key
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
    use std::net::{IpAddr, Ipv6Addr};

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
}
