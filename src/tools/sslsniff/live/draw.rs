// SPDX-License-Identifier: BSD-2-Clause

//! The live view on the screen. All text from outside is made printable first.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState};
use time::OffsetDateTime;

use super::super::http::{Exchange, Message};
use super::super::payload;
use super::super::record::Direction;
use super::model::{Connection, List, Model};
use crate::output::{self, Event as _, Printable};

const KEYS: &str =
    "q quit  Tab connections/requests  Up/Down choose  PageUp/PageDown scroll  h hex  p pause";
/// What stands for a tabulator, which a screen of cells has not.
const TAB: &str = "    ";

/// Draws `model` as it is at `now`.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, now: OffsetDateTime, color: bool) {
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Percentage(45),
        Constraint::Min(3),
        Constraint::Length(1),
    ]);
    let [top, list, below, bottom] = areas.areas(frame.area());
    frame.render_widget(Paragraph::new(summary(model, now)), top);
    match model.list {
        List::Connections => connections(frame, model, list, color),
        List::Requests => requests(frame, model, list, color),
    }
    let (title, lines) = chosen(model, color);
    let room = usize::from(below.height.saturating_sub(1));
    let last = lines.len().saturating_sub(room);
    let first = last.saturating_sub(model.scroll);
    let shown: Vec<_> = lines.into_iter().skip(first).take(room).collect();
    let block = Block::new()
        .borders(ratatui::widgets::Borders::TOP)
        .title(title);
    frame.render_widget(Paragraph::new(shown).block(block), below);
    let keys = Style::new().add_modifier(Modifier::REVERSED);
    frame.render_widget(Paragraph::new(KEYS).style(keys), bottom);
}

fn summary(model: &Model, now: OffsetDateTime) -> String {
    let open = model.connections.values().filter(|one| !one.closed).count();
    let missing: u64 = model.connections.values().map(|one| one.missing).sum();
    let rates = model.rates(now);
    let mut text = format!(
        "ebpfkit sslsniff  {} connections, {open} open  {} requests/s  {}/s read  {}/s written",
        model.total,
        rates.requests,
        size(rates.read),
        size(rates.written)
    );
    if missing > 0 {
        text.push_str(&format!("  {missing} bytes missing"));
    }
    if model.paused {
        text.push_str("  PAUSED");
    }
    text
}

/// So many bytes, for people: powers of 1024.
fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let exponent = (bytes.ilog2() / 10).min(4);
    #[allow(clippy::cast_precision_loss)]
    let scaled = bytes as f64 / f64::from(1u32 << 10).powi(exponent.cast_signed());
    format!("{scaled:.1} {}", units[exponent as usize - 1])
}

fn printable(text: &str) -> String {
    Printable(text).to_string()
}

fn styled(color: bool, wanted: Color) -> Style {
    if color {
        Style::new().fg(wanted)
    } else {
        Style::new()
    }
}

fn table(
    frame: &mut Frame<'_>,
    area: Rect,
    head: &[&'static str],
    rows: Vec<Row<'static>>,
    widths: &[Constraint],
    chosen: usize,
) {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let table = Table::new(rows, widths.iter().copied())
        .header(Row::new(head.iter().copied()).style(bold))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(Some(chosen));
    frame.render_stateful_widget(table, area, &mut state);
}

fn connections(frame: &mut Frame<'_>, model: &Model, area: Rect, color: bool) {
    let row = |(number, one): (&u64, &Connection)| {
        let style = if one.closed {
            styled(color, Color::DarkGray)
        } else {
            Style::new()
        };
        Row::new([
            format!("#{number}"),
            printable(&one.comm),
            one.pid.to_string(),
            printable(&one.user),
            printable(&one.peer),
            size(one.read),
            size(one.written),
            one.requests.to_string(),
            if one.missing > 0 {
                size(one.missing)
            } else {
                String::new()
            },
            if one.closed { "closed" } else { "open" }.to_owned(),
        ])
        .style(style)
    };
    // The latest first.
    let rows = model.connections.iter().rev().map(row).collect();
    let chosen = model
        .chosen()
        .map_or(0, |chosen| model.connections.range(chosen..).count() - 1);
    let head = [
        "", "PROCESS", "PID", "USER", "PEER", "READ", "WRITTEN", "REQUESTS", "MISSING", "",
    ];
    let widths = [8, 16, 8, 10, 21, 10, 10, 8, 9, 6].map(Constraint::Length);
    table(frame, area, &head, rows, &widths, chosen);
}

fn requests(frame: &mut Frame<'_>, model: &Model, area: Rect, color: bool) {
    let text = |value: Option<&str>| value.map_or_else(|| "?".to_owned(), printable);
    let row = |one: &Exchange| {
        let style = match one.status {
            Some(400..) => styled(color, Color::Red),
            Some(_) => Style::new(),
            None => styled(color, Color::Yellow),
        };
        #[allow(clippy::cast_precision_loss)]
        let duration = one
            .duration_ns()
            .map(|ns| format!("{:.1} ms", ns as f64 / 1e6));
        Row::new([
            Cell::new(format!("#{}", one.connection)),
            Cell::new(text(one.who.comm.as_deref())),
            Cell::new(text(one.method.as_deref())),
            Cell::new(
                one.status
                    .map_or_else(|| "-".to_owned(), |status| status.to_string()),
            ),
            Cell::new(duration.unwrap_or_default()),
            Cell::new(size(one.response.body.length)),
            Cell::new(format!(
                "{}{}",
                text(one.host.as_deref()),
                text(one.path.as_deref())
            )),
        ])
        .style(style)
    };
    let rows = model.exchanges.iter().rev().map(row).collect();
    let head = ["", "PROCESS", "METHOD", "STATUS", "TIME", "ANSWER", "WHAT"];
    let [a, b, c, d, e, f] = [8, 16, 8, 6, 10, 10].map(Constraint::Length);
    let widths = [a, b, c, d, e, f, Constraint::Min(20)];
    table(frame, area, &head, rows, &widths, model.request);
}

/// What is chosen in the list, in full.
fn chosen(model: &Model, color: bool) -> (String, Vec<Line<'static>>) {
    match model.list {
        List::Connections => {
            let Some(number) = model.chosen() else {
                return (" nothing has passed yet ".to_owned(), Vec::new());
            };
            let one = &model.connections[&number];
            let title = format!(" #{number} {}[{}] ", printable(&one.comm), one.pid);
            (title, parts(one, model.hex, color))
        }
        List::Requests => match model.chosen_exchange() {
            None => (" no request has been seen yet ".to_owned(), Vec::new()),
            Some(one) => (
                format!(" request on #{} ", one.connection),
                exchange(one, model.hex),
            ),
        },
    }
}

fn parts(connection: &Connection, hex: bool, color: bool) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for part in &connection.parts {
        let (arrow, wanted) = match part.direction {
            Direction::Read => ("<-", Color::Green),
            Direction::Write => ("->", Color::Yellow),
        };
        let mut head = format!("{arrow} {} bytes at {}", part.bytes.len(), part.offset);
        if part.missing > 0 {
            head.push_str(&format!(", {} lost before", part.missing));
        }
        lines.push(Line::styled(head, styled(color, wanted)));
        lines.extend(body(&part.bytes, part.offset, hex));
    }
    lines
}

fn exchange(one: &Exchange, hex: bool) -> Vec<Line<'static>> {
    let mut text = Vec::new();
    let mut lines = Vec::new();
    if one.text(&mut output::Line::new(&mut text, false)).is_ok() {
        lines.push(Line::raw(String::from_utf8_lossy(&text).into_owned()));
    }
    let mut message = |name: &str, message: &Message| {
        lines.push(Line::styled(
            name.to_owned(),
            Style::new().add_modifier(Modifier::BOLD),
        ));
        for field in &message.fields {
            let name = if field.name.is_empty() {
                "?"
            } else {
                &field.name
            };
            lines.push(Line::raw(format!(
                "{TAB}{}: {}",
                printable(name),
                printable(&field.value)
            )));
        }
        lines.extend(body(message.body.kept(), 0, hex));
    };
    message("request", &one.request);
    message("answer", &one.response);
    lines
}

/// Bytes as lines, with nothing in them that a terminal obeys.
fn body(bytes: &[u8], offset: u64, hex: bool) -> Vec<Line<'static>> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let mut text = Vec::new();
    let written = payload::lines(&mut output::Line::new(&mut text, false), bytes, offset, hex);
    debug_assert!(written.is_ok(), "memory takes it all");
    String::from_utf8_lossy(&text)
        .trim_start_matches('\n')
        .split('\n')
        .map(|line| Line::raw(line.replace('\t', TAB)))
        .collect()
}
