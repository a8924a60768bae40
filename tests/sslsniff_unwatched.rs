// SPDX-License-Identifier: BSD-2-Clause

//! What sslsniff cannot watch is named, with the reason: by `doctor sslsniff -p PID`, and at the start with `-v`. The
//! machines of tests/vm do without.

mod common;
#[path = "sslsniff/payload.rs"]
mod payload;
#[path = "sslsniff/place.rs"]
mod place;

mod root {
    use std::io::Write as _;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use serde_json::Value;

    use super::common::{Background, PATIENCE, Tool, ebpfkit_path, python3, sh};
    use super::payload::{clients, first_below, unpacked};
    use super::place::{Peer, Place};

    /// Waits until the process has this file, and is told of it as one that cannot be watched; by both ways.
    fn is_named(place: &Place, pid: u32, file: &str, implementation: &str, reason: &str) {
        let start = std::time::Instant::now();
        let found = loop {
            let mut command = Command::new(ebpfkit_path());
            let pid = pid.to_string();
            command.args(["-o", "json", "doctor", "sslsniff", "-p", &pid]);
            let output = command.output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let uses: Vec<Value> = text
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            // Python may have a library of its own that can be watched.
            let can_be = uses.iter().any(|one| one.get("functions").is_some());
            assert_eq!(output.status.code(), Some(if can_be { 0 } else { 3 }));
            let of_file = |one: &Value| one["file"].as_str().unwrap().ends_with(file);
            if let Some(found) = uses.into_iter().find(of_file) {
                break found;
            }
            // It may still be about to start.
            assert!(start.elapsed() < PATIENCE, "{file} is not found: {text}");
        };
        assert_eq!(found["implementation"], implementation, "{found}");
        assert!(
            found["reason"].as_str().unwrap().contains(reason),
            "{found}"
        );
        assert_eq!(found["pid"], pid);
        assert!(found.get("functions").is_none(), "{found}");

        let args = ["-v", "sslsniff", "-p", &pid.to_string()];
        let ended = Tool::start(&place.netns, &args).stop();
        let path = found["file"].as_str().unwrap();
        let wanted = format!("{path} of process {pid} cannot be watched: {implementation}: ");
        assert!(ended.stderr.contains(&wanted), "{}", ended.stderr);
        assert_eq!(ended.stderr.matches(": ready\n").count(), 1);
    }

    #[test]
    fn boringssl_without_symbols_inside_of_grpcio_is_named() {
        let place = Place::new();
        let mut command = Command::new(clients());
        command.args(["-c", include_str!("sslsniff/bundled.py"), "grpc"]);
        let mut client = Peer::start(&mut command);
        assert_eq!(client.line(), "imported");
        is_named(
            &place,
            client.pid(),
            ".so",
            "BoringSSL",
            "it is inside, and the symbols are stripped",
        );
        client.go();
    }

    #[test]
    fn go_is_named() {
        let place = Place::new();
        let caddy = unpacked("programs").join("usr/bin/caddy");
        let mut command = place.netns.command(&caddy);
        command.args(["respond", "--listen", "127.0.0.1:4433"]);
        command.env("HOME", place.dir.path()).stderr(Stdio::null());
        let caddy = Background(command.stdout(Stdio::null()).spawn().unwrap());
        is_named(
            &place,
            caddy.0.id(),
            "/usr/bin/caddy",
            "Go's crypto/tls",
            "stacks that move under a return probe",
        );
    }

    #[test]
    fn go_that_may_be_anywhere_in_memory_is_named() {
        let place = Place::new();
        let caddy = unpacked("programs").join("usr/bin/caddy");
        for section in [".data.rel.ro.gopclntab", ".data.rel.ro"] {
            let copy = place.dir.path().join("any");
            let renamed = format!(".gopclntab={section}");
            let mut objcopy = Command::new("objcopy");
            sh(objcopy
                .args(["--rename-section", &renamed])
                .args([&caddy, &copy]));
            a_library_is_named(&place, &copy, "Go's crypto/tls", "stacks that move");
            std::fs::remove_file(copy).unwrap();
        }
    }

    /// Maps a file to execute from it.
    const MAPS: &str = "import mmap, sys\nfile = open(sys.argv[1], 'rb')\n\
        at = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)\n\
        print('mapped', flush=True)\nsys.stdin.readline()\n";

    /// A process that maps this file to execute from it is told of.
    fn a_library_is_named(place: &Place, library: &Path, implementation: &str, reason: &str) {
        let mut command = Command::new(python3());
        let mut client = Peer::start(command.args(["-c", MAPS]).arg(library));
        assert_eq!(client.line(), "mapped");
        is_named(
            place,
            client.pid(),
            &library.to_string_lossy(),
            implementation,
            reason,
        );
        client.go();
    }

    /// By the function that starts its machine, in a library of any name: Java itself is large.
    #[test]
    fn java_is_named() {
        let place = Place::new();
        let library = place.dir.path().join("libany.so");
        let mut compiler = Command::new("cc")
            .args(["-shared", "-xc", "-", "-o"])
            .arg(&library)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut source = compiler.stdin.take().unwrap();
        source
            .write_all(b"int JNI_CreateJavaVM(void) { return 0; }\n")
            .unwrap();
        drop(source);
        assert!(compiler.wait().unwrap().success());
        a_library_is_named(&place, &library, "Java (JSSE)", "its TLS is bytecode");
    }

    #[test]
    fn other_libraries_are_named_whatever_their_files_are() {
        let place = Place::new();
        for (pattern, implementation) in [
            ("libssl3.so", "NSS"),
            ("libwolfssl.so.*", "wolfSSL"),
            ("libmbedtls.so.*", "Mbed TLS"),
        ] {
            let library = first_below(&unpacked("others"), &[pattern]);
            let elsewhere = place.dir.path().join("libany.so");
            std::fs::copy(library, &elsewhere).unwrap();
            let reason = "its functions are not OpenSSL's";
            a_library_is_named(&place, &elsewhere, implementation, reason);
            std::fs::remove_file(elsewhere).unwrap();
        }
    }
}
