// SPDX-License-Identifier: BSD-2-Clause

//! Parse, run, turn an error into a message and an exit code.

// Nothing that comes from outside ends the program in the middle.
#![warn(clippy::unwrap_used, clippy::expect_used)]

use std::process::ExitCode;

use clap::Parser as _;
use ebpfkit::cli::Cli;
use ebpfkit::{failure, output};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            // A closed pipe on `--help` is no failure, and there is nobody left to tell.
            let _ = err.print();
            return ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(failure::USAGE));
        }
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) if failure::is_closed_pipe(&err) => ExitCode::SUCCESS,
        Err(err) => {
            output::say(format_args!("{}", failure::message(&err)));
            ExitCode::from(failure::exit_code(&err))
        }
    }
}
