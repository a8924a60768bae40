// SPDX-License-Identifier: BSD-2-Clause

//! Who tries paths: many different ones in a short time, or many that are not there.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

/// Within so long,
pub const WINDOW: Duration = Duration::from_secs(10);
/// so many different paths that were "not found" are a scan; `SCAN_MISSES` of `imds_watch.h`, from
/// which on the filter sends up the clean requests of the sender, too.
pub const MISSES: usize = 8;
/// and so many different paths are. cloud-init reads a service's whole tree when a machine starts,
/// some fifty paths. The filter sends up clean requests of a sender that asked for more than `SCAN_PATHS`
/// of `imds_watch.h`.
pub const PATHS: usize = 128;
/// Callers that are followed at once.
const MOST_CALLERS: usize = 1024;

/// 404 (RFC 9110, 15.5.5).
pub const NOT_FOUND: u16 = 404;

/// Different things, by their hashes, and when each was last there; the oldest first.
#[derive(Debug, Default)]
struct Recent {
    all: VecDeque<(u64, Instant)>,
}

impl Recent {
    /// Adds one; whether `most` different ones were there within `window`. No more are kept.
    fn add(&mut self, hash: u64, most: usize, window: Duration, now: Instant) -> bool {
        let old = |at: Instant| now.saturating_duration_since(at) >= window;
        self.all.retain(|(known, at)| *known != hash && !old(*at));
        self.all.push_back((hash, now));
        if self.all.len() > most {
            self.all.pop_front();
        }
        self.all.len() >= most
    }
}

#[derive(Debug, Default)]
struct Caller {
    paths: Recent,
    misses: Recent,
    last: Option<Instant>,
    /// When a scan was last plain.
    scanned: Option<Instant>,
}

/// What callers asked for lately.
#[derive(Debug)]
pub struct Scans {
    window: Duration,
    callers: HashMap<String, Caller>,
    hasher: RandomState,
    unnamed: u64,
}

impl Scans {
    /// None yet; `window` is [`WINDOW`].
    pub fn new(window: Duration) -> Self {
        Self {
            window,
            callers: HashMap::new(),
            hasher: RandomState::new(),
            unnamed: 0,
        }
    }

    /// Counts a request of `caller`; says whether it is part of a scan, which it is from the request
    /// on that makes it plain, and for the window behind that. One whose path cannot be read is for
    /// another than any other.
    pub fn is_scan(
        &mut self,
        caller: &str,
        path: Option<&str>,
        status: Option<u16>,
        now: Instant,
    ) -> bool {
        let hash = self.hash(path);
        let window = self.window;
        let one = self.caller(caller, now);
        let mut plain = one.paths.add(hash, PATHS, window, now);
        if status == Some(NOT_FOUND) {
            plain |= one.misses.add(hash, MISSES, window, now);
        }
        if plain {
            one.scanned = Some(now);
        }
        one.scanned
            .is_some_and(|at| now.saturating_duration_since(at) < window)
    }

    /// Counts an answer "not found" of which nobody knows what was asked.
    pub fn miss(&mut self, caller: &str, now: Instant) {
        let hash = self.hash(None);
        let window = self.window;
        let one = self.caller(caller, now);
        if one.misses.add(hash, MISSES, window, now) {
            one.scanned = Some(now);
        }
    }

    fn hash(&mut self, path: Option<&str>) -> u64 {
        self.unnamed += u64::from(path.is_none());
        self.hasher
            .hash_one((path, path.is_none().then_some(self.unnamed)))
    }

    fn caller(&mut self, caller: &str, now: Instant) -> &mut Caller {
        if !self.callers.contains_key(caller) && self.callers.len() >= MOST_CALLERS {
            let oldest = self.callers.iter().min_by_key(|(_, one)| one.last);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.callers.remove(&oldest);
            }
        }
        let one = self.callers.entry(caller.to_owned()).or_default();
        one.last = Some(now);
        one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_paths_that_are_not_there_are_a_scan() {
        let (mut scans, now) = (Scans::new(WINDOW), Instant::now());
        for number in 1..=20 {
            let path = format!("/{number}");
            // One that is tried again and again is none.
            assert!(!scans.is_scan("b", Some("/x"), Some(404), now));
            assert!(!scans.is_scan("c", Some(&path), Some(200), now));
            assert_eq!(
                scans.is_scan("a", Some(&path), Some(404), now),
                number >= MISSES
            );
            assert_eq!(scans.is_scan("d", None, Some(404), now), number >= MISSES);
        }
        assert!(scans.is_scan("a", Some("/x"), Some(200), now + WINDOW / 2));
        assert!(!scans.is_scan("a", Some("/x"), Some(404), now + 2 * WINDOW));
    }

    #[test]
    fn answers_to_nobody_knows_what_count_as_well() {
        let (mut scans, now) = (Scans::new(WINDOW), Instant::now());
        for number in 1..=20 {
            scans.miss("a", now);
            let plain = scans.is_scan("a", Some("/x"), Some(200), now);
            assert_eq!(plain, number >= MISSES);
        }
        assert!(!scans.is_scan("b", Some("/x"), Some(200), now));
    }

    #[test]
    fn many_different_paths_are_a_scan_and_the_same_one_is_not() {
        let (mut scans, now) = (Scans::new(WINDOW), Instant::now());
        for number in 1..=2 * PATHS {
            assert!(!scans.is_scan("b", Some("/same"), None, now));
            let path = format!("/{number}");
            assert_eq!(scans.is_scan("a", Some(&path), None, now), number >= PATHS);
        }
    }

    #[test]
    fn what_is_old_does_not_count_and_no_boundary_lies_in_a_burst() {
        let (mut scans, start) = (Scans::new(WINDOW), Instant::now());
        let ask = |scans: &mut Scans, caller: &str, number: usize, at: Instant| {
            scans.is_scan(caller, Some(&format!("/{number}")), Some(404), at)
        };
        // Seven in any ten seconds, and not eight, for as long as it likes.
        let pause = WINDOW / 7 + Duration::from_nanos(1);
        for number in 0..100 {
            let at = start + pause * u32::try_from(number).unwrap();
            assert!(!ask(&mut scans, "slow", number, at), "{number}");
        }
        // A first one long before a burst.
        ask(&mut scans, "late", 0, start);
        let burst = start + WINDOW - Duration::from_millis(4);
        for number in 1..=MISSES {
            let at = burst + Duration::from_millis(number as u64);
            let plain = ask(&mut scans, "late", number, at);
            assert_eq!(plain, number == MISSES, "{number}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let (mut scans, now) = (Scans::new(WINDOW), Instant::now());
        for number in 0..2 * MOST_CALLERS {
            scans.is_scan(&number.to_string(), None, None, now);
        }
        assert_eq!(scans.callers.len(), MOST_CALLERS);
        for number in 0..4 * PATHS {
            scans.is_scan("a", Some(&number.to_string()), Some(404), now);
        }
        let one = &scans.callers["a"];
        assert_eq!((one.paths.all.len(), one.misses.all.len()), (PATHS, MISSES));
    }
}
