// SPDX-License-Identifier: BSD-2-Clause

//! imds-watch on the real kernel: who asked, what the answer was, and what is made of both.

mod common;

mod root {
    use std::collections::BTreeSet;
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use ebpfkit::kernel::{cgroup, namespace};
    use serde_json::{Value, json};

    use crate::common::{
        ALICE, BOB, Ended, IMDS4, MACHINE4, MetadataService, Netns, Network, TOKEN, Tool,
        ebpfkit_path, sh,
    };

    const HEADER: &str = "X-aws-ec2-metadata-token";

    fn url(path: &str) -> String {
        format!("http://{IMDS4}{path}")
    }

    fn start(network: &Network, args: &[&str]) -> Tool {
        let mut all = vec!["imds-watch", "--cloud", "aws"];
        all.extend(args);
        Tool::start(&network.machine, &all)
    }

    fn requests(ended: &Ended) -> Vec<&Value> {
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.kind("request")
    }

    fn token() -> String {
        format!("{HEADER}: {TOKEN}")
    }

    #[test]
    fn a_refused_request_differs_from_one_that_was_answered() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = start(&network, &["--all"]);
        let ask = |header: &str, path: &str| {
            network.curl(ALICE, &["-H", header, &url(path)]);
        };
        ask("X: y", "/latest/meta-data/");
        ask(&format!("{HEADER}: wrong"), "/latest/meta-data/");
        ask(&token(), "/latest/meta-data/");
        let ended = tool.stop();
        let found: Vec<_> = requests(&ended)
            .iter()
            .map(|event| (event["findings"].clone(), event["status"].clone()))
            .collect();
        assert_eq!(
            found,
            [
                (json!(["imdsv1"]), json!(200)),
                (json!([]), json!(401)),
                (json!([]), json!(200))
            ]
        );
        let summary = ended.summary();
        assert_eq!(summary["answers"], 3, "{summary}");
        assert_eq!(summary["concerning"], summary["delivered"], "{summary}");
    }

    #[test]
    fn a_request_without_an_answer_is_told_about_without_a_status() {
        let network = Network::new();
        // Reads the request and hangs up; then one that says nothing at all.
        let script = format!(
            "import socket\ns=socket.socket()\ns.bind((\"{IMDS4}\",80))\ns.listen()\n\
             print('ready',flush=True)\n\
             for _ in range(2):\n c,_=s.accept()\n c.recv(9999)\n c.close()\n\
             c,_=s.accept()\nc.recv(9999)\nc.sendall(b'no such protocol, but twelve bytes')\nc.close()"
        );
        let mut command = network.cloud.command(crate::common::python3());
        command
            .args(["-c", &script])
            .stdout(std::process::Stdio::piped());
        let mut service = crate::common::Background(command.spawn().unwrap());
        let mut line = [0; 6];
        std::io::Read::read_exact(service.0.stdout.as_mut().unwrap(), &mut line).unwrap();
        let tool = start(&network, &[]);
        for _ in 0..3 {
            network.curl(ALICE, &[&url("/latest/meta-data/")]);
        }
        let ended = tool.stop();
        let found = requests(&ended);
        assert_eq!(found.len(), 3, "{ended:#?}");
        assert!(
            found.iter().all(|event| event.get("status").is_none()),
            "{found:#?}"
        );
        assert!(!format!("{:?}", ended.events).contains("no such protocol"));
    }

    /// A cgroup that is removed with its value.
    struct Cgroup(PathBuf);

    impl Cgroup {
        fn new(below: &Path, name: &str) -> Self {
            let path = below.join(name);
            fs::create_dir(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
            Self(path)
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }

    /// As in a container that has a cgroup2 mount of its own.
    #[test]
    fn within_a_cgroup_namespace_the_callers_of_its_part_are_named() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let root = cgroup::mount().expect("cgroup2 is mounted");
        let part = Cgroup::new(&root, &format!("ebpfkit-part-{}", std::process::id()));
        let folder = tempfile::tempdir().unwrap();
        let inner = "for at in $(awk '$3 == \"cgroup2\" { print $2 }' /proc/mounts); do umount -l \"$at\"; done\n\
             mount -t cgroup2 none \"$1\" && shift && exec \"$@\"";
        let enter = "echo 0 >\"$1/cgroup.procs\" && shift && \
             exec unshare --mount --cgroup --propagation private -- sh -ec \"$@\"";
        let mut command = network.machine.command("sh");
        command.args(["-ec", enter, "sh"]).arg(&part.0);
        command
            .args([inner, "sh"])
            .arg(folder.path())
            .arg(ebpfkit_path());
        command.args(["-o", "json", "imds-watch", "--cloud", "aws"]);
        let tool = Tool::run(command);
        let ask = |cgroup: &Path, path: &str| {
            let line = format!(
                "echo $$ > {}/cgroup.procs && curl -s --noproxy '*' -o /dev/null '{}'",
                cgroup.display(),
                url(path)
            );
            sh(network.machine.command("sh").args(["-c", &line]));
        };
        ask(&part.0, "/latest/inside");
        let ended = tool.stop();
        let note = "only the part of a cgroup namespace is mounted";
        assert!(ended.stderr.contains(note), "{}", ended.stderr);
        let found = requests(&ended);
        assert_eq!(found.len(), 1, "{ended:#?}");
        assert_eq!(found[0]["path"], "/latest/inside");
        // It has gone, so that a hook has seen it.
        assert_eq!(found[0]["comm"], "curl", "{}", found[0]);
    }

    #[test]
    fn a_caller_has_its_command_line_parents_unit_and_container_though_it_is_gone() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let root = cgroup::mount().expect("cgroup2 is mounted");
        let id = format!("{:064x}", std::process::id());
        let unit = Cgroup::new(&root, &format!("ebpfkit-{}.service", std::process::id()));
        let names = [
            format!("docker-{id}.scope"),
            format!("cri-containerd-{id}.scope"),
            format!("crio-{id}.scope"),
            format!("libpod-{id}.scope"),
        ];
        let groups: Vec<_> = names
            .iter()
            .map(|name| Cgroup::new(&unit.0, name))
            .collect();
        let tool = start(&network, &[]);
        for (number, group) in groups.iter().enumerate() {
            let line = format!(
                "echo $$ > {}/cgroup.procs && curl -s --noproxy '*' -o /dev/null \
                 -H 'X-Other: hunter2' -u user:hunter2 '{}' ; true",
                group.0.display(),
                url(&format!("/latest/{number}?key=hunter2"))
            );
            sh(network.machine.command("sh").args(["-c", &line]));
        }
        let ended = tool.stop();
        let found = requests(&ended);
        assert_eq!(found.len(), groups.len(), "{ended:#?}");
        for (event, name) in found.iter().zip(&names) {
            assert_eq!(event["container"], id, "{event}");
            assert_eq!(event["unit"], *name, "{event}");
            let args = event["args"].as_array().unwrap();
            let args: Vec<_> = args.iter().map(|arg| arg.as_str().unwrap()).collect();
            assert_eq!(args[..3], ["curl", "-s", "--noproxy"], "{event}");
            let line = args.join(" ");
            assert!(line.contains("-H X-Other: **** -u ****"), "{line}");
            assert!(line.contains("?key=****"), "{line}");
            let exe = event["exe"].as_str().unwrap();
            assert!(Path::new(exe).is_file() && exe.ends_with("/curl"), "{exe}");
            // curl, the shell, nsenter's place (which the shell has taken), this test.
            let parents = event["parents"].as_array().unwrap();
            assert_eq!(parents[0]["comm"], "sh", "{event}");
            assert_eq!(parents[1]["pid"], std::process::id(), "{event}");
            assert!((2..=4).contains(&parents.len()), "{event}");
        }
        assert!(!format!("{ended:?}").contains("hunter2"));
    }

    #[test]
    fn a_container_is_seen_at_its_veth_and_told_about_once() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let container = Netns::new();
        let name = container.name();
        let link = [
            "link", "add", "veth7", "type", "veth", "peer", "name", "eth0", "netns", name,
        ];
        network.machine.ip(&link);
        network
            .machine
            .ip(&["addr", "add", "10.214.0.1/24", "dev", "veth7"]);
        network.machine.ip(&["link", "set", "veth7", "up"]);
        container.ip(&["addr", "add", "10.214.0.2/24", "dev", "eth0"]);
        container.ip(&["link", "set", "eth0", "up"]);
        container.ip(&["route", "add", "default", "via", "10.214.0.1"]);
        network
            .cloud
            .ip(&["route", "add", "10.214.0.0/24", "via", MACHINE4]);
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        sh(network.machine.command("sh").args(["-c", forward]));
        let tool = start(&network, &["--all"]);
        let mut command = container.command_as(ALICE, "curl");
        command.args(["-sS", "--max-time", "10", "--noproxy", "*"]);
        let output = command
            .args([&url("/latest/a"), &url("/latest/b")])
            .output();
        assert!(output.unwrap().status.success());
        let ended = tool.stop();
        let found = requests(&ended);
        let paths: Vec<_> = found.iter().map(|event| event["path"].clone()).collect();
        assert_eq!(paths, ["/latest/a", "/latest/b"], "{ended:#?}");
        for event in found {
            assert_eq!(
                (&event["comm"], &event["uid"]),
                (&json!("curl"), &json!(ALICE))
            );
            assert_eq!(event["interface"], "veth7");
            assert_eq!(event["status"], 200);
            assert!(event["src"].as_str().unwrap().starts_with("10.214.0.2:"));
        }

        // Its users are not the machine's, though they have the same numbers (kernel 5.14 tells them apart).
        let tool = start(&network, &["--allow-user", &ALICE.to_string()]);
        let token = token();
        let ask = |netns: &Netns| {
            let mut command = netns.command_as(ALICE, "curl");
            command.args(["-sS", "--max-time", "10", "--noproxy", "*", "-H", &token]);
            let output = command.arg(url("/latest/a")).output();
            assert!(output.unwrap().status.success());
        };
        ask(&container);
        ask(&network.machine);
        let ended = tool.stop();
        let found = requests(&ended);
        let told = usize::from(namespace::cookie().is_some());
        assert_eq!(found.len(), told, "{ended:#?}");
        for event in found {
            assert_eq!(event["findings"], json!(["unknown-user"]), "{event}");
            assert!(event["src"].as_str().unwrap().starts_with("10.214.0.2:"));
        }
    }

    #[test]
    fn a_scan_is_told_about_though_every_request_carries_a_token() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = start(&network, &[]);
        // One process that asks for what is there, one that tries names.
        let urls = |path: &str| -> Vec<String> {
            (0..24)
                .map(|number| url(&format!("{path}{number}")))
                .collect()
        };
        for path in ["/latest/", "/none/"] {
            let token = token();
            let mut args = vec!["-H", token.as_str()];
            let urls = urls(path);
            args.extend(urls.iter().map(String::as_str));
            assert!(network.curl(ALICE, &args).status.success());
        }
        let ended = tool.stop();
        let found = requests(&ended);
        assert!(!found.is_empty(), "{ended:#?}");
        for event in &found {
            assert_eq!(event["findings"], json!(["scan"]), "{event}");
            assert!(event["path"].as_str().unwrap().starts_with("/none/"));
            assert_eq!(event["status"], 404);
        }
        let pids: BTreeSet<_> = found.iter().map(|event| event["pid"].as_u64()).collect();
        assert_eq!(pids.len(), 1);
        // Nothing came up before it was a scan: 24 that were there, and the first that were not.
        assert!(ended.summary()["clean"].as_u64().unwrap() >= 24 + 7);
    }

    #[test]
    fn many_paths_that_are_there_are_a_scan() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = start(&network, &[]);
        let address: SocketAddr = format!("{IMDS4}:80").parse().unwrap();
        // As many as it takes where the machine is slow: they are to come within ten seconds.
        let is_told = |tool: &Tool| !tool.events().iter().all(|event| event["kind"] != "request");
        for round in 0..50 {
            let asked = network.machine.enter(move || {
                let mut stream = TcpStream::connect(address).expect("connect");
                for number in 0..250 {
                    let path = format!("/latest/meta-data/tags/{round}/{number}");
                    let header = token();
                    let request =
                        format!("GET {path} HTTP/1.1\r\nHost: {IMDS4}\r\n{header}\r\n\r\n");
                    stream.write_all(request.as_bytes()).unwrap();
                    assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
                }
            });
            asked.join().unwrap();
            if is_told(&tool) {
                break;
            }
        }
        let ended = tool.stop();
        let found = requests(&ended);
        assert!(!found.is_empty(), "{ended:#?}");
        assert!(
            found
                .iter()
                .all(|event| event["findings"] == json!(["scan"])
                    && event["status"] == 200
                    && event["uid"] == 0),
            "{ended:#?}"
        );
        // The first ones went no further than the filter.
        assert!(ended.summary()["clean"].as_u64().unwrap() >= 64);
    }

    #[test]
    fn a_scan_is_told_about_though_each_guess_follows_another_request() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = start(&network, &[]);
        let address: SocketAddr = format!("{IMDS4}:80").parse().unwrap();
        let is_scan = |event: &Value| {
            let findings = event["findings"].as_array();
            findings.is_some_and(|all| all.contains(&json!("scan")))
        };
        // As many as it takes where the machine is slow: they are to come within ten seconds.
        for round in 0..50 {
            let asked = network.machine.enter(move || {
                let mut stream = TcpStream::connect(address).expect("connect");
                for number in 0..24 {
                    let header = token();
                    let get = |path: &str| {
                        format!("GET {path} HTTP/1.1\r\nHost: {IMDS4}\r\n{header}\r\n\r\n")
                    };
                    let guess = get(&format!("/none/{round}/{number}"));
                    let pair = get("/latest/meta-data/") + &guess;
                    stream.write_all(pair.as_bytes()).unwrap();
                    let mut answers = Vec::<u8>::new();
                    while !answers.windows(12).any(|part| part == b"HTTP/1.1 404") {
                        let mut buffer = [0; 4096];
                        let length = stream.read(&mut buffer).unwrap();
                        assert!(length > 0);
                        answers.extend(&buffer[..length]);
                    }
                }
            });
            asked.join().unwrap();
            if tool.events().iter().any(is_scan) {
                break;
            }
        }
        let ended = tool.stop();
        let found = requests(&ended);
        let scans = found.iter().filter(|event| is_scan(event)).count();
        assert!(scans > 0, "{ended:#?}");
        // Of which of the pair the answer is nobody says.
        for event in &found {
            let guessed = event["path"].as_str().unwrap().starts_with("/none/");
            assert!(!guessed || event["status"] != 200, "{event}");
        }
    }

    #[test]
    fn a_scan_by_many_processes_is_one() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = start(&network, &[]);
        // A process for each path, as a script starts them; and as many for one path that is not there.
        let script = format!(
            "import os,socket,sys\n\
             for number in range(16):\n\
             \x20pid=os.fork()\n\
             \x20if not pid:\n\
             \x20 s=socket.create_connection((\"{IMDS4}\",80))\n\
             \x20 path=sys.argv[1].replace('N',sys.argv[2]+'-'+str(number))\n\
             \x20 s.sendall(b'GET '+path.encode()+b' HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n')\n\
             \x20 while s.recv(4096): pass\n\
             \x20 os._exit(0)\n\
             \x20os.waitpid(pid,0)"
        );
        let run = |uid: u32, path: &str, round: usize| {
            let mut command = network.machine.command_as(uid, crate::common::python3());
            command.args(["-c", &script, path, &round.to_string()]);
            crate::common::sh(&mut command);
        };
        run(BOB, "/none/same", 0);
        let is_scan = |event: &Value| event["findings"] == json!(["imdsv1", "scan"]);
        for round in 0..50 {
            run(ALICE, "/none/N", round);
            if tool.events().iter().any(is_scan) {
                break;
            }
        }
        let ended = tool.stop();
        let found = requests(&ended);
        let scans: Vec<_> = found.iter().filter(|event| is_scan(event)).collect();
        assert!(!scans.is_empty(), "{ended:#?}");
        assert!(
            scans.iter().all(|event| event["uid"] == ALICE),
            "{scans:#?}"
        );
        let pids: BTreeSet<_> = found.iter().map(|event| event["pid"].as_u64()).collect();
        assert_eq!(pids.len(), found.len(), "{found:#?}");
    }

    #[test]
    fn with_users_that_may_ask_all_others_are_told_about() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let alice = ALICE.to_string();
        let tool = start(&network, &["--allow-user", "root", "--allow-user", &alice]);
        for uid in [0, ALICE, BOB] {
            network.curl(uid, &["-H", &token(), &url("/latest/meta-data/")]);
        }
        let ended = tool.stop();
        let found = requests(&ended);
        assert_eq!(found.len(), 1, "{ended:#?}");
        assert_eq!(found[0]["findings"], json!(["unknown-user"]));
        assert_eq!(found[0]["uid"], BOB);
    }

    #[test]
    fn a_policy_of_the_guard_says_whose_requests_are_told_about() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.toml");
        let text = format!("[[rule]]\nclouds = [\"aws\"]\nusers = [{BOB}]\ngroups = [{ALICE}]\n");
        fs::write(&file, text).unwrap();
        let tool = start(&network, &["--policy", file.to_str().unwrap()]);
        for uid in [0, ALICE, BOB] {
            network.curl(uid, &["-H", &token(), &url("/latest/meta-data/")]);
        }
        let ended = tool.stop();
        let found = requests(&ended);
        assert_eq!(found.len(), 1, "{ended:#?}");
        assert_eq!(found[0]["findings"], json!(["unknown-user"]));
        assert_eq!(found[0]["uid"], 0);
        // BOB's woke nobody.
        assert_eq!(ended.summary()["clean"], 1);
    }

    #[test]
    fn own_rules_and_names_are_used_from_the_filter_on() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rules.toml");
        let text = r#"
            hosts = ["imds.internal"]
            [[rule]]
            name = "keys"
            paths = ["/latest/meta-data/public-keys/**"]
            [[rule]]
            name = "debug"
            headers = ["X-Debug"]
            endpoints = ["169.254.169.254:80/tcp"]
            [[rule]]
            name = "elsewhere"
            paths = ["/**"]
            endpoints = ["azure"]
        "#;
        fs::write(&file, text).unwrap();
        let tool = start(&network, &["--rules", file.to_str().unwrap()]);
        let ask = |header: &str, path: &str| {
            network.curl(ALICE, &["-H", &token(), "-H", header, &url(path)]);
        };
        ask("Host: imds.internal", "/latest/meta-data/");
        ask("Host: other.internal", "/latest/meta-data/a");
        ask("X: y", "/latest/meta-data/public-keys/0/openssh-key");
        ask("x-debug: 1", "/latest/meta-data/PUBLIC-keys/0/");
        ask("X-Debugs: 1", "/latest/meta-data/public-key");
        let ended = tool.stop();
        let found: Vec<_> = requests(&ended)
            .iter()
            .map(|event| (event["findings"].clone(), event["rules"].clone()))
            .collect();
        assert_eq!(
            found,
            [
                (json!(["foreign-host"]), Value::Null),
                (json!(["rule"]), json!(["keys"])),
                (json!(["rule"]), json!(["keys", "debug"])),
            ],
            "{ended:#?}"
        );
        let note = "rules.toml:11: rule \"elsewhere\" finds nothing";
        let notes = ended.stderr.matches("finds nothing").count();
        assert!(
            notes == 1 && ended.stderr.contains(note),
            "{}",
            ended.stderr
        );
    }

    #[test]
    fn wrong_rules_and_users_are_refused_before_anything_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rules.toml");
        fs::write(&file, "[[rule]]\nname = \"a\"\npaths = [\"x y\"]\n").unwrap();
        for (args, named) in [
            (
                vec!["--rules", file.to_str().unwrap()],
                "rules.toml:3: \"x y\"",
            ),
            (vec!["--rules", "/no/such/file"], "/no/such/file"),
            (vec!["--allow-user", "no-such-user"], "\"no-such-user\""),
        ] {
            let output = Command::new(ebpfkit_path())
                .arg("imds-watch")
                .args(&args)
                .output()
                .unwrap();
            let err = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{err}");
            assert!(err.contains(named), "{err}");
        }
    }

    #[test]
    fn the_summary_counts_by_caller_and_says_whether_tokens_can_be_required() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let run = |v1: &[u32]| {
            let tool = start(&network, &["--summary"]);
            network.curl(
                ALICE,
                &["-H", &token(), &url("/latest/a"), &url("/latest/b")],
            );
            for uid in v1 {
                network.curl(*uid, &[&url("/latest/c")]);
            }
            tool.stop()
        };
        let ended = run(&[]);
        assert_eq!(requests(&ended), Vec::<&Value>::new());
        let verdict = ended.kind("verdict")[0];
        assert_eq!(verdict["safe"], true, "{verdict}");
        assert_eq!(verdict["calls"], 2);
        let ended = run(&[BOB, ALICE]);
        let verdict = ended.kind("verdict")[0];
        assert_eq!(verdict["safe"], false, "{verdict}");
        let callers: Vec<_> = ended
            .kind("caller")
            .iter()
            .map(|one| (one["v1"].clone(), one["v2"].clone(), one["paths"].clone()))
            .collect();
        // They are told apart by unit, where they are in one, else by user and executable.
        let v1: u64 = callers.iter().map(|one| one.0.as_u64().unwrap()).sum();
        let v2: u64 = callers.iter().map(|one| one.1.as_u64().unwrap()).sum();
        assert_eq!((v1, v2), (2, 2), "{callers:?}");
        assert!(format!("{callers:?}").contains("/latest/c"));
        let mut command = network.machine.command(ebpfkit_path());
        command.args([
            "imds-watch",
            "--cloud",
            "aws",
            "--summary",
            "--color",
            "never",
        ]);
        let tool = Tool::spawn(command);
        tool.wait("ready", |tool| tool.stderr().contains("ready"));
        tool.signal(nix::sys::signal::Signal::SIGTERM);
        let (out, _, code) = tool.ended_text();
        assert_eq!(code, Some(0));
        assert!(
            out.ends_with("safe to require IMDSv2: no, because no call was seen\n"),
            "{out}"
        );
    }

    #[test]
    fn a_capture_without_room_ends_and_the_watch_goes_on() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("found.pcapng");
        // No file of it gets more than a KiB, and a write beyond that is an error.
        let mut command = network.machine.command("sh");
        command.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$@\"", "sh"]);
        command.arg(ebpfkit_path());
        command.args(["-o", "json", "imds-watch", "--cloud", "aws", "--pcap"]);
        command.arg(&file);
        let tool = Tool::run(command);
        for number in 0..20 {
            network.curl(ALICE, &[&url(&format!("/latest/{number}"))]);
        }
        let ended = tool.stop();
        assert_eq!(requests(&ended).len(), 20);
        let missing = ended.summary()["uncaptured"].as_u64().unwrap();
        assert!((1..=20).contains(&missing), "{missing}");
        let notes = ended.stderr.matches("the capture ends here").count();
        assert_eq!(notes, 1, "{}", ended.stderr);
        assert!(fs::metadata(&file).unwrap().len() <= 1024);
    }

    #[test]
    fn a_capture_has_the_suspicious_packets_with_process_and_findings() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("found.pcapng");
        let tool = start(&network, &["--pcap", file.to_str().unwrap()]);
        network.curl(ALICE, &["-H", &token(), &url("/latest/clean")]);
        network.curl(ALICE, &[&url("/latest/meta-data/suspicious")]);
        let ended = tool.stop();
        assert_eq!(requests(&ended).len(), 1);
        let pid = requests(&ended)[0]["pid"].as_u64().unwrap();
        let expected = format!("imdsv1 GET /latest/meta-data/suspicious by curl[{pid}]");
        let bytes = fs::read(&file).unwrap();
        let mut reader = pcap_file::pcapng::PcapNgReader::new(&bytes[..]).unwrap();
        let mut packets = 0;
        while let Some(block) = reader.next_block() {
            if let pcap_file::pcapng::Block::EnhancedPacket(packet) = block.unwrap() {
                packets += 1;
                assert!(format!("{:?}", packet.options).contains(&expected));
                let payload = String::from_utf8_lossy(&packet.data).into_owned();
                assert!(payload.contains("GET /latest/meta-data/suspicious HTTP/1.1"));
            }
        }
        assert_eq!(packets, 1);
        // As others read it, where there is one.
        let fields = [
            "-e",
            "frame.comment",
            "-e",
            "http.request.uri",
            "-e",
            "frame.interface_name",
        ];
        let output = Command::new("tshark")
            .args(["-r", file.to_str().unwrap(), "-T", "fields"])
            .args(fields)
            .output();
        match output {
            Ok(output) => {
                let text = String::from_utf8(output.stdout.clone()).unwrap();
                assert!(output.status.success(), "{output:?}");
                assert_eq!(text.lines().count(), 1, "{text}");
                for part in [
                    expected.as_str(),
                    "\t/latest/meta-data/suspicious\t",
                    "eth0",
                ] {
                    assert!(text.contains(part), "{part} is not in {text}");
                }
            }
            Err(err) => assert_eq!(err.kind(), std::io::ErrorKind::NotFound, "{err}"),
        }
        // A second run does not overwrite it.
        let mut command = network.machine.command(ebpfkit_path());
        command.args(["imds-watch", "--pcap", file.to_str().unwrap()]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}
