// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard` at work: real programs of real users, in network namespaces of its own.

mod common;

mod root {
    use std::process::{Command, Stdio};

    use ebpfkit::kernel::features;

    use super::common::{
        ALICE, BOB, CLOUD4, Ended, IMDS4, IMDS6, MACHINE4, MetadataService, Netns, Network, Tool,
        ebpfkit_path, python3, read_all, sh,
    };

    const V4: &str = "http://169.254.169.254/latest/meta-data/";
    const V6: &str = "http://[fd00:ec2::254]/latest/meta-data/";
    /// curl's exit codes (curl(1)).
    const CONNECTION_REFUSED: i32 = 7;
    const TIMED_OUT: i32 = 28;
    const RECEIVE_FAILED: i32 = 56;

    /// The packet layer alone: what passes by the other one is what it is for.
    fn guard(network: &Network, args: &[&str]) -> Tool {
        let mut all = vec!["tc-guard", "run", "--packets-only"];
        all.extend(args);
        Tool::start(&network.machine, &all)
    }

    /// Runs a python program as `uid` on the machine and gives what it printed.
    fn python(network: &Network, uid: u32, program: &str) -> String {
        sh(network
            .machine
            .command_as(uid, python3())
            .args(["-c", program]))
        .trim()
        .to_owned()
    }

    fn denied(ended: &Ended, uid: u32) -> u64 {
        ended
            .kind("verdict")
            .iter()
            .filter(|event| event["verdict"] == "denied" && event["uid"] == uid)
            .map(|event| event["count"].as_u64().expect("a count"))
            .sum()
    }

    #[test]
    fn an_allowed_user_is_served_and_another_is_refused_at_once() {
        let network = Network::new();
        let service = MetadataService::start(&network);
        let guard = guard(&network, &["--cloud", "aws", "--allow-user", "root"]);
        for url in [V4, V6] {
            assert!(network.curl(0, &[url]).status.success());
            let refused = network.curl(ALICE, &[url]);
            assert_eq!(
                refused.status.code(),
                Some(CONNECTION_REFUSED),
                "{refused:?}"
            );
        }
        let ended = guard.stop();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(service.requests().len(), 2);
        assert_eq!(denied(&ended, ALICE), 2);
        let event = ended.kind("verdict")[0].clone();
        assert_eq!(event["tool"], "tc-guard");
        assert_eq!(event["layer"], "tc");
        assert_eq!(event["reason"], "user-not-allowed");
        assert_eq!(event["endpoint"], "aws");
        assert_eq!(event["interface"], "eth0");
        assert_eq!(event["direction"], "egress");
        assert_eq!(event["protocol"], "tcp");
        assert_eq!(event["dst"], "169.254.169.254:80");
        assert!(event["src"].as_str().unwrap().starts_with(MACHINE4));
        let summary = ended.summary();
        assert_eq!(summary["denied"], 2);
        assert_eq!(summary["resets"], 2);
        assert!(summary["allowed"].as_u64().unwrap() > 6, "{summary}");
    }

    #[test]
    fn the_guard_is_gone_with_its_process() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let guard = guard(&network, &["--cloud", "aws"]);
        assert!(!network.curl(ALICE, &[V4]).status.success());
        guard.stop();
        assert!(network.curl(ALICE, &[V4]).status.success());
        let filters = sh(Command::new("tc").args([
            "-n",
            network.machine.name(),
            "filter",
            "show",
            "dev",
            "eth0",
            "egress",
        ]));
        assert_eq!(filters, "");
    }

    #[test]
    fn several_users_are_allowed_by_name_and_by_number() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bob = BOB.to_string();
        let guard = guard(
            &network,
            &[
                "--cloud",
                "aws",
                "--allow-user",
                "root",
                "--allow-user",
                &bob,
            ],
        );
        assert!(network.curl(0, &[V4]).status.success());
        assert!(network.curl(BOB, &[V4]).status.success());
        assert!(!network.curl(ALICE, &[V4]).status.success());
        guard.stop();
    }

    #[test]
    fn nobody_is_allowed_unless_named_not_even_root() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let guard = guard(&network, &["--cloud", "aws"]);
        assert_eq!(
            network.curl(0, &[V4]).status.code(),
            Some(CONNECTION_REFUSED)
        );
        assert!(
            guard.stderr().contains("not even root"),
            "{}",
            guard.stderr()
        );
        guard.stop();
    }

    #[test]
    fn a_mapped_address_is_judged_as_ipv4() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let guard = guard(&network, &["--cloud", "aws", "--allow-user", "root"]);
        let refused = network.curl(ALICE, &["http://[::ffff:169.254.169.254]/"]);
        assert_eq!(
            refused.status.code(),
            Some(CONNECTION_REFUSED),
            "{refused:?}"
        );
        guard.stop();
    }

    #[test]
    fn other_traffic_and_dns_on_the_same_address_stay_open() {
        let network = Network::new();
        let _other = MetadataService::on(&network.cloud, &[(CLOUD4, 80), (IMDS4, 53)]);
        let guard = guard(&network, &["--cloud", "aws"]);
        assert!(
            network
                .curl(ALICE, &[&format!("http://{CLOUD4}/")])
                .status
                .success()
        );
        assert!(
            network
                .curl(ALICE, &["http://169.254.169.254:53/"])
                .status
                .success()
        );
        let ended = guard.stop();
        assert_eq!(ended.summary()["seen"], 0);
        assert_eq!(ended.summary()["allowed"], 0);
    }

    #[test]
    fn an_audit_denies_nothing_and_reports_what_it_would() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let guard = guard(
            &network,
            &["--cloud", "aws", "--allow-user", "root", "--audit"],
        );
        assert!(network.curl(ALICE, &[V4]).status.success());
        let event = guard.wait_for("would-deny", |event| event["verdict"] == "would-deny");
        assert_eq!(event["uid"], ALICE);
        let ended = guard.stop();
        assert_eq!(ended.summary()["denied"], 0);
        assert!(ended.summary()["would_deny"].as_u64().unwrap() > 3);
        assert_eq!(ended.summary()["lost"], 0);
    }

    #[test]
    fn a_silent_guard_answers_nothing() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let guard = guard(
            &network,
            &["--cloud", "aws", "--allow-user", "root", "--deny", "drop"],
        );
        let unanswered = network.curl(ALICE, &["--connect-timeout", "1", V4]);
        assert_eq!(unanswered.status.code(), Some(TIMED_OUT));
        let ended = guard.stop();
        assert_eq!(ended.summary()["resets"], 0);
        assert!(denied(&ended, ALICE) > 0);
    }

    #[test]
    fn a_connection_from_before_the_guard_is_cut() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let mut client = network.machine.command_as(ALICE, python3());
        client.args([
            "-c",
            "import socket, sys\n\
             s = socket.create_connection(('169.254.169.254', 80))\n\
             print('connected', flush=True)\n\
             sys.stdin.readline()\n\
             s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n\
             try:\n\
             \x20   print('got', s.recv(100))\n\
             except ConnectionResetError:\n\
             \x20   print('reset')\n",
        ]);
        let mut client = client
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut out = client.stdout.take().unwrap();
        let mut greeting = [0; 10];
        std::io::Read::read_exact(&mut out, &mut greeting).unwrap();
        let guard = guard(&network, &["--cloud", "aws", "--allow-user", "root"]);
        std::io::Write::write_all(&mut client.stdin.take().unwrap(), b"go\n").unwrap();
        assert_eq!(String::from_utf8(read_all(out)).unwrap().trim(), "reset");
        client.wait().unwrap();
        assert_eq!(guard.stop().summary()["denied"], 1);
    }

    const UDP: &str = "import errno, socket\n\
        def ask(family, address):\n\
        \x20   s = socket.socket(family, socket.SOCK_DGRAM)\n\
        \x20   s.settimeout(30)\n\
        \x20   s.connect((address, 9999))\n\
        \x20   s.send(b'x')\n\
        \x20   try:\n\
        \x20       return s.recv(10).decode()\n\
        \x20   except OSError as err:\n\
        \x20       return errno.errorcode[err.errno]\n\
        print(ask(socket.AF_INET, '169.254.169.254'), ask(socket.AF_INET6, 'fd00:ec2::254'))\n";

    #[test]
    fn a_datagram_is_answered_by_a_prohibited_message() {
        let network = Network::new();
        let guard = guard(
            &network,
            &[
                "--endpoint",
                &format!("{IMDS4}:9999/udp"),
                "--endpoint",
                &format!("[{IMDS6}]:9999/udp"),
                "--allow-user",
                "root",
            ],
        );
        // icmp(7): administratively prohibited is EHOSTUNREACH over IPv4 and EACCES over IPv6.
        assert_eq!(python(&network, ALICE, UDP), "EHOSTUNREACH EACCES");
        let ended = guard.stop();
        assert_eq!(ended.summary()["prohibited"], 2);
        assert_eq!(ended.summary()["unanswered"], 0);
    }

    #[test]
    fn answers_have_correct_checksums() {
        let network = Network::new();
        let mut tcpdump = network.machine.command("tcpdump");
        tcpdump.args(["-i", "eth0", "-vvn", "-l", "--immediate-mode", "-c", "4"]);
        // Only what comes in: the outgoing packet is taken by the guard before tcpdump sees it.
        tcpdump.args([
            "-Q",
            "in",
            "src host 169.254.169.254 or src host fd00:ec2::254",
        ]);
        let mut tcpdump = tcpdump
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump");
        // It says that it listens when it does.
        let mut said = String::new();
        let mut listening = std::io::BufReader::new(tcpdump.stderr.take().unwrap());
        while !said.contains("listening on") {
            said.clear();
            let read = std::io::BufRead::read_line(&mut listening, &mut said).unwrap();
            assert!(read > 0, "tcpdump ended");
        }
        let guard = guard(
            &network,
            &[
                "--endpoint",
                IMDS4,
                "--endpoint",
                IMDS6,
                "--allow-user",
                "root",
            ],
        );
        for url in [V4, V6] {
            assert_eq!(
                network.curl(ALICE, &[url]).status.code(),
                Some(CONNECTION_REFUSED)
            );
        }
        python(&network, ALICE, UDP);
        let printed = String::from_utf8(read_all(tcpdump.stdout.take().unwrap())).unwrap();
        tcpdump.wait().unwrap();
        guard.stop();
        assert_eq!(printed.matches("Flags [R.]").count(), 2, "{printed}");
        assert_eq!(printed.matches("(correct)").count(), 2, "{printed}");
        assert!(printed.contains("admin prohibited"), "{printed}");
        assert!(printed.contains("[icmp6 sum ok]"), "{printed}");
        // The quoted datagram never got its checksum: its sender left that to the interface.
        let quoted = printed.matches("bad udp cksum").count();
        assert_eq!(
            printed.matches("bad").count() + printed.matches("wrong").count(),
            quoted,
            "{printed}"
        );
    }

    /// Sends datagrams to the service, whatever becomes of them.
    fn python_sends(count: u32) -> String {
        format!(
            "import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             for _ in range({count}):\n\
             \x20   try: s.sendto(b'x', ('169.254.169.254', 9999))\n\
             \x20   except OSError: pass\n"
        )
    }

    #[test]
    fn a_flood_costs_few_events_and_no_count() {
        let network = Network::new();
        let guard = guard(&network, &["--endpoint", IMDS4, "--deny", "drop"]);
        python(&network, ALICE, &python_sends(20_000));
        let ended = guard.stop();
        assert_eq!(denied(&ended, ALICE), 20_000);
        assert_eq!(ended.summary()["denied"], 20_000);
        assert_eq!(ended.summary()["delivered"], 20_000);
        assert_eq!(ended.summary()["lost"], 0);
        // One a second, and as many sweeps at most; a flood this long would be a slow machine.
        assert!(
            ended.kind("verdict").len() < 1000,
            "{}",
            ended.kind("verdict").len()
        );
    }

    #[test]
    fn what_follows_a_denial_is_told_of_without_another_packet() {
        let network = Network::new();
        let guard = guard(&network, &["--endpoint", IMDS4, "--deny", "drop"]);
        let three = python_sends(3);
        python(&network, ALICE, &three);
        let told = || -> u64 {
            guard
                .events()
                .iter()
                .filter_map(|event| event["count"].as_u64())
                .sum()
        };
        guard.wait_for("the rest", |_| told() == 3);
        guard.stop();
    }

    #[test]
    fn fragments_are_kept_back_from_the_first_to_the_last() {
        let network = Network::new();
        let mut server = network.cloud.command(python3());
        server.args([
            "-c",
            "import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             s.bind(('169.254.169.254', 9999))\n\
             print('ready', flush=True)\n\
             while True:\n\
             \x20   data, who = s.recvfrom(65535)\n\
             \x20   print(len(data), flush=True)\n",
        ]);
        let server = server.stdout(Stdio::piped()).spawn().expect("python3");
        let mut server = super::common::Background(server);
        let mut out = std::io::BufReader::new(server.0.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let guard = guard(
            &network,
            &[
                "--endpoint",
                &format!("{IMDS4}:9999/udp"),
                "--allow-user",
                "root",
            ],
        );
        let send = |length: u32| {
            format!(
                "import socket\n\
                 s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                 try: s.sendto(b'x' * {length}, ('169.254.169.254', 9999))\n\
                 except OSError: pass\n"
            )
        };
        python(&network, ALICE, &send(4000));
        python(&network, 0, &send(4001));
        line.clear();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line.trim(), "4001");
        let ended = guard.stop();
        assert!(denied(&ended, ALICE) >= 1);
        assert_eq!(ended.summary()["unanswered"], ended.summary()["denied"]);
    }

    #[test]
    fn a_raw_frame_is_judged_by_its_sender() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let guard = guard(
            &network,
            &["--cloud", "aws", "--allow-user", &BOB.to_string()],
        );
        // A SYN to the service in a frame whose type the socket gives as something else.
        python(
            &network,
            0,
            "import socket, struct\n\
             s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
             s.bind(('eth0', 0x88b5))\n\
             ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 40, 1, 0, 64, 6, 0,\n\
             \x20   socket.inet_aton('10.213.0.2'), socket.inet_aton('169.254.169.254'))\n\
             tcp = struct.pack('!HHIIBBHHH', 40000, 80, 1, 0, 0x50, 2, 1000, 0, 0)\n\
             s.send(b'\\2\\0\\0\\0\\0\\1' + b'\\2\\0\\0\\0\\0\\2' + b'\\x08\\0' + ip + tcp)\n",
        );
        let event = guard.wait_for("a denial", |event| event["verdict"] == "denied");
        assert_eq!(event["uid"], 0);
        guard.stop();
    }

    #[test]
    fn a_socket_belongs_to_the_user_who_made_it() {
        let network = Network::new();
        let service = MetadataService::start(&network);
        let guard = guard(&network, &["--cloud", "aws", "--allow-user", "root"]);
        let program = format!(
            "import os, socket\n\
             s = socket.socket()\n\
             os.setuid({ALICE})\n\
             s.connect(('169.254.169.254', 80))\n\
             s.sendall(b'GET /made-by-root HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n\
             print(s.recv(12).decode())\n"
        );
        let mut command = network.machine.command(python3());
        assert_eq!(sh(command.args(["-c", &program])).trim(), "HTTP/1.1 200");
        guard.stop();
        assert_eq!(service.requests(), ["GET /made-by-root HTTP/1.1"]);
    }

    #[test]
    fn a_forwarded_packet_has_no_identity_and_is_kept_back() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let container = Netns::new();
        network.machine.ip(&[
            "link",
            "add",
            "veth0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            container.name(),
        ]);
        network
            .machine
            .ip(&["addr", "add", "10.214.0.1/24", "dev", "veth0"]);
        network.machine.ip(&["link", "set", "veth0", "up"]);
        container.ip(&["addr", "add", "10.214.0.2/24", "dev", "eth0"]);
        container.ip(&["link", "set", "eth0", "up"]);
        container.ip(&["route", "add", "default", "via", "10.214.0.1"]);
        network
            .cloud
            .ip(&["route", "add", "10.214.0.0/24", "via", MACHINE4]);
        sh(network
            .machine
            .command("sysctl")
            .args(["-qw", "net.ipv4.ip_forward=1"]));
        let fetch = |seconds: &str| {
            let mut curl = container.command("curl");
            curl.args(["-sS", "--connect-timeout", seconds, V4])
                .output()
                .expect("curl")
        };
        assert!(fetch("10").status.success());
        // Only the uplink: the container's packets cross it without their socket.
        let guard = guard(
            &network,
            &["--cloud", "aws", "--allow-user", "root", "-i", "eth0"],
        );
        assert!(!fetch("1").status.success());
        let ended = guard.stop();
        let events = ended.kind("verdict");
        assert!(
            events.iter().all(|event| event["reason"] == "no-socket"),
            "{events:?}"
        );
        assert!(!events.is_empty() && events[0].get("uid").is_none());
    }

    #[test]
    fn the_filters_of_others_stay() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tc = |args: &[&str]| {
            sh(Command::new("tc")
                .args(["-n", network.machine.name()])
                .args(args))
        };
        tc(&["qdisc", "add", "dev", "eth0", "clsact"]);
        let other = [
            "filter",
            "add",
            "dev",
            "eth0",
            "egress",
            "prio",
            "7",
            "protocol",
            "ip",
            "u32",
            "match",
            "ip",
            "dst",
            "192.0.2.1/32",
            "flowid",
            "1:1",
        ];
        tc(&other);
        let show = ["filter", "show", "dev", "eth0", "egress"];
        let before = tc(&show);
        let guard = guard(&network, &["--cloud", "aws"]);
        assert!(!network.curl(ALICE, &[V4]).status.success());
        guard.stop();
        assert_eq!(tc(&show), before);
        assert!(before.contains("pref 7"), "{before}");
    }

    #[test]
    fn an_ordinary_user_with_few_capabilities_can_guard() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let machine = &network.machine;
        // Some kernels take the programs without CAP_PERFMON, all from 6.15 on; where one refuses, it is named.
        let few = "+bpf,+net_admin";
        let mut doctor = machine.command_with(BOB, few, ebpfkit_path());
        let tried = doctor.args(["doctor", "tc-guard"]).output().unwrap();
        let capabilities = if tried.status.success() {
            few
        } else {
            assert!(!features::tc_knows_namespaces(), "{tried:?}");
            let said = String::from_utf8_lossy(&tried.stdout);
            assert!(said.contains("CAP_PERFMON is missing"), "{said}");
            "+bpf,+net_admin,+perfmon"
        };
        let mut command = machine.command_with(BOB, capabilities, ebpfkit_path());
        command.args(["-o", "json", "tc-guard", "run", "--cloud", "aws"]);
        let guard = Tool::run(command);
        assert!(!network.curl(ALICE, &[V4]).status.success());
        let ended = guard.stop();
        assert_eq!(
            (ended.code, denied(&ended, ALICE)),
            (Some(0), 1),
            "{}",
            ended.stderr
        );
    }

    #[test]
    fn without_capabilities_the_missing_ones_are_named() {
        let network = Network::new();
        let mut command = network.machine.command_as(ALICE, ebpfkit_path());
        let output = command
            .args(["tc-guard", "run", "--cloud", "aws"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("CAP_BPF, CAP_NET_ADMIN"), "{stderr}");
    }

    #[test]
    fn an_interface_that_is_not_there_is_named_and_nothing_is_attached() {
        let network = Network::new();
        let mut command = network.machine.command(ebpfkit_path());
        command.args([
            "tc-guard", "run", "--cloud", "aws", "-i", "eth0", "-i", "eth9",
        ]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            stderr.contains("\"eth9\"") && stderr.contains("eth0"),
            "{stderr}"
        );
    }

    #[test]
    fn text_is_a_line_per_denial_and_the_rest_is_on_standard_error() {
        let network = Network::new();
        let mut command = network.machine.command(ebpfkit_path());
        command.args(["--color", "never", "tc-guard", "run", "--cloud", "aws"]);
        let guard = Tool::spawn(command);
        let ready = || guard.stderr().contains("ebpfkit: tc-guard: ready\n");
        while !ready() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(!network.curl(ALICE, &[V4]).status.success());
        guard.signal(nix::sys::signal::Signal::SIGINT);
        let (out, err, code) = guard.ended_text();
        assert_eq!(code, Some(0));
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines.len(), 1, "{out}");
        assert!(
            lines[0].contains("denied") && lines[0].contains("uid 54321"),
            "{out}"
        );
        assert!(err.contains("denied 1"), "{err}");
    }

    #[test]
    fn an_interface_without_link_addresses_is_guarded() {
        let network = Network::new();
        network
            .machine
            .ip(&["tuntap", "add", "mode", "tun", "name", "tun0"]);
        network
            .machine
            .ip(&["addr", "add", "10.215.0.1/24", "dev", "tun0"]);
        network.machine.ip(&["link", "set", "tun0", "up"]);
        network.machine.ip(&["route", "add", IMDS4, "dev", "tun0"]);
        // Without a program that holds it the device has no carrier and takes no packet.
        let mut holder = network.machine.command(python3());
        holder.args([
            "-c",
            "import fcntl, os, struct, sys\n\
             tun = os.open('/dev/net/tun', os.O_RDWR)\n\
             fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', b'tun0', 0x1001))\n\
             print('held', flush=True)\n\
             sys.stdin.read()\n",
        ]);
        let holder = holder
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut holder = super::common::Background(holder);
        let mut held = [0; 5];
        std::io::Read::read_exact(&mut holder.0.stdout.take().unwrap(), &mut held).unwrap();
        let guard = guard(&network, &["--cloud", "aws", "--allow-user", "root"]);
        assert_eq!(
            guard.events()[0]["interfaces"],
            serde_json::json!(["eth0", "tun0"])
        );
        let refused = network.curl(ALICE, &[V4]);
        assert_eq!(
            refused.status.code(),
            Some(CONNECTION_REFUSED),
            "{refused:?}"
        );
        let ended = guard.stop();
        assert_eq!(denied(&ended, ALICE), 1);
        assert_eq!(ended.kind("verdict")[0]["interface"], "tun0");
    }

    #[test]
    fn root_of_another_network_namespace_is_not_the_machine_s() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let container = Netns::new();
        network
            .machine
            .ip(&["link", "add", "mac0", "link", "eth0", "type", "macvlan"]);
        network
            .machine
            .ip(&["link", "set", "mac0", "netns", container.name()]);
        let guard = guard(&network, &["--cloud", "aws", "--allow-user", "root"]);
        let told = guard.events()[0]["namespaces"].as_bool().unwrap();
        container.ip(&["addr", "add", "10.213.0.3/24", "dev", "mac0"]);
        container.ip(&["link", "set", "mac0", "up"]);
        container.ip(&["route", "add", "default", "via", CLOUD4]);
        let mut curl = container.command("curl");
        let reached = curl
            .args(["-sS", "--connect-timeout", "2", V4])
            .output()
            .expect("curl");
        let ended = guard.stop();
        // Before kernel 6.15 the guard cannot tell, and says so when it starts.
        assert_eq!(reached.status.success(), !told, "{reached:?}");
        if told {
            assert_eq!(ended.kind("verdict")[0]["reason"], "foreign-socket");
            assert!(ended.kind("verdict")[0].get("uid").is_none());
        }
    }

    #[test]
    fn a_full_disk_does_not_end_the_guard() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let mut command = network.machine.command("sh");
        command
            .args(["-c", "exec \"$@\" >/dev/full", "sh"])
            .arg(ebpfkit_path());
        command.args(["tc-guard", "run", "--cloud", "aws"]);
        let guard = Tool::spawn(command);
        guard.wait("ready", |guard| {
            guard.stderr().contains("tc-guard: ready\n")
        });
        for _ in 0..2 {
            assert!(!network.curl(ALICE, &[V4]).status.success());
            guard.wait("told", |guard| guard.stderr().contains("guarding on"));
        }
        guard.signal(nix::sys::signal::Signal::SIGTERM);
        let (_, err, code) = guard.ended_text();
        // Its results are incomplete.
        assert_eq!(code, Some(1), "{err}");
        assert!(
            err.contains("denied 2") && err.contains("No space left"),
            "{err}"
        );
    }

    #[test]
    fn counts_are_told_though_another_user_keeps_trying() {
        let network = Network::new();
        let guard = guard(&network, &["--endpoint", IMDS4, "--deny", "drop"]);
        let three = python_sends(3);
        python(&network, ALICE, &three);
        let mut busy = network.machine.command_as(BOB, python3());
        busy.args(["-c", &python_sends(100_000_000)]);
        let _busy = super::common::Background(busy.spawn().expect("python3"));
        let told = |uid| -> u64 {
            let events = guard.events();
            let counts = events.iter().filter(|event| event["uid"] == uid);
            counts.filter_map(|event| event["count"].as_u64()).sum()
        };
        guard.wait_for("the rest of the first user's", |_| {
            told(ALICE) == 3 && told(BOB) > 0
        });
    }

    #[test]
    fn an_endpoint_that_is_the_machine_s_own_address_is_said_to_be_unguarded() {
        let network = Network::new();
        network
            .machine
            .ip(&["addr", "add", "169.254.170.23/32", "dev", "lo"]);
        let guard = guard(&network, &["--cloud", "aws-eks"]);
        guard.wait("said", |guard| guard.stderr().contains("-i lo"));
        guard.stop();
    }

    #[test]
    fn a_closed_pipe_ends_the_guard_quietly() {
        let network = Network::new();
        let mut command = network.machine.command(ebpfkit_path());
        command.args(["-q", "-o", "json", "tc-guard", "run", "--endpoint", IMDS4]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ebpfkit");
        let mut out = child.stdout.take().unwrap();
        // The first byte of the line that says it is ready.
        std::io::Read::read_exact(&mut out, &mut [0]).unwrap();
        drop(out);
        assert!(!network.curl(ALICE, &[V4]).status.success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
        assert_ne!(
            network.curl(ALICE, &[V4]).status.code(),
            Some(RECEIVE_FAILED)
        );
    }
}
