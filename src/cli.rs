// SPDX-License-Identifier: BSD-2-Clause

//! The command line, and the only registry of tools.

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::generate;
use crate::kernel;
use crate::output::{Color, Format, Settings};
use crate::tools::doctor::Diagnosis;
use crate::tools::{doctor, imds_watch, sslsniff, tc_guard};

/// Guard the cloud metadata service and watch TLS, with eBPF.
#[derive(Debug, Parser)]
#[command(
    name = "ebpfkit",
    version,
    about,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Exit status: 0 done; 1 failed; 2 wrong usage; 3 this kernel or these privileges \
                  cannot run it."
)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Common options")]
struct Common {
    /// Say more on standard error; -vv adds what libbpf says, -vvv all of it
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// Say nothing on standard error but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// When to colour text; NO_COLOR is honoured
    #[arg(long, value_enum, default_value_t, global = true, value_name = "WHEN")]
    color: Color,
    /// Form of the results: text, or json for JSON Lines
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        global = true,
        value_name = "FORMAT"
    )]
    output: Format,
}

/// A line for each tool.
#[derive(Debug, Subcommand)]
enum Tool {
    /// Let only chosen users reach the metadata service
    TcGuard(tc_guard::Args),
    /// Show suspicious requests to the metadata service, and who made them
    ImdsWatch(imds_watch::Args),
    /// Show what programs send and receive through TLS, in plaintext
    Sslsniff(sslsniff::Args),
    /// Say what this machine and these privileges allow
    Doctor(doctor::Args),
    /// Write manual pages and shell completions
    #[command(hide = true)]
    Generate(generate::Args),
}

/// The tools that `doctor` can be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ToolName {
    /// tc-guard
    TcGuard,
    /// imds-watch
    ImdsWatch,
    /// sslsniff
    Sslsniff,
}

impl ToolName {
    /// In the order in which they are shown.
    pub const ALL: &'static [Self] = &[Self::TcGuard, Self::ImdsWatch, Self::Sslsniff];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcGuard => tc_guard::NAME,
            Self::ImdsWatch => imds_watch::NAME,
            Self::Sslsniff => sslsniff::NAME,
        }
    }

    /// Tries the tool.
    pub fn diagnose(self) -> Diagnosis {
        match self {
            Self::TcGuard => tc_guard::diagnose(),
            Self::ImdsWatch => imds_watch::diagnose(),
            Self::Sslsniff => sslsniff::diagnose(),
        }
    }
}

impl Cli {
    /// Runs what was asked for.
    ///
    /// # Errors
    /// What ended the tool before its time; [`crate::failure`] says what becomes of it.
    pub fn run(self) -> Result<()> {
        let Common {
            verbose,
            quiet,
            color,
            output,
        } = self.common;
        kernel::bpf::set_verbosity(verbose);
        let settings = Settings {
            format: output,
            color,
            verbose,
            quiet,
        };
        match self.tool {
            Tool::TcGuard(args) => tc_guard::run(&args, settings),
            Tool::ImdsWatch(args) => imds_watch::run(&args, settings),
            Tool::Sslsniff(args) => sslsniff::run(&args, settings),
            Tool::Doctor(args) => doctor::run(&args, settings),
            Tool::Generate(args) => generate::run(&args, Self::command()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_agree_with_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_tool_has_a_doctor() {
        let named: Vec<_> = ToolName::ALL.iter().map(|tool| tool.name()).collect();
        let command = Cli::command();
        let tools: Vec<_> = command
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(clap::Command::get_name)
            .filter(|name| *name != doctor::NAME)
            .collect();
        assert_eq!(named, tools);
    }
}
