// SPDX-License-Identifier: BSD-2-Clause

//! What is known of a connection, and how that grows.

use std::io;

use super::super::beginning::{self, Known};
use super::super::event::{Close, Facts, Trouble};
use super::super::function::Function;
use super::super::keylog::Pending;
use super::super::mask::Masker;
use super::super::views::Views;
use super::subject::Subject;

/// One.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub subject: Subject,
    pub facts: Facts,
    /// No line has what the hellos said yet.
    pub untold: bool,
    pub trouble: Trouble,
    /// The library has given a reason.
    pub troubled: bool,
    /// Its socket, if it has none within its calls.
    pub socket: Option<u64>,
    /// A handshake was done.
    pub done: bool,
    /// The random number of the client's hello, and keys that wait for it.
    pub random: Option<[u8; 32]>,
    pub keys: Vec<Pending>,
    /// By direction: the next byte's offset, once there was one, and the secrets.
    pub next: [Option<u64>; 2],
    /// By direction: more of a call's bytes are to come.
    pub within: [bool; 2],
    pub maskers: [Masker; 2],
    /// The count of records when it was last used.
    pub used: u64,
}

/// A handshake or a hello was seen of a connection: nothing has passed before what was seen of it, if that is
/// nothing yet.
pub(super) fn start_seen(next: [Option<u64>; 2], maskers: &mut [Masker; 2]) {
    if next == [None, None] {
        *maskers = Default::default();
        maskers.iter_mut().for_each(Masker::start_seen);
    }
}

impl Connection {
    /// It is closed, after so many bytes and nanoseconds.
    pub fn close(&self, read: u64, written: u64, duration_ns: u64, unfreed: bool) -> Close<'_> {
        let [shown_read, shown_written] = self.next.map(Option::unwrap_or_default);
        Close {
            connection: self.subject.number(),
            unfreed,
            read,
            written,
            read_missing: read.saturating_sub(shown_read),
            written_missing: written.saturating_sub(shown_written),
            duration_ns,
            facts: &self.facts,
            trouble: &self.trouble,
            ends: self.subject.ends(),
            who: self.subject.who(),
        }
    }

    /// Adds what its beginning has told so far.
    pub fn begun(&mut self, known: Known, views: &mut Views) -> io::Result<()> {
        self.untold |= beginning::learn(&mut self.facts, &known.facts);
        if known.trouble.alert.is_some() {
            self.trouble.alert = known.trouble.alert;
            self.trouble.alert_from = known.trouble.alert_from;
        }
        self.random = known.random.or(self.random);
        match &self.random {
            Some(random) => views.settle(random, &mut self.keys),
            None => Ok(()),
        }
    }

    /// Whether it is news.
    pub fn learn(&mut self, function: Function, text: &[u8]) -> bool {
        let before = self.facts.clone();
        let text = || Some(String::from_utf8_lossy(text).into_owned());
        match function {
            Function::Ctrl | Function::SetHostName | Function::GetServername => {
                self.facts.sni = text();
            }
            Function::GetAlpn => self.facts.alpn = text(),
            Function::GetVersion => self.facts.version = text(),
            Function::SessionReused => self.facts.resumed = Some(true),
            _ => {}
        }
        self.facts != before
    }
}
