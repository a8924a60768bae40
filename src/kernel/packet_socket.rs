// SPDX-License-Identifier: BSD-2-Clause

//! An `AF_PACKET` socket behind an eBPF filter (`packet(7)`).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use super::bpf;
use super::privileges::Capability;

/// What loading a socket filter with loops over map values and opening its socket needs. Without
/// PERFMON the verifier guards against speculation, and refuses such loops.
pub const NEEDED: &[Capability] = &[Capability::Bpf, Capability::Perfmon, Capability::NetRaw];

/// The socket, of the kind that begins packets at their network header (`SOCK_DGRAM`): whatever
/// the link, and with a VLAN tag or without.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    interface: i32,
    dropped: u64,
}

/// A packet that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the packet; more than the buffer has if it was cut.
    pub length: usize,
    /// The interface's index in the socket's network namespace.
    pub interface: i32,
}

impl PacketSocket {
    /// Shows every packet of the interface with this index, or of all with 0, to `filter`, and
    /// queues those that it accepts, in `buffer` bytes at most. No packet is queued before the
    /// filter is in place.
    ///
    /// # Errors
    /// [`crate::failure::Failure::Blocked`] without `CAP_NET_RAW`; whatever else the kernel says.
    pub fn new(filter: BorrowedFd<'_>, interface: i32, buffer: usize) -> Result<Self> {
        #[allow(unsafe_code)]
        // SAFETY: no pointers; a descriptor that comes back is ours alone.
        let fd = unsafe {
            let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let fd = libc::socket(libc::AF_PACKET, kind, 0);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
        };
        let fd = fd.ok_or_else(|| explain(io::Error::last_os_error(), "open a packet socket"))?;
        let socket = Self {
            fd,
            interface,
            dropped: 0,
        };
        socket
            .set(libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &filter.as_raw_fd())
            .map_err(|err| explain(err, "attach the socket filter"))?;
        let size = i32::try_from(buffer).unwrap_or(i32::MAX);
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN.
        if socket
            .set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &size)
            .is_err()
        {
            socket
                .set(libc::SOL_SOCKET, libc::SO_RCVBUF, &size)
                .context("cannot size the packet socket's buffer")?;
        }
        socket.bind(interface)?;
        Ok(socket)
    }

    fn bind(&self, interface: i32) -> Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: interface,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        #[allow(unsafe_code)]
        // SAFETY: the address and its size belong together and outlive the call.
        let ret = unsafe {
            libc::bind(
                self.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if ret < 0 {
            return Err(explain(
                io::Error::last_os_error(),
                "bind the packet socket",
            ));
        }
        Ok(())
    }

    fn set<T>(&self, level: i32, option: i32, value: &T) -> io::Result<()> {
        #[allow(unsafe_code)]
        // SAFETY: the value and its size belong together and outlive the call; every option that
        // is set here reads no more than that.
        let ret = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if ret < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Takes a packet off the queue and copies as much of it to `buffer` as there is room; `None`
    /// if the queue is empty. An interface that went down is no error: packets come again when it
    /// is up.
    ///
    /// # Errors
    /// Those of `recvfrom(2)`.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Option<Received>> {
        let mut from = MaybeUninit::<libc::sockaddr_ll>::zeroed();
        let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        #[allow(unsafe_code)]
        // SAFETY: buffer and address are as long as is said. An all-zero address is a valid one.
        let (ret, from) = unsafe {
            let ret = libc::recvfrom(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_TRUNC,
                from.as_mut_ptr().cast(),
                &raw mut size,
            );
            (ret, from.assume_init())
        };
        if let Ok(length) = usize::try_from(ret) {
            return Ok(Some(Received {
                length,
                interface: from.sll_ifindex,
            }));
        }
        let err = io::Error::last_os_error();
        match err.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN) => Ok(None),
            _ => Err(err).context("cannot read the packet socket"),
        }
    }

    /// Whether the interface that this socket was made for is no longer there, or no longer in this
    /// network namespace: no packet will come again.
    pub fn is_gone(&self) -> bool {
        let mut address = MaybeUninit::<libc::sockaddr_ll>::zeroed();
        let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        #[allow(unsafe_code)]
        // SAFETY: the address is as long as is said. An all-zero address is a valid one.
        let (ret, address) = unsafe {
            let ret = libc::getsockname(
                self.fd.as_raw_fd(),
                address.as_mut_ptr().cast(),
                &raw mut size,
            );
            (ret, address.assume_init())
        };
        ret == 0 && address.sll_ifindex < 0
    }

    /// The index of the interface that this socket was made for; 0 for all.
    pub fn interface(&self) -> i32 {
        self.interface
    }

    /// Lets no more packets into the queue; what is in it stays.
    ///
    /// # Errors
    /// If the kernel does not take the filter that refuses everything.
    pub fn close_filter(&self) -> Result<()> {
        // BPF_RET | BPF_K with 0 bytes, in classic BPF (linux/filter.h).
        let mut refuse = [libc::sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: 0,
        }];
        let program = libc::sock_fprog {
            len: 1,
            filter: refuse.as_mut_ptr(),
        };
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
            .context("cannot close the socket filter")
    }

    /// Packets that the filter accepted and the queue had no room for, since the socket was made.
    ///
    /// # Errors
    /// Those of `getsockopt(2)`.
    pub fn dropped(&mut self) -> Result<u64> {
        let mut statistics = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut size = size_of_val(&statistics) as libc::socklen_t;
        #[allow(unsafe_code)]
        // SAFETY: the kernel writes no more than the size that is said.
        let ret = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut size,
            )
        };
        if ret < 0 {
            return Err(io::Error::last_os_error()).context("cannot read the socket's statistics");
        }
        // Reading sets the kernel's count to zero.
        self.dropped += u64::from(statistics.tp_drops);
        Ok(self.dropped)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn explain(err: io::Error, what: &str) -> anyhow::Error {
    let err = libbpf_rs::Error::from(err);
    bpf::explain(err, what, NEEDED)
}
