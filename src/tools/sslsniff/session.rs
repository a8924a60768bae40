// SPDX-License-Identifier: BSD-2-Clause

//! From records to lines: numbers the connections, says who is at work on them, and masks.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::time::Duration;

use time::OffsetDateTime;

use super::arrivals::Names;
use super::beginning::{self, Beginnings, Whose};
use super::event::{Data, Ends, Facts, Handshake, MadeIn, Negotiated, Shutdown, Trouble};
use super::keylog;
use super::mask::{Masker, hide};
use super::places::Places;
use super::record::{self, Direction, FLAG_GAP, FLAG_LAST, Outcome, Record, What};
use super::views::Views;
use crate::output::{Format, Sink};
use crate::process::Directory;

use connection::{Connection, start_seen};
use subject::Subject;

mod connection;
mod subject;

/// Connections that are remembered; as many as in the kernel.
const MOST_CONNECTIONS: usize = 65536;

/// How records are shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Payload in text is always a hex dump.
    pub hex: bool,
    /// Secrets are shown.
    pub show_secrets: bool,
    /// The time that calls take is shown.
    pub latency: bool,
    /// Where calls were made is shown.
    pub stacks: bool,
}

/// What was shown so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown {
    /// Calls that were shown whole.
    pub calls: u64,
    /// Bytes of payload.
    pub bytes: u64,
    /// Connections.
    pub connections: u64,
    /// Records that made no sense; there are none unless the kernel's side is another version.
    pub malformed: u64,
}

/// What names a connection to the kernel's side: the process, the object, and the time when it was first seen, in
/// nanoseconds since the machine started.
pub type Key = (u32, u64, u64);

/// How many bytes a connection has read and written by what the kernel's side knows, which forgets it then; `None` if
/// that has forgotten it before.
pub type Leftovers = Box<dyn Fn(Key) -> Option<[u64; 2]>>;

/// A run.
pub struct Session<W: Write> {
    sink: Sink<W>,
    style: Style,
    libraries: Names,
    directory: Directory,
    /// In the order of processes, as the next two: to find what ends with one.
    connections: BTreeMap<Key, Connection>,
    /// The latest of those by process and pointer: since when it is known.
    latest: BTreeMap<(u32, u64), u64>,
    /// Whose a socket is that nobody uses within a call, by process.
    sockets: BTreeMap<(u32, u64), Key>,
    beginnings: Beginnings,
    records: u64,
    shown: Shown,
    masked: Vec<u8>,
    /// What of a payload is secret.
    secret: Vec<Range<usize>>,
    views: Views,
    places: Option<Places>,
    leftovers: Option<Leftovers>,
}

impl<W: Write> std::fmt::Debug for Session<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("shown", &self.shown)
            .finish_non_exhaustive()
    }
}

impl<W: Write> Session<W> {
    /// A run that writes to `sink`.
    pub fn new(sink: Sink<W>, style: Style, libraries: Names, directory: Directory) -> Self {
        Self {
            sink,
            style,
            libraries,
            directory,
            connections: BTreeMap::new(),
            latest: BTreeMap::new(),
            sockets: BTreeMap::new(),
            beginnings: Beginnings::default(),
            records: 0,
            shown: Shown::default(),
            masked: Vec::new(),
            secret: Vec::new(),
            views: Views::default(),
            places: style.stacks.then(Places::default),
            leftovers: None,
        }
    }

    /// The same, and asks for what is left of connections whose process is over.
    #[must_use]
    pub fn with_leftovers(self, leftovers: Leftovers) -> Self {
        Self {
            leftovers: Some(leftovers),
            ..self
        }
    }

    /// The same with views.
    #[must_use]
    pub fn with_views(self, views: Views) -> Self {
        Self { views, ..self }
    }

    /// What is made of events besides lines.
    pub fn views(&mut self) -> &mut Views {
        &mut self.views
    }

    /// Sends on what is buffered, of lines and of files.
    ///
    /// # Errors
    /// Those of the writers.
    pub fn flush(&mut self) -> io::Result<()> {
        self.views.flush()?;
        self.sink.flush()
    }

    /// Shows what is under way, and finishes files.
    ///
    /// # Errors
    /// Those of the writers.
    pub fn finish(&mut self) -> io::Result<()> {
        self.views.finish(OffsetDateTime::now_utc(), &mut self.sink)
    }

    /// Where other lines go.
    pub fn sink(&mut self) -> &mut Sink<W> {
        &mut self.sink
    }

    /// What was shown so far.
    pub fn shown(&self) -> Shown {
        self.shown
    }

    /// Shows a record that came at `time`, given the kernel's stamp in it.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn record(
        &mut self,
        bytes: &[u8],
        time: impl FnOnce(u64) -> OffsetDateTime,
    ) -> io::Result<()> {
        let Some(record) = record::decode(bytes) else {
            self.shown.malformed += 1;
            return Ok(());
        };
        let header = &record.header;
        if record.what == What::Exit {
            return self.exit(header.pid, header.time_ns, time(header.time_ns));
        }
        let mut key = (header.pid, header.ssl, header.since_ns);
        self.records += 1;
        if let What::Hello {
            socket,
            direction,
            bytes,
        } = record.what
            && header.ssl == 0
        {
            match self.whose((header.pid, socket), bytes) {
                Some(known) => key = known,
                None => {
                    let whose = Whose::Socket((header.pid, socket));
                    self.beginnings.push(whose, direction, bytes);
                    return Ok(());
                }
            }
        }
        let fresh = !self.connections.contains_key(&key);
        if fresh {
            self.open(key);
        }
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.used = self.records;
            // Also if the record that said so was lost.
            if header.no_peer != 0 {
                connection.subject.set_ends(Ends::default());
            }
            connection.subject.identify(header, &mut self.directory);
            if !record.what.is_aside() {
                connection.subject.name_library(header, &self.libraries);
            }
            if fresh {
                connection.subject.fill(header.pid, &mut self.directory);
                if let Some(places) = &mut self.places {
                    places.meet(header.pid);
                }
            }
        }
        self.show(key, &record, time(header.time_ns))?;
        if record.what == What::Close {
            self.forget(key);
        }
        if header.flags & FLAG_LAST != 0 && header.flags & FLAG_GAP == 0 {
            self.shown.calls += 1;
        }
        Ok(())
    }

    /// The process is over, or another program: its connections are closed.
    fn exit(&mut self, pid: u32, now_ns: u64, time: OffsetDateTime) -> io::Result<()> {
        let all = (pid, 0, 0)..=(pid, u64::MAX, u64::MAX);
        let keys: Vec<Key> = self.connections.range(all).map(|(key, _)| *key).collect();
        for key in keys {
            let left = self.leftovers.as_ref().and_then(|leftovers| leftovers(key));
            let Some(connection) = self.connections.get(&key) else {
                continue;
            };
            let [read, written] =
                left.unwrap_or_else(|| connection.next.map(Option::unwrap_or_default));
            let close = connection.close(read, written, now_ns.saturating_sub(key.2), true);
            if self.views.close(time, &close, &mut self.sink)? {
                self.sink.event(time, &close)?;
            }
            self.forget(key);
        }
        Ok(())
    }

    fn forget(&mut self, key: Key) {
        let (pid, ssl, since) = key;
        let socket = self.connections.remove(&key).and_then(|one| one.socket);
        if let Some(socket) = socket {
            self.sockets.remove(&(pid, socket));
        }
        self.beginnings.forget(Whose::Connection(key));
        if self.latest.get(&(pid, ssl)) == Some(&since) {
            self.latest.remove(&(pid, ssl));
        }
    }

    /// Whose a piece is that passed a socket while no call was under way. A client's hello begins another
    /// connection on a socket of that number.
    fn whose(&mut self, socket: (u32, u64), bytes: &[u8]) -> Option<Key> {
        if beginning::is_client_hello(bytes) {
            self.sockets.remove(&socket);
            self.beginnings.forget(Whose::Socket(socket));
        }
        let key = self.sockets.get(&socket)?;
        self.connections.contains_key(key).then_some(*key)
    }

    fn open(&mut self, key: Key) {
        if self.connections.len() >= MOST_CONNECTIONS {
            // Processes that ended without freeing theirs: the half that was not used for longest
            // is forgotten.
            let mut used: Vec<_> = self.connections.values().map(|one| one.used).collect();
            let (_, middle, _) = used.select_nth_unstable(MOST_CONNECTIONS / 2);
            let middle = *middle;
            self.connections.retain(|_, one| one.used > middle);
            let connections = &self.connections;
            self.latest
                .retain(|(pid, ssl), since| connections.contains_key(&(*pid, *ssl, *since)));
            self.sockets.retain(|_, key| connections.contains_key(key));
        }
        // The kernel's side forgets too when it has to make room, and then counts from 0 again, in the
        // midst of what passes: as long as no handshake is seen, this goes on where the last one was.
        let (pid, ssl, since) = key;
        let last = self.latest.insert((pid, ssl), since);
        let last = last.and_then(|since| self.connections.get(&(pid, ssl, since)));
        let mut maskers = last.map_or_else(Default::default, |last| last.maskers.clone());
        // So may a connection that was open before.
        maskers.iter_mut().for_each(Masker::restart);
        self.shown.connections += 1;
        let connection = Connection {
            subject: Subject::new(self.shown.connections),
            maskers,
            ..Connection::default()
        };
        self.connections.insert(key, connection);
    }

    fn show(&mut self, key: Key, record: &Record<'_>, time: OffsetDateTime) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Ok(());
        };
        let header = &record.header;
        let library = connection.subject.library();
        let made = match (&mut self.places, record.what) {
            (Some(places), What::Stack { stack }) => {
                places.keep(header, stack);
                return Ok(());
            }
            (Some(places), What::Data { function, .. } | What::Handshake { function, .. }) => {
                places.take(header, function, library)
            }
            _ => MadeIn::default(),
        };
        match record.what {
            What::Stack { .. } | What::Exit => Ok(()),
            What::Handshake { function, outcome } => {
                let done = outcome == Outcome::Done;
                connection.untold = false;
                if done {
                    start_seen(connection.next, &mut connection.maskers);
                    connection.trouble = Trouble::default();
                    connection.troubled = false;
                    // Agreed upon anew, and nobody saw what: renegotiation is encrypted.
                    if std::mem::replace(&mut connection.done, true) {
                        let sni = connection.facts.sni.take();
                        connection.facts = Facts {
                            sni,
                            ..Facts::default()
                        };
                        connection.random = None;
                    }
                }
                let event = Handshake {
                    function: function.name(),
                    library: library.map(|path| &**path),
                    connection: connection.subject.number(),
                    result: if done { "ok" } else { "failed" },
                    duration_ns: header.duration_ns,
                    facts: &connection.facts,
                    trouble: &connection.trouble,
                    made,
                    ends: connection.subject.ends(),
                    who: connection.subject.who(),
                };
                if done && !self.views.shows_steps() {
                    return Ok(());
                }
                self.sink.event(time, &event)
            }
            What::Peer {
                local,
                peer,
                via,
                socket,
            } => {
                connection.subject.set_ends(Ends {
                    local: Some(local.to_string()),
                    peer: Some(peer.to_string()),
                    peer_via: Some(via),
                });
                if via != "ciphertext" {
                    return Ok(());
                }
                connection.socket = Some(socket);
                let socket = (header.pid, socket);
                self.sockets.insert(socket, key);
                match self.beginnings.claim(socket, key) {
                    Some(known) => connection.begun(known, &mut self.views),
                    None => Ok(()),
                }
            }
            What::NoPeer => {
                connection.subject.set_ends(Ends::default());
                Ok(())
            }
            What::Hello {
                direction, bytes, ..
            } => {
                let whose = Whose::Connection(key);
                let known = self.beginnings.push(whose, direction, bytes);
                if known.random.is_some() || known.facts.version.is_some() {
                    start_seen(connection.next, &mut connection.maskers);
                }
                connection.begun(known, &mut self.views)
            }
            What::Error { reason, boring } => {
                // What follows comes of that, as the complaint about a shutdown before the handshake is done.
                if !std::mem::replace(&mut connection.troubled, true) {
                    connection.trouble.reason(reason, boring);
                }
                Ok(())
            }
            What::Secret { derived } => match keylog::key_of(derived) {
                Some(key) => {
                    let random = connection.random;
                    self.views.key(key, random, &mut connection.keys)
                }
                None => Ok(()),
            },
            What::Fact { function, text } => {
                if !connection.learn(function, text) || !self.views.shows_steps() {
                    return Ok(());
                }
                connection.untold = false;
                let event = Negotiated {
                    connection: connection.subject.number(),
                    facts: &connection.facts,
                    ends: connection.subject.ends(),
                    who: connection.subject.who(),
                };
                self.sink.event(time, &event)
            }
            What::Shutdown { .. } if !self.views.shows_steps() => Ok(()),
            What::Shutdown { function, both } => {
                let event = Shutdown {
                    function: function.name(),
                    connection: connection.subject.number(),
                    result: if both { "both" } else { "sent" },
                    ends: connection.subject.ends(),
                    who: connection.subject.who(),
                };
                self.sink.event(time, &event)
            }
            What::Close => {
                let (read, written) = (header.offset, header.length);
                let event = connection.close(read, written, header.duration_ns, false);
                if self.views.close(time, &event, &mut self.sink)? {
                    self.sink.event(time, &event)?;
                }
                Ok(())
            }
            What::Data {
                function,
                direction,
                payload,
                repeated,
            } => {
                let side = match direction {
                    Direction::Read => 0,
                    Direction::Write => 1,
                };
                // Without a call for the handshake: it was done by reading or writing.
                if std::mem::take(&mut connection.untold) && self.views.shows_steps() {
                    let event = Negotiated {
                        connection: connection.subject.number(),
                        facts: &connection.facts,
                        ends: connection.subject.ends(),
                        who: connection.subject.who(),
                    };
                    self.sink.event(time, &event)?;
                }
                // A connection's first byte is at 0, whenever it was first seen.
                let expected = connection.next[side].unwrap_or(0);
                let missing = header
                    .offset
                    .checked_sub(expected)
                    .filter(|missing| *missing > 0 && !repeated);
                let starts =
                    header.flags & FLAG_GAP == 0 && (!connection.within[side] || missing.is_some());
                self.secret.clear();
                if !self.style.show_secrets {
                    let masker = &mut connection.maskers[side];
                    // What is read again goes on where this began.
                    let mut peeking = repeated.then(|| masker.clone());
                    let masker = peeking.as_mut().unwrap_or(masker);
                    masker.find(header.offset, payload, starts, &mut self.secret);
                }
                let masked = !self.secret.is_empty();
                let mut bytes = payload;
                if masked {
                    self.masked.clear();
                    self.masked.extend_from_slice(payload);
                    hide(&mut self.masked, &self.secret);
                    bytes = &self.masked;
                }
                if !repeated {
                    connection.next[side] = Some(header.offset.wrapping_add(header.length));
                    connection.within[side] = header.flags & FLAG_LAST == 0;
                }
                if self.sink.settings().format == Format::Json {
                    connection.subject.write_fields()?;
                }
                let event = Data {
                    direction: direction.name(),
                    function: function.name(),
                    library: connection.subject.library().map(|path| &**path),
                    connection: connection.subject.number(),
                    offset: header.offset,
                    length: header.length,
                    captured: header.captured,
                    missing,
                    duration_ns: self.style.latency.then_some(header.duration_ns),
                    took: Duration::from_nanos(header.duration_ns),
                    repeated,
                    masked,
                    made,
                    common: connection.subject.fields(),
                    ends: connection.subject.ends(),
                    who: connection.subject.who(),
                    bytes,
                    raw: payload,
                    starts,
                    hex: self.style.hex,
                };
                self.shown.bytes += u64::from(header.captured);
                if self.views.data(time, &event, &mut self.sink)? {
                    self.sink.event(time, &event)?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
