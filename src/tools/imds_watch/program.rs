// SPDX-License-Identifier: BSD-2-Clause

//! The programs of imds-watch at work: loaded, attached, read and taken off again.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result, bail};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{Link, MapCore as _, MapFlags, OpenObject};

use super::event::Summary;
use super::hints::hints;
use super::plan::Plan;
use super::scanner::Scanner;
use crate::failure::Failure;
use crate::kernel::identity::flow_key;
use crate::kernel::lineage::Caller;
use crate::kernel::packet_socket::{NEEDED, PacketSocket, Received};
use crate::kernel::privileges::{self, Capabilities, Capability};
use crate::kernel::{bpf, cgroup, endpoints, features, namespace, stacks};
use crate::skel::imds_watch::{ImdsWatchSkel, ImdsWatchSkelBuilder};

/// Bytes that a socket may hold for a reader that is late: some ten thousand requests.
const SOCKET_BUFFER: usize = 16 << 20;
/// `SNAP_LENGTH` of `imds_watch.h`.
const SNAP_LENGTH: usize = 131_072;
/// `struct imds_seen` of `imds_watch.bpf.c`.
const SEEN_BYTES: usize = 64;

/// What goes up and is recorded besides what has to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Clean requests go up, too.
    pub all: bool,
    /// The functions that call connect() are recorded.
    pub stacks: bool,
}

/// What is loaded.
#[derive(Debug, Clone, Copy)]
struct Loading {
    /// What records who connects.
    hooks: bool,
    /// And what that is.
    lineage: bool,
    wanted: Wanted,
}

/// Room for the longest packet that comes up.
pub fn buffer() -> Vec<u8> {
    vec![0; SNAP_LENGTH]
}

/// Everything that is held in the kernel; dropping it leaves nothing behind.
pub struct Watch<'o> {
    // Dropped in this order: hooks, sockets, programs.
    hooks: Vec<Link>,
    sockets: Vec<PacketSocket>,
    skel: ImdsWatchSkel<'o>,
    lost: Vec<String>,
    lineage: bool,
    /// The hooks, where there are some, are of the whole cgroup2 tree, and not of a cgroup namespace's part.
    whole: bool,
    /// Packets that those sockets lost which are there no more.
    dropped: u64,
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

impl<'o> Watch<'o> {
    /// Loads the programs, records who connects, and opens a socket for each of `interfaces` (an
    /// index, or 0 for all of them).
    ///
    /// # Errors
    /// If the socket filter cannot be loaded or attached, or stacks cannot be recorded that are `wanted`.
    /// Without the hooks it goes on, and [`Watch::lost`] says what that costs.
    pub fn start(
        object: &'o mut MaybeUninit<OpenObject>,
        plan: &Plan,
        interfaces: &[i32],
        wanted: Wanted,
    ) -> Result<Self> {
        let missing = Capabilities::effective().missing(&[Capability::NetAdmin]);
        let place = if missing.is_empty() {
            cgroup::mount_or_part().ok_or_else(|| "cgroup2 is not mounted here".to_owned())
        } else {
            Err(format!("{} is missing", privileges::list(&missing)))
        };
        let loading = Loading {
            hooks: place.is_ok(),
            lineage: place.is_ok() && features::cgroup_reads_tasks(),
            wanted,
        };
        let lineage = loading.lineage;
        let skel = load_with(object, plan, loading)?;
        let mut watch = Self {
            hooks: Vec::new(),
            sockets: Vec::new(),
            skel,
            lost: Vec::new(),
            lineage,
            whole: cgroup::mount().is_some(),
            dropped: 0,
        };
        let hooked = place.and_then(|root| watch.hook(&root).map_err(|err| format!("{err:#}")));
        if wanted.stacks {
            let stacks = hooked.clone().and_then(|()| watch.follow_stacks());
            stacks.map_err(|why| {
                Failure::blocked(
                    format!("--stack: the functions that make a call cannot be recorded: {why}"),
                    "give it the capabilities and the cgroup2 mount that naming the process takes, too, \
                     or leave --stack out",
                )
            })?;
        }
        if let Err(why) = hooked {
            watch.hooks.clear();
            watch.lineage = false;
            watch.lost.push(format!(
                "{why}: processes that are gone by the time their request is shown, and those of \
                 other network namespaces, are not named"
            ));
        }
        if watch.has_hooks() && !watch.whole {
            let why = "of cgroup2 only the part of a cgroup namespace is mounted here: processes \
                       elsewhere that are gone by the time their request is shown are not named";
            watch.lost.push(why.to_owned());
        }
        if watch.has_hooks() && !lineage {
            let why = "this kernel or these privileges do not let cgroup hooks read a task: parents \
                       and command lines are not known";
            watch.lost.push(why.to_owned());
        }
        for interface in interfaces {
            let filter = watch.skel.progs.imds_watch.as_fd();
            watch
                .sockets
                .push(PacketSocket::new(filter, *interface, SOCKET_BUFFER)?);
        }
        Ok(watch)
    }

    fn hook(&mut self, root: &std::path::Path) -> Result<()> {
        let cgroup = File::open(root).with_context(|| format!("cannot open {}", root.display()))?;
        let programs = &self.skel.progs;
        // What connects from now on is recorded only if all three are there: the last one first.
        for program in [
            &programs.imds_sockops,
            &programs.imds_connect4,
            &programs.imds_connect6,
        ] {
            let link = program
                .attach_cgroup(cgroup.as_raw_fd())
                .with_context(|| format!("cannot attach to the cgroup {}", root.display()))?;
            self.hooks.push(link);
        }
        Ok(())
    }

    fn follow_stacks(&mut self) -> Result<(), String> {
        let link = self.skel.progs.imds_stack.attach();
        self.hooks.push(link.map_err(|err| {
            format!("cannot attach to the tracepoint inet_sock_set_state: {err:#}")
        })?);
        Ok(())
    }

    /// Whether processes are recorded as they connect.
    pub fn has_hooks(&self) -> bool {
        !self.hooks.is_empty()
    }

    /// Whether they see every connection that is opened.
    pub fn sees_all(&self) -> bool {
        self.has_hooks() && self.whole
    }

    /// Whether their parents, executables and command lines are, too.
    pub fn has_lineage(&self) -> bool {
        self.lineage
    }

    /// What does not work here, for the user.
    pub fn lost(&self) -> &[String] {
        &self.lost
    }

    /// The sockets, one for each interface.
    pub fn sockets(&self) -> &[PacketSocket] {
        &self.sockets
    }

    /// Packets that came up and found the queue full, from the beginning.
    ///
    /// # Errors
    /// Those of the sockets.
    pub fn dropped(&mut self) -> Result<u64> {
        let mut all = self.dropped;
        for socket in &mut self.sockets {
            all += socket.dropped()?;
        }
        Ok(all)
    }

    /// Closes the sockets whose interfaces are gone; says which interfaces those were.
    ///
    /// # Errors
    /// Those of the sockets.
    pub fn close_gone(&mut self) -> Result<Vec<i32>> {
        let mut closed = Vec::new();
        for mut socket in self.sockets.extract_if(.., |socket| socket.is_gone()) {
            self.dropped += socket.dropped()?;
            closed.push(socket.interface());
        }
        Ok(closed)
    }

    /// Who opened this connection, where a hook has seen it.
    pub fn opened(&self, src: SocketAddr, dst: SocketAddr) -> Option<Caller> {
        let found = self
            .skel
            .maps
            .opened
            .lookup(&flow_key(src, dst), MapFlags::ANY);
        Caller::parse(&found.ok()??)
    }

    /// The instruction pointers of the thread that connected the socket with this cookie, the
    /// innermost first; `None` if they were not recorded, or are forgotten.
    pub fn stack(&self, cookie: u64) -> Option<Vec<u64>> {
        let stacks = &self.skel.maps.stacks;
        let found = stacks.lookup(&cookie.to_ne_bytes(), MapFlags::ANY);
        stacks::parse(&found.ok()??)
    }

    /// Puts these users in the place of those whose clean requests are of no interest. Those who are
    /// none any more go first: a request too many comes up rather than one too few.
    ///
    /// # Errors
    /// If the table cannot be written.
    pub fn know(&self, users: &BTreeSet<u32>) -> Result<()> {
        let map = &self.skel.maps.known_users;
        let uid = |key: &Vec<u8>| Some(u32::from_ne_bytes(key.as_slice().try_into().ok()?));
        let old: Vec<_> = map.keys().collect();
        let gone = old
            .iter()
            .filter(|key| uid(key).is_none_or(|uid| !users.contains(&uid)));
        for key in gone {
            map.delete(key).context("cannot write the table of users")?;
        }
        know(&self.skel, users.iter())
    }

    /// Where the piece of a stream ended that was before this one, if this does not begin there, as far
    /// as the filter remembers.
    pub fn expected(&self, src: SocketAddr, dst: SocketAddr, seq: u32) -> Option<u32> {
        expected(&self.skel, src, dst, seq)
    }

    /// Stops the programs, gives `packet` what is still queued, and counts.
    ///
    /// # Errors
    /// Those of the sockets, of `packet`, and of the map of counters.
    pub fn finish(
        &mut self,
        mut packet: impl FnMut(&Self, Received, &[u8]) -> Result<()>,
    ) -> Result<Summary> {
        for socket in &self.sockets {
            socket.close_filter()?;
        }
        let mut buffer = buffer();
        for socket in &self.sockets {
            while let Some(received) = socket.receive(&mut buffer)? {
                packet(self, received, &buffer)?;
            }
        }
        self.hooks.clear();
        let mut summary = self.counters()?;
        summary.lost = self.dropped()?;
        Ok(summary)
    }

    fn counters(&self) -> Result<Summary> {
        let zero = 0_u32.to_ne_bytes();
        let found = self.skel.maps.counters.lookup_percpu(&zero, MapFlags::ANY);
        let Some(cpus) = found.context("cannot read the counters")? else {
            bail!("the counters are gone");
        };
        let mut summary = Summary::default();
        for cpu in cpus {
            let (longs, _) = cpu.as_chunks::<8>();
            let mut longs = longs.iter().map(|long| u64::from_ne_bytes(*long));
            let mut next = || longs.next().unwrap_or(0);
            summary.seen += next();
            summary.concerning += next();
            summary.clean += next();
            summary.delivered += next();
        }
        let found = self.skel.maps.bss_seen.lookup(&zero, MapFlags::ANY);
        let Some(seen) = found.context("cannot read the counters")? else {
            bail!("the counters are gone");
        };
        let (places, _) = seen.as_chunks::<SEEN_BYTES>();
        summary.seen += places
            .iter()
            .filter_map(|place| place.first_chunk())
            .map(|packets| u64::from_ne_bytes(*packets))
            .sum::<u64>();
        Ok(summary)
    }
}

/// Adds users to those whose clean requests are of no interest.
fn know<'u>(skel: &ImdsWatchSkel<'_>, users: impl Iterator<Item = &'u u32>) -> Result<()> {
    let map = &skel.maps.known_users;
    for uid in users {
        map.update(&uid.to_ne_bytes(), &[1], MapFlags::ANY)
            .context("cannot write the table of users")?;
    }
    Ok(())
}

/// [`Watch::expected`] of programs alone.
pub fn expected(
    skel: &ImdsWatchSkel<'_>,
    src: SocketAddr,
    dst: SocketAddr,
    seq: u32,
) -> Option<u32> {
    let key = [&flow_key(src, dst)[..], &seq.to_ne_bytes()].concat();
    let found = skel.maps.disputed.lookup(&key, MapFlags::ANY).ok()??;
    Some(u32::from_ne_bytes(found.try_into().ok()?))
}

/// Loads the programs for what is planned, the hooks too if they are wanted; attaches nothing.
///
/// # Errors
/// If the kernel refuses a program, or the table of endpoints.
pub fn load<'o>(
    object: &'o mut MaybeUninit<OpenObject>,
    plan: &Plan,
    all: bool,
    hooks: bool,
) -> Result<ImdsWatchSkel<'o>> {
    let wanted = Wanted { all, stacks: false };
    let loading = Loading {
        hooks,
        lineage: false,
        wanted,
    };
    load_with(object, plan, loading)
}

/// A multiplier has to be odd, or it would lose the highest bits.
fn scan_key() -> [u64; 2] {
    // Random for each map of the standard library, so that its keys cannot be chosen to collide.
    let random = RandomState::new();
    [random.hash_one(0), random.hash_one(1) | 1]
}

fn load_with<'o>(
    object: &'o mut MaybeUninit<OpenObject>,
    plan: &Plan,
    loading: Loading,
) -> Result<ImdsWatchSkel<'o>> {
    let Loading {
        hooks,
        lineage,
        wanted: Wanted { all, stacks },
    } = loading;
    let opened = ImdsWatchSkelBuilder::default().open(object);
    let mut skel = opened.map_err(|err| bpf::explain(err, "open imds-watch", NEEDED))?;
    let scanner = match Scanner::new(&plan.hosts(), &plan.rules) {
        Ok(scanner) => scanner,
        // The built-in patterns alone do fit.
        Err(err) if !plan.rules.list.is_empty() || !plan.rules.hosts.is_empty() => {
            let why = format!("the rules are too many or too wide for the kernel: {err:#}");
            return Err(Failure::usage(why).into());
        }
        Err(err) => return Err(err),
    };
    let Some(rodata) = skel.maps.rodata_data.as_deref_mut() else {
        bail!("imds-watch was built without its settings");
    };
    rodata.pass_all = u8::from(all);
    let known = plan.known_users();
    rodata.judge_users = u8::from(known.is_some());
    rodata.record_lineage = u8::from(lineage);
    rodata.home_netns = namespace::cookie().unwrap_or_default();
    rodata.endpoint_bits = *plan.table.bitmaps;
    rodata.endpoint_hints = hints(&plan.table.bitmaps);
    rodata.scan_classes = scanner.classes;
    rodata.scan_table[..scanner.table.len()].copy_from_slice(&scanner.table);
    rodata.scan_start = scanner.start;
    rodata.scan_key = scan_key();
    rodata.scan_window = u64::try_from(plan.window.as_nanos()).unwrap_or(u64::MAX);
    let programs = &mut skel.progs;
    for program in [
        &mut programs.imds_connect4,
        &mut programs.imds_connect6,
        &mut programs.imds_sockops,
    ] {
        program.set_autoload(hooks);
    }
    programs.imds_stack.set_autoload(hooks && stacks);
    if !stacks {
        skel.maps
            .stacks
            .set_max_entries(1)
            .context("cannot size the table of stacks")?;
    }
    let loaded = skel.load();
    let skel = loaded.map_err(|err| bpf::explain(err, "load imds-watch", NEEDED))?;
    endpoints::write(&plan.table, &skel.maps.endpoints, &skel.maps.endpoint_ports)?;
    know(&skel, known.iter().flatten())?;
    Ok(skel)
}
