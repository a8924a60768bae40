// SPDX-License-Identifier: BSD-2-Clause

//! The view on the screen. All text from outside is made printable first.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState};
use time::OffsetDateTime;
use time::macros::format_description;

use super::super::callers::{Callers, Calls};
use super::super::event::{Caller, Seen};
use super::model::{Kept, List, Model};
use crate::output::{self, Printable};

const KEYS: &str = "q quit  Tab callers/requests  Up/Down Home/End choose  PageUp/PageDown scroll";

/// Draws the view as it is; `lost` are packets.
pub(super) fn draw(
    frame: &mut Frame<'_>,
    model: &Model,
    callers: &Callers,
    lost: u64,
    color: bool,
) {
    let areas = Layout::vertical([
        Constraint::Length(2),
        Constraint::Percentage(30),
        Constraint::Percentage(30),
        Constraint::Min(3),
        Constraint::Length(1),
    ]);
    let [top, table, list, below, bottom] = areas.areas(frame.area());
    frame.render_widget(Paragraph::new(head(model, callers, lost, color)), top);
    calls(frame, model, callers, table, color);
    requests(frame, model, list, color);
    let (title, lines) = chosen(model, callers);
    let room = usize::from(below.height.saturating_sub(1));
    let first = model.scroll.min(lines.len().saturating_sub(room));
    let shown: Vec<_> = lines.into_iter().skip(first).take(room).collect();
    let block = Block::new().borders(Borders::TOP).title(title);
    frame.render_widget(Paragraph::new(shown).block(block), below);
    let keys = Style::new().add_modifier(Modifier::REVERSED);
    frame.render_widget(Paragraph::new(KEYS).style(keys), bottom);
}

fn head(model: &Model, callers: &Callers, lost: u64, color: bool) -> Vec<Line<'static>> {
    let verdict = callers.verdict(lost);
    let mut first = format!(
        "ebpfkit imds-watch  {} requests, {} told about",
        verdict.calls, model.total
    );
    if lost > 0 {
        first.push_str(&format!("  {lost} packets lost"));
    }
    if let Some(note) = &model.note {
        first.push_str(&format!("  {}", Printable(note)));
    }
    let (text, wanted) = if verdict.safe {
        ("safe to require IMDSv2: yes".to_owned(), Color::Green)
    } else {
        let reasons = verdict.reasons.join("; ");
        let text = format!(
            "safe to require IMDSv2: no, because {}",
            Printable(&reasons)
        );
        (text, Color::Red)
    };
    vec![Line::raw(first), Line::styled(text, styled(color, wanted))]
}

fn styled(color: bool, wanted: Color) -> Style {
    if color {
        Style::new().fg(wanted)
    } else {
        Style::new()
    }
}

fn printable(text: &str) -> String {
    Printable(text).to_string()
}

fn time_of_day(time: OffsetDateTime) -> String {
    let form = format_description!("[hour]:[minute]:[second]");
    time.format(form).unwrap_or_default()
}

fn who(caller: &Caller) -> String {
    let mut text = Vec::new();
    // Memory takes it all.
    let _ = caller.text(&mut output::Line::new(&mut text, false));
    String::from_utf8_lossy(&text).into_owned()
}

/// A list of which one is chosen, by `place`; keys move in it if it is the `active` one.
fn list(
    frame: &mut Frame<'_>,
    area: Rect,
    head: &[&'static str],
    rows: Vec<Row<'static>>,
    widths: &[Constraint],
    place: usize,
    active: bool,
) {
    let strong = Style::new().add_modifier(Modifier::BOLD);
    let chosen = if active {
        Style::new().add_modifier(Modifier::REVERSED)
    } else {
        Style::new()
    };
    let table = Table::new(rows, widths.iter().copied())
        .header(Row::new(head.iter().copied()).style(strong))
        .row_highlight_style(chosen);
    let mut state = TableState::new().with_selected(Some(place));
    frame.render_stateful_widget(table, area, &mut state);
}

fn calls(frame: &mut Frame<'_>, model: &Model, callers: &Callers, area: Rect, color: bool) {
    let row = |calls: &Calls| {
        let wanted = if calls.v1 > 0 {
            Color::Red
        } else {
            Color::Green
        };
        let mut paths = printable(&calls.paths.join(" "));
        if calls.more_paths {
            paths.push_str(" …");
        }
        // 2026-01-01T03:04:05.6Z
        let last = calls.last.get(11..19).unwrap_or(&calls.last).to_owned();
        Row::new([
            Cell::new(calls.v1.to_string()).style(styled(color, wanted)),
            Cell::new(calls.v1_refused.to_string()),
            Cell::new(calls.v2.to_string()),
            Cell::new(calls.other.to_string()),
            Cell::new(last),
            Cell::new(who(&calls.caller)),
            Cell::new(paths),
        ])
    };
    let rows = callers.table().into_iter().map(row).collect();
    let head = ["V1", "REFUSED", "V2", "OTHER", "LAST", "WHO", "PATHS"];
    let [a, b, c, d, e] = [7, 7, 7, 7, 8].map(Constraint::Length);
    let widths = [a, b, c, d, e, Constraint::Fill(1), Constraint::Fill(1)];
    let active = model.list == List::Callers;
    let place = model.caller(callers);
    list(frame, area, &head, rows, &widths, place, active);
}

fn requests(frame: &mut Frame<'_>, model: &Model, area: Rect, color: bool) {
    let row = |one: &Kept| {
        let seen = &one.seen;
        let status = seen.status.map_or("-".to_owned(), |code| code.to_string());
        Row::new([
            Cell::new(time_of_day(one.time)),
            Cell::new(names(seen)).style(styled(color, Color::Red)),
            Cell::new(status),
            Cell::new(target(seen)),
            Cell::new(who(&seen.caller)),
        ])
    };
    // The latest first.
    let rows = model.requests.iter().rev().map(row).collect();
    let head = ["TIME", "FINDINGS", "STATUS", "REQUEST", "WHO"];
    let widths = [
        Constraint::Length(8),
        Constraint::Length(24),
        Constraint::Length(6),
        Constraint::Fill(1),
        Constraint::Fill(1),
    ];
    let active = model.list == List::Requests;
    list(frame, area, &head, rows, &widths, model.chosen(), active);
}

fn names(seen: &Seen) -> String {
    let names: Vec<_> = seen.findings.iter().map(|one| one.name()).collect();
    names.join(",")
}

fn target(seen: &Seen) -> String {
    let method = seen.method.as_deref().unwrap_or("?");
    let path = seen.path.as_deref().unwrap_or("?");
    let mut text = format!("{} {}", Printable(method), Printable(path));
    if !seen.query.is_empty() {
        text.push_str(&format!("?{}", Printable(&seen.query.join("&"))));
    }
    text
}

/// What is chosen in the list, in full.
fn chosen(model: &Model, callers: &Callers) -> (String, Vec<Line<'static>>) {
    let pairs = match model.list {
        List::Callers => match callers.table().get(model.caller(callers)) {
            None => return (" nobody has asked yet ".to_owned(), Vec::new()),
            Some(calls) => of_caller(calls),
        },
        List::Requests => match model.requests.iter().rev().nth(model.chosen()) {
            None => return (" nothing has been found yet ".to_owned(), Vec::new()),
            Some(one) => of_request(one),
        },
    };
    let lines = pairs
        .into_iter()
        .map(|(name, value)| Line::raw(format!("{name:<12}{}", Printable(&value))));
    let title = match model.list {
        List::Callers => " caller ",
        List::Requests => " request ",
    };
    (title.to_owned(), lines.collect())
}

/// Lines of a name and a value; the value is not printable yet.
type Pairs = Vec<(&'static str, String)>;

fn of_caller(calls: &Calls) -> Pairs {
    let mut pairs = vec![(
        "calls",
        format!(
            "{} without a token, {} of the kind refused, {} with one, {} other; the last at {}",
            calls.v1, calls.v1_refused, calls.v2, calls.other, calls.last
        ),
    )];
    pairs.extend(calls.paths.iter().map(|path| ("path", path.clone())));
    if calls.more_paths {
        pairs.push(("path", "… and more".to_owned()));
    }
    pairs.extend(process(&calls.caller));
    pairs
}

fn of_request(one: &Kept) -> Pairs {
    let seen = &one.seen;
    let mut pairs = vec![("request", target(seen))];
    for finding in &seen.findings {
        pairs.push((
            "finding",
            format!("{}: {}", finding.name(), finding.meaning()),
        ));
    }
    if !seen.rules.is_empty() {
        pairs.push(("rules", seen.rules.join(", ")));
    }
    pairs.push(("headers", seen.headers.join(", ")));
    let status = seen
        .status
        .map_or_else(|| "none was seen".to_owned(), |status| status.to_string());
    pairs.push(("answer", status));
    let interface = seen.interface.as_deref().unwrap_or("?");
    let ends = if seen.dst.is_empty() {
        "unknown".to_owned()
    } else {
        format!("{} > {} ({})", seen.src, seen.dst, seen.endpoint)
    };
    pairs.push(("connection", format!("{ends} at {interface}")));
    pairs.extend(process(&seen.caller));
    pairs
}

fn process(caller: &Caller) -> Pairs {
    let who = &caller.identity;
    let named = |name: Option<&String>, number: Option<u32>| match (name, number) {
        (Some(name), Some(number)) => Some(format!("{name} ({number})")),
        (Some(name), None) => Some(name.clone()),
        (None, number) => number.map(|number| number.to_string()),
    };
    let parents: Vec<_> = caller
        .parents
        .iter()
        .map(|one| format!("{}[{}]", one.comm.as_deref().unwrap_or("?"), one.pid))
        .collect();
    let all = [
        ("process", named(who.comm.as_ref(), who.pid)),
        ("user", named(who.user.as_ref(), who.uid)),
        ("executable", who.exe.clone()),
        ("command", Some(caller.args.join(" "))),
        ("parents", Some(parents.join(" < "))),
        ("container", who.container.clone()),
        ("unit", who.unit.clone()),
        ("cgroup", who.cgroup.clone()),
    ];
    let known = all.into_iter().filter_map(|(name, value)| {
        let value = value.filter(|value| !value.is_empty())?;
        Some((name, value))
    });
    let opened = &caller.opened_in;
    let frames = opened
        .stack
        .iter()
        .map(|frame| ("opened in", frame.to_string()));
    let reason = opened.stack_reason.map(str::to_owned);
    known
        .chain(frames)
        .chain(reason.map(|reason| ("opened in", format!("({reason})"))))
        .collect()
}
