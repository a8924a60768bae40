// SPDX-License-Identifier: BSD-2-Clause

//! What the tests of sslsniff share: a network namespace with a certificate, ends of connections in
//! it, and what was seen of them.

// Each test file is a crate of its own and uses its part.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use serde_json::Value;

use crate::common::{Background, Ended, Netns, Tool, python3, sh};

pub const PORT: &str = "4433";
pub const OTHER_PORT: &str = "4434";

/// A namespace, and a folder with a certificate.
pub struct Place {
    pub netns: Netns,
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (key, cert) = (dir.path().join("key"), dir.path().join("cert"));
        sh(Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args(["-nodes", "-subj", "/CN=localhost", "-days", "2"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&cert));
        let both = [std::fs::read(&key).unwrap(), std::fs::read(&cert).unwrap()].concat();
        std::fs::write(dir.path().join("pem"), both).unwrap();
        Self {
            netns: Netns::new(),
            dir,
        }
    }

    pub fn pem(&self) -> String {
        self.dir.path().join("pem").display().to_string()
    }

    /// One end of a connection, see `sslsniff/peer.py`.
    pub fn peer(&self, args: &[&str]) -> Peer {
        let mut command = self.netns.command(python3());
        command.args(["-c", include_str!("peer.py")]);
        Peer::start(command.args(args))
    }

    /// What is seen of a client that waits for a line before its first call, a program for Python that is told the
    /// port of an echo; until it has ended well.
    pub fn watched_client(&self, program: &str, options: &[&str]) -> Ended {
        let mut server = self.server(&["echo", &self.pem(), PORT]);
        let mut command = self.netns.command(python3());
        command.args(["-c", program, PORT]);
        let mut client = Peer::start(command.args(options));
        let tool = Tool::start(&self.netns, &["sslsniff", "-p", &client.pid().to_string()]);
        client.go();
        client.rest();
        server.rest();
        let ended = tool.stop();
        nothing_is_lost(&ended);
        ended
    }

    /// One that has said that it listens.
    pub fn server(&self, args: &[&str]) -> Peer {
        let mut peer = self.peer(args);
        assert_eq!(peer.line(), "listening");
        peer
    }

    pub fn nginx(&self) -> Background {
        self.nginx_with("location / { default_type text/plain; return 200 'the plain answer\\n'; }")
    }

    /// One that has this in its server.
    pub fn nginx_with(&self, server: &str) -> Background {
        let dir = self.dir.path().display();
        let conf = self.dir.path().join("nginx.conf");
        let text = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log stderr;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/p;\n\
             fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
             server {{ listen 127.0.0.1:{PORT} ssl; ssl_certificate {dir}/cert;\n\
             ssl_certificate_key {dir}/key;\n\
             {server} }} }}\n"
        );
        std::fs::write(&conf, text).unwrap();
        let mut command = self.netns.command("nginx");
        command
            .args(["-e", "stderr", "-p"])
            .arg(self.dir.path())
            .arg("-c")
            .arg(&conf);
        let child = command.stdin(Stdio::null()).spawn().expect("nginx");
        let nginx = Background(child);
        let start = std::time::Instant::now();
        while !self.netns.enter(listens).join().unwrap() {
            assert!(
                start.elapsed() < crate::common::PATIENCE,
                "nginx does not listen"
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        nginx
    }

    /// curl under a name that no other test uses, as all of them are seen: sslsniff watches the
    /// machine.
    pub fn curl_named(&self, name: &str) -> PathBuf {
        let link = self.dir.path().join(name);
        std::fs::set_permissions(self.dir.path(), Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("/usr/bin/curl", &link).expect("a link");
        link
    }

    pub fn curl(&self, args: &[&str]) -> Output {
        let mut command = self.netns.command("curl");
        command.args(CURL).args(args).output().expect("curl")
    }
}

pub fn listens() -> bool {
    std::net::TcpStream::connect(format!("127.0.0.1:{PORT}")).is_ok()
}

/// Without the proxies of the environment, without waiting for long.
pub const CURL: &[&str] = &["-sSk", "--http1.1", "--max-time", "50", "--noproxy", "*"];
pub const URL: &str = "https://127.0.0.1:4433/";

pub struct Peer {
    process: Background,
    output: BufReader<std::process::ChildStdout>,
}

impl Peer {
    pub fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = Background(child.expect("python3"));
        let output = BufReader::new(process.0.stdout.take().unwrap());
        Self { process, output }
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    pub fn go(&mut self) {
        self.process
            .0
            .stdin
            .as_mut()
            .expect("a pipe")
            .write_all(b"go\n")
            .expect("go");
    }

    /// What it prints until it ends.
    pub fn rest(&mut self) -> Vec<Value> {
        let mut text = String::new();
        self.output.read_to_string(&mut text).expect("text");
        assert!(self.process.0.wait().expect("wait").success());
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

pub fn bytes_of(event: &Value) -> Vec<u8> {
    match (event["data"].as_str(), event["data_base64"].as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(data)) => base64::engine::general_purpose::STANDARD
            .decode(data)
            .expect("base64"),
        (None, None) => Vec::new(),
        _ => panic!("{event}"),
    }
}

/// What passed, by process, connection and direction; the offsets leave no gap.
pub fn streams(ended: &Ended) -> BTreeMap<(u64, u64, String), Vec<u8>> {
    let mut streams: BTreeMap<_, Vec<u8>> = BTreeMap::new();
    for event in ended.kind("data") {
        let key = (
            event["pid"].as_u64().unwrap(),
            event["connection"].as_u64().unwrap(),
            event["direction"].as_str().unwrap().to_owned(),
        );
        let stream = streams.entry(key).or_default();
        assert_eq!(event["offset"], stream.len());
        let bytes = bytes_of(event);
        assert_eq!(event["captured"], bytes.len());
        assert_eq!(event["length"], bytes.len());
        stream.extend(bytes);
    }
    streams
}

/// All that a process read or wrote, as text.
pub fn text(ended: &Ended, pid: u32, direction: &str) -> String {
    let bytes: Vec<u8> = ended
        .kind("data")
        .into_iter()
        .filter(|event| event["pid"] == pid && event["direction"] == direction)
        .flat_map(bytes_of)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn nothing_is_lost(ended: &Ended) {
    let summary = ended.summary();
    assert_eq!(summary["lost"], 0, "{summary}");
    assert_eq!(summary["seen"], summary["delivered"], "{summary}");
    assert_eq!(summary["bytes_lost"], 0, "{summary}");
    assert_eq!(
        summary["bytes_seen"].as_u64().unwrap(),
        summary["bytes_delivered"].as_u64().unwrap() + summary["bytes_cut"].as_u64().unwrap()
    );
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}
