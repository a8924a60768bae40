// SPDX-License-Identifier: BSD-2-Clause

//! From the kernel's records to events with exact counts. Pure: no kernel, no clock.
//!
//! The kernel counts every packet of a key and sends an event for the first and then for one a
//! second at most; an event carries the total so far. What was counted after the last event is
//! found by a sweep over the kernel's table. So the counts of all events add up to the packets,
//! whatever the ring buffer had no room for.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, bail};

use crate::kernel::identity::Record;
use crate::kernel::lineage;
use crate::process;
use crate::skel::tc_guard::types::{
    guard_event, guard_key, guard_layer, guard_reason, guard_report, guard_verdict,
};

/// `GUARD_NO_ENDPOINT` of tc_guard.h.
const NO_ENDPOINT: u32 = u32::MAX;

/// Packets with the same key are reported together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// What became of them.
    pub verdict: Verdict,
    /// What that was decided by.
    pub reason: Reason,
    /// Of the socket's creator or the caller, where it counts.
    pub uid: Option<u32>,
    /// Id of a [`Reason::ForeignSocket`]'s cgroup, else 0.
    pub cgroup: u64,
    /// Index of the endpoint in the plan; one that no plan has where it is none in particular.
    pub endpoint: usize,
    /// Which plan: 0 for the first, one more for each that replaced another.
    pub generation: u16,
}

/// What became of a packet to a guarded endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It went out.
    Allowed,
    /// It did not.
    Denied,
    /// It went out, as the guard only audits.
    WouldDeny,
}

impl Verdict {
    /// The name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::WouldDeny => "would-deny",
        }
    }
}

/// What a verdict was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The uid.
    User,
    /// A group of the caller.
    Group,
    /// The cgroup, or one above it.
    Cgroup,
    /// There is no socket.
    NoSocket,
    /// The socket has no owner: TIME_WAIT, or a connection request.
    PartialSocket,
    /// The socket is of another network namespace.
    ForeignSocket,
    /// Allowed, but too often.
    OverLimit,
    /// Whoever came when the table of reports was full.
    Others,
    /// Behind more VLAN tags than are looked behind.
    Unreadable,
}

impl Reason {
    fn decode(raw: u8) -> Option<Self> {
        Some(match guard_reason(u32::from(raw)) {
            guard_reason::GUARD_USER => Self::User,
            guard_reason::GUARD_GROUP => Self::Group,
            guard_reason::GUARD_CGROUP => Self::Cgroup,
            guard_reason::GUARD_NO_SOCKET => Self::NoSocket,
            guard_reason::GUARD_PARTIAL_SOCKET => Self::PartialSocket,
            guard_reason::GUARD_FOREIGN_SOCKET => Self::ForeignSocket,
            guard_reason::GUARD_OVER_LIMIT => Self::OverLimit,
            guard_reason::GUARD_OTHERS => Self::Others,
            guard_reason::GUARD_UNREADABLE => Self::Unreadable,
            _ => return None,
        })
    }

    /// Whether the uid had a say.
    fn has_user(self) -> bool {
        matches!(
            self,
            Self::User | Self::Group | Self::Cgroup | Self::OverLimit
        )
    }
}

/// Where something was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// A packet that was about to leave.
    Egress,
    /// A packet that came in from a container.
    Ingress,
    /// connect() or sendmsg(): there was no packet.
    Call,
}

/// What a hook has recorded of the executable of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Executable {
    /// Nothing: it could not look, or nobody has called.
    #[default]
    Unseen,
    /// Nothing can be said: its path is too long to be recorded, it is nowhere in a mount, or there was no room
    /// at the socket. What `/proc` says later is the caller's choice.
    Unknown,
    /// Its path in the process's mount namespace.
    Path(String),
}

/// One packet of a key, and how many there had been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// When, on the kernel's boot clock.
    pub time_ns: u64,
    /// Packets of this key so far, this one included.
    pub total: u64,
    /// Key of the packet.
    pub key: Key,
    /// The id of the sender's cgroup, or 0.
    pub cgroup: u64,
    /// Who connected the socket, where a hook has seen it.
    pub who: Option<Record>,
    /// What they ran then; nothing if no hook has looked.
    pub executable: Executable,
    /// Where it was seen.
    pub layer: Layer,
    /// Index of the interface, or 0.
    pub ifindex: u32,
    /// Where from; port 0 if not known, and no address for a call.
    pub src: SocketAddr,
    /// Where to; port 0 if not known.
    pub dst: SocketAddr,
    /// IANA protocol number.
    pub protocol: u8,
}

/// What [`Tally`] found worth telling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// Key of the packets.
    pub key: Key,
    /// How many of them have not been told of before.
    pub count: u64,
    /// One of them, unless the kernel has only counted them.
    pub sample: Option<Sample>,
}

impl Key {
    fn decode(raw: &guard_key) -> Result<Self> {
        let verdict = match guard_verdict(u32::from(raw.verdict)) {
            guard_verdict::GUARD_ALLOWED => Verdict::Allowed,
            guard_verdict::GUARD_DENIED => Verdict::Denied,
            guard_verdict::GUARD_WOULD_DENY => Verdict::WouldDeny,
            _ => bail!("verdict {} of the kernel's is not known", raw.verdict),
        };
        let Some(reason) = Reason::decode(raw.reason) else {
            bail!("reason {} of the kernel's is not known", raw.reason);
        };
        Ok(Self {
            verdict,
            reason,
            uid: (reason.has_user() && raw.cgroup == 0).then_some(raw.uid),
            cgroup: raw.cgroup,
            endpoint: usize::try_from(raw.endpoint)?,
            generation: raw.generation,
        })
    }

    /// The entry under which the kernel counts whoever finds its table full, whatever the endpoint and the
    /// policy.
    pub fn others(verdict: Verdict) -> Vec<u8> {
        let verdict = match verdict {
            Verdict::Allowed => guard_verdict::GUARD_ALLOWED,
            Verdict::Denied => guard_verdict::GUARD_DENIED,
            Verdict::WouldDeny => guard_verdict::GUARD_WOULD_DENY,
        };
        // struct guard_key of tc_guard.h.
        let mut key = vec![0; size_of::<guard_key>()];
        key[12..16].copy_from_slice(&NO_ENDPOINT.to_ne_bytes());
        key[18] = u8::try_from(verdict.0).unwrap_or(u8::MAX);
        key[19] = u8::try_from(guard_reason::GUARD_OTHERS.0).unwrap_or(u8::MAX);
        key
    }

    /// The key in an entry of the kernel's table.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut raw = guard_key::default();
        copy(&mut raw, bytes)?;
        Self::decode(&raw)
    }
}

impl Sample {
    /// The sample in a record of the ring buffer.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut raw = guard_event::default();
        copy(&mut raw, bytes)?;
        let layer = match guard_layer(u32::from(raw.layer)) {
            guard_layer::GUARD_TC_EGRESS => Layer::Egress,
            guard_layer::GUARD_TC_INGRESS => Layer::Ingress,
            guard_layer::GUARD_CONNECT => Layer::Call,
            _ => bail!("layer {} of the kernel's is not known", raw.layer),
        };
        Ok(Self {
            time_ns: raw.time_ns,
            total: raw.total,
            key: Key::decode(&raw.key)?,
            cgroup: raw.cgroup,
            who: record(&raw),
            executable: executable(&raw),
            layer,
            ifindex: raw.ifindex,
            src: socket_addr(raw.src, raw.sport),
            dst: socket_addr(raw.dst, raw.dport),
            protocol: raw.protocol,
        })
    }
}

/// Who connected the socket; nobody has process id 0.
fn record(raw: &guard_event) -> Option<Record> {
    let who = &raw.who;
    (who.pid != 0).then(|| Record {
        cgroup: who.cgroup,
        boot_ns: who.time,
        pid: who.pid,
        tid: who.tid,
        uid: who.uid,
        gid: who.gid,
        comm: process::comm(&who.comm),
    })
}

fn executable(raw: &guard_event) -> Executable {
    match raw.executable.length as usize {
        0 => Executable::Unseen,
        length => lineage::path(&raw.executable.names, length)
            .map_or(Executable::Unknown, Executable::Path),
    }
}

/// The total in an entry of the kernel's table.
///
/// # Errors
/// If the bytes are none.
pub fn total_from_bytes(bytes: &[u8]) -> Result<u64> {
    let mut raw = guard_report::default();
    copy(&mut raw, bytes)?;
    Ok(raw.total)
}

/// When an entry of the kernel's table was last told of, in nanoseconds of the kernel's boot clock; 0 for
/// never.
///
/// # Errors
/// If the bytes are none.
pub fn last_from_bytes(bytes: &[u8]) -> Result<u64> {
    let mut raw = guard_report::default();
    copy(&mut raw, bytes)?;
    Ok(raw.last_ns)
}

fn copy<T: plain::Plain>(to: &mut T, bytes: &[u8]) -> Result<()> {
    if bytes.len() < size_of::<T>() {
        bail!(
            "a record of {} bytes where {} were due",
            bytes.len(),
            size_of::<T>()
        );
    }
    plain::copy_from_bytes(to, bytes)
        .map_err(|err| anyhow::anyhow!("{err:?}"))
        .context("record")
}

// SAFETY: a C struct of integers and arrays of them, with explicit padding; any bytes are valid.
#[allow(unsafe_code)]
unsafe impl plain::Plain for guard_event {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl plain::Plain for guard_key {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl plain::Plain for guard_report {}

/// An address as the programs write it: IPv4 in its IPv4-mapped form.
fn socket_addr(address: [u8; 16], port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(address)).to_canonical(), port)
}

/// How many packets of each key have been told of.
#[derive(Debug, Default)]
pub struct Tally {
    told: HashMap<Key, u64>,
    delivered: u64,
}

impl Tally {
    /// Takes a record of the ring buffer.
    pub fn sample(&mut self, sample: Sample) -> Option<Reported> {
        let reported = self.total(sample.key, sample.total)?;
        Some(Reported {
            sample: Some(sample),
            ..reported
        })
    }

    /// Takes an entry of the kernel's table: `total` packets of `key` so far.
    pub fn total(&mut self, key: Key, total: u64) -> Option<Reported> {
        let told = self.told.entry(key).or_default();
        // A record may be read after a sweep that had counted further.
        let count = total.checked_sub(*told).filter(|count| *count > 0)?;
        *told = total;
        self.delivered += count;
        Some(Reported {
            key,
            count,
            sample: None,
        })
    }

    /// Whether all of these `total` packets of `key` have been told of.
    pub fn knows(&self, key: Key, total: u64) -> bool {
        self.told.get(&key) == Some(&total)
    }

    /// Forgets a key that the kernel counts anew, from nothing.
    pub fn forget(&mut self, key: Key) {
        self.told.remove(&key);
    }

    /// Takes `total` packets of `key` as told of by somebody else.
    pub fn skip(&mut self, key: Key, total: u64) {
        self.told.insert(key, total);
    }

    /// All packets that have been told of.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::skel::tc_guard::types::{executable, identity};

    fn bytes<T: plain::Plain>(value: &T) -> Vec<u8> {
        #[allow(unsafe_code)]
        // SAFETY: the types under test are plain, without implicit padding.
        unsafe { plain::as_bytes(value) }.to_vec()
    }

    fn raw(total: u64) -> guard_event {
        let mut dst = [0; 16];
        dst[10..].copy_from_slice(&[0xff, 0xff, 169, 254, 169, 254]);
        guard_event {
            time_ns: 7,
            total,
            cgroup: 9,
            key: guard_key {
                cgroup: 0,
                uid: 1000,
                endpoint: 3,
                generation: 5,
                verdict: 1,
                reason: 0,
                pad: [0; 4],
            },
            who: identity {
                pid: 77,
                gid: 8,
                ..identity::default()
            },
            src: [0; 16],
            dst,
            ifindex: 2,
            sport: 40000,
            dport: 80,
            protocol: 6,
            transport: 0,
            layer: 0,
            pad: [0; 5],
            executable: executable::default(),
        }
    }

    #[test]
    fn records_have_the_size_that_the_kernel_writes() {
        assert_eq!(size_of::<guard_event>(), 472);
        assert_eq!(size_of::<guard_key>(), 24);
        assert_eq!(size_of::<guard_report>(), 16);
    }

    #[test]
    fn a_record_is_decoded() {
        let sample = Sample::from_bytes(&bytes(&raw(5))).unwrap();
        assert_eq!(
            (sample.key.reason, sample.key.uid),
            (Reason::User, Some(1000))
        );
        assert_eq!(sample.key.generation, 5);
        assert_eq!(sample.layer, Layer::Egress);
        assert_eq!(sample.who.map(|who| (who.pid, who.gid)), Some((77, 8)));
        assert_eq!(sample.key.verdict, Verdict::Denied);
        assert_eq!(
            (sample.key.endpoint, sample.total, sample.cgroup),
            (3, 5, 9)
        );
        assert_eq!(sample.dst, "169.254.169.254:80".parse().unwrap());
        assert_eq!(sample.src, "[::]:40000".parse().unwrap());
    }

    #[test]
    fn an_executable_is_what_the_hook_saw() {
        let executable = |bytes: &[u8], length| {
            let mut raw = raw(1);
            raw.executable.length = length;
            raw.executable.names[..bytes.len()].copy_from_slice(bytes);
            Sample::from_bytes(&super::tests::bytes(&raw))
                .unwrap()
                .executable
        };
        assert_eq!(executable(b"", 0), Executable::Unseen);
        assert_eq!(
            executable(b"curl\0bin\0usr\0", 13),
            Executable::Path("/usr/bin/curl".to_owned())
        );
        assert_eq!(executable(b"curl\0", 256), Executable::Unknown);
        assert_eq!(executable(b"curl\0", u32::MAX), Executable::Unknown);
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        assert!(Sample::from_bytes(&bytes(&raw(5))[..463]).is_err());
        assert!(Sample::from_bytes(&[]).is_err());
        let mut foreign = raw(5);
        foreign.key.cgroup = 9;
        let key = Sample::from_bytes(&bytes(&foreign)).unwrap().key;
        assert_eq!((key.uid, key.cgroup), (None, 9));
        let mut unknown = raw(5);
        unknown.key.verdict = 77;
        assert!(Sample::from_bytes(&bytes(&unknown)).is_err());
        unknown.key.verdict = 1;
        unknown.key.reason = 77;
        assert!(Sample::from_bytes(&bytes(&unknown)).is_err());
        unknown.key.reason = 0;
        unknown.layer = 77;
        assert!(Sample::from_bytes(&bytes(&unknown)).is_err());
        assert!(Key::from_bytes(&[0; 23]).is_err());
        assert!(total_from_bytes(&[0; 8]).is_err());
    }

    #[test]
    fn counts_add_up_to_the_total_whoever_tells_first() {
        let mut tally = Tally::default();
        let first = Sample::from_bytes(&bytes(&raw(1))).unwrap();
        assert_eq!(tally.sample(first.clone()).map(|told| told.count), Some(1));
        // A sweep overtakes a record that is still in the ring buffer.
        let swept = tally.total(first.key, 10).unwrap();
        assert_eq!((swept.count, swept.sample), (9, None));
        assert_eq!(
            tally.sample(Sample {
                total: 8,
                ..first.clone()
            }),
            None
        );
        assert_eq!(
            tally
                .sample(Sample {
                    total: 12,
                    ..first.clone()
                })
                .map(|told| told.count),
            Some(2)
        );
        assert_eq!(tally.total(first.key, 12), None);
        assert_eq!(tally.delivered(), 12);
    }

    #[test]
    fn the_entry_for_all_others_is_read_as_it_is_written() {
        for verdict in [Verdict::Allowed, Verdict::Denied, Verdict::WouldDeny] {
            let key = Key::from_bytes(&Key::others(verdict)).unwrap();
            assert_eq!(
                key,
                Key {
                    verdict,
                    reason: Reason::Others,
                    uid: None,
                    cgroup: 0,
                    endpoint: NO_ENDPOINT as usize,
                    generation: 0,
                }
            );
        }
    }

    #[test]
    fn packets_whose_record_was_lost_are_counted_without_a_sample() {
        let mut tally = Tally::default();
        let key = Sample::from_bytes(&bytes(&raw(1))).unwrap().key;
        let told = tally.total(key, 4).unwrap();
        assert_eq!((told.count, told.sample), (4, None));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Sample::from_bytes(&bytes);
            let _ = Key::from_bytes(&bytes);
        }
    }
}
