// SPDX-License-Identifier: BSD-2-Clause

//! The bytes of the table: prefixes, ports and what is asked about them as `endpoints.bpf.h` has them.

use crate::endpoint::Endpoint;

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
pub(super) enum Question {
    Port = 0,
    Protocol = 1,
    Anything = 2,
}

/// A prefix of IPv4-mapped space, by family: `::/0` is not all of IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix {
    pub(super) v4: bool,
    pub(super) bits: u128,
    pub(super) length: u8,
}

/// What all IPv4 addresses begin with.
pub(super) const ALL_V4: Prefix = Prefix {
    v4: true,
    bits: 0xffff << 32,
    length: 96,
};

impl Prefix {
    pub(super) fn of(endpoint: &Endpoint) -> Self {
        let (address, length) = endpoint.mapped();
        Self {
            v4: endpoint.address.is_ipv4(),
            bits: address.to_bits(),
            length,
        }
    }

    /// Whether every address of `other` is one of this prefix.
    pub(super) fn covers(self, other: Self) -> bool {
        self.v4 == other.v4 && self.length <= other.length && self.holds(other.bits)
    }

    pub(super) fn holds(self, bits: u128) -> bool {
        let shift = 128 - u32::from(self.length);
        bits.checked_shr(shift) == self.bits.checked_shr(shift)
    }
}

/// The fewest prefixes (port and length in bits) that make up `first` to `last`.
pub(super) fn port_prefixes(first: u16, last: u16) -> Vec<(u16, u8)> {
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

pub(super) fn key(prefix: Prefix) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..4].copy_from_slice(&u32::from(prefix.length).to_ne_bytes());
    key[4..].copy_from_slice(&prefix.bits.to_be_bytes());
    key
}

pub(super) fn exact_key(prefix: Prefix, port: u16, protocol: u8) -> [u8; EXACT_KEY_BYTES] {
    let mut key = [0; EXACT_KEY_BYTES];
    key[..16].copy_from_slice(&prefix.bits.to_be_bytes());
    key[16..18].copy_from_slice(&port.to_be_bytes());
    key[18] = protocol;
    key
}

/// `length` bits of the port count.
pub(super) fn port_key(
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
pub(super) fn mark(bitmaps: &mut Bitmaps, prefix: Prefix) {
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
pub(super) fn half(bits: u128) -> u16 {
    u16::try_from(bits & 0xffff).unwrap_or(u16::MAX)
}

pub(super) fn set(bitmap: &mut [u64; BITMAP_WORDS], first: u16, last: u16) {
    for bit in first..=last {
        bitmap[usize::from(bit >> 6)] |= 1 << (bit & 63);
    }
}
