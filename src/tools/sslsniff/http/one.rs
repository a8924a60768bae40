// SPDX-License-Identifier: BSD-2-Clause

//! HTTP/1 (RFC 9112): requests in one direction, answers in the other, in the same order.

use std::collections::VecDeque;

use super::exchange::{Exchange, Outcome};
use super::head::{self, Head, Length, StartLine};
use super::{Context, may_start, starts_message};
use crate::tools::sslsniff::record::Direction;

/// The longest head that is read; servers refuse longer ones.
const LONGEST_HEAD: usize = 64 << 10;
/// The longest line that says how long a chunk is, with extensions.
const LONGEST_CHUNK_LINE: usize = 4 << 10;
/// Requests that wait for their answers on one connection; nobody pipelines more.
const MOST_PENDING: usize = 128;

/// Where in the messages of its direction the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In a head, or before one.
    Head,
    /// In a body of known length.
    Body(u64),
    /// In the line that says how long a chunk is.
    ChunkLine,
    /// In a chunk.
    Chunk(u64),
    /// In the line's end after a chunk.
    ChunkEnd,
    /// In what follows the last chunk, up to an empty line.
    Trailer,
    /// In a body that the connection's end ends.
    UntilClose,
    /// Nothing was seen yet: a message may start where a call starts.
    Start,
    /// Bytes are missing, or make no sense: likewise.
    Lost,
    /// In something that is HTTP no more.
    Over,
}

#[derive(Debug)]
struct Side {
    at: At,
    /// The head, the chunk's line or the trailer under way.
    line: Vec<u8>,
    /// Nothing but a carriage return was seen since the last line's end.
    blank: bool,
    /// Not all lines so far are blank.
    content: bool,
}

impl Side {
    fn new() -> Self {
        Self {
            at: At::Start,
            line: Vec::new(),
            blank: true,
            content: false,
        }
    }

    fn go(&mut self, at: At) {
        self.at = at;
        self.line.clear();
        (self.blank, self.content) = (true, false);
    }

    /// Takes bytes up to an empty line or, without `whole`, to the line's end; says how many, and
    /// whether that was reached.
    fn take_lines(&mut self, bytes: &[u8], whole: bool) -> (usize, bool) {
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' if self.blank || !whole => {
                    // Empty lines before a head are no head (RFC 9112, section 2.2).
                    if self.content || self.at != At::Head {
                        self.line.extend_from_slice(&bytes[..=at]);
                        return (at + 1, true);
                    }
                }
                b'\n' => self.blank = true,
                b'\r' => {}
                _ => (self.blank, self.content) = (false, true),
            }
        }
        self.line.extend_from_slice(bytes);
        (bytes.len(), false)
    }
}

/// Both directions of a connection.
#[derive(Debug)]
pub(super) struct One {
    sides: [Side; 2],
    /// Where the requests go.
    requests: Direction,
    /// Those that have no whole answer yet, in their order.
    pending: VecDeque<Exchange>,
    /// The answer to the request under way has come.
    answered_early: bool,
    /// The client was seen to send a request before the answer to the last.
    pipelines: bool,
}

impl One {
    pub(super) fn new(requests: Direction) -> Self {
        Self {
            sides: [Side::new(), Side::new()],
            requests,
            pending: VecDeque::new(),
            answered_early: false,
            pipelines: false,
        }
    }

    /// Bytes that passed; with `fresh` a message may start with them.
    pub(super) fn bytes(
        &mut self,
        direction: Direction,
        mut bytes: &[u8],
        fresh: bool,
        context: &mut Context<'_>,
    ) {
        let request = direction == self.requests;
        let side = direction.index();
        if matches!(self.sides[side].at, At::Start | At::Lost) {
            let line = &mut self.sides[side].line;
            if !fresh && line.is_empty() {
                return;
            }
            line.extend_from_slice(bytes);
            if starts_message(line, request) {
                let start = std::mem::take(line);
                self.sides[side].go(At::Head);
                self.bytes(direction, &start, true, context);
            } else if !may_start(line) {
                line.clear();
            }
            return;
        }
        while !bytes.is_empty() {
            let used = match self.sides[side].at {
                At::Start | At::Lost | At::Over => return,
                At::Head => self.head(request, side, bytes, context),
                At::ChunkLine => self.chunk_line(request, side, bytes, context),
                At::Trailer => self.trailer(request, side, bytes, context),
                At::ChunkEnd => {
                    let (used, whole) = self.sides[side].take_lines(bytes, false);
                    if self.sides[side].content || self.sides[side].line.len() > 2 {
                        self.lose(request, Outcome::Malformed, context);
                    } else if whole {
                        self.sides[side].go(At::ChunkLine);
                    }
                    used
                }
                At::Body(left) | At::Chunk(left) => {
                    let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    self.body(request, &bytes[..taken], context);
                    self.advance(request, side, left - taken as u64, context);
                    taken
                }
                At::UntilClose => {
                    self.body(request, bytes, context);
                    bytes.len()
                }
            };
            bytes = &bytes[used..];
        }
    }

    /// Bytes that are missing.
    pub(super) fn skip(&mut self, direction: Direction, missing: u64, context: &mut Context<'_>) {
        let request = direction == self.requests;
        let side = direction.index();
        match self.sides[side].at {
            At::Body(left) | At::Chunk(left) if missing <= left => {
                if let Some(message) = self.message(request) {
                    message.body.skip(missing);
                }
                self.advance(request, side, left - missing, context);
            }
            At::UntilClose => {
                if let Some(message) = self.message(request) {
                    message.body.skip(missing);
                }
            }
            At::Over => {}
            At::Start | At::Lost => self.sides[side].go(At::Lost),
            _ => self.lose(request, Outcome::Gap, context),
        }
    }

    /// Bytes of memory that it takes, without what comes out of the budget.
    pub(super) fn held(&self) -> usize {
        let lines: usize = self.sides.iter().map(|side| side.line.capacity()).sum();
        lines + self.pending.len() * super::OF_AN_EXCHANGE
    }

    /// The connection is at its end, for this reason.
    pub(super) fn end(&mut self, outcome: Outcome, context: &mut Context<'_>) {
        let answers = &self.sides[self.requests.other().index()];
        if answers.at == At::UntilClose
            && outcome == Outcome::Closed
            && let Some(mut exchange) = self.pending.pop_front()
        {
            exchange.response.end = Some(context.time);
            exchange.outcome = Outcome::Complete;
            context.done.push(exchange);
        }
        self.give_up(outcome, context);
    }

    fn give_up(&mut self, outcome: Outcome, context: &mut Context<'_>) {
        for mut exchange in self.pending.drain(..) {
            exchange.outcome = outcome;
            context.done.push(exchange);
        }
    }

    /// From here on nobody knows where messages start, nor which answer is to which request. If the
    /// client does not send a request before the last one's answer, that can be told again later.
    fn lose(&mut self, request: bool, outcome: Outcome, context: &mut Context<'_>) {
        let direction = if request {
            self.requests
        } else {
            self.requests.other()
        };
        self.sides[direction.index()].go(At::Lost);
        if self.pipelines {
            self.sides.iter_mut().for_each(|side| side.go(At::Over));
        }
        self.give_up(outcome, context);
        self.answered_early = true;
    }

    /// The message under way.
    fn message(&mut self, request: bool) -> Option<&mut super::Message> {
        if !request {
            return self.pending.front_mut().map(|one| &mut one.response);
        }
        if self.answered_early {
            return None;
        }
        self.pending.back_mut().map(|one| &mut one.request)
    }

    fn body(&mut self, request: bool, bytes: &[u8], context: &Context<'_>) {
        let most = context.keep;
        if let Some(message) = self.message(request) {
            message.body.push(bytes, most);
        }
    }

    /// So much is left of a body or a chunk.
    fn advance(&mut self, request: bool, side: usize, left: u64, context: &mut Context<'_>) {
        let next = match self.sides[side].at {
            At::Chunk(_) if left == 0 => At::ChunkEnd,
            At::Chunk(_) => At::Chunk(left),
            _ if left == 0 => return self.message_end(request, side, context),
            _ => At::Body(left),
        };
        self.sides[side].go(next);
    }

    fn head(
        &mut self,
        request: bool,
        side: usize,
        bytes: &[u8],
        context: &mut Context<'_>,
    ) -> usize {
        if self.sides[side].line.is_empty() && request {
            self.request_starts(context);
        } else if self.sides[side].line.is_empty() {
            self.answer_starts(context);
        }
        if self.sides[side].at == At::Over {
            return bytes.len();
        }
        let (used, whole) = self.sides[side].take_lines(bytes, true);
        if !whole {
            if self.sides[side].line.len() > LONGEST_HEAD {
                self.lose(request, Outcome::Malformed, context);
            }
            return used;
        }
        let line = std::mem::take(&mut self.sides[side].line);
        let start = line.iter().position(|byte| !byte.is_ascii_whitespace());
        match head::parse(&line[start.unwrap_or(0)..], request, context.show_secrets) {
            Some(head) if request => self.request_head(head, side, context),
            Some(head) => self.answer_head(head, side, context),
            None => self.lose(request, Outcome::Malformed, context),
        }
        used
    }

    fn request_starts(&mut self, context: &mut Context<'_>) {
        if self.sides[self.requests.other().index()].at == At::Lost {
            // The last one's answer has come, and was not seen.
            self.give_up(Outcome::Gap, context);
        }
        self.pipelines |= !self.pending.is_empty();
        if self.pending.len() >= MOST_PENDING {
            // The answers are not read, or not seen.
            return self.lose(true, Outcome::Open, context);
        }
        let mut exchange = context.exchange(self.requests, "1.1");
        exchange.request.start = Some(context.start(self.requests));
        self.pending.push_back(exchange);
        self.answered_early = false;
    }

    fn answer_starts(&mut self, context: &mut Context<'_>) {
        if self.pending.is_empty() {
            // Its request was not seen.
            let exchange = context.exchange(self.requests, "1.1");
            self.pending.push_back(exchange);
            self.answered_early = true;
        }
        if let Some(exchange) = self.pending.front_mut() {
            exchange.response.start = Some(context.start(self.requests.other()));
        }
    }

    fn request_head(&mut self, head: Head, side: usize, context: &mut Context<'_>) {
        let exchange = self.pending.back_mut().filter(|_| !self.answered_early);
        let Some(exchange) = exchange else {
            // Answered before it was at its end.
            return self.sides[side].go(At::Lost);
        };
        exchange.version = head.version;
        head.fields
            .into_iter()
            .for_each(|field| exchange.request.add(field));
        if let StartLine::Request { method, host, path } = head.line {
            let message = &mut exchange.request;
            exchange.method = message.afford(method);
            exchange.host = host.and_then(|host| message.afford(host));
            exchange.path = message.afford(path);
        }
        // A request has a body only if it says so, and no end of the connection ends it.
        match head.length {
            None => self.message_end(true, side, context),
            Some(length) => self.start_body(true, side, length, context),
        }
    }

    fn answer_head(&mut self, head: Head, side: usize, context: &mut Context<'_>) {
        let Some(exchange) = self.pending.front_mut() else {
            return self.sides[side].go(At::Lost);
        };
        let StartLine::Response { status, reason } = head.line else {
            return;
        };
        if (100..200).contains(&status) && status != 101 {
            // The answer is still to come.
            return self.sides[side].go(At::Head);
        }
        exchange.version = head.version;
        (exchange.status, exchange.reason) = (Some(status), reason);
        head.fields
            .into_iter()
            .for_each(|field| exchange.response.add(field));
        let method = exchange.method.as_deref();
        if status == 101 || method == Some("CONNECT") && (200..300).contains(&status) {
            exchange.response.end = Some(context.time);
            exchange.outcome = Outcome::Upgraded;
            context.done.extend(self.pending.pop_front());
            self.give_up(Outcome::Closed, context);
            self.sides.iter_mut().for_each(|side| side.go(At::Over));
        } else if method == Some("HEAD") || matches!(status, 204 | 304) {
            self.message_end(false, side, context);
        } else if method.is_none() && head.length != Some(Length::Chunked) {
            // An answer to HEAD says how long its body would be: it may be this one.
            let known = matches!(head.length, Some(Length::Known(0)));
            if known {
                self.message_end(false, side, context);
            } else {
                self.lose(false, Outcome::Gap, context);
            }
        } else {
            self.start_body(
                false,
                side,
                head.length.unwrap_or(Length::UntilClose),
                context,
            );
        }
    }

    fn start_body(
        &mut self,
        request: bool,
        side: usize,
        length: Length,
        context: &mut Context<'_>,
    ) {
        match length {
            Length::Known(0) => self.message_end(request, side, context),
            Length::Known(length) => self.sides[side].go(At::Body(length)),
            Length::Chunked => self.sides[side].go(At::ChunkLine),
            Length::UntilClose => self.sides[side].go(At::UntilClose),
        }
    }

    fn chunk_line(
        &mut self,
        request: bool,
        side: usize,
        bytes: &[u8],
        context: &mut Context<'_>,
    ) -> usize {
        let (used, whole) = self.sides[side].take_lines(bytes, false);
        let too_long = self.sides[side].line.len() > LONGEST_CHUNK_LINE;
        if whole {
            match httparse::parse_chunk_size(&self.sides[side].line) {
                Ok(httparse::Status::Complete((_, 0))) => self.sides[side].go(At::Trailer),
                Ok(httparse::Status::Complete((_, size))) => self.sides[side].go(At::Chunk(size)),
                _ => self.lose(request, Outcome::Malformed, context),
            }
        } else if too_long {
            self.lose(request, Outcome::Malformed, context);
        }
        used
    }

    fn trailer(
        &mut self,
        request: bool,
        side: usize,
        bytes: &[u8],
        context: &mut Context<'_>,
    ) -> usize {
        let (used, whole) = self.sides[side].take_lines(bytes, true);
        if whole {
            self.message_end(request, side, context);
        } else if self.sides[side].line.len() > LONGEST_HEAD {
            self.lose(request, Outcome::Malformed, context);
        }
        used
    }

    fn message_end(&mut self, request: bool, side: usize, context: &mut Context<'_>) {
        self.sides[side].go(At::Head);
        if let Some(message) = self.message(request) {
            message.end = Some(context.time);
        }
        if request {
            return;
        }
        if let Some(mut exchange) = self.pending.pop_front() {
            exchange.outcome = Outcome::Complete;
            // What is left of its request belongs to nothing.
            self.answered_early = self.pending.is_empty();
            context.done.push(exchange);
        }
    }
}
