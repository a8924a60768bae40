// SPDX-License-Identifier: BSD-2-Clause

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use time::OffsetDateTime;
use time::macros::datetime;

use super::super::callers::{Callers, Version};
use super::super::event::{Caller, OpenedIn, Seen};
use super::super::plan::Finding;
use super::draw::draw;
use super::model::{List, MOST_REQUESTS, Model};
use crate::kernel::lineage::Parent;
use crate::kernel::stacks::Frame;
use crate::process::Identity;
use crate::terminal::Key;

const START: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

fn caller(comm: &str, unit: &str) -> Caller {
    Caller {
        identity: Identity {
            pid: Some(7),
            comm: Some(comm.to_owned()),
            user: Some("alice".to_owned()),
            unit: Some(unit.to_owned()),
            ..Identity::default()
        },
        foreign: false,
        args: vec![comm.to_owned(), "-s\u{202e}".to_owned()],
        parents: vec![Parent {
            pid: 1,
            comm: Some("init".to_owned()),
        }],
        opened_in: OpenedIn {
            stack: vec![Frame {
                function: Some("fetch\u{1b}".into()),
                ..Frame::default()
            }],
            stack_reason: Some("for a reason"),
        },
    }
}

fn seen(path: &str) -> Seen {
    Seen {
        endpoint: "aws".to_owned(),
        method: Some("GET".to_owned()),
        path: Some(path.to_owned()),
        query: vec!["x".to_owned()],
        headers: vec!["Host".to_owned(), "Via".to_owned()],
        findings: vec![Finding::Imdsv1, Finding::Forwarded],
        rules: Vec::new(),
        status: Some(200),
        interface: Some("eth0".to_owned()),
        src: "10.0.0.1:5".to_owned(),
        dst: "169.254.169.254:80".to_owned(),
        caller: caller("cu\u{1b}[31mrl", "backup.service"),
    }
}

/// Two callers, one of them with version 1, and two requests.
fn all() -> (Model, Callers) {
    let (mut model, mut callers) = (Model::default(), Callers::default());
    let (old, new) = (
        caller("cu\u{1b}[31mrl", "backup.service"),
        caller("agent", "agent.service"),
    );
    for _ in 0..3 {
        callers.add(&new, Version::Two, Some("/new"), true, Some(200), START);
    }
    for path in ["/a", "/b\u{1b}[2J"] {
        callers.add(&old, Version::One, Some(path), true, Some(200), START);
        model.request(START, seen(path));
    }
    (model, callers)
}

fn screen(model: &Model, callers: &Callers, lost: u64) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(120, 30)).unwrap();
    terminal
        .draw(|frame| draw(frame, model, callers, lost, true))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| {
        (0..120)
            .map(|x| buffer[(x, y)].symbol())
            .collect::<String>()
    };
    (0..30).map(|y| row(y).trim_end().to_owned()).collect()
}

fn has(shown: &[String], parts: &[&str]) {
    let text = shown.join("\n");
    for part in parts {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'));
}

#[test]
fn the_table_of_callers_and_the_verdict_are_shown() {
    let (model, callers) = all();
    let shown = screen(&model, &callers, 3);
    assert_eq!(
        shown[..2],
        [
            "ebpfkit imds-watch  5 requests, 2 told about  3 packets lost",
            "safe to require IMDSv2: no, because 2 calls had no session token, by unit \
             backup.service; 3 packets were lost",
        ]
    );
    // Who would break comes first, and is chosen.
    assert!(shown[2].starts_with("V1      REFUSED V2      OTHER"));
    assert!(shown[3].starts_with("2       0       0       0       03:04:05 cu\\u{1b}[31mrl[7]"));
    assert!(shown[4].starts_with("0       0       3       0       03:04:05 agent[7]"));
    has(
        &shown,
        &[
            "2 without a token, 0 of the kind refused, 0 with one, 0 other; the last at 2026-01-02",
            "path        /a\n",
            "path        /b\\u{1b}[2J\n",
        ],
    );
}

#[test]
fn with_nothing_to_break_the_verdict_is_yes() {
    let mut callers = Callers::default();
    let agent = caller("agent", "agent.service");
    callers.add(&agent, Version::Two, Some("/"), true, Some(200), START);
    let shown = screen(&Model::default(), &callers, 0);
    assert_eq!(shown[0], "ebpfkit imds-watch  1 requests, 0 told about");
    assert_eq!(shown[1], "safe to require IMDSv2: yes");
}

#[test]
fn the_chosen_request_is_shown_in_full() {
    let (mut model, callers) = all();
    assert!(!model.key(Key::Tab, &callers));
    let shown = screen(&model, &callers, 0);
    has(
        &shown,
        &[
            "03:04:05 imdsv1,forwarded         200    GET /b\\u{1b}[2J?x",
            "request     GET /b\\u{1b}[2J?x",
            "finding     imdsv1: no session token",
            "finding     forwarded: a header that proxies add",
            "headers     Host, Via",
            "answer      200",
            "connection  10.0.0.1:5 > 169.254.169.254:80 (aws) at eth0",
            "process     cu\\u{1b}[31mrl (7)",
        ],
    );
    model.key(Key::PageDown, &callers);
    let scrolled = screen(&model, &callers, 0);
    has(
        &scrolled,
        &[
            "command     cu\\u{1b}[31mrl -s\\u{202e}",
            "parents     init[1]",
            "unit        backup.service",
            "opened in   fetch\\u{1b}",
        ],
    );
    model.key(Key::Down, &callers);
    let shown = screen(&model, &callers, 0);
    has(&shown, &["request     GET /a?x"]);
}

#[test]
fn what_is_chosen_stays_chosen_while_more_comes() {
    let (mut model, mut callers) = all();
    // A caller keeps its mark though the order changes.
    model.key(Key::End, &callers);
    assert_eq!(model.caller(&callers), 1);
    let agent = caller("agent", "agent.service");
    for _ in 0..5 {
        callers.add(&agent, Version::One, Some("/"), true, None, START);
    }
    assert_eq!(model.caller(&callers), 0);
    model.key(Key::Tab, &callers);
    assert_eq!(model.list, List::Requests);
    // The latest goes on being the latest; another one is kept.
    model.request(START, seen("/c"));
    assert_eq!(model.chosen(), 0);
    model.key(Key::Down, &callers);
    for number in 0..2 * MOST_REQUESTS {
        let before = model.chosen();
        model.request(START, seen(&format!("/{number}")));
        let expected = (before + 1).min(MOST_REQUESTS - 1);
        assert_eq!(model.chosen(), expected);
    }
    assert_eq!(model.requests.len(), MOST_REQUESTS);
    model.key(Key::Home, &callers);
    assert_eq!(model.chosen(), 0);
    for key in [Key::Up, Key::Down, Key::End, Key::PageUp, Key::Letter('x')] {
        assert!(!model.key(key, &callers));
    }
    assert!(model.key(Key::Quit, &callers));
}

#[test]
fn the_smallest_terminal_and_an_empty_view_are_drawn() {
    for (width, height) in [(1, 1), (2, 3), (200, 2), (80, 24)] {
        for (model, callers) in [all(), (Model::default(), Callers::default())] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal
                .draw(|frame| draw(frame, &model, &callers, 0, false))
                .unwrap();
        }
    }
    let (model, callers) = (Model::default(), Callers::default());
    has(&screen(&model, &callers, 0), &["nobody has asked yet"]);
}
