// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit sslsniff` and programs that use TLS each in their own way. They are many and large, and
//! ask nothing of a kernel: the machines of tests/vm do without.

mod common;
#[path = "sslsniff/place.rs"]
mod place;

mod root {
    use std::process::Stdio;

    use serde_json::Value;
    use sha2::{Digest as _, Sha256};

    use super::common::{Background, Ended, Tool, python3};
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

    /// Each connection of a process: what passed first in a direction, its own address and its peer's.
    fn starts(ended: &Ended, pid: u32, direction: &str) -> Vec<(String, Value, Value)> {
        ended
            .kind("data")
            .into_iter()
            .filter(|event| {
                event["pid"] == pid && event["direction"] == direction && event["offset"] == 0
            })
            .map(|event| {
                let text = String::from_utf8_lossy(&bytes_of(event)).into_owned();
                (text, event["local"].clone(), event["peer"].clone())
            })
            .collect()
    }

    #[test]
    fn a_client_a_server_and_a_proxy_at_once_have_no_wrong_ends() {
        let place = Place::new();
        let mut server = asyncio(&place, &["serve", &place.pem(), OTHER_PORT]);
        assert_eq!(server.line(), "listening");
        let nginx = place.nginx_with(&format!(
            "location / {{ proxy_pass https://127.0.0.1:{OTHER_PORT}; }}"
        ));
        let mut clients = [
            node(&place, "/node"),
            asyncio(&place, &["get", PORT, "/asyncio"]),
        ];
        let tool = Tool::start(&place.netns, &["sslsniff"]);
        for client in &mut clients {
            client.go();
            client.rest();
        }
        let ended = tool.stop();
        nothing_is_lost(&ended);
        for (client, path) in clients.iter().zip(["/node", "/asyncio"]) {
            let request = text(&ended, client.pid(), "write");
            assert!(
                request.starts_with(&format!("GET {path} HTTP/1.1\r\n")),
                "{request:?}"
            );
            assert!(text(&ended, client.pid(), "read").ends_with(path));
        }
        // Over memory nobody knows the socket; then nothing is said of it.
        for pid in [clients[0].pid(), clients[1].pid(), server.pid()] {
            for event in ended
                .kind("data")
                .iter()
                .filter(|event| event["pid"] == pid)
            {
                assert!(
                    event.get("peer").is_none() && event.get("local").is_none(),
                    "{event}"
                );
            }
        }
        // The proxy's two sides are told apart.
        let (down, up) = (
            starts(&ended, nginx.0.id(), "read"),
            starts(&ended, nginx.0.id(), "write"),
        );
        for path in ["/node", "/asyncio"] {
            let asked = format!("GET {path} HTTP/1.1");
            let (_, local, _) = down
                .iter()
                .find(|(text, ..)| text.starts_with(&asked))
                .unwrap();
            assert_eq!(local, "127.0.0.1:4433");
            let passed = format!("GET {path} HTTP/1.0");
            let (_, _, peer) = up
                .iter()
                .find(|(text, ..)| text.starts_with(&passed))
                .unwrap();
            assert_eq!(peer, "127.0.0.1:4434");
        }
        drop(server);
    }

    #[test]
    fn gnutls_is_shown_byte_by_byte() {
        let place = Place::new();
        let file = place.dir.path().join("file");
        let bytes: Vec<u8> = (0..1_000_003_u32)
            .map(|at| (at.wrapping_mul(at) >> 7) as u8)
            .collect();
        std::fs::write(&file, &bytes).unwrap();
        let nginx = place.nginx_with(&format!(
            "location / {{ default_type text/plain; root {}; }}",
            place.dir.path().display()
        ));
        let mut command = place.netns.command("sh");
        command.args(["-c", "read go; exec \"$@\"", "sh"]);
        command.args([
            "wget",
            "-q",
            "--no-proxy",
            "--no-check-certificate",
            "-O",
            "/dev/null",
        ]);
        command.arg(format!("{URL}file")).stdin(Stdio::piped());
        let mut wget = Background(command.spawn().expect("wget"));
        let pid = wget.0.id();
        let tool = Tool::start(&place.netns, &["sslsniff", "-p", &pid.to_string()]);
        std::io::Write::write_all(wget.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
        assert!(wget.0.wait().unwrap().success());
        let ended = tool.stop();
        nothing_is_lost(&ended);
        let request = text(&ended, pid, "write");
        assert!(request.starts_with("GET /file HTTP/1.1\r\n"), "{request:?}");
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
        assert_eq!(Sha256::digest(&read[end..]), Sha256::digest(&bytes));
        let functions: Vec<_> = ended
            .kind("data")
            .iter()
            .map(|event| event["function"].clone())
            .collect();
        assert!(
            functions.contains(&"gnutls_record_recv".into()),
            "{functions:?}"
        );
        // GnuTLS passes from one of its functions on to another; each byte is told once.
        assert_eq!(request.matches("GET /file").count(), 1);
        let handshake = ended.kind("handshake")[0].clone();
        assert_eq!(handshake["function"], "gnutls_handshake");
        assert_eq!(handshake["peer"], "127.0.0.1:4433");
        drop(nginx);
    }
}
