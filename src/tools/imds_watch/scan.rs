// SPDX-License-Identifier: BSD-2-Clause

//! Who tries paths: many different ones in a short time, or many that are not there.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

/// Within so long,
pub const WINDOW: Duration = Duration::from_secs(10);
/// so many answers "not found" are a scan; `SCAN_MISSES` of `imds_watch.h`, from which on the
/// filter sends up the clean requests of the sender, too.
pub const MISSES: usize = 8;
/// and so many different paths are. cloud-init reads a service's whole tree when a machine starts,
/// some fifty paths.
pub const PATHS: usize = 128;
/// Callers that are followed at once.
const MOST_CALLERS: usize = 1024;

/// 404 (RFC 9110, 15.5.5).
const NOT_FOUND: u16 = 404;

#[derive(Debug)]
struct Caller {
    since: Instant,
    misses: usize,
    paths: HashSet<u64>,
    /// When a scan was last plain.
    scanned: Option<Instant>,
}

/// What callers asked for lately.
#[derive(Debug, Default)]
pub struct Scans {
    callers: HashMap<String, Caller>,
    hasher: RandomState,
}

impl Scans {
    /// Counts a request of `caller`; says whether it is part of a scan, which it is from the request
    /// on that makes it plain, and for [`WINDOW`] behind that.
    pub fn is_scan(
        &mut self,
        caller: &str,
        path: Option<&str>,
        status: Option<u16>,
        now: Instant,
    ) -> bool {
        if !self.callers.contains_key(caller) && self.callers.len() >= MOST_CALLERS {
            let oldest = self.callers.iter().min_by_key(|(_, one)| one.since);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.callers.remove(&oldest);
            }
        }
        let hash = path.map(|path| self.hasher.hash_one(path));
        let one = self
            .callers
            .entry(caller.to_owned())
            .or_insert_with(|| Caller {
                since: now,
                misses: 0,
                paths: HashSet::new(),
                scanned: None,
            });
        if now.saturating_duration_since(one.since) >= WINDOW {
            one.since = now;
            one.misses = 0;
            one.paths.clear();
        }
        one.misses += usize::from(status == Some(NOT_FOUND));
        if one.paths.len() < PATHS {
            one.paths.extend(hash);
        }
        if one.misses >= MISSES || one.paths.len() >= PATHS {
            one.scanned = Some(now);
        }
        one.scanned
            .is_some_and(|at| now.saturating_duration_since(at) < WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_paths_that_are_not_there_are_a_scan() {
        let (mut scans, now) = (Scans::default(), Instant::now());
        for number in 1..=20 {
            let path = format!("/{}", number % 2);
            assert!(!scans.is_scan("b", Some(&path), Some(200), now));
            assert_eq!(
                scans.is_scan("a", Some("/x"), Some(404), now),
                number >= MISSES
            );
        }
        assert!(scans.is_scan("a", Some("/x"), Some(200), now + WINDOW / 2));
        assert!(!scans.is_scan("a", Some("/x"), Some(404), now + 2 * WINDOW));
    }

    #[test]
    fn many_different_paths_are_a_scan_and_the_same_one_is_not() {
        let (mut scans, now) = (Scans::default(), Instant::now());
        for number in 1..=2 * PATHS {
            assert!(!scans.is_scan("b", Some("/same"), None, now));
            let path = format!("/{number}");
            assert_eq!(scans.is_scan("a", Some(&path), None, now), number >= PATHS);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let (mut scans, now) = (Scans::default(), Instant::now());
        for number in 0..2 * MOST_CALLERS {
            scans.is_scan(&number.to_string(), None, None, now);
        }
        assert_eq!(scans.callers.len(), MOST_CALLERS);
    }
}
