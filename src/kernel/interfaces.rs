// SPDX-License-Identifier: BSD-2-Clause

//! The network interfaces of this network namespace.

use std::ffi::{CStr, CString};
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nameindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

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
    /// What its packets begin with.
    pub layout: Layout,
    /// Whether it is one end of a veth pair, by its driver's name: what arrives here was sent by a
    /// container, as a rule.
    pub veth: bool,
}

/// What the packets of an interface begin with, as a TC program at its egress sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// An Ethernet header.
    Ethernet,
    /// The network header.
    Network,
    /// A link header of a kind that is not known: the hardware type (`linux/if_arp.h`).
    Unknown(u16),
}

impl Layout {
    /// Of an interface of this hardware type and with these IFF_* flags.
    fn of(hardware: u16, flags: i32) -> Self {
        match hardware {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Self::Ethernet,
            // Without header_ops of their own, or with some that add nothing before TC: tun, WireGuard and
            // other devices with no link layer; PPP, which adds its header later; IPIP, SIT and
            // IPv6 tunnels; modems.
            libc::ARPHRD_NONE
            | libc::ARPHRD_PPP
            | libc::ARPHRD_SLIP
            | libc::ARPHRD_TUNNEL
            | libc::ARPHRD_TUNNEL6
            | libc::ARPHRD_SIT
            | ARPHRD_RAWIP => Self::Network,
            // To one end; to many, the outer header is there already (ipgre_header of net/ipv4/ip_gre.c).
            libc::ARPHRD_IPGRE | ARPHRD_IP6GRE
                if flags & libc::IFF_POINTOPOINT != 0 && flags & libc::IFF_BROADCAST == 0 =>
            {
                Self::Network
            }
            other => Self::Unknown(other),
        }
    }
}

/// `linux/if_arp.h`
const ARPHRD_RAWIP: u16 = 519;
/// `linux/if_arp.h`
const ARPHRD_IP6GRE: u16 = 823;

impl Interface {
    /// Whether the network header of its packets can be found.
    ///
    /// # Errors
    /// [`Failure::Usage`] that names it and its hardware type, if not.
    pub fn readable(&self) -> Result<()> {
        match self.layout {
            Layout::Unknown(hardware) => Err(Failure::usage(format!(
                "{}: its packets begin with a link header of a kind that is not known (hardware type \
                 {hardware}); expected Ethernet, or none",
                self.name
            ))
            .into()),
            _ => Ok(()),
        }
    }
}

/// All of them, by index.
///
/// Not by `getifaddrs(3)`, which leaves out what has no hardware address: tun, WireGuard, ppp.
///
/// # Errors
/// If the kernel does not list them.
pub fn all() -> Result<Vec<Interface>> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("cannot make a socket to ask for interfaces")?;
    let listed = if_nameindex().context("cannot list the network interfaces")?;
    let mut found = Vec::new();
    for entry in listed.to_slice() {
        let name = entry.name();
        // An interface that has just gone is not there.
        let (Some(flags), Some(kind)) = (flags(&socket, name)?, hardware_type(&socket, name)?)
        else {
            continue;
        };
        found.push(Interface {
            index: i32::try_from(entry.index()).context("an interface index")?,
            name: name.to_string_lossy().into_owned(),
            loopback: flags & libc::IFF_LOOPBACK != 0,
            layout: Layout::of(kind, flags),
            veth: driver(&socket, name)?.as_deref() == Some(c"veth"),
        });
    }
    found.sort_by_key(|interface| interface.index);
    Ok(found)
}

/// The number of a request of ioctl(2): `unsigned long` with glibc, `int` with musl. Those of sockets
/// are below 0x10000.
fn ioctl_number(number: libc::c_ulong) -> libc::Ioctl {
    #[allow(
        trivial_numeric_casts,
        clippy::unnecessary_cast,
        clippy::cast_possible_truncation
    )]
    let number = number as libc::Ioctl;
    number
}

/// IFF_* of `netdevice(7)`.
fn flags(socket: &OwnedFd, name: &CStr) -> Result<Option<i32>> {
    let Some(answer) = ask(socket, ioctl_number(libc::SIOCGIFFLAGS), name)? else {
        return Ok(None);
    };
    #[allow(unsafe_code)]
    // SAFETY: SIOCGIFFLAGS has filled this member of the union.
    let flags = unsafe { answer.ifr_ifru.ifru_flags };
    Ok(Some(flags.into()))
}

/// ARPHRD_* of `linux/if_arp.h`.
fn hardware_type(socket: &OwnedFd, name: &CStr) -> Result<Option<u16>> {
    let Some(answer) = ask(socket, ioctl_number(libc::SIOCGIFHWADDR), name)? else {
        return Ok(None);
    };
    #[allow(unsafe_code)]
    // SAFETY: SIOCGIFHWADDR has filled this member of the union.
    let address = unsafe { answer.ifr_ifru.ifru_hwaddr };
    Ok(Some(address.sa_family))
}

/// `struct ethtool_drvinfo` of `linux/ethtool.h`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// ETHTOOL_GDRVINFO of `linux/ethtool.h`.
const GET_DRIVER_INFO: u32 = 3;

/// The name of an interface's driver, if it says so: some do not.
fn driver(socket: &OwnedFd, name: &CStr) -> Result<Option<CString>> {
    let mut info = DriverInfo {
        command: GET_DRIVER_INFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    let mut asked = request(name);
    asked.ifr_ifru.ifru_data = (&raw mut info).cast();
    #[allow(unsafe_code)]
    // SAFETY: the request reads the name and the pointer and writes a `struct ethtool_drvinfo`, of the
    // size of `info`, which outlives the call.
    let answered = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            ioctl_number(libc::SIOCETHTOOL),
            &raw mut asked,
        )
    };
    match Errno::result(answered) {
        Ok(_) => Ok(CStr::from_bytes_until_nul(&info.driver)
            .ok()
            .map(CStr::to_owned)),
        Err(Errno::ENODEV | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EPERM) => Ok(None),
        Err(err) => Err(err)
            .with_context(|| format!("cannot ask for the driver of {}", name.to_string_lossy())),
    }
}

/// A question about the interface of this name.
fn request(name: &CStr) -> libc::ifreq {
    #[allow(unsafe_code)]
    // SAFETY: a C struct of integers and a union of such, for which zeros are valid.
    let mut asked: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    for (to, from) in asked
        .ifr_name
        .iter_mut()
        .take(libc::IFNAMSIZ - 1)
        .zip(name.to_bytes())
    {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    asked
}

/// What `netdevice(7)` answers about an interface; nothing if there is none of this name.
fn ask(socket: &OwnedFd, question: libc::Ioctl, name: &CStr) -> Result<Option<libc::ifreq>> {
    let mut asked = request(name);
    #[allow(unsafe_code)]
    // SAFETY: both requests read the name and write the union of the ifreq, which outlives the call.
    let answered = unsafe { libc::ioctl(socket.as_raw_fd(), question, &raw mut asked) };
    match Errno::result(answered) {
        Ok(_) => Ok(Some(asked)),
        Err(Errno::ENODEV) => Ok(None),
        Err(err) => {
            Err(err).with_context(|| format!("cannot ask for interface {}", name.to_string_lossy()))
        }
    }
}

/// The addresses of this network namespace's interfaces.
///
/// # Errors
/// If the kernel does not list them.
pub fn addresses() -> Result<Vec<IpAddr>> {
    let listed = getifaddrs().context("cannot list the addresses")?;
    Ok(listed
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect())
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
    let mut chosen: Vec<Interface> = names
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
        .collect::<Result<_>>()?;
    chosen.sort_by_key(|interface| interface.index);
    chosen.dedup();
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed_and_left_out_unless_named() {
        let lo = chosen(&["lo".to_owned()]).unwrap();
        assert!(lo[0].loopback && lo[0].layout == Layout::Ethernet && lo[0].index == 1);
        assert!(
            chosen(&[])
                .unwrap()
                .iter()
                .all(|interface| !interface.loopback)
        );
    }

    #[test]
    fn a_link_header_that_is_not_known_is_not_taken_for_the_network_s() {
        let to_one = libc::IFF_POINTOPOINT | libc::IFF_NOARP;
        for hardware in [
            libc::ARPHRD_NONE,
            libc::ARPHRD_PPP,
            libc::ARPHRD_TUNNEL,
            libc::ARPHRD_SIT,
        ] {
            assert_eq!(Layout::of(hardware, 0), Layout::Network);
        }
        assert_eq!(Layout::of(libc::ARPHRD_IPGRE, to_one), Layout::Network);
        let infiniband = Layout::of(libc::ARPHRD_INFINIBAND, 0);
        assert_eq!(infiniband, Layout::Unknown(32));
        for flags in [0, libc::IFF_BROADCAST | libc::IFF_POINTOPOINT] {
            assert_eq!(Layout::of(libc::ARPHRD_IPGRE, flags), Layout::Unknown(778));
        }
        let mut interface = chosen(&["lo".to_owned()]).unwrap().remove(0);
        assert!(interface.readable().is_ok());
        interface.layout = infiniband;
        let said = interface.readable().unwrap_err().to_string();
        assert!(said.contains("lo") && said.contains("type 32"), "{said}");
    }

    #[test]
    fn a_name_that_is_not_there_is_named_with_those_that_are() {
        let err = chosen(&["nope0".to_owned()]).unwrap_err();
        assert_eq!(crate::failure::exit_code(&err), crate::failure::USAGE);
        assert!(err.to_string().contains("\"nope0\"") && err.to_string().contains("lo"));
    }
}
