// SPDX-License-Identifier: BSD-2-Clause

//! Packets in, lines out.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use time::OffsetDateTime;

use super::answers::{self, Answered, Answers};
use super::callers::{Callers, Version};
use super::capture;
use super::ends::{Ends, who};
use super::event::{Caller, Lost, Seen};
use super::flow::{self, Flows, Found};
use super::guard::{Change, Guard};
use super::live::{self, Live};
use super::names::Names;
use super::owners::Owners;
use super::packet::{self, Packet};
use super::permitted::Permitted;
use super::plan::{self, Finding, Plan};
use super::program::{self, Watch};
use super::request::{Request, salvage};
use super::scan::{self, Scans};
use super::watchlist::Watchlist;
use crate::kernel::packet_socket::Received;
use crate::kernel::stop::Stop;
use crate::output::{Event as _, Line, Stdout};
use crate::process::Identity;

/// What becomes of requests.
#[derive(Debug, Default)]
pub struct Options {
    /// Requests without a finding are shown as well.
    pub all: bool,
    /// A table at the end in the place of lines.
    pub summary: bool,
    /// Command lines are shown with what may be secret in them.
    pub show_secrets: bool,
    /// The functions that opened a connection are named.
    pub stacks: bool,
    /// Where the packets of what is told about go.
    pub capture: capture::Kept,
    /// The guard whose policy is the plan's.
    pub guard: Option<Guard>,
}

/// What is kept of a packet until its request is whole and answered.
#[derive(Debug, Clone)]
struct Meta {
    time: OffsetDateTime,
    interface: i32,
    ack: u32,
    caller: Caller,
    packets: Vec<Rc<capture::Packet>>,
}

/// Packets of one request that are kept for a capture,
const MOST_PACKETS: usize = 256;
/// and their bytes.
const MOST_PACKET_BYTES: usize = 256 << 10;

impl flow::Meta for Meta {
    fn absorb(&mut self, later: &Self) {
        if self.packets.len() < MOST_PACKETS && self.held() < MOST_PACKET_BYTES {
            self.packets.extend(later.packets.iter().cloned());
        }
    }

    fn held(&self) -> usize {
        self.packets.iter().map(|packet| packet.bytes.len()).sum()
    }
}

/// The reader, with all that it remembers.
#[derive(Debug)]
pub struct Reader<'p> {
    plan: &'p Plan,
    list: &'p Watchlist,
    options: Options,
    permitted: Option<Permitted>,
    flows: Flows<'p, Meta>,
    answers: Answers<Found<Meta>>,
    scans: Scans,
    callers: Callers,
    owners: Owners,
    names: Names,
    view: Option<Live>,
    delivered: u64,
    answered: u64,
    requests: u64,
    lost: u64,
}

/// How often the sockets are asked what they lost, while there are packets.
const LOSS: Duration = Duration::from_secs(1);
/// How often there is a look at what waits for an answer.
const LOOK: Duration = Duration::from_millis(500);
/// Packets that are read before the reader looks at signals again.
const BATCH: usize = 1024;

impl<'p> Reader<'p> {
    /// One that has read nothing yet.
    pub fn new(plan: &'p Plan, list: &'p Watchlist, options: Options) -> Self {
        Self {
            plan,
            list,
            owners: Owners::new(options.show_secrets, options.stacks),
            permitted: plan.permitted.clone(),
            options,
            flows: Flows::new(list),
            answers: Answers::default(),
            scans: Scans::new(plan.window),
            callers: Callers::default(),
            names: Names::default(),
            view: None,
            delivered: 0,
            answered: 0,
            requests: 0,
            lost: 0,
        }
    }

    /// Takes the terminal over; everything that is shown is on the screen from now on.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn open_view(&mut self, color: bool) -> io::Result<()> {
        self.view = Some(Live::open(color)?);
        Ok(())
    }

    /// Gives the terminal back.
    pub fn close_view(&mut self) {
        self.view = None;
    }

    /// Reads until it is told to stop.
    ///
    /// # Errors
    /// Those of sockets and output, and that no interface is left.
    pub fn follow(
        &mut self,
        watch: &mut Watch<'_>,
        interfaces: &[(i32, String)],
        stop: &Stop,
        sink: &mut Stdout,
    ) -> Result<()> {
        let mut buffer = program::buffer();
        // When to ask for lost packets, if there were any at all.
        let mut ask: Option<Instant> = None;
        // The kernel tells when an interface goes down, and not when it is then removed.
        let mut was_down = false;
        let keys = io::stdin();
        loop {
            if let Some(view) = &mut self.view
                && view.tick(&self.callers, self.lost)?
            {
                return Ok(());
            }
            let frame = self.view.as_ref().map(|_| live::FRAME);
            let sources: Vec<_> = watch
                .sockets()
                .iter()
                .map(|socket| socket.as_fd())
                .chain(self.options.guard.as_ref().and_then(Guard::fd))
                .chain(self.view.as_ref().map(|_| keys.as_fd()))
                .collect();
            let patience = (!self.flows.is_empty()).then_some(flow::PATIENCE / 4);
            let look = (!self.answers.is_empty()).then_some(LOOK);
            let until = ask.map(|at| at.saturating_duration_since(Instant::now()));
            let retry = was_down.then_some(LOSS);
            let waits = [patience, look, until, retry, frame];
            let woken = stop.wait(&sources, waits.into_iter().flatten().min())?;
            if woken.stopped {
                return Ok(());
            }
            let heard = self.options.guard.as_ref().and_then(Guard::fd);
            let is_heard = heard.is_some() && woken.ready[watch.sockets().len()];
            // A socket has no packet though it is ready where its interface is down or gone.
            for (socket, ready) in watch.sockets().iter().zip(woken.ready) {
                let before = self.delivered;
                for _ in 0..BATCH {
                    let Some(received) = socket.receive(&mut buffer)? else {
                        break;
                    };
                    self.packet(watch, received, &buffer, sink)?;
                }
                was_down |= ready && self.delivered == before;
                if self.delivered != before && ask.is_none() {
                    ask = Some(Instant::now() + LOSS);
                }
            }
            if ask.is_some_and(|at| Instant::now() >= at) {
                ask = None;
                self.lose(watch.dropped()?, sink)?;
            }
            if is_heard {
                self.heed(watch, sink)?;
            }
            if was_down {
                self.let_go(watch, interfaces, sink)?;
            }
            let given_up = self.flows.expire(Instant::now());
            self.show_all(given_up, sink)?;
            let unanswered = self.answers.expire(Instant::now());
            self.show_answered(unanswered, sink)?;
            sink.flush()?;
            self.flush_capture(sink);
        }
    }

    /// Tells how many packets were lost since it was last told; `all` counts from the beginning.
    fn lose(&mut self, all: u64, sink: &mut Stdout) -> Result<()> {
        let packets = all.saturating_sub(self.lost);
        self.lost = all;
        if packets > 0 {
            sink.event(OffsetDateTime::now_utc(), &Lost { packets })?;
        }
        Ok(())
    }

    /// Judges by the guard's policy as it is now.
    fn heed(&mut self, watch: &Watch<'_>, sink: &Stdout) -> Result<()> {
        let Some(guard) = &mut self.options.guard else {
            return Ok(());
        };
        match guard.change() {
            Ok(None) => {}
            Ok(Some(Change::Replaced(permitted))) => {
                watch.know(&self.plan.known(&permitted))?;
                self.permitted = Some(permitted);
                self.note(
                    "the guard has another policy, which counts from now on",
                    sink,
                );
            }
            Ok(Some(Change::Gone)) => {
                self.note("the guard has gone; its last policy goes on counting", sink);
            }
            Err(err) => {
                self.options.guard = None;
                let why = format!("the guard's policy can no longer be followed: {err:#}");
                self.note(&why, sink);
            }
        }
        Ok(())
    }

    /// Tells the person something that is no result.
    fn note(&mut self, text: &str, sink: &Stdout) {
        sink.note(text);
        if let Some(view) = &mut self.view {
            view.note(text);
        }
    }

    /// Goes on without the interfaces that are gone, if any is left.
    fn let_go(
        &mut self,
        watch: &mut Watch<'_>,
        interfaces: &[(i32, String)],
        sink: &mut Stdout,
    ) -> Result<()> {
        for gone in watch.close_gone()? {
            for (_, name) in interfaces.iter().filter(|(index, _)| *index == gone) {
                self.note(&format!("interface {name} is gone"), sink);
            }
        }
        if watch.sockets().is_empty() {
            bail!("there is no interface left to watch");
        }
        Ok(())
    }

    /// Shows what is left, and the summary.
    ///
    /// # Errors
    /// Those of sockets and output.
    pub fn finish(&mut self, watch: &mut Watch<'_>, sink: &mut Stdout) -> Result<()> {
        let mut summary =
            watch.finish(|watch, received, bytes| self.packet(watch, received, bytes, sink))?;
        let unanswered = self.answers.finish();
        self.show_answered(unanswered, sink)?;
        let rest = self.flows.finish();
        self.show_all(rest, sink)?;
        self.lose(summary.lost, sink)?;
        self.flush_capture(sink);
        summary.uncaptured = self.options.capture.missing();
        if self.options.summary {
            let now = OffsetDateTime::now_utc();
            for calls in self.callers.table() {
                sink.event(now, calls)?;
            }
            sink.event(now, &self.callers.verdict(summary.lost))?;
        }
        summary.delivered = self.delivered;
        summary.answers = self.answered;
        summary.requests = self.requests;
        sink.summary(&summary)?;
        Ok(())
    }

    fn packet(
        &mut self,
        watch: &Watch<'_>,
        received: Received,
        buffer: &[u8],
        sink: &mut Stdout,
    ) -> Result<()> {
        self.delivered += 1;
        let bytes = &buffer[..received.length.min(buffer.len())];
        let wanted = |address| self.plan.target(address, None).is_some();
        let packet = packet::decode(bytes, wanted);
        let time = OffsetDateTime::now_utc();
        let mut meta = Meta {
            time,
            interface: received.interface,
            ack: 0,
            caller: Caller::default(),
            packets: Vec::new(),
        };
        if self.options.capture.is_wanted() {
            meta.packets.push(Rc::new(capture::Packet {
                time,
                interface: received.interface,
                bytes: bytes.to_vec(),
                written: Cell::new(false),
            }));
        }
        match packet {
            Packet::Unreadable => {
                let request = salvage(&[], self.list);
                self.print(Ends::Unknown, &meta, request, None, sink)
            }
            Packet::Opaque { src, dst } => {
                let request = salvage(&[], self.list);
                self.print(Ends::Hosts(src, dst), &meta, request, None, sink)
            }
            Packet::Piece {
                src,
                dst,
                seq,
                ends,
                payload,
                ..
            } if self.plan.target(dst.ip(), Some(dst.port())).is_none() => {
                self.answered += 1;
                let key = (dst, src);
                let status = answers::status(payload);
                let mut answered = self.answers.answer(key, seq, status);
                let is_joined = answered.iter().any(|(_, status)| status.is_some());
                if status == Some(scan::NOT_FOUND)
                    && !is_joined
                    && self.answers.is_of_pipelined(key, seq)
                {
                    let caller = self.owners.of(watch, key);
                    self.scans.miss(&who(&caller, dst.ip()), Instant::now());
                }
                if ends {
                    answered.extend(self.answers.close(key));
                }
                self.show_answered(answered, sink)
            }
            Packet::Piece {
                src,
                dst,
                seq,
                ack,
                payload,
                reliable,
                ..
            } => {
                meta.ack = ack;
                meta.caller = self.owners.of(watch, (src, dst));
                let now = Instant::now();
                let found = if !reliable || received.length > buffer.len() {
                    // Of a fragment, or with urgent data in it: what can be read is told.
                    vec![Found {
                        key: (src, dst),
                        meta,
                        request: salvage(payload, self.list),
                    }]
                } else {
                    let piece = flow::Piece {
                        seq,
                        payload,
                        expected: watch.expected(src, dst, seq),
                        interface: received.interface,
                    };
                    self.flows.push((src, dst), piece, meta, now)
                };
                for one in found {
                    let (ack, held) = (one.meta.ack, one.held());
                    let pushed = self.answers.ask(one.key, ack, one, held, now);
                    self.show_answered(pushed, sink)?;
                }
                Ok(())
            }
        }
    }

    fn show_answered(&mut self, all: Vec<Answered<Found<Meta>>>, sink: &mut Stdout) -> Result<()> {
        for (found, status) in all {
            self.show(found, status, sink)?;
        }
        Ok(())
    }

    fn show_all(&mut self, all: Vec<Found<Meta>>, sink: &mut Stdout) -> Result<()> {
        for found in all {
            self.show(found, None, sink)?;
        }
        Ok(())
    }

    fn show(&mut self, found: Found<Meta>, status: Option<u16>, sink: &mut Stdout) -> Result<()> {
        let (src, dst) = found.key;
        let ends = Ends::Sockets(src, dst);
        self.print(ends, &found.meta, found.request, status, sink)
    }

    fn print(
        &mut self,
        ends: Ends,
        meta: &Meta,
        request: Request,
        status: Option<u16>,
        sink: &mut Stdout,
    ) -> Result<()> {
        let target = self
            .plan
            .target(ends.dst(), ends.place().map(|at| at.port()));
        let (endpoint, mask) = target.map_or(("", 0), |one| (one.endpoint.name.as_str(), one.mask));
        let mut findings = plan::findings(&request, mask);
        let version = if findings.contains(&Finding::Imdsv1) {
            Version::One
        } else if plan::has_session(&request) {
            Version::Two
        } else {
            Version::Other
        };
        let rules: Vec<_> = request
            .rules
            .iter()
            .filter_map(|place| self.list.rule(*place))
            .filter(|rule| {
                let (address, port) = (ends.dst(), ends.place().map(|at| at.port()));
                target.is_some_and(|one| rule.is_for(&one.endpoint, address, port))
            })
            .map(|rule| rule.name.clone())
            .collect();
        let identity = &meta.caller.identity;
        let unknown = self.permitted.as_ref().is_some_and(|permitted| {
            let foreign = || Identity {
                uid: None,
                gid: None,
                ..identity.clone()
            };
            let stranger = meta.caller.foreign.then(foreign);
            let identity = stranger.as_ref().unwrap_or(identity);
            let unit = |name: &str| self.owners.unit(name);
            // A packet without ports is of nobody that could be allowed.
            ends.place()
                .is_none_or(|place| !permitted.allows(place, identity, unit))
        });
        let who = who(&meta.caller, ends.src());
        let path = request.path.as_deref();
        let readable = !request.unparsable && path.is_some();
        let scan = self.scans.is_scan(&who, path, status, Instant::now());
        let more = [
            (!rules.is_empty(), Finding::Rule),
            (unknown, Finding::UnknownUser),
            (scan, Finding::Scan),
        ];
        findings.extend(
            more.iter()
                .filter(|(is, _)| *is)
                .map(|(_, finding)| *finding),
        );
        findings.sort_unstable();
        if self.options.summary {
            self.callers
                .add(&meta.caller, version, path, readable, status, meta.time);
        }
        if findings.is_empty() && !self.options.all {
            return Ok(());
        }
        let seen = Seen {
            endpoint: endpoint.to_owned(),
            method: request.method,
            path: request.path,
            query: request.query,
            headers: request.headers,
            findings,
            rules,
            status,
            interface: self.names.of(meta.interface),
            src: ends.texts().0,
            dst: ends.texts().1,
            caller: meta.caller.clone(),
        };
        self.capture(meta, &seen, sink)?;
        if let Some(view) = &mut self.view {
            self.requests += 1;
            view.request(meta.time, seen);
        } else if !self.options.summary {
            self.requests += 1;
            sink.event(meta.time, &seen)?;
        }
        Ok(())
    }

    fn flush_capture(&mut self, sink: &Stdout) {
        if let Some(ended) = self.options.capture.flush() {
            self.note(&ended, sink);
        }
    }

    fn capture(&mut self, meta: &Meta, seen: &Seen, sink: &Stdout) -> Result<()> {
        if !self.options.capture.is_wanted() {
            return Ok(());
        }
        let mut comment = Vec::new();
        seen.text(&mut Line::new(&mut comment, false))?;
        let comment = String::from_utf8_lossy(&comment);
        let capture = &mut self.options.capture;
        let ended = capture.write(&meta.packets, &comment, |index| self.names.of(index));
        if let Some(ended) = ended {
            self.note(&ended, sink);
        }
        Ok(())
    }
}
