// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard learn`: watches who uses what, denies nothing, and writes a policy that would
//! allow just that.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use libbpf_rs::MapHandle;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::event::VerdictEvent;
use super::hold::Hold;
use super::learned::Learned;
use super::plan::Plan;
use super::policy::{Mode, Policy, Rule, interface_name};
use super::programs::NetnsBy;
use super::report::{Key, Reported, Sample, Tally};
use super::run::Place;
use super::statement::Statement;
use super::{NAME, pinned};
use crate::endpoint::Endpoint;
use crate::kernel::ring::Ring;
use crate::kernel::stop::Stop;
use crate::kernel::{cgroup, pin};
use crate::metadata;
use crate::output::{self, Event, Format, Line, Printable, Settings};
use crate::process::{Directory, Identity};

/// What `learn` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    watched: Watched,
    /// How long, such as 10m or 1h30m; until a signal if it is not given
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    how_long: Option<Duration>,
    /// Interfaces to watch, as they come; all but loopback if none is given
    #[arg(short, long = "interface", value_name = "IFACE", value_parser = interface_name)]
    interfaces: Vec<String>,
    /// A new file for the policy; standard output if it is not given
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Watched {
    /// Clouds whose metadata service is watched: names, or all
    #[arg(long = "cloud", value_name = "NAME", value_delimiter = ',')]
    clouds: Vec<String>,
    /// What else is watched: ADDR[/PREFIX][:PORT[-PORT]][/tcp|udp]
    #[arg(long = "endpoint", value_name = "ENDPOINT")]
    endpoints: Vec<Endpoint>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("{why}; expected such as 90s, 10m or 1h30m");
    let found = humantime::parse_duration(text).map_err(|err| wrong(&err))?;
    if found.is_zero() {
        return Err(wrong(&"nothing can be learned in no time"));
    }
    Ok(found)
}

#[derive(Debug, Serialize)]
struct Ready<'a> {
    interfaces: Vec<&'a str>,
    endpoints: Vec<String>,
}

impl Event for Ready<'_> {
    fn kind(&self) -> &'static str {
        "ready"
    }

    fn text(&self, line: &mut Line<'_>) -> io::Result<()> {
        let interfaces = self.interfaces.join(", ");
        write!(
            line,
            "watching {} on {}",
            self.endpoints.join(", "),
            Printable(&interfaces)
        )
    }
}

/// The policy, where standard output has JSON Lines.
#[derive(Debug, Serialize)]
struct Wrote<'a> {
    subjects: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    toml: &'a str,
}

impl Event for Wrote<'_> {
    fn kind(&self) -> &'static str {
        "learned"
    }

    fn text(&self, _: &mut Line<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// From records to what was learned.
struct Observer {
    tally: Tally,
    directory: Directory,
    /// Who was last seen behind each key of the kernel's table.
    seen: HashMap<Key, Identity>,
    learned: Learned,
}

impl Observer {
    fn record(&mut self, record: &[u8]) -> Result<()> {
        if let Some(reported) = self.tally.sample(Sample::from_bytes(record)?) {
            self.learn(&reported);
        }
        Ok(())
    }

    fn sweep(&mut self, hold: &Hold) -> Result<()> {
        for (key, total) in hold.guard.reports()? {
            if let Some(reported) = self.tally.total(key, total) {
                self.learn(&reported);
            }
        }
        Ok(())
    }

    fn learn(&mut self, reported: &Reported) {
        let event = VerdictEvent::new(reported, "", |_| None, &mut self.directory);
        // Segments of a connection whose socket has gone belong to who opened it, who was seen.
        if event.reason == "partial-socket" {
            return;
        }
        let foreign = event.reason == "foreign-socket";
        let endpoint = reported.key.endpoint;
        // What the ring had no room for is only counted: as theirs who were seen.
        let identity = match (&reported.sample, self.seen.get(&reported.key)) {
            (None, Some(seen)) => seen,
            _ => &event.identity,
        };
        self.learned
            .used(identity, foreign, endpoint, reported.count);
        if reported.sample.is_some() {
            self.seen.insert(reported.key, event.identity);
        }
    }
}

/// Watches until the time is over or a signal comes, and writes the policy.
///
/// # Errors
/// What the kernel refuses; a guard that is in force here, as it would hide what it denies.
pub fn run(args: &Args, settings: Settings) -> Result<()> {
    let mut endpoints = metadata::endpoints(&args.watched.clouds)?;
    endpoints.extend_from_slice(&args.watched.endpoints);
    let policy = Policy {
        rules: vec![Rule {
            endpoints,
            ..Rule::default()
        }],
        mode: Mode::Audit,
        interfaces: args.interfaces.clone(),
        ..Policy::default()
    };
    let root = cgroup::mount();
    let mut plan = Plan::new(&policy, root.as_deref())?;
    // Two services of one user are told apart by each packet's cgroup.
    plan.report_each = true;
    // Before anything is watched for an hour.
    let mut file = match &args.write {
        Some(path) => Some(
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(path)
                .with_context(|| format!("cannot make the file {}", path.display()))?,
        ),
        None => None,
    };
    let bpffs = pin::bpffs(args.place.bpffs.as_deref(), false)?;
    let stop = Stop::on_signals()?;
    let mut sink = output::stdout(NAME, settings);
    let (_instance, _) = pinned::only(bpffs.as_deref())?;
    let started = OffsetDateTime::now_utc();
    let statement = Statement::new(&policy, None, false, &plan, NetnsBy::any(), started);
    let bpffs = bpffs.as_deref();
    let mut hold = Hold::by_process(&policy, &plan, &statement, root.as_deref(), bpffs)?;
    let requests = Requests::start(args);
    sink.ready(&Ready {
        interfaces: hold.interfaces.iter().map(|at| at.name.as_str()).collect(),
        endpoints: plan
            .endpoints
            .iter()
            .map(|at| at.endpoint.to_string())
            .collect(),
    })?;

    let observer = RefCell::new(Observer {
        tally: Tally::default(),
        directory: Directory::new(root),
        seen: HashMap::new(),
        learned: Learned::default(),
    });
    let watched = watch(&mut hold, &observer, &stop, args.how_long);
    observer.borrow_mut().sweep(&hold)?;
    drop(hold);
    watched?;
    let mut learned = observer.into_inner().learned;
    let looked_at = requests.is_some();
    for identity in requests.map(Requests::end).unwrap_or_default() {
        learned.imdsv1(&identity);
    }

    let seconds = (OffsetDateTime::now_utc() - started).whole_seconds();
    let head = format!(
        "Learned by ebpfkit tc-guard learn from {}, in {}.\n\
         Take out whoever should not be here; try it with --audit before it is enforced.",
        output::rfc3339(started)?,
        humantime::format_duration(Duration::from_secs(seconds.unsigned_abs()))
    );
    let targets = plan.endpoints.iter().map(|target| &target.endpoint);
    let names: Vec<_> = targets
        .map(|at| (at.to_string(), at.name.clone()))
        .collect();
    let text = learned.policy(&head, &names, looked_at);
    if let Some(file) = &mut file {
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .context("cannot write the policy")?;
    }
    let written = args.write.as_ref().map(|path| path.display().to_string());
    if settings.format == Format::Json {
        let wrote = Wrote {
            subjects: learned.subjects(),
            file: written,
            toml: &text,
        };
        sink.event(OffsetDateTime::now_utc(), &wrote)?;
    } else if written.is_none() {
        io::stdout().write_all(text.as_bytes())?;
    } else {
        sink.note(&format!("{} callers may be allowed", learned.subjects()));
    }
    Ok(sink.flush()?)
}

/// How often the kernel's table is read for what came without an event.
const SWEEP: Duration = Duration::from_secs(2);

fn watch(
    hold: &mut Hold,
    observer: &RefCell<Observer>,
    stop: &Stop,
    how_long: Option<Duration>,
) -> Result<()> {
    let events = MapHandle::try_from(hold.guard.events())?;
    let ring = Ring::new(&events, |record| observer.borrow_mut().record(record))?;
    let end = how_long.map(|how_long| Instant::now() + how_long);
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let wait = left.map_or(SWEEP, |left| left.min(SWEEP));
        let sources: Vec<_> = [ring.fd()].into_iter().chain(hold.fds()).collect();
        let woken = stop.wait(&sources, Some(wait))?;
        if woken.ready[1] {
            hold.follow()?;
        }
        while ring.drain()? > 0 {}
        if woken.stopped || left.is_some_and(|left| left.is_zero()) {
            return Ok(());
        }
    }
}

/// Requests without a session token, as `ebpfkit imds-watch` tells of them.
struct Requests {
    child: Child,
    found: Receiver<Identity>,
}

impl Requests {
    /// Starts it; nothing if it cannot run here.
    fn start(args: &Args) -> Option<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["-q", "-o", "json", "imds-watch"]);
        for cloud in &args.watched.clouds {
            command.args(["--cloud", cloud]);
        }
        if args.watched.clouds.is_empty() {
            return None;
        }
        for interface in &args.interfaces {
            command.args(["-i", interface]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        let mut lines = BufReader::new(child.stdout.take()?)
            .lines()
            .map_while(Result::ok);
        // Its first line says that it watches; without one it has ended.
        if lines.next().is_none() {
            let _ = child.wait();
            return None;
        }
        let (send, found) = channel();
        thread::spawn(move || {
            for line in lines {
                if let Some(identity) = serde_json::from_str(&line).ok().and_then(|at| imdsv1(&at))
                    && send.send(identity).is_err()
                {
                    return;
                }
            }
        });
        Some(Self { child, found })
    }

    /// Ends it; whoever made such requests.
    fn end(mut self) -> Vec<Identity> {
        let _ = kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGTERM,
        );
        let found = self.found.iter().collect();
        let _ = self.child.wait();
        found
    }
}

/// Who made the request in a line of imds-watch, if it had no session token.
fn imdsv1(line: &Value) -> Option<Identity> {
    let findings = line["findings"].as_array()?;
    if line["kind"] != "request" || !findings.iter().any(|finding| finding == "imdsv1") {
        return None;
    }
    let text = |field: &str| line[field].as_str().map(str::to_owned);
    let mut identity = Identity {
        uid: line["uid"].as_u64().and_then(|uid| u32::try_from(uid).ok()),
        user: text("user"),
        exe: text("exe"),
        comm: text("comm"),
        ..Identity::default()
    };
    if let Some(cgroup) = text("cgroup") {
        identity.set_cgroup(&cgroup);
    }
    Some(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_what_people_write() {
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        for wrong in ["", "10", "0s", "-1m", "ten minutes"] {
            let err = duration(wrong).unwrap_err();
            assert!(err.contains("expected such as"), "{err}");
        }
    }

    #[test]
    fn requests_without_a_token_are_told_from_others() {
        let line = serde_json::json!({
            "kind": "request", "findings": ["imdsv1", "credentials"], "uid": 33,
            "exe": "/usr/bin/curl", "cgroup": "/system.slice/nginx.service"
        });
        let identity = imdsv1(&line).unwrap();
        assert_eq!(
            (identity.uid, identity.unit.as_deref()),
            (Some(33), Some("nginx.service"))
        );
        for other in [
            serde_json::json!({"kind": "request", "findings": ["forwarded"], "uid": 33}),
            serde_json::json!({"kind": "summary"}),
        ] {
            assert_eq!(imdsv1(&other), None);
        }
    }
}
