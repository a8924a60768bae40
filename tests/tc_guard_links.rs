// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard` at interfaces of other kinds than a plain Ethernet device: bridges and their ports,
//! VLANs, tunnels; and where packets pass more than one of them.

mod common;

mod root {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Child, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use ebpfkit::kernel::tc::Side;
    use ebpfkit::kernel::{hooks, interfaces};
    use ebpfkit::skel::guard_gate::types::bss;
    use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

    use super::common::classifier::{Attached, instruction};
    use super::common::tc_guard::{check, finding, start, status, stop};
    use super::common::{
        ALICE, BOB, Background, Bpffs, CLOUD4, CLOUD6, IMDS4, IMDS6, MACHINE4, MACHINE6, Netns,
        Network, PATIENCE, Tool, packets, python3, sh,
    };

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

    /// A python program of root's, and the lines that it prints; it may wait for some.
    struct Listener {
        out: BufReader<std::process::ChildStdout>,
        child: Background,
    }

    impl Listener {
        fn start(netns: &Netns, program: &str) -> Self {
            let mut command = netns.command(python3());
            // What does not come ends it, so that nobody waits forever.
            let program = format!(
                "import signal\nsignal.alarm({})\n{program}",
                PATIENCE.as_secs()
            );
            command.args(["-u", "-c", &program]).stdin(Stdio::piped());
            let mut child: Child = command.stdout(Stdio::piped()).spawn().expect("python3");
            let out = BufReader::new(child.stdout.take().unwrap());
            let mut listener = Self {
                out,
                child: Background(child),
            };
            assert_eq!(listener.hear(), "listening");
            listener
        }

        fn hear(&mut self) -> String {
            let mut line = String::new();
            self.out.read_line(&mut line).unwrap();
            line.trim().to_owned()
        }

        fn say(&mut self) {
            let stdin = self.child.0.stdin.as_mut().unwrap();
            stdin.write_all(b"go\n").unwrap();
        }
    }

    /// Sends datagrams to port 9999 from one socket.
    fn send(to: &str, count: u32) -> String {
        format!(
            "import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             for _ in range({count}):\n\
             \x20   try: s.sendto(b'x', ('{to}', 9999))\n\
             \x20   except OSError: pass\n"
        )
    }

    /// A classifier that lets everything pass, with this tc_index if it is not 0.
    fn marking(tc_index: u16) -> Vec<u64> {
        let set = [
            // r2 = tc_index; *(u32 *)(r1 + 44) = r2: tc_index of struct __sk_buff
            instruction(0xb7, 2, 0, tc_index.into()),
            instruction(0x63, 0x21, 44, 0),
        ];
        // r0 = TC_ACT_UNSPEC; exit
        let pass = [instruction(0xb7, 0, 0, -1), instruction(0x95, 0, 0, 0)];
        if tc_index == 0 {
            pass.to_vec()
        } else {
            [set, pass].concat()
        }
    }

    fn attached(netns: &Netns, interface: &str, side: Side, tc_index: u16) -> Attached {
        Attached::at(c"somebody_s", marking(tc_index), netns, interface, side)
    }

    /// Ten packets are what a limit of one a second lets through at once.
    #[test]
    fn what_passes_two_guarded_interfaces_is_counted_and_limited_once() {
        let network = Network::new();
        let machine = &network.machine;
        let mut ways = vec!["br0"];
        machine.ip(&["link", "add", "br0", "type", "bridge"]);
        machine.ip(&["addr", "flush", "dev", "eth0"]);
        machine.ip(&["link", "set", "eth0", "master", "br0"]);
        // The other end takes no tags: what leaves is what counts here.
        if machine.made("eth0.5", "link eth0 type vlan id 5") {
            ways.push("eth0.5");
        }
        for (number, way) in ways.iter().enumerate() {
            let address = format!("10.21{}.0.7/24", 6 + number);
            machine.ip(&["addr", "add", &address, "dev", way]);
            machine.ip(&["link", "set", way, "up"]);
        }
        let endpoint = format!("{IMDS4}:9999/udp");
        let bob = BOB.to_string();
        for way in ways {
            machine.ip(&["route", "replace", IMDS4, "dev", way]);
            let neighbour = ["neigh", "replace", IMDS4, "lladdr", "02:00:00:00:00:01"];
            machine.ip(&[&neighbour[..], &["dev", way, "nud", "permanent"]].concat());
            for limit in [&["--limit", "1/s"][..], &[]] {
                let common = ["--endpoint", endpoint.as_str(), "--allow-user", &bob];
                let guard = guard(&network, &[&common[..], limit].concat());
                python(machine, BOB, &send(IMDS4, 10));
                let summary = guard.stop().summary().clone();
                let counted = (&summary["allowed"], &summary["limited"], &summary["denied"]);
                assert_eq!(counted, (&10.into(), &0.into(), &0.into()), "{way}");
            }
            let guard = guard(&network, &["--endpoint", &endpoint, "--audit"]);
            python(machine, BOB, &send(IMDS4, 10));
            let ended = guard.stop();
            assert_eq!(ended.summary()["would_deny"], 10, "{way}");
            assert_eq!(ended.kind("verdict")[0]["interface"], way);
        }
    }

    /// What has been judged as it came in passes where it leaves, by a mark: not by one that it had before.
    #[test]
    fn a_mark_that_a_packet_brings_along_says_nothing() {
        let network = Network::new();
        let machine = &network.machine;
        let bpffs = Bpffs::new();
        let container = Netns::new();
        machine.ip(&[
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
        // Concerns nobody as it comes in, as the endpoint is inside.
        let vxlan = "type vxlan id 9 dstport 4789 remote";
        for (netns, link, own, other) in [(machine, "veth0", 1, 2), (&container, "eth0", 2, 1)] {
            netns.ip(&["addr", "add", &format!("10.214.0.{own}/24"), "dev", link]);
            netns.ip(&["link", "set", link, "up"]);
            let remote = format!("{vxlan} 10.214.0.{other} dev {link}");
            assert!(netns.made("vx0", &remote));
            netns.ip(&["addr", "add", &format!("10.217.0.{own}/24"), "dev", "vx0"]);
            netns.ip(&["link", "set", "vx0", "up"]);
        }
        container.ip(&["route", "add", CLOUD4, "via", "10.217.0.1"]);
        let mut sysctl = machine.command("sysctl");
        sh(sysctl.args(["-qw", "net.ipv4.ip_forward=1"]));
        // Nor is anything lost for its source.
        let back = ["route", "add", "10.216.0.0/13", "via", MACHINE4];
        network.cloud.ip(&back);
        let mut far = Listener::start(
            &network.cloud,
            &format!(
                "import socket\n\
                 s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                 s.bind(('{CLOUD4}', 9999))\n\
                 print('listening')\n\
                 print(s.recvfrom(100)[1][0])\n"
            ),
        );
        let endpoint = format!("{CLOUD4}:9999/udp");
        let guard = start(&network, &bpffs, &["--pin", "--endpoint", &endpoint]);
        let denied = |count: u64| {
            python(&container, 0, &send(CLOUD4, 1));
            let began = Instant::now();
            while status(&network, &bpffs)["counters"]["denied"] != count {
                assert!(began.elapsed() < PATIENCE, "{}", status(&network, &bpffs));
                thread::sleep(Duration::from_millis(5));
            }
        };
        denied(1);

        let mut shelves = std::fs::read_dir(bpffs.path().join("ebpfkit")).unwrap();
        let state = shelves.next().unwrap().unwrap().path().join("state");
        let state = MapHandle::from_pinned_path(state).unwrap();
        let state = state.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).unwrap();
        let at = std::mem::offset_of!(bss, judged);
        let mark = u16::from_ne_bytes(state.unwrap()[at..at + 2].try_into().unwrap());
        assert_ne!(mark, 0);
        let brought = attached(&container, "eth0", Side::Egress, mark);
        denied(2);
        drop(brought);
        // It is the right one: the machine's own root may set it, past the side where it is taken off.
        let set = attached(machine, "vx0", Side::Ingress, mark);
        python(&container, 0, &send(CLOUD4, 1));
        assert_eq!(far.hear(), "10.217.0.2");
        drop(set);
        guard.stop();
        assert_eq!(status(&network, &bpffs)["counters"]["denied"], 2);
        stop(&network, &bpffs);
    }

    /// What is at a hook of the machine's interface, first to last.
    fn hooked(network: &Network, side: Side) -> Vec<(String, Option<u32>)> {
        let there = network.machine.enter(move || {
            let at = interfaces::chosen(&["eth0".to_owned()]).unwrap().remove(0);
            hooks::at(at.index, side).unwrap()
        });
        let named = |at: hooks::Attached| (at.name.unwrap_or_default(), at.program);
        there.join().unwrap().into_iter().map(named).collect()
    }

    #[test]
    fn programs_of_others_stay_before_and_after() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        let _first = attached(&network.machine, "eth0", Side::Egress, 0);
        let alone = hooked(&network, Side::Egress);
        assert_eq!(alone.len(), 1, "{alone:?}");
        start(&network, &bpffs, &["--pin"]).stop();
        let _second = attached(&network.machine, "eth0", Side::Egress, 0);
        let all = hooked(&network, Side::Egress);
        let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
        // A filter is named as tc names it: with its number behind a colon.
        let named = |at: &str| at.split(':').next().unwrap_or_default().to_owned();
        let order: Vec<_> = names.iter().copied().map(named).collect();
        assert_eq!(order, ["somebody_s", "gate_egress_eth", "somebody_s"]);
        stop(&network, &bpffs);
        // The kernel may take off what nobody holds any more a moment later.
        let began = Instant::now();
        while hooked(&network, Side::Egress).len() > 2 {
            assert!(
                began.elapsed() < PATIENCE,
                "{:?}",
                hooked(&network, Side::Egress)
            );
        }
        assert_eq!(
            hooked(&network, Side::Egress),
            [all[0].clone(), alone[0].clone()]
        );
    }

    #[test]
    fn a_program_that_was_put_ahead_is_named_by_status_and_check() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        start(&network, &bpffs, &["--pin"]).stop();
        // The kernel may take off what nobody holds any more a moment later.
        let nothing_is_ahead = || {
            let began = Instant::now();
            while !status(&network, &bpffs)["interfaces"][0]["ahead"].is_null() {
                assert!(began.elapsed() < PATIENCE, "{}", status(&network, &bpffs));
            }
        };
        nothing_is_ahead();
        for (side, named) in [(Side::Egress, "egress"), (Side::Ingress, "ingress")] {
            let ahead = attached(&network.machine, "eth0", side, 0);
            let shown = status(&network, &bpffs);
            let said = shown["interfaces"][0]["ahead"].as_array().unwrap();
            assert_eq!(said.len(), 1, "{shown}");
            let said = said[0].as_str().unwrap();
            assert!(
                said.contains("somebody_s") && said.ends_with(named),
                "{said}"
            );
            let (findings, _) = check(&network, &bpffs);
            let gap = finding(&findings, "order", "somebody_s");
            assert_eq!(gap["state"], "gap", "{gap}");
            drop(ahead);
            nothing_is_ahead();
        }
        stop(&network, &bpffs);
    }

    #[test]
    fn a_program_that_is_called_as_a_gate_is_none() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        let guard = start(&network, &bpffs, &[]);
        let ahead = Attached::at(
            c"gate_egress_x",
            marking(0),
            &network.machine,
            "eth0",
            Side::Egress,
        );
        let (findings, _) = check(&network, &bpffs);
        let gap = finding(&findings, "order", "gate_egress_x");
        assert_eq!(gap["state"], "gap", "{gap}");
        drop(ahead);
        guard.stop();
    }

    /// Sends a datagram as whoever runs it, and prints how the guard's answer is heard.
    fn ask(to: &str, port: usize, what: &str) -> String {
        let family = if to.contains(':') {
            "AF_INET6"
        } else {
            "AF_INET"
        };
        // Where silence is an answer, it is not waited for that long.
        let patience = if what == "alice-gre61" { 3 } else { 30 };
        format!(
            "import errno, socket\n\
             s = socket.socket(socket.{family}, socket.SOCK_DGRAM)\n\
             s.settimeout({patience})\n\
             s.connect(('{to}', {port}))\n\
             s.send(b'{what}')\n\
             if '{what}'.startswith('alice'):\n\
             \x20   try: s.recv(1)\n\
             \x20   except TimeoutError: print('silence')\n\
             \x20   except OSError as err: print(errno.errorcode[err.errno])\n"
        )
    }

    /// Tunnels by name, kind, and what goes through them.
    fn tunnels() -> Vec<(&'static str, String, &'static str)> {
        let v4 = format!("local {MACHINE4} remote {CLOUD4}");
        let v6 = format!("local {MACHINE6} remote {CLOUD6}");
        vec![
            ("ipip1", format!("type ipip {v4}"), IMDS4),
            ("gre1", format!("type gre {v4}"), IMDS4),
            ("gretap1", format!("type gretap {v4}"), IMDS4),
            ("sit1", format!("type sit {v4}"), IMDS6),
            ("tnl61", format!("type ip6tnl mode any {v6}"), IMDS4),
            ("gre61", format!("type ip6gre {v6}"), IMDS6),
            ("gretap61", format!("type ip6gretap {v6}"), IMDS4),
            (
                "vxlan1",
                format!("type vxlan id 7 dstport 4789 {v4}"),
                IMDS4,
            ),
            (
                "geneve1",
                format!("type geneve id 7 remote {CLOUD4}"),
                IMDS6,
            ),
            // Without a peer: what is judged has not come so far.
            ("wg1", "type wireguard".to_owned(), IMDS4),
        ]
    }

    #[test]
    fn a_packet_is_judged_where_it_enters_a_tunnel_of_any_kind() {
        let network = Network::new();
        let machine = &network.machine;
        let mut there = Vec::new();
        for (number, (name, kind, to)) in tunnels().into_iter().enumerate() {
            if !machine.made(name, &kind) {
                continue;
            }
            machine.ip(&["link", "set", name, "up"]);
            let own = format!("10.215.{number}.1/24");
            machine.ip(&["addr", "add", &own, "dev", name]);
            let own = format!("fd00:215:{number}::1/64");
            machine.ip(&["-6", "addr", "add", &own, "dev", name, "nodad"]);
            // An endpoint of its own each, so that each is told of at once.
            there.push((name, to, 9000 + number));
        }
        assert!(
            there.iter().any(|(name, ..)| *name == "vxlan1"),
            "{there:?}"
        );
        // What leaves is for the tunnel's end, and has the datagram inside.
        let mut far = Listener::start(
            &network.cloud,
            "import re, socket\n\
             s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))\n\
             s.bind(('eth0', 3))\n\
             print('listening')\n\
             while True:\n\
             \x20   data, who = s.recvfrom(2000)\n\
             \x20   found = re.search(rb'(alice|bob)-[a-z0-9]+', data)\n\
             \x20   if found and who[2] != 4: print(found[0].decode())\n",
        );
        let bob = BOB.to_string();
        let endpoint = |(_, to, port): &(&str, &str, usize)| match to.contains(':') {
            true => format!("[{to}]:{port}/udp"),
            false => format!("{to}:{port}/udp"),
        };
        let endpoints: Vec<_> = there.iter().map(endpoint).collect();
        let mut args = vec!["--allow-user", &bob];
        args.extend(endpoints.iter().flat_map(|at| ["--endpoint", at]));
        let guard = guard(&network, &args);
        for (name, to, port) in &there {
            let v6 = to.contains(':');
            let version = if v6 { "-6" } else { "-4" };
            machine.ip(&[version, "route", "replace", to, "dev", name]);
            let ethernet = ["vxlan1", "geneve1", "gretap1", "gretap61"].contains(name);
            if ethernet {
                let neighbour = ["neigh", "replace", to, "lladdr", "02:00:00:00:00:01"];
                machine.ip(&[&neighbour[..], &["dev", name, "nud", "permanent"]].concat());
            }
            let heard = python(machine, ALICE, &ask(to, *port, &format!("alice-{name}")));
            // A kernel may take ip6gre for an Ethernet device, and drop what is redirected to it.
            if *name != "gre61" || heard != "silence" {
                assert_eq!(heard, if v6 { "EACCES" } else { "EHOSTUNREACH" }, "{name}");
            }
            if *name != "wg1" {
                python(machine, BOB, &ask(to, *port, &format!("bob-{name}")));
                assert_eq!(far.hear(), format!("bob-{name}"));
            }
        }
        let ended = guard.stop();
        let mut denied: Vec<_> = ended
            .kind("verdict")
            .iter()
            .filter(|event| event.get("dst").is_some())
            .map(|event| event["interface"].as_str().unwrap().to_owned())
            .collect();
        denied.dedup();
        let names: Vec<_> = there.iter().map(|(name, ..)| *name).collect();
        assert_eq!(denied, names, "{ended:?}");
        assert_eq!(ended.summary()["denied"], there.len());
    }

    #[test]
    fn what_comes_out_of_a_tunnel_has_no_identity_and_is_kept_back() {
        let network = Network::new();
        for (netns, number, remote) in
            [(&network.machine, 1, CLOUD4), (&network.cloud, 2, MACHINE4)]
        {
            let kind = format!("type vxlan id 7 dstport 4789 dev eth0 remote {remote}");
            assert!(netns.made("vx0", &kind));
            let own = format!("10.217.0.{number}/24");
            netns.ip(&["addr", "add", &own, "dev", "vx0"]);
            netns.ip(&["link", "set", "vx0", "up"]);
        }
        let mut sysctl = network.machine.command("sysctl");
        sh(sysctl.args(["-qw", "net.ipv4.ip_forward=1"]));
        let far = "198.51.100.9";
        network
            .cloud
            .ip(&["route", "add", far, "via", "10.217.0.1"]);
        let endpoint = format!("{far}:9999/udp");
        let guard = guard(&network, &["--endpoint", &endpoint, "--allow-user", "root"]);
        python(&network.cloud, 0, &send(far, 1));
        let denial = guard.wait_for("denial", |event| event["verdict"] == "denied");
        assert_eq!(denial["reason"], "no-socket", "{denial}");
        assert_eq!(denial["interface"], "eth0", "{denial}");
        guard.stop();
    }

    /// A virtual machine's packets come in with the socket of whoever opened its tap, who may be root.
    #[test]
    fn a_virtual_machine_has_no_identity_bridged_or_routed() {
        let network = Network::new();
        let machine = &network.machine;
        let bpffs = Bpffs::new();
        machine.ip(&["link", "add", "br0", "type", "bridge"]);
        machine.ip(&["link", "set", "br0", "up"]);
        for name in ["tap0", "tap1"] {
            machine.ip(&["tuntap", "add", "mode", "tap", "name", name]);
            machine.ip(&["link", "set", name, "up"]);
        }
        machine.ip(&["link", "set", "tap0", "master", "br0"]);
        machine.ip(&["link", "set", "eth0", "master", "br0"]);
        let mut sysctl = machine.command("sysctl");
        sh(sysctl.args(["-qw", "net.ipv4.ip_forward=1"]));
        // Nor is anything lost for its source.
        let back = ["route", "add", "10.216.0.0/13", "via", MACHINE4];
        network.cloud.ip(&back);
        let of = |netns: &Netns, name: &str| {
            let shown = netns.ip(&["-o", "link", "show", name]);
            let after = shown.split("link/ether ").nth(1).unwrap();
            after.split(' ').next().unwrap().to_owned()
        };
        // A datagram to port 9999, and to one that nobody guards; by a bridge and by a router.
        let virtual_machine = |tap: &str, to: &str| {
            let program = format!(
                "{}import fcntl, os\n\
                 tap = os.open('/dev/net/tun', os.O_RDWR)\n\
                 fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', b'{tap}', 0x1002))\n\
                 to = bytes.fromhex('{to}'.replace(':', ''))\n\
                 print('listening')\n\
                 input()\n\
                 for port in 9999, 9998:\n\
                 \x20   os.write(tap, frame(to, port, b'{tap}'))\n\
                 input()\n",
                packets()
            );
            Listener::start(machine, &program)
        };
        let mut far = Listener::start(
            &network.cloud,
            &format!(
                "import select, socket\n\
                 all = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]\n\
                 for s, port in zip(all, (9999, 9998)): s.bind(('{CLOUD4}', port))\n\
                 print('listening')\n\
                 while True:\n\
                 \x20   for s in select.select(all, [], [])[0]:\n\
                 \x20       print(s.recv(10).decode(), s.getsockname()[1])\n"
            ),
        );
        let endpoint = format!("{CLOUD4}:9999/udp");
        let args = ["--pin", "--endpoint", &endpoint, "--allow-user", "root"];
        let guard = start(&network, &bpffs, &args);
        // Its egress, where the machine sends to it; what it sends is judged where it leaves the machine.
        let shown = status(&network, &bpffs);
        let all = shown["interfaces"].as_array().unwrap();
        for tap in all
            .iter()
            .filter(|at| at["name"].as_str().unwrap().starts_with("tap"))
        {
            assert_eq!(
                (&tap["guarded"], &tap["whole"]),
                (&serde_json::json!(["egress"]), &true.into())
            );
        }
        let cloud = of(&network.cloud, "eth0");
        let mut bridged = virtual_machine("tap0", &cloud);
        let began = Instant::now();
        for port in ["tap0", "eth0"] {
            while !machine
                .ip(&["-d", "link", "show", port])
                .contains("state forwarding")
            {
                assert!(began.elapsed() < PATIENCE, "{port} is not forwarding");
            }
        }
        bridged.say();
        assert_eq!(far.hear(), "tap0 9998");

        machine.ip(&["link", "set", "eth0", "nomaster"]);
        let mut routed = virtual_machine("tap1", &of(machine, "tap1"));
        routed.say();
        assert_eq!(far.hear(), "tap1 9998");
        let ended = guard.stop();
        for event in ended.kind("verdict") {
            assert_eq!(event["reason"], "no-socket", "{event}");
            // None where only the count is told.
            assert!(
                event["interface"].is_null() || event["interface"] == "eth0",
                "{event}"
            );
        }
        assert_eq!(ended.summary()["denied"], 2);
        stop(&network, &bpffs);
    }
}
