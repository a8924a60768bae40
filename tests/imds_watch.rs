// SPDX-License-Identifier: BSD-2-Clause

//! imds-watch on the real kernel, in network namespaces.

mod common;

mod root {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::Duration;

    use nix::sys::signal::Signal;
    use serde_json::{Value, json};

    use crate::common::{
        ALICE, Ended, IMDS4, IMDS6, MetadataService, Network, SECRET, TOKEN, Tool, ebpfkit_path,
        read_all,
    };

    const HEADER: &str = "X-aws-ec2-metadata-token";

    fn url(path: &str) -> String {
        format!("http://{IMDS4}{path}")
    }

    fn watch(network: &Network) -> Tool {
        Tool::start(&network.machine, &["imds-watch", "--cloud", "aws"])
    }

    fn findings(event: &Value) -> Vec<&str> {
        event["findings"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect()
    }

    fn requests(ended: &Ended) -> Vec<&Value> {
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.kind("request")
    }

    /// The summary's counts, which agree with each other: clean packets, those of requests that came
    /// up, lost ones.
    fn counts(ended: &Ended) -> (u64, u64, u64) {
        let summary = ended.summary();
        let count = |name: &str| summary[name].as_u64().unwrap();
        assert_eq!(
            count("concerning"),
            count("clean") + count("delivered") + count("lost"),
            "{summary}"
        );
        assert!(count("seen") >= count("concerning"), "{summary}");
        let requests = count("delivered") - count("answers");
        (count("clean"), requests, count("lost"))
    }

    /// Sends `pieces`, each in a packet of its own, on one connection from the machine, and reads
    /// until the service closes it or has nothing to say for a moment.
    fn send(network: &Network, pieces: Vec<Vec<u8>>) {
        let address: SocketAddr = format!("{IMDS4}:80").parse().unwrap();
        network
            .machine
            .enter(move || {
                let mut stream = TcpStream::connect(address).expect("connect");
                stream.set_nodelay(true).unwrap();
                stream
                    .set_read_timeout(Some(Duration::from_secs(20)))
                    .unwrap();
                for piece in pieces {
                    stream.write_all(&piece).unwrap();
                }
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            })
            .join()
            .expect("the sender");
    }

    fn get(path: &str, headers: &str) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\nHost: {IMDS4}\r\n{headers}Connection: close\r\n\r\n")
            .into_bytes()
    }

    #[test]
    fn imdsv1_is_reported_with_the_process_that_is_gone_by_then() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = watch(&network);
        for (address, shown) in [
            (IMDS4.to_owned(), IMDS4),
            (format!("[{IMDS6}]"), IMDS6),
            (format!("[::ffff:{IMDS4}]"), IMDS4),
        ] {
            let output = network.curl(
                ALICE,
                &[
                    "-g",
                    &format!("http://{address}/latest/meta-data/instance-id"),
                ],
            );
            assert!(output.status.success(), "{output:?}");
            let found = tool.wait_for("request", |event| {
                event["kind"] == "request"
                    && event["dst"].as_str().is_some_and(|dst| dst.contains(shown))
            });
            assert_eq!(found["endpoint"], "aws");
            assert_eq!(found["method"], "GET");
            assert_eq!(found["path"], "/latest/meta-data/instance-id");
            assert_eq!(findings(&found), ["imdsv1"]);
            assert_eq!(found["interface"], "eth0");
            assert_eq!(found["status"], 200);
            assert_eq!(found["comm"], "curl");
            assert_eq!(
                (&found["uid"], &found["gid"]),
                (&json!(ALICE), &json!(ALICE))
            );
            // The process is gone: all of this was recorded as it connected.
            let exe = found["exe"].as_str().unwrap();
            assert!(exe.ends_with("/curl"), "{found}");
            assert_eq!(found["args"][0], "curl", "{found}");
            let parent = &found["parents"][0];
            assert_eq!(parent["pid"], std::process::id(), "{found}");
            assert!(found["parents"].as_array().unwrap().len() <= 4);
            assert!(found["pid"].as_u64().unwrap() > 1);
            assert!(found["cgroup"].is_string(), "{found}");
        }
        let ended = tool.stop();
        assert_eq!(requests(&ended).len(), 3, "{ended:#?}");
        assert!(
            requests(&ended)
                .iter()
                .all(|found| found["comm"] == "curl" && found["uid"] == ALICE)
        );
    }

    #[test]
    fn imdsv2_wakes_nobody() {
        let network = Network::new();
        let service = MetadataService::start(&network);
        let tool = watch(&network);
        let token = network.curl(
            ALICE,
            &[
                "-X",
                "PUT",
                "-H",
                &format!("{HEADER}-ttl-seconds: 60"),
                &url("/latest/api/token"),
            ],
        );
        let token = String::from_utf8(token.stdout).unwrap();
        assert_eq!(token, TOKEN);
        let output = network.curl(
            ALICE,
            &[
                "-H",
                &format!("{HEADER}: {token}"),
                &url("/latest/meta-data/instance-id"),
            ],
        );
        assert!(output.status.success());
        assert_eq!(service.requests().len(), 2);
        let ended = tool.stop();
        assert_eq!(requests(&ended), Vec::<&Value>::new());
        assert_eq!(counts(&ended), (2, 0, 0));
    }

    #[test]
    fn all_shows_the_clean_ones_too() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = Tool::start(&network.machine, &["imds-watch", "--cloud", "aws", "--all"]);
        network.curl(
            ALICE,
            &[
                "-H",
                &format!("{HEADER}: {TOKEN}"),
                &url("/latest/meta-data/"),
            ],
        );
        let ended = tool.stop();
        let found = requests(&ended);
        assert_eq!(found.len(), 1);
        assert_eq!(findings(found[0]), Vec::<&str>::new());
        assert_eq!(found[0]["comm"], "curl");
    }

    #[test]
    fn proxied_requests_and_secret_paths_are_reported_though_they_carry_a_token() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = watch(&network);
        let token = format!("{HEADER}: {TOKEN}");
        let ask = |path: &str, header: &str| {
            network.curl(
                ALICE,
                &["--path-as-is", "-H", &token, "-H", header, &url(path)],
            );
        };
        for header in [
            "X-Forwarded-For: 192.0.2.1",
            "Forwarded: for=192.0.2.1",
            "Via: 1.1 proxy",
        ] {
            ask("/latest/meta-data/", header);
        }
        for path in [
            "/latest/meta-data/iam/security-credentials/role",
            "/latest/user-data",
            "/latest/dynamic/instance-identity/document",
            "/latest/%75ser-data",
            "/latest/x/../user-data",
        ] {
            ask(path, "X-Plain: y");
        }
        let ended = tool.stop();
        let found: Vec<_> = requests(&ended).into_iter().map(findings).collect();
        let mut expected = vec![vec!["forwarded"]; 3];
        expected.extend([["credentials"], ["user-data"], ["credentials"]].map(|one| one.to_vec()));
        expected.extend([["user-data"], ["user-data"]].map(|one| one.to_vec()));
        assert_eq!(found, expected);
    }

    #[test]
    fn values_and_bodies_appear_nowhere() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = Tool::start(&network.machine, &["imds-watch", "--all"]);
        let token = format!("{HEADER}: {TOKEN}");
        let path = "/latest/meta-data/iam/security-credentials/role?name=hunter2";
        let output = network.curl(
            ALICE,
            &[
                "-H",
                &token,
                "-H",
                "X-Forwarded-For: hunter2",
                "-d",
                "hunter2",
                &url(path),
            ],
        );
        assert!(String::from_utf8_lossy(&output.stdout).contains(SECRET));
        // A piece that begins within a value.
        send(
            &network,
            vec![
                b"GET / HTTP/1.1\r\nX-A: ".to_vec(),
                b"hunter2\r\nX-B: hunter2\r\n".to_vec(),
                b"hunter2".to_vec(),
            ],
        );
        let ended = tool.stop();
        assert!(requests(&ended).len() >= 2, "{ended:#?}");
        let all = format!("{:?}{}", ended.events, ended.stderr);
        for hidden in ["hunter2", TOKEN, SECRET] {
            assert!(!all.contains(hidden), "{hidden} in {all}");
        }
        let found = requests(&ended)[0];
        assert_eq!(found["query"], json!(["name"]));
    }

    #[test]
    fn no_split_hides_a_request() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = watch(&network);
        let sent = [
            get("/latest/meta-data/", ""),
            get("/latest/user-data", &format!("{HEADER}: {TOKEN}\r\n")),
        ];
        let mut expected = 0;
        for request in &sent {
            for at in (1..request.len()).step_by(3) {
                let (first, second) = request.split_at(at);
                send(&network, vec![first.to_vec(), second.to_vec()]);
                expected += 1;
            }
        }
        // In single bytes.
        send(&network, sent[0].iter().map(|byte| vec![*byte]).collect());
        let ended = tool.stop();
        let found = requests(&ended);
        assert_eq!(found.len(), expected + 1);
        for event in found {
            let wanted = match event["path"].as_str() {
                Some("/latest/meta-data/") => "imdsv1",
                Some("/latest/user-data") => "user-data",
                other => panic!("{other:?}"),
            };
            assert_eq!(findings(event), [wanted], "{event}");
        }
    }

    #[test]
    fn a_request_behind_half_a_request_is_seen_though_it_looks_clean() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = watch(&network);
        let clean = get("/latest/meta-data/", &format!("{HEADER}: {TOKEN}\r\n"));
        let half = b"POST /latest/meta-data/ HTTP/1.1\r\nContent-Length: 3\r\n\r\n".to_vec();
        send(&network, vec![half, b"GET".to_vec(), clean.clone()]);
        // The service reads one request, for /latest/user-data, with all else as its headers.
        send(
            &network,
            vec![b"GET /latest/user-data HTTP/1.1\r\nX: ".to_vec(), clean],
        );
        let ended = tool.stop();
        let paths: Vec<_> = requests(&ended)
            .iter()
            .map(|found| found["path"].clone())
            .collect();
        assert_eq!(
            paths,
            ["/latest/meta-data/", "/latest/user-data"],
            "{ended:#?}"
        );
    }

    #[test]
    fn where_clouds_share_an_address_the_path_decides_which_header_counts() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = Tool::start(&network.machine, &["imds-watch"]);
        let path = "/latest/meta-data/iam/info";
        let others = [
            "Authorization: Basic eHg=",
            "Metadata: true",
            "Metadata-Flavor: x",
            "Metadata-Token: x",
        ];
        for header in others {
            send(&network, vec![get(path, &format!("{header}\r\n"))]);
        }
        send(&network, vec![get(path, &format!("{HEADER}: {TOKEN}\r\n"))]);
        send(
            &network,
            vec![get("/metadata/instance/network", "Metadata: true\r\n")],
        );
        // Goes up, and is fine all the same.
        send(&network, vec![get("/metadata/v1/id", "")]);
        let ended = tool.stop();
        let found = requests(&ended);
        assert_eq!(found.len(), others.len(), "{ended:#?}");
        assert!(found.iter().all(|event| findings(event) == ["imdsv1"]));
        assert_eq!(counts(&ended), (2, others.len() as u64 + 1, 0));
    }

    #[test]
    fn no_announced_body_hides_a_request() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = watch(&network);
        let token = format!("{HEADER}: {TOKEN}\r\n");
        let secret = "/latest/meta-data/iam/security-credentials/demo-role";
        let forwarded =
            format!("GET {secret} HTTP/1.1\r\nHost: metadata\r\nX-Forwarded-For: 1\r\n\r\n");
        let data = "GET /latest/user-data HTTP/1.1\r\nHost: metadata\r\n\r\n".to_owned();
        let length = forwarded.len();
        let hidden = [
            (
                "GET",
                format!("{token}Content-Length: {length}"),
                &forwarded,
            ),
            ("GET", format!("{token}Content-Length: 999999"), &data),
            ("HEAD", format!("{token}Content-Length: 999999"), &data),
            ("PUT", "Content-Length: 9999".to_owned(), &data),
            ("GET", format!("{token}Transfer-Encoding: chunked"), &data),
        ];
        let mut expected = Vec::new();
        for (method, headers, inner) in &hidden {
            let path = if *method == "PUT" {
                "/latest/api/token"
            } else {
                "/latest/meta-data/ami-id"
            };
            let outer = format!("{method} {path} HTTP/1.1\r\nHost: metadata\r\n{headers}\r\n\r\n");
            let whole = format!("{outer}{inner}");
            let at = outer.len();
            let splits = [0, at - 3, at, at + 9];
            for at in splits {
                let (first, second) = whole.as_bytes().split_at(at);
                let pieces = [first, second].map(<[u8]>::to_vec);
                send(
                    &network,
                    pieces
                        .into_iter()
                        .filter(|piece| !piece.is_empty())
                        .collect(),
                );
                // Where everybody knows how long the body is, it is what is in it that is told about.
                let is_plain = *method == "PUT";
                if !is_plain {
                    expected.push((path.to_owned(), vec!["unparsable"]));
                }
                expected.push(if *inner == &forwarded {
                    let findings = vec!["imdsv1", "forwarded", "credentials"];
                    (secret.to_owned(), findings)
                } else if is_plain {
                    let findings = vec!["imdsv1", "user-data", "unparsable"];
                    ("/latest/user-data".to_owned(), findings)
                } else {
                    let findings = vec!["imdsv1", "user-data"];
                    ("/latest/user-data".to_owned(), findings)
                });
            }
        }
        let ended = tool.stop();
        let found: Vec<_> = requests(&ended)
            .into_iter()
            .map(|event| (event["path"].as_str().unwrap().to_owned(), findings(event)))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_no_request_is_unparsable() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = watch(&network);
        let garbage: [&[u8]; 4] = [
            b"\x16\x03\x01\x02\x00\x01",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\0\xff\x1b[2J\r\n\r\n",
            b"GET / HTTP/1.1\nHost: metadata\n\n",
        ];
        for bytes in garbage {
            send(&network, vec![bytes.to_vec()]);
        }
        let ended = tool.stop();
        let found = requests(&ended);
        assert_eq!(found.len(), garbage.len(), "{ended:#?}");
        assert!(
            found
                .iter()
                .all(|event| findings(event).contains(&"unparsable"))
        );
    }

    #[test]
    fn other_traffic_wakes_nobody() {
        let network = Network::new();
        let other = "10.213.0.99";
        network.answer_for(other);
        let _service =
            MetadataService::on(&network.cloud, &[(other, 80), (other, 8080), (IMDS4, 8080)]);
        let tool = watch(&network);
        let ask = |url: &str| {
            let output = network.curl(ALICE, &[url]);
            assert!(output.status.success(), "{output:?}");
        };
        ask(&format!("http://{other}:80/latest/user-data"));
        ask(&format!("http://{IMDS4}:8080/latest/user-data"));
        let address: SocketAddr = format!("{other}:8080").parse().unwrap();
        network
            .machine
            .enter(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_nodelay(true).unwrap();
                for _ in 0..1000 {
                    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
                    let mut answer = [0; 4096];
                    assert!(stream.read(&mut answer).unwrap() > 0);
                }
            })
            .join()
            .unwrap();
        let ended = tool.stop();
        assert_eq!(requests(&ended), Vec::<&Value>::new());
        assert_eq!(counts(&ended), (0, 0, 0));
        assert!(
            ended.summary()["seen"].as_u64().unwrap() >= 2000,
            "{}",
            ended.summary()
        );
    }

    #[test]
    fn a_connection_older_than_the_tool_is_attributed_from_proc() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let script = format!(
            "import socket,sys\ns=socket.create_connection((\"{IMDS4}\",80))\nprint(1,flush=True)\n\
             sys.stdin.readline()\ns.sendall(b\"GET /latest/meta-data/ HTTP/1.0\\r\\n\\r\\n\")\n\
             s.recv(1)\nsys.stdin.readline()"
        );
        let mut command = network.machine.command_as(ALICE, "/usr/bin/python3");
        command
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = [0; 2];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut line)
            .unwrap();
        let tool = watch(&network);
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let found = tool.wait_for("request", |event| event["kind"] == "request");
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(
            (&found["uid"], &found["pid"]),
            (&json!(ALICE), &json!(child.id()))
        );
        assert_eq!(found["comm"], "python3");
        assert_eq!(found["args"][1], "-c", "{found}");
        assert_eq!(found["parents"][0]["pid"], std::process::id(), "{found}");
    }

    #[test]
    fn without_hooks_who_had_a_port_before_is_not_named() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let mut command = network.machine.command("setpriv");
        command
            .args(["--bounding-set=-net_admin", "--"])
            .arg(ebpfkit_path())
            .args(["-o", "json", "imds-watch", "--cloud", "aws"]);
        let tool = Tool::run(command);
        // Ends with a reset: the port is free at once.
        let script = format!(
            "import socket,struct,sys\ns=socket.socket()\n\
             s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\n\
             s.setsockopt(socket.SOL_SOCKET,socket.SO_LINGER,struct.pack('ii',1,0))\n\
             s.bind(('',42000))\ns.connect((\"{IMDS4}\",80))\n\
             s.sendall(b\"GET /latest/\"+sys.argv[1].encode()+b\" HTTP/1.1\\r\\n\\r\\n\")\n\
             sys.stdin.readline()"
        );
        let mut last = Vec::new();
        for uid in [0, ALICE] {
            let mut command = network.machine.command_as(uid, "/usr/bin/python3");
            command
                .args(["-c", &script, &uid.to_string()])
                .stdin(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let path = format!("/latest/{uid}");
            let found = tool.wait_for("request", |event| event["path"] == *path);
            drop(child.stdin.take());
            assert!(child.wait().unwrap().success());
            last.push(found);
        }
        let ended = tool.stop();
        assert!(ended.stderr.contains("CAP_NET_ADMIN"), "{}", ended.stderr);
        let uids: Vec<_> = last.iter().map(|found| found["uid"].clone()).collect();
        assert_eq!(uids, [json!(0), json!(ALICE)], "{last:#?}");
        assert_eq!(last[0]["src"], last[1]["src"]);
    }

    #[test]
    fn lost_packets_are_told_about_while_it_runs() {
        let network = Network::new();
        let address: SocketAddr = format!("{IMDS4}:80").parse().unwrap();
        let service = network.cloud.enter(move || {
            let listener = TcpListener::bind(address).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        });
        let tool = watch(&network);
        tool.signal(Signal::SIGSTOP);
        network
            .machine
            .enter(move || {
                let connect = || {
                    (0..100).find_map(|_| {
                        thread::sleep(Duration::from_millis(50));
                        TcpStream::connect(address).ok()
                    })
                };
                let mut stream = connect().expect("connects");
                for _ in 0..64 {
                    stream.write_all(&vec![b'a'; 1 << 20]).unwrap();
                }
            })
            .join()
            .unwrap();
        service.join().unwrap();
        tool.signal(Signal::SIGCONT);
        let lost = tool.wait_for("lost", |event| event["kind"] == "lost");
        assert!(lost["packets"].as_u64().unwrap() > 0);
        let ended = tool.stop();
        assert_eq!(ended.code, Some(0));
        let told = ended
            .kind("lost")
            .iter()
            .map(|event| event["packets"].as_u64().unwrap())
            .sum::<u64>();
        assert_eq!(counts(&ended).2, told);
    }

    #[test]
    fn an_interface_that_goes_away_is_told_about_and_the_last_one_ends_it() {
        let network = Network::new();
        for name in ["gone0", "gone1"] {
            let peer = format!("{name}p");
            let link = ["link", "add", name, "type", "veth", "peer", "name", &peer];
            network.machine.ip(&link);
            network.machine.ip(&["link", "set", name, "up"]);
            network.machine.ip(&["link", "set", &peer, "up"]);
        }
        let tool = Tool::start(
            &network.machine,
            &["imds-watch", "-i", "gone0", "-i", "gone1"],
        );
        // One that is down may come again.
        network.machine.ip(&["link", "set", "gone0", "down"]);
        network.machine.ip(&["link", "del", "gone1"]);
        tool.wait("the note", |tool| {
            tool.stderr().contains("interface gone1 is gone")
        });
        assert!(!tool.stderr().contains("gone0"), "{}", tool.stderr());
        network.machine.ip(&["link", "del", "gone0"]);
        let ended = tool.ended();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(
            ended.stderr.contains("interface gone0 is gone"),
            "{}",
            ended.stderr
        );
        assert_eq!(ended.kind("summary").len(), 1);
    }

    #[test]
    fn text_shows_no_escape_of_a_path_and_ends_cleanly() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let mut command = network.machine.command(ebpfkit_path());
        command.args([
            "imds-watch",
            "--cloud",
            "aws",
            "-i",
            "eth0",
            "--color",
            "never",
        ]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = child.stderr.take().unwrap();
        let mut first = [0; 26];
        errors.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"ebpfkit: imds-watch: ready");
        send(&network, vec![b"GET /\x1b[31m HTTP/1.1\r\n\r\n".to_vec()]);
        send(&network, vec![get("/latest/meta-data/", "")]);
        let stop = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(stop.unwrap().success());
        let reader = thread::spawn(move || read_all(errors));
        let text = String::from_utf8(read_all(child.stdout.take().unwrap())).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("imdsv1 GET /latest/meta-data/ by "), "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
        let rest = String::from_utf8(reader.join().unwrap()).unwrap();
        assert!(
            rest.contains("4 delivered (2 answers), 0 lost; 2 requests shown"),
            "{rest}"
        );
    }
}
