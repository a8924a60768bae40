// SPDX-License-Identifier: BSD-2-Clause

//! What `ebpfkit sslsniff` makes of what real programs say: requests, packets, archives.

mod common;

mod root {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use pcap_file::pcapng::{Block, PcapNgReader};
    use serde_json::Value;

    use super::common::{Background, Netns, PATIENCE, Tool, ebpfkit_path, sh};

    const PORT: u16 = 4443;
    const SECRET: &str = "Bearer-of-a-secret";

    /// nginx with HTTP/1 and HTTP/2 in a namespace of its own.
    struct Place {
        netns: Netns,
        dir: tempfile::TempDir,
        _nginx: Background,
    }

    impl Place {
        fn new() -> Self {
            let netns = Netns::new();
            let dir = tempfile::tempdir().expect("a folder");
            let path = dir.path().display();
            sh(Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                ])
                .args(["-nodes", "-subj", "/CN=localhost", "-days", "2", "-keyout"])
                .arg(dir.path().join("key"))
                .arg("-out")
                .arg(dir.path().join("cert")));
            let conf = format!(
                "daemon off; master_process off; pid {path}/pid; error_log stderr;\n\
                 events {{ worker_connections 64; }}\n\
                 http {{ access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/p;\n\
                 fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n\
                 server {{ listen 127.0.0.1:{PORT} ssl http2; ssl_certificate {path}/cert;\n\
                 ssl_certificate_key {path}/key; default_type text/plain;\n\
                 location /a {{ return 200 'the plain answer\\n'; }}\n\
                 location /b {{ add_header Set-Cookie id=0123 always; return 404 'nothing\\n'; }} }} }}\n"
            );
            let file = dir.path().join("conf");
            std::fs::write(&file, conf).unwrap();
            let mut command = netns.command("nginx");
            command
                .args(["-e", "stderr", "-p"])
                .arg(dir.path())
                .arg("-c")
                .arg(&file);
            let nginx = command.stdin(Stdio::null()).spawn().expect("nginx");
            let nginx = Background(nginx);
            let listens = || std::net::TcpStream::connect(("127.0.0.1", PORT)).is_ok();
            let start = std::time::Instant::now();
            while !netns.enter(listens).join().unwrap() {
                assert!(start.elapsed() < PATIENCE, "nginx does not listen");
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Self {
                netns,
                dir,
                _nginx: nginx,
            }
        }

        /// sslsniff with a curl that asks twice, on one connection.
        fn watch(&self, args: &[&str], version: &str) -> Tool {
            let mut command = self.netns.command(ebpfkit_path());
            command.args(["-o", "json", "sslsniff"]).args(args);
            command.args([
                "--",
                "curl",
                "-sSk",
                version,
                "--max-time",
                "50",
                "--noproxy",
                "*",
            ]);
            command.args(["-H", &format!("Authorization: {SECRET}")]);
            for path in [&format!("a?token={SECRET}"), "b"] {
                command.arg(format!("https://127.0.0.1:{PORT}/{path}"));
            }
            Tool::run(command)
        }
    }

    fn read(file: &Path) -> Vec<u8> {
        let mode = std::fs::metadata(file)
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::read(file).expect("a file")
    }

    fn holds_secret(bytes: &[u8]) -> bool {
        bytes
            .windows(SECRET.len())
            .any(|part| part == SECRET.as_bytes())
    }

    #[test]
    fn requests_of_both_versions_are_shown_with_their_answers_and_kept_in_files() {
        let place = Place::new();
        for (version, name) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let file = |suffix: &str| place.dir.path().join(format!("{name}.{suffix}"));
            let (pcap, har) = (file("pcapng"), file("har"));
            let (pcap_arg, har_arg) = (pcap.to_str().unwrap(), har.to_str().unwrap());
            let ended = place
                .watch(&["--http", "--pcap", pcap_arg, "--har", har_arg], version)
                .ended();
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            assert_eq!(ended.summary()["lost"], 0);
            assert!(ended.kind("data").is_empty(), "{:?}", ended.events);

            let events = ended.kind("http");
            assert_eq!(events.len(), 2, "{:?}", ended.events);
            for (event, (path, status, bytes)) in events.iter().zip([
                (format!("/a?token={}", "*".repeat(SECRET.len())), 200, 17),
                ("/b".to_owned(), 404, 8),
            ]) {
                assert_eq!(event["version"], name);
                assert_eq!(event["role"], "client");
                assert_eq!(event["comm"], "curl");
                assert_eq!(event["method"], "GET");
                assert_eq!(event["host"], format!("127.0.0.1:{PORT}"));
                assert_eq!(event["path"], path);
                assert_eq!(event["status"], status);
                assert_eq!(event["outcome"], "complete");
                assert_eq!(event["request_bytes"], 0);
                assert_eq!(event["response_bytes"], bytes);
                assert!(event["duration_ns"].as_u64() >= event["wait_ns"].as_u64());
            }

            let archive = read(&har);
            assert!(!holds_secret(&archive));
            let archive: Value = serde_json::from_slice(&archive).expect("JSON");
            let entries = archive["log"]["entries"].as_array().unwrap();
            assert_eq!(entries.len(), 2);
            assert_eq!(
                entries[0]["response"]["content"]["text"],
                "the plain answer\n"
            );
            let masked = |name: &str, headers: &Value| {
                let mut all = headers.as_array().unwrap().iter();
                let header =
                    all.find(|one| one["name"].as_str().unwrap().eq_ignore_ascii_case(name));
                header.unwrap()["value"]
                    .as_str()
                    .unwrap()
                    .bytes()
                    .all(|byte| byte == b'*')
            };
            assert!(masked("authorization", &entries[0]["request"]["headers"]));
            assert!(masked("set-cookie", &entries[1]["response"]["headers"]));

            let packets = read(&pcap);
            assert!(!holds_secret(&packets));
            let mut reader = PcapNgReader::new(packets.as_slice()).expect("pcapng");
            let mut payload = Vec::new();
            while let Some(block) = reader.next_block() {
                if let Block::EnhancedPacket(packet) = block.expect("a block") {
                    let packet = etherparse::SlicedPacket::from_ip(&packet.data).expect("IP");
                    let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else {
                        panic!("no TCP");
                    };
                    payload.extend_from_slice(tcp.payload());
                }
            }
            let text = String::from_utf8_lossy(&payload);
            assert!(text.contains("the plain answer\n"), "{text}");
            // The headers of HTTP/2 are written anew, uncompressed.
            let request = if name == "1.1" {
                "GET /b HTTP/1.1\r\n"
            } else {
                ":path\u{2}/b"
            };
            assert!(text.contains(request), "{text}");
        }
    }

    /// Runs the view on a terminal of its own until the first screen, ends it, and prints whether the
    /// screen was left and the terminal is as it was.
    const ON_A_TERMINAL: &str = r#"
import fcntl, os, pty, select, signal, struct, sys, termios, time
main, other = pty.openpty()
fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
before = termios.tcgetattr(other)
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(other, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(other, number)
    os.environ["TERM"] = "xterm"
    os.execv(sys.argv[1], [sys.argv[1], "sslsniff", "--live"])
seen, asked, ended = b"", False, 0
patience = time.monotonic() + 60
while not ended:
    if time.monotonic() > patience:
        os.kill(pid, signal.SIGKILL)
    if select.select([main], [], [], 0.05)[0]:
        seen += os.read(main, 65536)
    else:
        ended, status = os.waitpid(pid, os.WNOHANG)
    if b"connections/requests" in seen and not asked:
        asked = True
        assert termios.tcgetattr(other)[3] & termios.ECHO == 0
        if sys.argv[2] == "q":
            os.write(main, b"q")
        else:
            os.kill(pid, getattr(signal, sys.argv[2]))
left = b"\x1b[?1049l" in seen
same = termios.tcgetattr(other) == before
print(os.waitstatus_to_exitcode(status), asked, left, same, "" if left and same else seen)
"#;

    #[test]
    fn the_terminal_is_given_back_however_the_view_ends() {
        for how in ["q", "SIGTERM", "SIGINT"] {
            let mut command = Command::new(super::common::python3());
            command
                .args(["-c", ON_A_TERMINAL])
                .arg(ebpfkit_path())
                .arg(how);
            assert_eq!(sh(&mut command).trim(), "0 True True True", "{how}");
        }
    }

    #[test]
    fn the_view_needs_a_terminal() {
        let output = Command::new(ebpfkit_path())
            .args(["sslsniff", "--live"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--live"));
    }

    #[test]
    fn secrets_are_in_the_files_only_when_they_are_wanted() {
        let place = Place::new();
        let file = |suffix: &str| place.dir.path().join(format!("shown.{suffix}"));
        let (pcap, har) = (file("pcapng"), file("har"));
        let args = [
            "--show-secrets",
            "--pcap",
            pcap.to_str().unwrap(),
            "--har",
            har.to_str().unwrap(),
        ];
        let ended = place.watch(&args, "--http1.1").ended();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        // Lines are as they would be without the files.
        assert_eq!(ended.kind("http").len(), 0);
        assert!(ended.kind("data").len() >= 4);
        assert!(holds_secret(&read(&har)) && holds_secret(&read(&pcap)));
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten() {
        let place = Place::new();
        let file = place.dir.path().join("there");
        std::fs::write(&file, "before").unwrap();
        for option in ["--pcap", "--har"] {
            let output = Command::new(ebpfkit_path())
                .args(["sslsniff", option])
                .arg(&file)
                .args(["--", "true"])
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(
                stderr.contains(option) && stderr.contains("not overwritten"),
                "{stderr}"
            );
            assert_eq!(std::fs::read(&file).unwrap(), b"before");
        }
    }
}
