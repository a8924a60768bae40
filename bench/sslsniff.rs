// SPDX-License-Identifier: BSD-2-Clause

//! `make bench-sslsniff`: what watching costs a web server, as ratios in one run: nginx under wrk
//! with no probes, with programs that do nothing at the same functions (the floor: below it are only
//! fewer traps), under sslsniff, and under a bpftrace script that does the same job in part. Needs
//! root, nginx, wrk, and bpftrace for its row.
//!
//! What is written goes to memory (/dev/shm), so that no disk is measured.
//!
//! The rows of a size are taken in turn, and each figure is the median of several rounds, ratios of those
//! within a round: the machine's speed drifts, the ratio less so. All runs in a network namespace of its own.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ebpfkit::kernel::bpf::empty_kprobe;
use ebpfkit::kernel::features::Features;
use ebpfkit::kernel::uprobes::{Method, Place, Scope, attach};
use ebpfkit::tools::sslsniff::probes::has_return;
use ebpfkit::tools::sslsniff::symbols;
use libbpf_rs::libbpf_sys::BPF_TRACE_UPROBE_MULTI;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Of each measurement.
const SECONDS: u32 = 2;
const ROUNDS: usize = 9;
const PORT: u16 = 4433;

/// As bcc's sslsniff and its like: the arguments at the entry, the start of the data at the return.
const BPFTRACE: &str = "uprobe:LIB:SSL_read,uprobe:LIB:SSL_write { @[tid] = arg1; }
uretprobe:LIB:SSL_read,uretprobe:LIB:SSL_write /@[tid]/ {
  if ((int32)retval > 0) { printf(\"%s %d %d %r\\n\", comm, pid, retval, buf(@[tid], (int32)retval > 60 ? 60 : retval)); }
  delete(@[tid]); }";

#[derive(Clone, Copy, PartialEq)]
enum Row {
    Nothing,
    Floor,
    Sniff(&'static [&'static str]),
    Bpftrace,
}

const ROWS: [(&str, Row); 5] = [
    ("no probes", Row::Nothing),
    ("empty programs (the floor)", Row::Floor),
    ("sslsniff -o json", Row::Sniff(&[])),
    (
        "sslsniff -o json --no-payload",
        Row::Sniff(&["--no-payload"]),
    ),
    ("bpftrace, 60 bytes of each call", Row::Bpftrace),
];

fn main() -> Result<()> {
    ensure!(
        Features::probe().uprobe_multi,
        "this kernel has no uprobe.multi (6.6), or this is not root"
    );
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    ran(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let dir = PathBuf::from(ran(
        Command::new("mktemp").args(["-d", "/dev/shm/ebpfkit-bench.XXXXXX"])
    )?);
    let result = all(&dir);
    fs::remove_dir_all(&dir)?;
    result
}

fn all(dir: &Path) -> Result<()> {
    let mut nginx = Ended(nginx(dir)?);
    let library = library(nginx.0.id())?;
    let bpftrace = Command::new("bpftrace").arg("--version").output().is_ok();
    for (name, file, connections) in [
        ("short answers", "small", 8),
        ("answers of 16 KiB", "medium", 8),
        ("answers of 1 MiB", "large", 4),
    ] {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let mut round = Vec::new();
            for (_, row) in ROWS {
                round.push(if row == Row::Bpftrace && !bpftrace {
                    None
                } else {
                    Some(measure(
                        dir,
                        &library,
                        nginx.0.id(),
                        row,
                        file,
                        connections,
                    )?)
                });
            }
            rounds.push(round);
        }
        println!(
            "{name:<34} {:>9} {:>9} {:>9} {:>11}",
            "req/s", "of none", "of floor", "of bpftrace"
        );
        for (index, (name, _)) in ROWS.iter().enumerate() {
            let mut all: Vec<_> = rounds
                .iter()
                .filter_map(|round| round[index].as_ref())
                .collect();
            all.sort_by(|one, other| one.0.total_cmp(&other.0));
            let Some((rate, note)) = all.get(all.len() / 2) else {
                continue;
            };
            let of = |row: usize| {
                let ratios = rounds.iter().filter_map(|round| {
                    let (rate, _) = round[index].as_ref()?;
                    Some(rate / round[row].as_ref()?.0)
                });
                median(ratios.collect()).map_or_else(String::new, |ratio| format!("{ratio:.2}"))
            };
            let (none, floor, bpftrace) = (of(0), of(1), of(ROWS.len() - 1));
            println!("  {name:<32} {rate:>9.0} {none:>9} {floor:>9} {bpftrace:>11}  {note}");
        }
    }
    nginx.end();
    Ok(())
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

/// Requests a second while `row` watches, and what it says of itself.
fn measure(
    dir: &Path,
    library: &Path,
    nginx: u32,
    row: Row,
    file: &str,
    connections: u32,
) -> Result<(f64, String)> {
    match row {
        Row::Nothing => Ok((wrk(file, connections)?, String::new())),
        Row::Floor => {
            let _links = floor(library)?;
            Ok((wrk(file, connections)?, String::new()))
        }
        Row::Bpftrace => {
            let script = BPFTRACE.replace("LIB", &library.display().to_string());
            let output = File::create(dir.join("bpftrace.out"))?;
            let mut command = Command::new("bpftrace");
            command
                .args(["-e", &script])
                .stdout(output)
                .stderr(Stdio::null());
            let mut child = Ended(command.spawn().context("cannot run bpftrace")?);
            // It says nothing that could be waited for once its output is a file.
            std::thread::sleep(Duration::from_secs(3));
            let rate = wrk(file, connections)?;
            child.end();
            Ok((rate, String::new()))
        }
        Row::Sniff(options) => {
            let output = dir.join("sslsniff.out");
            let start = Instant::now();
            let mut command = Command::new(env!("CARGO_BIN_EXE_ebpfkit"));
            command
                .args(["-o", "json", "sslsniff", "-p", &nginx.to_string()])
                .args(options)
                .stdout(File::create(&output)?)
                .stderr(Stdio::piped());
            let mut child = Ended(command.spawn()?);
            let mut stderr = BufReader::new(child.0.stderr.take().context("no stderr")?);
            let mut line = String::new();
            while !line.contains("ready") {
                line.clear();
                ensure!(
                    stderr.read_line(&mut line)? > 0,
                    "sslsniff does not get ready"
                );
            }
            let ready = start.elapsed().as_millis();
            let before = processor_time(child.0.id())?;
            let rate = wrk(file, connections)?;
            let spent = processor_time(child.0.id())? - before;
            let resident = resident(child.0.id())?;
            child.end();
            let summary = summary(&output)?;
            let (seen, lost) = (number(&summary, "seen"), number(&summary, "bytes_lost"));
            #[allow(clippy::cast_precision_loss)]
            let per_event = spent.as_secs_f64() * 1e6 / seen.max(1) as f64;
            Ok((
                rate,
                format!(
                    "{per_event:.2} us per event in user space, {lost} bytes lost, {resident} MiB, ready in {ready} ms"
                ),
            ))
        }
    }
}

fn floor(library: &Path) -> Result<Vec<OwnedFd>> {
    let bytes = fs::read(library)?;
    let file = File::open(library)?;
    let offsets = symbols::find(bytes.as_slice())?;
    let mut links = Vec::new();
    for at_return in [false, true] {
        let program = empty_kprobe(BPF_TRACE_UPROBE_MULTI)?;
        let places: Vec<_> = offsets
            .iter()
            .filter(|(function, _)| !at_return || has_return(*function))
            .map(|(_, offset)| Place {
                offset: *offset,
                cookie: 0,
            })
            .collect();
        let attached = attach(
            program.as_fd(),
            file.as_fd(),
            &places,
            at_return,
            Method::Multi,
            Scope::All,
        );
        links.extend(attached.map_err(|(err, _)| err)?);
    }
    Ok(links)
}

fn nginx(dir: &Path) -> Result<Child> {
    for (name, size) in [("small", 60), ("medium", 16 << 10), ("large", 1 << 20)] {
        fs::write(dir.join(name), vec![b'x'; size])?;
    }
    let mut request = Command::new("openssl");
    request.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ]);
    request.args(["-nodes", "-subj", "/CN=localhost", "-days", "2", "-keyout"]);
    ran(request
        .arg(dir.join("key"))
        .arg("-out")
        .arg(dir.join("cert")))?;
    let at = dir.display();
    let conf = format!(
        "daemon off; master_process off; pid {at}/pid; error_log stderr;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p;\n\
         fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         keepalive_requests 100000000;\n\
         server {{ listen 127.0.0.1:{PORT} ssl; ssl_certificate {at}/cert;\n\
         ssl_certificate_key {at}/key; root {at}; }} }}\n"
    );
    fs::write(dir.join("conf"), conf)?;
    let mut command = Command::new("nginx");
    command
        .args(["-e", "stderr", "-p"])
        .arg(dir)
        .arg("-c")
        .arg(dir.join("conf"));
    let child = command
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run nginx")?;
    for _ in 0..500 {
        if std::net::TcpStream::connect(("127.0.0.1", PORT)).is_ok() {
            return Ok(child);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("nginx does not listen")
}

fn library(pid: u32) -> Result<PathBuf> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps.lines().find(|line| line.contains("libssl"));
    let line = line.context("nginx has no libssl")?;
    Ok(PathBuf::from(&line[line.find('/').context("no path")?..]))
}

fn wrk(file: &str, connections: u32) -> Result<f64> {
    let mut command = Command::new("wrk");
    command.args([
        "-t",
        "1",
        "-c",
        &connections.to_string(),
        "-d",
        &format!("{SECONDS}s"),
    ]);
    let text = ran(command.arg(format!("https://127.0.0.1:{PORT}/{file}")))?;
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"));
    Ok(rate.with_context(|| text.clone())?.trim().parse()?)
}

fn ran(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{stderr}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn processor_time(pid: u32) -> Result<Duration> {
    let stat = procfs::process::Process::new(pid.cast_signed())?.stat()?;
    Ok(Duration::from_millis(
        (stat.utime + stat.stime) * 1000 / procfs::ticks_per_second(),
    ))
}

/// Without the ring, which the kernel maps twice.
fn resident(pid: u32) -> Result<u64> {
    let status = procfs::process::Process::new(pid.cast_signed())?.status()?;
    Ok((status.vmrss.context("no VmRSS")? / 1024).saturating_sub(32))
}

fn summary(output: &Path) -> Result<Value> {
    let text = fs::read(output)?;
    let last = text.trim_ascii_end().rsplit(|byte| *byte == b'\n').next();
    Ok(serde_json::from_slice(last.unwrap_or_default())?)
}

fn number(summary: &Value, name: &str) -> u64 {
    summary[name].as_u64().unwrap_or_default()
}

/// A process that ends with this value.
struct Ended(Child);

impl Ended {
    fn end(&mut self) {
        // Not reaped before, so the number is still its own.
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT);
        let _ = self.0.wait();
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            self.end();
        }
    }
}
