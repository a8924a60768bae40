// SPDX-License-Identifier: BSD-2-Clause

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use time::OffsetDateTime;
use time::macros::datetime;

use super::super::event::{Close, Data, Ends, Facts, MadeIn, Trouble};
use super::super::http::Http;
use super::draw::draw;
use super::model::{List, MOST_CONNECTIONS, Model, Rates};
use crate::process::Identity;
use crate::terminal::Key;

const START: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

fn who(comm: &str) -> Identity {
    Identity {
        pid: Some(7),
        comm: Some(comm.to_owned()),
        user: Some("alice".to_owned()),
        ..Identity::default()
    }
}

const NOWHERE: &Ends = &Ends {
    local: None,
    peer: None,
    peer_via: None,
};

fn data<'a>(
    who: &'a Identity,
    connection: u64,
    direction: &'static str,
    bytes: &'a [u8],
) -> Data<'a> {
    Data {
        direction,
        function: "SSL_write",
        connection,
        offset: 0,
        length: bytes.len() as u64,
        captured: u32::try_from(bytes.len()).unwrap(),
        missing: None,
        repeated: false,
        duration_ns: None,
        took: std::time::Duration::ZERO,
        ends: NOWHERE,
        masked: false,
        library: None,
        common: None,
        made: MadeIn::default(),
        who,
        bytes,
        raw: bytes,
        starts: true,
        hex: false,
    }
}

fn screen(model: &Model) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(120, 24)).unwrap();
    let now = START + time::Duration::seconds(1);
    terminal
        .draw(|frame| draw(frame, model, now, true))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| {
        (0..120)
            .map(|x| buffer[(x, y)].symbol())
            .collect::<String>()
    };
    (0..24).map(|y| row(y).trim_end().to_owned()).collect()
}

/// Two connections, of which the first has asked for something.
fn model() -> Model {
    let mut model = Model::default();
    let mut http = Http::new(100, false);
    let (curl, wget) = (who("cu\u{1b}[31mrl"), who("wget"));
    for (direction, bytes) in [
        (
            "write",
            &b"GET /a HTTP/1.1\r\nHost: example.com\r\nCookie: abc\r\n\r\n"[..],
        ),
        (
            "read",
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 10\r\n\r\n\x1b[31mhello",
        ),
    ] {
        let data = data(&curl, 1, direction, bytes);
        model.data(START, &data);
        http.data(START, &data);
    }
    for exchange in http.done() {
        model.exchange(START, exchange);
    }
    let ends = Ends {
        peer: Some("192.0.2.1:443".to_owned()),
        ..Ends::default()
    };
    let mut last = data(&wget, 2, "write", &[b'x'; 2048]);
    last.ends = &ends;
    model.data(START, &last);
    model
}

#[test]
fn connections_are_listed_with_the_payload_of_the_chosen_one() {
    let mut model = model();
    let shown = screen(&model);
    assert_eq!(
        shown[0],
        "ebpfkit sslsniff  2 connections, 2 open  1 requests/s  11 B/s read  419 B/s written"
    );
    assert!(shown[2].starts_with(
        "#2       wget             7        alice      192.0.2.1:443         0 B        2.0 KiB"
    ));
    assert!(
        shown[3].starts_with("#1       cu\\u{1b}[31mrl"),
        "{shown:#?}"
    );
    assert!(
        shown.iter().any(|line| line.contains(" #2 wget[7] ")),
        "{shown:#?}"
    );
    assert!(!model.key(Key::Up));
    let shown = screen(&model);
    assert!(
        shown.iter().any(|line| line.contains("|31mhello|")),
        "{shown:#?}"
    );
    assert!(
        shown
            .iter()
            .any(|line| line.contains(" #1 cu\\u{1b}[31mrl[7] ")),
        "{shown:#?}"
    );
    assert!(
        shown.iter().any(|line| line == "    Host: example.com"),
        "{shown:#?}"
    );
    assert!(shown.iter().all(|line| !line.contains('\u{1b}')));
}

#[test]
fn requests_are_listed_with_their_headers() {
    let mut model = model();
    model.key(Key::Tab);
    let shown = screen(&model);
    assert!(
        shown[2].ends_with("GET      404    0.0 ms     10 B       example.com/a"),
        "{shown:#?}"
    );
    assert!(
        shown.iter().any(|line| line == "    Cookie: ***"),
        "{shown:#?}"
    );
    model.key(Key::Tab);
    assert_eq!(model.list, List::Connections);
}

#[test]
fn a_chosen_one_stays_chosen_while_others_come() {
    let mut model = model();
    model.key(Key::Home);
    assert_eq!(model.chosen(), Some(1));
    let nc = who("nc");
    model.data(START, &data(&nc, 3, "read", b"x"));
    assert_eq!(model.chosen(), Some(1));
    model.key(Key::End);
    assert_eq!(model.chosen(), Some(3));
    model.data(START, &data(&nc, 4, "read", b"x"));
    assert_eq!(model.chosen(), Some(4));
}

#[test]
fn a_pause_keeps_what_is_shown() {
    let mut model = model();
    model.key(Key::Letter('p'));
    let before = screen(&model);
    assert!(before[0].ends_with("PAUSED"));
    let nc = who("nc");
    model.data(START, &data(&nc, 3, "read", b"x"));
    assert_eq!(screen(&model), before);
    model.key(Key::Letter('p'));
    model.data(START, &data(&nc, 4, "read", b"x"));
    assert_eq!(model.total, 3);
}

#[test]
fn closed_connections_make_room_first_and_memory_is_bounded() {
    let mut model = Model::default();
    let nc = who("nc");
    for number in 1..=MOST_CONNECTIONS as u64 {
        model.data(START, &data(&nc, number, "read", &[b'x'; 20_000]));
        model.data(START, &data(&nc, number, "read", b"y"));
    }
    let close = Close {
        unfreed: false,
        connection: 9,
        read: 1,
        written: 0,
        read_missing: 0,
        written_missing: 0,
        duration_ns: 0,
        facts: &Facts::default(),
        trouble: &Trouble::default(),
        ends: NOWHERE,
        who: &nc,
    };
    model.close(START, &close);
    model.data(START, &data(&nc, 1000, "read", b"x"));
    assert!(!model.connections.contains_key(&9));
    assert_eq!(model.connections.len(), MOST_CONNECTIONS);
    let kept: usize = model.connections[&1]
        .parts
        .iter()
        .map(|part| part.bytes.len())
        .sum();
    assert!(kept <= 16 << 10, "{kept}");
}

#[test]
fn rates_are_means_of_whole_seconds() {
    let mut model = Model::default();
    let nc = who("nc");
    for second in 0..100 {
        let time = START + time::Duration::seconds(second);
        model.data(time, &data(&nc, 1, "read", &[b'x'; 100]));
    }
    let after = |seconds| model.rates(START + time::Duration::seconds(seconds));
    assert_eq!(after(99).read, 100);
    assert_eq!(after(102).read, 60);
    assert_eq!(after(200), Rates::default());
}

#[test]
fn every_size_of_terminal_can_be_drawn_on() {
    let mut model = model();
    for _ in 0..2 {
        for (width, height) in [(1, 1), (3, 2), (20, 5), (300, 100)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal
                .draw(|frame| draw(frame, &model, START, false))
                .unwrap();
        }
        model.key(Key::Tab);
        model.key(Key::PageUp);
        model.key(Key::Letter('h'));
    }
    assert!(model.key(Key::Quit));
}

#[test]
fn any_length_is_counted_and_what_is_empty_is_not_remembered() {
    let mut model = Model::default();
    let curl = who("curl");
    for _ in 0..3 {
        let mut huge = data(&curl, 1, "read", b"x");
        (huge.length, huge.offset, huge.missing) = (u64::MAX, u64::MAX, Some(u64::MAX));
        model.data(START, &huge);
        model.data(START + time::Duration::seconds(1), &huge);
    }
    let connection = &model.connections[&1];
    assert_eq!((connection.read, connection.missing), (u64::MAX, u64::MAX));
    let rates = model.rates(START + time::Duration::seconds(2));
    assert_eq!(rates.read, u64::MAX / 5);
    for _ in 0..3 {
        model.data(START, &data(&curl, 2, "read", b""));
    }
    assert!(model.connections[&2].parts.is_empty());
    let mut missing = data(&curl, 2, "read", b"");
    missing.missing = Some(1);
    for _ in 0..3000 {
        model.data(START, &missing);
    }
    assert_eq!(model.connections[&2].parts.len(), 1024);
}
