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
    fn the_boot_clock_runs() {
        assert!(boot_ns() > 0);
    }
}
