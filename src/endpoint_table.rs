// SPDX-License-Identifier: BSD-2-Clause

//! Endpoints in the form that `src/bpf/lib/endpoints.bpf.h` reads: two bits that say no for nearly
//! every address, then a table from addresses to groups and one from a group's ports to what is
//! there. Pure: plain values in, plain bytes out.

mod layout;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use self::layout::{ALL_V4, Prefix, Question, exact_key, key, mark, port_key, port_prefixes};
pub use self::layout::{
    BITMAP_WORDS, Bitmaps, EXACT_KEY_BYTES, KEY_BYTES, PORT_KEY_BYTES, TARGET_BYTES,
};
use crate::endpoint::{ANY_PORT, Endpoint, Protocol};
use crate::failure::Failure;

/// MAX_ENDPOINT_PREFIXES of `endpoints.bpf.h`.
pub const MAX_PREFIXES: usize = 4096;
/// MAX_ENDPOINT_PORTS of `endpoints.bpf.h`.
pub const MAX_PORTS: usize = 65536;

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

/// The addresses and prefixes that endpoints take up in a table: [`MAX_PREFIXES`] at most.
#[derive(Debug, Default)]
pub struct Prefixes(BTreeSet<Prefix>);

impl Prefixes {
    /// Has those of one more endpoint.
    pub fn add(&mut self, endpoint: &Endpoint) {
        let prefix = Prefix::of(endpoint);
        self.0.insert(prefix);
        // Longest-prefix match knows no families: without an entry of its own, IPv4 would be
        // found in an IPv6 prefix this short. A prefix of IPv4 always has such an entry or is
        // longer.
        if !prefix.v4 && prefix.length < ALL_V4.length && prefix.holds(ALL_V4.bits) {
            self.0.insert(ALL_V4);
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
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
        let mut prefixes = Prefixes::default();
        for target in targets {
            prefixes.add(&target.endpoint);
            mark(&mut bitmaps, Prefix::of(&target.endpoint));
        }
        if prefixes.count() > MAX_PREFIXES {
            return Err(Failure::usage(format!(
                "{} addresses or prefixes to guard; at most {MAX_PREFIXES} can be",
                prefixes.count()
            )));
        }
        let mut table = Self {
            bitmaps,
            addresses: Vec::new(),
            ports: Vec::new(),
        };
        // Prefixes with the same targets at the same ports share a group.
        let mut groups: BTreeMap<Vec<Segments>, u32> = BTreeMap::new();
        for prefix in prefixes.0 {
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
