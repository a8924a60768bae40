// SPDX-License-Identifier: BSD-2-Clause

//! The life of `ebpfkit tc-guard` on a machine: interfaces that come and go, a guard that stays, and
//! what is done to it.

mod common;

mod root {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};
    use std::thread;

    use ebpfkit::kernel::tc::Method;
    use ebpfkit::tools::tc_guard::Guard;
    use nix::sys::signal::Signal;
    use serde_json::Value;

    use super::common::tc_guard::{
        V4, allowed, check, finding, start, start_with, status, stderr, tc_guard,
    };
    use super::common::{
        ALICE, BOB, Background, Bpffs, CLOUD4, IMDS4, MetadataService, Netns, Network, TOKEN, Tool,
        ebpfkit_path, python3, sh,
    };

    /// What is at an interface's hooks, as `tc` and, where it can, bpftool see it.
    fn filters(network: &Network, side: &str) -> String {
        sh(Command::new("tc")
            .args(["-n", network.machine.name()])
            .args(["filter", "show", "dev", "eth0", side]))
    }

    #[test]
    fn a_pinned_guard_stays_when_its_process_ends_until_it_is_stopped() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        assert_eq!(status(&network, &bpffs)["state"], "none");
        let guard = start(&network, &bpffs, &["--pin"]);
        let running = status(&network, &bpffs);
        assert_eq!(running["state"], "pinned");
        assert_eq!(running["pid"], guard.pid());
        assert!(!allowed(&network, ALICE) && allowed(&network, BOB));

        let ended = guard.stop();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains("the guard stays"), "{}", ended.stderr);
        assert!(!allowed(&network, ALICE) && allowed(&network, BOB));
        let alone = status(&network, &bpffs);
        assert_eq!(alone["state"], "pinned");
        assert!(alone.get("pid").is_none(), "{alone}");
        assert_eq!(alone["mode"], "enforce");
        assert_eq!(alone["policy"], 0);
        assert_eq!(alone["users"], 1);
        assert_eq!(alone["endpoints"][0], "169.254.169.254:80/tcp");
        assert_eq!(alone["interfaces"][0]["name"], "eth0");
        assert_eq!(alone["interfaces"][0]["whole"], true);
        assert!(alone["since"].as_str().unwrap().ends_with('Z'));
        let denied = |status: &Value| status["counters"]["denied"].as_u64().unwrap();
        assert!(denied(&alone) >= denied(&running) + 2, "{running} {alone}");

        let stopped = tc_guard(&network, &bpffs, &["stop"]);
        assert!(stopped.status.success(), "{}", stderr(&stopped));
        assert!(allowed(&network, ALICE));
        assert_eq!(status(&network, &bpffs)["state"], "none");
        assert_eq!(
            filters(&network, "egress") + &filters(&network, "ingress"),
            ""
        );
        assert!(!bpffs.path().join("ebpfkit").exists());
        let again = tc_guard(&network, &bpffs, &["stop"]);
        assert_eq!(again.status.code(), Some(1));
        assert!(
            stderr(&again).contains("no guard is pinned"),
            "{}",
            stderr(&again)
        );
    }
    #[test]
    fn a_second_guard_is_refused_and_a_pinned_one_is_taken_over() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let refused = |args: &[&str], said: &str| {
            let bob = BOB.to_string();
            let mut all = vec!["run", "--cloud", "aws", "--allow-user", &bob];
            all.extend(args);
            let output = tc_guard(&network, &bpffs, &all);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(stderr(&output).contains(said), "{}", stderr(&output));
        };
        let first = start(&network, &bpffs, &[]);
        let who = format!("process {}", first.pid());
        refused(&[], &who);
        refused(&["--pin"], &who);
        let foreground = status(&network, &bpffs);
        assert_eq!(foreground["state"], "foreground");
        assert_eq!(foreground["pid"], first.pid());
        let not_pinned = tc_guard(&network, &bpffs, &["stop"]);
        assert!(
            stderr(&not_pinned).contains(&who),
            "{}",
            stderr(&not_pinned)
        );
        assert!(!allowed(&network, ALICE));
        first.stop();

        start(&network, &bpffs, &["--pin"]).stop();
        refused(&[], "pinned in this network namespace already");
        assert!(!allowed(&network, ALICE) && allowed(&network, BOB));
        // Another process, with another policy, goes on with it.
        let alice = ALICE.to_string();
        let second = Tool::start(
            &network.machine,
            &[
                "tc-guard",
                "run",
                "--pin",
                "--bpffs",
                bpffs.text(),
                "--cloud",
                "aws",
                "--allow-user",
                &alice,
            ],
        );
        assert!(allowed(&network, ALICE) && !allowed(&network, BOB));
        assert_eq!(status(&network, &bpffs)["policy"], 1);
        let ended = second.stop();
        assert!(ended.stderr.contains("took over"), "{}", ended.stderr);
        // It tells of what it saw itself, and not of what the first one did.
        let summary = ended.summary();
        assert_eq!(summary["seen"], summary["delivered"], "{summary}");
        assert_eq!(summary["denied"], 1, "{summary}");
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
        assert!(allowed(&network, BOB) && allowed(&network, ALICE));
    }

    #[test]
    fn stopping_ends_the_process_too() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        let guard = start(&network, &bpffs, &["--pin"]);
        let stopped = tc_guard(&network, &bpffs, &["stop"]);
        assert!(stopped.status.success(), "{}", stderr(&stopped));
        let ended = guard.ended();
        assert_eq!(ended.code, Some(0));
        assert_eq!(status(&network, &bpffs)["state"], "none");
    }

    /// A veth of the machine whose other end is a cloud of its own: packets to the metadata address go
    /// there from now on.
    fn second_cloud(network: &Network) -> Netns {
        let cloud = Netns::new();
        network.machine.ip(&[
            "link",
            "add",
            "late0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            cloud.name(),
        ]);
        network
            .machine
            .ip(&["addr", "add", "10.214.0.2/24", "dev", "late0"]);
        cloud.ip(&["addr", "add", "10.214.0.1/24", "dev", "eth0"]);
        cloud.ip(&["addr", "add", &format!("{IMDS4}/32"), "dev", "eth0"]);
        cloud.ip(&["link", "set", "eth0", "up"]);
        network.machine.ip(&["link", "set", "late0", "up"]);
        network
            .machine
            .ip(&["route", "add", IMDS4, "via", "10.214.0.1", "dev", "late0"]);
        cloud
    }

    #[test]
    fn interfaces_are_guarded_as_they_come_and_forgotten_as_they_go() {
        for pin in [&["--packets-only"][..], &["--packets-only", "--pin"][..]] {
            let network = Network::new();
            let bpffs = Bpffs::new();
            let guard = start(&network, &bpffs, pin);
            for round in 1..3 {
                let cloud = second_cloud(&network);
                let service = MetadataService::on(&cloud, &[(IMDS4, 80)]);
                guard.wait("guarded", |guard| {
                    let is = |event: &Value| {
                        event["change"] == "guarded" && event["interface"] == "late0"
                    };
                    guard.events().iter().filter(|event| is(event)).count() == round
                });
                assert!(
                    !allowed(&network, ALICE) && allowed(&network, BOB),
                    "{pin:?}"
                );
                // It ends by a connection to its address, which goes with the interface.
                drop(service);
                network.machine.ip(&["link", "del", "late0"]);
                guard.wait("gone", |guard| {
                    let is = |event: &Value| event["change"] == "gone";
                    guard.events().iter().filter(|event| is(event)).count() == round
                });
            }
            if pin.contains(&"--pin") {
                let names = status(&network, &bpffs)["interfaces"].clone();
                assert_eq!(names.as_array().unwrap().len(), 1, "{names}");
            }
            let ended = guard.stop();
            assert_eq!(ended.code, Some(0));
            assert!(
                ended
                    .kind("interface")
                    .iter()
                    .all(|event| event["change"] != "failed")
            );
            assert!(!ended.stderr.contains("late0"), "{}", ended.stderr);
        }
    }

    #[test]
    fn a_named_interface_may_come_later_and_others_are_left_alone() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        network.machine.ip(&[
            "link", "add", "late0", "type", "veth", "peer", "name", "late1",
        ]);
        let guard = start(&network, &bpffs, &["-i", "eth0", "-i", "late0"]);
        network.machine.ip(&["link", "del", "late0"]);
        guard.wait_for("gone", |event| event["change"] == "gone");
        network.machine.ip(&[
            "link", "add", "other0", "type", "veth", "peer", "name", "other1",
        ]);
        network.machine.ip(&[
            "link", "add", "late0", "type", "veth", "peer", "name", "late1",
        ]);
        guard.wait_for("guarded", |event| event["change"] == "guarded");
        let ended = guard.stop();
        let named: Vec<_> = ended.kind("interface");
        assert!(
            named.iter().all(|event| event["interface"] == "late0"),
            "{named:?}"
        );
    }

    #[test]
    fn a_killed_guard_leaves_nothing_that_judges_and_the_next_one_clears_up() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        for more in [&[][..], &["--packets-only"][..]] {
            let guard = start(&network, &bpffs, more);
            assert!(!allowed(&network, ALICE));
            guard.signal(Signal::SIGKILL);
            guard.ended();
            assert!(allowed(&network, ALICE));
            assert_eq!(status(&network, &bpffs)["state"], "none");
        }
        start(&network, &bpffs, &[]).stop();
        assert_eq!(
            filters(&network, "egress") + &filters(&network, "ingress"),
            ""
        );
    }

    #[test]
    fn filters_of_others_stay_and_the_status_names_what_runs_ahead() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        let tc = |args: &str| {
            sh(Command::new("tc")
                .args(["-n", network.machine.name()])
                .args(args.split(' ')))
        };
        tc("qdisc add dev eth0 clsact");
        let ahead = "filter add dev eth0 egress prio 1 protocol ip u32 match u32 0 0";
        let behind = "filter add dev eth0 ingress prio 60000 protocol ip u32 match u32 0 0";
        tc(ahead);
        tc(behind);
        let before = (filters(&network, "egress"), filters(&network, "ingress"));
        start(&network, &bpffs, &["--pin"]).stop();
        let eth0 = status(&network, &bpffs)["interfaces"][0].clone();
        assert_eq!(eth0["whole"], true, "{eth0}");
        match Guard::method() {
            // TCX runs ahead of all filters.
            Method::Tcx => assert!(eth0.get("ahead").is_none(), "{eth0}"),
            Method::Clsact => {
                let ahead = eth0["ahead"][0].as_str().unwrap();
                assert!(ahead.starts_with("u32 filter"), "{eth0}");
            }
        }
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
        assert_eq!(
            (filters(&network, "egress"), filters(&network, "ingress")),
            before
        );
    }

    /// Two endpoints, one of which is open to Alice by each policy.
    fn policies(folder: &std::path::Path) -> [String; 2] {
        [("9001", "9002"), ("9002", "9001")].map(|(open, closed)| {
            let path = folder.join(format!("{open}.toml"));
            let text = format!(
                "report-allowed = true\n\
                 [[rule]]\nendpoints = [\"{CLOUD4}:{open}/udp\"]\nusers = [{ALICE}]\n\
                 [[rule]]\nendpoints = [\"{CLOUD4}:{closed}/udp\"]\nusers = [{BOB}]\n"
            );
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        })
    }

    /// Alice sends to both endpoints in turns until the pipe to it is closed, and says how often.
    const SENDER: &str = "
import os, select, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sent = 0
print('ready', flush=True)
# Slower after a while, so that it still sends where a reload takes long.
while sent < 400000 and not select.select([0], [], [], 0 if sent < 50000 else 0.001)[0]:
    for port in (9001, 9002):
        try:
            s.sendto(b'x', (sys.argv[1], port))
        except PermissionError:
            pass
        sent += 1
print(sent, flush=True)
";

    #[test]
    fn no_packet_is_judged_by_parts_of_two_policies() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        let folder = tempfile::tempdir().unwrap();
        let policies = policies(folder.path());
        // One neighbour lookup, and no packet waits for it later.
        network.curl(ALICE, &[&format!("http://{CLOUD4}/")]);
        let guard = start_with(&network, &bpffs, &policies[0]);
        let mut sender = network
            .machine
            .command_as(ALICE, python3())
            .args(["-c", SENDER, CLOUD4])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(sender.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        const RELOADS: usize = 12;
        for round in 1..=RELOADS {
            let output = tc_guard(
                &network,
                &bpffs,
                &["reload", "--config", &policies[round % 2]],
            );
            assert!(output.status.success(), "{}", stderr(&output));
        }
        drop(sender.stdin.take());
        line.clear();
        said.read_line(&mut line).unwrap();
        assert!(sender.wait().unwrap().success());
        let sent: u64 = line.trim().parse().unwrap();
        let status = status(&network, &bpffs);
        assert_eq!(status["policy"], RELOADS);
        assert_eq!(status["config"], policies[0].as_str());
        let ended = guard.stop();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        tc_guard(&network, &bpffs, &["stop"]);

        // Each was judged once, and as the policy that judged it says.
        let mut judged = 0;
        let mut seen = std::collections::BTreeSet::new();
        for event in ended.kind("verdict") {
            assert_eq!(event["uid"], ALICE, "{event}");
            let policy = event["policy"].as_u64().unwrap();
            let open = if policy % 2 == 0 {
                ":9001/udp"
            } else {
                ":9002/udp"
            };
            let allowed = event["endpoint"].as_str().unwrap().ends_with(open);
            let verdict = if allowed { "allowed" } else { "denied" };
            assert_eq!(event["verdict"], verdict, "{event}");
            judged += event["count"].as_u64().unwrap();
            seen.insert(policy);
        }
        assert_eq!(judged, sent, "{}", ended.summary());
        assert!(
            seen.len() > 2,
            "{seen:?}: nothing was sent while policies came"
        );
    }

    #[test]
    fn a_bad_policy_leaves_the_old_one_in_force() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        let write = |users: &str| {
            std::fs::write(
                &path,
                format!("[[rule]]\nclouds = [\"aws\"]\nusers = [{users}]\n"),
            )
            .unwrap();
        };
        write(&BOB.to_string());
        let config = path.to_str().unwrap();
        let nothing = tc_guard(&network, &bpffs, &["reload", "--config", config]);
        assert_eq!(nothing.status.code(), Some(1));
        start_with(&network, &bpffs, config).stop();
        write("\"no such user\"");
        let bad = tc_guard(&network, &bpffs, &["reload"]);
        assert_eq!(bad.status.code(), Some(2), "{}", stderr(&bad));
        assert!(stderr(&bad).contains("policy.toml:3:"), "{}", stderr(&bad));
        assert!(allowed(&network, BOB) && !allowed(&network, ALICE));
        assert_eq!(status(&network, &bpffs)["policy"], 0);
        // The file that run was given is read anew.
        write(&ALICE.to_string());
        let good = tc_guard(&network, &bpffs, &["reload"]);
        assert!(good.status.success(), "{}", stderr(&good));
        assert!(allowed(&network, ALICE) && !allowed(&network, BOB));
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
    }

    #[test]
    fn a_check_tries_the_guard_and_names_every_gap_with_its_remedy() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let (findings, code) = check(&network, &bpffs);
        assert_eq!(code, Some(1));
        assert_eq!(finding(&findings, "guard", "no guard")["state"], "gap");

        let guard = start(&network, &bpffs, &["--pin"]);
        let (findings, _) = check(&network, &bpffs);
        assert_eq!(
            finding(&findings, "guard", "a guard is pinned")["state"],
            "ok"
        );
        assert_eq!(
            finding(&findings, "interface", "nothing runs ahead")["state"],
            "ok"
        );
        assert_eq!(
            finding(&findings, "trial", "who is allowed, reached")["state"],
            "ok"
        );
        assert_eq!(
            finding(&findings, "trial", "who is not allowed, was refused")["state"],
            "ok"
        );
        let gaps = |findings: &[Value]| {
            let gaps = findings.iter().filter(|at| at["state"] == "gap");
            assert!(
                gaps.clone().all(|at| at["remedy"].is_string()),
                "{findings:#?}"
            );
            gaps.filter(|at| at["check"] == "guard" || at["check"] == "interface")
                .count()
        };
        assert_eq!(gaps(&findings), 0, "{findings:#?}");

        // Once its process has ended, what comes is not guarded.
        guard.stop();
        network.machine.ip(&[
            "link", "add", "late0", "type", "veth", "peer", "name", "late1",
        ]);
        let mut holder = network.machine.command("setpriv");
        holder.args(["--reuid", &ALICE.to_string(), "--regid", &ALICE.to_string()]);
        holder.args(["--clear-groups", "--inh-caps=-all,+net_raw"]);
        holder.args(["--ambient-caps=-all,+net_raw", "--", "sleep", "60"]);
        let holder = Background(holder.spawn().unwrap());
        // setpriv becomes sleep.
        let comm = format!("/proc/{}/comm", holder.0.id());
        while std::fs::read_to_string(&comm).unwrap().trim() != "sleep" {
            thread::sleep(std::time::Duration::from_millis(5));
        }
        let (findings, code) = check(&network, &bpffs);
        assert_eq!(code, Some(1));
        finding(&findings, "guard", "no process follows");
        finding(&findings, "interface", "late0 is not guarded");
        let raw = finding(&findings, "privileges", "may send raw packets");
        let what = raw["what"].as_str().unwrap();
        assert!(
            what.contains(&holder.0.id().to_string()) && what.contains("54321"),
            "{raw}"
        );
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
    }

    #[test]
    fn a_check_tries_a_guard_that_is_not_pinned_too() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let (bpffs, other) = (Bpffs::new(), Bpffs::new());
        let guard = start(&network, &bpffs, &[]);
        let (findings, _) = check(&network, &other);
        let state = |check, what| finding(&findings, check, what)["state"].clone();
        let process = format!("process {} guards, and denies", guard.pid());
        assert_eq!(state("guard", process.as_str()), "ok");
        assert_eq!(state("interface", "nothing runs ahead"), "ok");
        assert_eq!(state("trial", "who is allowed, reached"), "ok");
        assert_eq!(state("trial", "who is not allowed, was refused"), "ok");
        guard.stop();
        // The guard is what is tried, not what somebody says of it.
        let guard = start(&network, &bpffs, &["--audit"]);
        let (findings, code) = check(&network, &other);
        assert_eq!(
            finding(&findings, "guard", "its mode is audit")["state"],
            "gap"
        );
        assert_eq!(code, Some(1));
        guard.stop();
    }

    #[test]
    fn what_was_learned_allows_the_observed_and_denies_the_rest() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("learned.toml");
        let file = file.to_str().unwrap();
        let watching = [
            "tc-guard",
            "learn",
            "--cloud",
            "aws",
            "--bpffs",
            bpffs.text(),
        ];
        let learn = Tool::start(
            &network.machine,
            &[&watching[..], &["--for", "1h", "--write", file]].concat(),
        );
        // Nothing is denied meanwhile, and a guard would be in the way.
        assert!(allowed(&network, ALICE));
        let carol = ALICE + 2;
        let token = format!("X-aws-ec2-metadata-token: {TOKEN}");
        assert!(network.curl(carol, &["-H", &token, V4]).status.success());
        let second = tc_guard(&network, &bpffs, &["run", "--cloud", "aws"]);
        assert_eq!(second.status.code(), Some(1), "{second:?}");
        let ended = learn.stop();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(allowed(&network, BOB));

        let text = std::fs::read_to_string(file).unwrap();
        let learned = ended.kind("learned")[0];
        assert_eq!(learned["toml"], text.as_str());
        assert_eq!(learned["subjects"], 2, "{text}");
        // Who it was, by which program, and whether it needs IMDSv1.
        let rule = |user: u32| {
            let named = format!("\nusers = [{user}]\n");
            let mut rules = text.split("\n\n").map(|rule| format!("\n{rule}\n"));
            let found = rules.find(|rule| rule.contains(&named));
            found.unwrap_or_else(|| panic!("no rule for {user} in {text}"))
        };
        for user in [ALICE, carol] {
            let caller = rule(user)
                .lines()
                .find(|line| line.starts_with("# by "))
                .map(str::to_owned);
            let caller = caller.unwrap_or_else(|| panic!("no caller in {text}"));
            assert!(
                caller.contains("/curl, ") && caller.ends_with(&format!("uid {user}")),
                "{caller}"
            );
        }
        assert!(!text.contains("is not known"), "{text}");
        let v1 = "# 1 requests without a session token (IMDSv1)";
        assert!(rule(ALICE).contains(v1), "{text}");
        assert!(!rule(carol).contains("IMDSv1"), "{text}");
        let kept = tc_guard(
            &network,
            &bpffs,
            &["learn", "--cloud", "aws", "--write", file],
        );
        assert_eq!(kept.status.code(), Some(1), "{kept:?}");

        let guard = Tool::start(
            &network.machine,
            &["tc-guard", "run", "--bpffs", bpffs.text(), "--config", file],
        );
        assert!(allowed(&network, ALICE) && allowed(&network, carol));
        assert!(!allowed(&network, BOB) && !allowed(&network, 0));
        let v6 = "http://[fd00:ec2::254]/";
        assert!(
            !network.curl(ALICE, &[v6]).status.success(),
            "v6 was not used"
        );
        guard.stop();

        // With an end of its own, and to standard output.
        let short = Tool::spawn({
            let mut command = network.machine.command(ebpfkit_path());
            command.args(watching).args(["--for", "1s"]);
            command
        });
        let (text, errors, code) = short.ended_text();
        assert_eq!(code, Some(0), "{errors}");
        assert!(
            text.contains("[[rule]]\nendpoints = [\"169.254.169.254:80/tcp\""),
            "{text}"
        );
    }

    #[test]
    fn an_observed_service_is_allowed_as_a_unit() {
        let Some(root) = ebpfkit::kernel::cgroup::mount() else {
            panic!("cgroup2 is not mounted");
        };
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let unit = format!("ebpfkit-life-{}.service", std::process::id());
        // systemd's own slice, or one that this test makes in its place.
        let slice = root.join("system.slice");
        let made = std::fs::create_dir(&slice).is_ok();
        let cgroup = slice.join(&unit);
        std::fs::create_dir(&cgroup).unwrap();
        let inside = |uid: u32| {
            let mut command = network.machine.command("sh");
            let user = uid.to_string();
            command.args([
                "-c",
                "echo $$ >\"$0/cgroup.procs\" && exec setpriv --reuid \"$1\" --regid \"$1\" \
                 --clear-groups curl -sS --max-time 10 --noproxy '*' \"$2\"",
            ]);
            command.arg(&cgroup).args([&user, V4]);
            command.output().unwrap().status.success()
        };
        let learn = Tool::start(
            &network.machine,
            &[
                "tc-guard",
                "learn",
                "--cloud",
                "aws",
                "--bpffs",
                bpffs.text(),
            ],
        );
        let seen = inside(ALICE);
        let ended = learn.stop();
        let text = ended.kind("learned")[0]["toml"]
            .as_str()
            .unwrap()
            .to_owned();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("learned.toml");
        std::fs::write(&file, &text).unwrap();
        let guard = Tool::start(
            &network.machine,
            &[
                "tc-guard",
                "run",
                "--bpffs",
                bpffs.text(),
                "--config",
                file.to_str().unwrap(),
            ],
        );
        let results = (inside(ALICE), inside(BOB), allowed(&network, ALICE));
        guard.stop();
        std::fs::remove_dir(&cgroup).unwrap();
        if made {
            std::fs::remove_dir(&slice).unwrap();
        }
        assert!(seen, "{ended:?}");
        assert!(text.contains(&format!("cgroups = [\"{unit}\"]")), "{text}");
        let caller = format!("/curl, uid {ALICE}, unit {unit}\n");
        assert!(text.contains(&caller), "{text}");
        assert!(text.contains("without a session token (IMDSv1)"), "{text}");
        assert_eq!(results, (true, true, false), "{text}");
    }
}
