// SPDX-License-Identifier: BSD-2-Clause

//! Packets that are written: of any length, at any offset, in bounded memory.

use time::macros::datetime;

use super::super::event;
use super::*;

const START: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

fn data<'a>(
    who: &'a Identity,
    ends: &'a event::Ends,
    connection: u64,
    bytes: &'a [u8],
) -> Data<'a> {
    Data {
        direction: Direction::Write.name(),
        function: "SSL_write",
        connection,
        offset: 0,
        length: bytes.len() as u64,
        captured: u32::try_from(bytes.len()).unwrap(),
        missing: None,
        repeated: false,
        duration_ns: None,
        took: std::time::Duration::ZERO,
        ends,
        masked: false,
        library: None,
        common: None,
        made: event::MadeIn::default(),
        who,
        bytes,
        raw: bytes,
        starts: true,
        hex: false,
    }
}

#[test]
fn masking_headers_takes_no_more_memory_than_it_may() {
    let mut pcap = Pcap::new(io::sink(), false).unwrap();
    let (who, ends) = (Identity::default(), event::Ends::default());
    let mut frames = PREFACE.to_vec();
    frames.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // Headers, of which the last byte of 200,001 does not come.
    frames.extend([3, 13, 65, 1, 0, 0, 0, 0, 1]);
    frames.resize(200_000, 0x82);
    let mut most = 0;
    for connection in 1..1000 {
        let data = data(&who, &ends, connection, &frames);
        pcap.data(START, &data).unwrap();
        most = most.max(pcap.held);
        let of = |stream: &Stream| stream.rewriter.as_ref().map_or(0, |one| one.held());
        assert_eq!(pcap.held, pcap.streams.values().map(of).sum::<usize>());
        assert!(pcap.held <= MOST_HELD);
    }
    assert!(most > MOST_HELD / 2, "{most}");
    for connection in 1..1000 {
        pcap.close(START, connection, [0, 0]).unwrap();
    }
    assert_eq!(pcap.held, 0);
}

#[test]
fn any_length_and_offset_can_be_written() {
    let mut pcap = Pcap::new(io::sink(), false).unwrap();
    let (who, ends) = (Identity::default(), event::Ends::default());
    for offset in [0, u64::MAX / 2, u64::MAX - 1] {
        let mut data = data(&who, &ends, 1, b"x");
        (data.offset, data.length) = (offset, u64::MAX);
        pcap.data(START, &data).unwrap();
    }
    pcap.close(START, 1, [0, 0]).unwrap();
}

#[test]
fn what_is_missing_at_the_end_is_a_gap() {
    let (who, ends) = (Identity::default(), event::Ends::default());
    let written = |missing| {
        let mut out = Vec::new();
        let mut pcap = Pcap::new(&mut out, false).unwrap();
        pcap.data(START, &data(&who, &ends, 1, b"x")).unwrap();
        pcap.close(START, 1, missing).unwrap();
        pcap.flush().unwrap();
        drop(pcap);
        out
    };
    // The same packets but for the sequence number and the checksum of the last ones.
    let (none, some) = (written([0, 0]), written([0, 0x0102_0304]));
    assert_eq!(none.len(), some.len());
    assert_ne!(none, some);
}
