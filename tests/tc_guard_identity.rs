// SPDX-License-Identifier: BSD-2-Clause

//! Whose packet it is: what the kernel shows in the cases where the obvious answer is wrong, and what
//! the guard makes of it.

mod common;

mod root {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

    use super::common::{
        ALICE, BOB, Background, CLOUD4, IMDS4, IMDS6, MACHINE4, MetadataService, Netns, Network,
        Tool, packets, python3, sh,
    };
    use tempfile::NamedTempFile;

    /// The packet layer alone.
    fn guard(network: &Network, args: &[&str]) -> Tool {
        let mut all = vec!["tc-guard", "run", "--packets-only"];
        all.extend(args);
        Tool::start(&network.machine, &all)
    }

    fn python(netns: &Netns, uid: u32, program: &str) -> String {
        sh(netns.command_as(uid, python3()).args(["-c", program]))
            .trim()
            .to_owned()
    }

    /// A python program that prints a line and waits for one, in turns.
    struct Dialogue {
        _child: Background,
        stdin: ChildStdin,
        out: BufReader<ChildStdout>,
    }

    impl Dialogue {
        fn start(netns: &Netns, uid: u32, program: &str) -> Self {
            let mut child: Child = netns
                .command_as(uid, python3())
                .args(["-u", "-c", program])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("python3");
            Self {
                stdin: child.stdin.take().unwrap(),
                out: BufReader::new(child.stdout.take().unwrap()),
                _child: Background(child),
            }
        }

        fn hear(&mut self) -> String {
            let mut line = String::new();
            self.out.read_line(&mut line).unwrap();
            line.trim().to_owned()
        }

        fn say(&mut self) {
            self.stdin.write_all(b"go\n").unwrap();
        }
    }

    /// Sends one TCP segment from the service's port 80 to the machine, from the cloud, whatever
    /// connection there is.
    fn segment(dport: &str, flags: u8) -> String {
        format!(
            "{}\
             src, dst = socket.inet_aton('{IMDS4}'), socket.inet_aton('{MACHINE4}')\n\
             def tcp(check):\n\
             \x20   return struct.pack('!HHIIBBHHH', 80, {dport}, 77, 99, 0x50, {flags}, 1000, check, 0)\n\
             check = checksum(src + dst + struct.pack('!HH', 6, 20) + tcp(0))\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)\n\
             s.bind(('{IMDS4}', 0))\n\
             s.sendto(tcp(check), ('{MACHINE4}', 0))\n",
            packets()
        )
    }

    #[test]
    fn a_virtual_machine_on_a_macvtap_has_no_identity() {
        let network = Network::new();
        let machine = &network.machine;
        let macvtap = ["type", "macvtap", "mode", "bridge"];
        machine.ip(&[
            &["link", "add", "link", "eth0", "name", "tap0"],
            &macvtap[..],
        ]
        .concat());
        machine.ip(&["link", "set", "tap0", "up"]);
        let endpoint = format!("{CLOUD4}:9999/udp");
        let guard = guard(&network, &["--endpoint", &endpoint, "--allow-user", "root"]);
        // Root opens the tap, and what the virtual machine sends is not root's for that. A frame has 10 bytes for
        // the device ahead of it (struct virtio_net_hdr); the names of its devices are in a /sys of
        // the network namespace's own.
        let program = format!(
            "{}import os, subprocess\n\
             subprocess.run(['mount', '-t', 'sysfs', 'sysfs', '/sys'], check=True)\n\
             subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', '/mnt'], check=True)\n\
             tap = [name for name in os.listdir('/sys/class/net/tap0') if name.startswith('tap')][0]\n\
             major, minor = open('/sys/class/net/tap0/' + tap + '/dev').read().split(':')\n\
             os.mknod('/mnt/tap', 0o600 | 0o020000, os.makedev(int(major), int(minor)))\n\
             tap = os.open('/mnt/tap', os.O_RDWR)\n\
             os.write(tap, bytes(10) + frame(b'\\xff' * 6, 9999, b'tap0'))\n",
            packets()
        );
        let mut opener = machine.command("unshare");
        sh(opener.args(["--mount", "--", python3(), "-c", &program]));
        let ended = guard.stop();
        let summary = ended.summary();
        assert_eq!(
            (&summary["allowed"], &summary["denied"]),
            (&0.into(), &1.into())
        );
        for event in ended.kind("verdict") {
            assert_eq!(event["reason"], "no-socket", "{event}");
        }
    }

    #[test]
    fn what_a_socket_was_allowed_once_opens_nothing_else_to_it() {
        let network = Network::new();
        let mut policy = NamedTempFile::new().unwrap();
        for (port, user) in [(81, ALICE), (82, ALICE), (83, BOB)] {
            writeln!(
                policy,
                "[[rule]]\nendpoints = [\"{IMDS4}:{port}/udp\", \"[{IMDS6}]:{port}/udp\"]\nusers = [\"{user}\"]"
            )
            .unwrap();
        }
        let guard = guard(&network, &["--config", policy.path().to_str().unwrap()]);
        for (family, address) in [("AF_INET", IMDS4), ("AF_INET6", IMDS6)] {
            // The first that is allowed is kept at the socket itself, others are looked up.
            let program = format!(
                "import socket\n\
                 s = socket.socket(socket.{family}, socket.SOCK_DGRAM)\n\
                 for port in [81, 82, 83, 81, 82, 83, 83, 81]:\n\
                 \x20   s.sendto(b'x', ('{address}', port))\n"
            );
            sh(network
                .machine
                .command_as(ALICE, python3())
                .args(["-c", &program]));
        }
        let ended = guard.stop();
        let summary = ended.summary();
        assert_eq!(
            (&summary["allowed"], &summary["denied"]),
            (&10.into(), &6.into())
        );
        for event in ended.kind("verdict") {
            assert!(
                event["endpoint"].as_str().unwrap().ends_with(":83/udp"),
                "{event}"
            );
        }
    }

    #[test]
    fn the_kernel_s_own_reset_passes_though_its_socket_has_the_uid_of_root() {
        let network = Network::new();
        let guard = guard(
            &network,
            &["--cloud", "aws", "--allow-user", &BOB.to_string()],
        );
        // A SYN to a closed port: the answer goes to the endpoint.
        let mut tap = Dialogue::start(
            &network.cloud,
            0,
            "import socket\n\
             s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))\n\
             s.bind(('eth0', 0x0800))\n\
             print('listening')\n\
             while True:\n\
             \x20   data, who = s.recvfrom(1000)\n\
             \x20   if who[2] != 4 and data[9] == 6: print('flags', data[33])\n",
        );
        assert_eq!(tap.hear(), "listening");
        python(&network.cloud, 0, &segment("9", 2));
        // RST and ACK
        assert_eq!(tap.hear(), "flags 20");
        let summary = guard.stop().summary().clone();
        assert_eq!(
            (&summary["passed"], &summary["denied"]),
            (&1.into(), &0.into())
        );
    }

    #[test]
    fn an_acknowledgement_in_time_wait_passes_though_it_has_no_owner() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let guard = guard(
            &network,
            &["--cloud", "aws", "--allow-user", &ALICE.to_string()],
        );
        // The side that closes first waits.
        let port = python(
            &network.machine,
            ALICE,
            "import socket, time\n\
             s = socket.create_connection(('169.254.169.254', 80))\n\
             port = s.getsockname()[1]\n\
             s.shutdown(socket.SHUT_WR)\n\
             while s.recv(1000): pass\n\
             s.close()\n\
             while ':%04X ' % port not in open('/proc/net/tcp').read() or \\\n\
             \x20       not any(':%04X ' % port in l and l.split()[3] == '06' for l in open('/proc/net/tcp')):\n\
             \x20   time.sleep(0.01)\n\
             print(port)\n",
        );
        python(&network.cloud, 0, &segment(&port, 16));
        let ended = guard.stop();
        let summary = ended.summary();
        assert_eq!(summary["denied"], 0, "{:?}", ended.kind("verdict"));
        assert!(summary["passed"].as_u64().unwrap() >= 1, "{summary}");
    }

    /// Whoever `client` is sends for a while after its end, with all of it allowed.
    fn sends_after_its_close(allowed: &[&str], client: impl FnOnce(&Netns) -> Command) {
        let network = Network::new();
        let mut server = Dialogue::start(
            &network.cloud,
            0,
            "import socket, sys\n\
             l = socket.socket()\n\
             l.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)\n\
             l.bind(('169.254.169.254', 80))\n\
             l.listen()\n\
             print('listening')\n\
             s, _ = l.accept()\n\
             sys.stdin.readline()\n\
             total = 0\n\
             while True:\n\
             \x20   data = s.recv(65536)\n\
             \x20   if not data: break\n\
             \x20   total += len(data)\n\
             print(total)\n",
        );
        assert_eq!(server.hear(), "listening");
        // Each packet is judged anew, with none remembered.
        let guard = guard(&network, &[&["--cloud", "aws", "--all"], allowed].concat());
        // Most of it is still in the socket when its process has ended.
        sh(client(&network.machine).args([
            "-c",
            "import socket\n\
             s = socket.create_connection(('169.254.169.254', 80))\n\
             s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400000)\n\
             s.sendall(b'x' * 200000)\n",
        ]));
        server.say();
        assert_eq!(server.hear(), "200000");
        assert_eq!(guard.stop().summary()["denied"], 0);
    }

    #[test]
    fn what_a_socket_sends_after_its_close_still_has_its_user() {
        sends_after_its_close(&["--allow-user", &ALICE.to_string()], |machine| {
            machine.command_as(ALICE, python3())
        });
    }

    #[test]
    fn what_a_socket_sends_after_its_close_still_has_its_cgroup() {
        let root = ebpfkit::kernel::cgroup::mount().expect("cgroup2 is mounted");
        let path = format!("/ebpfkit-closed-{}", std::process::id());
        let at = root.join(&path[1..]);
        std::fs::create_dir(&at).unwrap();
        sends_after_its_close(&["--allow-cgroup", &path], |machine| {
            let mut command = machine.command("sh");
            command.args([
                "-c",
                "echo $$ >\"$1/cgroup.procs\" && shift && exec \"$@\"",
                "sh",
            ]);
            command.arg(&at).arg(python3());
            command
        });
        std::fs::remove_dir(&at).unwrap();
    }

    #[test]
    fn a_group_id_is_not_taken_for_a_user_id() {
        let network = Network::new();
        let bob = BOB.to_string();
        for layers in [["--packets-only"].as_slice(), &[]] {
            let mut args = vec!["tc-guard", "run", "--cloud", "aws", "--allow-user", &bob];
            args.extend(layers);
            let guard = Tool::start(&network.machine, &args);
            let mut command = network.machine.command("setpriv");
            command.args([
                "--reuid",
                &ALICE.to_string(),
                "--regid",
                &bob,
                "--clear-groups",
            ]);
            command.args([
                "--",
                "curl",
                "-sS",
                "--max-time",
                "10",
                "http://169.254.169.254/",
            ]);
            assert!(!command.output().unwrap().status.success());
            let ended = guard.stop();
            assert_eq!(ended.kind("verdict")[0]["uid"], ALICE);
            assert_eq!(ended.summary()["denied"], 1);
        }
    }

    #[test]
    fn a_socket_that_may_reach_one_endpoint_may_not_reach_another() {
        let network = Network::new();
        let file = tempfile::NamedTempFile::new().unwrap();
        let policy = format!(
            "[[rule]]\nendpoints = [\"{IMDS4}:9991/udp\", \"{IMDS4}:9993/udp\"]\nusers = [{ALICE}]\n\
             [[rule]]\nendpoints = [\"{IMDS4}:9992/udp\", \"{IMDS4}:9993/udp\"]\nusers = [{BOB}]\n"
        );
        std::fs::write(file.path(), policy).unwrap();
        let guard = guard(&network, &["--config", file.path().to_str().unwrap()]);
        // One socket, in turns: what it was allowed is remembered, and opens nothing else.
        python(
            &network.machine,
            ALICE,
            "import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             for port in 9991, 9991, 9993, 9993, 9992, 9991, 9992:\n\
             \x20   try: s.sendto(b'x', ('169.254.169.254', port))\n\
             \x20   except OSError: pass\n",
        );
        let ended = guard.stop();
        let summary = ended.summary();
        assert_eq!(summary["denied"], 2);
        assert_eq!(summary["allowed"], 5);
        let events = ended.kind("verdict");
        assert_eq!(events[0]["dst"], "169.254.169.254:9992");
    }

    #[test]
    fn uid_65534_is_a_user_like_any_other() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let guard = guard(&network, &["--cloud", "aws", "--allow-user", "65534"]);
        assert!(
            network
                .curl(65534, &["http://169.254.169.254/"])
                .status
                .success()
        );
        assert!(
            !network
                .curl(ALICE, &["http://169.254.169.254/"])
                .status
                .success()
        );
        guard.stop();
    }

    #[test]
    fn a_denied_packet_is_not_seen_by_a_tap_and_is_reported() {
        let network = Network::new();
        let guard = guard(&network, &["--endpoint", IMDS4, "--deny", "drop"]);
        let seen = python(
            &network.machine,
            0,
            "import socket\n\
             tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))\n\
             tap.bind(('eth0', 0x0003))\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             for to in '169.254.169.254', '10.213.0.1':\n\
             \x20   try: s.sendto(b'mine', (to, 9999))\n\
             \x20   except OSError: pass\n\
             while True:\n\
             \x20   data, who = tap.recvfrom(1000)\n\
             \x20   if data.endswith(b'mine') and who[2] == 4:\n\
             \x20       print(socket.inet_ntoa(data[16:20]))\n\
             \x20       break\n",
        );
        // The second is the first that it sees.
        assert_eq!(seen, "10.213.0.1");
        assert_eq!(guard.stop().summary()["denied"], 1);
    }

    #[test]
    fn a_sender_that_bypasses_the_queues_is_not_seen_as_the_documentation_says() {
        let network = Network::new();
        let guard = guard(&network, &["--cloud", "aws"]);
        let send = |bypass: u8| {
            python(
                &network.machine,
                0,
                &format!(
                    "import socket, struct\n\
                     s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
                     s.setsockopt(263, 20, {bypass})\n\
                     s.bind(('eth0', 0x0800))\n\
                     ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 40, 1, 0, 64, 6, 0,\n\
                     \x20   socket.inet_aton('10.213.0.2'), socket.inet_aton('169.254.169.254'))\n\
                     tcp = struct.pack('!HHIIBBHHH', 40000, 80, 1, 0, 0x50, 2, 1000, 0, 0)\n\
                     s.send(b'\\2\\0\\0\\0\\0\\1' + b'\\2\\0\\0\\0\\0\\2' + b'\\x08\\0' + ip + tcp)\n"
                ),
            );
        };
        // SOL_PACKET, PACKET_QDISC_BYPASS: needs CAP_NET_RAW as any raw frame does.
        send(1);
        send(0);
        assert_eq!(guard.stop().summary()["denied"], 1);
    }

    #[test]
    fn what_is_inside_a_tunnel_is_judged_where_it_enters_it() {
        let network = Network::new();
        let machine = &network.machine;
        machine.ip(&["tuntap", "add", "mode", "tun", "name", "tun0"]);
        machine.ip(&["addr", "add", "10.215.0.1/24", "dev", "tun0"]);
        machine.ip(&["link", "set", "tun0", "up"]);
        machine.ip(&["route", "add", IMDS4, "dev", "tun0"]);
        // A user-space tunnel: what it reads it sends on, encapsulated, to somewhere else.
        let mut tunnel = Dialogue::start(
            machine,
            0,
            "import fcntl, os, socket, struct\n\
             tun = os.open('/dev/net/tun', os.O_RDWR)\n\
             fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', b'tun0', 0x1001))\n\
             print('held')\n\
             out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             while True:\n\
             \x20   packet = os.read(tun, 2000)\n\
             \x20   if packet[0] >> 4 == 4 and packet[9] == 17:\n\
             \x20       out.sendto(packet, ('10.213.0.1', 4789))\n",
        );
        assert_eq!(tunnel.hear(), "held");
        let mut far = Dialogue::start(
            &network.cloud,
            0,
            "import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             s.bind(('10.213.0.1', 4789))\n\
             print('there')\n\
             print(s.recv(2000)[28:].decode())\n",
        );
        assert_eq!(far.hear(), "there");
        let guard = guard(
            &network,
            &[
                "--endpoint",
                &format!("{IMDS4}:80/udp"),
                "--allow-user",
                &BOB.to_string(),
            ],
        );
        let send = |what: &str| {
            format!(
                "import errno, socket\n\
                 s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                 s.settimeout(30)\n\
                 s.connect(('169.254.169.254', 80))\n\
                 s.send(b'{what}')\n\
                 if '{what}' == 'alice':\n\
                 \x20   try: s.recv(1)\n\
                 \x20   except OSError as err: print(errno.errorcode[err.errno])\n"
            )
        };
        // Answered on an interface without Ethernet headers, too.
        assert_eq!(python(machine, ALICE, &send("alice")), "EHOSTUNREACH");
        python(machine, BOB, &send("bob"));
        // And the uplink, where it is a datagram to somebody else, does not look into it.
        assert_eq!(far.hear(), "bob");
        let ended = guard.stop();
        assert_eq!(ended.kind("verdict")[0]["interface"], "tun0");
        assert_eq!(ended.summary()["denied"], 1);
        assert_eq!(ended.summary()["prohibited"], 1);
    }

    /// The machine's own proxies are there: what nobody may reach answers at once, too.
    #[test]
    fn a_denial_on_the_loopback_interface_is_heard_of_at_once() {
        let network = Network::new();
        let bob = BOB.to_string();
        let common = ["-i", "lo", "--allow-user", &bob];
        let endpoints = ["--endpoint", "127.0.0.1:8080", "--endpoint", "[::1]:8080"];
        let guard = guard(&network, &[&common[..], &endpoints[..]].concat());
        let program = "import errno, socket\n\
             for family, address in (socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1'):\n\
             \x20   with socket.socket(family) as s, socket.socket(family) as server:\n\
             \x20       server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
             \x20       server.bind((address, 8080))\n\
             \x20       server.listen()\n\
             \x20       s.settimeout(20)\n\
             \x20       try:\n\
             \x20           s.connect((address, 8080))\n\
             \x20           print('ok')\n\
             \x20       except OSError as err:\n\
             \x20           print(errno.errorcode.get(err.errno, err))\n";
        let said = |uid| python(&network.machine, uid, program);
        assert_eq!(
            said(BOB).split_whitespace().collect::<Vec<_>>(),
            ["ok", "ok"]
        );
        let refused = said(ALICE);
        let refused: Vec<_> = refused.split_whitespace().collect();
        assert_eq!(refused, ["ECONNREFUSED", "ECONNREFUSED"]);
        assert_eq!(guard.stop().summary()["resets"], 2);
    }

    #[test]
    fn a_user_over_the_limit_is_slowed_down_and_another_is_not() {
        let network = Network::new();
        // An hour's worth of patience would not let the eleventh through.
        let guard = guard(
            &network,
            &[
                "--endpoint",
                &format!("{IMDS4}:9999/udp"),
                "--endpoint",
                &format!("{IMDS4}:9998/udp"),
                "--allow-user",
                &format!("{ALICE},{BOB}"),
                "--limit",
                "1/s",
            ],
        );
        let send = "import socket\n\
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
            for _ in range(1000):\n\
            \x20   try: s.sendto(b'x', ('169.254.169.254', 9999))\n\
            \x20   except OSError: pass\n";
        python(&network.machine, ALICE, send);
        // What a user has left at another endpoint is all of it.
        let others = "import socket\n\
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
            for _ in range(5): s.sendto(b'x', ('169.254.169.254', 9998))\n";
        python(&network.machine, ALICE, others);
        let one = "import socket\n\
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
            s.sendto(b'x', ('169.254.169.254', 9999))\n";
        python(&network.machine, BOB, one);
        let ended = guard.stop();
        let summary = ended.summary();
        let (allowed, limited) = (
            summary["allowed"].as_u64().unwrap(),
            summary["limited"].as_u64().unwrap(),
        );
        assert_eq!(allowed + limited, 1006);
        // Ten at once, five at the other endpoint, one of the other user, and one for each second that the loop
        // took.
        assert!((16..200).contains(&allowed), "{allowed}");
        assert_eq!(summary["denied"], limited);
        let events = ended.kind("verdict");
        assert!(
            events
                .iter()
                .all(|event| event["reason"] == "over-limit" && event["uid"] == ALICE)
        );
        // Loss is what slows a sender down, not an error.
        assert_eq!(
            (&summary["prohibited"], &summary["unanswered"]),
            (&0.into(), &0.into())
        );
    }

    #[test]
    fn a_million_denied_packets_cost_few_events_and_no_count() {
        let network = Network::new();
        let guard = guard(&network, &["--endpoint", IMDS4, "--deny", "drop"]);
        // Fewer where each takes a hundred times as long.
        let count: u64 = if std::env::var_os("EBPFKIT_VM").is_some() {
            20_000
        } else {
            1_000_000
        };
        // pktgen is not everywhere; sendmmsg() of a thousand is quick enough.
        let program = format!(
            "import ctypes, os, socket, struct\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             try: s.connect(('169.254.169.254', 9999))\n\
             except OSError: pass\n\
             data = ctypes.create_string_buffer(b'x')\n\
             class Iovec(ctypes.Structure):\n\
             \x20   _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]\n\
             class Msg(ctypes.Structure):\n\
             \x20   _fields_ = [('name', ctypes.c_void_p), ('namelen', ctypes.c_uint),\n\
             \x20       ('iov', ctypes.POINTER(Iovec)), ('iovlen', ctypes.c_size_t),\n\
             \x20       ('control', ctypes.c_void_p), ('controllen', ctypes.c_size_t),\n\
             \x20       ('flags', ctypes.c_int), ('len', ctypes.c_uint)]\n\
             iov = Iovec(ctypes.addressof(data), 1)\n\
             msgs = (Msg * 1000)()\n\
             for m in msgs: m.iov, m.iovlen = ctypes.pointer(iov), 1\n\
             libc = ctypes.CDLL(None)\n\
             left = {count}\n\
             while left:\n\
             \x20   sent = libc.sendmmsg(s.fileno(), msgs, min(left, 1000), 0)\n\
             \x20   left -= max(sent, 0)\n"
        );
        python(&network.machine, ALICE, &program);
        let ended = guard.stop();
        let summary = ended.summary();
        // A packet that TC drops may be reported to its sender as unsent, and is then sent again.
        let denied = summary["denied"].as_u64().unwrap();
        assert!(denied >= count, "{denied}");
        assert_eq!(summary["delivered"], denied);
        assert_eq!(summary["lost"], 0);
        let events = ended.kind("verdict");
        let told: u64 = events
            .iter()
            .filter_map(|event| event["count"].as_u64())
            .sum();
        assert_eq!(told, denied);
        assert!(events.len() < 500, "{}", events.len());
    }
}
