// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit imds-watch`: shows the requests to metadata services that would break, leak or be
//! abused, and who made them.

pub mod answers;
mod body;
pub mod callers;
pub mod capture;
pub mod command_line;
mod ends;
pub mod event;
pub mod flow;
mod guard;
mod hints;
pub mod hosts;
mod live;
mod names;
mod owners;
pub mod packet;
pub mod paths;
pub mod permitted;
pub mod plan;
pub mod program;
mod reader;
pub mod request;
pub mod rules;
pub mod scan;
pub mod scanner;
pub mod watchlist;

use std::mem::MaybeUninit;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use libbpf_rs::OpenObject;

use self::capture::Capture;
use self::event::Ready;
use self::guard::Guard;
use self::permitted::Permitted;
use self::plan::Plan;
use self::program::{Wanted, Watch};
use self::reader::{Options, Reader};
use self::rules::Rules;
use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::kernel::interfaces;
use crate::kernel::stop::Stop;
use crate::output::{self, Format, Settings};
use crate::terminal::Screen;
use crate::tools::doctor::Diagnosis;

/// The name on the command line and in events.
pub const NAME: &str = "imds-watch";

/// What imds-watch is told.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// Clouds whose metadata services are watched, or all; all where no endpoint is given either
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    cloud: Vec<String>,
    /// A service to watch: ADDR[/PREFIX][:PORT[-PORT]]
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Vec<Endpoint>,
    /// Interfaces to watch; all of this network namespace where none is named
    #[arg(short, long, value_name = "IFACE")]
    interface: Vec<String>,
    /// Show every request, the clean ones too
    #[arg(long)]
    all: bool,
    /// Show no requests but, at the end, who made how many with and without a session token, and
    /// whether it is safe to require IMDSv2
    #[arg(long)]
    summary: bool,
    /// Show that table, its verdict and the latest findings on the whole terminal, as they change; and
    /// the table once more at the end
    #[arg(long, conflicts_with = "summary")]
    live: bool,
    /// Own rules: names of the service, paths and headers to tell about (TOML)
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// A user that may ask (name or uid); with one or more of these, requests of all others are told
    /// about
    #[arg(long, value_name = "USER")]
    allow_user: Vec<String>,
    /// A policy of tc-guard: requests of those that its rules do not name are told about. Where
    /// neither this nor --allow-user is given, the policy of the guard that is pinned here counts
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Where bpffs is mounted in which a guard is pinned; found if it is not given
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["allow_user", "policy"])]
    bpffs: Option<PathBuf>,
    /// Do not look for a guard and its policy
    #[arg(long, conflicts_with = "bpffs")]
    ignore_guard: bool,
    /// Write the packets of what is told about to a new file (pcapng), findings and process as
    /// comments; they are whole, tokens included
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Show in which functions of the program the connection was opened
    #[arg(long)]
    stack: bool,
    /// Show command lines whole, with the values that are masked otherwise
    #[arg(long)]
    show_secrets: bool,
}

impl Args {
    /// Indices and names.
    fn interfaces(&self) -> Result<Vec<(i32, String)>> {
        if self.interface.is_empty() {
            // All of them, those to come included.
            return Ok(vec![(0, String::new())]);
        }
        let chosen = interfaces::chosen(&self.interface)?;
        let pairs = chosen.into_iter().map(|one| (one.index, one.name));
        Ok(pairs.collect())
    }
}

/// Watches until it is told to stop.
///
/// # Errors
/// Wrong arguments, a kernel or privileges that do not allow it, or a closed output.
pub fn run(args: &Args, settings: Settings) -> Result<()> {
    if args.live {
        if settings.format == Format::Json {
            return Err(Failure::usage("--live: not together with -o json").into());
        }
        Screen::check("--live")?;
    }
    let rules = match &args.rules {
        Some(path) => Rules::read(path)?,
        None => Rules::default(),
    };
    let mut permitted = Permitted::new(&args.allow_user, args.policy.as_deref())?;
    let mut sink = output::stdout(NAME, settings);
    let mut guard = None;
    if permitted.is_none() && !args.ignore_guard {
        match Guard::find(args.bpffs.as_deref()) {
            Ok(None) => {}
            Ok(Some((found, origin, policy))) => {
                sink.note(&format!(
                    "a guard is in force here, and requests of those that it does not let ask are told \
                     about; {origin}"
                ));
                guard = Some(found);
                permitted = Some(policy);
            }
            Err(err) if args.bpffs.is_some() => return Err(err),
            Err(err) => sink.note(&format!("no user is judged by a guard's policy: {err:#}")),
        }
    }
    let plan = Plan::new(&args.cloud, &args.endpoint)?
        .with_rules(rules)
        .with_permitted(permitted);
    if let Some(path) = &args.rules {
        let watched: Vec<_> = plan
            .targets
            .iter()
            .map(|one| one.endpoint.clone())
            .collect();
        for rule in plan.rules.unmet(&watched) {
            sink.note(&format!(
                "rules {}:{}: rule {:?} finds nothing: none of its endpoints is watched",
                path.display(),
                rule.line,
                rule.name
            ));
        }
    }
    let list = plan.watchlist()?;
    let chosen = args.interfaces()?;
    let interfaces: Vec<_> = chosen.iter().map(|(index, _)| *index).collect();
    let stop = Stop::on_signals()?;
    let mut object = MaybeUninit::<OpenObject>::uninit();
    let wanted = Wanted {
        all: args.all || args.summary || args.live,
        stacks: args.stack,
    };
    let mut watch = Watch::start(&mut object, &plan, &interfaces, wanted)?;
    // Not before it is known to run: what it makes would be in the way of the next try.
    let capture = args.pcap.as_deref().map(Capture::create).transpose()?;
    for lost in watch.lost() {
        sink.note(lost);
    }
    sink.ready(&Ready {
        endpoints: plan
            .targets
            .iter()
            .map(|target| target.endpoint.to_string())
            .collect(),
        attribution: watch.has_hooks(),
        lineage: watch.has_lineage(),
    })?;
    let options = Options {
        all: args.all,
        summary: args.summary || args.live,
        show_secrets: args.show_secrets,
        stacks: args.stack,
        capture: capture::Kept::new(capture),
        guard,
    };
    let mut reader = Reader::new(&plan, &list, options);
    let ended = if args.live {
        // Nothing else may write to the terminal while it is taken over.
        let quiet = Settings {
            quiet: true,
            verbose: 0,
            ..settings
        };
        reader
            .open_view(output::colored(settings))
            .context("cannot take the terminal over")?;
        let mut nowhere = output::nowhere(NAME, quiet);
        let ended = reader.follow(&mut watch, &chosen, &stop, &mut nowhere);
        reader.close_view();
        ended
    } else {
        reader.follow(&mut watch, &chosen, &stop, &mut sink)
    };
    let finished = reader.finish(&mut watch, &mut sink);
    ended.and(finished)
}

/// Tries everything but waiting.
pub fn diagnose() -> Diagnosis {
    let tried = || -> Result<Vec<String>> {
        let plan = Plan::new(&[], &[])?;
        let mut object = MaybeUninit::<OpenObject>::uninit();
        let watch = Watch::start(&mut object, &plan, &[0], Wanted::default())?;
        Ok(watch.lost().to_vec())
    };
    match tried() {
        Ok(lost) => Diagnosis::working(lost),
        Err(err) => Diagnosis::blocked(&err),
    }
}
