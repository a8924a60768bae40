// SPDX-License-Identifier: BSD-2-Clause

//! What the tests on the real kernel share: network namespaces that vanish with their value, a
//! metadata service to ask, and ebpfkit at work in a namespace.
//!
//! Nothing here touches the machine's own network namespace: a metadata address is only ever used
//! inside a namespace that a test has made.

// Each test file is a crate of its own and uses its part.
#![allow(dead_code)]

pub mod cgroups;
pub mod classifier;
pub mod dice;
pub mod tc_guard;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long anything may take before a test gives up; generous, as emulated machines are slow.
/// No test passes or fails by how long something took below this.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The AWS addresses, inside test namespaces only.
pub const IMDS4: &str = "169.254.169.254";
pub const IMDS6: &str = "fd00:ec2::254";
/// The machine's and the cloud's addresses on their link.
pub const MACHINE4: &str = "10.213.0.2";
pub const CLOUD4: &str = "10.213.0.1";
pub const MACHINE6: &str = "fd00:213::2";
pub const CLOUD6: &str = "fd00:213::1";

/// Ordinary users of the tests. They need no entry in /etc/passwd.
pub const ALICE: u32 = 54321;
pub const BOB: u32 = 54322;

pub fn ebpfkit_path() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_ebpfkit"))
}

/// Runs a command to its end and panics with what it printed if it fails.
pub fn sh(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|err| panic!("{command:?}: {err}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Copies a program that is run then. By a process of its own: a program cannot be run while anybody can write to it,
/// and what is open in this process another test's child has, too, if it starts in this moment.
pub fn copy_program(from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) {
    sh(Command::new("cp").arg("--").arg(from).arg(to));
}

/// The system's python3: one in root's home is no good to another user.
pub fn python3() -> &'static str {
    let system = "/usr/bin/python3";
    if Path::new(system).exists() {
        system
    } else {
        "python3"
    }
}

/// Python functions that make packets: `checksum(data)` (RFC 1071), and `frame(to, port, word)`, a datagram that holds
/// four bytes, from a virtual machine to a port of the cloud, for the link address `to` (6 bytes).
pub fn packets() -> String {
    format!(
        "import socket, struct\n\
         def checksum(data):\n\
         \x20   total = sum(struct.unpack('!%dH' % (len(data) // 2), data))\n\
         \x20   while total >> 16: total = (total & 0xffff) + (total >> 16)\n\
         \x20   return ~total & 0xffff\n\
         def ip(check):\n\
         \x20   return struct.pack('!BBHHHBBH4s4s', 0x45, 0, 32, 1, 0, 64, 17, check,\n\
         \x20       socket.inet_aton('10.218.0.9'), socket.inet_aton('{CLOUD4}'))\n\
         def frame(to, port, word):\n\
         \x20   udp = struct.pack('!HHHH4s', 5000, port, 12, 0, word)\n\
         \x20   return to + b'\\2\\0\\0\\0\\0\\x09\\x08\\0' + ip(checksum(ip(0))) + udp\n"
    )
}

pub fn ip(args: &[&str]) -> String {
    sh(Command::new("ip").args(args))
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Removes what has this process's number in its name once the pipe has no writer any more: when the process
/// is gone, whatever has ended it, so that its values were not dropped.
const SWEEP: &str = r#"
cat
for name in /run/netns/ebpfkit-"$1"-*; do [ ! -e "$name" ] || ip netns del "${name##*/}"; done
for folder in "$2"/ebpfkit-bpffs-"$1"-*; do [ ! -d "$folder" ] || { umount -l "$folder"; rmdir "$folder"; }; done
for folder in "$3"/ebpfkit-"$1"-*/* "$3"/ebpfkit-"$1"-* "$3"/ebpfkit-pod-"$1"-*; do [ ! -d "$folder" ] || rmdir "$folder"; done
"#;

/// A name that no other value has, with what removes it if this process cannot.
pub fn swept(prefix: &str) -> String {
    static SWEEPER: OnceLock<Child> = OnceLock::new();
    SWEEPER.get_or_init(|| {
        let mut command = Command::new("sh");
        let id = std::process::id().to_string();
        command
            .args(["-c", SWEEP, "sh", &id])
            .arg(std::env::temp_dir());
        command.arg(ebpfkit::kernel::cgroup::mount().unwrap_or_default());
        // What ends the group of the tests must not end this.
        command.process_group(0).stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("sh")
    });
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{}-{number}", std::process::id())
}

/// A network namespace with its loopback up, removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    pub fn new() -> Self {
        let netns = Self {
            name: swept("ebpfkit"),
        };
        ip(&["netns", "add", &netns.name]);
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    pub fn ip(&self, args: &[&str]) -> String {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(args);
        ip(&all)
    }

    /// Several commands of ip's, a line each: one process for all of them.
    pub fn batch(&self, commands: &str) {
        let mut command = Command::new("ip");
        command.args(["-n", self.name.as_str(), "-batch", "-"]);
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("ip");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(commands.as_bytes()).expect("ip reads");
        drop(stdin);
        let output = child.wait_with_output().expect("ip");
        assert!(output.status.success(), "{commands}: {output:?}");
    }

    /// Whether this kernel has interfaces of this kind. Those of the matrix have all; where one does not,
    /// it is said.
    pub fn made(&self, name: &str, kind: &str) -> bool {
        let mut command = Command::new("ip");
        command.args(["-n", self.name(), "link", "add", name]);
        let output = command.args(kind.split(' ')).output().expect("ip");
        if output.status.success() {
            return true;
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let unknown = said.contains("Unknown device type") || said.contains("not supported");
        assert!(unknown, "{kind}: {said}");
        assert!(std::env::var_os("EBPFKIT_VM").is_none(), "{kind}: {said}");
        eprintln!("not tried, as this kernel has no such interfaces: {kind}");
        false
    }

    /// A command that runs in this network namespace and shares all else: `ip netns exec` would
    /// hide bpffs and cgroup2 behind a sysfs of its own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// The same as this user; an ordinary one has no capability.
    pub fn command_as(&self, uid: u32, program: impl AsRef<OsStr>) -> Command {
        if uid == 0 {
            return self.command(program);
        }
        let mut command = self.command("setpriv");
        let id = uid.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
        command
            .args(["--inh-caps=-all", "--bounding-set=-all", "--"])
            .arg(program);
        command
    }

    /// The same as an ordinary user with these capabilities (`+bpf,+net_admin`), and with what a
    /// kernel before 5.11 wants besides: no limit to locked memory.
    pub fn command_with(
        &self,
        uid: u32,
        capabilities: &str,
        program: impl AsRef<OsStr>,
    ) -> Command {
        let mut command = self.command("sh");
        command.args([
            "-c",
            "ulimit -l unlimited 2>/dev/null; exec setpriv \"$@\"",
            "sh",
        ]);
        let id = uid.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
        command.args([
            "--inh-caps",
            capabilities,
            "--ambient-caps",
            capabilities,
            "--",
        ]);
        command.arg(program);
        command
    }

    /// Runs `work` on a thread inside this namespace.
    pub fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = self.path();
        thread::spawn(move || {
            let netns = File::open(path).expect("the namespace is there");
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        })
    }
}

/// What `work` comes to with this thread inside that network namespace, or in its own if there is none.
pub fn inside<T>(netns: Option<&Netns>, work: impl FnOnce() -> T) -> T {
    let Some(netns) = netns else {
        return work();
    };
    let own = File::open("/proc/thread-self/ns/net").expect("/proc");
    let other = File::open(netns.path()).expect("the namespace is there");
    setns(other.as_fd(), CloneFlags::CLONE_NEWNET).expect("setns");
    let done = work();
    setns(own.as_fd(), CloneFlags::CLONE_NEWNET).expect("setns");
    done
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A failed removal must not hide the panic that led here.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// A machine and its cloud: two namespaces joined by a veth pair. On the machine it is `eth0`, its
/// only interface but loopback, with the default routes; the cloud answers for every metadata
/// address that is given to it.
#[derive(Debug)]
pub struct Network {
    pub machine: Netns,
    pub cloud: Netns,
}

impl Network {
    pub fn new() -> Self {
        let (machine, cloud) = (Netns::new(), Netns::new());
        machine.batch(&format!(
            "link add eth0 type veth peer name eth0 netns {}\n\
             addr add {MACHINE4}/24 dev eth0\n\
             addr add {MACHINE6}/64 dev eth0 nodad\n\
             link set eth0 up\n",
            cloud.name()
        ));
        cloud.batch(&format!(
            "addr add {CLOUD4}/24 dev eth0\n\
             addr add {CLOUD6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             addr add {IMDS4}/32 dev eth0\n\
             addr add {IMDS6}/128 dev eth0 nodad\n"
        ));
        machine.batch(&format!(
            "route add default via {CLOUD4}\nroute add ::/0 via {CLOUD6}\n"
        ));
        Self { machine, cloud }
    }

    /// Makes the cloud own `address`.
    pub fn answer_for(&self, address: &str) {
        if address.contains(':') {
            self.cloud.ip(&[
                "addr",
                "add",
                &format!("{address}/128"),
                "dev",
                "eth0",
                "nodad",
            ]);
        } else {
            self.cloud
                .ip(&["addr", "add", &format!("{address}/32"), "dev", "eth0"]);
        }
    }

    /// curl on the machine as `uid`, quiet, giving up after ten seconds.
    pub fn curl(&self, uid: u32, args: &[&str]) -> Output {
        let mut command = self.machine.command_as(uid, "curl");
        command
            .args(["-sS", "--max-time", "10", "--noproxy", "*"])
            .args(args);
        command.output().expect("curl runs")
    }
}

/// A metadata service as AWS answers: version 1 (no token) and version 2.
#[derive(Debug)]
pub struct MetadataService {
    stopped: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
    netns: PathBuf,
}

pub const TOKEN: &str = "AQAEAEbpfkitTestTokenTestTokenTestTokenTestTokenTestTok==";
pub const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

impl MetadataService {
    /// Serves on port 80 of both AWS addresses in the cloud of `network`; nothing is below `/none/`.
    pub fn start(network: &Network) -> Self {
        Self::on(&network.cloud, &[(IMDS4, 80), (IMDS6, 80)])
    }

    /// Serves on these addresses in `netns`.
    pub fn on(netns: &Netns, addresses: &[(&str, u16)]) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let addresses: Vec<SocketAddr> = addresses
            .iter()
            .map(|(address, port)| SocketAddr::new(address.parse().unwrap(), *port))
            .collect();
        let threads = addresses
            .iter()
            .map(|address| {
                let address = *address;
                let listener = netns
                    .enter(move || TcpListener::bind(address).expect("bind"))
                    .join()
                    .expect("listener");
                let (stopped, requests) = (Arc::clone(&stopped), Arc::clone(&requests));
                thread::spawn(move || {
                    for stream in listener.incoming() {
                        if stopped.load(Ordering::Relaxed) {
                            break;
                        }
                        let Ok(stream) = stream else { continue };
                        let requests = Arc::clone(&requests);
                        thread::spawn(move || serve(&stream, &requests));
                    }
                })
            })
            .collect();
        Self {
            stopped,
            requests,
            threads,
            addresses,
            netns: netns.path(),
        }
    }

    /// The request lines that arrived.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for MetadataService {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        let (netns, addresses) = (self.netns.clone(), self.addresses.clone());
        // A connection from the same namespace wakes each listener up to see that it has ended.
        let _ = thread::spawn(move || {
            let Ok(netns) = File::open(netns) else { return };
            if setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).is_ok() {
                for address in addresses {
                    let _ = TcpStream::connect_timeout(&address, Duration::from_secs(1));
                }
            }
        })
        .join();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(stream: &TcpStream, requests: &Mutex<Vec<String>>) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
            if reader.read_until(b'\n', &mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let line = head.lines().next().unwrap_or_default().to_owned();
        requests.lock().unwrap().push(line.clone());
        let lower = head.to_ascii_lowercase();
        let (status, body) = if line.starts_with("PUT /latest/api/token ") {
            if lower.contains("\r\nx-forwarded-for:") {
                ("403 Forbidden", String::new())
            } else {
                ("200 OK", TOKEN.to_owned())
            }
        } else if lower.contains("x-aws-ec2-metadata-token:") && !head.contains(TOKEN) {
            ("401 Unauthorized", String::new())
        } else if line.contains(" /none/") {
            ("404 Not Found", String::new())
        } else if line.contains("/iam/security-credentials/role") {
            ("200 OK", format!("{{\"SecretAccessKey\":\"{SECRET}\"}}"))
        } else {
            ("200 OK", "i-0123456789abcdef0".to_owned())
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if (&mut &*stream).write_all(answer.as_bytes()).is_err()
            || lower.contains("connection: close")
        {
            return;
        }
    }
}

/// ebpfkit at work, printing JSON Lines that are kept as they come.
#[derive(Debug)]
pub struct Tool {
    child: Option<Child>,
    lines: Arc<Mutex<Vec<String>>>,
    errors: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

/// How a tool ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub events: Vec<Value>,
    pub stderr: String,
}

impl Ended {
    pub fn kind(&self, kind: &str) -> Vec<&Value> {
        self.events
            .iter()
            .filter(|event| event["kind"] == kind)
            .collect()
    }

    pub fn summary(&self) -> &Value {
        let last = self.events.last().expect("a last line");
        assert_eq!(last["kind"], "summary", "{self:?}");
        last
    }
}

impl Tool {
    /// Starts `ebpfkit -o json ARGS` in `netns` and waits until it says that it is ready.
    pub fn start(netns: &Netns, args: &[&str]) -> Self {
        let mut command = netns.command(ebpfkit_path());
        command.args(["-o", "json"]).args(args);
        Self::run(command)
    }

    /// The same with a command of one's own, which must print JSON Lines.
    pub fn run(command: Command) -> Self {
        let tool = Self::spawn(command);
        tool.wait("ready", |tool| {
            tool.lines
                .lock()
                .unwrap()
                .iter()
                .any(|line| line.contains("\"kind\":\"ready\""))
        });
        tool
    }

    pub fn spawn(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|err| panic!("{command:?}: {err}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let errors = Arc::new(Mutex::new(String::new()));
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let kept = Arc::clone(&lines);
        let out = thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        let kept = Arc::clone(&errors);
        let err = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap();
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        Self {
            child: Some(child),
            lines,
            errors,
            readers: vec![out, err],
        }
    }

    /// Waits until it says that it is ready, or has ended; whether it is ready.
    pub fn becomes_ready(&self) -> bool {
        let start = Instant::now();
        loop {
            // What it said before its end has been read then.
            let ended = self.readers.iter().all(JoinHandle::is_finished);
            if self.count("ready") > 0 || ended {
                return !ended;
            }
            assert!(start.elapsed() < PATIENCE, "{}", self.stderr());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    pub fn events(&self) -> Vec<Value> {
        let lines = self.lines.lock().unwrap();
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|err| panic!("{line}: {err}")))
            .collect()
    }

    /// How many events there are of this kind, without reading the JSON: lines may be long and many,
    /// and the reader waits meanwhile. The kind is the third field of a line.
    pub fn count(&self, kind: &str) -> usize {
        let wanted = format!("\"kind\":\"{kind}\"");
        let lines = self.lines.lock().unwrap();
        let start = |line: &String| line.get(..120).unwrap_or(line).contains(&wanted);
        lines.iter().filter(|line| start(line)).count()
    }

    /// Waits for an event that `wanted` accepts and returns it.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        let start = Instant::now();
        while found.is_none() {
            found = self.events().into_iter().find(|event| wanted(event));
            assert!(
                start.elapsed() < PATIENCE,
                "no {what} in {:#?}\n{}",
                self.events(),
                self.stderr()
            );
            thread::sleep(Duration::from_millis(5));
        }
        found.unwrap()
    }

    /// Waits until `done`.
    pub fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            let ended = self.readers.iter().all(JoinHandle::is_finished);
            assert!(
                !ended && start.elapsed() < PATIENCE,
                "not {what}: {:?}\n{}",
                self.lines.lock().unwrap(),
                self.stderr()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn stderr(&self) -> String {
        self.errors.lock().unwrap().clone()
    }

    /// Ends it as a service manager would, and gives what it printed.
    pub fn stop(self) -> Ended {
        self.signal(Signal::SIGTERM);
        self.ended()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("kill");
    }

    /// Waits for its own end.
    pub fn ended(mut self) -> Ended {
        let code = self.end();
        Ended {
            code,
            events: self.events(),
            stderr: self.stderr(),
        }
    }

    /// The same for one that prints text: its standard output, standard error and exit code.
    pub fn ended_text(mut self) -> (String, String, Option<i32>) {
        let code = self.end();
        let out: String = self
            .lines
            .lock()
            .unwrap()
            .iter()
            .map(|line| format!("{line}\n"))
            .collect();
        (out, self.stderr(), code)
    }

    fn end(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("running");
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait") {
                break status;
            }
            if start.elapsed() > PATIENCE {
                let _ = child.kill();
                panic!(
                    "still running: {:?}\n{}",
                    self.lines.lock().unwrap(),
                    self.stderr()
                );
            }
            thread::sleep(Duration::from_millis(5));
        };
        for reader in self.readers.drain(..) {
            reader.join().expect("reader");
        }
        status.code()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Any child process that is ended, by its pid, with its value.
#[derive(Debug)]
pub struct Background(pub Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All of what is left in a pipe.
pub fn read_all(mut from: impl std::io::Read) -> Vec<u8> {
    let mut all = Vec::new();
    from.read_to_end(&mut all).expect("read");
    all
}

/// A bpffs of a test's own, unmounted with its value: whatever is pinned in it goes with it.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(swept("ebpfkit-bpffs"));
        std::fs::create_dir(&path).expect("a folder");
        nix::mount::mount(
            Some("bpf"),
            &path,
            Some("bpf"),
            nix::mount::MsFlags::empty(),
            Some("mode=0700"),
        )
        .expect("mount a bpffs");
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn text(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.path, nix::mount::MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&self.path);
    }
}
