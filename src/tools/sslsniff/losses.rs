// SPDX-License-Identifier: BSD-2-Clause

//! What was lost, told as it happens: by process, as far as the kernel's side knows it.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use time::OffsetDateTime;

use super::event::{Amount, Lost};
use super::watch::{CAUSES, Totals};
use crate::output::Sink;

/// Whose loss it is: the process, which of those that had its number, and the cause, as the kernel's side has them.
pub type LossKey = (u32, u64, u32);

/// What was told so far.
#[derive(Debug, Default)]
pub struct Losses {
    /// What the kernel had counted.
    told: HashMap<LossKey, Amount>,
    /// By cause, what the lines add up to.
    sums: [Amount; 3],
}

impl Losses {
    /// Prints a line for each process and cause that has lost more, given what each lost so far.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn report<W: Write>(
        &mut self,
        now: Vec<(LossKey, Amount, String)>,
        sink: &mut Sink<W>,
    ) -> io::Result<()> {
        // Who has made room for others is counted anew.
        let known: HashSet<LossKey> = now.iter().map(|(key, ..)| *key).collect();
        self.told.retain(|key, _| known.contains(key));
        for (key, amount, comm) in now {
            let (pid, _, cause) = key;
            let Some(index) = CAUSES.iter().position(|(known, _)| known.0 == cause) else {
                continue;
            };
            let before = self.told.insert(key, amount).unwrap_or_default();
            // It has made room in between.
            let before = if before.calls > amount.calls || before.bytes > amount.bytes {
                Amount::default()
            } else {
                before
            };
            let more = minus(amount, before);
            self.tell(index, more, Some(pid), Some(&comm), sink)?;
        }
        Ok(())
    }

    /// Prints what no process could be named for, given all that was lost.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn rest<W: Write>(&mut self, totals: &Totals, sink: &mut Sink<W>) -> io::Result<()> {
        for index in 0..CAUSES.len() {
            let more = minus(totals.lost(index), self.sums[index]);
            self.tell(index, more, None, None, sink)?;
        }
        Ok(())
    }

    fn tell<W: Write>(
        &mut self,
        index: usize,
        amount: Amount,
        pid: Option<u32>,
        comm: Option<&str>,
        sink: &mut Sink<W>,
    ) -> io::Result<()> {
        if amount == Amount::default() {
            return Ok(());
        }
        let sum = &mut self.sums[index];
        // Lengths are the program's word.
        sum.calls = sum.calls.saturating_add(amount.calls);
        sum.bytes = sum.bytes.saturating_add(amount.bytes);
        let event = Lost {
            cause: CAUSES[index].1,
            amount,
            pid,
            comm,
        };
        sink.event(OffsetDateTime::now_utc(), &event)
    }
}

/// What was told so far of programs that were not stopped (`--hold`).
#[derive(Debug, Default)]
pub struct NotHeld {
    pauses: u64,
    times: u64,
}

impl NotHeld {
    /// Says how often it came to a pause, and how often a program was not stopped, where either is news.
    pub fn report<W: Write>(&mut self, pauses: u64, times: u64, sink: &Sink<W>) {
        if std::mem::replace(&mut self.pauses, pauses) != pauses {
            sink.note(
                "--hold: files could not be looked into for too long: all programs that waited go on, and none is \
                 stopped until files can be looked into again",
            );
        }
        let before = std::mem::replace(&mut self.times, times);
        if before != times {
            sink.note(&format!(
                "--hold: {} times a program was not stopped that was to be; its first calls may be missed",
                times.saturating_sub(before)
            ));
        }
    }
}

fn minus(now: Amount, before: Amount) -> Amount {
    Amount {
        calls: now.calls.saturating_sub(before.calls),
        bytes: now.bytes.saturating_sub(before.bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Format, Settings};

    fn amount(calls: u64, bytes: u64) -> Amount {
        Amount { calls, bytes }
    }

    #[test]
    fn each_loss_is_told_once_and_by_process() {
        let settings = Settings {
            format: Format::Text,
            ..Settings::default()
        };
        let mut out = Vec::new();
        let mut sink = Sink::new("sslsniff", settings, false, &mut out);
        let mut losses = Losses::default();
        for (calls, bytes) in [(1, 10), (1, 10), (3, 30)] {
            let key = (7, 1000, CAUSES[0].0.0);
            let now = vec![(key, amount(calls, bytes), "curl".to_owned())];
            losses.report(now, &mut sink).unwrap();
        }
        // Another process of this number, then the first again, which had to make room.
        for (since, calls, comm) in [(2000, 5, "wget"), (1000, 1, "curl")] {
            let key = (7, since, CAUSES[0].0.0);
            let now = vec![(key, amount(calls, 0), comm.to_owned())];
            losses.report(now, &mut sink).unwrap();
        }
        assert_eq!(losses.sums[0], amount(9, 30));
        assert_eq!(losses.told.len(), 1);
        sink.flush().unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().map(|line| &line[13..]).collect();
        assert_eq!(
            lines,
            [
                "curl[7] lost: 1 calls, 10 bytes (ring_full)",
                "curl[7] lost: 2 calls, 20 bytes (ring_full)",
                "wget[7] lost: 5 calls, 0 bytes (ring_full)",
                "curl[7] lost: 1 calls, 0 bytes (ring_full)"
            ]
        );
    }
}
