// SPDX-License-Identifier: BSD-2-Clause

//! Where calls were made: a stack comes ahead of what its call did, and waits for it here.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::sync::Arc;

use serde::Serialize;

use super::function::Function;
use super::record::Header;
use crate::kernel::stacks::{self, Frame, Stacks};
use crate::output::{Line, Printable, Style};

/// Threads whose calls are awaited; as many as in the kernel (`MAX_THREADS`). What is awaited in vain
/// was lost, and is forgotten with all others beyond.
const MOST_THREADS: usize = 10240;

/// Before each function: less than before payload, which no program can make look like one.
const INDENT: &str = "  ";

/// Where a call was made, if that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MadeIn {
    /// The functions that its thread is in, the innermost first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<Vec<Frame>>,
    /// Why that is not all, or why there are no names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_reason: Option<&'static str>,
}

impl MadeIn {
    /// Writes a line for each function.
    pub(super) fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        for frame in self.stack.iter().flatten() {
            let frame = frame.to_string();
            write!(line, "\n{INDENT}")?;
            line.styled(Style::Dim, format_args!("at {}", Printable(&frame)))?;
        }
        match self.stack_reason {
            Some(reason) => {
                write!(line, "\n{INDENT}")?;
                line.styled(Style::Dim, format_args!("({reason})"))
            }
            None => Ok(()),
        }
    }
}

/// Stacks under way.
#[derive(Debug, Default)]
pub(super) struct Places {
    stacks: Stacks,
    /// By thread: of which SSL object, when the call returned, and the instruction pointers.
    waiting: HashMap<u32, ((u64, u64), Vec<u64>)>,
}

impl Places {
    /// A process is seen for the first time, or may be another program by now.
    pub(super) fn meet(&mut self, pid: u32) {
        self.stacks.meet(pid);
    }

    /// Keeps the stack in a record for the call that follows.
    pub(super) fn keep(&mut self, header: &Header, stack: &[u8]) {
        if self.waiting.len() >= MOST_THREADS {
            self.waiting.clear();
        }
        if let Some(addresses) = stacks::parse(stack) {
            let call = (header.ssl, header.time_ns);
            self.waiting.insert(header.tid, (call, addresses));
        }
    }

    /// The stack of the call that a record tells of, given to the first that asks: from the function
    /// itself on.
    pub(super) fn take(
        &mut self,
        header: &Header,
        function: Function,
        library: Option<&Arc<str>>,
    ) -> MadeIn {
        let waiting = self.waiting.remove(&header.tid);
        // Those of a call before it may have been left by one whose own record was lost.
        let call = (header.ssl, header.time_ns);
        let Some((_, addresses)) = waiting.filter(|(of, _)| *of == call) else {
            return MadeIn::default();
        };
        let called = Frame {
            function: Some(function.name().into()),
            file: library.cloned(),
            ..Frame::default()
        };
        let stack = self.stacks.name(header.pid, &addresses);
        let frames = std::iter::once(called).chain(stack.frames);
        MadeIn {
            stack: Some(frames.collect()),
            stack_reason: stack.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_lines_below_the_call_and_no_terminal_obeys_them() {
        let frame = |function: &str| Frame {
            function: Some(function.into()),
            file: Some("/tmp/a\nb".into()),
            ..Frame::default()
        };
        let made = MadeIn {
            stack: Some(vec![frame("SSL_write"), frame("\u{1b}[31mevil\u{202e}")]),
            stack_reason: Some("for a reason"),
        };
        let mut bytes = Vec::new();
        made.text(&mut Line::new(&mut bytes, false)).unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "\n  at SSL_write (/tmp/a\\nb)\n  at \\u{1b}[31mevil\\u{202e} (/tmp/a\\nb)\n  (for a reason)"
        );
        let nothing = serde_json::to_value(MadeIn::default()).unwrap();
        assert_eq!(nothing, serde_json::json!({}));
    }
}
