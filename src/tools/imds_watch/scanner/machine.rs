// SPDX-License-Identifier: BSD-2-Clause

//! From patterns to a table that a few instructions per byte can follow: for each state and class of
//! bytes the next state and the flags that it raises. regex-automata compiles the patterns.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context as _, Result, bail, ensure};
use regex_automata::nfa::thompson::{NFA, State, Transition, WhichCaptures};
use regex_automata::util::primitives::StateID;
use regex_automata::util::syntax;

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
    /// All patterns at once, each anchored at the start.
    ///
    /// The states are sets of regex-automata's. Its own way to make them asks for each set and class of bytes anew where
    /// that leads, which was most of what a start took.
    pub(super) fn of(patterns: &Patterns) -> Result<Self> {
        let expressions: Vec<_> = patterns.iter().map(|(expression, _)| expression).collect();
        let nfa = NFA::compiler()
            .configure(NFA::config().which_captures(WhichCaptures::None))
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .build_many(&expressions)
            .context("cannot compile the scanner")?;
        // Neighbours are of one class or of the next.
        let class_of = nfa.byte_classes();
        let classes = class_of.alphabet_len();
        let mut sets = Sets::new(&nfa);
        let start = sets.number(&[nfa.start_anchored()])?;
        let mut machine = Self {
            next: vec![[DEAD; 256]],
            flags: vec![0],
            start,
        };
        let mut leads: Vec<Vec<StateID>> = vec![Vec::new(); classes];
        for state in 1.. {
            let Some(set) = sets.all.get(state) else {
                break;
            };
            leads.iter_mut().for_each(Vec::clear);
            let mut flags = 0;
            let mut lead = |on: &Transition| {
                let [first, last] = [on.start, on.end].map(|byte| usize::from(class_of.get(byte)));
                for lead in &mut leads[first..=last] {
                    lead.push(on.next);
                }
            };
            for part in set {
                match nfa.state(*part) {
                    State::ByteRange { trans } => lead(trans),
                    State::Sparse(all) => all.transitions.iter().for_each(&mut lead),
                    State::Match { pattern_id } => flags |= patterns[pattern_id.as_usize()].1,
                    other => bail!("the scanner has no use for {other:?}"),
                }
            }
            machine.flags.push(flags);
            // Few classes lead to another set than the one before.
            let mut numbers = vec![DEAD; classes];
            for class in 0..classes {
                numbers[class] = match class.checked_sub(1) {
                    Some(before) if leads[before] == leads[class] => numbers[before],
                    _ => sets.number(&leads[class])?,
                };
            }
            let row = |byte| numbers[usize::from(class_of.get(byte))];
            let bytes: [u8; 256] = std::array::from_fn(|byte| byte.to_le_bytes()[0]);
            machine.next.push(bytes.map(row));
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
        let before = self.before();
        let mut alive = vec![false; self.next.len()];
        let ends = |state: &usize| self.flags[*state] & u32::from(END) != 0;
        let mut more: Vec<_> = (0..self.next.len()).filter(ends).collect();
        while let Some(state) = more.pop() {
            if !std::mem::replace(&mut alive[state], true) {
                more.extend(&before[state]);
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

    /// For each state those that lead to it.
    fn before(&self) -> Vec<Vec<usize>> {
        let mut before = vec![Vec::new(); self.next.len()];
        for (state, row) in self.next.iter().enumerate() {
            for next in row {
                if before[*next].last() != Some(&state) {
                    before[*next].push(state);
                }
            }
        }
        before
    }

    /// The same with as few states as there can be (Moore's algorithm): a state is as another if
    /// they raise the same flags and lead to the same. Of each group that turns out to be several, one keeps its number,
    /// and those that lead to the others are looked at again.
    pub(super) fn minimized(&self) -> Self {
        let (classes, count) = self.classes();
        let bytes: Vec<usize> = (0..count)
            .filter_map(|class| classes.iter().position(|of| usize::from(*of) == class))
            .collect();
        let before = self.before();
        let mut numbers = HashMap::new();
        let mut sizes = Vec::new();
        let mut groups = Vec::with_capacity(self.flags.len());
        for flags in &self.flags {
            let group = *numbers.entry(*flags).or_insert(sizes.len());
            if group == sizes.len() {
                sizes.push(0);
            }
            sizes[group] += 1;
            groups.push(group);
        }
        let mut moved: Vec<usize> = (0..groups.len()).collect();
        while !moved.is_empty() {
            let leading: BTreeSet<usize> = moved
                .iter()
                .flat_map(|state| before[*state].iter().copied())
                .collect();
            let mut looked_at = vec![0; sizes.len()];
            for state in &leading {
                looked_at[groups[*state]] += 1;
            }
            let mut kept: Vec<bool> = looked_at
                .iter()
                .zip(&sizes)
                .map(|(at, of)| at < of)
                .collect();
            let mut parts: HashMap<(usize, Vec<usize>), usize> = HashMap::new();
            let mut moves = Vec::new();
            for state in leading {
                let (row, group) = (&self.next[state], groups[state]);
                let leads = bytes.iter().map(|byte| groups[row[*byte]]).collect();
                let part = *parts.entry((group, leads)).or_insert_with(|| {
                    if std::mem::replace(&mut kept[group], true) {
                        sizes.push(0);
                        sizes.len() - 1
                    } else {
                        group
                    }
                });
                if part != group {
                    moves.push((state, part));
                }
            }
            for (state, part) in &moves {
                sizes[groups[*state]] -= 1;
                sizes[*part] += 1;
                groups[*state] = *part;
            }
            moved = moves.into_iter().map(|(state, _)| state).collect();
        }
        let mut minimal = Self {
            next: vec![[DEAD; 256]; sizes.len()],
            flags: vec![0; sizes.len()],
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

/// Sets of an NFA's states, numbered as they are found. The empty one is the dead state.
struct Sets<'a> {
    nfa: &'a NFA,
    /// In order.
    all: Vec<Vec<StateID>>,
    numbers: HashMap<Vec<StateID>, usize>,
    /// The same by what was asked.
    asked: HashMap<Vec<StateID>, usize>,
    /// When each state was met last, counted by questions.
    met: Vec<usize>,
}

impl<'a> Sets<'a> {
    fn new(nfa: &'a NFA) -> Self {
        Self {
            nfa,
            all: vec![Vec::new()],
            numbers: HashMap::from([(Vec::new(), DEAD)]),
            asked: HashMap::from([(Vec::new(), DEAD)]),
            met: vec![0; nfa.states().len()],
        }
    }

    /// The number of the set of these states and of all that they lead to without a byte.
    fn number(&mut self, states: &[StateID]) -> Result<usize> {
        if let Some(known) = self.asked.get(states) {
            return Ok(*known);
        }
        let question = self.asked.len();
        let mut set = Vec::new();
        let mut more = states.to_vec();
        while let Some(state) = more.pop() {
            if std::mem::replace(&mut self.met[state.as_usize()], question) == question {
                continue;
            }
            match self.nfa.state(state) {
                State::Union { alternates } => more.extend(alternates.iter()),
                State::BinaryUnion { alt1, alt2 } => more.extend([alt1, alt2]),
                State::Fail => {}
                State::Look { .. } => bail!("the scanner has no use for assertions"),
                _ => set.push(state),
            }
        }
        set.sort_unstable();
        let number = match self.numbers.get(&set) {
            Some(known) => *known,
            None => {
                self.numbers.insert(set.clone(), self.all.len());
                self.all.push(set);
                self.all.len() - 1
            }
        };
        self.asked.insert(states.to_vec(), number);
        Ok(number)
    }
}
