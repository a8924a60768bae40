// SPDX-License-Identifier: BSD-2-Clause

//! From patterns to a table that a few instructions per byte can follow: for each state and class of
//! bytes the next state and the flags that it raises. regex-automata compiles the patterns.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result, ensure};
use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::util::alphabet::Unit;
use regex_automata::util::primitives::StateID;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

use super::{END, ENTRIES, HOST, LINE, Patterns, SERVICE, STATE_BITS, SUSPICIOUS, Scanner};

/// An automaton whose states raise flags when they are entered. State 0 is the dead one.
#[derive(Debug)]
pub(super) struct Machine {
    next: Vec<[usize; 256]>,
    flags: Vec<u32>,
    start: usize,
}

const DEAD: usize = 0;

impl Machine {
    pub(super) fn of(patterns: &Patterns) -> Result<Self> {
        let expressions: Vec<_> = patterns.iter().map(|(expression, _)| expression).collect();
        let config = dense::Config::new()
            .match_kind(MatchKind::All)
            .start_kind(StartKind::Anchored)
            .accelerate(false);
        let dfa = dense::Builder::new()
            .configure(config)
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .build_many(&expressions)
            .context("cannot compile the scanner")?;
        let start = dfa
            .start_state_forward(&Input::new("").anchored(Anchored::Yes))
            .context("the scanner has no start")?;
        // One byte for each class stands for all of its class.
        let of = dfa.byte_classes();
        let bytes: Vec<u8> = of.representatives(..).filter_map(Unit::as_u8).collect();
        let classes = std::array::from_fn(|byte| usize::from(of.get(byte.to_le_bytes()[0])));
        let mut machine = Self {
            next: vec![[DEAD; 256]],
            flags: vec![0],
            start: 1,
        };
        let mut numbers: HashMap<StateID, usize> = HashMap::from([(start, 1)]);
        let mut order = vec![start];
        let mut at = 0;
        while let Some(state) = order.get(at).copied() {
            at += 1;
            let leads: Vec<_> = bytes
                .iter()
                .map(|byte| {
                    let next = dfa.next_state(state, *byte);
                    if dfa.is_dead_state(next) || dfa.is_quit_state(next) {
                        return DEAD;
                    }
                    *numbers.entry(next).or_insert_with(|| {
                        order.push(next);
                        order.len()
                    })
                })
                .collect();
            machine.next.push(classes.map(|class| leads[class]));
            // regex-automata reports a match one byte late; the end of input brings it forward.
            let end = dfa.next_eoi_state(state);
            let matched = if dfa.is_match_state(end) {
                dfa.match_len(end)
            } else {
                0
            };
            machine.flags.push((0..matched).fold(0, |all, index| {
                all | patterns[dfa.match_pattern(end, index).as_usize()].1
            }));
        }
        Ok(machine)
    }

    /// A request line, then header lines; after the empty one another request may begin.
    pub(super) fn glued(line: Self, header: Self) -> Self {
        let moved = line.next.len();
        let move_by = |state: usize| if state == DEAD { DEAD } else { state + moved };
        let mut glued = line;
        let first_header = header.next[header.start].map(move_by);
        glued
            .next
            .extend(header.next.into_iter().map(|row| row.map(move_by)));
        glued.flags.extend(header.flags);
        let first_request = glued.next[glued.start];
        for (row, flags) in glued.next.iter_mut().zip(&mut glued.flags) {
            if *flags & LINE != 0 {
                *row = first_header;
                if *flags & (HOST | SERVICE) == HOST {
                    *flags |= u32::from(SUSPICIOUS);
                }
                *flags &= !(LINE | HOST | SERVICE);
            } else if *flags & u32::from(END) != 0 {
                *row = first_request;
            }
        }
        glued
    }

    /// The same with the dead state in the place of those that lead to no end of a head.
    pub(super) fn pruned(mut self) -> Self {
        let mut alive: Vec<bool> = self
            .flags
            .iter()
            .map(|flags| flags & u32::from(END) != 0)
            .collect();
        loop {
            let more: Vec<_> = (0..self.next.len())
                .filter(|state| !alive[*state] && self.next[*state].iter().any(|next| alive[*next]))
                .collect();
            if more.is_empty() {
                break;
            }
            for state in more {
                alive[state] = true;
            }
        }
        for next in self.next.iter_mut().flatten() {
            if !alive[*next] {
                *next = DEAD;
            }
        }
        for (flags, alive) in self.flags.iter_mut().zip(&alive) {
            *flags *= u32::from(*alive);
        }
        for (row, alive) in self.next.iter_mut().zip(&alive) {
            if !alive {
                *row = [DEAD; 256];
            }
        }
        self
    }

    /// The same with as few states as there can be (Moore's algorithm): a state is as another if
    /// they raise the same flags and lead to the same.
    pub(super) fn minimized(&self) -> Self {
        let (classes, count) = self.classes();
        let bytes: Vec<usize> = (0..count)
            .filter_map(|class| classes.iter().position(|of| usize::from(*of) == class))
            .collect();
        let mut groups: Vec<usize> = vec![0; self.next.len()];
        let mut count = 0;
        loop {
            // In order: most differ in what is compared first, and none is hashed whole.
            let mut known: BTreeMap<(u32, usize, Vec<usize>), usize> = BTreeMap::new();
            groups = (0..self.next.len())
                .map(|state| {
                    let row = &self.next[state];
                    let leads = bytes.iter().map(|byte| groups[row[*byte]]).collect();
                    let fresh = known.len();
                    *known
                        .entry((self.flags[state], groups[state], leads))
                        .or_insert(fresh)
                })
                .collect();
            if known.len() == count {
                break;
            }
            count = known.len();
        }
        let mut minimal = Self {
            next: vec![[DEAD; 256]; count],
            flags: vec![0; count],
            start: groups[self.start],
        };
        for (state, group) in groups.iter().enumerate() {
            minimal.flags[*group] = self.flags[state];
            minimal.next[*group] = self.next[state].map(|next| groups[next]);
        }
        minimal
    }

    /// For each byte its class, and how many there are: bytes of one class lead to the same from
    /// everywhere.
    fn classes(&self) -> ([u8; 256], usize) {
        let mut columns: BTreeMap<Vec<usize>, u8> = BTreeMap::new();
        let mut classes = [0; 256];
        for (byte, class) in (0..=u8::MAX).zip(&mut classes) {
            let column = self.next.iter().map(|row| row[usize::from(byte)]).collect();
            let fresh = u8::try_from(columns.len()).unwrap_or(byte);
            *class = *columns.entry(column).or_insert(fresh);
        }
        (classes, columns.len())
    }

    pub(super) fn table(&self) -> Result<Scanner> {
        let (classes, stride) = self.classes();
        let size = self.next.len() * stride;
        ensure!(
            size <= ENTRIES,
            "the scanner needs {size} entries and has {ENTRIES}"
        );
        let mut table = vec![0; size];
        for (state, row) in self.next.iter().enumerate() {
            for (class, next) in classes.iter().zip(row) {
                let flags = self.flags[*next];
                let next = u32::try_from(next * stride).context("a state too many")?;
                table[state * stride + usize::from(*class)] = flags << STATE_BITS | next;
            }
        }
        let start = u32::try_from(self.start * stride).context("a state too many")?;
        Ok(Scanner {
            classes,
            table,
            start,
        })
    }
}
