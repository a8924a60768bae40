// SPDX-License-Identifier: BSD-2-Clause

//! What others do around `ebpfkit tc-guard`, with or without intent: take its name, pin a guard elsewhere,
//! read nothing of what it writes, hold sockets that go past it.

mod common;

mod root {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use ebpfkit::kernel::cgroup;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::Value;

    use super::common::tc_guard::{V4, allowed, finding, start, status, stderr, stop, tc_guard};
    use super::common::{
        ALICE, BOB, Background, Bpffs, IMDS4, MetadataService, Netns, Network, Tool, ebpfkit_path,
        python3,
    };

    /// A program of another user in `netns` that has said a line and waits.
    fn python(netns: &Netns, uid: u32, program: &str) -> Background {
        let mut command = netns.command_as(uid, python3());
        let piped = command.args(["-c", program]).stdin(Stdio::piped());
        let mut child: Child = piped.stdout(Stdio::piped()).spawn().expect("python3");
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "here\n");
        Background(child)
    }

    /// Another user has the guard's name: he listens at it, and has it in the queue of another socket as well.
    fn take_the_name(network: &Network) -> Background {
        python(
            &network.machine,
            ALICE,
            "import array, socket, sys\n\
             s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
             s.bind('\\0ebpfkit-tc-guard')\n\
             s.listen(1)\n\
             a, b = socket.socketpair()\n\
             a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [s.fileno()]))])\n\
             print('here', flush=True)\n\
             sys.stdin.read()\n",
        )
    }

    #[test]
    fn of_guards_that_start_at_once_none_is_stacked_on_another() {
        let network = Network::new();
        let (bpffs, other) = (Bpffs::new(), Bpffs::new());
        let _taken = take_the_name(&network);
        let bob = BOB.to_string();
        let mut begun = 0;
        for round in 0..6 {
            let pins = round % 2 == 0;
            let run = |bpffs: &Bpffs, pins: bool| {
                let mut command = network.machine.command(ebpfkit_path());
                command.args(["-o", "json", "tc-guard", "run", "--bpffs", bpffs.text()]);
                command.args(["--cloud", "aws", "--allow-user", &bob]);
                command.args(pins.then_some("--pin"));
                Tool::spawn(command)
            };
            let guards = [run(&bpffs, pins), run(&other, false)];
            let ready = guards.each_ref().map(Tool::becomes_ready);
            assert_ne!(ready, [true; 2], "both guard");
            for (guard, ready) in guards.into_iter().zip(ready) {
                if ready {
                    begun += 1;
                    guard.stop();
                } else {
                    let said = guard.ended().stderr;
                    assert!(said.contains("is not stacked"), "{said}");
                }
            }
            if pins && ready[0] {
                stop(&network, &bpffs);
            }
        }
        assert!(begun > 0, "none ever began");
    }

    #[test]
    fn a_user_who_takes_the_guard_s_name_keeps_none_out_and_is_not_signalled() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let taken = take_the_name(&network);
        let guard = start(&network, &bpffs, &["--pin"]);
        assert!(!allowed(&network, ALICE) && allowed(&network, BOB));
        assert_eq!(status(&network, &bpffs)["state"], "pinned");
        assert!(status(&network, &bpffs).get("pid").is_none());
        // Another one is noticed all the same, by its pins and, in another bpffs, by its gates.
        let other = Bpffs::new();
        let second = tc_guard(&network, &other, &["run", "--cloud", "aws"]);
        assert_eq!(second.status.code(), Some(1), "{second:?}");
        guard.wait("said", |guard| {
            guard.stderr().contains("is held by process")
        });
        let stopped = tc_guard(&network, &bpffs, &["stop"]);
        assert!(stopped.status.success(), "{}", stderr(&stopped));
        assert!(allowed(&network, ALICE));
        let pid = Pid::from_raw(taken.0.id().cast_signed());
        assert_eq!(kill(pid, None), Ok(()), "it was signalled");
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        assert!(!state.contains(") Z "), "{state}");
        guard.stop();
    }

    #[test]
    fn a_guard_whose_pins_are_elsewhere_is_seen_and_its_filters_stay() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let (bpffs, other) = (Bpffs::new(), Bpffs::new());
        start(&network, &bpffs, &["--pin"]).stop();
        let refused = |args: &[&str]| {
            let all = [
                &["run", "--cloud", "aws", "--allow-user", "54321"][..],
                args,
            ]
            .concat();
            let second = tc_guard(&network, &other, &all);
            assert_eq!(second.status.code(), Some(1), "{second:?}");
            let said = stderr(&second);
            assert!(said.contains("in force at eth0"), "{said}");
        };
        refused(&[]);
        refused(&["--pin"]);
        assert_eq!(status(&network, &other)["state"], "elsewhere");
        // What cannot be seen may deny nothing.
        let findings = check(&network, &other, None);
        let unseen = finding(&findings, "guard", "cannot be seen");
        assert_eq!(unseen["state"], "gap", "{unseen}");
        assert!(unseen["remedy"].as_str().unwrap().contains("--bpffs"));
        assert!(!other.path().join("ebpfkit/tc-guard").exists());
        assert!(!allowed(&network, ALICE) && allowed(&network, BOB));
        let whole = status(&network, &bpffs)["interfaces"][0]["whole"].clone();
        assert_eq!(whole, true);
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
        assert_eq!(status(&network, &other)["state"], "none");
        start(&network, &other, &[]).stop();
    }

    #[test]
    fn pins_are_not_put_where_others_may_move_them() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        let mode = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(bpffs.path(), mode).unwrap();
        };
        mode(0o777);
        let refused = tc_guard(&network, &bpffs, &["run", "--pin", "--cloud", "aws"]);
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
        assert!(stderr(&refused).contains("mode 0777"), "{refused:?}");
        // As the kernel mounts it by itself: another user may only be first, and is found out.
        mode(0o1777);
        start(&network, &bpffs, &["--pin"]).stop();
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
        let mut first = network.machine.command_as(ALICE, "mkdir");
        first.arg(bpffs.path().join("ebpfkit"));
        assert!(first.status().unwrap().success());
        let refused = tc_guard(&network, &bpffs, &["run", "--pin", "--cloud", "aws"]);
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
        assert!(stderr(&refused).contains("of uid 54321"), "{refused:?}");
    }

    #[test]
    fn who_reads_nothing_of_what_the_guard_says_does_not_hold_it_up() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        let mut command = network.machine.command(ebpfkit_path());
        command.args(["-o", "json", "tc-guard", "run", "--pin", "--packets-only"]);
        command.args([
            "--bpffs",
            bpffs.text(),
            "--endpoint",
            IMDS4,
            "--deny",
            "drop",
        ]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ebpfkit");
        let mut first = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut first).unwrap();
        assert!(first.contains("\"ready\""), "{first}");

        // A line for each of many users: more than a pipe and a reader's buffer have room for.
        let users = "import os, socket\n\
             for uid in range(100000, 101000):\n\
             \tos.setresuid(uid, uid, 0)\n\
             \ts = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             \ts.sendto(b'x', ('169.254.169.254', 80))\n\
             \ts.close()\n\
             \tos.setresuid(0, 0, 0)\n";
        let mut many = network.machine.command(python3());
        assert!(many.args(["-c", users]).status().unwrap().success());
        let denied = || status(&network, &bpffs)["counters"]["denied"].as_u64();
        assert_eq!(denied(), Some(1000));

        network.machine.ip(&[
            "link", "add", "late0", "type", "veth", "peer", "name", "late1",
        ]);
        let whole = || {
            let status = status(&network, &bpffs);
            let all = status["interfaces"].as_array().unwrap();
            all.iter().filter(|at| at["whole"] == true).count()
        };
        let begun = std::time::Instant::now();
        while whole() < 3 {
            assert!(begun.elapsed() < super::common::PATIENCE, "not guarded");
        }
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("lines could not be written"), "{errors}");
        drop(said);
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
    }

    #[test]
    fn a_reload_wakes_the_process() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("guard.toml");
        let text = "[[rule]]\nclouds = [\"aws\"]\ncgroups = [\"ebpfkit-late.service\"]\n";
        std::fs::write(&file, text).unwrap();
        let guard = start(&network, &bpffs, &["--pin"]);
        let reload = ["reload", "--config", file.to_str().unwrap()];
        for round in 1..3 {
            let reloaded = tc_guard(&network, &bpffs, &reload);
            assert!(reloaded.status.success(), "{}", stderr(&reloaded));
            // No packet is sent, and no interface comes.
            guard.wait("woken", |guard| {
                let said = guard.stderr();
                said.matches("another policy is in force").count() == round
            });
        }
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
        guard.ended();
    }

    /// Whoever reloads may know users that the running process does not, or not any more.
    #[test]
    fn a_user_who_is_not_known_any_more_does_not_end_the_following_of_cgroups() {
        let root = cgroup::mount().expect("cgroup2 is mounted");
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let named = format!("ebpfkit-late-{}", std::process::id());
        let policy = write(
            "guard.toml",
            &format!(
                "[[rule]]\nclouds = [\"aws\"]\nusers = [\"ebpfkit-gone\"]\n\
                 groups = [\"ebpfkit-gone\"]\ncgroups = [\"/{named}\"]\n"
            ),
        );
        let known = |file: &str, line: &str| {
            let now = std::fs::read_to_string(format!("/etc/{file}")).unwrap();
            write(file, &format!("{now}\n{line}\n"))
        };
        let passwd = known("passwd", "ebpfkit-gone:x:54323:54323::/:/bin/false");
        let group = known("group", "ebpfkit-gone:x:54323:");

        let guard = start(&network, &bpffs, &["--pin"]);
        let mut reload = network.machine.command("unshare");
        reload.args(["--mount", "sh", "-ec"]);
        reload.arg(
            "mount --bind \"$1\" /etc/passwd; mount --bind \"$2\" /etc/group; shift 2; exec \"$@\"",
        );
        reload.args(["sh", &passwd, &group]).arg(ebpfkit_path());
        reload.args(["tc-guard", "reload", "--bpffs", bpffs.text()]);
        let reloaded = reload.args(["--config", &policy]).output().unwrap();
        assert!(reloaded.status.success(), "{}", stderr(&reloaded));
        guard.wait("woken", |guard| {
            guard.stderr().contains("another policy is in force")
        });
        assert!(allowed(&network, 54323) && !allowed(&network, BOB));

        let at = root.join(&named);
        std::fs::create_dir(&at).unwrap();
        let inside = || {
            let mut command = network.machine.command("sh");
            command.args([
                "-c",
                "echo $$ >\"$1/cgroup.procs\" && shift && exec \"$@\"",
                "sh",
            ]);
            command
                .arg(&at)
                .args(["setpriv", "--reuid", "54321", "--clear-groups"]);
            command.args(["curl", "-sS", "--noproxy", "*", "--max-time", "10", V4]);
            command.output().unwrap().status.success()
        };
        let begun = std::time::Instant::now();
        let mut followed = inside();
        while !followed && begun.elapsed() < super::common::PATIENCE {
            followed = inside();
        }
        for _ in 0..1000 {
            // A process that has just ended may still be there for a moment.
            if std::fs::remove_dir(&at).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let said = guard.stderr();
        assert!(followed && !said.contains("cannot be followed"), "{said}");
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
        guard.ended();
    }

    #[test]
    fn a_takeover_that_fails_leaves_the_old_policy_in_force() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        start(&network, &bpffs, &["--pin"]).stop();
        network.machine.ip(&[
            "link", "add", "late0", "type", "veth", "peer", "name", "late1",
        ]);
        // In the way of the new interface's pin.
        let shown = network.machine.ip(&["-o", "link", "show", "late0"]);
        let index = shown.split(':').next().unwrap().trim().to_owned();
        let shelf = std::fs::read_dir(bpffs.path().join("ebpfkit"))
            .unwrap()
            .flatten()
            .next()
            .unwrap()
            .path();
        let obstacle = shelf.join(format!("link_{index}_egress"));
        std::fs::create_dir(&obstacle).unwrap();
        let args = ["run", "--pin", "--cloud", "aws", "--allow-user", "54321"];
        let failed = tc_guard(&network, &bpffs, &args);
        assert_eq!(failed.status.code(), Some(1), "{failed:?}");
        assert!(!allowed(&network, ALICE) && allowed(&network, BOB));
        assert_eq!(status(&network, &bpffs)["policy"], 0);
        std::fs::remove_dir(&obstacle).unwrap();
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
    }

    fn check(network: &Network, bpffs: &Bpffs, path: Option<&Path>) -> Vec<Value> {
        let mut command = network.machine.command(ebpfkit_path());
        command.args(["-o", "json", "tc-guard", "check", "--bpffs", bpffs.text()]);
        if let Some(path) = path {
            let own = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{own}", path.display()));
        }
        let output = command.output().expect("ebpfkit runs");
        let lines = String::from_utf8(output.stdout).unwrap();
        let parse = |line| serde_json::from_str(line).unwrap();
        lines.lines().map(parse).collect()
    }

    /// Nobody serves the address, so that the other end itself refuses; and nothing of it passes the
    /// interface that is guarded.
    #[test]
    fn a_refusal_that_is_not_the_guard_s_is_no_proof_that_it_works() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        network.machine.ip(&[
            "link", "add", "other0", "type", "veth", "peer", "name", "other1",
        ]);
        let more = ["--pin", "--packets-only", "-i", "other0"];
        let guard = start(&network, &bpffs, &more);
        let findings = check(&network, &bpffs, None);
        let trial = finding(&findings, "trial", "who is not allowed");
        assert_eq!(trial["state"], "gap", "{trial}");
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
        guard.ended();
    }

    #[test]
    fn endpoints_that_are_reached_past_the_guard_are_found() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        network.machine.ip(&[
            "link", "add", "other0", "type", "veth", "peer", "name", "other1",
        ]);
        let guard = start(&network, &bpffs, &["--pin", "-i", "other0"]);
        let findings = check(&network, &bpffs, None);
        let state =
            |findings: &[Value], check, what| finding(findings, check, what)["state"].clone();
        assert_eq!(
            state(
                &findings,
                "interface",
                "is reached by eth0, which is not guarded"
            ),
            "gap"
        );
        // connect() refuses, and is not all that there is.
        assert_eq!(
            state(&findings, "trial", "who is not allowed, was refused"),
            "ok"
        );
        assert_eq!(state(&findings, "trial", "connects, reached"), "gap");
        guard.stop();
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());

        let guard = start(&network, &bpffs, &["--pin"]);
        let findings = check(&network, &bpffs, None);
        let past = |at: &Value| at["what"].as_str().unwrap().contains("is reached by");
        assert!(!findings.iter().any(past), "{findings:#?}");
        assert_eq!(state(&findings, "trial", "connects, was refused"), "ok");
        let route =
            "-6 route replace fd00:ec2::254/128 encap seg6 mode encap segs fd00:213::1 dev eth0";
        network.machine.ip(&route.split(' ').collect::<Vec<_>>());
        let findings = check(&network, &bpffs, None);
        assert_eq!(
            state(&findings, "interface", "in an encapsulation (seg6)"),
            "gap"
        );
        guard.stop();
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
    }

    #[test]
    fn packet_sockets_and_privileged_files_are_found() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        let folder = tempfile::tempdir().unwrap();
        let tool = folder.path().join("pinger");
        std::fs::write(&tool, "").unwrap();
        // As setcap cap_net_raw+ep does.
        let give = "import os, struct, sys\n\
             data = struct.pack('<5I', 0x02000001, 1 << 13, 0, 0, 0)\n\
             os.setxattr(sys.argv[1], 'security.capability', data)\n";
        let mut give_it = Command::new(python3());
        give_it.args(["-c", give]).arg(&tool);
        // /tmp may be of a kind that has no attributes.
        let given = give_it.status().unwrap().success();
        assert!(given, "no file capabilities in {}", folder.path().display());
        let holder = python(
            &network.machine,
            0,
            "import os, socket, sys\n\
             s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
             os.setresuid(54321, 54321, 54321)\n\
             print('here', flush=True)\n\
             sys.stdin.read()\n",
        );
        let findings = check(&network, &bpffs, Some(folder.path()));
        let socket = finding(&findings, "privileges", "has a packet socket open");
        let what = socket["what"].as_str().unwrap();
        assert_eq!(socket["state"], "gap");
        assert!(
            what.contains("54321") && what.contains(&holder.0.id().to_string()),
            "{socket}"
        );
        let file = finding(&findings, "privileges", "pinger gives");
        assert!(file["what"].as_str().unwrap().contains("CAP_NET_RAW"));
    }
}
