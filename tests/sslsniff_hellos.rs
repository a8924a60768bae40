// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit sslsniff`: what ends agree upon, why they fail, and their keys.

mod common;
#[path = "sslsniff/place.rs"]
mod place;

mod root {
    use std::collections::BTreeSet;
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    use serde_json::{Value, json};

    use super::common::{Background, Ended, PATIENCE, Tool, python3};
    use super::place::{PORT, Peer, Place, URL, bytes_of, nothing_is_lost};

    /// Both ends of ends.py.
    struct Ends {
        place: Place,
        server: Peer,
        client: Peer,
    }

    impl Ends {
        /// With these options of the server and of the client.
        fn of(server: &Value, client: &Value) -> Self {
            let place = Place::new();
            let end = |args: &[&str], options: &Value| {
                let mut options = options.clone();
                if args[0] == "serve" {
                    options["cert"] = place.pem().into();
                }
                if options.get("keylog").is_some() {
                    options["keylog"] = place.dir.path().join(args[0]).to_str().into();
                }
                let mut command = place.netns.command(python3());
                command.args(["-c", include_str!("sslsniff/ends.py")]);
                Peer::start(command.args(args).arg(options.to_string()))
            };
            let mut server = end(&["serve", PORT], server);
            assert_eq!(server.line(), "listening");
            let client = end(&["get", PORT], client);
            Self {
                place,
                server,
                client,
            }
        }

        /// What is seen while the client does what it does.
        fn seen(&mut self, args: &[&str]) -> Ended {
            let tool = Tool::start(&self.place.netns, &[&["sslsniff"], args].concat());
            self.client.go();
            self.client.rest();
            // The server frees its connection when it will.
            tool.wait_for("a close of the server", |event| {
                args.contains(&"-p")
                    || (event["kind"] == "close" && event["pid"] == self.server.pid())
            });
            let ended = tool.stop();
            nothing_is_lost(&ended);
            ended
        }
    }

    fn of<'a>(ended: &'a Ended, pid: u32, kind: &str) -> Vec<&'a Value> {
        let all = ended.kind(kind).into_iter();
        all.filter(|event| event["pid"] == pid).collect()
    }

    #[test]
    fn what_ends_agree_upon_is_known_though_no_program_asks() {
        for memory in [false, true] {
            for (most, version, cipher, alpn) in [
                ("TLSv1_3", "TLSv1.3", "TLS_AES_256_GCM_SHA384", None),
                (
                    "TLSv1_2",
                    "TLSv1.2",
                    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
                    Some("h2"),
                ),
            ] {
                let options =
                    json!({"memory": memory, "max": most, "alpn": ["h2"], "name": "a.example"});
                let mut ends = Ends::of(&options, &options);
                let ended = ends.seen(&[]);
                for pid in [ends.client.pid(), ends.server.pid()] {
                    let handshake = of(&ended, pid, "handshake")[0];
                    assert_eq!(handshake["result"], "ok");
                    assert_eq!(handshake["version"], version, "{handshake}");
                    assert_eq!(handshake["cipher"], cipher, "{handshake}");
                    assert_eq!(handshake["sni"], "a.example", "{handshake}");
                    assert_eq!(handshake["resumed"], false, "{handshake}");
                    // Of TLS 1.3 it is encrypted.
                    assert_eq!(handshake.get("alpn").and_then(Value::as_str), alpn);
                    assert!(handshake.get("reason").is_none());
                }
            }
        }
    }

    #[test]
    fn a_handshake_that_is_left_to_a_read_is_told_if_it_fails_and_none_is_made_up() {
        let place = Place::new();
        let mut command = place.netns.command(python3());
        command.args(["-c", include_str!("sslsniff/failing.py"), &place.pem()]);
        let mut program = Peer::start(&mut command);
        assert_eq!(program.line(), "here");
        let pid = program.pid().to_string();
        let tool = Tool::start(&place.netns, &["sslsniff", "-p", &pid]);
        program.go();
        program.rest();
        let ended = tool.stop();
        nothing_is_lost(&ended);
        let handshakes = ended.kind("handshake");
        assert_eq!(handshakes.len(), 1, "{handshakes:?}");
        assert_eq!(handshakes[0]["result"], "failed");
        assert_eq!(handshakes[0]["reason"], "http request");
        // That of the older one, and of this one; none of what never was used.
        let reasons: Vec<_> = ended
            .kind("close")
            .iter()
            .map(|event| (event["connection"].clone(), event["reason"].is_string()))
            .collect();
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons.contains(&(handshakes[0]["connection"].clone(), true)));
        assert!(reasons.iter().all(|(_, reason)| *reason), "{reasons:?}");
        for event in ended.kind("negotiated") {
            assert!(event.get("version").is_none(), "{event}");
            assert!(event.get("sni").is_none(), "{event}");
        }
    }

    #[test]
    fn a_session_that_is_resumed_is_told_at_both_ends() {
        for (most, memory) in [("TLSv1_3", true), ("TLSv1_2", false)] {
            let mut ends = Ends::of(
                &json!({"max": most, "memory": memory}),
                &json!({"max": most, "memory": memory, "times": 2}),
            );
            let ended = ends.seen(&[]);
            for pid in [ends.client.pid(), ends.server.pid()] {
                let told: Vec<_> = of(&ended, pid, "handshake")
                    .iter()
                    .map(|event| event["resumed"].clone())
                    .collect();
                assert_eq!(told, [json!(false), json!(true)], "{most} {memory}");
            }
        }
    }

    #[test]
    fn a_certificate_that_is_refused_is_told_at_both_ends() {
        for memory in [false, true] {
            let mut ends = Ends::of(
                &json!({"memory": memory}),
                &json!({"memory": memory, "verify": true, "name": "localhost"}),
            );
            let ended = ends.seen(&[]);
            let client = of(&ended, ends.client.pid(), "handshake")[0];
            assert_eq!(client["result"], "failed");
            assert_eq!(client["reason"], "certificate verify failed", "{client}");
            assert_eq!(client["version"], "TLSv1.3");
            // Encrypted: the library's own reason alone tells it.
            let server = of(&ended, ends.server.pid(), "handshake")[0];
            assert_eq!(server["result"], "failed");
            assert_eq!(server["alert"], "unknown_ca", "{server}");
            assert_eq!(server["alert_from"], "peer");
        }
    }

    #[test]
    fn what_the_library_says_after_a_handshake_has_failed_is_not_why() {
        let place = Place::new();
        let _nginx = place.nginx();
        let tool = Tool::start(&place.netns, &["sslsniff"]);
        // It trusts another one.
        let other = Place::new();
        let trusted = other.dir.path().join("cert");
        let mut curl = place.netns.command("curl");
        curl.args(["-s", "--max-time", "50", "--noproxy", "*", URL]);
        curl.arg("--cacert").arg(trusted);
        let mut curl = Background(curl.spawn().unwrap());
        assert!(!curl.0.wait().unwrap().success());
        let ended = tool.stop();
        nothing_is_lost(&ended);
        // It shuts the connection down all the same, which the library refuses.
        for kind in ["handshake", "close"] {
            let event = of(&ended, curl.0.id(), kind)[0];
            assert_eq!(event["reason"], "certificate verify failed", "{event}");
        }
    }

    #[test]
    fn an_alert_is_told_by_who_sends_it_and_by_who_gets_it() {
        let mut ends = Ends::of(&json!({"min": "TLSv1_3"}), &json!({"max": "TLSv1_2"}));
        let ended = ends.seen(&[]);
        let client = of(&ended, ends.client.pid(), "handshake")[0];
        let server = of(&ended, ends.server.pid(), "handshake")[0];
        for (event, from) in [(client, "peer"), (server, "self")] {
            assert_eq!(event["result"], "failed");
            assert_eq!(event["alert"], "protocol_version", "{event}");
            assert_eq!(event["alert_from"], from, "{event}");
        }
        assert_eq!(server["reason"], "unsupported protocol", "{server}");
        assert!(client.get("reason").is_none());
    }

    /// Lines of a key log, without comments.
    fn keys(path: &std::path::Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    }

    fn sorted(mut lines: Vec<String>) -> Vec<String> {
        lines.sort_unstable();
        lines
    }

    #[test]
    fn keys_are_those_that_the_programs_log_themselves() {
        for (most, count) in [("TLSv1_3", 5), ("TLSv1_2", 1)] {
            for memory in [false, true] {
                let options = json!({"max": most, "memory": memory, "keylog": ""});
                let mut ends = Ends::of(&options, &options);
                let path = ends.place.dir.path().to_owned();
                let log = path.join("keys");
                let pids = [&ends.client, &ends.server].map(|end| end.pid().to_string());
                let keylog = ["--keylog", log.to_str().unwrap()];
                let ended = ends.seen(&[&["-p", &pids[0], "-p", &pids[1]], &keylog[..]].concat());
                assert!(ended.summary().get("lost_keys").is_none());
                // Each end's own, which are the same.
                let found = keys(&log);
                let both = [keys(&path.join("get")), keys(&path.join("serve"))].concat();
                assert_eq!(sorted(found), sorted(both), "{most} {memory}");
                assert_eq!(keys(&log).len(), 2 * count);
                let mode = std::fs::metadata(&log).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600);
            }
        }
    }

    #[test]
    fn keys_of_a_session_that_is_resumed_are_logged_too() {
        for most in ["TLSv1_3", "TLSv1_2"] {
            let options = json!({"max": most, "keylog": "", "times": 2});
            let mut ends = Ends::of(&json!({"max": most}), &options);
            let path = ends.place.dir.path().to_owned();
            let log = path.join("keys");
            let pid = ends.client.pid().to_string();
            ends.seen(&["-p", &pid, "--keylog", log.to_str().unwrap()]);
            let logged = sorted(keys(&path.join("get")));
            assert_eq!(sorted(keys(&log)), logged, "{most}");
        }
    }

    /// OpenSSL's own server, for so many connections.
    fn openssl_server(place: &Place, count: &str, more: &[&str]) -> Background {
        let mut server = place.netns.command("openssl");
        server.args(["s_server", "-accept", PORT, "-naccept", count]);
        server.args(["-cert", &place.pem()]).args(more);
        server.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = Background(server.stderr(Stdio::null()).spawn().unwrap());
        // What it says later is read by nobody, and little.
        let mut said = BufReader::new(server.0.stdout.as_mut().unwrap()).lines();
        while said.next().unwrap().unwrap() != "ACCEPT" {}
        server
    }

    /// OpenSSL's own client, which ends when its input does.
    fn openssl_client(place: &Place, more: &[&str]) -> Background {
        let mut client = place.netns.command("openssl");
        client.args(["s_client", "-connect", &format!("127.0.0.1:{PORT}")]);
        client.args(more).stdin(Stdio::piped());
        client.stdout(Stdio::null()).stderr(Stdio::null());
        Background(client.spawn().unwrap())
    }

    #[test]
    fn an_object_that_is_used_again_is_another_connection() {
        let place = Place::new();
        let path = |name: &str| place.dir.path().join(name).display().to_string();
        let _server = openssl_server(&place, "6", &[]);
        let log = path("keys");
        let tool = Tool::start(&place.netns, &["sslsniff", "--keylog", &log]);
        let own = path("own");
        let more = ["-reconnect", "-no_ticket", "-keylogfile", &own];
        let mut client = openssl_client(&place, &more);
        drop(client.0.stdin.take());
        client.0.wait().unwrap();
        let pid = client.0.id();
        tool.wait("six connections closed", |tool| {
            let events = tool.events();
            let closed = events
                .iter()
                .filter(|at| at["kind"] == "close" && at["pid"] == pid);
            closed.count() == 6
        });
        let ended = tool.stop();
        // It makes no call for its handshakes.
        let told = of(&ended, pid, "close");
        let numbers: BTreeSet<_> = told.iter().map(|at| at["connection"].as_u64()).collect();
        assert_eq!((told.len(), numbers.len()), (6, 6), "{told:?}");
        assert!(told.iter().all(|at| at["cipher"].is_string()), "{told:?}");
        // Both ends log the same; tests beside this one have other random numbers.
        let own: BTreeSet<_> = keys(Path::new(&own)).into_iter().collect();
        assert_eq!(own.len(), 30);
        let randoms: BTreeSet<_> = own.iter().map(|line| line.split(' ').nth(1)).collect();
        let logged: BTreeSet<_> = keys(Path::new(&log))
            .into_iter()
            .filter(|line| randoms.contains(&line.split(' ').nth(1)))
            .collect();
        assert_eq!(logged, own);
    }

    #[test]
    fn early_data_is_told_both_ways_and_is_no_handshake() {
        let place = Place::new();
        let path = |name: &str| place.dir.path().join(name).display().to_string();
        let server = openssl_server(&place, "2", &["-early_data", "-max_early_data", "1000"]);
        let session = path("session");
        let mut first = openssl_client(&place, &["-sess_out", &session]);
        let began = Instant::now();
        while !Path::new(&session).exists() {
            assert!(began.elapsed() < PATIENCE, "no ticket");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(first.0.stdin.take());
        first.0.wait().unwrap();

        let tool = Tool::start(&place.netns, &["sslsniff"]);
        let early = path("early");
        std::fs::write(&early, "before the handshake").unwrap();
        let more = ["-sess_in", &session, "-early_data", &early];
        let mut client = openssl_client(&place, &more);
        let pids = [client.0.id(), server.0.id()];
        for pid in pids {
            tool.wait_for("the data", |at| at["kind"] == "data" && at["pid"] == pid);
        }
        drop(client.0.stdin.take());
        client.0.wait().unwrap();
        for pid in pids {
            tool.wait_for("the end", |at| at["kind"] == "close" && at["pid"] == pid);
        }
        let ended = tool.stop();
        for (pid, function) in pids
            .iter()
            .zip(["SSL_write_early_data", "SSL_read_early_data"])
        {
            let told = of(&ended, *pid, "data")[0];
            assert_eq!(
                (&told["function"], &told["offset"]),
                (&json!(function), &json!(0))
            );
            assert_eq!(bytes_of(told), b"before the handshake", "{told}");
            let told = of(&ended, *pid, "close")[0];
            assert_eq!(told["version"], "TLSv1.3", "{told}");
            assert_eq!(told["resumed"], true, "{told}");
        }
        // The library says within those calls that it is done, which neither is.
        for pid in pids {
            assert_eq!(of(&ended, pid, "handshake"), [&Value::Null; 0], "{pids:?}");
        }
    }
}
