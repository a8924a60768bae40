// SPDX-License-Identifier: BSD-2-Clause

//! imds-watch on the real kernel: requests and answers of unusual forms are told about, counted and
//! written as well, and cost no more than others.

mod common;

mod root {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;
    use std::thread::JoinHandle;
    use std::time::Duration;

    use nix::sys::socket::{MsgFlags, send};
    use serde_json::{Value, json};

    use crate::common::{ALICE, Ended, IMDS4, MetadataService, Network, TOKEN, Tool, sh};

    fn start(network: &Network, args: &[&str]) -> Tool {
        let mut all = vec!["imds-watch", "--cloud", "aws"];
        all.extend(args);
        Tool::start(&network.machine, &all)
    }

    fn address() -> SocketAddr {
        format!("{IMDS4}:80").parse().unwrap()
    }

    /// Does `talk` on a connection from the machine to the service.
    fn connected(network: &Network, talk: impl FnOnce(&mut TcpStream) + Send + 'static) {
        let thread = network.machine.enter(move || {
            let mut stream = TcpStream::connect(address()).expect("connect");
            stream.set_nodelay(true).unwrap();
            let patience = Some(Duration::from_secs(20));
            stream.set_read_timeout(patience).unwrap();
            talk(&mut stream);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        });
        thread.join().expect("the sender");
    }

    #[test]
    fn a_call_that_ends_its_lines_in_its_own_way_makes_no_verdict_of_yes() {
        let network = Network::new();
        let service = MetadataService::start(&network);
        let tool = start(&network, &["--summary"]);
        connected(&network, |stream| {
            let request = b"GET /latest/meta-data/instance-id HTTP/1.0\n\n";
            stream.write_all(request).unwrap();
        });
        assert_eq!(service.requests().len(), 1);
        let ended = tool.stop();
        let verdict = ended.kind("verdict")[0];
        assert_eq!(verdict["safe"], false, "{verdict}");
        let reasons = verdict["reasons"].to_string();
        assert!(
            reasons.contains("1 calls had no session token"),
            "{reasons}"
        );
        assert!(
            reasons.contains("1 requests could not be read"),
            "{reasons}"
        );
        assert_eq!(ended.kind("caller")[0]["v1"], 1, "{ended:#?}");
    }

    /// Takes one connection in the cloud, and for each of `answers` reads a head and then writes it.
    fn answering(network: &Network, answers: &'static [&'static str]) -> JoinHandle<()> {
        let listener = network
            .cloud
            .enter(|| TcpListener::bind(address()).expect("bind"))
            .join()
            .unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut reader = BufReader::new(&stream);
            for answer in answers {
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    assert!(reader.read_line(&mut line).unwrap() > 0, "{answer}");
                }
                (&stream).write_all(answer.as_bytes()).unwrap();
            }
        })
    }

    /// Sends a request and reads one answer, which ends in an empty line.
    fn ask(stream: &mut TcpStream, request: &str) {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
    }

    const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
    const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

    /// Path and status of each request with a path that is told about.
    fn statuses(ended: &Ended) -> Vec<(&str, Option<u64>)> {
        let told = ended.kind("request").into_iter();
        told.filter_map(|event| Some((event["path"].as_str()?, event["status"].as_u64())))
            .collect()
    }

    fn expecting() -> String {
        "POST /latest/user-data HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
            .to_owned()
    }

    #[test]
    fn the_status_behind_a_100_is_the_answer_in_a_segment_of_its_own_and_in_the_same() {
        const BOTH: &str = concat!(
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 403 Forbidden\r\nX: hunter2\r\n\r\n"
        );
        // The body comes once it is asked for, and is what the service reads as a head.
        for (answers, body) in [(&[CONTINUE, FORBIDDEN][..], "\r\n\r\n"), (&[BOTH], "")] {
            let network = Network::new();
            let service = answering(&network, answers);
            let tool = start(&network, &[]);
            connected(&network, |stream| {
                ask(stream, &expecting());
                ask(stream, body);
            });
            service.join().unwrap();
            let ended = tool.stop();
            assert_eq!(
                statuses(&ended),
                [("/latest/user-data", Some(403))],
                "{ended:#?}"
            );
        }
    }

    #[test]
    fn no_request_is_given_the_answer_to_another() {
        let network = Network::new();
        const HINTS: &str = concat!(
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        );
        const UNAUTHORIZED: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";
        const TWO: &str = concat!(
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        );
        let service = answering(&network, &["", TWO, FORBIDDEN, HINTS, UNAUTHORIZED]);
        let tool = start(&network, &[]);
        connected(&network, |stream| {
            let get = |path: &str, header: &str| {
                format!("GET {path} HTTP/1.1\r\nHost: {IMDS4}\r\n{header}\r\n")
            };
            let token = format!("X-aws-ec2-metadata-token: {TOKEN}\r\n");
            // Behind a clean one, before its answer comes: the first answer is to that.
            stream.write_all(get("/clean", &token).as_bytes()).unwrap();
            ask(stream, &get("/behind", ""));
            ask(stream, "");
            ask(stream, &get("/alone", ""));
            // Another answer is announced, and is there already.
            ask(stream, &get("/hinted", ""));
            ask(stream, "");
            ask(stream, &get("/clean", &token));
        });
        service.join().unwrap();
        let ended = tool.stop();
        let mut told = statuses(&ended);
        // Those that no answer is known to are told about when nobody waits for one any more.
        told.sort_unstable();
        let expected = [("/alone", Some(403)), ("/behind", None), ("/hinted", None)];
        assert_eq!(told, expected, "{ended:#?}");
    }

    #[test]
    fn of_urgent_data_what_can_be_read_is_told() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = start(&network, &[]);
        connected(&network, |stream| {
            let request = format!(
                "GET /latest/user-data HTTP/1.1\r\nX-aws-ec2-metadata-token: {TOKEN}\r\n\r\n"
            );
            let sent = send(stream.as_raw_fd(), request.as_bytes(), MsgFlags::MSG_OOB);
            assert_eq!(sent.unwrap(), request.len());
            stream.write_all(b"\n").unwrap();
        });
        let ended = tool.stop();
        let found = ended.kind("request");
        let of_path = |event: &&&Value| event["path"] == "/latest/user-data";
        let urgent = found.iter().find(of_path).expect("is told about");
        assert_eq!(urgent["findings"], json!(["user-data", "unparsable"]));
        assert!(!format!("{:?}", ended.events).contains(TOKEN));
    }

    #[test]
    fn many_requests_in_one_packet_are_captured_once() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("found.pcapng");
        let tool = start(&network, &["--pcap", file.to_str().unwrap()]);
        let requests = 500;
        let all = "GET / HTTP/1.0\r\n\r\n".repeat(requests);
        let bytes = all.len();
        connected(&network, move |stream| {
            stream.write_all(all.as_bytes()).unwrap();
        });
        let ended = tool.stop();
        assert_eq!(ended.kind("request").len(), requests);
        let captured = std::fs::read(&file).unwrap();
        assert!(
            captured.len() > bytes && captured.len() < 2 * bytes + 4096,
            "{} of {bytes}",
            captured.len()
        );
    }

    #[test]
    fn a_path_that_is_cut_off_in_the_middle_is_told_about_whole() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = start(&network, &[]);
        let token = format!("X-aws-ec2-metadata-token: {TOKEN}");
        let url = format!("http://{IMDS4}/latest/user-data");
        let target = "/latest/user-data#x";
        network.curl(ALICE, &["-H", &token, "--request-target", target, &url]);
        let ended = tool.stop();
        let found = ended.kind("request");
        assert_eq!(found.len(), 1, "{ended:#?}");
        assert_eq!(found[0]["findings"], json!(["user-data", "unparsable"]));
        assert_eq!(found[0]["path"], target);
    }

    /// A tag may be held outside of the frame, as those are that an interface takes off or puts on.
    #[test]
    fn a_request_in_a_vlan_is_seen_there_and_at_the_interface_below() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        for (side, address) in [
            (&network.machine, "10.216.0.7/24"),
            (&network.cloud, "10.216.0.1/24"),
        ] {
            if !side.made("eth0.5", "link eth0 type vlan id 5") {
                return;
            }
            side.ip(&["addr", "add", address, "dev", "eth0.5"]);
            side.ip(&["link", "set", "eth0.5", "up"]);
        }
        let way = ["via", "10.216.0.1", "dev", "eth0.5"];
        network
            .machine
            .ip(&[&["route", "add", IMDS4][..], &way].concat());
        for interface in ["eth0.5", "eth0"] {
            let tool = start(&network, &["-i", interface]);
            let output = network.curl(ALICE, &[&format!("http://{IMDS4}/latest/meta-data/")]);
            assert!(output.status.success(), "{output:?}");
            tool.wait_for("request", |event| event["kind"] == "request");
            let ended = tool.stop();
            let told = ended.kind("request");
            assert_eq!(told.len(), 1, "{ended:?}");
            assert_eq!(told[0]["interface"], interface);
            assert_eq!(told[0]["findings"], json!(["imdsv1"]));
            assert_eq!(told[0]["status"], 200);
        }
    }

    /// As much as a socket takes by default before kernel 6.8, from which on each network namespace has a limit of its
    /// own.
    #[test]
    fn the_filter_fits_into_a_socket_of_older_kernels() {
        let network = Network::new();
        let limit = "/proc/sys/net/core/optmem_max";
        let set = format!("[ ! -e {limit} ] || echo 20480 > {limit}");
        sh(network.machine.command("sh").args(["-c", &set]));
        let tool = start(&network, &["-i", "eth0"]);
        assert_eq!(tool.stop().code, Some(0));
    }
}
