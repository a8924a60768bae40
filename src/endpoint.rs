// SPDX-License-Identifier: BSD-2-Clause

//! An endpoint: the address, ports and protocol that a tool guards or watches.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::failure::Failure;

/// IP protocol numbers (IANA), as far as endpoints name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// 6
    Tcp = 6,
    /// 17
    Udp = 17,
}

impl Protocol {
    /// The name in events and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The name of an IP protocol number, where it has a common one.
pub fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// All ports.
pub const ANY_PORT: RangeInclusive<u16> = 0..=u16::MAX;

/// Addresses, ports and protocol, under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What events call it: the cloud's name, or the text that the user gave.
    pub name: String,
    /// The network's first address. An IPv4-mapped IPv6 address is IPv4 on the wire, and is IPv4
    /// here.
    pub address: IpAddr,
    /// Length of the network prefix: 0 to 32, or to 128.
    pub prefix: u8,
    /// The ports, both ends included.
    pub ports: RangeInclusive<u16>,
    /// The protocol; `None` for every one, also those without ports when all ports are meant.
    pub protocol: Option<Protocol>,
}

impl Endpoint {
    /// The network as a prefix of IPv4-mapped IPv6 space: address and length of 0 to 128 bits.
    pub fn mapped(&self) -> (Ipv6Addr, u8) {
        match self.address {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped(), self.prefix + 96),
            IpAddr::V6(v6) => (v6, self.prefix),
        }
    }

    /// Whether `address` (IPv4-mapped counts as IPv4) lies in the network. A network of one family
    /// has no address of the other: `::/0` is all of IPv6.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (network, prefix) = self.mapped();
        let address = address.to_canonical();
        let mapped = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        address.is_ipv4() == self.address.is_ipv4() && mask(mapped, prefix) == network
    }
}

/// `address` with all bits after the first `prefix` (0 to 128) cleared.
pub fn mask(address: Ipv6Addr, prefix: u8) -> Ipv6Addr {
    let kept = u128::MAX
        .checked_shl(128 - u32::from(prefix.min(128)))
        .unwrap_or(0);
    Ipv6Addr::from_bits(address.to_bits() & kept)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(v4) => write!(f, "{v4}")?,
            IpAddr::V6(v6) => write!(f, "[{v6}]")?,
        }
        let full = if self.address.is_ipv4() { 32 } else { 128 };
        if self.prefix != full {
            write!(f, "/{}", self.prefix)?;
        }
        if self.ports != ANY_PORT {
            write!(f, ":{}", self.ports.start())?;
            if self.ports.start() != self.ports.end() {
                write!(f, "-{}", self.ports.end())?;
            }
        }
        match self.protocol {
            Some(protocol) => write!(f, "/{}", protocol.name()),
            None => Ok(()),
        }
    }
}

/// `ADDR[/PREFIX][:PORT[-PORT]][/tcp|udp]`. An IPv6 address with a port stands in brackets:
/// `[fd00:ec2::254]:80/tcp`, `[fd00:ec2::]/64:80`.
impl FromStr for Endpoint {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let wrong = |what: String| {
            Failure::usage(format!(
                "endpoint {text:?}: {what}; expected ADDR[/PREFIX][:PORT[-PORT]][/tcp|udp], an \
                 IPv6 ADDR with a port in brackets"
            ))
        };
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Protocol::Tcp)),
            Some((rest, "udp")) => (rest, Some(Protocol::Udp)),
            Some((_, last))
                if !last.is_empty() && last.bytes().all(|b| b.is_ascii_alphabetic()) =>
            {
                return Err(wrong(format!("{last:?} is no protocol")));
            }
            _ => (text, None),
        };
        let (address, prefix, ports) = split(rest).map_err(&wrong)?;
        let address = IpAddr::from_str(address)
            .map_err(|_| wrong(format!("{address:?} is no IPv4 or IPv6 address")))?;
        let full = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => full,
            Some(digits) => number::<u8>(digits)
                .filter(|prefix| *prefix <= full)
                .ok_or_else(|| wrong(format!("{digits:?} is no prefix length of 0 to {full}")))?,
        };
        let ports = match ports {
            None => ANY_PORT,
            Some(ports) => parse_ports(ports).map_err(&wrong)?,
        };
        let mut endpoint = Self {
            name: text.to_owned(),
            address,
            prefix,
            ports,
            protocol,
        };
        let (mapped, length) = endpoint.mapped();
        let network = mask(mapped, length);
        if network != mapped {
            let network = network.to_canonical();
            return Err(wrong(format!(
                "{address} has bits set after its prefix of {prefix}; the network is \
                 {network}/{prefix}"
            )));
        }
        if let Some(v4) = mapped.to_ipv4_mapped()
            && length >= 96
        {
            endpoint.address = IpAddr::V4(v4);
            endpoint.prefix = length - 96;
        }
        Ok(endpoint)
    }
}

type Parts<'t> = (&'t str, Option<&'t str>, Option<&'t str>);

/// Address, prefix and ports; which of them is where depends on the brackets.
fn split(text: &str) -> Result<Parts<'_>, String> {
    if let Some(inner) = text.strip_prefix('[') {
        let (address, rest) = inner.split_once(']').ok_or("the bracket is not closed")?;
        if Ipv4Addr::from_str(address).is_ok() {
            return Err("an IPv4 address takes no brackets".to_owned());
        }
        let (inside, prefix) = part(address, '/');
        let (between, ports) = part(rest, ':');
        return match (prefix, between.strip_prefix('/')) {
            (Some(_), Some(_)) => Err("two prefix lengths".to_owned()),
            (Some(prefix), None) if between.is_empty() => Ok((inside, Some(prefix), ports)),
            (None, Some(prefix)) => Ok((inside, Some(prefix), ports)),
            (None, None) if between.is_empty() => Ok((inside, None, ports)),
            _ => Err(format!("{between:?} after the bracket")),
        };
    }
    // Without brackets, more than one colon before any slash is IPv6, which then has no port.
    let (address, rest) = part(text, '/');
    if address.matches(':').count() > 1 {
        return Ok((address, rest, None));
    }
    match rest {
        Some(rest) => {
            let (prefix, ports) = part(rest, ':');
            Ok((address, Some(prefix), ports))
        }
        None => {
            let (address, ports) = part(address, ':');
            Ok((address, None, ports))
        }
    }
}

fn part(text: &str, at: char) -> (&str, Option<&str>) {
    match text.split_once(at) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

/// Decimal digits and nothing else: no sign, which `parse` would take.
fn number<T: FromStr>(digits: &str) -> Option<T> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |digits: &str| {
        number::<u16>(digits)
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("{digits:?} is no port of 1 to 65535"))
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last {
        return Err(format!("ports {text:?} run backwards"));
    }
    Ok(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap_or_else(|err| panic!("{text}: {err}"))
    }

    #[test]
    fn every_form_is_understood() {
        let bare = endpoint("169.254.169.254");
        assert_eq!(
            (bare.prefix, bare.ports.clone(), bare.protocol),
            (32, ANY_PORT, None)
        );
        let full = endpoint("10.1.0.0/16:80-90/tcp");
        assert_eq!((full.prefix, full.ports.clone()), (16, 80..=90));
        assert_eq!(full.protocol, Some(Protocol::Tcp));
        assert_eq!(endpoint("10.1.0.0/16/udp").protocol, Some(Protocol::Udp));
        assert_eq!(endpoint("10.1.2.3:53/udp").ports, 53..=53);
        assert_eq!(endpoint("fd00:ec2::254").prefix, 128);
        assert_eq!(endpoint("fd00:ec2::/64").prefix, 64);
        assert_eq!(endpoint("[fd00:ec2::254]:80/tcp").ports, 80..=80);
        assert_eq!(endpoint("[fd00:ec2::]/64:80").prefix, 64);
        assert_eq!(endpoint("[fd00:ec2::/64]:80").ports, 80..=80);
        assert_eq!(endpoint("0.0.0.0/0").prefix, 0);
        assert_eq!(endpoint("::/0").prefix, 0);
    }

    #[test]
    fn a_mapped_address_is_ipv4_on_the_wire() {
        let mapped = endpoint("[::ffff:169.254.169.254]:80");
        assert_eq!(mapped.address, "169.254.169.254".parse::<IpAddr>().unwrap());
        assert_eq!(mapped.prefix, 32);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("", "\"\" is no IPv4"),
            ("host", "\"host\" is no IPv4"),
            ("1.2.3", "\"1.2.3\" is no IPv4"),
            ("1.2.3.4/33", "\"33\" is no prefix"),
            ("1.2.3.4/", "\"\" is no prefix"),
            ("1.2.3.4/-1", "\"-1\" is no prefix"),
            ("1.2.3.4:0", "\"0\" is no port"),
            ("1.2.3.4:65536", "\"65536\" is no port"),
            ("1.2.3.4:+80", "\"+80\" is no port"),
            ("1.2.3.4:90-80", "run backwards"),
            ("1.2.3.4:80/sctp", "\"sctp\" is no protocol"),
            ("10.1.2.3/16", "the network is 10.1.0.0/16"),
            ("fd00::1/64", "the network is fd00::/64"),
            ("[fd00::1", "not closed"),
            ("[1.2.3.4]:80", "takes no brackets"),
            ("[fd00::/64]/64:80", "two prefix lengths"),
            ("fd00::1/129", "\"129\" is no prefix"),
        ] {
            let err = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(
                err.contains(named) && err.contains(&format!("{text:?}")),
                "{text:?}: {err}"
            );
        }
    }

    #[test]
    fn a_short_prefix_contains_its_network_and_nothing_else() {
        let net = endpoint("10.16.0.0/12");
        assert!(net.contains("10.31.255.255".parse().unwrap()));
        assert!(!net.contains("10.32.0.0".parse().unwrap()));
        assert!(net.contains("::ffff:10.16.0.1".parse().unwrap()));
        let net = endpoint("fd00::/8");
        assert!(net.contains("fdff::1".parse().unwrap()));
        assert!(!net.contains("fc00::1".parse().unwrap()));
        assert!(endpoint("::/0").contains("fe80::1".parse().unwrap()));
        assert!(!endpoint("::/0").contains("1.2.3.4".parse().unwrap()));
    }

    #[test]
    fn display_and_parse_agree() {
        for text in [
            "10.1.0.0/16:80-90/tcp",
            "[fd00:ec2::254]:80/tcp",
            "169.254.169.254",
            "[fd00::]/8/udp",
        ] {
            assert_eq!(endpoint(text).to_string(), text);
        }
    }
}
