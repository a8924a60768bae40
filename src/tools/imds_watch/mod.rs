// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit imds-watch`: shows the requests to metadata services that would break, leak or be
//! abused, and who made them.

pub mod event;
pub mod flow;
pub mod packet;
pub mod paths;
pub mod plan;
pub mod program;
pub mod request;
pub mod scanner;

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use libbpf_rs::OpenObject;
use time::OffsetDateTime;

use self::event::{Lost, Ready, Seen};
use self::flow::{Flows, Found, Key};
use self::packet::Packet;
use self::paths::Secrets;
use self::plan::Plan;
use self::program::Watch;
use self::request::Request;
use crate::endpoint::Endpoint;
use crate::kernel::packet_socket::Received;
use crate::kernel::stop::Stop;
use crate::kernel::{cgroup, interfaces, socket_table};
use crate::output::{self, Settings, Stdout};
use crate::process::{Directory, Identity};
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
    let plan = Plan::new(&args.cloud, &args.endpoint)?;
    let chosen = args.interfaces()?;
    let interfaces: Vec<_> = chosen.iter().map(|(index, _)| *index).collect();
    let stop = Stop::on_signals()?;
    let mut sink = output::stdout(NAME, settings);
    let mut object = MaybeUninit::<OpenObject>::uninit();
    let mut watch = Watch::start(&mut object, &plan, &interfaces, args.all)?;
    for lost in watch.lost() {
        sink.note(lost);
    }
    sink.ready(&Ready {
        endpoints: plan
            .targets
            .iter()
            .map(|target| target.endpoint.to_string())
            .collect(),
        attribution: watch.lost().is_empty(),
    })?;
    let mut reader = Reader::new(&plan, args.all)?;
    let ended = reader.follow(&mut watch, &chosen, &stop, &mut sink);
    let finished = reader.finish(&mut watch, &mut sink);
    ended.and(finished)
}

/// Tries everything but waiting.
pub fn diagnose() -> Diagnosis {
    let tried = || -> Result<Vec<String>> {
        let plan = Plan::new(&[], &[])?;
        let mut object = MaybeUninit::<OpenObject>::uninit();
        let watch = Watch::start(&mut object, &plan, &[0], false)?;
        Ok(watch.lost().to_vec())
    };
    match tried() {
        Ok(lost) => Diagnosis::working(lost),
        Err(err) => Diagnosis::blocked(&err),
    }
}

/// What is kept of a packet until its request is whole.
#[derive(Debug, Clone)]
struct Meta {
    time: OffsetDateTime,
    interface: i32,
    identity: Identity,
}

/// Packets in, lines out.
#[derive(Debug)]
struct Reader<'p> {
    plan: &'p Plan,
    all: bool,
    flows: Flows<Meta>,
    directory: Directory,
    names: HashMap<i32, String>,
    /// What `/proc` said, and when, of the owners of sockets, by inode, that no hook saw.
    older: HashMap<u64, (Instant, Identity)>,
    delivered: u64,
    requests: u64,
    lost: u64,
}

/// How often the sockets are asked what they lost, while there are packets.
const LOSS: Duration = Duration::from_secs(1);
/// Sockets that no hook saw and whose owners are remembered,
const MOST_OLDER: usize = 1024;
/// and how long.
const OLDER: Duration = Duration::from_secs(1);
/// Packets that are read before the reader looks at signals again.
const BATCH: usize = 1024;

impl<'p> Reader<'p> {
    fn new(plan: &'p Plan, all: bool) -> Result<Self> {
        Ok(Self {
            plan,
            all,
            flows: Flows::new(Secrets::new()?),
            directory: Directory::new(cgroup::mount()),
            names: HashMap::new(),
            older: HashMap::new(),
            delivered: 0,
            requests: 0,
            lost: 0,
        })
    }

    fn follow(
        &mut self,
        watch: &mut Watch<'_>,
        interfaces: &[(i32, String)],
        stop: &Stop,
        sink: &mut Stdout,
    ) -> Result<()> {
        let mut buffer = program::buffer();
        // When to ask for lost packets, if there were any at all.
        let mut ask: Option<Instant> = None;
        // The kernel tells when an interface goes down, and not when it is then removed.
        let mut was_down = false;
        loop {
            let sources: Vec<_> = watch
                .sockets()
                .iter()
                .map(|socket| socket.as_fd())
                .collect();
            let patience = (!self.flows.is_empty()).then_some(flow::PATIENCE / 4);
            let until = ask.map(|at| at.saturating_duration_since(Instant::now()));
            let retry = was_down.then_some(LOSS);
            let timeout = patience.into_iter().chain(until).chain(retry).min();
            let woken = stop.wait(&sources, timeout)?;
            if woken.stopped {
                return Ok(());
            }
            // A socket has no packet though it is ready where its interface is down or gone.
            for (socket, ready) in watch.sockets().iter().zip(woken.ready) {
                let before = self.delivered;
                for _ in 0..BATCH {
                    let Some(received) = socket.receive(&mut buffer)? else {
                        break;
                    };
                    self.packet(watch, received, &buffer, sink)?;
                }
                was_down |= ready && self.delivered == before;
                if self.delivered != before && ask.is_none() {
                    ask = Some(Instant::now() + LOSS);
                }
            }
            if ask.is_some_and(|at| Instant::now() >= at) {
                ask = None;
                self.lose(watch.dropped()?, sink)?;
            }
            if was_down {
                Self::let_go(watch, interfaces, sink)?;
            }
            let given_up = self.flows.expire(Instant::now());
            self.show(given_up, sink)?;
            sink.flush()?;
        }
    }

    /// Tells how many packets were lost since it was last told; `all` counts from the beginning.
    fn lose(&mut self, all: u64, sink: &mut Stdout) -> Result<()> {
        let packets = all.saturating_sub(self.lost);
        self.lost = all;
        if packets > 0 {
            sink.event(OffsetDateTime::now_utc(), &Lost { packets })?;
        }
        Ok(())
    }

    /// Goes on without the interfaces that are gone, if any is left.
    fn let_go(
        watch: &mut Watch<'_>,
        interfaces: &[(i32, String)],
        sink: &mut Stdout,
    ) -> Result<()> {
        for gone in watch.close_gone()? {
            for (_, name) in interfaces.iter().filter(|(index, _)| *index == gone) {
                sink.note(&format!("interface {name} is gone"));
            }
        }
        if watch.sockets().is_empty() {
            bail!("there is no interface left to watch");
        }
        Ok(())
    }

    /// Shows what is left, and the summary.
    fn finish(&mut self, watch: &mut Watch<'_>, sink: &mut Stdout) -> Result<()> {
        let mut summary =
            watch.finish(|watch, received, bytes| self.packet(watch, received, bytes, sink))?;
        let rest = self.flows.finish();
        self.show(rest, sink)?;
        self.lose(summary.lost, sink)?;
        summary.delivered = self.delivered;
        summary.requests = self.requests;
        sink.summary(&summary)?;
        Ok(())
    }

    fn packet(
        &mut self,
        watch: &Watch<'_>,
        received: Received,
        buffer: &[u8],
        sink: &mut Stdout,
    ) -> Result<()> {
        self.delivered += 1;
        let bytes = &buffer[..received.length.min(buffer.len())];
        let wanted = |address| self.plan.target(address, None).is_some();
        let Some(packet) = packet::decode(bytes, received.protocol, wanted) else {
            return Ok(());
        };
        let mut meta = Meta {
            time: OffsetDateTime::now_utc(),
            interface: received.interface,
            identity: Identity::default(),
        };
        let unparsable = || Request {
            unparsable: true,
            ..Request::default()
        };
        match packet {
            Packet::Opaque { src, dst } => {
                let places = (src.to_string(), dst.to_string());
                let endpoint = self.plan.target(dst, None);
                let (name, mask) = endpoint.map_or(("", 0), |target| {
                    (target.endpoint.name.as_str(), target.mask)
                });
                self.print(name, mask, places, &meta, unparsable(), sink)
            }
            Packet::Piece {
                src,
                dst,
                seq,
                payload,
                reliable,
            } => {
                meta.identity = self.who(watch, (src, dst));
                if !reliable || received.length > buffer.len() {
                    let found = Found {
                        key: (src, dst),
                        meta,
                        request: unparsable(),
                    };
                    return self.show(vec![found], sink);
                }
                let found = self
                    .flows
                    .push((src, dst), seq, payload, meta, Instant::now());
                self.show(found, sink)
            }
        }
    }

    fn show(&mut self, found: Vec<Found<Meta>>, sink: &mut Stdout) -> Result<()> {
        for Found {
            key: (src, dst),
            meta,
            request,
        } in found
        {
            let target = self.plan.target(dst.ip(), Some(dst.port()));
            let (name, mask) = target.map_or(("", 0), |target| {
                (target.endpoint.name.as_str(), target.mask)
            });
            self.print(
                name,
                mask,
                (src.to_string(), dst.to_string()),
                &meta,
                request,
                sink,
            )?;
        }
        Ok(())
    }

    fn print(
        &mut self,
        endpoint: &str,
        mask: u64,
        (src, dst): (String, String),
        meta: &Meta,
        request: Request,
        sink: &mut Stdout,
    ) -> Result<()> {
        let findings = plan::findings(&request, mask);
        if findings.is_empty() && !self.all {
            return Ok(());
        }
        self.requests += 1;
        sink.event(
            meta.time,
            &Seen {
                endpoint: endpoint.to_owned(),
                method: request.method,
                path: request.path,
                query: request.query,
                headers: request.headers,
                findings,
                interface: self.interface(meta.interface),
                src,
                dst,
                identity: meta.identity.clone(),
            },
        )?;
        Ok(())
    }

    /// Who opened the connection: as the hooks recorded it, else as `/proc` shows it.
    ///
    /// A record is found by addresses and ports alone: where two network namespaces have the same
    /// flow at once, the later one is named for both.
    fn who(&mut self, watch: &Watch<'_>, key: Key) -> Identity {
        let (src, dst) = key;
        if let Some(record) = watch.opened(src, dst) {
            return record.identity(&mut self.directory);
        }
        self.older_owner(src, dst).unwrap_or_default()
    }

    /// Who has the socket open, by its inode: the next connection may have the same ports.
    fn older_owner(&mut self, src: SocketAddr, dst: SocketAddr) -> Option<Identity> {
        let socket = socket_table::find(src, dst)?;
        let now = Instant::now();
        if let Some((since, identity)) = self.older.get(&socket.inode)
            && now.saturating_duration_since(*since) < OLDER
        {
            return Some(identity.clone());
        }
        let mut identity = Identity {
            uid: Some(socket.uid),
            user: self.directory.user(socket.uid),
            ..Identity::default()
        };
        if let Some(pid) = socket_table::holder(socket.inode) {
            self.directory.fill(&mut identity, pid);
        }
        if self.older.len() >= MOST_OLDER {
            self.older.clear();
        }
        self.older.insert(socket.inode, (now, identity.clone()));
        Some(identity)
    }

    fn interface(&mut self, index: i32) -> Option<String> {
        if !self.names.contains_key(&index) {
            let all = interfaces::all().ok()?;
            self.names = all
                .into_iter()
                .map(|interface| (interface.index, interface.name))
                .collect();
        }
        self.names.get(&index).cloned()
    }
}
