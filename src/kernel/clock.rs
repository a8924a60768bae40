// SPDX-License-Identifier: BSD-2-Clause

//! Kernel time to wall-clock time.

use nix::time::{ClockId, clock_gettime};
use time::{Duration, OffsetDateTime};

/// Nanoseconds since boot, suspend included: what `bpf_ktime_get_boot_ns()` returns (kernel 5.8).
pub fn boot_ns() -> u64 {
    match clock_gettime(ClockId::CLOCK_BOOTTIME) {
        Ok(now) => now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs(),
        Err(_) => 0,
    }
}

/// The wall-clock time of an event that the kernel stamped `event_boot_ns`, by the clock as it is
/// set now: an event is moments old, so a clock that was stepped since is not followed.
pub fn wall(event_boot_ns: u64) -> OffsetDateTime {
    since(OffsetDateTime::now_utc(), boot_ns(), event_boot_ns)
}

/// What turns stamps into wall-clock time, one stamp always into the same time as long as the clock is not
/// set anew.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wall {
    /// Nanoseconds of the wall clock when the system booted.
    boot: Option<i128>,
}

impl Wall {
    /// How far two readings of the clocks may differ with no clock set.
    const JITTER_NS: i128 = 1_000_000;

    /// Looks whether the clock was set.
    pub fn look(&mut self) {
        let before = boot_ns();
        let now = OffsetDateTime::now_utc();
        self.read(before, now, boot_ns());
    }

    /// Takes a reading of the wall clock between two of the kernel's. One that took long tells little.
    fn read(&mut self, before_ns: u64, now: OffsetDateTime, after_ns: u64) {
        let took = i128::from(after_ns) - i128::from(before_ns);
        let boot = now.unix_timestamp_nanos() - i128::from(before_ns);
        let is_news = self
            .boot
            .is_none_or(|known| took < Self::JITTER_NS && (boot - known).abs() > Self::JITTER_NS);
        if is_news {
            self.boot = Some(boot);
        }
    }

    /// The wall-clock time of an event that the kernel stamped so, by the clock as it was at the last look.
    pub fn time(&self, event_boot_ns: u64) -> OffsetDateTime {
        let time = self.boot.map(|boot| boot + i128::from(event_boot_ns));
        time.and_then(|time| OffsetDateTime::from_unix_timestamp_nanos(time).ok())
            .unwrap_or_else(|| wall(event_boot_ns))
    }
}

fn since(now: OffsetDateTime, now_boot_ns: u64, event_boot_ns: u64) -> OffsetDateTime {
    let age = i128::from(now_boot_ns) - i128::from(event_boot_ns);
    let age = Duration::nanoseconds(i64::try_from(age).unwrap_or(0));
    now.checked_sub(age).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn an_event_is_as_old_as_the_kernel_says() {
        let now = datetime!(2026-01-01 00:00:10 UTC);
        assert_eq!(
            since(now, 50_000_000_000, 48_000_000_000),
            datetime!(2026-01-01 00:00:08 UTC)
        );
        assert_eq!(since(now, 48, 50), now + Duration::nanoseconds(2));
    }

    #[test]
    fn a_stamp_is_one_time_until_the_clock_is_set() {
        let now = datetime!(2026-01-01 00:00:10 UTC);
        let mut wall = Wall::default();
        wall.read(1000, now, 1100);
        let time = wall.time(900);
        assert_eq!(time, now - Duration::nanoseconds(100));
        // Read a little later, and by a thread that had to wait in between.
        wall.read(2000, now + Duration::nanoseconds(1700), 2100);
        wall.read(3000, now + Duration::seconds(1), 1_000_000_000);
        assert_eq!(wall.time(900), time);
        wall.read(4000, now + Duration::hours(1), 4100);
        assert_eq!(wall.time(4000), now + Duration::hours(1));
    }

    #[test]
    fn stamps_have_their_time_without_a_look_and_after_one() {
        let mut wall = Wall::default();
        let stamp = boot_ns();
        let before = wall.time(stamp);
        wall.look();
        assert!((wall.time(stamp) - before).abs() < Duration::minutes(1));
    }

    #[test]
    fn the_boot_clock_runs() {
        assert!(boot_ns() > 0);
    }
}
