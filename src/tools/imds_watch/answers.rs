// SPDX-License-Identifier: BSD-2-Clause

//! Joins answers to requests: what was asked waits until the status is there, or until it is plain
//! that none will be.
//!
//! A request says how far its sender has read (`ack`), and its answer begins there. Of requests that
//! were sent before the answers to earlier ones had come (pipelined), only the first is joined: where
//! the next answer begins is not known without reading the body before. That an answer belongs to one
//! of the others is known all the same.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::flow::Key;

/// Connections that pipelined requests are remembered of.
const MOST_PIPELINED: usize = 1024;

/// How long an answer may take before the request is told about without it.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Requests of one flow that wait. Of more, sent at once, only the first would be joined anyway.
const MOST_OF_FLOW: usize = 64;
/// Requests that wait, and bytes that they keep; the one that waits longest makes room.
const MOST: usize = 4096;
const MOST_HELD: usize = 32 << 20;

#[derive(Debug)]
struct Waiting<T> {
    number: u64,
    ack: u32,
    /// An answer came that announces another one.
    announced: bool,
    since: Instant,
    held: usize,
    item: T,
}

/// Requests without an answer yet.
#[derive(Debug)]
pub struct Answers<T> {
    flows: HashMap<Key, VecDeque<Waiting<T>>>,
    /// Flow and number of all that wait, the oldest first, and of some that do no more.
    order: VecDeque<(Key, u64)>,
    /// Of the flow, requests that are told about without their status, as one before them was answered,
    /// and where the last answer began.
    pipelined: HashMap<Key, (usize, u32)>,
    next: u64,
    count: usize,
    held: usize,
}

/// A request with the status of its answer, where there was one.
pub type Answered<T> = (T, Option<u16>);

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self {
            flows: HashMap::new(),
            order: VecDeque::new(),
            pipelined: HashMap::new(),
            next: 0,
            count: 0,
            held: 0,
        }
    }
}

impl<T> Answers<T> {
    /// Whether nothing waits, and so nothing needs [`Answers::expire`].
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Keeps a request of `held` bytes whose sender has read up to `ack`; gives what had to make room.
    pub fn ask(
        &mut self,
        key: Key,
        ack: u32,
        item: T,
        held: usize,
        now: Instant,
    ) -> Vec<Answered<T>> {
        let mut out = Vec::new();
        let of_flow = self.flows.get(&key).map_or(0, VecDeque::len);
        if of_flow >= MOST_OF_FLOW {
            out.push((item, None));
            return out;
        }
        while self.count >= MOST || self.count > 0 && self.held + held > MOST_HELD {
            let Some((key, number)) = self.order.pop_front() else {
                break;
            };
            out.extend(self.take(key, |one| one.number == number));
        }
        let number = self.next;
        self.next += 1;
        self.count += 1;
        self.held += held;
        self.order.push_back((key, number));
        self.flows.entry(key).or_default().push_back(Waiting {
            number,
            ack,
            announced: false,
            since: now,
            held,
            item,
        });
        if self.order.len() > 2 * MOST {
            let flows = &self.flows;
            self.order.retain(|(key, number)| {
                flows
                    .get(key)
                    .is_some_and(|flow| flow.iter().any(|one| one.number == *number))
            });
        }
        out
    }

    /// An answer in the flow of `key` (as the request's sender sees it) that begins at `seq`; gives
    /// the requests that need wait no longer. A status below 200 announces another answer (RFC 9110,
    /// 15.2).
    pub fn answer(&mut self, key: Key, seq: u32, status: Option<u16>) -> Vec<Answered<T>> {
        let reached = |one: &Waiting<T>| seq.wrapping_sub(one.ack).cast_signed() >= 0;
        let Some(flow) = self.flows.get_mut(&key) else {
            return Vec::new();
        };
        if status.is_some_and(|status| status < 200) {
            if let Some(first) = flow.iter_mut().find(|one| reached(one)) {
                first.announced = true;
            }
            return Vec::new();
        }
        // The one that it was announced to, whose body may be taken for a request behind it; the first
        // that begins there; or the only one, where something else was between.
        let candidates: Vec<_> = flow.iter().filter(|one| reached(one)).collect();
        let answered = candidates
            .iter()
            .find(|one| one.announced)
            .or(candidates.iter().find(|one| one.ack == seq))
            // But not where it may be a pipelined one's.
            .or(candidates
                .first()
                .filter(|_| candidates.len() == 1 && !self.pipelined.contains_key(&key)))
            .map(|one| one.number);
        let taken = self.take_numbered(key, reached);
        if taken.len() > 1 {
            if self.pipelined.len() >= MOST_PIPELINED {
                self.pipelined.clear();
            }
            let (unknown, latest) = self.pipelined.entry(key).or_default();
            *unknown = (*unknown + taken.len() - 1).min(MOST_OF_FLOW);
            *latest = seq;
        }
        taken
            .into_iter()
            .map(|(number, item)| (item, status.filter(|_| Some(number) == answered)))
            .collect()
    }

    /// Whether an answer that begins at `seq` and was joined to nothing is that of a pipelined request,
    /// each of which has one. The same answer seen again is none.
    pub fn is_of_pipelined(&mut self, key: Key, seq: u32) -> bool {
        let Some((unknown, latest)) = self.pipelined.get_mut(&key) else {
            return false;
        };
        if seq.wrapping_sub(*latest).cast_signed() <= 0 {
            return false;
        }
        *latest = seq;
        *unknown -= 1;
        if *unknown == 0 {
            self.pipelined.remove(&key);
        }
        true
    }

    /// The connection is at its end: nothing in it is answered any more.
    pub fn close(&mut self, key: Key) -> Vec<Answered<T>> {
        self.pipelined.remove(&key);
        self.take(key, |_| true)
    }

    /// Those that have waited longer than [`PATIENCE`].
    pub fn expire(&mut self, now: Instant) -> Vec<Answered<T>> {
        let mut out = Vec::new();
        while let Some((key, number)) = self.order.front().copied() {
            let here = self.flows.get(&key).and_then(|flow| {
                flow.iter()
                    .find(|one| one.number == number)
                    .map(|one| one.since)
            });
            if here.is_some_and(|since| now.saturating_duration_since(since) < PATIENCE) {
                break;
            }
            self.order.pop_front();
            out.extend(self.take(key, |one| one.number == number));
        }
        out
    }

    /// All that wait, the oldest first.
    pub fn finish(&mut self) -> Vec<Answered<T>> {
        let mut out = Vec::new();
        while let Some((key, number)) = self.order.pop_front() {
            out.extend(self.take(key, |one| one.number == number));
        }
        out
    }

    fn take(&mut self, key: Key, which: impl Fn(&Waiting<T>) -> bool) -> Vec<Answered<T>> {
        let taken = self.take_numbered(key, which);
        taken.into_iter().map(|(_, item)| (item, None)).collect()
    }

    fn take_numbered(&mut self, key: Key, which: impl Fn(&Waiting<T>) -> bool) -> Vec<(u64, T)> {
        let Some(flow) = self.flows.get_mut(&key) else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        let mut kept = VecDeque::new();
        for one in flow.drain(..) {
            if which(&one) {
                self.held -= one.held;
                taken.push((one.number, one.item));
            } else {
                kept.push_back(one);
            }
        }
        self.count -= taken.len();
        if kept.is_empty() {
            self.flows.remove(&key);
        } else {
            *flow = kept;
        }
        taken
    }
}

/// `CONTINUE_LENGTH` of `imds_watch.h`: bytes of "HTTP/1.1 100 Continue" and the two line ends behind it.
const CONTINUE_LENGTH: usize = 25;

/// The status in a status line's beginning, "HTTP/1.1 200" (RFC 9112, 4); where another answer is in the
/// same segment as the one that announces it, that one's.
pub fn status(line: &[u8]) -> Option<u16> {
    let first = status_of_one(line)?;
    match line.get(CONTINUE_LENGTH..) {
        Some(second) if first < 200 => status_of_one(second),
        _ => Some(first),
    }
}

fn status_of_one(line: &[u8]) -> Option<u16> {
    let digits = line.get(..12)?.strip_prefix(b"HTTP/1.")?.get(1..)?;
    let digits = digits.strip_prefix(b" ")?;
    let plain = digits.iter().all(u8::is_ascii_digit) && digits[0] != b'0';
    plain
        .then(|| str::from_utf8(digits).ok()?.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn key(port: u16) -> Key {
        (
            SocketAddr::from(([10, 0, 0, 1], port)),
            SocketAddr::from(([169, 254, 169, 254], 80)),
        )
    }

    #[test]
    fn a_status_is_three_digits_behind_the_version() {
        assert_eq!(status(b"HTTP/1.1 200"), Some(200));
        assert_eq!(status(b"HTTP/1.0 404 Not"), Some(404));
        assert_eq!(status(b"HTTP/1.1 100"), Some(100));
        let both = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403";
        assert_eq!(status(both), Some(403));
        assert_eq!(status(&both[..30]), None);
        for wrong in [
            &b"HTTP/1.1 20"[..],
            b"HTTP/1.1 2x0",
            b"HTTP/1.1 020",
            b"HTTP/2.0 200",
            b"HTTP/1.1200 ",
            b"",
        ] {
            assert_eq!(status(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn an_answer_belongs_to_the_request_that_waits_for_its_place_in_the_stream() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        // The sequence numbers wrap.
        let start = u32::MAX - 50;
        assert!(answers.ask(key(1), start, "a", 1, now).is_empty());
        assert!(answers.ask(key(2), start, "other", 1, now).is_empty());
        assert_eq!(answers.answer(key(1), start, Some(200)), [("a", Some(200))]);
        assert_eq!(answers.answer(key(1), start, Some(200)), []);
        answers.ask(key(1), start.wrapping_add(100), "b", 1, now);
        assert_eq!(answers.answer(key(1), start, Some(500)), []);
        let seq = start.wrapping_add(100);
        assert_eq!(answers.answer(key(1), seq, Some(401)), [("b", Some(401))]);
        assert_eq!(answers.finish(), [("other", None)]);
        assert!(answers.is_empty() && answers.flows.is_empty());
    }

    #[test]
    fn of_pipelined_requests_the_first_is_joined() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        answers.ask(key(1), 7, "a", 1, now);
        answers.ask(key(1), 7, "b", 1, now);
        assert_eq!(
            answers.answer(key(1), 7, Some(200)),
            [("a", Some(200)), ("b", None)]
        );
    }

    #[test]
    fn each_pipelined_request_has_one_more_answer() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        let start = u32::MAX - 50;
        assert!(!answers.is_of_pipelined(key(1), start));
        for name in ["a", "b", "c"] {
            answers.ask(key(1), start, name, 1, now);
        }
        answers.answer(key(1), start, Some(200));
        // The first again.
        assert!(!answers.is_of_pipelined(key(1), start));
        assert!(!answers.is_of_pipelined(key(2), start.wrapping_add(100)));
        assert!(answers.is_of_pipelined(key(1), start.wrapping_add(100)));
        assert!(!answers.is_of_pipelined(key(1), start.wrapping_add(100)));
        assert!(answers.is_of_pipelined(key(1), start.wrapping_add(200)));
        assert!(!answers.is_of_pipelined(key(1), start.wrapping_add(300)));
        // One that is asked for after the answers has its own.
        answers.ask(key(1), 7, "d", 1, now);
        answers.answer(key(1), 7, Some(404));
        assert!(!answers.is_of_pipelined(key(1), 8));
        for port in 0..3 * MOST_PIPELINED {
            let key = key(u16::try_from(port).unwrap());
            answers.ask(key, 7, "a", 1, now);
            answers.ask(key, 7, "b", 1, now);
            answers.answer(key, 7, None);
            assert!(answers.pipelined.len() <= MOST_PIPELINED);
        }
        for port in 0..3 * MOST_PIPELINED {
            answers.close(key(u16::try_from(port).unwrap()));
        }
        assert!(answers.pipelined.is_empty());
    }

    #[test]
    fn an_answer_in_between_is_waited_out() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        answers.ask(key(1), 7, "a", 1, now);
        assert_eq!(answers.answer(key(1), 7, Some(100)), []);
        assert_eq!(answers.answer(key(1), 32, Some(403)), [("a", Some(403))]);
        answers.ask(key(1), 50, "b", 1, now);
        assert_eq!(answers.answer(key(1), 50, Some(100)), []);
        answers.ask(key(1), 75, "its body", 1, now);
        assert_eq!(
            answers.answer(key(1), 75, Some(403)),
            [("b", Some(403)), ("its body", None)]
        );
    }

    #[test]
    fn what_no_answer_came_to_is_told_about_without() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        answers.ask(key(1), 7, "a", 1, now);
        answers.ask(key(2), 7, "b", 1, now + PATIENCE / 2);
        assert_eq!(answers.expire(now + PATIENCE / 4), []);
        assert_eq!(answers.expire(now + PATIENCE), [("a", None)]);
        assert_eq!(answers.close(key(2)), [("b", None)]);
        assert!(answers.is_empty());
    }

    #[test]
    fn one_connection_does_not_hold_many() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        for number in 0..10 * MOST_OF_FLOW {
            let out = answers.ask(key(1), 7, number, 1, now);
            let expected = (number >= MOST_OF_FLOW).then_some((number, None));
            assert_eq!(out, expected.into_iter().collect::<Vec<_>>());
        }
        assert_eq!(answers.answer(key(1), 7, Some(200)).len(), MOST_OF_FLOW);
        assert!(answers.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        for number in 0..u32::try_from(3 * MOST).unwrap() {
            let out = answers.ask(key(u16::try_from(number % 500).unwrap()), 0, number, 1, now);
            assert_eq!(out.len(), usize::from(number as usize >= MOST));
            assert!(answers.order.len() <= 2 * MOST + 1);
        }
        for number in 0..u32::try_from(3 * MOST).unwrap() {
            answers.ask(key(900), number, number, 1, now);
            answers.answer(key(900), number, Some(200));
            assert!(answers.order.len() <= 2 * MOST + 1);
        }
        assert_eq!(answers.held, answers.count);
        let mut out = Vec::new();
        for port in 1000..1100 {
            out.extend(answers.ask(key(port), 0, 0, MOST_HELD / 10, now));
            assert!(answers.held <= MOST_HELD);
        }
        // One that is larger than all that there is room for is kept alone.
        out.extend(answers.ask(key(1), 0, 1, 2 * MOST_HELD, now));
        assert!(answers.count == 1 && out.len() >= 100);
        assert_eq!(answers.finish(), [(1, None)]);
        assert_eq!((answers.held, answers.count), (0, 0));
    }
}
