// SPDX-License-Identifier: BSD-2-Clause

//! What was lost, told as it happens: by process, as far as the kernel's side knows it.

use std::collections::HashMap;
use std::io::{self, Write};

use time::OffsetDateTime;

use super::event::{Amount, Lost};
use super::watch::{CAUSES, Totals};
use crate::output::Sink;

/// What was told so far.
#[derive(Debug, Default)]
pub struct Losses {
    /// By process and cause, what the kernel had counted.
    told: HashMap<(u32, u32), Amount>,
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
        now: Vec<(u32, u32, Amount, String)>,
        sink: &mut Sink<W>,
    ) -> io::Result<()> {
        for (pid, cause, amount, comm) in now {
            let Some(index) = CAUSES.iter().position(|(known, _)| known.0 == cause) else {
                continue;
            };
            let before = self.told.insert((pid, cause), amount).unwrap_or_default();
            // Counted anew after it had made room for others.
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
            let now = vec![(7, CAUSES[0].0.0, amount(calls, bytes), "curl".to_owned())];
            losses.report(now, &mut sink).unwrap();
        }
        assert_eq!(losses.sums[0], amount(3, 30));
        sink.flush().unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().map(|line| &line[13..]).collect();
        assert_eq!(
            lines,
            [
                "curl[7] lost: 1 calls, 10 bytes (ring_full)",
                "curl[7] lost: 2 calls, 20 bytes (ring_full)"
            ]
        );
    }
}
