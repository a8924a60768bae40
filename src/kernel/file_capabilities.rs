// SPDX-License-Identifier: BSD-2-Clause

//! The capabilities that a file gives to whoever runs it (capabilities(7)).

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::privileges::Capabilities;

/// `struct vfs_ns_cap_data` of `linux/capability.h`, the longest there is: version and flags, two pairs of
/// permitted and inheritable, and the user namespace's root.
const LENGTH: usize = 24;

/// The permitted set of the file at `path`; empty where it has none, or cannot be read. Symbolic links
/// are not followed.
pub fn permitted(path: &Path) -> Capabilities {
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else {
        return Capabilities::default();
    };
    let mut data = [0_u8; LENGTH];
    #[allow(unsafe_code)]
    // SAFETY: both names end with a zero byte and outlive the call, which writes at most LENGTH bytes.
    let length = unsafe {
        libc::lgetxattr(
            name.as_ptr(),
            c"security.capability".as_ptr(),
            data.as_mut_ptr().cast(),
            LENGTH,
        )
    };
    match usize::try_from(length) {
        Ok(length) => parse(&data[..length.min(LENGTH)]),
        Err(_) => Capabilities::default(),
    }
}

/// Little-endian words, whatever the machine's order (`linux/capability.h`, struct vfs_cap_data). Of the
/// first layout there is only the lower half.
fn parse(data: &[u8]) -> Capabilities {
    let word = |index: usize| {
        let bytes = data.get(index * 4..index * 4 + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let low = word(1).unwrap_or_default();
    let high = word(3).unwrap_or_default();
    Capabilities(u64::from(high) << 32 | u64::from(low))
}

#[cfg(test)]
mod tests {
    use super::super::privileges::Capability;
    use super::*;

    #[test]
    fn both_halves_are_read_and_what_is_missing_is_none() {
        // As setcap cap_net_raw,cap_bpf+ep writes it.
        let mut data = Vec::new();
        for word in [0x0200_0001_u32, 1 << 13, 0, 1 << 7, 0] {
            data.extend(word.to_le_bytes());
        }
        let found = parse(&data);
        assert!(found.has(Capability::NetRaw) && found.has(Capability::Bpf));
        assert!(!found.has(Capability::NetAdmin));
        assert_eq!(parse(&data[..12]).0, 1 << 13);
        assert_eq!(parse(&[]).0, 0);
        assert_eq!(permitted(Path::new("/proc/version")).0, 0);
    }
}
