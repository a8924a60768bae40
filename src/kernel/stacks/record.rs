// SPDX-License-Identifier: BSD-2-Clause

//! `struct user_stack` of `src/bpf/lib/stacks.bpf.h`, as bytes.

/// `MAX_FRAMES`
pub const MOST_FRAMES: usize = 64;
/// Bytes of `struct user_stack`.
pub const STACK_BYTES: usize = 8 + 8 * MOST_FRAMES;

/// The instruction pointers in a record, the innermost first; `None` if it has not [`STACK_BYTES`]
/// bytes.
pub fn parse(bytes: &[u8]) -> Option<Vec<u64>> {
    if bytes.len() != STACK_BYTES {
        return None;
    }
    let (count, frames) = (bytes.first_chunk()?, bytes.get(8..)?);
    let count = u32::from_ne_bytes(*count) as usize;
    let frames = frames.chunks_exact(8).take(count);
    Some(
        frames
            .filter_map(|frame| Some(u64::from_ne_bytes(*frame.first_chunk()?)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_frames_are_read_as_were_recorded() {
        let mut bytes = vec![0; STACK_BYTES];
        assert_eq!(parse(&bytes), Some(vec![]));
        bytes[8..16].copy_from_slice(&7u64.to_ne_bytes());
        bytes[0] = 1;
        assert_eq!(parse(&bytes), Some(vec![7]));
        bytes[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(parse(&bytes).unwrap().len(), MOST_FRAMES);
        assert_eq!(parse(&bytes[1..]), None);
    }

    #[test]
    fn the_constant_is_that_of_the_header_file() {
        let text = include_str!("../../bpf/lib/stacks.bpf.h");
        assert!(text.contains(&format!("#define MAX_FRAMES {MOST_FRAMES}\n")));
    }
}
