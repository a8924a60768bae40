// SPDX-License-Identifier: BSD-2-Clause

//! Between whom a packet is, and what its sender is told apart by.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::event::Caller;

/// Between whom a packet is.
#[derive(Debug, Clone, Copy)]
pub enum Ends {
    /// Nobody knows.
    Unknown,
    /// Without ports that could be read.
    Hosts(IpAddr, IpAddr),
    /// With them.
    Sockets(SocketAddr, SocketAddr),
}

impl Ends {
    /// The sender; the unspecified address if nobody knows.
    pub fn src(self) -> IpAddr {
        match self {
            Self::Unknown => Ipv4Addr::UNSPECIFIED.into(),
            Self::Hosts(src, _) => src,
            Self::Sockets(src, _) => src.ip(),
        }
    }

    /// The receiver; the unspecified address if nobody knows.
    pub fn dst(self) -> IpAddr {
        match self {
            Self::Unknown => Ipv4Addr::UNSPECIFIED.into(),
            Self::Hosts(_, dst) => dst,
            Self::Sockets(_, dst) => dst.ip(),
        }
    }

    /// Where it goes, with its port.
    pub fn place(self) -> Option<SocketAddr> {
        match self {
            Self::Unknown | Self::Hosts(..) => None,
            Self::Sockets(_, dst) => Some(dst),
        }
    }

    /// Both, as lines have them; empty if nobody knows.
    pub fn texts(self) -> (String, String) {
        match self {
            Self::Unknown => (String::new(), String::new()),
            Self::Hosts(src, dst) => (src.to_string(), dst.to_string()),
            Self::Sockets(src, dst) => (src.to_string(), dst.to_string()),
        }
    }
}

/// What callers are told apart by, of which a scan is: neither a port nor a process, as a script may
/// start one for each request.
pub fn who(caller: &Caller, src: IpAddr) -> String {
    match caller.identity.pid {
        Some(_) => caller.group(),
        None => src.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_without_a_process_are_told_apart_by_address() {
        let ends = |src: &str| Ends::Hosts(src.parse().unwrap(), "fd00:ec2::254".parse().unwrap());
        let of = |ends: Ends| who(&Caller::default(), ends.src());
        assert_eq!(of(ends("fd00:213::2")), "fd00:213::2");
        assert_ne!(of(ends("fd00:213::2")), of(ends("fd00:213::99")));
        let sockets =
            |src: &str| Ends::Sockets(src.parse().unwrap(), "[fd00:ec2::254]:80".parse().unwrap());
        // Another port makes nobody another one; nor is a packet without any another one's.
        assert_eq!(
            of(sockets("[fd00:213::2]:5")),
            of(sockets("[fd00:213::2]:6"))
        );
        assert_eq!(of(sockets("[fd00:213::2]:5")), of(ends("fd00:213::2")));
    }
}
