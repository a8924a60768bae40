// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit sslsniff` and OpenSSL of other releases of Debian, unpacked side by side. They are fetched
//! once; where that fails the test does. The machines of tests/vm do without.

mod common;
#[path = "sslsniff/place.rs"]
mod place;

mod root {
    use std::io::{Read as _, Write as _};
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};

    use super::common::{Background, Tool, sh};
    use super::place::{PORT, Place, bytes_of, nothing_is_lost};

    fn first_below(root: &Path, patterns: &[&str]) -> PathBuf {
        let found = patterns.iter().find_map(|pattern| {
            let mut find = Command::new("find");
            let output = sh(find.arg(root).args(["-name", pattern]));
            output.lines().next().map(PathBuf::from)
        });
        found.unwrap_or_else(|| panic!("none of {patterns:?} in {}", root.display()))
    }

    /// Runs a suite's `openssl`, with the suite's own C library where that is newer than this machine's.
    struct OpenSsl {
        command: Vec<String>,
        library: PathBuf,
    }

    impl OpenSsl {
        fn of(suite: &str) -> Self {
            let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sslsniff/openssl-of");
            let root = PathBuf::from(sh(Command::new(fetch).arg(suite)).trim_end());
            let library = first_below(&root, &["libssl.so.*"]);
            let libraries = library.parent().unwrap().display().to_string();
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
            Self { command, library }
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
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 | 0x80
        };
        (0..size).map(|_| next()).collect()
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
                "s_server", "-quiet", "-accept", &address, "-cert", "cert", "-key", "key",
            ],
        );
        let start = std::time::Instant::now();
        while !place.netns.enter(super::place::listens).join().unwrap() {
            assert!(start.elapsed() < super::common::PATIENCE, "no s_server");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        // As the server has mapped it, the library is probed from the start.
        let tool = Tool::start(
            &place.netns,
            &["sslsniff", "--lib", openssl.library.to_str().unwrap()],
        );
        let mut client = openssl.start(&place, &["s_client", "-quiet", "-connect", &address]);
        let (up, down) = (payload(300_007, 1), payload(500_009, 2));
        send(&mut client.0, &mut server.0, &up);
        send(&mut server.0, &mut client.0, &down);
        let pids = [client.0.id(), server.0.id()];
        drop((client, server));
        let ended = tool.stop();
        nothing_is_lost(&ended);
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
}
