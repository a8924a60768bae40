// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard` and containers: their packets come in on the machine's end of a veth pair with
//! their socket still attached, and cross the machine without it.

mod common;

mod root {
    use std::fs;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::path::PathBuf;
    use std::process::{Command, Output, Stdio};

    use ebpfkit::kernel::cgroup;

    use super::common::{
        ALICE, Background, Ended, IMDS4, IMDS6, MACHINE4, MACHINE6, MetadataService, Netns,
        Network, Tool, ebpfkit_path, python3, read_all, sh, swept,
    };

    const V4: &str = "http://169.254.169.254/latest/meta-data/";
    const V6: &str = "http://[fd00:ec2::254]/latest/meta-data/";
    const CONNECTION_REFUSED: i32 = 7;
    /// The two ends of the container's link.
    const GATEWAY4: &str = "10.214.0.1";
    const GATEWAY6: &str = "fd00:214::1";
    const CONTAINER4: &str = "10.214.0.2";
    const CONTAINER6: &str = "fd00:214::2";

    fn guard(network: &Network, args: &[&str]) -> Tool {
        let mut all = vec!["tc-guard", "run"];
        all.extend(args);
        Tool::start(&network.machine, &all)
    }

    /// Lets the machine forward, and the cloud find back to the container's network.
    fn forwarding(network: &Network) {
        for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            sh(network.machine.command("sysctl").args(["-qw", setting]));
        }
        let (v4, v6) = ("10.214.0.0/24", "fd00:214::/64");
        network.cloud.ip(&["route", "add", v4, "via", MACHINE4]);
        network
            .cloud
            .ip(&["-6", "route", "add", v6, "via", MACHINE6]);
    }

    /// Gives the machine an end of the container's link: addresses and all.
    fn gateway(network: &Network, interface: &str) {
        let machine = &network.machine;
        machine.ip(&["addr", "add", &format!("{GATEWAY4}/24"), "dev", interface]);
        machine.ip(&[
            "addr",
            "add",
            &format!("{GATEWAY6}/64"),
            "dev",
            interface,
            "nodad",
        ]);
        machine.ip(&["link", "set", interface, "up"]);
    }

    fn inside(container: &Netns) {
        container.ip(&["addr", "add", &format!("{CONTAINER4}/24"), "dev", "eth0"]);
        container.ip(&[
            "addr",
            "add",
            &format!("{CONTAINER6}/64"),
            "dev",
            "eth0",
            "nodad",
        ]);
        container.ip(&["link", "set", "eth0", "up"]);
        container.ip(&["route", "add", "default", "via", GATEWAY4]);
        container.ip(&["-6", "route", "add", "default", "via", GATEWAY6]);
    }

    fn veth(network: &Network, container: &Netns) {
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
    }

    /// A container behind a veth pair that the machine routes for.
    fn routed(network: &Network) -> Netns {
        let container = Netns::new();
        veth(network, &container);
        gateway(network, "veth0");
        inside(&container);
        forwarding(network);
        container
    }

    /// Events about a packet, not those that only tell how many more there were.
    fn with_sample(ended: &Ended) -> Vec<serde_json::Value> {
        let events = ended.kind("verdict");
        let told = events.iter().filter(|event| event.get("dst").is_some());
        told.map(|event| (*event).clone()).collect()
    }

    struct Cgroup {
        path: String,
        at: PathBuf,
    }

    impl Cgroup {
        fn new() -> Self {
            let root = cgroup::mount().expect("cgroup2 is mounted");
            let path = format!("/{}", swept("ebpfkit-pod"));
            let at = root.join(&path[1..]);
            fs::create_dir_all(&at).unwrap();
            Self { path, at }
        }

        fn curl(&self, netns: &Netns, url: &str) -> Output {
            let mut command = netns.command("sh");
            command.args(["-c", "echo $$ > \"$1\" && shift && exec \"$@\"", "sh"]);
            command.arg(self.at.join("cgroup.procs"));
            command.args(["curl", "-sS", "--noproxy", "*", "--max-time", "10", url]);
            command.output().expect("curl")
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.at);
        }
    }

    #[test]
    fn a_container_is_judged_as_its_packets_come_in_by_its_cgroup() {
        let network = Network::new();
        let service = MetadataService::start(&network);
        let container = routed(&network);
        let (allowed, other) = (Cgroup::new(), Cgroup::new());
        for url in [V4, V6] {
            assert!(other.curl(&container, url).status.success(), "{url}");
        }
        let guard = guard(
            &network,
            &[
                "--cloud",
                "aws",
                "--allow-user",
                "root",
                "--allow-cgroup",
                &allowed.path,
                "--all",
            ],
        );
        let served = service.requests().len();
        for url in [V4, V6] {
            let refused = other.curl(&container, url);
            assert_eq!(
                refused.status.code(),
                Some(CONNECTION_REFUSED),
                "{refused:?}"
            );
            // On its way out it has no socket, and passes by having been judged.
            let reached = allowed.curl(&container, url);
            assert!(reached.status.success(), "{reached:?}");
        }
        assert_eq!(service.requests().len(), served + 2);
        let ended = guard.stop();
        let events = with_sample(&ended);
        assert!(
            events
                .iter()
                .all(|event| event["direction"] == "ingress" && event["interface"] == "veth0"),
            "{events:?}"
        );
        let denied = events.iter().find(|event| event["verdict"] == "denied");
        let denied = denied.expect("a denial");
        assert_eq!(denied["reason"], "foreign-socket");
        assert_eq!(denied["cgroup"], other.path.as_str());
        // The hook in connect() does not judge containers, but sees them.
        assert_eq!(denied["comm"], "curl");
        let passed = events.iter().find(|event| event["verdict"] == "allowed");
        assert_eq!(passed.expect("a pass")["reason"], "cgroup-allowed");
        assert_eq!(ended.summary()["resets"], 2);
        assert_eq!(ended.summary()["calls"], 0);
    }

    #[test]
    fn a_container_hears_of_its_denial_with_correct_checksums() {
        let network = Network::new();
        let container = routed(&network);
        let mut tcpdump = container.command("tcpdump");
        tcpdump.args([
            "-i",
            "eth0",
            "-vvn",
            "-l",
            "--immediate-mode",
            "-c",
            "4",
            "-Q",
            "in",
        ]);
        tcpdump.arg("src host 169.254.169.254 or src host fd00:ec2::254");
        let mut tcpdump = tcpdump
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump");
        let mut said = String::new();
        let mut listening = BufReader::new(tcpdump.stderr.take().unwrap());
        while !said.contains("listening on") {
            said.clear();
            assert!(listening.read_line(&mut said).unwrap() > 0, "tcpdump ended");
        }
        let guard = guard(&network, &["--endpoint", IMDS4, "--endpoint", IMDS6]);
        let program = "import errno, socket\n\
            def ask(family, kind, address):\n\
            \x20   s = socket.socket(family, kind)\n\
            \x20   s.settimeout(30)\n\
            \x20   try:\n\
            \x20       s.connect((address, 80))\n\
            \x20       s.send(b'x')\n\
            \x20       return s.recv(10).decode()\n\
            \x20   except OSError as err:\n\
            \x20       return errno.errorcode[err.errno]\n\
            for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:\n\
            \x20   print(ask(socket.AF_INET, kind, '169.254.169.254'))\n\
            \x20   print(ask(socket.AF_INET6, kind, 'fd00:ec2::254'))\n";
        let heard = sh(container.command(python3()).args(["-c", program]));
        assert_eq!(
            heard.split_whitespace().collect::<Vec<_>>(),
            ["ECONNREFUSED", "ECONNREFUSED", "EHOSTUNREACH", "EACCES"]
        );
        let printed = String::from_utf8(read_all(tcpdump.stdout.take().unwrap())).unwrap();
        tcpdump.wait().unwrap();
        let ended = guard.stop();
        assert_eq!(printed.matches("Flags [R.]").count(), 2, "{printed}");
        assert_eq!(printed.matches("(correct)").count(), 2, "{printed}");
        assert!(printed.contains("admin prohibited"), "{printed}");
        assert!(printed.contains("[icmp6 sum ok]"), "{printed}");
        assert_eq!(ended.summary()["unanswered"], 0);
    }

    #[test]
    fn a_container_behind_a_bridge_is_judged_at_its_port() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let container = Netns::new();
        veth(&network, &container);
        network
            .machine
            .ip(&["link", "add", "br0", "type", "bridge"]);
        network
            .machine
            .ip(&["link", "set", "veth0", "master", "br0"]);
        network.machine.ip(&["link", "set", "veth0", "up"]);
        gateway(&network, "br0");
        inside(&container);
        forwarding(&network);
        let (allowed, other) = (Cgroup::new(), Cgroup::new());
        let guard = guard(
            &network,
            &["--cloud", "aws", "--allow-cgroup", &allowed.path],
        );
        let refused = other.curl(&container, V4);
        assert_eq!(
            refused.status.code(),
            Some(CONNECTION_REFUSED),
            "{refused:?}"
        );
        let reached = allowed.curl(&container, V4);
        assert!(reached.status.success(), "{reached:?}");
        let ended = guard.stop();
        assert_eq!(ended.kind("verdict")[0]["interface"], "veth0");
    }

    /// Its packets cross the bridge with their socket, or without.
    #[test]
    fn root_of_a_bridged_container_is_not_the_machine_s_where_only_the_uplink_is_guarded() {
        let network = Network::new();
        let container = Netns::new();
        veth(&network, &container);
        let machine = &network.machine;
        machine.ip(&["link", "add", "br0", "type", "bridge"]);
        for port in ["veth0", "eth0"] {
            machine.ip(&["link", "set", port, "master", "br0"]);
        }
        for interface in ["veth0", "br0"] {
            machine.ip(&["link", "set", interface, "up"]);
        }
        container.ip(&["addr", "add", "10.213.0.3/24", "dev", "eth0"]);
        container.ip(&["link", "set", "eth0", "up"]);
        container.ip(&["route", "add", IMDS4, "dev", "eth0"]);
        let _service = MetadataService::start(&network);
        let pod = Cgroup::new();
        assert!(pod.curl(&container, V4).status.success());
        let common = ["-i", "eth0", "--cloud", "aws", "--allow-user", "root"];
        let guard = guard(&network, &common);
        let refused = pod.curl(&container, V4);
        assert_eq!(
            refused.status.code(),
            Some(CONNECTION_REFUSED),
            "{refused:?}"
        );
        let ended = guard.stop();
        let reason = &ended.kind("verdict")[0]["reason"];
        assert!(
            reason == "foreign-socket" || reason == "no-socket",
            "{reason}"
        );
    }

    #[test]
    fn root_of_a_container_is_not_the_machine_s_even_with_the_same_number() {
        let network = Network::new();
        let service = MetadataService::start(&network);
        let container = routed(&network);
        // Root in its own network namespace, and the machine's root by number.
        let guard = guard(&network, &["--cloud", "aws", "--allow-user", "root"]);
        let mut curl = container.command("curl");
        let refused = curl.args(["-sS", "--max-time", "10", V4]).output().unwrap();
        assert_eq!(
            refused.status.code(),
            Some(CONNECTION_REFUSED),
            "{refused:?}"
        );
        assert_eq!(service.requests().len(), 0);
        guard.stop();
    }

    #[test]
    fn root_of_a_rootless_container_is_nobody() {
        let network = Network::new();
        let service = MetadataService::start(&network);
        // An ordinary user's own user and network namespace, where it has uid 0.
        let id = ALICE.to_string();
        let mut holder = Command::new("setpriv");
        holder.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]);
        holder.args(["unshare", "--user", "--map-root-user", "--net", "sh", "-c"]);
        holder.arg(format!(
            "id -u; read line
             ip addr add {CONTAINER4}/24 dev pod0
             ip link set pod0 up
             ip route add default via {GATEWAY4}
             while read line; do
                 curl -sS --noproxy '*' --max-time 10 {V4} >/dev/null
                 echo $?
             done"
        ));
        let holder = holder
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut holder = Background(holder);
        let pid = holder.0.id().to_string();
        let mut out = BufReader::new(holder.0.stdout.take().unwrap());
        let mut say = |input: Option<&str>| {
            if let Some(input) = input {
                let stdin = holder.0.stdin.as_mut().unwrap();
                stdin.write_all(input.as_bytes()).unwrap();
            }
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            line.trim().to_owned()
        };
        assert_eq!(say(None), "0", "user namespaces can be made");
        network.machine.ip(&[
            "link", "add", "veth0", "type", "veth", "peer", "name", "pod0",
        ]);
        network.machine.ip(&["link", "set", "pod0", "netns", &pid]);
        gateway(&network, "veth0");
        forwarding(&network);
        let guard = guard(&network, &["--cloud", "aws", "--allow-user", "root"]);
        assert_eq!(say(Some("set up\ntry\n")), CONNECTION_REFUSED.to_string());
        let ended = guard.stop();
        assert_eq!(ended.kind("verdict")[0]["reason"], "foreign-socket");
        assert_eq!(service.requests().len(), 0);
        // It was the guard that stopped it.
        assert_eq!(say(Some("try\n")), "0");
    }

    /// Within one, user 1234 may be who is 0 there.
    #[test]
    fn users_are_not_named_in_a_network_that_a_user_namespace_owns() {
        let mut holder = Command::new("unshare");
        holder.args(["--user", "--map-root-user", "--net", "sh", "-c"]);
        let holder = holder.arg("echo; read line").stdin(Stdio::piped());
        let mut holder = Background(holder.stdout(Stdio::piped()).spawn().expect("unshare"));
        let mut out = BufReader::new(holder.0.stdout.take().unwrap());
        out.read_line(&mut String::new()).unwrap();
        let pid = holder.0.id().to_string();
        let run = |subject: &[&str]| {
            let mut command = Command::new("nsenter");
            command.args(["-t", &pid, "-n"]).arg(ebpfkit_path());
            command.args(["-o", "json"]);
            command.args(["tc-guard", "run", "--packets-only", "--cloud", "aws"]);
            command.args(subject);
            command
        };
        let pod = Cgroup::new();
        for subject in [["--allow-user", "root"], ["--allow-user", "1234"]] {
            let refused = run(&subject).output().unwrap();
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(said.contains("belongs to a user namespace"), "{said}");
            assert_eq!(refused.status.code(), Some(3), "{said}");
        }
        Tool::run(run(&["--allow-cgroup", &pod.path])).stop();
    }

    #[test]
    fn an_audited_container_passes_and_is_told_of_once_a_packet() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let container = routed(&network);
        let pod = Cgroup::new();
        let guard = guard(&network, &["--cloud", "aws", "--audit"]);
        assert!(pod.curl(&container, V4).status.success());
        let ended = guard.stop();
        let events = with_sample(&ended);
        // Not a second time where it leaves.
        assert!(
            events.iter().all(|event| event["direction"] == "ingress"),
            "{events:?}"
        );
        assert!(ended.summary()["would_deny"].as_u64().unwrap() >= 4);
    }
    /// Ten packets are what a limit of one a second lets through at once.
    #[test]
    fn a_container_s_cgroups_below_the_named_one_share_its_limit() {
        let network = Network::new();
        let container = routed(&network);
        let pod = Cgroup::new();
        for below in ["a", "b"] {
            fs::create_dir(pod.at.join(below)).unwrap();
        }
        let limit = ["--limit", "1/s", "--allow-cgroup", &pod.path];
        let endpoint = format!("{IMDS4}:9999/udp");
        let guard = guard(
            &network,
            &[&limit[..], &["--endpoint", &endpoint, "--packets-only"]].concat(),
        );
        // A socket of each, before any packet: the two send one after the other, in no time.
        let program = "import os, socket, sys\n\
            all = []\n\
            for below in 'a', 'b':\n\
            \x20   open(sys.argv[1] + '/' + below + '/cgroup.procs', 'w').write(str(os.getpid()))\n\
            \x20   all.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))\n\
            for s in all:\n\
            \x20   for _ in range(500): s.sendto(b'x', ('169.254.169.254', 9999))\n";
        sh(container
            .command(python3())
            .args(["-c", program])
            .arg(&pod.at));
        // They come in on their own.
        guard.wait_for("limited packets", |event| event["reason"] == "over-limit");
        let served = |summary: &serde_json::Value| {
            let of = |name: &str| summary[name].as_u64().unwrap();
            (of("allowed"), of("limited"), of("denied"))
        };
        let (allowed, limited, denied) = served(guard.stop().summary());
        for below in ["a", "b"] {
            let _ = fs::remove_dir(pod.at.join(below));
        }
        assert_eq!(limited, denied);
        // Twenty and more if each had a limit of its own.
        assert!(
            (10..19).contains(&allowed) && limited > 0,
            "{allowed} and {limited}"
        );
    }
}
