// SPDX-License-Identifier: BSD-2-Clause

//! The layer of `ebpfkit tc-guard` in connect() and sendmsg(), and the subjects that are told apart
//! there: groups and cgroups.

mod common;

mod root {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use ebpfkit::kernel::cgroup;
    use ebpfkit::tools::tc_guard::plan::Plan;
    use ebpfkit::tools::tc_guard::{Guard, config};

    use super::common::cgroups::Cgroups;
    use super::common::{
        ALICE, BOB, Ended, IMDS4, IMDS6, MetadataService, Network, Tool, ebpfkit_path, python3, sh,
    };

    const V4: &str = "http://169.254.169.254/latest/meta-data/";
    /// A group without a name.
    const OPERATORS: u32 = 54400;

    fn guard(network: &Network, args: &[&str]) -> Tool {
        let mut all = vec!["tc-guard", "run"];
        all.extend(args);
        Tool::start(&network.machine, &all)
    }

    /// Connects or sends, and prints the error's name or `ok`.
    fn attempt(how: &str, family: &str, address: &str) -> String {
        let (kind, call) = match how {
            "connect" => ("STREAM", "s.connect(to)"),
            "sendto" => ("DGRAM", "s.sendto(b'x', to)"),
            "udp-connect" => ("DGRAM", "s.connect(to)"),
            other => panic!("{other}"),
        };
        format!(
            "import errno, socket\n\
             s = socket.socket(socket.{family}, socket.SOCK_{kind})\n\
             s.settimeout(10)\n\
             to = ('{address}', 80)\n\
             try:\n\
             \x20   {call}\n\
             \x20   print('ok')\n\
             except OSError as err:\n\
             \x20   print(errno.errorcode.get(err.errno, err))\n"
        )
    }

    fn python(mut command: Command, program: &str) -> String {
        sh(command.args(["-c", program])).trim().to_owned()
    }

    fn as_user(network: &Network, uid: u32, program: &str) -> String {
        python(network.machine.command_as(uid, python3()), program)
    }

    fn denials(ended: &Ended) -> Vec<serde_json::Value> {
        let events = ended.kind("verdict");
        let denied = events.iter().filter(|event| event["verdict"] == "denied");
        denied.map(|event| (*event).clone()).collect()
    }

    #[test]
    fn a_refused_caller_gets_eperm_and_is_named() {
        let network = Network::new();
        let service = MetadataService::start(&network);
        let guard = guard(&network, &["--cloud", "aws", "--allow-user", "root"]);
        assert_eq!(
            guard.events()[0]["layers"],
            serde_json::json!(["tc", "connect"])
        );
        for (family, address) in [
            ("AF_INET", IMDS4),
            ("AF_INET6", IMDS6),
            // Goes to connect6, and would leave as IPv4.
            ("AF_INET6", "::ffff:169.254.169.254"),
        ] {
            let attempt = attempt("connect", family, address);
            assert_eq!(as_user(&network, ALICE, &attempt), "EPERM", "{address}");
            assert_eq!(as_user(&network, 0, &attempt), "ok", "{address}");
        }
        let ended = guard.stop();
        assert_eq!(service.requests().len(), 0);
        let events = denials(&ended);
        let counts = events.iter().filter_map(|event| event["count"].as_u64());
        assert_eq!(counts.sum::<u64>(), 3, "{events:?}");
        let event = &events[0];
        assert_eq!(event["layer"], "connect");
        assert_eq!(event["reason"], "user-not-allowed");
        assert_eq!(
            (&event["uid"], &event["gid"]),
            (&ALICE.into(), &ALICE.into())
        );
        assert_eq!(
            event["comm"],
            Path::new(python3()).file_name().unwrap().to_str().unwrap()
        );
        assert!(event["pid"].as_u64().unwrap() > 0);
        assert_eq!(event["dst"], "169.254.169.254:80");
        assert!(event.get("src").is_none() && event.get("interface").is_none());
        let summary = ended.summary();
        assert_eq!(
            (&summary["denied"], &summary["calls"]),
            (&3.into(), &3.into())
        );
        // No packet was there to be answered.
        assert_eq!(summary["resets"], 0);
        assert_eq!(summary["lost"], 0);
    }

    #[test]
    fn the_executable_is_the_one_that_called_and_not_what_runs_by_then() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let python = fs::canonicalize(python3()).unwrap();
        // Is something else, and then gone, before anybody can look.
        let program = "import os, socket\n\
             s = socket.socket()\n\
             s.connect_ex(('169.254.169.254', 80))\n\
             os.execvp('true', ['true'])\n";
        for (mode, layer, verdict) in [
            (None, "connect", "denied"),
            (Some("--audit"), "tc", "would-deny"),
        ] {
            let mut args = vec!["--cloud", "aws"];
            args.extend(mode);
            let guard = guard(&network, &args);
            as_user(&network, ALICE, program);
            let ended = guard.stop();
            let events = ended.kind("verdict");
            let named = events.iter().find(|event| event.get("pid").is_some());
            let named = named.unwrap_or_else(|| panic!("{events:?}"));
            assert_eq!(
                (&named["layer"], &named["verdict"]),
                (&layer.into(), &verdict.into())
            );
            assert_eq!(named["exe"], python.to_str().unwrap(), "{named}");
        }
        // One that is in no folder has no path, and what it runs later does not give it one.
        let nowhere = format!(
            "import os\n\
             file = os.memfd_create('nowhere', 0)\n\
             os.write(file, open({python:?}, 'rb').read())\n\
             os.execv(f'/proc/self/fd/{{file}}', ['python3', '-c', {program:?}])\n"
        );
        let guard = guard(&network, &["--cloud", "aws"]);
        let mut command = network.machine.command_as(ALICE, python3());
        sh(command.args(["-c", &nowhere]));
        let ended = guard.stop();
        let events = ended.kind("verdict");
        assert!(
            events.iter().any(|event| event.get("pid").is_some()),
            "{events:?}"
        );
        assert!(
            events.iter().all(|event| event.get("exe").is_none()),
            "{events:?}"
        );
    }

    #[test]
    fn datagrams_are_refused_whether_connected_or_not() {
        let network = Network::new();
        let endpoints = [format!("{IMDS4}:80/udp"), format!("[{IMDS6}]:80/udp")];
        let guard = guard(
            &network,
            &["--endpoint", &endpoints[0], "--endpoint", &endpoints[1]],
        );
        for how in ["sendto", "udp-connect"] {
            for (family, address) in [
                ("AF_INET", IMDS4),
                ("AF_INET6", IMDS6),
                ("AF_INET6", "::ffff:169.254.169.254"),
            ] {
                let tried = as_user(&network, ALICE, &attempt(how, family, address));
                assert_eq!(tried, "EPERM", "{how} {address}");
            }
        }
        let ended = guard.stop();
        assert_eq!(ended.summary()["calls"], 6);
        assert_eq!(denials(&ended)[0]["protocol"], "udp");
    }

    #[test]
    fn other_ports_and_addresses_are_not_refused() {
        let network = Network::new();
        let _service = MetadataService::on(&network.cloud, &[(IMDS4, 53), ("10.213.0.1", 80)]);
        let guard = guard(&network, &["--cloud", "aws"]);
        for url in ["http://169.254.169.254:53/", "http://10.213.0.1/"] {
            assert!(network.curl(ALICE, &[url]).status.success(), "{url}");
        }
        assert_eq!(guard.stop().summary()["seen"], 0);
    }

    #[test]
    fn an_allowed_user_s_socket_does_not_let_another_caller_through() {
        let network = Network::new();
        let service = MetadataService::start(&network);
        let guard = guard(&network, &["--cloud", "aws", "--allow-user", "root"]);
        let program = format!(
            "import errno, os, socket\n\
             s = socket.socket()\n\
             os.setuid({ALICE})\n\
             try:\n\
             \x20   s.connect(('169.254.169.254', 80))\n\
             \x20   print('connected')\n\
             except OSError as err:\n\
             \x20   print(errno.errorcode[err.errno])\n"
        );
        assert_eq!(as_user(&network, 0, &program), "EPERM");
        let ended = guard.stop();
        assert_eq!(denials(&ended)[0]["uid"], ALICE);
        assert_eq!(service.requests().len(), 0);
    }

    #[test]
    fn an_audited_call_passes_and_is_reported_by_the_packets_with_who_it_was() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let guard = guard(&network, &["--cloud", "aws", "--audit"]);
        assert!(network.curl(ALICE, &[V4]).status.success());
        let ended = guard.stop();
        let events = ended.kind("verdict");
        assert!(events.iter().all(|event| event["verdict"] == "would-deny"));
        let first = events[0];
        assert_eq!(
            (&first["layer"], &first["uid"]),
            (&"tc".into(), &ALICE.into())
        );
        assert_eq!(
            (&first["comm"], &first["gid"]),
            (&"curl".into(), &ALICE.into())
        );
        assert!(first["pid"].as_u64().unwrap() > 0);
        let summary = ended.summary();
        let told: u64 = events
            .iter()
            .filter_map(|event| event["count"].as_u64())
            .sum();
        assert_eq!(summary["would_deny"], told);
        assert_eq!(summary["calls"], 0);
    }

    #[test]
    fn a_group_is_allowed_by_primary_and_supplementary_membership() {
        let network = Network::new();
        let service = MetadataService::start(&network);
        let operators = OPERATORS.to_string();
        let guard = guard(
            &network,
            &["--cloud", "aws", "--allow-group", &operators, "--all"],
        );
        let member = |gid: u32, groups: &str| {
            let mut command = network.machine.command("setpriv");
            command.args(["--reuid", &ALICE.to_string(), "--regid", &gid.to_string()]);
            command.args(["--groups", groups, "--", "curl", "-sS", "--noproxy", "*"]);
            command.args(["--max-time", "10", V4]);
            command.output().unwrap().status.success()
        };
        let many: Vec<String> = (54401..54450)
            .chain([OPERATORS])
            .map(|g| g.to_string())
            .collect();
        assert!(member(OPERATORS, "1"));
        assert!(member(ALICE, &format!("1,{operators}")));
        assert!(member(ALICE, &many.join(",")));
        assert!(!member(ALICE, "1,54399,54401"));
        let ended = guard.stop();
        assert_eq!(service.requests().len(), 3);
        let events = ended.kind("verdict");
        // Its packets pass by what the caller left at the socket.
        let allowed: Vec<_> = events
            .iter()
            .filter(|event| event["verdict"] == "allowed")
            .collect();
        assert!(!allowed.is_empty());
        assert!(
            allowed
                .iter()
                .all(|event| event["reason"] == "group-allowed")
        );
        assert_eq!(denials(&ended).len(), 1);
    }

    #[test]
    fn groups_do_not_open_what_was_connected_before() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let mut client = network.machine.command("setpriv");
        client.args([
            "--reuid",
            &ALICE.to_string(),
            "--regid",
            &OPERATORS.to_string(),
        ]);
        client.args(["--clear-groups", "--", python3(), "-c"]);
        client.arg(
            "import socket, sys\n\
             s = socket.create_connection(('169.254.169.254', 80))\n\
             print('connected', flush=True)\n\
             sys.stdin.readline()\n\
             s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n\
             try:\n\
             \x20   print('got', s.recv(100))\n\
             except ConnectionResetError:\n\
             \x20   print('reset')\n",
        );
        let mut client = client
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = client.stdout.take().unwrap();
        std::io::Read::read_exact(&mut out, &mut [0; 10]).unwrap();
        let operators = OPERATORS.to_string();
        let guard = guard(&network, &["--cloud", "aws", "--allow-group", &operators]);
        std::io::Write::write_all(&mut client.stdin.take().unwrap(), b"go\n").unwrap();
        let said = super::common::read_all(out);
        assert_eq!(String::from_utf8(said).unwrap().trim(), "reset");
        client.wait().unwrap();
        guard.stop();
    }

    #[test]
    fn a_cgroup_is_allowed_with_all_below_it() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let (allowed, other) = (Cgroups::new(), Cgroups::new());
        let guard = guard(
            &network,
            &["--cloud", "aws", "--allow-cgroup", &allowed.path],
        );
        let attempt = attempt("connect", "AF_INET", IMDS4);
        for below in ["", "child"] {
            let inside = allowed.command(&network.machine, below, ALICE);
            assert_eq!(python(inside, &attempt), "ok", "{below:?}");
            let outside = other.command(&network.machine, below, ALICE);
            assert_eq!(python(outside, &attempt), "EPERM", "{below:?}");
        }
        let ended = guard.stop();
        let events = denials(&ended);
        assert_eq!(events[0]["cgroup"], other.path.as_str(), "{events:?}");
    }

    #[test]
    fn a_cgroup_that_comes_later_or_comes_again_is_allowed() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let later = Cgroups::new();
        later.remove();
        let guard = guard(&network, &["--cloud", "aws", "--allow-cgroup", &later.path]);
        let attempt = attempt("connect", "AF_INET", IMDS4);
        for _ in 0..2 {
            later.make();
            // The guard hears of it by and by: in less than a service takes to start.
            let mut answer = String::new();
            for _ in 0..2000 {
                answer = python(later.command(&network.machine, "child", ALICE), &attempt);
                if answer == "ok" {
                    break;
                }
            }
            assert_eq!(answer, "ok");
            later.remove();
        }
        guard.stop();
    }

    #[test]
    fn packets_are_judged_by_the_cgroup_of_their_socket() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let (allowed, other) = (Cgroups::new(), Cgroups::new());
        let guard = guard(
            &network,
            &[
                "--packets-only",
                "--cloud",
                "aws",
                "--allow-cgroup",
                &allowed.path,
                "--all",
            ],
        );
        let attempt = attempt("connect", "AF_INET", IMDS4);
        for below in ["", "child"] {
            let inside = allowed.command(&network.machine, below, ALICE);
            assert_eq!(python(inside, &attempt), "ok", "{below:?}");
            let outside = other.command(&network.machine, below, ALICE);
            assert_eq!(python(outside, &attempt), "ECONNREFUSED", "{below:?}");
        }
        let ended = guard.stop();
        let events = ended.kind("verdict");
        let allowed = events.iter().find(|event| event["verdict"] == "allowed");
        assert_eq!(allowed.unwrap()["reason"], "cgroup-allowed");
    }

    #[test]
    fn rules_of_user_group_and_cgroup_add_up() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let allowed = Cgroups::new();
        let (alice, operators) = (ALICE.to_string(), OPERATORS.to_string());
        let guard = guard(
            &network,
            &[
                "--cloud",
                "aws",
                "--allow-user",
                &alice,
                "--allow-group",
                &operators,
                "--allow-cgroup",
                &allowed.path,
            ],
        );
        let attempt = attempt("connect", "AF_INET", IMDS4);
        assert_eq!(as_user(&network, ALICE, &attempt), "ok");
        assert_eq!(as_user(&network, BOB, &attempt), "EPERM");
        let inside = allowed.command(&network.machine, "child", BOB);
        assert_eq!(python(inside, &attempt), "ok");
        let mut member = network.machine.command("setpriv");
        member.args(["--reuid", &BOB.to_string(), "--regid", &BOB.to_string()]);
        member.args(["--groups", &operators, "--", python3()]);
        assert_eq!(python(member, &attempt), "ok");
        guard.stop();
    }

    /// As where a container, or an old distribution, has it elsewhere.
    #[test]
    fn the_connect_layer_is_used_wherever_cgroup2_is_mounted() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let allowed = Cgroups::new();
        let folder = tempfile::tempdir().unwrap();
        let program = "for at in $(awk '$3 == \"cgroup2\" { print $2 }' /proc/mounts); do umount -l \"$at\"; done\n\
             mount -t cgroup2 none \"$1\" && shift && exec \"$@\"";
        let mut command = network.machine.command("unshare");
        command.args([
            "--mount",
            "--propagation",
            "private",
            "--",
            "sh",
            "-ec",
            program,
            "sh",
        ]);
        command.arg(folder.path()).arg(ebpfkit_path());
        command.args(["-o", "json", "tc-guard", "run", "--cloud", "aws"]);
        command.args(["--allow-cgroup", &allowed.path]);
        let guard = Tool::run(command);
        let ready = guard
            .events()
            .into_iter()
            .find(|event| event["kind"] == "ready");
        assert_eq!(ready.unwrap()["layers"][1], "connect");
        let attempt = attempt("connect", "AF_INET", IMDS4);
        assert_eq!(as_user(&network, BOB, &attempt), "EPERM");
        let inside = allowed.command(&network.machine, "child", BOB);
        assert_eq!(python(inside, &attempt), "ok");
        guard.stop();
    }

    #[test]
    fn processes_of_other_network_namespaces_are_not_refused() {
        let network = Network::new();
        let other = Network::new();
        let service = MetadataService::start(&other);
        let guard = guard(&network, &["--cloud", "aws"]);
        assert!(other.curl(ALICE, &[V4]).status.success());
        assert_eq!(service.requests().len(), 1);
        assert_eq!(guard.stop().summary()["seen"], 0);
    }

    #[test]
    fn the_hooks_are_gone_with_the_process_whatever_its_end() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        for signal in [
            nix::sys::signal::Signal::SIGTERM,
            nix::sys::signal::Signal::SIGKILL,
        ] {
            let guard = guard(&network, &["--cloud", "aws"]);
            assert!(!network.curl(ALICE, &[V4]).status.success());
            guard.signal(signal);
            guard.ended();
            let reached = network.curl(ALICE, &[V4]);
            assert!(reached.status.success(), "{signal}: {reached:?}");
        }
    }

    #[test]
    fn a_group_without_the_capability_to_read_groups_is_refused_at_the_start() {
        let network = Network::new();
        let machine = &network.machine;
        let mut command = machine.command_with(BOB, "+bpf,+net_admin", ebpfkit_path());
        command.args(["tc-guard", "run", "--cloud", "aws", "--allow-group", "7"]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("CAP_PERFMON"), "{stderr}");
    }

    #[test]
    fn every_policy_of_the_examples_is_taken_by_the_kernel() {
        let root = cgroup::mount();
        let mut loaded = 0;
        for entry in fs::read_dir("examples").unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "toml") {
                let text = fs::read_to_string(&path).unwrap();
                let policy = config::parse(path.to_str().unwrap(), &text).unwrap();
                let plan = Plan::new(&policy, root.as_deref()).unwrap();
                let guard = Guard::load(&plan, Guard::method(), root.as_deref()).unwrap();
                assert!(guard.calls());
                loaded += 1;
            }
        }
        assert!(loaded >= 4, "{loaded}");
    }

    #[test]
    fn a_policy_from_a_file_guards_as_the_command_line_does() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let file = tempfile::NamedTempFile::new().unwrap();
        let policy = format!(
            "[[rule]]\nclouds = [\"aws\"]\nusers = [\"root\"]\n\
             [[rule]]\nclouds = [\"aws\"]\nusers = [{ALICE}]\n\
             [[rule]]\nendpoints = [\"10.213.0.1:81/tcp\"]\nmode = \"audit\"\n"
        );
        fs::write(file.path(), policy).unwrap();
        let path = file.path().to_str().unwrap();
        let guard = guard(&network, &["--config", path]);
        assert_eq!(guard.events()[0]["mode"], "mixed");
        let attempt = attempt("connect", "AF_INET", IMDS4);
        assert_eq!(as_user(&network, ALICE, &attempt), "ok");
        assert_eq!(as_user(&network, 0, &attempt), "ok");
        assert_eq!(as_user(&network, BOB, &attempt), "EPERM");
        // Audited: it gets as far as the machine that has nothing there.
        let audited = attempt.replace("169.254.169.254', 80", "10.213.0.1', 81");
        assert_eq!(as_user(&network, BOB, &audited), "ECONNREFUSED");
        let ended = guard.stop();
        let events = ended.kind("verdict");
        let audited = events.iter().find(|event| event["verdict"] == "would-deny");
        assert_eq!(audited.unwrap()["endpoint"], "10.213.0.1:81/tcp");
        assert_eq!(ended.summary()["denied"], 1);
    }
}
