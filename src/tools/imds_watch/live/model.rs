// SPDX-License-Identifier: BSD-2-Clause

//! What the view shows besides the table, and what keys do to it.

use std::collections::VecDeque;

use time::OffsetDateTime;

use super::super::callers::Callers;
use super::super::event::Seen;
use crate::terminal::Key;

/// Requests that are kept: the latest.
pub(super) const MOST_REQUESTS: usize = 1024;

/// The list that keys move in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum List {
    /// Those who ask.
    #[default]
    Callers,
    /// What they asked for.
    Requests,
}

/// A request, and when it was sent.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) time: OffsetDateTime,
    pub(super) seen: Seen,
}

/// The view's state.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// The latest at the end.
    pub(super) requests: VecDeque<Kept>,
    /// All that there were.
    pub(super) total: u64,
    pub(super) list: List,
    /// By what tells callers apart: the table's order changes. The first where there is none.
    caller: Option<String>,
    /// By its number from the beginning. The latest where there is none.
    request: Option<u64>,
    /// Lines of what is chosen that are above the screen.
    pub(super) scroll: usize,
    /// The last of its kind.
    pub(super) note: Option<String>,
}

impl Model {
    pub(super) fn request(&mut self, time: OffsetDateTime, seen: Seen) {
        if self.requests.len() >= MOST_REQUESTS {
            self.requests.pop_front();
        }
        self.total += 1;
        self.requests.push_back(Kept { time, seen });
    }

    pub(super) fn note(&mut self, text: &str) {
        self.note = Some(text.to_owned());
    }

    /// The place of the chosen caller in the table.
    pub(super) fn caller(&self, callers: &Callers) -> usize {
        let table = callers.table();
        let place = self
            .caller
            .as_ref()
            .and_then(|name| table.iter().position(|one| one.caller.group() == *name));
        place.unwrap_or(0)
    }

    /// The place of the chosen request, counted from the latest.
    pub(super) fn chosen(&self) -> usize {
        let last = self.requests.len().saturating_sub(1);
        let place = |number: u64| usize::try_from(self.total - 1 - number).unwrap_or(last);
        self.request.map_or(0, place).min(last)
    }

    /// Does what a key says; true if that is to end.
    pub(super) fn key(&mut self, key: Key, callers: &Callers) -> bool {
        let (at, count) = match self.list {
            List::Callers => (self.caller(callers), callers.table().len()),
            List::Requests => (self.chosen(), self.requests.len()),
        };
        let last = count.saturating_sub(1);
        let to = match key {
            Key::Quit => return true,
            Key::Tab => {
                self.scroll = 0;
                self.list = match self.list {
                    List::Callers => List::Requests,
                    List::Requests => List::Callers,
                };
                return false;
            }
            Key::PageUp => {
                self.scroll = self.scroll.saturating_sub(5);
                return false;
            }
            Key::PageDown => {
                self.scroll = self.scroll.saturating_add(5).min(10_000);
                return false;
            }
            Key::Up => at.saturating_sub(1),
            Key::Down => (at + 1).min(last),
            Key::Home => 0,
            Key::End => last,
            Key::Letter(_) => return false,
        };
        self.scroll = 0;
        match self.list {
            List::Callers => {
                let table = callers.table();
                self.caller = table.get(to).map(|one| one.caller.group());
            }
            List::Requests => {
                // The latest one goes on being the latest.
                let number = self.total.checked_sub(1 + to as u64);
                self.request = number.filter(|_| to > 0);
            }
        }
        false
    }
}
