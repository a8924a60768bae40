// SPDX-License-Identifier: BSD-2-Clause

//! One process at a time, per network namespace: a name that only one can hold, and that is free
//! again with its process, whatever ends it.
//!
//! The name is that of a listening unix socket in the abstract namespace (`unix(7)`), which is a
//! network namespace's own. Anybody may take such a name first. So whoever has it is asked for by a
//! connection: the kernel says who called listen() on the socket (SO_PEERCRED), whoever has its descriptor
//! now. Only a process of root, of this user or of one who is trusted, that runs this program and may do what it
//! is about, is believed; nobody else keeps a process out, and nobody else is signalled.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, bind, connect, getsockopt,
    listen, shutdown, socket,
};
use nix::unistd::Uid;
use procfs::process::Process;

use super::hold;
use super::privileges::{Capabilities, Capability};

/// How often a holder is asked that cannot answer yet: one that is between bind() and listen(), or
/// whose queue is full.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// The name, held as long as this value lives.
#[derive(Debug)]
pub struct Instance {
    socket: UnixListener,
    /// Takes the connections of those who ask, so that the queue is never full.
    thread: Option<JoinHandle<()>>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Wakes the thread from accept().
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Who has the name.
#[derive(Debug)]
pub enum Claim {
    /// This process, now.
    Ours(Instance),
    /// A process that is believed.
    Taken(Running),
    /// Somebody else, in words: who is not to be believed.
    Squatted(String),
}

/// Who is believed to have a name, besides root and this user.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trust {
    /// One more user.
    pub user: Option<u32>,
    /// One of these a process has to have, in this user namespace: root in a container may have none. Any will do
    /// where there is none here.
    pub capabilities: &'static [Capability],
}

/// A process that has a name, as long as it runs: another that gets its number is not taken for it.
#[derive(Debug)]
pub struct Running {
    /// Its id.
    pub pid: u32,
    process: OwnedFd,
}

impl Running {
    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2).
    pub fn terminate(&self) -> io::Result<()> {
        hold::signal(&self.process, libc::SIGTERM)
    }

    /// Waits until it has ended; says whether it has within `patience`.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn ended(&self, patience: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.process.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        Ok(poll(&mut fds, patience)? > 0)
    }
}

/// Takes `name`, if nobody has it.
///
/// # Errors
/// If sockets cannot be had.
pub fn claim(name: &str, trust: Trust) -> Result<Claim> {
    let at = || format!("cannot take the name @{name}");
    for _ in 0..TRIES {
        let own = open().with_context(at)?;
        match bind(own.as_raw_fd(), &address(name)?) {
            Ok(()) => return hold(own).map(Claim::Ours).with_context(at),
            Err(Errno::EADDRINUSE) => {}
            Err(err) => return Err(err).with_context(at),
        }
        match holder(name, trust)? {
            Holder::Nobody => {}
            Holder::Process(running) => return Ok(Claim::Taken(running)),
            Holder::Another(who) => return Ok(Claim::Squatted(who)),
        }
    }
    Ok(Claim::Squatted("nobody who could be found".to_owned()))
}

/// The process that has `name`, if it is believed.
pub fn running(name: &str, trust: Trust) -> Option<Running> {
    match holder(name, trust) {
        Ok(Holder::Process(running)) => Some(running),
        _ => None,
    }
}

fn hold(socket: OwnedFd) -> io::Result<Instance> {
    listen(&socket, Backlog::MAXCONN)?;
    // Of another type than std's, and accepts all the same.
    let socket = UnixListener::from(socket);
    let listener = socket.try_clone()?;
    let thread = thread::Builder::new()
        .name("instance".to_owned())
        .spawn(move || answer(&listener))?;
    Ok(Instance {
        socket,
        thread: Some(thread),
    })
}

/// They know what they wanted to know: closing it is all there is to say.
fn answer(listener: &UnixListener) {
    loop {
        match listener.accept() {
            Ok(asked) => drop(asked),
            Err(err) => match Errno::from_raw(err.raw_os_error().unwrap_or_default()) {
                Errno::ECONNABORTED => {}
                // No descriptor is left, for the moment.
                Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS => {
                    thread::sleep(PAUSE);
                }
                _ => return,
            },
        }
    }
}

enum Holder {
    Nobody,
    Process(Running),
    /// In words.
    Another(String),
}

fn holder(name: &str, trust: Trust) -> Result<Holder> {
    let at = || format!("cannot ask who has the name @{name}");
    let address = address(name)?;
    for _ in 0..TRIES {
        let asking = open().with_context(at)?;
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&asking, nix::fcntl::FcntlArg::F_SETFL(flags)).with_context(at)?;
        match connect(asking.as_raw_fd(), &address) {
            Ok(()) => return identify(&asking, trust).with_context(at),
            // Nobody listens: nobody has it, or somebody who is about to.
            Err(Errno::ECONNREFUSED) if is_free(name)? => return Ok(Holder::Nobody),
            Err(Errno::ECONNREFUSED | Errno::EAGAIN | Errno::EINTR) => thread::sleep(PAUSE),
            Err(err) => return Err(err).with_context(at),
        }
    }
    Ok(Holder::Another("somebody who does not answer".to_owned()))
}

fn is_free(name: &str) -> Result<bool> {
    let trial = open()?;
    Ok(bind(trial.as_raw_fd(), &address(name)?).is_ok())
}

/// Who called listen() on the other end.
fn identify(connected: &OwnedFd, trust: Trust) -> io::Result<Holder> {
    let peer = getsockopt(connected, PeerCredentials)?;
    let pid = peer.pid().cast_unsigned();
    let uid = peer.uid();
    let another = || Holder::Another(format!("process {pid} of uid {uid}"));
    // Zero: it has ended, and somebody else has the socket; or it is none of this process's.
    if pid == 0 {
        return Ok(Holder::Another(
            "a process that has ended, or cannot be seen from here".to_owned(),
        ));
    }
    if uid != 0 && uid != Uid::effective().as_raw() && Some(uid) != trust.user {
        return Ok(another());
    }
    let Ok(process) = hold::open(pid) else {
        return Ok(another());
    };
    // If the number still is the listener's, the descriptor is, too.
    if getsockopt(connected, PeerCredentials)?.pid() != peer.pid()
        || !runs_this_program(pid)
        || !has_one(pid, trust.capabilities)
    {
        return Ok(another());
    }
    Ok(Holder::Process(Running { pid, process }))
}

/// By its file's name: the file itself may have been replaced by another version since.
fn runs_this_program(pid: u32) -> bool {
    let name = |pid: &str| -> Option<PathBuf> {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let name = exe.file_name()?.to_str()?;
        // proc_pid_exe(5)
        Some(name.strip_suffix(" (deleted)").unwrap_or(name).into())
    };
    let found = name(&pid.to_string());
    found.is_some() && found == name("self")
}

/// Whether a process has one of these capabilities where they count for this one.
fn has_one(pid: u32, capabilities: &[Capability]) -> bool {
    let users = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let own = users("self");
    let process = Process::new(pid.cast_signed()).and_then(|process| process.status());
    let has = process.is_ok_and(|status| {
        let effective = Capabilities(status.capeff);
        capabilities.iter().any(|wanted| effective.has(*wanted))
    });
    capabilities.is_empty() || has && own.is_some() && users(&pid.to_string()) == own
}

fn open() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

fn address(name: &str) -> Result<UnixAddr> {
    UnixAddr::new_abstract(name.as_bytes()).context("a socket's name")
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn name(of: &str) -> String {
        format!("ebpfkit-test-{of}-{}", std::process::id())
    }

    #[test]
    fn a_name_is_held_once_and_is_free_again() {
        let name = name("once");
        let Claim::Ours(first) = claim(&name, Trust::default()).unwrap() else {
            panic!("the name is taken");
        };
        let me = std::process::id();
        assert!(
            matches!(claim(&name, Trust::default()).unwrap(), Claim::Taken(running) if running.pid == me)
        );
        // However often somebody asks.
        for _ in 0..300 {
            assert_eq!(
                running(&name, Trust::default()).map(|running| running.pid),
                Some(me)
            );
        }
        drop(first);
        assert!(running(&name, Trust::default()).is_none());
        assert!(matches!(
            claim(&name, Trust::default()).unwrap(),
            Claim::Ours(_)
        ));
    }

    #[test]
    fn a_name_that_nobody_answers_for_keeps_nobody_out() {
        let name = name("silent");
        let silent = open().unwrap();
        bind(silent.as_raw_fd(), &address(&name).unwrap()).unwrap();
        assert!(matches!(
            claim(&name, Trust::default()).unwrap(),
            Claim::Squatted(_)
        ));
        assert!(running(&name, Trust::default()).is_none());
    }

    #[test]
    fn another_program_keeps_nobody_out_whoever_runs_it() {
        let name = name("other");
        let program = format!(
            "import socket, sys\n\
             s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
             s.bind('\\0{name}')\n\
             s.listen(1)\n\
             print('listening', flush=True)\n\
             sys.stdin.read()\n"
        );
        let mut other = Command::new("python3")
            .args(["-c", &program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = io::BufReader::new(other.stdout.take().unwrap());
        io::BufRead::read_line(&mut said, &mut line).unwrap();
        let found = claim(&name, Trust::default()).unwrap();
        let nobody = running(&name, Trust::default()).is_none();
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(line, "listening\n");
        assert!(
            matches!(&found, Claim::Squatted(who) if who.contains(&other.id().to_string())),
            "{found:?}"
        );
        assert!(nobody);
    }

    #[test]
    fn who_may_not_do_it_is_not_believed() {
        let mut powerless = Command::new("setpriv");
        if Uid::effective().is_root() {
            powerless.args(["--bounding-set=-all", "--inh-caps=-all"]);
        }
        let mut powerless = powerless.args(["sleep", "100"]).spawn().unwrap();
        let pid = powerless.id();
        let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        while comm() != "sleep\n" {
            thread::sleep(PAUSE);
        }
        let of_it = has_one(pid, &[Capability::NetAdmin]);
        let any = has_one(pid, &[]);
        powerless.kill().unwrap();
        powerless.wait().unwrap();
        assert!(any && !of_it);
        let own = Capabilities::effective().has(Capability::NetAdmin);
        assert_eq!(has_one(std::process::id(), &[Capability::NetAdmin]), own);
    }
}
