// SPDX-License-Identifier: BSD-2-Clause

//! What the live view knows: connections, requests, rates, and where the person looks.

use std::collections::{BTreeMap, VecDeque};

use time::OffsetDateTime;

use super::super::event::{Close, Data};
use super::super::http::Exchange;
use super::super::record::Direction;
use crate::terminal::Key;

/// Connections that are remembered; closed ones make room first.
pub(super) const MOST_CONNECTIONS: usize = 500;
/// Exchanges that are remembered.
const MOST_EXCHANGES: usize = 500;
/// Bytes of payload that are remembered of a connection: the last ones.
const MOST_PAYLOAD: usize = 16 << 10;
/// Seconds that a rate is the mean of.
const WINDOW: i64 = 5;
/// Lines that a page is.
const PAGE: usize = 10;

/// What the upper part lists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum List {
    #[default]
    Connections,
    Requests,
}

/// A part of what passed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) direction: Direction,
    pub(super) offset: u64,
    pub(super) missing: u64,
    pub(super) bytes: Vec<u8>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) comm: String,
    pub(super) pid: u32,
    pub(super) user: String,
    /// Empty while it is not known.
    pub(super) peer: String,
    pub(super) read: u64,
    pub(super) written: u64,
    pub(super) missing: u64,
    pub(super) requests: u64,
    pub(super) closed: bool,
    pub(super) last: OffsetDateTime,
    pub(super) parts: VecDeque<Part>,
    payload: usize,
}

/// What happened in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rates {
    pub(super) read: u64,
    pub(super) written: u64,
    pub(super) requests: u64,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) exchanges: VecDeque<Exchange>,
    pub(super) total: u64,
    pub(super) list: List,
    /// The chosen connection; the latest, if none.
    pub(super) connection: Option<u64>,
    /// Lines from the end of the list of requests.
    pub(super) request: usize,
    pub(super) hex: bool,
    /// Nothing new is taken up.
    pub(super) paused: bool,
    /// Lines that the payload is scrolled up from its end.
    pub(super) scroll: usize,
    seconds: BTreeMap<i64, Rates>,
}

impl Model {
    pub(super) fn data(&mut self, time: OffsetDateTime, data: &Data<'_>) {
        if self.paused {
            return;
        }
        let direction = if data.direction == Direction::Read.name() {
            Direction::Read
        } else {
            Direction::Write
        };
        let second = self.second(time);
        match direction {
            Direction::Read => second.read = second.read.saturating_add(data.length),
            Direction::Write => second.written = second.written.saturating_add(data.length),
        }
        if !self.connections.contains_key(&data.connection) {
            self.total += 1;
            self.make_room();
        }
        let connection = self
            .connections
            .entry(data.connection)
            .or_insert_with(|| Connection {
                comm: data.who.comm.clone().unwrap_or_else(|| "?".to_owned()),
                pid: data.who.pid.unwrap_or_default(),
                user: data.who.user.clone().unwrap_or_else(|| {
                    data.who.uid.map_or_else(String::new, |uid| uid.to_string())
                }),
                peer: String::new(),
                read: 0,
                written: 0,
                missing: 0,
                requests: 0,
                closed: false,
                last: time,
                parts: VecDeque::new(),
                payload: 0,
            });
        connection.last = time;
        if let Some(peer) = &data.ends.peer
            && *peer != connection.peer
        {
            connection.peer.clone_from(peer);
        }
        match direction {
            Direction::Read => connection.read = connection.read.saturating_add(data.length),
            Direction::Write => connection.written = connection.written.saturating_add(data.length),
        }
        let missing = data.missing.unwrap_or(0);
        connection.missing = connection.missing.saturating_add(missing);
        connection.add(Part {
            direction,
            offset: data.offset,
            missing,
            bytes: data.bytes.to_vec(),
        });
    }

    pub(super) fn close(&mut self, time: OffsetDateTime, close: &Close<'_>) {
        if let Some(connection) = self.connections.get_mut(&close.connection)
            && !self.paused
        {
            connection.closed = true;
            connection.last = time;
        }
    }

    pub(super) fn exchange(&mut self, time: OffsetDateTime, exchange: Exchange) {
        if self.paused {
            return;
        }
        self.second(time).requests += 1;
        if let Some(connection) = self.connections.get_mut(&exchange.connection) {
            connection.requests += 1;
        }
        if self.exchanges.len() >= MOST_EXCHANGES {
            self.exchanges.pop_front();
        }
        self.exchanges.push_back(exchange);
        if self.request > 0 {
            // The chosen one stays chosen.
            self.request = (self.request + 1).min(self.exchanges.len() - 1);
        }
    }

    /// The means of the last seconds, without the one under way.
    pub(super) fn rates(&self, now: OffsetDateTime) -> Rates {
        let now = now.unix_timestamp();
        let mut sum = Rates::default();
        for rates in self
            .seconds
            .range(now - WINDOW..now)
            .map(|(_, rates)| rates)
        {
            sum.read = sum.read.saturating_add(rates.read);
            sum.written = sum.written.saturating_add(rates.written);
            sum.requests += rates.requests;
        }
        let seconds = WINDOW.unsigned_abs();
        Rates {
            read: sum.read / seconds,
            written: sum.written / seconds,
            // Few a second are not none.
            requests: sum.requests.div_ceil(seconds),
        }
    }

    /// The number of the chosen connection.
    pub(super) fn chosen(&self) -> Option<u64> {
        self.connection
            .filter(|number| self.connections.contains_key(number))
            .or_else(|| self.connections.keys().next_back().copied())
    }

    /// The chosen exchange.
    pub(super) fn chosen_exchange(&self) -> Option<&Exchange> {
        let last = self.exchanges.len().checked_sub(1)?;
        self.exchanges.get(last.saturating_sub(self.request))
    }

    /// Does what a key means; says whether that is to end.
    pub(super) fn key(&mut self, key: Key) -> bool {
        match key {
            Key::Quit => return true,
            Key::Tab => {
                self.list = match self.list {
                    List::Connections => List::Requests,
                    List::Requests => List::Connections,
                };
                self.scroll = 0;
            }
            Key::Letter('h') => (self.hex, self.scroll) = (!self.hex, 0),
            Key::Letter('p' | ' ') => self.paused = !self.paused,
            Key::Up => self.choose(1),
            Key::Down => self.choose(-1),
            Key::Home => self.choose(isize::MAX),
            Key::End => self.choose(isize::MIN),
            Key::PageUp => self.scroll = self.scroll.saturating_add(PAGE),
            Key::PageDown => self.scroll = self.scroll.saturating_sub(PAGE),
            Key::Letter(_) => {}
        }
        false
    }

    /// Chooses one that is so many lines older.
    fn choose(&mut self, older: isize) {
        self.scroll = 0;
        let moved = |from_end: usize, count: usize| {
            from_end
                .saturating_add_signed(older)
                .min(count.saturating_sub(1))
        };
        match self.list {
            List::Requests => self.request = moved(self.request, self.exchanges.len()),
            List::Connections => {
                let Some(chosen) = self.chosen() else {
                    return;
                };
                let from_end = self.connections.range(chosen..).count() - 1;
                let place = moved(from_end, self.connections.len());
                let number = self.connections.keys().rev().nth(place).copied();
                // The latest stays the latest, whichever that is.
                self.connection = number.filter(|_| place > 0);
            }
        }
    }

    fn second(&mut self, time: OffsetDateTime) -> &mut Rates {
        let second = time.unix_timestamp();
        while self.seconds.len() > 2 * usize::try_from(WINDOW).unwrap_or(5) {
            self.seconds.pop_first();
        }
        self.seconds.entry(second).or_default()
    }

    fn make_room(&mut self) {
        if self.connections.len() < MOST_CONNECTIONS {
            return;
        }
        let oldest = self
            .connections
            .iter()
            .min_by_key(|(_, one)| (!one.closed, one.last))
            .map(|(number, _)| *number);
        if let Some(oldest) = oldest {
            self.connections.remove(&oldest);
        }
    }
}

impl Connection {
    fn add(&mut self, mut part: Part) {
        if part.bytes.is_empty() && part.missing == 0 {
            return;
        }
        if part.bytes.len() > MOST_PAYLOAD {
            let first = part.bytes.len() - MOST_PAYLOAD;
            part.bytes.drain(..first);
            part.offset = part.offset.saturating_add(first as u64);
        }
        self.payload += part.bytes.len();
        self.parts.push_back(part);
        while self.payload > MOST_PAYLOAD
            && let Some(first) = self.parts.pop_front()
        {
            self.payload -= first.bytes.len();
        }
        // Calls without payload take room as well.
        while self.parts.len() > MOST_PAYLOAD / 16 {
            let first = self.parts.pop_front();
            self.payload -= first.map_or(0, |part| part.bytes.len());
        }
    }
}
