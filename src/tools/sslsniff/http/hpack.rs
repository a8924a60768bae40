// SPDX-License-Identifier: BSD-2-Clause

//! Blocks of compressed headers (RFC 7541), also where their start was not seen.

use loona_hpack::Decoder;

/// The largest table that is followed. Only a peer that has allowed more (in its SETTINGS) can be
/// sent references to entries beyond it, and those are unknown.
const LARGEST_TABLE: usize = 64 << 10;
/// The same where it was in use before it was seen: as none that is usual is larger, and each that is
/// not known takes memory.
const LARGEST_IN_USE: usize = 16 << 10;
/// Bytes of fields that are decoded of a block: a few bytes may refer to a long entry many times.
const LONGEST_FIELDS: usize = 128 << 10;
/// The name of an entry that is not known. No header can have it (RFC 9113, section 8.2.1).
const UNKNOWN_NAME: &[u8] = b"\0";
/// What an entry of the table takes besides name and value (RFC 7541, section 4.1).
const ENTRY: usize = 32;

/// Name and value; no name where it is not known.
pub(super) type Pair = (Option<Vec<u8>>, Vec<u8>);

/// What a table starts with (RFC 9113, section 6.5.2).
const FIRST_TABLE: usize = 4096;
/// Memory that a table takes at most, for each byte of its size: entries of 32 bytes, as they are counted,
/// are two vectors in a queue that doubles, and each allocation has its overhead.
const OVERHEAD: usize = 4;

/// One direction's table. It is made when there is a block, as most that is
/// taken for a connection by its first bytes has none.
pub(super) struct Blocks {
    decoder: Option<Box<Decoder<'static>>>,
    /// It is empty at first.
    start: bool,
    /// How large the table may grow.
    size: usize,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").finish_non_exhaustive()
    }
}

impl Blocks {
    /// A table as it is at the start of a connection: empty.
    pub(super) fn from_start() -> Self {
        Self {
            decoder: None,
            start: true,
            size: FIRST_TABLE,
        }
    }

    /// A table that has been in use: full of entries that are not known. They are the shortest that
    /// can be, so there are at least as many as the real one has, however large those are. As new
    /// entries come in front, each index is either that of a new one or of one that is not known,
    /// and never of a wrong one: also if the real table is smaller than this one, as what has left
    /// it is not referred to any more.
    pub(super) fn in_use() -> Self {
        Self {
            decoder: None,
            start: false,
            size: LARGEST_IN_USE,
        }
    }

    fn decoder(&self) -> Box<Decoder<'static>> {
        let mut decoder = Box::new(Decoder::new());
        decoder.set_max_allowed_table_size(LARGEST_TABLE);
        if !self.start {
            decoder.set_max_table_size(LARGEST_IN_USE);
            // "Literal with incremental indexing", a new name, no value.
            let entry = [0x40, 1, UNKNOWN_NAME[0], 0];
            let block = entry.repeat(LARGEST_IN_USE / (ENTRY + UNKNOWN_NAME.len()));
            let filled = decoder.decode_with_cb(&block, |_, _| {});
            debug_assert!(filled.is_ok(), "the block is well-formed");
        }
        decoder
    }

    /// Bytes of memory that it may take by now.
    pub(super) fn held(&self) -> usize {
        self.decoder.as_ref().map_or(0, |_| self.size * OVERHEAD)
    }

    /// The fields of a whole block, as many as [`LONGEST_FIELDS`] allows. `None` if the
    /// block is malformed: then the table is not known any more.
    pub(super) fn decode(&mut self, block: &[u8]) -> Option<Vec<Pair>> {
        let mut fields = Vec::new();
        let mut left = LONGEST_FIELDS;
        let mut decoder = self.decoder.take().unwrap_or_else(|| self.decoder());
        self.size = self.size.max(announced(block).min(LARGEST_TABLE));
        // A block whose table grows later than at its start is malformed.
        decoder.set_max_allowed_table_size(self.size);
        let decoded = decoder.decode_with_cb(block, |name, value| {
            let size = ENTRY + name.len() + value.len();
            left = left.saturating_sub(size);
            if left == 0 {
                return;
            }
            let name = (*name != *UNKNOWN_NAME).then(|| name.into_owned());
            fields.push((name, value.into_owned()));
        });
        if decoded.is_err() {
            *self = Self::in_use();
            return None;
        }
        self.decoder = Some(decoder);
        Some(fields)
    }
}

/// The largest of the sizes that a block starts with (RFC 7541, section 6.3); 0 if there are none.
fn announced(block: &[u8]) -> usize {
    let (mut largest, mut at) = (0, 0);
    while let Some(first) = block.get(at).filter(|first| *first & 0xe0 == 0x20) {
        at += 1;
        let mut size = usize::from(first & 0x1f);
        if size == 0x1f {
            let mut shift = 0;
            while let Some(next) = block.get(at) {
                at += 1;
                if shift > 21 {
                    return usize::MAX;
                }
                size += usize::from(next & 0x7f) << shift;
                shift += 7;
                if next & 0x80 == 0 {
                    break;
                }
            }
        }
        largest = largest.max(size);
    }
    largest
}

#[cfg(test)]
mod tests {
    use loona_hpack::Encoder;
    use proptest::prelude::*;

    use super::*;

    fn names(fields: &[Pair]) -> Vec<&str> {
        fields
            .iter()
            .map(|(name, _)| {
                name.as_deref()
                    .map_or("?", |name| std::str::from_utf8(name).unwrap())
            })
            .collect()
    }

    #[test]
    fn entries_from_before_are_unknown_and_later_ones_are_right() {
        let mut encoder = Encoder::new();
        let mut first = Vec::new();
        for number in 0..20 {
            let name = format!("x-early-{number}");
            let header = (name.as_bytes(), b"value".as_slice());
            encoder.encode_header_into(header, &mut first).unwrap();
        }
        let mut blocks = Blocks::in_use();
        for round in 0..200 {
            let new = format!("x-new-{round}");
            let block = encoder.encode([
                (b":method".as_slice(), b"GET".as_slice()),
                (new.as_bytes(), b"1".as_slice()),
                (new.as_bytes(), b"1".as_slice()),
                (b"x-early-19".as_slice(), b"value".as_slice()),
            ]);
            let fields = blocks.decode(&block).unwrap();
            let shown = names(&fields);
            assert_eq!(shown[..3], [":method", &new, &new], "{round}");
            // The encoder drops it once its table is full, and then sends it again in full.
            assert!(
                ["?", "x-early-19"].contains(&shown[3]),
                "{round}: {shown:?}"
            );
            assert!(round > 0 || shown[3] == "?");
        }
    }

    #[test]
    fn a_block_that_refers_to_a_long_entry_many_times_takes_little() {
        let mut encoder = Encoder::new();
        let mut blocks = Blocks::from_start();
        let value = [b'v'; 4000];
        let long = encoder.encode([(b"x".as_slice(), value.as_slice())]);
        assert_eq!(blocks.decode(&long).unwrap().len(), 1);
        let fields = blocks.decode(&[0x80 | 62; 16_384]).unwrap();
        let size: usize = fields.iter().map(|(_, value)| value.len()).sum();
        assert!((100_000..LONGEST_FIELDS).contains(&size), "{size}");
    }

    #[test]
    fn after_a_malformed_block_nothing_wrong_is_said() {
        let mut encoder = Encoder::new();
        let mut blocks = Blocks::from_start();
        let known = encoder.encode([(b"x-known".as_slice(), b"1".as_slice())]);
        assert_eq!(names(&blocks.decode(&known).unwrap()), ["x-known"]);
        assert!(
            blocks
                .decode(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
                .is_none()
        );
        let again = encoder.encode([(b"x-known".as_slice(), b"1".as_slice())]);
        assert_eq!(names(&blocks.decode(&again).unwrap()), ["?"]);
    }

    #[test]
    fn a_table_takes_no_memory_before_a_block_and_grows_only_as_it_is_told() {
        for mut blocks in [Blocks::in_use(), Blocks::from_start()] {
            assert_eq!(blocks.held(), 0);
            blocks.decode(&[0x82]).unwrap();
            assert!(blocks.held() <= LARGEST_IN_USE * OVERHEAD);
            // "The table has 65,536 bytes", and `:method: GET`.
            let larger = [0x3f, 0xe1, 0xff, 0x03, 0x82];
            assert_eq!(announced(&larger), LARGEST_TABLE);
            blocks.decode(&larger).unwrap();
            assert_eq!(blocks.held(), LARGEST_TABLE * OVERHEAD);
        }
        let mut blocks = Blocks::from_start();
        let later = [0x82, 0x3f, 0xe1, 0xff, 0x03, 0x82];
        assert!(blocks.decode(&later).is_none());
    }

    proptest! {
        #[test]
        fn any_block_is_decoded_or_refused(
            blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..8),
        ) {
            let mut table = Blocks::from_start();
            for block in blocks {
                let _ = table.decode(&block);
            }
        }
    }
}
