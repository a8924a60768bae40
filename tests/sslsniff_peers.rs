// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit sslsniff`: whose socket it is, where programs do not have the library use it.

mod common;
#[path = "sslsniff/place.rs"]
mod place;

mod root {
    use serde_json::{Value, json};

    use super::common::{Ended, Netns, Tool, python3};
    use super::place::{PORT, Peer, Place, bytes_of, nothing_is_lost};

    fn python(netns: &Netns, script: &str, args: &[&str]) -> Peer {
        let mut command = netns.command(python3());
        Peer::start(command.args(["-c", script]).args(args))
    }

    /// The first of what a process wrote, or read, that is this.
    fn first<'a>(ended: &'a Ended, pid: u32, direction: &str, start: &str) -> &'a Value {
        let mut found = ended.kind("data").into_iter().filter(|event| {
            event["pid"] == pid
                && event["direction"] == direction
                && bytes_of(event).starts_with(start.as_bytes())
        });
        found.next().unwrap_or_else(|| {
            panic!(
                "process {pid} did not {direction} {start}: {:?}",
                ended.events
            )
        })
    }

    #[test]
    fn ends_that_keep_tls_apart_from_their_sockets_are_known_across_namespaces() {
        let place = Place::new();
        let far = Netns::new();
        let pair = [
            "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns",
        ];
        place.netns.ip(&[&pair[..], &[far.name()]].concat());
        for (netns, address) in [(&place.netns, "10.213.0.1/24"), (&far, "10.213.0.2/24")] {
            netns.ip(&["addr", "add", address, "dev", "eth0"]);
            netns.ip(&["link", "set", "eth0", "up"]);
        }
        let script = include_str!("sslsniff/asyncio_end.py");
        let at = format!("10.213.0.2:{PORT}");
        let mut server = python(&far, script, &["serve", &place.pem(), &at]);
        assert_eq!(server.line(), "listening");
        let mut client = python(&place.netns, script, &["many", &at, "/path", "10"]);
        let tool = Tool::start(&place.netns, &["sslsniff"]);
        client.go();
        client.rest();
        let ended = tool.stop();
        nothing_is_lost(&ended);
        for number in 0..10 {
            let start = format!("GET /path{number} ");
            let asks = first(&ended, client.pid(), "write", &start);
            let is_asked = first(&ended, server.pid(), "read", &start);
            assert_eq!(asks["peer"], at.as_str(), "{asks}");
            assert!(asks["local"].as_str().unwrap().starts_with("10.213.0.1:"));
            assert_eq!(asks["local"], is_asked["peer"], "{asks} {is_asked}");
            assert_eq!(is_asked["local"], at.as_str());
            for event in [asks, is_asked] {
                assert_eq!(event["peer_via"], "ciphertext", "{event}");
            }
        }
    }

    /// Both ends of ends.py: what the client said of itself, what was seen, and the client.
    fn ends(more: &Value) -> (Value, Ended, Peer) {
        let place = Place::new();
        let mut options = json!({"cert": place.pem()});
        for (name, value) in more.as_object().unwrap() {
            options[name] = value.clone();
        }
        let script = include_str!("sslsniff/ends.py");
        let options = options.to_string();
        let mut server = python(&place.netns, script, &["serve", PORT, &options]);
        assert_eq!(server.line(), "listening");
        let mut client = python(&place.netns, script, &["get", PORT, &options]);
        // Other tests are under way.
        let pids = [server.pid(), client.pid()].map(|pid| pid.to_string());
        let tool = Tool::start(&place.netns, &["sslsniff", "-p", &pids[0], "-p", &pids[1]]);
        client.go();
        let said = client.rest();
        let ended = tool.stop();
        nothing_is_lost(&ended);
        (said.last().unwrap().clone(), ended, client)
    }

    #[test]
    fn who_passes_a_hello_on_is_not_taken_for_its_connection() {
        let (said, ended, client) = ends(&json!({"memory": true, "again": true}));
        let ping = first(&ended, client.pid(), "write", "ping");
        assert_ne!(said["port"], PORT);
        assert_eq!(ping["peer"], format!("127.0.0.1:{}", said["port"]));
        assert_eq!(ping["peer_via"], "ciphertext");
    }

    #[test]
    fn a_connection_whose_hello_does_not_start_what_is_sent_has_no_peer() {
        let (_, ended, client) = ends(&json!({"memory": true, "prefix": 7}));
        let ping = first(&ended, client.pid(), "write", "ping");
        assert!(ping.get("peer").is_none(), "{ping}");
    }

    #[test]
    fn of_tls_inside_tls_over_memory_the_outer_connection_alone_has_a_peer() {
        let (_, ended, client) = ends(&json!({"memory": true, "inside": true}));
        let ping = first(&ended, client.pid(), "write", "ping");
        assert!(ping.get("peer").is_none(), "{ping}");
        let outer = ended.kind("data").into_iter().find(|event| {
            event["pid"] == client.pid() && event["connection"] != ping["connection"]
        });
        assert_eq!(outer.unwrap()["peer"], format!("127.0.0.1:{PORT}"));
    }

    #[test]
    fn a_socket_that_a_callback_uses_is_not_the_connections() {
        // "GET / HTTP/1.0" and, what looks like TLS, a record of two bytes.
        for (memory, aside, via) in [
            (false, "R0VUIC8gSFRUUC8xLjANCg==", "call"),
            (true, "FwMDAAJ4eA==", "ciphertext"),
        ] {
            let (_, ended, client) = ends(&json!({"memory": memory, "aside": aside}));
            let data = ended.kind("data");
            assert!(data.len() >= 4);
            for event in data {
                let own = if event["pid"] == client.pid() {
                    "peer"
                } else {
                    "local"
                };
                assert_eq!(event[own], format!("127.0.0.1:{PORT}"), "{event}");
                assert_eq!(event["peer_via"], via, "{event}");
            }
        }
    }

    #[test]
    fn a_descriptor_that_a_program_gives_is_the_peer_until_it_gives_something_else() {
        let place = Place::new();
        let listener = place
            .netns
            .enter(|| std::net::TcpListener::bind(format!("127.0.0.1:{PORT}")).unwrap());
        let _listener = listener.join().unwrap();
        let mut program = python(&place.netns, include_str!("sslsniff/given.py"), &[PORT]);
        let pid = program.pid().to_string();
        let tool = Tool::start(&place.netns, &["sslsniff", "-p", &pid]);
        program.go();
        let said = program.rest();
        let ended = tool.stop();
        nothing_is_lost(&ended);
        let told: Vec<_> = ended
            .kind("negotiated")
            .into_iter()
            .map(|event| {
                if event.get("peer").is_some() {
                    assert_eq!(event["peer"], format!("127.0.0.1:{PORT}"));
                    assert_eq!(event["peer_via"], "set_fd");
                }
                json!([event["sni"], event["local"]])
            })
            .collect();
        let local = |name: &str| format!("127.0.0.1:{}", said[0][name]);
        assert_eq!(
            told,
            [
                json!(["nothing", null]),
                json!(["one-fd", local("one")]),
                json!(["taken-back", null]),
                json!(["one-direction", null]),
                json!(["both-directions", local("other")]),
                json!(["one-taken-back", null]),
                json!(["two-sockets", null]),
                json!(["no-socket", null]),
                json!(["no-file", null]),
            ]
        );
    }
}
