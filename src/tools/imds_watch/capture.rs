// SPDX-License-Identifier: BSD-2-Clause

//! `--pcap`: the packets of requests that were told about, as pcapng, each with what was found and by
//! whom as its comment. They are whole: with the values of headers that no line shows.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use time::OffsetDateTime;

use crate::failure::Failure;

/// A packet that may be written: from its network header on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// When it was read.
    pub time: OffsetDateTime,
    /// The interface's index.
    pub interface: i32,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Whether it was written already: for an earlier one of the requests in it.
    pub written: Cell<bool>,
}

/// Bytes of a comment. The format holds 65,535, and no line that is meant to be read is as long.
const LONGEST_COMMENT: usize = 8 << 10;

/// A file under way.
pub struct Capture<W: Write = BufWriter<File>> {
    writer: PcapNgWriter<W>,
    path: PathBuf,
    interfaces: HashMap<i32, u32>,
}

impl<W: Write> std::fmt::Debug for Capture<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Capture {
    /// Makes a new file that only its owner can read: packets hold tokens.
    ///
    /// # Errors
    /// [`Failure::Usage`] if it is there already, or cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|err| Failure::usage(format!("cannot make {}: {err}", path.display())))?;
        Self::new(BufWriter::new(file), path)
    }
}

impl<W: Write> Capture<W> {
    fn new(writer: W, path: &Path) -> Result<Self> {
        let at = || format!("cannot write {}", path.display());
        Ok(Self {
            writer: PcapNgWriter::new(writer).with_context(at)?,
            path: path.to_owned(),
            interfaces: HashMap::new(),
        })
    }

    /// Writes those packets of one request that are not there yet; `name` tells an interface's name.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write(
        &mut self,
        packets: &[Rc<Packet>],
        comment: &str,
        mut name: impl FnMut(i32) -> Option<String>,
    ) -> Result<()> {
        let mut end = comment.len().min(LONGEST_COMMENT);
        while !comment.is_char_boundary(end) {
            end -= 1;
        }
        let comment = &comment[..end];
        for packet in packets.iter().filter(|one| !one.written.replace(true)) {
            self.packet(packet, comment, &mut name)
                .with_context(|| format!("cannot write {}", self.path.display()))?;
        }
        Ok(())
    }

    fn packet(
        &mut self,
        packet: &Packet,
        comment: &str,
        name: &mut impl FnMut(i32) -> Option<String>,
    ) -> Result<()> {
        let id = match self.interfaces.get(&packet.interface) {
            Some(id) => *id,
            None => {
                let id = u32::try_from(self.interfaces.len())?;
                // 9: nanoseconds, which the writer gives.
                let mut options = vec![InterfaceDescriptionOption::IfTsResol(9)];
                if let Some(name) = name(packet.interface) {
                    options.push(InterfaceDescriptionOption::IfName(Cow::Owned(name)));
                }
                let block = InterfaceDescriptionBlock {
                    linktype: DataLink::RAW,
                    snaplen: 0,
                    options,
                };
                self.writer.write_pcapng_block(block)?;
                self.interfaces.insert(packet.interface, id);
                id
            }
        };
        let nanos = u64::try_from(packet.time.unix_timestamp_nanos()).unwrap_or(0);
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id: id,
            timestamp: Duration::from_nanos(nanos),
            original_len: u32::try_from(packet.bytes.len())?,
            data: Cow::Borrowed(&packet.bytes),
            options: vec![EnhancedPacketOption::Comment(Cow::Borrowed(comment))],
        })?;
        Ok(())
    }

    /// Hands to the system what is still held.
    ///
    /// # Errors
    /// Those of the file.
    pub fn flush(&mut self) -> Result<()> {
        self.writer
            .get_mut()
            .flush()
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// A capture, if one is wanted, that ends where its file takes no more: what is found is told about all
/// the same.
#[derive(Debug)]
pub struct Kept<W: Write = BufWriter<File>> {
    state: State<W>,
}

#[derive(Debug)]
enum State<W: Write> {
    Unwanted,
    Writing {
        capture: Capture<W>,
        /// Packets that the file may not have yet.
        held: u64,
    },
    Ended {
        /// Packets that are not in the file.
        missing: u64,
    },
}

impl<W: Write> Kept<W> {
    /// None is wanted where there is no `capture`.
    pub fn new(capture: Option<Capture<W>>) -> Self {
        let state = match capture {
            Some(capture) => State::Writing { capture, held: 0 },
            None => State::Unwanted,
        };
        Self { state }
    }

    /// Whether one was wanted at all.
    pub fn is_wanted(&self) -> bool {
        !matches!(self.state, State::Unwanted)
    }

    /// [`Capture::write`]; why the capture has ended, if it just did.
    pub fn write(
        &mut self,
        packets: &[Rc<Packet>],
        comment: &str,
        name: impl FnMut(i32) -> Option<String>,
    ) -> Option<String> {
        let new = packets.iter().filter(|one| !one.written.get()).count();
        let new = u64::try_from(new).unwrap_or(u64::MAX);
        let written = match &mut self.state {
            State::Unwanted => return None,
            State::Writing { capture, held } => {
                *held += new;
                capture.write(packets, comment, name)
            }
            State::Ended { missing } => {
                *missing += new;
                Ok(())
            }
        };
        // None counts twice that has two requests in it.
        packets.iter().for_each(|one| one.written.set(true));
        self.ended_by(written)
    }

    /// [`Capture::flush`]; why the capture has ended, if it just did.
    pub fn flush(&mut self) -> Option<String> {
        let State::Writing { capture, held } = &mut self.state else {
            return None;
        };
        let flushed = capture.flush();
        if flushed.is_ok() {
            *held = 0;
        }
        self.ended_by(flushed)
    }

    fn ended_by(&mut self, result: Result<()>) -> Option<String> {
        let err = result.err()?;
        if let State::Writing { held, .. } = self.state {
            self.state = State::Ended { missing: held };
        }
        Some(format!("the capture ends here: {err:#}"))
    }

    /// Packets that should be in the file and are not, or not whole; `None` if no capture was wanted.
    pub fn missing(&self) -> Option<u64> {
        match self.state {
            State::Unwanted => None,
            State::Writing { .. } => Some(0),
            State::Ended { missing } => Some(missing),
        }
    }
}

impl<W: Write> Default for Kept<W> {
    fn default() -> Self {
        Self::new(None)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    #[test]
    fn packets_are_written_with_comment_interface_and_time() {
        let mut out = Vec::new();
        let time = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).unwrap();
        let packet = |interface, bytes: &[u8]| {
            Rc::new(Packet {
                time,
                interface,
                bytes: bytes.to_vec(),
                written: Cell::new(false),
            })
        };
        let mut capture = Capture::new(&mut out, Path::new("x")).unwrap();
        let name = |index| Some(format!("eth{index}"));
        let first = [packet(1, b"abc"), packet(2, b"defg")];
        capture.write(&first, "imdsv1 by curl", name).unwrap();
        // One that has two requests in it is there once.
        capture.write(&first[..1], "also", name).unwrap();
        let later = format!("later {}", "\u{e9}".repeat(100_000));
        capture.write(&[packet(1, b"")], &later, name).unwrap();
        drop(capture);
        let mut reader = PcapNgReader::new(&out[..]).unwrap();
        let (mut packets, mut interfaces) = (Vec::new(), 0);
        while let Some(block) = reader.next_block() {
            match block.unwrap() {
                Block::InterfaceDescription(_) => interfaces += 1,
                Block::EnhancedPacket(packet) => {
                    let comment = format!("{:?}", packet.options[0]);
                    assert_eq!(packet.timestamp.as_nanos(), 1_700_000_000_123_456_789);
                    packets.push((packet.interface_id, packet.data.to_vec(), comment));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(interfaces, 2);
        let ids: Vec<_> = packets.iter().map(|(id, _, _)| *id).collect();
        assert_eq!(ids, [0, 1, 0]);
        assert_eq!(packets[1].1, b"defg");
        assert!(packets[1].2.contains("imdsv1 by curl") && packets[2].2.contains("later"));
    }

    /// A file with room for so many bytes.
    struct Room(usize);

    impl Write for Room {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_capture_without_room_ends_once_and_counts_what_is_missing() {
        let packet = || {
            [Rc::new(Packet {
                time: OffsetDateTime::UNIX_EPOCH,
                interface: 1,
                bytes: vec![7; 100],
                written: Cell::new(false),
            })]
        };
        let name = |_| None;
        let capture = |room| Capture::new(BufWriter::new(Room(room)), Path::new("x")).unwrap();
        let mut kept = Kept::new(Some(capture(1000)));
        assert!(kept.is_wanted());
        assert_eq!(kept.write(&packet(), "a", name), None);
        assert_eq!((kept.flush(), kept.missing()), (None, Some(0)));
        let two = packet();
        for _ in 0..10 {
            assert_eq!(kept.write(&packet(), "b", name), None);
        }
        let why = kept.flush().unwrap();
        assert!(why.contains("cannot write x"), "{why}");
        assert_eq!(kept.missing(), Some(10));
        assert_eq!((kept.write(&two, "c", name), kept.flush()), (None, None));
        assert_eq!(kept.write(&two, "the same packet", name), None);
        assert_eq!(kept.missing(), Some(11));
        // Where what is buffered goes out as it is written.
        let mut kept = Kept::new(Some(capture(0)));
        let ends = (0..1000).filter_map(|_| kept.write(&packet(), "d", name));
        assert_eq!(ends.count(), 1);
        assert_eq!(kept.missing(), Some(1000));
        let mut none = Kept::<Room>::new(None);
        assert_eq!((none.write(&two, "e", name), none.missing()), (None, None));
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pcapng");
        Capture::create(&path).unwrap().flush().unwrap();
        let err = Capture::create(&path).unwrap_err();
        assert!(err.to_string().contains("a.pcapng"), "{err}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }
}
