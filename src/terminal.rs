// SPDX-License-Identifier: BSD-2-Clause

//! The whole terminal as a screen, for tools with a live view, and back as it was.
//!
//! However the program ends, the terminal is restored: by [`Screen`]'s Drop, which
//! [`crate::kernel::stop::Stop`] lets come about on SIGINT, SIGTERM and SIGHUP, and by a hook on a
//! panic. Only SIGKILL leaves it as it is (`reset` mends that).

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Frame};

use crate::failure::Failure;

/// What the person does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A letter, without Control.
    Letter(char),
    /// To the line above.
    Up,
    /// To the line below.
    Down,
    /// To the page above.
    PageUp,
    /// To the page below.
    PageDown,
    /// To the start.
    Home,
    /// To the end.
    End,
    /// The tabulator.
    Tab,
    /// To end the program: `q`, Escape or Control-C, which is no signal on such a screen.
    Quit,
}

impl Key {
    /// What `code` with `modifiers` means, if anything.
    fn of(code: KeyCode, modifiers: KeyModifiers) -> Option<Self> {
        if modifiers.contains(KeyModifiers::CONTROL) {
            return (code == KeyCode::Char('c')).then_some(Self::Quit);
        }
        Some(match code {
            KeyCode::Char('q') | KeyCode::Esc => Self::Quit,
            KeyCode::Char('k') | KeyCode::Up => Self::Up,
            KeyCode::Char('j') | KeyCode::Down => Self::Down,
            KeyCode::PageUp => Self::PageUp,
            KeyCode::PageDown => Self::PageDown,
            KeyCode::Home => Self::Home,
            KeyCode::End => Self::End,
            KeyCode::Tab => Self::Tab,
            KeyCode::Char(letter) => Self::Letter(letter),
            _ => return None,
        })
    }
}

/// The terminal, taken over.
#[derive(Debug)]
pub struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Whether there is a terminal to take over.
    ///
    /// # Errors
    /// [`Failure::Usage`], naming `option`, if standard input or output is something else.
    pub fn check(option: &str) -> Result<(), Failure> {
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "{option}: standard input and output have to be a terminal"
        )))
    }

    /// Takes the terminal over.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn open() -> io::Result<Self> {
        let terminal = ratatui::try_init()?;
        Ok(Self { terminal })
    }

    /// Draws anew, in the size that the terminal has now.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn draw(&mut self, render: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(render).map(drop)
    }

    /// What was typed meanwhile; waits for nothing.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn keys(&mut self) -> io::Result<Vec<Key>> {
        let mut keys = Vec::new();
        while event::poll(Duration::ZERO)? {
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
            {
                keys.extend(Key::of(key.code, key.modifiers));
            }
        }
        Ok(keys)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may be gone: then there is nothing to restore.
        let _ = ratatui::try_restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_c_ends_and_other_controls_do_nothing() {
        let control = KeyModifiers::CONTROL;
        assert_eq!(Key::of(KeyCode::Char('c'), control), Some(Key::Quit));
        assert_eq!(Key::of(KeyCode::Char('q'), control), None);
        assert_eq!(
            Key::of(KeyCode::Char('q'), KeyModifiers::NONE),
            Some(Key::Quit)
        );
        assert_eq!(
            Key::of(KeyCode::Char('c'), KeyModifiers::NONE),
            Some(Key::Letter('c'))
        );
    }
}
