// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit sslsniff`: shows what programs read from and write to TLS, in plaintext, by probes at
//! the functions of the TLS library that they use.

pub mod arrivals;
pub mod beginning;
pub mod cgroups;
pub mod command;
mod descriptors;
pub mod discover;
pub mod event;
pub mod facts;
mod files;
mod folders;
pub mod function;
pub mod har;
mod holds;
pub mod http;
pub mod inspect;
pub mod keylog;
mod live;
mod losses;
pub mod mask;
mod names;
mod notes;
pub mod payload;
pub mod pcap;
mod places;
pub mod plan;
pub mod probes;
pub mod record;
mod room;
mod scans;
pub mod session;
mod skips;
pub mod symbols;
pub mod views;
mod watch;

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use object::ReadCache;
use time::OffsetDateTime;

use self::arrivals::{Arrivals, Filter, Following, Names};
use self::command::Running;
use self::discover::{Found, Library, Places};
use self::event::Ready;
use self::function::Function;
use self::losses::{Losses, NotHeld};
use self::notes::{explain_events, nothing_to_watch, report, tell, tell_unwatched};
use self::plan::Plan;
use self::session::Session;
use self::views::Views;
use self::watch::{Totals, Watch};
use crate::failure::Failure;
use crate::kernel::cgroup;
use crate::kernel::clock::Wall;
use crate::kernel::features::Features;
use crate::kernel::mmap_events::MmapEvents;
use crate::kernel::privileges::{Capabilities, Capability};
use crate::kernel::ring::Ring;
use crate::kernel::stop::Stop;
use crate::kernel::uprobes::{self, Method, Scope};
use crate::output::{self, Format, Settings};
use crate::process::Directory;
use crate::terminal::Screen;
use crate::tools::doctor::Diagnosis;

/// The name on the command line and in events.
pub const NAME: &str = "sslsniff";

/// How often losses are looked for.
const LOSS_INTERVAL: Duration = Duration::from_secs(1);
/// How long records may gather before they are read together: each wake-up costs a watched machine
/// more than the wait costs a reader. The ring has room for far more.
const GATHER: Duration = Duration::from_millis(1);

/// Show what programs send and receive through TLS, in plaintext.
///
/// Watches every program that uses OpenSSL, a library with its functions, as BoringSSL has, or GnuTLS,
/// as a shared library or inside its executable, in any container; also those that start later. Filters of one kind
/// widen, filters of different kinds narrow: `-u alice -u bob -c curl` is curl run by alice or bob.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Values of headers that hold secrets (Authorization, Cookie, Set-Cookie, \
    X-Aws-Ec2-Metadata-Token and others) are replaced by * of the same length, and so are all \
    headers of HTTP/2, which are compressed; lengths and offsets stay true. All else is shown byte \
    by byte. Requests (--http, --live) and files (--pcap, --har) are masked alike.\n\n\
    With a COMMAND, sslsniff ends when it ends, and its status is in the summary. With -o json, \
    COMMAND's standard output goes to standard error, so that standard output has nothing but JSON \
    Lines. If sslsniff is ended first, COMMAND is sent SIGTERM."
)]
pub struct Args {
    /// Watch only this process and its children, those that it starts later too
    #[arg(short, long, value_name = "PID", value_parser = plan::parse_pid)]
    pid: Vec<u32>,
    /// Watch only processes of this user, by name or number
    #[arg(short, long, value_name = "USER")]
    user: Vec<String>,
    /// Watch only threads of this name, as /proc/PID/comm has it
    #[arg(short, long, value_name = "COMM")]
    comm: Vec<String>,
    /// Watch only this cgroup and those below: its path, a unit's name or a container's id
    #[arg(long, value_name = "PATH|UNIT|CONTAINER")]
    cgroup: Vec<String>,
    /// Watch only this library, or this program with a library inside
    #[arg(long, value_name = "PATH")]
    lib: Vec<PathBuf>,
    /// Show so many bytes of each call at most
    #[arg(long, value_name = "N", value_parser = plan::parse_size)]
    max_bytes: Option<u64>,
    /// Show requests of HTTP with their answers, a line each, in place of payload
    #[arg(long, conflicts_with_all = ["hex", "no_payload"])]
    http: bool,
    /// Write plaintext to this new file, as packets that Wireshark reads
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Write requests of HTTP and their answers to this new file, as an HTTP Archive
    #[arg(long, value_name = "FILE", conflicts_with = "no_payload")]
    har: Option<PathBuf>,
    /// Write the keys of connections to this new file, for Wireshark and others (NSS key log format)
    #[arg(long, value_name = "FILE")]
    keylog: Option<PathBuf>,
    /// Show connections, requests and payload on the whole terminal, as they change
    #[arg(long, conflicts_with_all = ["http", "hex", "command"])]
    live: bool,
    /// Show payload as a hex dump, also where it is text
    #[arg(long)]
    hex: bool,
    /// Show no payload, only how long it is
    #[arg(long, conflicts_with = "max_bytes")]
    no_payload: bool,
    /// Show how long each call took
    #[arg(long)]
    latency: bool,
    /// Show in which functions of the program each call was made
    #[arg(long, conflicts_with_all = ["http", "live"])]
    stack: bool,
    /// Show the values of headers that hold secrets
    #[arg(long)]
    show_secrets: bool,
    /// Room for payload that is not yet shown: a power of two, with K or M
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = plan::parse_ring)]
    buffer: u64,
    /// Stop a program that begins to execute from a file which was not looked into yet (SIGSTOP), until it
    /// was a moment later (SIGCONT), so that its first call is not missed
    #[arg(long)]
    hold: bool,
    /// Run this command and watch only it and its children
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs until a signal comes or the command ends.
///
/// # Errors
/// Of usage, of what the kernel refuses, and of standard output.
pub fn run(args: &Args, settings: Settings) -> Result<()> {
    let mut plan = Plan::of(args)?;
    plan.pids = discover::with_descendants(&plan.pids);
    if args.live {
        if settings.format == Format::Json {
            return Err(Failure::usage("--live: not together with -o json").into());
        }
        Screen::check("--live")?;
    }
    let stop = Stop::on_signals()?;
    let descriptors = descriptors::raise();
    let mut sink = output::stdout(NAME, settings);
    let program = program(&plan)?;
    // Before the search, so that nothing falls between the two.
    let events = MmapEvents::open();
    let method = Method::of(&Features::probe());
    let found = libraries(&plan, program, method, &stop)?;
    if is_stopped(&stop) {
        return Ok(());
    }
    tell(&found, &sink);
    if settings.verbose > 0 {
        tell_unwatched(&plan.pids, &stop, &sink)?;
    }
    if let Err(err) = &events {
        sink.note(&format!(
            "libraries that processes begin to use from now on are not watched, but for the \
             machine's own: {}",
            explain_events(err)
        ));
    }
    if !found.libraries.iter().any(Library::is_tls) {
        if events.is_err() {
            return Err(nothing_to_watch(&found));
        }
        sink.note("no program uses a TLS library yet");
    }

    let mut views = Views::of(args)?;
    let mut object = MaybeUninit::uninit();
    let mut watch = Watch::load(&mut object, &plan, method)?;
    if let Some(why) = watch.follow()? {
        sink.note(&format!("the peers of connections stay unknown: {why}"));
    }
    let names = Names::default();
    let mut arrivals = Arrivals::new(watch.attacher()?, found, names.clone(), watch.twins()?);
    let (libraries, skipped) = arrivals.start()?;
    report(&skipped, &sink);
    // Those that started while nobody followed their parents yet.
    watch.add_pids(&discover::with_descendants(&plan.pids))?;
    let filter = Filter {
        only: plan
            .only
            .iter()
            .filter_map(|path| path.canonicalize().ok())
            .collect(),
        process: watch.by_number()?,
        hold: args.hold,
    };
    // What nobody tells of would wait for ever.
    let holds = events.as_ref().map_or(Ok(None), |_| watch.hold())?;
    if args.hold && holds.is_none() && events.is_ok() {
        sink.note("--hold: this kernel cannot stop programs itself: they are stopped a moment after they map a library");
    }
    let mut following = arrivals.follow(events.ok(), holds, filter, &stop)?;
    views.keep();
    sink.ready(&Ready {
        libraries,
        skipped,
        method: method.name(),
    })?;

    let directory = Directory::new(cgroup::mount());
    let style = session::Style {
        hex: args.hex,
        show_secrets: args.show_secrets,
        latency: args.latency,
        stacks: args.stack,
    };
    if args.live {
        // Nothing else may write to the terminal while it is taken over.
        let quiet = Settings {
            quiet: true,
            verbose: 0,
            ..settings
        };
        sink = output::nowhere(NAME, quiet);
        views
            .open_screen(output::colored(settings))
            .context("cannot take the terminal over")?;
    }
    let session = Session::new(sink, style, names, directory)
        .with_views(views)
        .with_leftovers(watch.leftovers()?);
    let session = RefCell::new(session);
    let command = match &plan.command {
        None => None,
        Some((program, args)) => {
            let taken = settings.format == Format::Json;
            Some(watch.with_children(|| Running::start(program, args, taken, descriptors, &stop))?)
        }
    };
    let commanded = command.is_some();
    let totals = follow(&mut watch, &mut following, &session, &stop, commanded)?;

    let mut summary = totals.summary(session.borrow().shown());
    if let Some(mut command) = command {
        (summary.command_status, summary.command_signal) = command.outcome();
    }
    let mut session = session.into_inner();
    session.finish()?;
    if session.shown().malformed > 0 {
        bail!("{} records made no sense", session.shown().malformed);
    }
    if args.live {
        session.views().close_screen();
        output::nowhere(NAME, settings).summary(&summary)?;
    } else {
        session.sink().summary(&summary)?;
    }
    Ok(())
}

/// The file of the command, before anything is done that it would be too late after.
fn program(plan: &Plan) -> Result<Option<PathBuf>> {
    let Some((program, _)) = &plan.command else {
        return Ok(None);
    };
    // Without a PATH, where execvp(3) looks.
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let Some(file) = discover::program_file(program, &path) else {
        return Err(Failure::usage(format!(
            "cannot run the command {}: there is no executable file of that name",
            program.display()
        ))
        .into());
    };
    Ok(Some(file))
}

fn libraries(plan: &Plan, program: Option<PathBuf>, method: Method, stop: &Stop) -> Result<Found> {
    let places = Places {
        only: plan.only.clone(),
        pids: if plan.command.is_some() {
            Vec::new()
        } else {
            plan.pids.clone()
        },
        program,
        method: Some(method),
    };
    discover::discover(&places, &|| is_stopped(stop))
}

/// Whether the program is to end; what cannot be asked shows up where it waits.
fn is_stopped(stop: &Stop) -> bool {
    stop.wait(&[], Some(Duration::ZERO))
        .is_ok_and(|woken| woken.stopped)
}

/// Shows what comes until the end, then takes the probes off and shows the rest. With `commanded`, the end of what is
/// watched is the end.
fn follow(
    watch: &mut Watch<'_>,
    following: &mut Following,
    session: &RefCell<Session<impl std::io::Write>>,
    stop: &Stop,
    commanded: bool,
) -> Result<Totals> {
    let mut losses = Losses::default();
    let mut not_held = NotHeld::default();
    let records = watch.records()?;
    let wall = Cell::new(Wall::default());
    let ring = Ring::new(&records, |record| {
        let time = |stamp| wall.get().time(stamp);
        Ok(session.borrow_mut().record(record, time)?)
    })?;
    let drain = || {
        let mut now = wall.get();
        now.look();
        wall.set(now);
        ring.drain()
    };
    let stdin = std::io::stdin();
    let mut looked = Instant::now();
    let mut over = commanded;
    loop {
        show_arrivals(following, &mut session.borrow_mut())?;
        let drained = drain()?;
        if drained > 0 {
            session.borrow_mut().flush()?;
        }
        if looked.elapsed() >= LOSS_INTERVAL {
            looked = Instant::now();
            let totals = watch.totals()?;
            let mut session = session.borrow_mut();
            if !over && watch.is_over() {
                over = true;
                session.sink().note(
                    "all processes that were to be watched have ended, and so have their children: nothing more comes",
                );
            }
            not_held.report(following.pauses(), totals.not_held(), session.sink());
            if totals.any_lost() {
                losses.report(watch.losses()?, session.sink())?;
                session.sink().flush()?;
            }
        }
        if session.borrow_mut().views().tick()? {
            break;
        }
        let mut sources: Vec<BorrowedFd<'_>> = Vec::with_capacity(2);
        let mut longest = GATHER;
        if drained == 0 {
            sources.push(ring.fd());
            longest = LOSS_INTERVAL.saturating_sub(looked.elapsed());
        }
        if session.borrow_mut().views().is_live() {
            sources.push(stdin.as_fd());
            longest = longest.min(live::FRAME);
        }
        if stop.wait(&sources, Some(longest))?.stopped {
            break;
        }
    }
    following.end()?;
    watch.detach();
    while drain()? > 0 {}
    show_arrivals(following, &mut session.borrow_mut())?;
    let totals = watch.totals()?;
    let mut session = session.borrow_mut();
    if totals.any_lost() {
        losses.report(watch.losses()?, session.sink())?;
        losses.rest(&totals, session.sink())?;
    }
    session.sink().flush()?;
    Ok(totals)
}

fn show_arrivals(following: &Following, session: &mut Session<impl std::io::Write>) -> Result<()> {
    for arrived in following.arrived() {
        session.sink().event(OffsetDateTime::now_utc(), &arrived)?;
        session.sink().flush()?;
    }
    Ok(())
}

/// Tries to load and to attach, to a place in ebpfkit itself that is only passed at its start.
pub fn diagnose() -> Diagnosis {
    let features = Features::probe();
    let mut lost = Vec::new();
    if !features.uprobe_multi {
        let names = if features.uprobe_cookie {
            ""
        } else {
            ", and lines name the library only if there is one"
        };
        lost.push(format!(
            "no uprobe.multi (kernel 6.6): the way to attach that is left needs {}{names}",
            Capability::SysAdmin
        ));
    }
    if !Capabilities::effective().has(Capability::SysPtrace) {
        lost.push(format!(
            "libraries in other users' processes are not looked for: give it {}",
            Capability::SysPtrace
        ));
    }
    if let Err(err) = MmapEvents::open() {
        lost.push(format!(
            "libraries that processes begin to use later are not watched, but for the machine's own: {}",
            explain_events(&err)
        ));
    }
    match try_out(Method::of(&features)) {
        Ok(()) => Diagnosis::working(lost),
        Err(err) => Diagnosis::blocked(&err),
    }
}

fn try_out(method: Method) -> Result<()> {
    let file = uprobes::own_executable()?;
    let offset = symbols::entry(&ReadCache::new(&file))?.context("this executable has no entry")?;
    let library = Library {
        path: PathBuf::from("/proc/self/exe"),
        file,
        offsets: vec![(Function::Read, offset)],
        required: true,
        id: (0, 0),
        version: ((0, 0), 0),
        mapped: None,
    };
    let mut object = MaybeUninit::uninit();
    let mut watch = Watch::load(&mut object, &Plan::default(), method)?;
    watch.follow()?;
    let attacher = watch.attacher()?;
    attacher
        .attach(&library, 1, Scope::Myself)
        .map(drop)
        .map_err(|(err, function)| attacher.refused(err, function, &library.path))
}
