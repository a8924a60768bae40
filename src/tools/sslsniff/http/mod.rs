// SPDX-License-Identifier: BSD-2-Clause

//! HTTP in what passes: from the bytes of calls to requests and their answers.
//!
//! [`Http`] follows every connection. What a connection speaks is told by its first bytes or, where
//! those were not seen, by the first bytes of a call. Bytes that are missing are counted where they
//! can only be a part of a body; elsewhere the exchanges under way end as [`Outcome::Gap`], and the
//! next message is looked for at the start of a call: nothing is guessed.

mod block;
mod exchange;
mod frames;
mod head;
mod hpack;
mod one;
mod rewrite;
#[cfg(test)]
mod tests;
mod two;

use std::collections::HashMap;

use time::OffsetDateTime;

pub use self::exchange::{Body, Budget, Exchange, Field, Message, NotHttp, Outcome};
use self::one::One;
pub use self::rewrite::Rewriter;
use self::two::Two;
use super::event::{Data, Ends};
use super::mask::http2::{PREFACE, is_chain, is_first_settings};
use super::mask::{self, METHODS};
use super::record::Direction;
use crate::process::Identity;

/// Connections that are followed at once.
const MOST_CONNECTIONS: usize = 4096;
/// Bytes of headers and bodies that are kept at once, of all connections.
const MOST_KEPT: usize = 64 << 20;
/// Bytes of what is under way that is held at once besides: parts of heads and of frames, tables.
const MOST_HELD: usize = 64 << 20;
/// What an exchange takes besides headers and bodies: itself, and what is known of its process.
const OF_AN_EXCHANGE: usize = 2048;
/// The longest start that tells what a connection speaks, but for a request of an unknown method: that takes its first
/// line, so many bytes at most.
const LONGEST_START: usize = PREFACE.len();
const LONGEST_LINE: usize = 8 << 10;

impl Direction {
    /// Its place in arrays that have one for each.
    pub(super) fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Read => Self::Write,
            Self::Write => Self::Read,
        }
    }
}

/// What is common to all that is read at one time.
struct Context<'a> {
    /// When the call returned, and when it was made.
    time: OffsetDateTime,
    called: OffsetDateTime,
    connection: u64,
    who: &'a Identity,
    ends: &'a Ends,
    show_secrets: bool,
    /// Bytes that are kept of a body.
    keep: usize,
    budget: &'a Budget,
    done: &'a mut Vec<Exchange>,
}

impl Context<'_> {
    /// When the first of the bytes passed: what is written may pass from the call on, what is read was there by its
    /// return.
    fn start(&self, direction: Direction) -> OffsetDateTime {
        match direction {
            Direction::Read => self.time,
            Direction::Write => self.called,
        }
    }

    /// An exchange of which nothing is known yet.
    fn exchange(&self, requests: Direction, version: &'static str) -> Exchange {
        let message = || Message {
            body: Body::new(self.budget, self.show_secrets),
            ..Message::default()
        };
        Exchange {
            connection: self.connection,
            who: self.who.clone(),
            ends: self.ends.clone(),
            direction: requests,
            stream: None,
            version,
            method: None,
            host: None,
            path: None,
            status: None,
            reason: None,
            request: message(),
            response: message(),
            outcome: Outcome::Open,
        }
    }
}

/// What a connection speaks.
#[derive(Debug)]
enum Protocol {
    /// It is still to tell; by direction, the first bytes.
    Unknown([Vec<u8>; 2]),
    One(One),
    Two(Box<Two>),
}

#[derive(Debug)]
struct Conversation {
    protocol: Protocol,
    who: Identity,
    ends: Ends,
    /// By direction: the next byte's offset.
    next: [u64; 2],
    /// The count of pieces when it was last used.
    used: u64,
    /// Bytes of memory that it holds.
    held: usize,
}

/// All connections of a run.
#[derive(Debug)]
pub struct Http {
    conversations: HashMap<u64, Conversation>,
    show_secrets: bool,
    keep: usize,
    budget: Budget,
    /// The sum of what connections hold.
    held: usize,
    pieces: u64,
    done: Vec<Exchange>,
}

impl Http {
    /// Keeps the first `keep` bytes of each body; masks secrets unless they are to be shown.
    pub fn new(keep: usize, show_secrets: bool) -> Self {
        Self {
            conversations: HashMap::new(),
            show_secrets,
            keep,
            budget: Budget::new(MOST_KEPT),
            held: 0,
            pieces: 0,
            done: Vec::new(),
        }
    }

    /// What a call read or wrote.
    pub fn data(&mut self, time: OffsetDateTime, data: &Data<'_>) {
        self.pieces += 1;
        if self.conversations.len() >= MOST_CONNECTIONS
            && !self.conversations.contains_key(&data.connection)
        {
            self.forget(time);
        }
        let conversation = self
            .conversations
            .entry(data.connection)
            .or_insert_with(|| Conversation {
                protocol: Protocol::Unknown([Vec::new(), Vec::new()]),
                who: data.who.clone(),
                ends: data.ends.clone(),
                next: [0, 0],
                used: 0,
                held: 0,
            });
        conversation.used = self.pieces;
        let direction = if data.direction == Direction::Read.name() {
            Direction::Read
        } else {
            Direction::Write
        };
        let next = &mut conversation.next[direction.index()];
        // Bytes that were seen come again when a call only looks at them.
        let again = next.saturating_sub(data.offset);
        let Some(bytes) = usize::try_from(again)
            .ok()
            .and_then(|again| data.raw.get(again..))
        else {
            return;
        };
        if again > 0 && bytes.is_empty() {
            return;
        }
        let missing = data.offset.saturating_sub(*next);
        let cut = data.length.saturating_sub(data.raw.len() as u64);
        *next = data.offset.saturating_add(data.length);
        let mut context = Context {
            time,
            called: time - data.took,
            connection: data.connection,
            who: data.who,
            ends: data.ends,
            show_secrets: self.show_secrets,
            keep: self.keep,
            budget: &self.budget,
            done: &mut self.done,
        };
        if missing > 0 {
            conversation.protocol.skip(direction, missing, &mut context);
        }
        let fresh = data.starts && again == 0 || missing > 0;
        if !bytes.is_empty() {
            conversation
                .protocol
                .bytes(direction, bytes, fresh, &mut context);
        }
        if cut > 0 {
            conversation.protocol.skip(direction, cut, &mut context);
        }
        let held = conversation.protocol.held();
        self.held = self.held - conversation.held + held;
        conversation.held = held;
        while self.held > MOST_HELD {
            self.forget(time);
        }
    }

    /// The connection is at its end, up to which so many bytes that were read and written are missing; says whether it
    /// spoke HTTP.
    pub fn close(&mut self, time: OffsetDateTime, connection: u64, missing: [u64; 2]) -> bool {
        let Some(mut conversation) = self.conversations.remove(&connection) else {
            return false;
        };
        for (direction, missing) in [Direction::Read, Direction::Write].into_iter().zip(missing) {
            if missing > 0 {
                let Conversation {
                    protocol,
                    who,
                    ends,
                    ..
                } = &mut conversation;
                let mut context = Context {
                    time,
                    called: time,
                    connection,
                    who,
                    ends,
                    show_secrets: self.show_secrets,
                    keep: self.keep,
                    budget: &self.budget,
                    done: &mut self.done,
                };
                protocol.skip(direction, missing, &mut context);
            }
        }
        self.end(time, connection, conversation, Outcome::Closed)
    }

    /// The run is at its end.
    pub fn finish(&mut self, time: OffsetDateTime) {
        let mut all: Vec<_> = self.conversations.drain().collect();
        all.sort_unstable_by_key(|(connection, _)| *connection);
        for (connection, conversation) in all {
            self.end(time, connection, conversation, Outcome::Open);
        }
    }

    /// The exchanges that have come to an end since the last call.
    pub fn done(&mut self) -> Vec<Exchange> {
        std::mem::take(&mut self.done)
    }

    fn end(
        &mut self,
        time: OffsetDateTime,
        connection: u64,
        mut conversation: Conversation,
        outcome: Outcome,
    ) -> bool {
        self.held -= conversation.held;
        let mut context = Context {
            time,
            called: time,
            connection,
            who: &conversation.who,
            ends: &conversation.ends,
            show_secrets: self.show_secrets,
            keep: self.keep,
            budget: &self.budget,
            done: &mut self.done,
        };
        match &mut conversation.protocol {
            Protocol::Unknown(_) => return false,
            Protocol::One(one) => one.end(outcome, &mut context),
            Protocol::Two(two) => two.end(outcome, &mut context),
        }
        true
    }

    /// Connections of programs that ended without freeing theirs, or too much of them: the half that was not used for
    /// longest is forgotten.
    fn forget(&mut self, time: OffsetDateTime) {
        let mut used: Vec<_> = self.conversations.values().map(|one| one.used).collect();
        if used.is_empty() {
            return;
        }
        let half = (used.len() - 1) / 2;
        let (_, middle, _) = used.select_nth_unstable(half);
        let middle = *middle;
        let (old, kept) = std::mem::take(&mut self.conversations)
            .into_iter()
            .partition(|(_, one)| one.used <= middle);
        self.conversations = kept;
        let old: HashMap<_, _> = old;
        for (connection, conversation) in old {
            self.end(time, connection, conversation, Outcome::Open);
        }
    }
}

impl Protocol {
    fn bytes(
        &mut self,
        direction: Direction,
        bytes: &[u8],
        fresh: bool,
        context: &mut Context<'_>,
    ) {
        match self {
            Self::One(one) => one.bytes(direction, bytes, fresh, context),
            Self::Two(two) => two.bytes(direction, bytes, fresh, context),
            Self::Unknown(starts) => {
                let start = &mut starts[direction.index()];
                if fresh && start.is_empty() || !start.is_empty() {
                    start.extend_from_slice(bytes);
                }
                let start = std::mem::take(start);
                self.tell(direction, start, context);
            }
        }
    }

    /// Tells by the first bytes what is spoken, and reads them.
    fn tell(&mut self, direction: Direction, start: Vec<u8>, context: &mut Context<'_>) {
        let settings = start.len() >= 9 && is_first_settings(&start[..9]);
        if start.starts_with(PREFACE) {
            let mut two = Two::new(true, Some(direction));
            two.bytes(direction, &start[PREFACE.len()..], true, context);
            *self = Self::Two(Box::new(two));
        } else if settings || start.len() >= 9 && is_chain(&start) {
            // A server's first frame, or frames of a connection that is older.
            let requests = settings.then(|| direction.other());
            let mut two = Two::new(settings, requests);
            if settings {
                two.expect_preface(direction.other());
                if let Self::Unknown(starts) = self {
                    two.bytes(
                        direction.other(),
                        &starts[direction.other().index()],
                        true,
                        context,
                    );
                }
            }
            two.bytes(direction, &start, true, context);
            *self = Self::Two(Box::new(two));
        } else if starts_message(&start, true) || starts_message(&start, false) {
            let request = starts_message(&start, true);
            let mut one = One::new(if request {
                direction
            } else {
                direction.other()
            });
            if let Self::Unknown(starts) = self {
                let other = direction.other();
                one.bytes(other, &starts[other.index()], true, context);
            }
            one.bytes(direction, &start, true, context);
            *self = Self::One(one);
        } else if may_start(&start)
            && let Self::Unknown(starts) = self
        {
            // Too little to tell.
            starts[direction.index()] = start;
        }
    }

    /// Bytes of memory that it holds.
    fn held(&self) -> usize {
        match self {
            Self::Unknown(starts) => starts.iter().map(Vec::capacity).sum(),
            Self::One(one) => one.held(),
            Self::Two(two) => size_of::<Two>() + two.held(),
        }
    }

    fn skip(&mut self, direction: Direction, missing: u64, context: &mut Context<'_>) {
        match self {
            Self::One(one) => one.skip(direction, missing, context),
            Self::Two(two) => two.skip(direction, missing, context),
            Self::Unknown(starts) => starts[direction.index()].clear(),
        }
    }
}

/// Whether a request starts so, or an answer.
fn starts_message(bytes: &[u8], request: bool) -> bool {
    if request {
        mask::starts_request(bytes) || mask::starts_other_request(bytes)
    } else {
        mask::starts_answer(bytes)
    }
}

/// Whether so few bytes may be the start of something that is told by more.
fn may_start(bytes: &[u8]) -> bool {
    let begins = |whole: &[u8]| whole.len() > bytes.len() && whole.starts_with(bytes);
    bytes.len() < LONGEST_START
        && (begins(PREFACE)
            || begins(b"HTTP/1.")
            || METHODS
                .iter()
                .any(|method| begins(method.as_bytes()) || bytes == method.as_bytes())
            || bytes.len() < 9 && bytes.iter().take(2).all(|byte| *byte == 0))
        || bytes.len() < LONGEST_LINE && mask::may_start_other_request(bytes)
}
