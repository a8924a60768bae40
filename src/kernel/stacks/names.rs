// SPDX-License-Identifier: BSD-2-Clause

//! Names of functions as their authors wrote them. A symbol is anybody's text, and a few bytes can stand
//! for a name of gigabytes: what is longer than the limit is cut while it is made.

use std::fmt::{self, Write};

use cpp_demangle::{DemangleOptions, Symbol};

/// Bytes of a name that are kept.
pub const LONGEST_NAME: usize = 256;
/// A longer symbol is not taken apart.
const LONGEST_SYMBOL: usize = 4096;

/// Text that refuses more once it is full.
#[derive(Default)]
struct Bounded {
    text: String,
    cut: bool,
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LONGEST_NAME - self.text.len();
        let mut end = room.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.text.push_str(&text[..end]);
        if end < text.len() {
            self.cut = true;
            return Err(fmt::Error);
        }
        Ok(())
    }
}

/// The name in C++ or Rust that `symbol` stands for, or itself; cut to [`LONGEST_NAME`] bytes, and then
/// with `…`.
pub fn readable(symbol: &str) -> String {
    let mut name = Bounded::default();
    let known = symbol.len() <= LONGEST_SYMBOL && demangle(symbol, &mut name);
    if !known {
        name = Bounded::default();
        // An error says that it was cut, which is kept.
        let _ = name.write_str(symbol);
    }
    if name.cut {
        name.text.push('…');
    }
    name.text
}

fn demangle(symbol: &str, name: &mut Bounded) -> bool {
    if let Ok(rust) = rustc_demangle::try_demangle(symbol) {
        // Without the hash at the end.
        return write!(name, "{rust:#}").is_ok() || name.cut;
    }
    if !symbol.starts_with("_Z") {
        return false;
    }
    let Ok(cpp) = Symbol::new(symbol) else {
        return false;
    };
    // Who is called is of interest, not with which types.
    let options = DemangleOptions::new().no_params().no_return_type();
    cpp.structured_demangle(name, &options).is_ok() || name.cut
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_as_their_authors_wrote_them() {
        for (symbol, name) in [
            ("SSL_write", "SSL_write"),
            (
                "_ZN4node6crypto7TLSWrap7ClearInEv",
                "node::crypto::TLSWrap::ClearIn",
            ),
            ("_ZN4core3fmt5write17h0123456789abcdefE", "core::fmt::write"),
            ("_RNvC6_123foo3bar", "123foo::bar"),
            ("_Znonsense", "_Znonsense"),
            ("", ""),
        ] {
            assert_eq!(readable(symbol), name);
        }
    }

    #[test]
    fn a_name_that_grows_is_cut_while_it_is_made() {
        // Each argument is a pair of the last two: it doubles some 60 times.
        let mut symbol = String::from("_Z1fI1AS_IS0_S0_E");
        for at in 0..60u32 {
            let digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
            let id: String = match at {
                0..36 => digits[at as usize..=at as usize].to_owned(),
                _ => format!("1{}", &digits[at as usize - 36..=at as usize - 36]),
            };
            symbol.push_str(&format!("S_IS{id}_S{id}_E"));
        }
        symbol.push_str("Evv");
        assert!(readable(&symbol).len() <= LONGEST_NAME + '…'.len_utf8());
        let long = "ä".repeat(1000);
        let name = readable(&long);
        assert!(name.starts_with("äää") && name.ends_with("ä…"), "{name}");
        assert_eq!(name.len(), LONGEST_NAME + 3);
    }

    proptest! {
        #[test]
        fn any_symbol_has_a_name(symbol in "(_Z|_ZN|_R|_RNv)?[A-Z0-9a-z_$.]{0,60}") {
            prop_assert!(readable(&symbol).len() <= LONGEST_NAME + 3);
        }
    }
}
