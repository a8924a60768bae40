// SPDX-License-Identifier: BSD-2-Clause

//! The live view: connections and requests as they come, and the payload of the chosen one.

mod draw;
mod model;
#[cfg(test)]
mod tests;

use std::io;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use self::model::Model;
use super::event::{Close, Data};
use super::http::Exchange;
use crate::terminal::Screen;

/// Bytes that are kept of a body.
pub const BODY: usize = 8 << 10;
/// How long a change may wait to be drawn.
pub const FRAME: Duration = Duration::from_millis(200);

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

    /// What a call read or wrote.
    pub fn data(&mut self, time: OffsetDateTime, data: &Data<'_>) {
        self.model.data(time, data);
    }

    /// A connection was freed.
    pub fn close(&mut self, time: OffsetDateTime, close: &Close<'_>) {
        self.model.close(time, close);
    }

    /// An exchange has come to its end.
    pub fn exchange(&mut self, time: OffsetDateTime, exchange: Exchange) {
        self.model.exchange(time, exchange);
    }

    /// Does what was typed, and draws if it is time to; says whether that is to end.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn tick(&mut self) -> io::Result<bool> {
        let keys = self.screen.keys()?;
        for key in &keys {
            if self.model.key(*key) {
                return Ok(true);
            }
        }
        if !keys.is_empty() || self.drawn.is_none_or(|drawn| drawn.elapsed() >= FRAME) {
            let (model, color) = (&self.model, self.color);
            let now = OffsetDateTime::now_utc();
            self.screen
                .draw(|frame| draw::draw(frame, model, now, color))?;
            self.drawn = Some(Instant::now());
        }
        Ok(false)
    }
}
