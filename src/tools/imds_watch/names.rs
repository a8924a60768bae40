// SPDX-License-Identifier: BSD-2-Clause

//! The names of interfaces.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::kernel::interfaces;

/// How often the kernel is asked for them, where one is wanted: an interface may have got another one, and
/// packets may still come of one that is gone.
const PAUSE: Duration = Duration::from_secs(1);

/// Those that are known.
#[derive(Debug, Default)]
pub struct Names {
    names: HashMap<i32, String>,
    asked: Option<Instant>,
}

impl Names {
    /// The name of the interface with this index in this network namespace.
    pub fn of(&mut self, index: i32) -> Option<String> {
        self.find(index, Instant::now(), || {
            let all = interfaces::all().ok()?.into_iter();
            Some(all.map(|one| (one.index, one.name)).collect())
        })
    }

    fn find(
        &mut self,
        index: i32,
        now: Instant,
        all: impl FnOnce() -> Option<HashMap<i32, String>>,
    ) -> Option<String> {
        let paused = |asked: Instant| now.saturating_duration_since(asked) < PAUSE;
        if !self.asked.is_some_and(paused) {
            self.asked = Some(now);
            // Where it does not say, those that were there before are the best that is known.
            self.names = all().unwrap_or_else(|| std::mem::take(&mut self.names));
        }
        self.names.get(&index).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_gone_is_not_asked_for_with_every_packet() {
        let (mut names, now) = (Names::default(), Instant::now());
        let mut asked = 0;
        let mut find = |index, now| {
            names.find(index, now, || {
                asked += 1;
                Some(HashMap::from([(1, "lo".to_owned())]))
            })
        };
        assert_eq!(find(1, now).as_deref(), Some("lo"));
        for _ in 0..100 {
            assert_eq!(find(7, now), None);
        }
        assert_eq!(find(7, now + PAUSE), None);
        assert_eq!(asked, 2);
    }

    #[test]
    fn an_interface_that_is_renamed_has_its_new_name() {
        let (mut names, now) = (Names::default(), Instant::now());
        let mut find = |now, name: Option<&str>| {
            names.find(1, now, || Some(HashMap::from([(1, name?.to_owned())])))
        };
        assert_eq!(find(now, Some("eth0")).as_deref(), Some("eth0"));
        assert_eq!(find(now, Some("wan")).as_deref(), Some("eth0"));
        assert_eq!(find(now + PAUSE, Some("wan")).as_deref(), Some("wan"));
        assert_eq!(find(now + 2 * PAUSE, None).as_deref(), Some("wan"));
    }
}
