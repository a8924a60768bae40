// SPDX-License-Identifier: BSD-2-Clause

//! The network interfaces of this network namespace.

use anyhow::{Context as _, Result};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::failure::Failure;

/// An interface, as far as attaching to it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's index, unique within the network namespace.
    pub index: i32,
    /// The name, at most 15 bytes.
    pub name: String,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Whether its packets begin with an Ethernet header (ARPHRD_ETHER or ARPHRD_LOOPBACK of
    /// `linux/if_arp.h`).
    pub ethernet: bool,
}

/// All of them, by index.
///
/// # Errors
/// If the kernel does not list them.
pub fn all() -> Result<Vec<Interface>> {
    let mut found: Vec<Interface> = getifaddrs()
        .context("cannot list the network interfaces")?
        .filter_map(|entry| {
            let storage = entry.address?;
            let link = storage.as_link_addr()?;
            Some(Interface {
                index: i32::try_from(link.ifindex()).ok()?,
                name: entry.interface_name,
                loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
                ethernet: matches!(link.hatype(), libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK),
            })
        })
        .collect();
    found.sort_by_key(|interface| interface.index);
    found.dedup_by_key(|interface| interface.index);
    Ok(found)
}

/// The interfaces of these names, or all but loopback where no name is given.
///
/// # Errors
/// A name that no interface has.
pub fn chosen(names: &[String]) -> Result<Vec<Interface>> {
    let all = all()?;
    if names.is_empty() {
        return Ok(all
            .into_iter()
            .filter(|interface| !interface.loopback)
            .collect());
    }
    names
        .iter()
        .map(|name| {
            all.iter()
                .find(|interface| interface.name == *name)
                .cloned()
                .ok_or_else(|| {
                    let there: Vec<_> = all
                        .iter()
                        .map(|interface| interface.name.as_str())
                        .collect();
                    Failure::usage(format!(
                        "no network interface {name:?} here; there are {}",
                        there.join(", ")
                    ))
                    .into()
                })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed_and_left_out_unless_named() {
        let lo = chosen(&["lo".to_owned()]).unwrap();
        assert!(lo[0].loopback && lo[0].ethernet && lo[0].index == 1);
        assert!(
            chosen(&[])
                .unwrap()
                .iter()
                .all(|interface| !interface.loopback)
        );
    }

    #[test]
    fn a_name_that_is_not_there_is_named_with_those_that_are() {
        let err = chosen(&["nope0".to_owned()]).unwrap_err();
        assert_eq!(crate::failure::exit_code(&err), crate::failure::USAGE);
        assert!(err.to_string().contains("\"nope0\"") && err.to_string().contains("lo"));
    }
}
