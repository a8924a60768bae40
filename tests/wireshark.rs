// SPDX-License-Identifier: BSD-2-Clause

//! What `ebpfkit sslsniff --pcap` writes, as Wireshark reads it. Nothing here asks the kernel for
//! anything: calls are made up, and tests/vm/run leaves this out.

use std::path::Path;
use std::process::Command;

use ebpfkit::process::Identity;
use ebpfkit::tools::sslsniff::event::{Data, Ends, MadeIn};
use ebpfkit::tools::sslsniff::pcap::Pcap;
use time::OffsetDateTime;

/// A call on connection 1 at `offset` of its direction.
fn call<'a>(
    who: &'a Identity,
    ends: &'a Ends,
    direction: &'static str,
    offset: u64,
    bytes: &'a [u8],
) -> Data<'a> {
    Data {
        direction,
        function: "SSL_write",
        library: Some("/lib/libssl.so.3"),
        connection: 1,
        offset,
        length: bytes.len() as u64,
        captured: u32::try_from(bytes.len()).unwrap(),
        missing: None,
        repeated: false,
        duration_ns: None,
        ends,
        masked: false,
        took: std::time::Duration::ZERO,
        common: None,
        made: MadeIn::default(),
        who,
        bytes,
        raw: bytes,
        starts: true,
        hex: false,
    }
}

fn who() -> Identity {
    Identity {
        pid: Some(7),
        uid: Some(0),
        comm: Some("cu\u{1b}rl".to_owned()),
        exe: Some("/usr/bin/curl".to_owned()),
        ..Identity::default()
    }
}

/// The values of `fields`, a line for each packet that `filter` lets through.
fn tshark(file: &Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command
        .args(["-r"])
        .arg(file)
        .args(["-Y", filter, "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command
        .output()
        .expect("tshark: packaging/install-deps test");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(str::to_owned).collect()
}

/// The ends of a connection, where they are known.
fn ends(local: Option<String>, peer: Option<String>) -> Ends {
    Ends {
        local,
        peer,
        peer_via: None,
    }
}

fn written(ends: Ends, calls: &[(&'static str, u64, &[u8])]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let mut pcap = Pcap::new(&mut file, false).expect("a start");
    let who = who();
    let mut time = OffsetDateTime::UNIX_EPOCH;
    for (direction, offset, bytes) in calls {
        time += time::Duration::nanoseconds(1_000_000_001);
        let data = call(&who, &ends, direction, *offset, bytes);
        pcap.data(time, &data).expect("a packet");
    }
    pcap.close(time, 1, [0, 0]).expect("an end");
    pcap.flush().expect("all of it");
    drop(pcap);
    file
}

const REQUEST: &[u8] = b"GET /a?b=c HTTP/1.1\r\nHost: example.com\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel";

#[test]
fn http_is_read_with_no_keys_whatever_the_ends_are() {
    let port = |port: u16| Some(format!("127.0.0.1:{port}"));
    let six = |port: u16| Some(format!("[::1]:{port}"));
    for known in [
        Ends::default(),
        ends(port(40000), port(443)),
        ends(port(40000), port(8443)),
        ends(six(40000), six(4433)),
    ] {
        let file = written(
            known.clone(),
            &[
                ("write", 0, REQUEST),
                ("read", 0, ANSWER),
                ("read", ANSWER.len() as u64, b"lo"),
                // More than one segment has room for.
                (
                    "write",
                    REQUEST.len() as u64,
                    &[
                        &b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n"[..],
                        &[b'x'; 100_000],
                    ]
                    .concat(),
                ),
            ],
        );
        let requests = tshark(
            file.path(),
            "http.request",
            &["http.request.method", "http.host", "http.request.uri"],
        );
        assert_eq!(
            requests,
            ["GET\texample.com\t/a?b=c", "POST\t\t/"],
            "{known:?}"
        );
        let answers = tshark(
            file.path(),
            "http.response",
            &["http.response.code", "http.file_data"],
        );
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert!(answers[0].starts_with("200\t"), "{answers:?}");
        let wrong = tshark(
            file.path(),
            "tcp.analysis.flags || _ws.malformed || tls",
            &["frame.number"],
        );
        assert!(wrong.is_empty(), "{known:?}: packets {wrong:?}");
    }
}

/// A frame of HTTP/2 on stream 1, or 0 for settings.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, u8::from(kind != 4)]);
    frame.extend(payload);
    frame
}

#[test]
fn http2_is_read_with_its_headers_and_secrets_are_masked() {
    let mut encoder = loona_hpack::Encoder::new();
    let mut block = |fields: &[(&str, &str)]| {
        encoder.encode(
            fields
                .iter()
                .map(|(name, value)| (name.as_bytes(), value.as_bytes())),
        )
    };
    let head = block(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/a?token=abc"),
        (":authority", "example.com"),
        ("authorization", "Bearer abc"),
    ]);
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    request.extend(frame(4, 0, &[]));
    request.extend(frame(1, 5, &head));
    let mut answer = frame(4, 0, &[]);
    answer.extend(frame(1, 4, &[0x88]));
    answer.extend(frame(0, 1, b"hello"));
    let port = |port: u16| Some(format!("127.0.0.1:{port}"));
    for known in [
        Ends::default(),
        ends(port(40000), port(443)),
        ends(port(40000), port(4433)),
    ] {
        let file = written(
            known.clone(),
            &[("write", 0, &request), ("read", 0, &answer)],
        );
        let headers = tshark(
            file.path(),
            "http2.headers.method",
            &[
                "http2.headers.method",
                "http2.headers.path",
                "http2.headers.authorization",
            ],
        );
        assert_eq!(headers, ["GET\t/a?token=***\t**********"], "{known:?}");
        let status = tshark(
            file.path(),
            "http2.headers.status",
            &["http2.headers.status"],
        );
        assert_eq!(status, ["200"], "{known:?}");
    }
}

#[test]
fn the_process_is_in_the_comment_and_nothing_that_a_terminal_obeys() {
    let file = written(Ends::default(), &[("write", 0, REQUEST)]);
    let comments = tshark(
        file.path(),
        "frame.comment",
        &["frame.comment", "frame.time_epoch"],
    );
    assert_eq!(
        comments,
        [
            "connection 1 of cu\\u{1b}rl[7], uid 0, executable /usr/bin/curl, library \
             /lib/libssl.so.3, peer not known\t1.000000001",
            "cu\\u{1b}rl[7] SSL_write\t1.000000001",
        ]
    );
}

#[test]
fn bytes_that_are_missing_are_a_lost_segment() {
    let file = written(
        Ends::default(),
        &[
            ("write", 0, REQUEST),
            ("read", 0, ANSWER),
            ("read", ANSWER.len() as u64 + 100, b"after"),
        ],
    );
    let lost = tshark(file.path(), "tcp.analysis.lost_segment", &["tcp.seq"]);
    assert_eq!(lost, [(ANSWER.len() + 101).to_string()]);
}
