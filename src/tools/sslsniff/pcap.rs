// SPDX-License-Identifier: BSD-2-Clause

//! Plaintext as packets in a pcapng file, so that Wireshark and its like read it with no keys.
//!
//! Each connection becomes a TCP connection of made-up packets: a handshake when its first bytes
//! pass, a segment or more for each call, and an end when it is freed. Sequence numbers count the
//! bytes of the plaintext (of HTTP/2 with masked headers, the bytes that are written in its place), so bytes that are missing are a gap in them, as a lost segment is. The
//! packets have no link layer (LINKTYPE_RAW).

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use etherparse::PacketBuilder;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, PcapError};
use time::OffsetDateTime;

use super::event::Data;
use super::http::Rewriter;
use super::mask::http2::{FRAME_HEADER, PREFACE, is_first_settings};
use super::record::Direction;
use crate::output::Printable;
use crate::process::Identity;

/// Bytes of plaintext in a packet at most: an IPv4 packet has room for 65,495.
const LONGEST_SEGMENT: usize = 32 << 10;
/// Connections that are followed at once; as many as are numbered at once.
const MOST_STREAMS: usize = 65536;
/// Bytes of memory that may be taken at once to mask HTTP/2.
const MOST_HELD: usize = 64 << 20;
/// Addresses for connections whose ends are not known: documentation's own (RFC 5737).
const UNKNOWN_CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const UNKNOWN_SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The port of a server that is not known: readers look for HTTP there, and for HTTP/2.
const UNKNOWN_PORT: u16 = 80;
/// Ports on which readers expect TLS, and those of the same protocols without it (IANA's registry).
const PLAIN_PORTS: [(u16, u16); 13] = [
    (443, 80),
    (465, 25),
    (563, 119),
    (636, 389),
    (853, 53),
    (989, 20),
    (990, 21),
    (992, 23),
    (993, 143),
    (995, 110),
    (5061, 5060),
    (5671, 5672),
    (8883, 1883),
];
/// Of `epb_flags` in pcapng: where a packet went.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

#[derive(Debug)]
struct Stream {
    local: SocketAddr,
    peer: SocketAddr,
    /// By direction: the next byte's offset.
    next: [u64; 2],
    /// By direction: bytes that were written, with those that are missing.
    sent: [u64; 2],
    /// What masks headers of HTTP/2, if it is that and they are to be masked.
    rewriter: Option<Box<Rewriter>>,
    /// Bytes of memory that it takes.
    held: usize,
    used: u64,
}

/// A file under way.
pub struct Pcap<W: Write> {
    writer: PcapNgWriter<W>,
    streams: HashMap<u64, Stream>,
    packet: Vec<u8>,
    calls: u64,
    /// The sum of what the streams hold.
    held: usize,
    show_secrets: bool,
}

impl<W: Write> std::fmt::Debug for Pcap<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pcap").finish_non_exhaustive()
    }
}

/// A segment of TCP, seen from the program.
#[derive(Debug, Clone, Copy, Default)]
struct Flags {
    syn: bool,
    fin: bool,
    ack: bool,
}

impl<W: Write> Pcap<W> {
    /// Starts a file, in which secrets are masked or shown.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn new(writer: W, show_secrets: bool) -> io::Result<Self> {
        let section = SectionHeaderBlock {
            options: vec![
                SectionHeaderOption::UserApplication(Cow::Borrowed(concat!(
                    "ebpfkit ",
                    env!("CARGO_PKG_VERSION")
                ))),
                SectionHeaderOption::Comment(Cow::Borrowed(
                    "Plaintext of TLS connections. IP and TCP are made up around it: addresses are \
                     the connections' own where the comment of the first packet says so.",
                )),
            ],
            ..SectionHeaderBlock::default()
        };
        let mut writer = PcapNgWriter::with_section_header(writer, section).map_err(error)?;
        let interface = InterfaceDescriptionBlock {
            linktype: DataLink::RAW,
            // No limit.
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed("sslsniff")),
                // Nanoseconds.
                InterfaceDescriptionOption::IfTsResol(9),
            ],
        };
        writer.write_pcapng_block(interface).map_err(error)?;
        Ok(Self {
            writer,
            streams: HashMap::new(),
            packet: Vec::new(),
            calls: 0,
            held: 0,
            show_secrets,
        })
    }

    /// What a call read or wrote.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn data(&mut self, time: OffsetDateTime, data: &Data<'_>) -> io::Result<()> {
        self.calls += 1;
        let direction = if data.direction == Direction::Read.name() {
            Direction::Read
        } else {
            Direction::Write
        };
        if !self.streams.contains_key(&data.connection) {
            self.open(time, data, direction)?;
        }
        let Some(stream) = self.streams.get_mut(&data.connection) else {
            return Ok(());
        };
        stream.used = self.calls;
        let side = direction.index();
        let next = stream.next[side];
        // Bytes that were seen come again when a call only looks at them.
        let again = usize::try_from(next.saturating_sub(data.offset)).unwrap_or(usize::MAX);
        let (Some(bytes), Some(raw)) = (data.bytes.get(again..), data.raw.get(again..)) else {
            return Ok(());
        };
        stream.next[side] = next.max(data.offset.saturating_add(data.length));
        let missing = data.offset.saturating_sub(next);
        let cut = data.length.saturating_sub(data.raw.len() as u64);
        stream.sent[side] = stream.sent[side].wrapping_add(missing);
        let mut rewritten = Vec::new();
        let bytes = match &mut stream.rewriter {
            None => bytes,
            Some(rewriter) => {
                if missing > 0 {
                    rewriter.skip(direction, missing);
                }
                rewriter.bytes(
                    direction,
                    raw,
                    data.starts && again == 0 || missing > 0,
                    &mut rewritten,
                );
                if cut > 0 {
                    rewriter.skip(direction, cut);
                }
                let held = rewriter.held();
                self.held = self.held - stream.held + held;
                stream.held = held;
                &rewritten
            }
        };
        let (start, ends) = (stream.sent[side], (stream.local, stream.peer));
        // Lengths are what the program says, and only their low bits are written.
        stream.sent[side] = start.wrapping_add(bytes.len() as u64).wrapping_add(cut);
        let ack = number(stream.sent[direction.other().index()]);
        let comment = format!("{} {}", name(data.who), data.function);
        let flags = Flags {
            ack: true,
            ..Flags::default()
        };
        let mut offset = start;
        for segment in bytes.chunks(LONGEST_SEGMENT) {
            let seq = number(offset);
            self.segment(time, direction, ends, (seq, ack), flags, segment, &comment)?;
            offset = offset.wrapping_add(segment.len() as u64);
        }
        while self.held > MOST_HELD {
            self.make_room();
        }
        Ok(())
    }

    /// The connection was freed, up to which so many bytes that were read and written are missing.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn close(
        &mut self,
        time: OffsetDateTime,
        connection: u64,
        missing: [u64; 2],
    ) -> io::Result<()> {
        let Some(mut stream) = self.streams.remove(&connection) else {
            return Ok(());
        };
        self.held -= stream.held;
        let ends = (stream.local, stream.peer);
        for (sent, missing) in stream.sent.iter_mut().zip(missing) {
            *sent = sent.wrapping_add(missing);
        }
        let [read, written] = stream.sent.map(number);
        let fin = Flags {
            fin: true,
            ack: true,
            syn: false,
        };
        let ack = Flags {
            ack: true,
            ..Flags::default()
        };
        self.segment(time, Direction::Write, ends, (written, read), fin, &[], "")?;
        let after = (read, written.wrapping_add(1));
        self.segment(time, Direction::Read, ends, after, fin, &[], "")?;
        let last = (written.wrapping_add(1), read.wrapping_add(1));
        self.segment(time, Direction::Write, ends, last, ack, &[], "")
    }

    /// Sends on what is buffered.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
    }

    /// A handshake, from the side that is taken for the client: the one that speaks first.
    fn open(&mut self, time: OffsetDateTime, data: &Data<'_>, first: Direction) -> io::Result<()> {
        if self.streams.len() >= MOST_STREAMS {
            self.make_room();
        }
        let settings = data.raw.get(..FRAME_HEADER).is_some_and(is_first_settings);
        let answer = settings || data.bytes.starts_with(b"HTTP/1.");
        let client = if answer { first.other() } else { first };
        let http2 = settings || data.raw.starts_with(PREFACE);
        let (local, peer) = Ends::of(data).addresses(data.connection, client, http2);
        let rewriter = (!self.show_secrets)
            .then(|| Rewriter::of(first, data.raw))
            .flatten();
        let stream = Stream {
            local,
            peer,
            next: [0, 0],
            sent: [0, 0],
            rewriter,
            held: 0,
            used: self.calls,
        };
        self.streams.insert(data.connection, stream);
        let comment = describe(data);
        let both = (local, peer);
        let syn = Flags {
            syn: true,
            ..Flags::default()
        };
        let ack = Flags {
            ack: true,
            ..Flags::default()
        };
        let start = number(0).wrapping_sub(1);
        self.segment(time, client, both, (start, 0), syn, &[], &comment)?;
        let answer = Flags {
            syn: true,
            ack: true,
            fin: false,
        };
        self.segment(
            time,
            client.other(),
            both,
            (start, number(0)),
            answer,
            &[],
            "",
        )?;
        self.segment(time, client, both, (number(0), number(0)), ack, &[], "")
    }

    /// Forgets the half that was not used for longest: what comes of them later starts anew, as
    /// connections that are older do.
    fn make_room(&mut self) {
        let mut used: Vec<_> = self.streams.values().map(|one| one.used).collect();
        if used.is_empty() {
            return;
        }
        let half = (used.len() - 1) / 2;
        let (_, middle, _) = used.select_nth_unstable(half);
        let middle = *middle;
        self.streams.retain(|_, one| one.used > middle);
        self.held = self.streams.values().map(|one| one.held).sum();
    }

    #[allow(clippy::too_many_arguments)]
    fn segment(
        &mut self,
        time: OffsetDateTime,
        direction: Direction,
        (local, peer): (SocketAddr, SocketAddr),
        (seq, ack): (u32, u32),
        flags: Flags,
        payload: &[u8],
        comment: &str,
    ) -> io::Result<()> {
        let (from, to) = match direction {
            Direction::Write => (local, peer),
            Direction::Read => (peer, local),
        };
        let builder = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            }
            (from, to) => PacketBuilder::ipv6(octets(from), octets(to), 64),
        };
        let mut builder = builder.tcp(from.port(), to.port(), seq, u16::MAX);
        if flags.syn {
            builder = builder.syn();
        }
        if flags.fin {
            builder = builder.fin();
        }
        if flags.ack {
            builder = builder.ack(ack);
        }
        if !payload.is_empty() {
            builder = builder.psh();
        }
        self.packet.clear();
        builder
            .write(&mut self.packet, payload)
            .map_err(io::Error::other)?;
        let mut options = vec![EnhancedPacketOption::Flags(match direction {
            Direction::Read => INBOUND,
            Direction::Write => OUTBOUND,
        })];
        if !comment.is_empty() {
            options.push(EnhancedPacketOption::Comment(Cow::Borrowed(comment)));
        }
        let nanoseconds = u64::try_from(time.unix_timestamp_nanos()).unwrap_or(0);
        let block = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_nanos(nanoseconds),
            original_len: u32::try_from(self.packet.len()).unwrap_or(u32::MAX),
            data: Cow::Borrowed(&self.packet),
            options,
        };
        self.writer
            .write_pcapng_block(block)
            .map_err(error)
            .map(drop)
    }
}

/// The sequence number of the byte at `offset`: the SYN has number 0.
fn number(offset: u64) -> u32 {
    // Sequence numbers wrap around.
    #[allow(clippy::cast_possible_truncation)]
    let low = offset as u32;
    low.wrapping_add(1)
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn error(err: PcapError) -> io::Error {
    match err {
        PcapError::IoError(err) => err,
        err => io::Error::other(err),
    }
}

/// The ends of a connection, as far as they are known.
#[derive(Debug, Clone, Copy)]
struct Ends {
    /// The program's own.
    local: Option<SocketAddr>,
    /// The other.
    peer: Option<SocketAddr>,
}

impl Ends {
    fn of(data: &Data<'_>) -> Self {
        let address = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok());
        Self {
            local: address(&data.ends.local),
            peer: address(&data.ends.peer),
        }
    }

    /// Local and peer address as they are written: the server's port is that of the protocol
    /// without TLS, as readers would look for TLS otherwise, and for HTTP/2 it is that of HTTP, as
    /// they look for it nowhere else.
    fn addresses(
        self,
        connection: u64,
        client: Direction,
        http2: bool,
    ) -> (SocketAddr, SocketAddr) {
        let unmapped =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let (client_end, server_end) = match client {
            Direction::Write => (self.local, self.peer),
            Direction::Read => (self.peer, self.local),
        };
        // Some 60,000 ports, so that connections are told apart.
        let port = 1024 + u16::try_from(connection % 64_000).unwrap_or(0);
        let client_end = client_end.map_or(SocketAddr::new(UNKNOWN_CLIENT.into(), port), unmapped);
        let mut server_end = server_end.map_or(
            SocketAddr::new(UNKNOWN_SERVER.into(), UNKNOWN_PORT),
            unmapped,
        );
        if let Some((_, plain)) = PLAIN_PORTS
            .iter()
            .find(|(port, _)| *port == server_end.port())
        {
            server_end.set_port(*plain);
        }
        if http2 {
            server_end.set_port(UNKNOWN_PORT);
        }
        match client {
            Direction::Write => (client_end, server_end),
            Direction::Read => (server_end, client_end),
        }
    }
}

/// `curl[12]`
fn name(who: &Identity) -> String {
    let comm = who.comm.as_deref().unwrap_or("?");
    format!("{}[{}]", Printable(comm), who.pid.unwrap_or_default())
}

/// All that is known of a connection at its start.
fn describe(data: &Data<'_>) -> String {
    let (who, ends) = (data.who, data.ends);
    let mut text = format!("connection {} of {}", data.connection, name(who));
    let mut add = |name: &str, value: Option<&dyn std::fmt::Display>| {
        if let Some(value) = value {
            text.push_str(&format!(", {name} {}", Printable(&value.to_string())));
        }
    };
    add("uid", who.uid.as_ref().map(|uid| uid as _));
    add("user", who.user.as_ref().map(|user| user as _));
    add("executable", who.exe.as_ref().map(|exe| exe as _));
    add("unit", who.unit.as_ref().map(|unit| unit as _));
    add(
        "container",
        who.container.as_ref().map(|container| container as _),
    );
    add("library", data.library.as_ref().map(|library| library as _));
    add(
        "local address",
        ends.local.as_ref().map(|address| address as _),
    );
    add("peer", ends.peer.as_ref().map(|address| address as _));
    if ends.peer.is_none() {
        text.push_str(", peer not known");
    }
    text
}

#[cfg(test)]
mod tests;
