// SPDX-License-Identifier: BSD-2-Clause

//! An exchange: a request and its answer, as far as they were seen.

use std::cell::Cell;
use std::io::{self, Write as _};
use std::rc::Rc;

use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use super::super::event::Ends;
use super::super::mask::Lines;
use super::super::record::Direction;
use crate::output::{Event, Line, Printable, Style};
use crate::process::Identity;

/// The status codes of gRPC, in their order
/// (<https://grpc.github.io/grpc/core/md_doc_statuscodes.html>).
const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A header, or a pseudo-header of HTTP/2 without its colon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// As it was sent; HTTP/2 has lower case only. Empty where it is not known, because it refers
    /// to one that was sent before the connection was watched.
    pub name: String,
    /// Masked, if it is secret and secrets are not wanted.
    pub value: String,
}

/// How many bytes of messages may be kept at once in a run: what peers send is not to fill the memory.
/// What there is no room for is left out, as if it were not known.
#[derive(Debug, Clone, Default)]
pub struct Budget(Rc<Cell<usize>>);

impl Budget {
    /// Room for so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Rc::new(Cell::new(bytes)))
    }

    /// Bytes that may still be kept.
    pub fn left(&self) -> usize {
        self.0.get()
    }
}

/// Headers and trailers of a message; servers take some 100.
const MOST_FIELDS: usize = 256;

/// What follows a head.
#[derive(Debug, Default)]
pub struct Body {
    /// Its first bytes, as many as are kept.
    kept: Vec<u8>,
    /// Bytes of it, those that were lost included, without the framing of chunks and frames.
    pub length: u64,
    /// Bytes of it that were lost or not captured.
    pub missing: u64,
    /// Messages of gRPC in it.
    pub messages: u64,
    /// Bytes that headers and the like take.
    taken: usize,
    /// What masks the kept bytes, if that is wanted.
    secrets: Option<Lines>,
    /// Where the kept bytes are taken from.
    budget: Budget,
}

impl Body {
    /// An empty one, of which secrets are masked as everywhere, or shown.
    pub fn new(budget: &Budget, show_secrets: bool) -> Self {
        let mut body = Self::default();
        body.budget = budget.clone();
        body.secrets = (!show_secrets).then(Lines::default);
        body
    }

    /// The bytes that were kept: the first, up to the first that is missing.
    pub fn kept(&self) -> &[u8] {
        &self.kept
    }

    /// Whether all of it was kept.
    pub fn is_whole(&self) -> bool {
        self.kept.len() as u64 == self.length
    }

    /// More of it; `most` bytes are kept in all.
    pub(in super::super) fn push(&mut self, bytes: &[u8], most: usize) {
        if self.is_whole() {
            let left = self.budget.0.get();
            let room = most.saturating_sub(self.kept.len()).min(left);
            let taken = bytes.len().min(room);
            self.budget.0.set(left - taken);
            let before = self.kept.len();
            self.kept.extend_from_slice(&bytes[..taken]);
            if let Some(secrets) = &mut self.secrets {
                secrets.mask(&mut self.kept[before..]);
            }
        }
        self.length = self.length.saturating_add(bytes.len() as u64);
    }

    /// Takes so many bytes for something else; says whether there was room.
    fn take(&mut self, bytes: usize) -> bool {
        let left = self.budget.0.get().checked_sub(bytes);
        if let Some(left) = left {
            self.budget.0.set(left);
            self.taken += bytes;
        }
        left.is_some()
    }

    /// Bytes of it that are missing.
    pub(super) fn skip(&mut self, missing: u64) {
        // The program says how much, and may say anything.
        self.length = self.length.saturating_add(missing);
        self.missing = self.missing.saturating_add(missing);
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let all = self.kept.len() + self.taken;
        self.budget.0.set(self.budget.0.get() + all);
    }
}

/// One of the two messages. What is not known is absent.
#[derive(Debug, Default)]
pub struct Message {
    /// When its first byte passed.
    pub start: Option<OffsetDateTime>,
    /// When its last byte passed.
    pub end: Option<OffsetDateTime>,
    /// Headers and, at the end, trailers.
    pub fields: Vec<Field>,
    /// The body.
    pub body: Body,
}

impl Message {
    /// Adds a field, if there is room.
    pub(super) fn add(&mut self, field: Field) {
        if self.fields.len() >= MOST_FIELDS {
            return;
        }
        let size = size_of::<Field>() + field.name.len() + field.value.len();
        if self.body.take(size) {
            self.fields.push(field);
        }
    }

    /// `text`, if there is room for it.
    pub(super) fn afford(&mut self, text: String) -> Option<String> {
        self.body.take(text.len()).then_some(text)
    }

    /// The value of the first field of this name, in lower case.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let field = fields.find(|field| field.name.eq_ignore_ascii_case(name))?;
        Some(&field.value)
    }
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer was seen to its end.
    Complete,
    /// The connection went on as something else: a WebSocket, or a tunnel.
    Upgraded,
    /// One side gave the stream up, for a reason that HTTP/2 has a number for (RFC 9113, section 7).
    Reset(u32),
    /// The connection ended before the answer did.
    Closed,
    /// What passed cannot be told any more, as bytes of it are missing.
    Gap,
    /// What passed is not HTTP.
    Malformed,
    /// It was under way when the run ended, or when too many were.
    Open,
}

impl Outcome {
    /// The name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Upgraded => "upgraded",
            Self::Reset(_) => "reset",
            Self::Closed => "closed",
            Self::Gap => "gap",
            Self::Malformed => "malformed",
            Self::Open => "open",
        }
    }
}

/// A request and its answer. What is not known is absent.
#[derive(Debug)]
pub struct Exchange {
    /// The connection's number in this run.
    pub connection: u64,
    /// The program whose calls were seen.
    pub who: Identity,
    /// The connection's ends, as they were known when it started.
    pub ends: Ends,
    /// Where the request went, seen from the program.
    pub direction: Direction,
    /// The number of the stream, in HTTP/2.
    pub stream: Option<u32>,
    /// `1.0`, `1.1` or `2`.
    pub version: &'static str,
    /// `GET` and others.
    pub method: Option<String>,
    /// Host and, if it was given, port.
    pub host: Option<String>,
    /// Path and query, the values of secret parameters masked.
    pub path: Option<String>,
    /// 100 to 999.
    pub status: Option<u16>,
    /// The text after the status, which HTTP/2 has not.
    pub reason: Option<String>,
    /// The request.
    pub request: Message,
    /// The answer.
    pub response: Message,
    /// How it ended.
    pub outcome: Outcome,
}

impl Exchange {
    /// The message that goes in this direction.
    pub(super) fn message_mut(&mut self, direction: Direction) -> &mut Message {
        if direction == self.direction {
            &mut self.request
        } else {
            &mut self.response
        }
    }

    /// When it started: its first byte that was seen.
    pub fn start(&self) -> Option<OffsetDateTime> {
        self.request.start.or(self.response.start)
    }

    /// Nanoseconds from the request's first byte to the answer's last.
    pub fn duration_ns(&self) -> Option<u64> {
        span(self.request.start, self.response.end)
    }

    /// Nanoseconds from the request's first byte to the answer's first.
    pub fn wait_ns(&self) -> Option<u64> {
        span(self.request.start, self.response.start)
    }

    /// The status of gRPC, from the trailers.
    pub fn grpc_status(&self) -> Option<u32> {
        self.response.field("grpc-status")?.parse().ok()
    }

    /// Whether it is a call of gRPC.
    pub fn is_grpc(&self) -> bool {
        let of = |message: &Message| {
            message
                .field("content-type")
                .is_some_and(|kind| kind.starts_with("application/grpc"))
        };
        of(&self.request) || of(&self.response)
    }

    fn line(&self) -> Http<'_> {
        let grpc = self.is_grpc();
        let missing = |body: &Body| (body.missing > 0).then_some(body.missing);
        Http {
            connection: self.connection,
            role: match self.direction {
                Direction::Write => "client",
                Direction::Read => "server",
            },
            version: self.version,
            stream: self.stream,
            method: self.method.as_deref(),
            host: self.host.as_deref(),
            path: self.path.as_deref(),
            status: self.status,
            grpc_status: self.grpc_status(),
            outcome: self.outcome.name(),
            reset_code: match self.outcome {
                Outcome::Reset(code) => Some(code),
                _ => None,
            },
            duration_ns: self.duration_ns(),
            wait_ns: self.wait_ns(),
            request_bytes: self.request.start.map(|_| self.request.body.length),
            response_bytes: self.response.start.map(|_| self.response.body.length),
            request_missing: missing(&self.request.body),
            response_missing: missing(&self.response.body),
            request_messages: grpc.then_some(self.request.body.messages),
            response_messages: grpc.then_some(self.response.body.messages),
            ends: &self.ends,
            who: &self.who,
        }
    }
}

/// Nanoseconds from one to the other; none, if a clock went back.
fn span(from: Option<OffsetDateTime>, to: Option<OffsetDateTime>) -> Option<u64> {
    u64::try_from((to? - from?).whole_nanoseconds()).ok()
}

/// The line of an exchange.
#[derive(Serialize)]
struct Http<'a> {
    connection: u64,
    role: &'static str,
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u32>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reset_code: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_missing: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_missing: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_messages: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_messages: Option<u64>,
    #[serde(flatten)]
    ends: &'a Ends,
    #[serde(flatten)]
    who: &'a Identity,
}

impl Serialize for Exchange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.line().serialize(serializer)
    }
}

/// What stands for a value that is not known, as the table of headers that it refers to was made
/// before the connection was watched, or was lost.
const UNKNOWN: &str = "?";

impl Event for Exchange {
    fn kind(&self) -> &'static str {
        "http"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        super::super::event::subject(line, &self.who, self.connection)?;
        self.ends.text(line)?;
        let (style, arrow) = match self.direction {
            Direction::Read => (Style::Good, "<-"),
            Direction::Write => (Style::Note, "->"),
        };
        let method = self.method.as_deref().unwrap_or(UNKNOWN);
        line.styled(style, format_args!("{arrow} {}", Printable(method)))?;
        let host = self.host.as_deref().unwrap_or(UNKNOWN);
        let path = self.path.as_deref().unwrap_or(UNKNOWN);
        write!(line, " {} {}", Printable(host), Printable(path))?;
        match self.status {
            Some(status) => {
                let style = match status {
                    400.. => Style::Bad,
                    300..=399 => Style::Note,
                    _ => Style::Good,
                };
                line.write_all(b" ")?;
                line.styled(style, status)?;
            }
            None if self.response.start.is_some() => write!(line, " {UNKNOWN}")?,
            None => line.styled(Style::Bad, " no answer")?,
        }
        if let Some(code) = self.grpc_status() {
            let name = usize::try_from(code)
                .ok()
                .and_then(|at| GRPC_CODES.get(at).copied());
            let style = if code == 0 { Style::Good } else { Style::Bad };
            line.styled(
                style,
                format_args!(" grpc {}", name.unwrap_or("of no known status")),
            )?;
        }
        #[allow(clippy::cast_precision_loss)]
        if let Some(duration) = self.duration_ns() {
            write!(line, " {:.3} ms", duration as f64 / 1e6)?;
        }
        for (name, message) in [("request", &self.request), ("answer", &self.response)] {
            if message.start.is_some() {
                write!(line, ", {name} {} bytes", message.body.length)?;
            }
            if message.body.missing > 0 {
                line.styled(
                    Style::Bad,
                    format_args!(" ({} not seen)", message.body.missing),
                )?;
            }
        }
        match self.outcome {
            Outcome::Complete => Ok(()),
            Outcome::Upgraded => write!(line, ", goes on as something else"),
            Outcome::Reset(code) => line.styled(Style::Bad, format_args!(", reset with {code}")),
            Outcome::Closed => line.styled(Style::Bad, ", closed before its end"),
            Outcome::Gap => line.styled(Style::Bad, ", the rest is not known: bytes are missing"),
            Outcome::Malformed => line.styled(Style::Bad, ", the rest is no HTTP"),
            Outcome::Open => line.styled(Style::Dim, ", still under way"),
        }
    }
}

/// A connection that has ended and in which no HTTP was found.
#[derive(Debug, Serialize)]
pub struct NotHttp<'a> {
    /// The connection's number in this run.
    pub connection: u64,
    /// Bytes that were read.
    pub read: u64,
    /// Bytes that were written.
    pub written: u64,
    /// The program.
    #[serde(flatten)]
    pub who: &'a Identity,
}

impl Event for NotHttp<'_> {
    fn kind(&self) -> &'static str {
        "not-http"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        super::super::event::subject(line, self.who, self.connection)?;
        line.styled(Style::Dim, "no HTTP")?;
        write!(line, ", {} bytes read, {} written", self.read, self.written)
    }
}
