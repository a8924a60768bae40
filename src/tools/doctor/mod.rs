// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit doctor`: what this machine and these privileges allow, found by trying.

use std::io::{self, Write as _};

use anyhow::Result;
use serde::Serialize;
use time::OffsetDateTime;

use crate::cli;
use crate::failure::Failure;
use crate::output::{self, Event, Line, Settings, Style};
use crate::tools::sslsniff;

/// The name in events.
pub const NAME: &str = "doctor";

/// What `doctor` is asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tools to try; all of them where none is named
    #[arg(value_name = "TOOL")]
    tools: Vec<cli::ToolName>,
    /// Say which TLS implementations this process uses, and why one cannot be watched by sslsniff
    #[arg(short, long, value_name = "PID", value_parser = sslsniff::plan::parse_pid)]
    pid: Vec<u32>,
}

/// Whether a tool can be used here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Diagnosis {
    /// Everything works.
    Ready,
    /// It works, but for this.
    Degraded {
        /// What is lost, each with what would mend it.
        lost: Vec<String>,
    },
    /// It cannot work.
    Blocked {
        /// Why.
        why: String,
        /// The one thing that mends it.
        remedy: String,
    },
}

impl Diagnosis {
    /// Ready, or degraded if anything is lost.
    pub fn working(lost: Vec<String>) -> Self {
        if lost.is_empty() {
            Self::Ready
        } else {
            Self::Degraded { lost }
        }
    }

    /// Blocked by what `err` says.
    pub fn blocked(err: &anyhow::Error) -> Self {
        match crate::failure::find(err) {
            Some(Failure::Blocked { missing, remedy }) => Self::Blocked {
                why: missing.clone(),
                remedy: remedy.clone(),
            },
            _ => Self::Blocked {
                why: format!("{err:#}"),
                remedy: "see the message, and -vv for what the kernel said".to_owned(),
            },
        }
    }
}

#[derive(Debug, Serialize)]
struct Finding {
    #[serde(rename = "for")]
    tool: &'static str,
    #[serde(flatten)]
    diagnosis: Diagnosis,
}

impl Event for Finding {
    fn kind(&self) -> &'static str {
        "diagnosis"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        write!(line, "{}: ", self.tool)?;
        match &self.diagnosis {
            Diagnosis::Ready => line.styled(Style::Good, "ready"),
            Diagnosis::Degraded { lost } => {
                line.styled(Style::Note, "degraded")?;
                write!(line, ": {}", output::Printable(&lost.join("; ")))
            }
            Diagnosis::Blocked { why, remedy } => {
                line.styled(Style::Bad, "blocked")?;
                write!(
                    line,
                    ": {}; to mend it: {}",
                    output::Printable(why),
                    output::Printable(remedy)
                )
            }
        }
    }
}

/// Tries each tool and prints a line about it.
///
/// # Errors
/// [`Failure::Blocked`] if one of them cannot be used, and those of standard output.
pub fn run(args: &Args, settings: Settings) -> Result<()> {
    let mut sink = output::stdout(NAME, settings);
    if !args.pid.is_empty() {
        return processes(args, &mut sink);
    }
    let mut blocked = Vec::new();
    let asked: &[cli::ToolName] = if args.tools.is_empty() {
        cli::ToolName::ALL
    } else {
        &args.tools
    };
    for tool in asked {
        let finding = Finding {
            tool: tool.name(),
            diagnosis: tool.diagnose(),
        };
        if matches!(finding.diagnosis, Diagnosis::Blocked { .. }) {
            blocked.push(tool.name());
        }
        sink.event(OffsetDateTime::now_utc(), &finding)?;
    }
    sink.flush()?;
    if blocked.is_empty() {
        return Ok(());
    }
    Err(Failure::blocked(
        format!("{} cannot be used here", blocked.join(", ")),
        "see above",
    )
    .into())
}

/// Prints what each process has.
fn processes(args: &Args, sink: &mut output::Stdout) -> Result<()> {
    if args.tools.iter().any(|tool| tool.name() != sslsniff::NAME) {
        return Err(Failure::usage("--pid is about sslsniff: doctor sslsniff --pid PID").into());
    }
    let mut none = Vec::new();
    for pid in &args.pid {
        if !std::fs::exists(format!("/proc/{pid}")).unwrap_or(true) {
            return Err(Failure::usage(format!("--pid {pid}: no such process")).into());
        }
        let mut inspector = sslsniff::inspect::Inspector::default();
        let uses = inspector.inspect(*pid)?;
        inspector.tell(sink);
        if !uses.iter().any(|one| one.reason.is_none()) {
            none.push(pid.to_string());
        }
        for one in uses {
            sink.event(OffsetDateTime::now_utc(), &one)?;
        }
    }
    sink.flush()?;
    if none.is_empty() {
        return Ok(());
    }
    Err(Failure::blocked(
        format!("nothing to watch in process {}", none.join(", ")),
        "see above; a library may also be loaded later, and is watched then",
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(diagnosis: Diagnosis) -> String {
        let mut out = Vec::new();
        let finding = Finding {
            tool: "sslsniff",
            diagnosis,
        };
        finding.text(&mut Line::new(&mut out, false)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_says_what_is_lost_or_what_mends_it() {
        assert_eq!(text(Diagnosis::working(Vec::new())), "sslsniff: ready");
        assert_eq!(
            text(Diagnosis::working(vec![
                "no X".to_owned(),
                "no Y".to_owned()
            ])),
            "sslsniff: degraded: no X; no Y"
        );
        let err = Failure::blocked("CAP_BPF is missing", "give it").into();
        assert_eq!(
            text(Diagnosis::blocked(&err)),
            "sslsniff: blocked: CAP_BPF is missing; to mend it: give it"
        );
    }

    #[test]
    fn json_says_the_state_in_one_field() {
        let finding = Finding {
            tool: "sslsniff",
            diagnosis: Diagnosis::Ready,
        };
        let json = serde_json::to_value(finding).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"for": "sslsniff", "state": "ready"})
        );
    }
}
