// SPDX-License-Identifier: BSD-2-Clause

//! Three words that say no for nearly every packet, at the cost of no memory but themselves: see
//! `src/bpf/imds_watch_concern.bpf.h`.

use crate::endpoint_table::Bitmaps;

/// `ENDPOINT_HASH`
const HASH: u32 = 0x922b_20c3;

/// Which bitmap each is made of: the first 16 bits of IPv4 addresses, the first and the last of IPv6 ones
/// (`enum endpoint_hint`).
const MADE_OF: [usize; 3] = [0, 2, 3];

/// A bit for each hash of what is in the bitmaps.
pub fn hints(bitmaps: &Bitmaps) -> [u64; MADE_OF.len()] {
    MADE_OF.map(|bitmap| {
        let mut hint = 0;
        for half in 0..=u16::MAX {
            if bitmaps[bitmap][usize::from(half >> 6)] >> (half & 63) & 1 == 1 {
                hint |= 1 << hash(half);
            }
        }
        hint
    })
}

/// 16 bits in host byte order to 6; the program takes them as they lie in a packet.
fn hash(half: u16) -> u32 {
    u32::from(u16::from_ne_bytes(half.to_be_bytes())).wrapping_mul(HASH) >> 26
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint_table::{BITMAP_WORDS, Table};
    use crate::tools::imds_watch::plan::Plan;

    #[test]
    fn the_constant_is_that_of_the_program() {
        let text = include_str!("../../bpf/imds_watch_concern.bpf.h");
        assert!(text.contains(&format!("#define ENDPOINT_HASH {HASH:#x}U\n")));
        for name in ["HINT_V4_FIRST", "HINT_V6_FIRST", "HINT_V6_LAST"] {
            assert!(text.contains(&format!("\t{name},\n")), "{name}");
        }
    }

    #[test]
    fn whatever_is_in_a_bitmap_is_hinted_at_and_nothing_else() {
        for (index, bitmap) in MADE_OF.into_iter().enumerate() {
            for half in (0..=u16::MAX).step_by(97) {
                let mut bitmaps = [[0; BITMAP_WORDS]; 4];
                bitmaps[bitmap][usize::from(half >> 6)] = 1 << (half & 63);
                let mut expected = [0; 3];
                expected[index] = 1 << hash(half);
                assert_eq!(hints(&bitmaps), expected);
            }
        }
    }

    #[test]
    fn common_networks_and_hosts_are_none_of_the_services() {
        let plan = Plan::new(&["all".to_owned()], &[]).unwrap();
        let Table { bitmaps, .. } = &plan.table;
        let [v4, v6_first, v6_last] = hints(bitmaps);
        let is_set = |hint: u64, half: u16| hint >> hash(half) & 1 == 1;
        assert!(is_set(v4, 0xa9fe) && is_set(v6_first, 0xfd00) && is_set(v6_last, 0x254));
        let private = [0x7f00, 0xc0a8, 0x6440];
        let private = private
            .into_iter()
            .chain(0xac10..0xac20)
            .chain(0x0a00..0x0a20);
        for half in private {
            assert!(!is_set(v4, half), "{half:x}");
        }
        for half in [0x2001, 0x2600, 0x2606, 0x2607, 0x2400]
            .into_iter()
            .chain(0x2a00..0x2a10)
        {
            assert!(!is_set(v6_first, half), "{half:x}");
        }
        for half in 2..0x20 {
            assert!(!is_set(v6_last, half), "{half:x}");
        }
    }
}
