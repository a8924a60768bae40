// SPDX-License-Identifier: BSD-2-Clause

//! The manual pages: what clap knows of the command line, and after it the sections of `docs/man`
//! that are written by hand.
//!
//! `ebpfkit(8)` has the common options; each tool has a page, with a part for each of its own
//! commands, so that a guard's manual is one page and not eight. The language is man(7).

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_mangen::Man;

/// The section of programs for administrators.
const SECTION: &str = "8";

/// What clap cannot know, by page: examples, files, capabilities, exit status, see also.
const WRITTEN: &[(&str, &str)] = &[
    ("ebpfkit", include_str!("../../docs/man/ebpfkit.8")),
    (
        "ebpfkit-tc-guard",
        include_str!("../../docs/man/ebpfkit-tc-guard.8"),
    ),
    (
        "ebpfkit-imds-watch",
        include_str!("../../docs/man/ebpfkit-imds-watch.8"),
    ),
    (
        "ebpfkit-sslsniff",
        include_str!("../../docs/man/ebpfkit-sslsniff.8"),
    ),
    (
        "ebpfkit-doctor",
        include_str!("../../docs/man/ebpfkit-doctor.8"),
    ),
];

/// Pages of files, which clap knows nothing of: name, section, text from NAME on.
const FILES: &[(&str, &str, &str)] = &[(
    "ebpfkit-tc-guard.toml",
    "5",
    include_str!("../../docs/man/ebpfkit-tc-guard.toml.5"),
)];

/// One manual page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Such as `ebpfkit-doctor`.
    pub name: String,
    /// Such as `8`.
    pub section: &'static str,
    /// The page, in man(7).
    pub text: String,
}

impl Page {
    /// Such as `ebpfkit-doctor.8`.
    pub fn file_name(&self) -> String {
        format!("{}.{}", self.name, self.section)
    }
}

/// The pages of `command`, of each tool that its help shows and of files, as of `date` (`YYYY-MM-DD`).
///
/// # Errors
/// If a tool has no sections in `docs/man`.
pub fn pages(command: &Command, date: &str) -> Result<Vec<Page>> {
    let mut pages = vec![program_page(command, date)?];
    for tool in visible(command) {
        pages.push(tool_page(command, tool, date)?);
    }
    for (name, section, text) in FILES {
        pages.push(Page {
            name: (*name).to_owned(),
            section,
            text: tidy(&(header(name, section, date) + text)),
        });
    }
    Ok(pages)
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
}

fn program_page(command: &Command, date: &str) -> Result<Page> {
    let name = command.get_name().to_owned();
    let mut text = header(&name, SECTION, date);
    let _ = write!(text, ".SH NAME\n{name} \\- {}\n", about(command));
    // The exit status, which the help ends with, is told in full in a section by hand.
    let man = Man::new(command.clone().after_help(""));
    text.push_str(&rendered(|out| man.render_synopsis_section(out))?);
    text.push_str(written(&name, "DESCRIPTION")?);
    text.push_str(&rendered(|out| man.render_options_section(out))?);
    text.push_str(".SH COMMANDS\n");
    for tool in visible(command) {
        let tool_name = escape(tool.get_name());
        let _ = writeln!(text, ".TP\n\\fB{name}\\-{tool_name}\\fR({SECTION})");
        let _ = writeln!(text, "{}", about(tool));
    }
    text.push_str(written(&name, "AFTER")?);
    Ok(page(name, &text))
}

fn tool_page(program: &Command, tool: &Command, date: &str) -> Result<Page> {
    let name = format!("{}-{}", program.get_name(), tool.get_name());
    let spoken = format!("{} {}", program.get_name(), tool.get_name());
    let mut text = header(&name, SECTION, date);
    let _ = write!(text, ".SH NAME\n{} \\- {}\n", escape(&name), about(tool));
    text.push_str(".SH SYNOPSIS\n");
    let commands: Vec<_> = visible(tool).collect();
    if commands.is_empty() {
        text.push_str(&synopsis(&spoken, tool)?);
    }
    for (n, command) in commands.iter().enumerate() {
        if n > 0 {
            text.push_str(".br\n");
        }
        text.push_str(&synopsis(
            &format!("{spoken} {}", command.get_name()),
            command,
        )?);
    }
    text.push_str(written(&name, "DESCRIPTION")?);
    if commands.is_empty() {
        text.push_str(&options(&spoken, tool)?);
    } else {
        text.push_str(".SH COMMANDS\n");
    }
    for command in commands {
        let _ = writeln!(text, ".SS {}", escape(command.get_name()));
        let _ = writeln!(text, "{}.", about(command));
        let of_command = options(&format!("{spoken} {}", command.get_name()), command)?;
        // Below the heading of the command, the options need none of their own.
        for line in of_command.lines() {
            match line.strip_prefix(".SH ") {
                Some("OPTIONS") => {}
                Some(heading) => {
                    let _ = writeln!(text, ".PP\n{heading}:");
                }
                None => {
                    let _ = writeln!(text, "{line}");
                }
            }
        }
    }
    text.push_str(written(&name, "AFTER")?);
    Ok(page(name, &text))
}

fn page(name: String, text: &str) -> Page {
    Page {
        name,
        section: SECTION,
        text: tidy(text),
    }
}

fn header(name: &str, section: &str, date: &str) -> String {
    format!(
        ".\\\" Made by `ebpfkit generate man` from what --help is made from, and docs/man.\n\
         .ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n\
         .TH {} {section} {date} \"ebpfkit {}\" \"ebpfkit manual\"\n",
        escape(name).to_uppercase(),
        env!("CARGO_PKG_VERSION"),
    )
}

/// The synopsis without `.SH`, of a command that is not the root: `ebpfkit tc-guard run …`.
fn synopsis(spoken: &str, command: &Command) -> Result<String> {
    let man = Man::new(standalone(spoken, command));
    Ok(without_heading(&rendered(|out| {
        man.render_synopsis_section(out)
    })?))
}

fn options(spoken: &str, command: &Command) -> Result<String> {
    let man = Man::new(standalone(spoken, command));
    let text = rendered(|out| man.render_options_section(out))?;
    Ok(without_preamble(&text))
}

/// The command as if it were a program of its own, so that the common options are not among its
/// options.
fn standalone(spoken: &str, command: &Command) -> Command {
    command.clone().bin_name(spoken).disable_version_flag(true)
}

fn about(command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string);
    escape(about.unwrap_or_default().trim_end_matches('.'))
}

fn rendered(render: impl Fn(&mut dyn std::io::Write) -> std::io::Result<()>) -> Result<String> {
    let mut out = Vec::new();
    render(&mut out).context("cannot render a manual page")?;
    let text = String::from_utf8(out).context("a manual page is not UTF-8")?;
    Ok(without_preamble(&text))
}

/// Every piece that clap_mangen renders begins with the same definition of an apostrophe; a page
/// has it once.
fn without_preamble(text: &str) -> String {
    let kept: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with(".ie \\n(.g") && !line.starts_with(".el .ds Aq"))
        .collect();
    kept.join("\n") + "\n"
}

fn without_heading(text: &str) -> String {
    let kept: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with(".SH "))
        .collect();
    kept.join("\n") + "\n"
}

/// The hand-written part of a page: `DESCRIPTION` is that section, `AFTER` all that follows it.
fn written(name: &str, part: &str) -> Result<&'static str> {
    let (_, text) = WRITTEN
        .iter()
        .find(|(page, _)| *page == name)
        .with_context(|| format!("no docs/man/{name}.{SECTION} for the manual page"))?;
    let start = text
        .find(".SH DESCRIPTION")
        .with_context(|| format!("docs/man/{name}.{SECTION} has no DESCRIPTION"))?;
    let end = text[start + 1..]
        .find("\n.SH ")
        .map_or(text.len(), |end| start + 1 + end + 1);
    Ok(match part {
        "DESCRIPTION" => &text[start..end],
        _ => &text[end..],
    })
}

/// Lines of at most 80 characters, with no blanks at their ends and no empty ones, as `mandoc -T lint`
/// wants them; examples keep their lines.
fn tidy(text: &str) -> String {
    let mut tidied = String::new();
    let mut example = false;
    for line in text.replace("\n.br\n\n.br\n", "\n.sp\n").lines() {
        let line = line.trim_end();
        if line == ".EX" || line == ".EE" {
            example = line == ".EX";
        }
        if line.starts_with(['.', '\'']) || example {
            tidied.push_str(line);
            tidied.push('\n');
        } else {
            wrap(line, &mut tidied);
        }
    }
    tidied
}

/// Breaks a line at its blanks. A word that roff would take for a request at the start of a line
/// stays behind the one before it.
fn wrap(line: &str, out: &mut String) {
    const WIDTH: usize = 80;
    let mut column = 0;
    for word in line.split(' ').filter(|word| !word.is_empty()) {
        let width = word.chars().count();
        if column > 0 {
            let breaks = column + 1 + width > WIDTH && !word.starts_with(['.', '\'']);
            out.push(if breaks { '\n' } else { ' ' });
            column = if breaks { 0 } else { column + 1 };
        }
        out.push_str(word);
        column += width;
    }
    if column > 0 {
        out.push('\n');
    }
}

/// What roff would read as its own: backslashes and hyphens.
fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn all() -> Vec<Page> {
        pages(&Cli::command(), "2026-01-01").expect("every tool has sections")
    }

    /// Every long option that `command` and the commands below it have.
    fn options_of(command: &Command, into: &mut Vec<String>) {
        into.extend(
            command
                .get_arguments()
                .filter(|arg| !arg.is_hide_set())
                .filter_map(clap::Arg::get_long)
                .map(str::to_owned),
        );
        for below in visible(command) {
            options_of(below, into);
        }
    }

    #[test]
    fn every_tool_has_a_page_with_all_its_options() {
        let command = Cli::command();
        let pages = all();
        for tool in visible(&command) {
            let name = format!("ebpfkit-{}", tool.get_name());
            let page = pages.iter().find(|page| page.name == name);
            let text = &page.unwrap_or_else(|| panic!("no {name}")).text;
            let mut options = Vec::new();
            options_of(tool, &mut options);
            for option in options {
                let shown = format!("\\fB\\-\\-{}\\fR", escape(&option));
                assert!(text.contains(&shown), "{name} has no --{option}");
            }
        }
    }

    #[test]
    fn pages_have_the_sections_that_readers_look_for() {
        for page in all() {
            let program = page.section == SECTION;
            let wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"];
            let of_files = |section: &&str| program || *section != "EXIT STATUS";
            for section in wanted.into_iter().filter(of_files) {
                let heading = format!("\n.SH {section}\n");
                let times = page.text.matches(&heading).count();
                assert_eq!(times, 1, "{}: {section}", page.name);
            }
        }
    }

    #[test]
    fn common_options_are_told_once() {
        for page in all() {
            let told = page.text.contains("\\fB\\-\\-color\\fR");
            assert_eq!(told, page.name == "ebpfkit", "{}", page.name);
        }
    }

    #[test]
    fn wrapped_lines_begin_with_no_request_and_lose_no_word() {
        let line = format!(
            "{} .so /etc/passwd {}",
            "word ".repeat(15),
            "more ".repeat(20)
        );
        let mut wrapped = String::new();
        wrap(&line, &mut wrapped);
        assert!(wrapped.lines().count() > 1);
        assert!(
            wrapped.lines().all(|line| !line.starts_with('.')),
            "{wrapped}"
        );
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(words(&line), words(&wrapped));
    }
}
