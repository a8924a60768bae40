// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit sslsniff` and programs that use TLS each in their own way. They are many and large, and
//! ask nothing of a kernel: the machines of tests/vm do without.

mod common;
#[path = "sslsniff/payload.rs"]
mod payload;
#[path = "sslsniff/place.rs"]
mod place;

mod root {
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::process::Stdio;

    use serde_json::{Value, json};
    use sha2::{Digest as _, Sha256};

    use super::common::{Background, Ended, Tool, python3};
    use super::payload::{clients, installed};
    use super::place::{OTHER_PORT, PORT, Peer, Place, URL, bytes_of, nothing_is_lost, text};

    fn asyncio(place: &Place, args: &[&str]) -> Peer {
        let mut command = place.netns.command(python3());
        command.args(["-c", include_str!("sslsniff/asyncio_end.py")]);
        Peer::start(command.args(args))
    }

    const NODE: &str = "process.stdin.once('data', () => require('https').get(\
        {host: '127.0.0.1', port: process.argv[1], path: process.argv[2], rejectUnauthorized: false, \
        agent: false}, answer => { let text = ''; answer.on('data', part => text += part); \
        answer.on('end', () => { console.log(JSON.stringify(text)); process.exit(); }); }));";

    fn node(place: &Place, path: &str) -> Peer {
        Peer::start(place.netns.command("node").args(["-e", NODE, PORT, path]))
    }

    /// Connections of each client at the same time.
    const MANY: usize = 12;
    const THIRD_PORT: &str = "4435";

    /// The first of what a process read or wrote on the connection on which this was asked for.
    fn asked<'a>(ended: &'a Ended, pid: u32, direction: &str, path: &str) -> &'a Value {
        let start = format!("GET {path} HTTP/1.");
        let mut found = ended.kind("data").into_iter().filter(|event| {
            event["pid"] == pid
                && event["direction"] == direction
                && event["offset"] == 0
                && bytes_of(event).starts_with(start.as_bytes())
        });
        let first = found.next();
        assert!(found.next().is_none(), "two ask for {path}");
        first.unwrap_or_else(|| panic!("process {pid} did not {direction} {start}"))
    }

    #[test]
    fn clients_servers_and_proxies_at_once_have_no_wrong_ends() {
        let place = Place::new();
        let mut server = asyncio(&place, &["serve", &place.pem(), THIRD_PORT]);
        assert_eq!(server.line(), "listening");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sslsniff/node_end.js");
        let node = |args: &[&str]| {
            let mut command = place.netns.command("node");
            Peer::start(command.arg(script).args(args))
        };
        let mut proxy = node(&["proxy", &place.pem(), OTHER_PORT, THIRD_PORT]);
        assert_eq!(proxy.line(), "listening");
        let nginx = place.nginx_with(&format!(
            "location / {{ proxy_pass https://127.0.0.1:{OTHER_PORT}; }}"
        ));
        let many = MANY.to_string();
        let mut clients = [
            node(&["many", PORT, "/node", &many]),
            asyncio(&place, &["many", PORT, "/asyncio", &many]),
        ];
        let tool = Tool::start(&place.netns, &["sslsniff"]);
        clients.iter_mut().for_each(Peer::go);
        for client in &mut clients {
            assert_eq!(client.rest()[0].as_array().unwrap().len(), MANY);
        }
        let ended = tool.stop();
        nothing_is_lost(&ended);
        for (client, path) in clients.iter().zip(["/node", "/asyncio"]) {
            for path in (0..MANY).map(|number| format!("{path}{number}")) {
                // Who asks, who is asked, and at which port.
                for (from, to, port) in [
                    ((client.pid(), "ciphertext"), (nginx.0.id(), "call"), PORT),
                    (
                        (nginx.0.id(), "call"),
                        (proxy.pid(), "ciphertext"),
                        OTHER_PORT,
                    ),
                    (
                        (proxy.pid(), "ciphertext"),
                        (server.pid(), "ciphertext"),
                        THIRD_PORT,
                    ),
                ] {
                    let asks = asked(&ended, from.0, "write", &path);
                    let is_asked = asked(&ended, to.0, "read", &path);
                    assert_eq!(asks["peer"], format!("127.0.0.1:{port}"), "{asks}");
                    assert_eq!(asks["local"], is_asked["peer"], "{asks} {is_asked}");
                    assert_eq!(asks["peer"], is_asked["local"], "{asks} {is_asked}");
                    assert_eq!(asks["peer_via"], from.1, "{asks}");
                    assert_eq!(is_asked["peer_via"], to.1, "{is_asked}");
                }
            }
        }
        // And so on all lines of these connections.
        for (pid, via) in [(proxy.pid(), "ciphertext"), (nginx.0.id(), "call")] {
            for event in ended.kind("data") {
                assert!(event["pid"] != pid || event["peer_via"] == via, "{event}");
            }
        }
    }

    /// Watches a shell that runs `command`, which gets `/file` of nginx, and no other; checks that each
    /// byte is told once, in order.
    fn download(command: &[&str]) -> Ended {
        let place = Place::new();
        let file = place.dir.path().join("file");
        let bytes: Vec<u8> = (0..1_000_003_u32)
            .map(|at| (at.wrapping_mul(at) >> 7) as u8)
            .collect();
        std::fs::write(&file, &bytes).unwrap();
        let _nginx = place.nginx_with(&format!(
            "location / {{ default_type text/plain; root {}; }}",
            place.dir.path().display()
        ));
        let mut shell = place.netns.command("sh");
        shell.args(["-c", "read go; exec \"$@\" >/dev/null", "sh"]);
        let mut client = Background(shell.args(command).stdin(Stdio::piped()).spawn().unwrap());
        let pid = client.0.id();
        let tool = Tool::start(
            &place.netns,
            &["sslsniff", "--hold", "-p", &pid.to_string()],
        );
        // Two lines: one is the shell's.
        let stdin = client.0.stdin.as_mut().unwrap();
        std::io::Write::write_all(stdin, b"go\ngo\n").unwrap();
        assert!(client.0.wait().unwrap().success(), "{command:?}");
        let ended = tool.stop();
        nothing_is_lost(&ended);
        let request = text(&ended, pid, "write");
        assert!(request.starts_with("GET /file HTTP/1.1\r\n"), "{request:?}");
        assert_eq!(request.matches("GET /file").count(), 1);
        let read: Vec<u8> = ended
            .kind("data")
            .into_iter()
            .filter(|event| event["direction"] == "read")
            .flat_map(bytes_of)
            .collect();
        let end = read
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap()
            + 4;
        assert_eq!(
            Sha256::digest(&read[end..]),
            Sha256::digest(&bytes),
            "{command:?}"
        );
        ended
    }

    fn functions(ended: &Ended, direction: &str) -> BTreeSet<String> {
        ended
            .kind("data")
            .iter()
            .filter(|event| event["direction"] == direction)
            .map(|event| event["function"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn gnutls_is_shown_byte_by_byte() {
        let url = format!("{URL}file");
        let ended = download(&[
            "wget",
            "-q",
            "--no-proxy",
            "--no-check-certificate",
            "-O-",
            &url,
        ]);
        assert!(functions(&ended, "read").contains("gnutls_record_recv"));
        // GnuTLS passes from one of its functions on to another.
        assert!(functions(&ended, "write").contains("gnutls_record_send"));
        let handshake = ended.kind("handshake")[0].clone();
        assert_eq!(handshake["function"], "gnutls_handshake");
        assert_eq!(handshake["peer"], "127.0.0.1:4433");
        assert!(handshake["cipher"].as_str().unwrap().starts_with("TLS_"));
        assert!(handshake["version"].as_str().unwrap().starts_with("TLSv1."));
    }

    #[test]
    fn what_gnutls_keeps_until_later_is_told_once() {
        let ended = Place::new().watched_client(include_str!("sslsniff/gnutls.py"), &[]);
        let written: Vec<_> = ended
            .kind("data")
            .into_iter()
            .filter(|event| event["direction"] == "write")
            .map(|event| event["data"].as_str().unwrap())
            .collect();
        assert_eq!(
            written,
            ["plain", "corked", " twice", "after", "padded", "again"]
        );
        assert_eq!(ended.kind("close")[0]["written"], 33);
        assert!(functions(&ended, "write").contains("gnutls_record_send2"));
    }

    /// A program of C among the tests' files.
    fn built(place: &Place, name: &str, text: &str, flags: &[&str]) -> PathBuf {
        let program = place.dir.path().join(name);
        let source = program.with_extension("c");
        std::fs::write(&source, text).unwrap();
        let mut build = std::process::Command::new("cc");
        let build = build.args(["-O1", "-o"]).arg(&program).arg(&source);
        super::common::sh(build.args(flags));
        program
    }

    /// What is told of tests/sslsniff/namesakes.c.
    fn namesakes(args: &[&str]) -> Ended {
        let place = Place::new();
        let text = include_str!("sslsniff/namesakes.c");
        let program = built(&place, "namesakes", text, &["-rdynamic", "-pthread"]);
        let mut client = Peer::start(place.netns.command(&program).args(args));
        assert_eq!(client.line(), "here");
        let pid = client.pid().to_string();
        let args = ["sslsniff", "--show-secrets", "-p", &pid];
        let tool = Tool::start(&place.netns, &args);
        client.go();
        client.rest();
        tool.stop()
    }

    #[test]
    fn calls_that_only_newer_libraries_and_kernels_have_are_told() {
        let ended = namesakes(&[]);
        nothing_is_lost(&ended);
        let told = |event: &&Value| {
            let number = |name: &str| event[name].as_u64();
            let name = event["function"].as_str().unwrap().to_owned();
            let data = event["data"].as_str().map(str::to_owned);
            (name, number("offset"), number("length"), data)
        };
        let told: Vec<_> = ended.kind("data").iter().map(told).collect();
        let expected = [
            ("SSL_write", 0, 5, Some("first")),
            ("SSL_write_ex2", 5, 6, Some("second")),
            // The bytes of a file never are in the program.
            ("SSL_sendfile", 11, 1000, None),
            ("SSL_write", 1011, 4, Some("last")),
        ];
        let expected = expected.map(|(name, offset, length, data)| {
            let data = data.map(str::to_owned);
            (name.to_owned(), Some(offset), Some(length), data)
        });
        assert_eq!(told, expected);
        assert_eq!(ended.kind("close")[0]["written"], 1015);
    }

    #[test]
    fn bytes_that_nobody_can_read_are_lost_as_such_however_many_they_are() {
        let ended = namesakes(&["0"]);
        let causes = &ended.summary()["lost_by_cause"];
        let (all, none) = (
            json!({"calls": 1, "bytes": i32::MAX}),
            json!({"calls": 0, "bytes": 0}),
        );
        assert_eq!(causes["unreadable"], all, "{causes}");
        assert_eq!(causes["ring_full"], none, "{causes}");
        assert_eq!(ended.kind("data").len(), 0);
    }

    /// Starts a program in C between two ports that somebody listens at, and says what is told of it.
    fn between_ports(name: &str, text: &str, more: &[&str]) -> Ended {
        let place = Place::new();
        let text = [include_str!("sslsniff/dials.h"), text].concat();
        let program = built(&place, name, &text, &["-rdynamic"]);
        let listener = place.netns.enter(|| {
            [PORT, OTHER_PORT]
                .map(|port| std::net::TcpListener::bind(format!("127.0.0.1:{port}")).unwrap())
        });
        let _listeners = listener.join().unwrap();
        let mut command = place.netns.command(&program);
        let mut client = Peer::start(command.args([PORT, OTHER_PORT]).args(more));
        assert_eq!(client.line(), "here");
        let pid = client.pid().to_string();
        let tool = Tool::start(&place.netns, &["sslsniff", "-p", &pid]);
        client.go();
        client.rest();
        tool.stop()
    }

    #[test]
    fn more_calls_within_each_other_than_are_kept_are_counted_and_confuse_nothing_after_them() {
        let ended = between_ports("nests", include_str!("sslsniff/nests.c"), &[]);
        let causes = &ended.summary()["lost_by_cause"];
        // Of twelve the innermost eight are kept.
        assert_eq!(
            causes["state_full"],
            json!({"calls": 4, "bytes": 40}),
            "{causes}"
        );
        let data = ended.kind("data");
        assert_eq!(data.len(), 8 + 1, "{data:?}");
        assert_eq!(data[0]["peer"], format!("127.0.0.1:{PORT}"), "{data:?}");
        // Once, though it is two calls of the library.
        assert_eq!(data[8]["function"], "SSL_write_ex", "{data:?}");
        let peer = format!("127.0.0.1:{OTHER_PORT}");
        assert_eq!(data[8]["peer"], peer, "{data:?}");
    }

    #[test]
    fn a_call_that_was_left_by_a_jump_is_not_taken_for_what_comes_after() {
        for depth in ["0", "4000", "60000"] {
            let ended = between_ports("jumps", include_str!("sslsniff/jumps.c"), &[depth]);
            nothing_is_lost(&ended);
            let handshakes = ended.kind("handshake");
            assert_eq!(handshakes.len(), 1, "{depth}: {handshakes:?}");
            assert_eq!(handshakes[0]["result"], "ok");
            let data = ended.kind("data");
            assert_eq!(data.len(), 1, "{depth}: {data:?}");
            for event in [handshakes[0], data[0]] {
                assert_eq!(event["peer"], format!("127.0.0.1:{OTHER_PORT}"), "{event}");
                assert_eq!(event["connection"], data[0]["connection"]);
            }
            // The other one is given up with its process.
            let of_one = |event: &&&Value| event["connection"] != data[0]["connection"];
            let closed = ended.kind("close");
            let one = closed.iter().find(of_one).expect("a close");
            assert_eq!(one["peer"], format!("127.0.0.1:{PORT}"), "{one}");
        }
    }

    /// Descriptors of a process that hold probes.
    fn links(pid: u32) -> usize {
        let folder = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let targets = folder
            .flatten()
            .map(|entry| std::fs::read_link(entry.path()));
        targets
            .flatten()
            .filter(|target| target.to_string_lossy().contains("bpf_link"))
            .count()
    }

    /// As containers of one image have it: a library in an overlayfs each.
    #[test]
    fn one_file_in_many_overlays_is_probed_once_and_its_peers_are_known() {
        const OVERLAYS: usize = 4;
        let place = Place::new();
        let [lower, empty, at] = ["lower", "empty", "at"].map(|name| place.dir.path().join(name));
        for folder in [&lower, &empty, &at] {
            std::fs::create_dir(folder).unwrap();
        }
        let script = "import _ssl\nfor line in open('/proc/self/maps'):\n \
                      if 'libssl' in line or 'libcrypto' in line: print(line.split()[-1])";
        let paths = super::common::sh(std::process::Command::new(python3()).args(["-c", script]));
        for path in paths.lines().collect::<BTreeSet<_>>() {
            let name = PathBuf::from(path).file_name().unwrap().to_owned();
            std::fs::copy(path, lower.join(name)).unwrap();
        }
        let ends = include_str!("sslsniff/ends.py");
        let options = json!({"cert": place.pem(), "memory": true}).to_string();
        let mut server = place.netns.command(python3());
        let mut server = Peer::start(server.args(["-c", ends, "serve", PORT, &options]));
        assert_eq!(server.line(), "listening");
        let mut clients: Vec<_> = (0..OVERLAYS)
            .map(|_| {
                let mut command = place.netns.command("unshare");
                command.args(["--mount", "--propagation", "private", "sh", "-c"]);
                command.arg(
                    "mount -t overlay overlay -o \"lowerdir=$1:$2\" \"$3\" && \
                     export LD_LIBRARY_PATH=\"$3\" && shift 3 && exec \"$@\"",
                );
                command.arg("sh").args([&lower, &empty, &at]).arg(python3());
                let client = format!("import ssl\nprint('up', flush=True)\n{ends}");
                let mut client = Peer::start(command.args(["-c", &client, "get", PORT, &options]));
                assert_eq!(client.line(), "up");
                client
            })
            .collect();
        let pids: Vec<_> = clients
            .iter()
            .map(|client| client.pid().to_string())
            .collect();
        let mut args = vec!["sslsniff"];
        args.extend(pids.iter().flat_map(|pid| ["-p", pid]));
        let tool = Tool::start(&place.netns, &args);
        let before = links(tool.pid());

        let go = |client: &mut Peer| {
            client.go();
            client.rest();
        };
        go(&mut clients[0]);
        // Of each of the others the TLS library and what is below it.
        let start = std::time::Instant::now();
        while links(tool.pid()) + 2 * (OVERLAYS - 1) > before {
            assert!(start.elapsed() < super::common::PATIENCE, "{before}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        // What is probed is that of the first or of the last, who have ended then: the others' are, from then on.
        go(&mut clients[OVERLAYS - 1]);
        for client in &mut clients[1..OVERLAYS - 1] {
            let pid = client.pid();
            tool.wait_for("the library of another", |event| {
                event["kind"] == "library" && event["pid"] == pid
            });
            go(client);
        }
        let ended = tool.stop();
        nothing_is_lost(&ended);
        for client in &clients {
            let of_this = |event: &&&Value| event["pid"] == client.pid();
            let data = ended.kind("data");
            let data: Vec<_> = data.iter().filter(of_this).collect();
            assert_eq!(data.len(), 2, "{data:?}");
            for event in data {
                assert_eq!(event["peer"], format!("127.0.0.1:{PORT}"), "{event}");
                assert_eq!(event["peer_via"], "ciphertext");
            }
            let handshakes = ended.kind("handshake");
            let handshakes: Vec<_> = handshakes.iter().filter(of_this).collect();
            assert_eq!(handshakes.len(), 1, "{handshakes:?}");
            assert_eq!(handshakes[0]["version"], "TLSv1.3");
        }
    }

    /// `MAX_THREADS` of `sslsniff_state.bpf.h` are followed; a byte each, and one call of six.
    #[test]
    fn calls_that_there_is_no_room_for_are_counted() {
        let ended = namesakes(&["10300"]);
        let summary = ended.summary();
        assert_eq!(summary["seen"], 10_301, "{summary}");
        assert_eq!(summary["delivered"], 10_240);
        assert_eq!(summary["lost"], 61);
        assert_eq!(summary["lost_by_cause"]["state_full"]["calls"], 61);
        assert_eq!(summary["lost_by_cause"]["state_full"]["bytes"], 66);
        assert_eq!(ended.kind("data").len(), 10_240);
        let lost: u64 = ended
            .kind("lost")
            .iter()
            .map(|event| event["calls"].as_u64().unwrap())
            .sum();
        assert_eq!(lost, 61);
    }

    #[test]
    fn curl_is_shown_byte_by_byte() {
        let url = format!("{URL}file");
        let ended = download(&[&["curl"], super::place::CURL, &[&url]].concat());
        assert_eq!(Vec::from_iter(functions(&ended, "read")), ["SSL_read"]);
    }

    #[test]
    fn openssl_inside_of_nodejs_is_shown_byte_by_byte() {
        let ended = download(&["node", "-e", NODE, PORT, "/file"]);
        assert_eq!(Vec::from_iter(functions(&ended, "write")), ["SSL_write"]);
        for event in ended.kind("data") {
            assert_eq!(event["peer"], "127.0.0.1:4433", "{event}");
        }
    }

    /// The versions that tests/clients/node-versions.txt lists.
    #[test]
    fn openssl_inside_of_any_version_of_nodejs_is_shown_byte_by_byte() {
        let versions = include_str!("clients/node-versions.txt");
        let mut inside = BTreeSet::new();
        for version in versions.lines().filter(|line| !line.starts_with('#')) {
            let node = installed(&format!("node/{version}/node"));
            let mut ask = std::process::Command::new(&node);
            let said =
                super::common::sh(ask.args(["-p", "process.version + process.versions.openssl"]));
            let openssl = said
                .trim_end()
                .strip_prefix(&format!("v{version}"))
                .unwrap();
            inside.insert(openssl[..3].to_owned());
            let ended = download(&[&node, "-e", NODE, PORT, "/file"]);
            assert_eq!(Vec::from_iter(functions(&ended, "write")), ["SSL_write"]);
            assert!(library(&ended).ends_with("/bin/node"), "{version}");
        }
        assert_eq!(Vec::from_iter(inside), ["1.1", "3.0", "3.5"]);
    }

    #[test]
    fn asyncio_is_shown_byte_by_byte() {
        let script = include_str!("sslsniff/asyncio_end.py");
        let ended = download(&[python3(), "-c", script, "get", PORT, "/file"]);
        assert_eq!(Vec::from_iter(functions(&ended, "read")), ["SSL_read_ex"]);
    }

    /// The one library whose calls moved data.
    fn library(ended: &Ended) -> String {
        let of = |event: &&Value| event["library"].as_str().unwrap_or("?").to_owned();
        let all: BTreeSet<_> = ended.kind("data").iter().map(of).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all.into_iter().collect()
    }

    const BUNDLED: &str = include_str!("sslsniff/bundled.py");

    #[test]
    fn openssl_that_pycurl_brings_along_is_shown_byte_by_byte() {
        let library = library(&download(&[
            &clients(),
            "-c",
            BUNDLED,
            "curl",
            PORT,
            "/file",
        ]));
        assert!(library.contains("/pycurl.libs/libssl-"), "{library}");
    }

    #[test]
    fn openssl_inside_of_cryptography_is_shown_byte_by_byte() {
        let library = library(&download(&[
            &clients(),
            "-c",
            BUNDLED,
            "openssl",
            PORT,
            "/file",
        ]));
        // Its functions are in `.symtab` alone.
        assert!(library.ends_with("/_rust.abi3.so"), "{library}");
    }

    #[test]
    fn the_peer_of_openssl_inside_of_cryptography_over_memory_is_known() {
        let ended = download(&[&clients(), "-c", BUNDLED, "memory", PORT, "/file"]);
        assert!(library(&ended).ends_with("/_rust.abi3.so"));
        for event in ended.kind("data") {
            assert_eq!(event["peer"], "127.0.0.1:4433", "{event}");
            assert_eq!(event["peer_via"], "ciphertext", "{event}");
        }
    }

    /// The stack of a process's first write.
    fn stack(ended: &Ended, pid: u32) -> Vec<Value> {
        let write = ended
            .kind("data")
            .into_iter()
            .find(|event| event["pid"] == pid && event["direction"] == "write");
        write.unwrap()["stack"].as_array().unwrap().clone()
    }

    const PYTHON: &str = "import socket, ssl, sys\n\
        context = ssl._create_unverified_context()\n\
        sys.stdin.readline()\n\
        tls = context.wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[1]))))\n\
        tls.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n\
        sys.stdin.readline()\n";

    #[test]
    fn stacks_name_functions_of_programs() {
        let place = Place::new();
        let _nginx = place.nginx_with("location / { return 200 'here'; }");
        let text = include_str!("sslsniff/caller.c");
        let flags = ["-fno-omit-frame-pointer", "-ldl"];
        let caller = built(&place, "caller", text, &flags);
        let stays = NODE.replace(
            "process.exit()",
            "process.stdin.once('data', () => process.exit())",
        );
        let mut clients = [
            Peer::start(place.netns.command(&caller).arg(PORT)),
            Peer::start(place.netns.command("node").args(["-e", &stays, PORT, "/"])),
            Peer::start(place.netns.command(python3()).args(["-c", PYTHON, PORT])),
        ];
        let tool = Tool::start(&place.netns, &["sslsniff", "--stack"]);
        for client in &mut clients {
            client.go();
            let pid = client.pid();
            tool.wait_for("a write", |event| {
                event["pid"] == pid && event["kind"] == "data" && event["direction"] == "write"
            });
            // It stays until its files were read.
            client.go();
            client.rest();
        }
        let ended = tool.stop();
        nothing_is_lost(&ended);
        let [c, node, python] = clients.map(|client| stack(&ended, client.pid()));
        let names = |stack: &[Value], count: usize| -> Vec<String> {
            let name = |frame: &Value| frame["function"].as_str().unwrap_or("?").to_owned();
            stack.iter().take(count).map(name).collect()
        };
        assert_eq!(names(&c, 4), ["SSL_write", "say_hello", "talk", "main"]);
        for frame in &c[1..4] {
            assert_eq!(frame["file"], caller.to_str().unwrap());
            assert!(frame["offset"].as_u64().unwrap() > 0, "{frame}");
        }
        assert_eq!(
            names(&node, 2),
            ["SSL_write", "node::crypto::TLSWrap::ClearIn"]
        );
        assert!(names(&node, 64).contains(&"node::Start".to_owned()));
        // Built without frame pointers, and its functions are in no table: the module is known.
        assert!(names(&python, 1)[0].starts_with("SSL_write"));
        let module = python[1]["file"].as_str().unwrap();
        assert!(module.contains("_ssl"), "{python:?}");
        assert!(python[1]["file_offset"].as_str().unwrap().starts_with("0x"));
    }

    #[test]
    fn doctor_names_what_a_process_has() {
        let diagnosed = |pid: u32| {
            let mut command = std::process::Command::new(super::common::ebpfkit_path());
            command.args([
                "-o",
                "json",
                "doctor",
                "sslsniff",
                "--pid",
                &pid.to_string(),
            ]);
            let output = command.output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let uses: Vec<Value> = text
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            (output.status.code(), uses)
        };
        let place = Place::new();
        let node = node(&place, "/");
        let start = std::time::Instant::now();
        loop {
            let (code, uses) = diagnosed(node.pid());
            // It may be nsenter still.
            if code == Some(0) {
                assert!(uses.iter().any(|one| {
                    one["implementation"] == "OpenSSL or BoringSSL"
                        && one["functions"]
                            .as_array()
                            .unwrap()
                            .contains(&"SSL_write".into())
                }));
                break;
            }
            assert!(start.elapsed() < super::common::PATIENCE, "{uses:?}");
        }
        assert_eq!(diagnosed(std::process::id()), (Some(3), Vec::new()));
    }
}
