// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit sslsniff` and OpenSSL of other releases of Debian, unpacked side by side. They are fetched
//! once; where that fails the test does. The machines of tests/vm do without.

mod common;
#[path = "sslsniff/payload.rs"]
mod payload;
#[path = "sslsniff/place.rs"]
mod place;

mod root {
    use std::collections::BTreeSet;
    use std::io::{Read as _, Write as _};
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    use serde_json::Value;

    use super::common::{Background, Tool, python3, sh};
    use super::payload::{SIZES, first_below, payload_files, random, streams_by, unpacked};
    use super::place::{PORT, Peer, Place, bytes_of, nothing_is_lost};

    /// Runs a suite's `openssl`, with the suite's own C library where that is newer than this machine's.
    struct OpenSsl {
        command: Vec<String>,
        /// libssl and libcrypto
        libraries: [PathBuf; 2],
    }

    impl OpenSsl {
        fn of(suite: &str) -> Self {
            let root = unpacked(suite);
            let names = ["libssl.so.*", "libcrypto.so.*"];
            let files = names.map(|name| first_below(&root, &[name]));
            let libraries = files[0].parent().unwrap().display().to_string();
            let program = root.join("usr/bin/openssl").display().to_string();
            let command = if suite == "bullseye" {
                vec![
                    "env".to_owned(),
                    format!("LD_LIBRARY_PATH={libraries}"),
                    program,
                ]
            } else {
                let loader = first_below(&root, &["ld-linux-*.so.*"]);
                // What else they need (zlib, zstd) is this machine's.
                let own = ["/lib", "/usr/lib"]
                    .map(|lib| format!("{lib}/{}-linux-gnu", std::env::consts::ARCH));
                let paths = format!("{libraries}:{}", own.join(":"));
                let loader = loader.display().to_string();
                vec![loader, "--library-path".to_owned(), paths, program]
            };
            Self {
                command,
                libraries: files,
            }
        }

        fn start(&self, place: &Place, args: &[&str]) -> Background {
            // Waits for a line, so that its process can be named before it begins.
            let mut shell = place.netns.command("sh");
            shell.args(["-c", "read go; exec \"$@\"", "sh"]);
            shell
                .args(&self.command)
                .args(args)
                .current_dir(place.dir.path());
            let piped = shell.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut process = Background(piped.spawn().unwrap());
            write(&mut process.0, b"go\n");
            process
        }
    }

    fn write(process: &mut Child, bytes: &[u8]) {
        process.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Has `from` send, and waits until `to` has all of it.
    fn send(from: &mut Child, to: &mut Child, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| write(from, bytes));
            to.stdout.as_mut().unwrap().read_exact(&mut got).unwrap();
        });
        assert!(got == bytes);
    }

    /// No byte of it is ASCII: `s_client` takes some letters for commands.
    fn payload(size: usize, seed: u32) -> Vec<u8> {
        let random = random(size, seed).into_iter();
        random.map(|byte| byte | 0x80).collect()
    }

    /// Both ends are of this version; each of them shows what it sent and what it got.
    fn both_ends_are_shown(suite: &str, version: &str) {
        let openssl = OpenSsl::of(suite);
        let said = sh(Command::new(&openssl.command[0])
            .args(&openssl.command[1..])
            .arg("version"));
        assert!(said.starts_with(&format!("OpenSSL {version}")), "{said}");
        let place = Place::new();
        let address = format!("127.0.0.1:{PORT}");
        let mut server = openssl.start(
            &place,
            &[
                "s_server",
                "-quiet",
                "-accept",
                &address,
                "-cert",
                "cert",
                "-key",
                "key",
                "-keylogfile",
                "server-keys",
            ],
        );
        let start = std::time::Instant::now();
        while !place.netns.enter(super::place::listens).join().unwrap() {
            assert!(start.elapsed() < super::common::PATIENCE, "no s_server");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        // As the server has mapped them, the libraries are probed from the start.
        let log = place.dir.path().join("keys");
        let [ssl, crypto] = [0, 1].map(|index| openssl.libraries[index].to_str().unwrap());
        let args = ["sslsniff", "--lib", ssl, "--lib", crypto, "--keylog"];
        let tool = Tool::start(
            &place.netns,
            &[&args[..], &[log.to_str().unwrap()]].concat(),
        );
        let to = ["s_client", "-quiet", "-connect", &address];
        let logged = ["-keylogfile", "client-keys"];
        let mut client = openssl.start(&place, &[&to[..], &logged].concat());
        let (up, down) = (payload(300_007, 1), payload(500_009, 2));
        send(&mut client.0, &mut server.0, &up);
        send(&mut server.0, &mut client.0, &down);
        let pids = [client.0.id(), server.0.id()];
        drop((client, server));
        let ended = tool.stop();
        nothing_is_lost(&ended);
        for pid in pids {
            // s_client makes no call for its handshake.
            let told = ended.events.iter();
            let mut told = told.filter(|event| event["pid"] == pid && event["cipher"].is_string());
            let told = told.next().unwrap();
            assert_eq!(told["version"], "TLSv1.3", "{told}");
            assert_eq!(told["cipher"], "TLS_AES_256_GCM_SHA384");
            assert_eq!(told["resumed"], false);
        }
        let keys = |name: &str| {
            let text = std::fs::read_to_string(place.dir.path().join(name)).unwrap();
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let mut lines: Vec<_> = lines.map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        let mut both = [keys("server-keys"), keys("client-keys")].concat();
        both.sort_unstable();
        // It derives them in another way.
        if version == "1.1.1" {
            both.clear();
        }
        assert_eq!(keys("keys"), both);
        for (pid, written, read) in [(pids[0], &up, &down), (pids[1], &down, &up)] {
            for (direction, expected) in [("write", written), ("read", read)] {
                let mut shown = Vec::new();
                for event in ended.kind("data") {
                    if event["pid"] == pid && event["direction"] == direction {
                        assert_eq!(event["offset"], shown.len(), "{event}");
                        shown.extend(bytes_of(event));
                    }
                }
                assert!(
                    &shown == expected,
                    "{version} {direction}: {} bytes of {}",
                    shown.len(),
                    expected.len()
                );
            }
        }
    }

    #[test]
    fn openssl_1_1_1_is_shown_byte_by_byte() {
        both_ends_are_shown("bullseye", "1.1.1");
    }

    #[test]
    fn openssl_3_5_is_shown_byte_by_byte() {
        both_ends_are_shown("trixie", "3.5");
    }

    /// sid moves on: 3.6 as this was written.
    #[test]
    fn the_newest_openssl_is_shown_byte_by_byte() {
        both_ends_are_shown("sid", "");
    }

    #[test]
    fn boringssl_is_shown_byte_by_byte() {
        let libraries = first_below(&unpacked("boringssl"), &["android"]);
        let place = Place::new();
        let payloads: Vec<_> = SIZES.into_iter().zip(1..).collect();
        let payloads: Vec<_> = payloads
            .into_iter()
            .map(|(size, seed)| random(size, seed))
            .collect();
        let folder = payload_files(&place, &payloads);
        let end = |args: &[&str]| {
            let mut command = place.netns.command(python3());
            command.args(["-c", include_str!("sslsniff/boring.py")]);
            Peer::start(command.arg(&libraries).args(args))
        };
        let [cert, key] =
            ["cert", "key"].map(|name| place.dir.path().join(name).display().to_string());
        let mut server = end(&["serve", &folder, &cert, &key, PORT]);
        assert_eq!(server.line(), "listening");
        let mut client = end(&["send", &folder, PORT]);
        let library = libraries.join("libssl.so.0").canonicalize().unwrap();
        let args = [
            "sslsniff",
            "--lib",
            library.to_str().unwrap(),
            "--buffer",
            "128M",
        ];
        let tool = Tool::start(&place.netns, &args);
        client.go();
        client.rest();
        server.rest();
        let ended = tool.stop();
        nothing_is_lost(&ended);
        let all = payloads.concat();
        for pid in [client.pid(), server.pid()] {
            for direction in ["read", "write"] {
                let streams = streams_by(&ended, |of, _| of == u64::from(pid), direction);
                assert!(streams == [all.as_slice()], "{direction}");
            }
            let handshake = ended
                .kind("handshake")
                .into_iter()
                .find(|event| event["pid"] == pid);
            let handshake = handshake.unwrap();
            assert_eq!(handshake["result"], "ok");
            assert_eq!(
                ended
                    .kind("close")
                    .iter()
                    .filter(|event| event["pid"] == pid)
                    .count(),
                1
            );
        }
        let of_client = |event: &&&Value| event["pid"] == client.pid();
        let close = ended.kind("close");
        let close = close.iter().find(of_client).unwrap();
        assert_eq!(close["sni"], "name.example", "{close}");
        assert!(
            close["version"].as_str().unwrap().starts_with("TLSv1."),
            "{close}"
        );
        // Each byte is told once, under the function that the program called.
        let functions: BTreeSet<_> = ended
            .kind("data")
            .iter()
            .map(|event| event["function"].clone().to_string())
            .collect();
        assert_eq!(Vec::from_iter(functions), ["\"SSL_read\"", "\"SSL_write\""]);
    }
}
