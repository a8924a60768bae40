// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit generate`, for packagers and for those who installed the binary alone: manual pages and
//! shell completions, from the same definitions as `--help`. It is left out of the help of people
//! who came to guard and watch.

pub mod manual;

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap_complete::Shell;
use time::OffsetDateTime;

use crate::failure::Failure;

/// The name on the command line.
pub const NAME: &str = "generate";

/// What is made, and where it goes.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Write the manual pages as files NAME.SECTION into a directory, which is made if need be
    Man {
        /// Where the files go; files of the same names are replaced
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Write the completions for a shell to standard output
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
}

/// Makes what the arguments say for `command`, the whole command line.
///
/// # Errors
/// If a file cannot be written.
pub fn run(args: &Args, mut command: clap::Command) -> Result<()> {
    match &args.what {
        What::Man { directory } => {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make the directory {}", directory.display()))?;
            for page in manual::pages(&command, &date()?)? {
                let path = directory.join(page.file_name());
                fs::write(&path, page.text)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        What::Completions { shell } => {
            let name = command.get_name().to_owned();
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command, name, &mut script);
            io::stdout().lock().write_all(&script)?;
        }
    }
    Ok(())
}

/// Today, or the day that `SOURCE_DATE_EPOCH` names (seconds since 1970), so that what is built
/// twice is the same: <https://reproducible-builds.org/specs/source-date-epoch/>.
fn date() -> Result<String> {
    let now = match env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => seconds
            .parse()
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .ok_or_else(|| {
                Failure::usage(format!(
                    "SOURCE_DATE_EPOCH is {seconds:?}, and not seconds since 1970"
                ))
            })?,
        Err(_) => OffsetDateTime::now_utc(),
    };
    Ok(now.date().to_string())
}
