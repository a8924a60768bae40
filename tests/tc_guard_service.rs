// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit tc-guard` as a service with a user of its own and three capabilities runs it, and what root makes
//! of it.

mod common;

mod root {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use ebpfkit::kernel::{cgroup, features};
    use serde_json::Value;

    use super::common::tc_guard::{V4, allowed, check, status, stderr, tc_guard};
    use super::common::{
        ALICE, BOB, Background, Bpffs, MetadataService, Network, PATIENCE, Tool, copy_program,
        ebpfkit_path, python3, swept,
    };

    /// Nobody else's here, so that its quotas are these tests' own.
    const SERVICE: u32 = 54_397;
    const CAPABILITIES: &str = "+bpf,+net_admin,+perfmon";

    /// A guard of the AWS addresses that allows Bob, of a user with capabilities and a folder of pins.
    fn command(network: &Network, bpffs: &Bpffs, more: &[&str]) -> Command {
        command_with(CAPABILITIES, network, bpffs, more)
    }

    fn command_with(
        capabilities: &str,
        network: &Network,
        bpffs: &Bpffs,
        more: &[&str],
    ) -> Command {
        let folder = bpffs.path().join("ebpfkit");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        chown(&folder, Some(SERVICE), Some(SERVICE)).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(bpffs.path(), mode).unwrap();
        let machine = &network.machine;
        let mut command = machine.command_with(SERVICE, capabilities, ebpfkit_path());
        command.args(["-o", "json", "tc-guard", "run", "--cloud", "aws"]);
        command.args(["--bpffs", bpffs.text()]);
        command.args(["--allow-user", &BOB.to_string()]).args(more);
        command
    }

    fn start(network: &Network, bpffs: &Bpffs, more: &[&str]) -> Tool {
        Tool::run(command(network, bpffs, more))
    }

    /// `/a/b` of cgroup2, of which Alice owns `b`.
    struct Slice {
        at: PathBuf,
        named: String,
    }

    impl Slice {
        fn new() -> Self {
            let named = swept("ebpfkit");
            let at = cgroup::mount().expect("cgroup2 is mounted").join(&named);
            std::fs::create_dir_all(at.join("b")).unwrap();
            chown(at.join("b"), Some(ALICE), Some(ALICE)).unwrap();
            Self { at, named }
        }

        fn rule(&self) -> String {
            format!("/{}/b/c", self.named)
        }

        fn mode(&self, mode: u32) {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(self.at.join("b"), mode).unwrap();
        }

        fn make(&self, name: &str) {
            std::fs::create_dir(self.at.join("b").join(name)).unwrap();
        }

        /// Whether Alice is served in the cgroup of the rule.
        fn allowed(&self, network: &Network) -> bool {
            let mut command = network.machine.command("sh");
            let enter = "echo $$ >\"$1/cgroup.procs\" && shift && exec \"$@\"";
            command.args(["-c", enter, "sh"]).arg(self.at.join("b/c"));
            command.args(["setpriv", "--reuid", &ALICE.to_string(), "--clear-groups"]);
            command.args(["curl", "-sS", "--noproxy", "*", "--max-time", "10", V4]);
            command.output().unwrap().status.success()
        }

        fn wait_for_allowed(&self, network: &Network) -> bool {
            let begun = Instant::now();
            while begun.elapsed() < PATIENCE {
                if self.allowed(network) {
                    return true;
                }
            }
            false
        }
    }

    impl Drop for Slice {
        fn drop(&mut self) {
            for folder in ["b/c", "b/d", "b", ""].map(|name| self.at.join(name)) {
                for _ in 0..1000 {
                    // A process that has just ended may still be there for a moment.
                    if !Path::exists(&folder) || std::fs::remove_dir(&folder).is_ok() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    #[test]
    fn who_forbids_to_watch_a_cgroup_does_not_end_the_guard() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let slice = Slice::new();
        let rule = slice.rule();
        for more in [&[][..], &["--pin"]] {
            let args = [&["--allow-cgroup", &rule], more].concat();
            let guard = start(&network, &bpffs, &args);
            slice.mode(0o700);
            slice.make("d");
            guard.wait("said", |guard| guard.stderr().contains("/b: EACCES"));
            assert!(!allowed(&network, ALICE) && allowed(&network, BOB));
            guard.stop();
            if !more.is_empty() {
                assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
            }

            // It also starts so, and finds what was made meanwhile once it may look.
            slice.make("c");
            let guard = start(&network, &bpffs, &args);
            guard.wait("said", |guard| guard.stderr().contains("/b: EACCES"));
            assert!(!slice.allowed(&network) && allowed(&network, BOB));
            slice.mode(0o755);
            assert!(slice.wait_for_allowed(&network), "{}", guard.stderr());
            assert!(!allowed(&network, ALICE));
            let said = guard.stderr();
            assert_eq!(said.matches("cannot watch").count(), 1, "{said}");
            guard.stop();
            if !more.is_empty() {
                let stopped = tc_guard(&network, &bpffs, &["stop"]);
                assert!(stopped.status.success(), "{}", stderr(&stopped));
            }
            for name in ["b/c", "b/d"] {
                while std::fs::remove_dir(slice.at.join(name)).is_err() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    /// All of inotify that a user may have, as long as it lives.
    fn quota() -> Background {
        let all = "import ctypes, sys\n\
                   libc = ctypes.CDLL(None, use_errno=True)\n\
                   while libc.inotify_init() >= 0: pass\n\
                   print('here' if ctypes.get_errno() == 24 else ctypes.get_errno(), flush=True)\n\
                   sys.stdin.read()\n";
        let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap();
        let most: u64 = most.trim().parse().unwrap();
        let id = SERVICE.to_string();
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={}", most + 64));
        command.args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"]);
        command.args([python3(), "-c", all]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("prlimit");
        let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_eq!(line, "here\n");
        Background(child)
    }

    #[test]
    fn a_quota_that_is_used_up_does_not_keep_a_guard_from_guarding() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let slice = Slice::new();
        let rule = slice.rule();
        let used_up = quota();
        let guard = start(&network, &bpffs, &["--pin", "--allow-cgroup", &rule]);
        assert!(!allowed(&network, ALICE) && allowed(&network, BOB));
        let said = guard.stderr();
        assert_eq!(said.matches("EMFILE").count(), 2, "{said}");
        slice.make("c");
        assert!(slice.wait_for_allowed(&network), "{}", guard.stderr());
        // What is free again is taken.
        drop(used_up);
        std::fs::remove_dir(slice.at.join("b/c")).ok();
        let watches = || {
            let folder = std::fs::read_dir(format!("/proc/{}/fd", guard.pid())).unwrap();
            let targets = folder
                .flatten()
                .filter_map(|at| std::fs::read_link(at.path()).ok());
            let inotify = |at: &PathBuf| at.to_string_lossy().contains("inotify");
            targets.filter(inotify).count()
        };
        guard.wait("watching", |_| watches() == 2);
        guard.stop();
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
    }

    #[test]
    fn root_knows_the_process_of_a_service_s_guard_and_ends_it() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let guard = start(&network, &bpffs, &["--pin"]);
        assert_eq!(status(&network, &bpffs)["pid"], guard.pid());
        let (findings, _) = check(&network, &bpffs);
        let follower = |at: &&Value| at["what"].as_str().unwrap().contains("no process follows");
        assert_eq!(findings.iter().find(follower), None);
        let second = tc_guard(&network, &bpffs, &["run", "--pin", "--cloud", "aws"]);
        let runs = format!("already (process {})", guard.pid());
        assert!(stderr(&second).contains(&runs), "{}", stderr(&second));
        let stopped = tc_guard(&network, &bpffs, &["stop"]);
        assert!(stopped.status.success(), "{}", stderr(&stopped));
        assert_eq!(guard.ended().code, Some(0));
        assert!(allowed(&network, ALICE));
    }

    /// Root asks, who could tell them apart.
    #[test]
    fn whether_the_guard_tells_namespaces_apart_is_told_of_its_own_capabilities() {
        let network = Network::new();
        for (capabilities, apart) in [
            (CAPABILITIES, true),
            ("+bpf,+net_admin", features::tc_knows_namespaces()),
        ] {
            let bpffs = Bpffs::new();
            for pins in [&[][..], &["--pin"]] {
                let guard = Tool::spawn(command_with(capabilities, &network, &bpffs, pins));
                // Before 6.15 the verifier may ask for it, by what a processor might guess.
                if !guard.becomes_ready() {
                    assert!(!apart && guard.stderr().contains("CAP_PERFMON is missing"));
                    continue;
                }
                let (findings, _) = check(&network, &bpffs);
                let gap = |at: &Value| at["what"].as_str().unwrap().starts_with("TC does not tell");
                let told = (pins, findings.iter().any(gap));
                assert_eq!(told, (pins, !apart), "{findings:#?}");
                guard.stop();
            }
            tc_guard(&network, &bpffs, &["stop"]);
        }
    }

    /// As in a container of the machine's network namespace whose capabilities were dropped.
    #[test]
    fn a_process_of_root_that_may_nothing_is_not_taken_for_a_guard() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let folder = tempfile::tempdir().unwrap();
        // By this name it is known.
        let program = folder.path().join("ebpfkit");
        let interpreter = std::fs::canonicalize(
            Command::new(python3())
                .args(["-c", "import sys; print(sys.executable, end='')"])
                .output()
                .map(|output| String::from_utf8(output.stdout).unwrap())
                .unwrap(),
        );
        copy_program(interpreter.unwrap(), &program);
        let mut forger = network.machine.command("setpriv");
        forger.args(["--bounding-set=-all", "--inh-caps=-all", "--"]);
        forger.arg(&program).args([
            "-c",
            "import socket, sys\n\
             s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
             s.bind('\\0ebpfkit-tc-guard')\n\
             s.listen(9)\n\
             print('here', flush=True)\n\
             sys.stdin.read()\n",
        ]);
        forger.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut forger = Background(forger.spawn().expect("setpriv"));
        let mut line = String::new();
        let mut said = std::io::BufReader::new(forger.0.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_eq!(line, "here\n");
        let exe = std::fs::read_link(format!("/proc/{}/exe", forger.0.id())).unwrap();
        assert_eq!(exe, program);

        assert_eq!(status(&network, &bpffs)["state"], "none");
        let (findings, code) = check(&network, &bpffs);
        assert_eq!((&findings[0]["state"], code), (&"gap".into(), Some(1)));
        let guard = super::common::tc_guard::start(&network, &bpffs, &[]);
        assert!(!allowed(&network, ALICE) && allowed(&network, BOB));
        guard.stop();
    }

    #[test]
    fn of_three_that_start_at_once_one_guards() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        let tools: Vec<_> = (0..3)
            .map(|_| Tool::spawn(command(&network, &bpffs, &[])))
            .collect();
        let mut guarding = Vec::new();
        for tool in tools {
            tool.wait("ready or refused", |tool| {
                tool.count("ready") > 0 || tool.stderr().contains("already")
            });
            if tool.count("ready") > 0 {
                guarding.push(tool);
            } else {
                assert_eq!(tool.ended().code, Some(1));
            }
        }
        assert_eq!(guarding.len(), 1);
        guarding.remove(0).stop();
    }

    #[test]
    fn a_service_is_no_second_guard_and_says_where_another_one_may_be_that_it_cannot_see() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let (bpffs, other) = (Bpffs::new(), Bpffs::new());
        super::common::tc_guard::start(&network, &bpffs, &["--pin"]).stop();
        for more in [&[][..], &["--pin"]] {
            let refused = command(&network, &other, more).output().unwrap();
            assert_eq!(refused.status.code(), Some(1), "{refused:?}");
            let said = stderr(&refused);
            assert!(said.contains("another guard is in force at eth0"), "{said}");
        }
        // Some kernels take the programs without CAP_PERFMON.
        let blind = Tool::spawn(command_with("+bpf,+net_admin", &network, &other, &[]));
        blind.wait("ready or refused", |tool| {
            tool.count("ready") > 0 || tool.stderr().contains("CAP_PERFMON is missing")
        });
        if blind.count("ready") > 0 {
            blind.wait("that it cannot see", |guard| {
                let said = guard.stderr();
                said.contains("cannot be seen without CAP_PERFMON or CAP_SYS_ADMIN")
            });
            assert!(!allowed(&network, ALICE) && allowed(&network, BOB));
            blind.stop();
        }
        assert!(!allowed(&network, ALICE) && allowed(&network, BOB));
        super::common::tc_guard::stop(&network, &bpffs);
    }

    #[test]
    fn nobody_is_sent_to_look_for_pins_that_a_service_s_guard_does_not_have() {
        let network = Network::new();
        let bpffs = Bpffs::new();
        let guard = start(&network, &bpffs, &[]);
        // Where nothing says whom root trusts.
        let other = Bpffs::new();
        let shown = status(&network, &other);
        assert_eq!(
            (&shown["state"], shown.get("pid")),
            (&"foreground".into(), None)
        );
        for args in [&["run", "--cloud", "aws"][..], &["stop"]] {
            let refused = tc_guard(&network, &other, args);
            assert_eq!(refused.status.code(), Some(1), "{refused:?}");
            let said = stderr(&refused);
            assert!(said.contains("not pinned: it is the own"), "{said}");
            assert!(!said.contains("--bpffs"), "{said}");
        }
        let (findings, _) = check(&network, &other);
        let first = findings[0]["what"].as_str().unwrap();
        assert!(first.starts_with("a process guards"), "{first}");
        guard.stop();
    }
}
