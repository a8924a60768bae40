// SPDX-License-Identifier: BSD-2-Clause

//! Text in the kernel: an array map whose pin keeps what a program wants to say when it has ended.

use anyhow::{Context as _, Result, bail};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType, libbpf_sys};

/// Bytes of a value: a page, which any kernel can give at any time.
const PIECE: usize = 4096;
/// More text than that is none of ours.
const LONGEST: usize = 16 << 20;

/// A new map that holds `text`: its length in 8 bytes, then the text, in pieces of 4096 bytes. Nobody
/// can change it any more.
///
/// # Errors
/// What the kernel says.
pub fn store(name: &str, text: &str) -> Result<MapHandle> {
    if text.len() > LONGEST {
        bail!("{} bytes are too long a text", text.len());
    }
    let mut bytes = u64::try_from(text.len())?.to_ne_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(PIECE), 0);
    let pieces = u32::try_from(bytes.len() / PIECE)?;
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let size = u32::try_from(PIECE)?;
    let map = MapHandle::create(MapType::Array, Some(name), 4, size, pieces, &opts)
        .context("cannot make a map for text")?;
    for (index, piece) in (0..pieces).zip(bytes.chunks(PIECE)) {
        map.update(&index.to_ne_bytes(), piece, MapFlags::ANY)
            .context("cannot write a map of text")?;
    }
    map.freeze().context("cannot freeze a map of text")?;
    Ok(map)
}

/// The text in a map that [`store`] made.
///
/// # Errors
/// If it is none.
pub fn load(map: &MapHandle) -> Result<String> {
    let mut bytes = Vec::new();
    for index in 0..map.max_entries() {
        let piece = map.lookup(&index.to_ne_bytes(), MapFlags::ANY)?;
        bytes.extend(piece.context("a map of text has an end too soon")?);
    }
    let length = bytes.first_chunk::<8>().copied().map(u64::from_ne_bytes);
    let length = usize::try_from(length.context("a map of text has no length")?)?;
    let text = bytes.get(8..).and_then(|text| text.get(..length));
    let text = text.context("a map of text has a wrong length")?;
    Ok(String::from_utf8(text.to_vec())?)
}
