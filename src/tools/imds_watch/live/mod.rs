// SPDX-License-Identifier: BSD-2-Clause

//! The live view: the table of `--summary` as it grows, the latest findings, and the chosen one in
//! full.

mod draw;
mod model;
#[cfg(test)]
mod tests;

use std::io;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use self::model::Model;
use super::callers::Callers;
use super::event::Seen;
use crate::terminal::Screen;

/// How long a change may wait to be drawn.
pub const FRAME: Duration = Duration::from_millis(250);

/// The view at work.
#[derive(Debug)]
pub struct Live {
    screen: Screen,
    model: Model,
    color: bool,
    drawn: Option<Instant>,
}

impl Live {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn open(color: bool) -> io::Result<Self> {
        Ok(Self {
            screen: Screen::open()?,
            model: Model::default(),
            color,
            drawn: None,
        })
    }

    /// A request that is told about.
    pub fn request(&mut self, time: OffsetDateTime, seen: Seen) {
        self.model.request(time, seen);
    }

    /// Something that is no request, for the person.
    pub fn note(&mut self, text: &str) {
        self.model.note(text);
    }

    /// Does what was typed, and draws if it is time to; says whether that is to end. `lost` are
    /// packets, from the beginning.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn tick(&mut self, callers: &Callers, lost: u64) -> io::Result<bool> {
        let keys = self.screen.keys()?;
        for key in &keys {
            if self.model.key(*key, callers) {
                return Ok(true);
            }
        }
        if !keys.is_empty() || self.drawn.is_none_or(|drawn| drawn.elapsed() >= FRAME) {
            let (model, color) = (&self.model, self.color);
            self.screen
                .draw(|frame| draw::draw(frame, model, callers, lost, color))?;
            self.drawn = Some(Instant::now());
        }
        Ok(false)
    }
}
