// SPDX-License-Identifier: BSD-2-Clause

//! When all processes are looked at again, because the kernel could not tell of all that they map.

use std::time::{Duration, Instant};

/// How long it is at least until all processes are looked at again, which anybody can make necessary.
const BETWEEN_SCANS: Duration = Duration::from_secs(1);
/// So many times as long as that took is something else done afterwards.
const REST_AFTER_SCAN: u32 = 9;

/// When all processes are to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Scans {
    due: Option<Instant>,
    /// Not before.
    earliest: Option<Instant>,
}

impl Scans {
    /// A scan is needed, as soon as may be.
    pub(super) fn need(&mut self, now: Instant) {
        let at = self.earliest.map_or(now, |earliest| earliest.max(now));
        self.due.get_or_insert(at);
    }

    /// How long until one is due; `longest` at most.
    pub(super) fn wait(&self, now: Instant, longest: Duration) -> Duration {
        self.due.map_or(longest, |due| {
            due.saturating_duration_since(now).min(longest)
        })
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    pub(super) fn done(&mut self, started: Instant, now: Instant) {
        let rest = now.saturating_duration_since(started) * REST_AFTER_SCAN;
        self.due = None;
        self.earliest = Some(now + rest.max(BETWEEN_SCANS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(10);

    #[test]
    fn processes_are_looked_at_again_at_once_and_then_seldom() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut scans = Scans::default();
        assert!(!scans.is_due(start) && scans.wait(start, LONGEST) == LONGEST);
        scans.need(start);
        assert!(scans.is_due(start));
        scans.done(start, at(10));
        // The second has begun when it was over.
        scans.need(at(20));
        scans.need(at(500));
        assert_eq!(scans.wait(at(500), LONGEST), Duration::from_millis(510));
        assert!(!scans.is_due(at(1009)) && scans.is_due(at(1010)));
        // One that takes long is followed by a long rest.
        scans.done(at(1010), at(2010));
        scans.need(at(2011));
        assert!(!scans.is_due(at(11_009)) && scans.is_due(at(11_010)));
        scans.done(at(11_010), at(11_011));
        scans.need(at(30_000));
        assert!(scans.is_due(at(30_000)));
    }
}
