// SPDX-License-Identifier: BSD-2-Clause

//! `kill -9` of `ebpfkit tc-guard` at any moment: as it starts, takes a guard over, runs, or replaces a
//! policy. What is left is the whole guard or nothing, and in nobody's way.

mod common;

mod root {
    use std::path::Path;
    use std::thread;
    use std::time::{Duration, Instant};

    use ebpfkit::kernel::pin::{FOLDER, Shelf};
    use ebpfkit::tools::tc_guard::Guard;
    use nix::sys::signal::Signal;

    use super::common::tc_guard::{
        allowed, start, start_with, status as status_of, stop, tc_guard,
    };
    use super::common::{ALICE, BOB, Bpffs, MetadataService, Network, Tool, ebpfkit_path, sh};

    /// What is at an interface's hooks that `tc` sees.
    fn filters(network: &Network, side: &str) -> String {
        let mut tc = std::process::Command::new("tc");
        sh(tc
            .args(["-n", network.machine.name()])
            .args(["filter", "show", "dev", "eth0", side]))
    }

    /// The policies that allow Alice and Bob alone.
    fn policies(folder: &Path) -> [String; 2] {
        [ALICE, BOB].map(|user| {
            let path = folder.join(format!("{user}.toml"));
            let text = format!("[[rule]]\nclouds = [\"aws\"]\nusers = [{user}]\n");
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        })
    }

    /// A random part of `whole`, by the kernel's own numbers, and said in case of a failure.
    fn part_of(whole: Duration) -> Duration {
        let mut bytes = [0; 4];
        let mut random = std::fs::File::open("/dev/urandom").unwrap();
        std::io::Read::read_exact(&mut random, &mut bytes).unwrap();
        let part = whole.mul_f64(f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX));
        eprintln!("killed after {part:?} of {whole:?}");
        part
    }

    /// How often: an emulated machine takes seconds for each.
    fn rounds(many: u32) -> u32 {
        if std::env::var_os("EBPFKIT_VM").is_some() {
            many / 2
        } else {
            many
        }
    }

    /// So many starts, each killed at another moment, from right away to when it was ready.
    #[test]
    fn a_guard_that_is_killed_as_it_starts_is_whole_or_judges_nothing() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let bob = BOB.to_string();
        let took = {
            let began = Instant::now();
            let guard = start(&network, &bpffs, &["--pin"]);
            let took = began.elapsed();
            guard.stop();
            assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
            took
        };
        let (mut whole, mut nothing) = (0, 0);
        let rounds = rounds(20);
        for round in 0..rounds {
            let mut command = network.machine.command(ebpfkit_path());
            command.args(["tc-guard", "run", "--pin", "--bpffs", bpffs.text()]);
            command.args(["--cloud", "aws", "--allow-user", &bob]);
            let tool = Tool::spawn(command);
            if round < rounds - 1 {
                thread::sleep(took * round / (rounds - 2));
            } else {
                tool.wait("ready", |tool| tool.stderr().contains("ready"));
            }
            tool.signal(Signal::SIGKILL);
            tool.ended();
            let status = status_of(&network, &bpffs);
            let denied = !allowed(&network, ALICE);
            match status["state"].as_str().unwrap() {
                "pinned" => {
                    assert!(denied && allowed(&network, BOB), "{status}");
                    assert_eq!(status["interfaces"][0]["whole"], true, "{status}");
                    assert_eq!(status["layers"], serde_json::json!(["tc", "connect"]));
                    whole += 1;
                }
                "none" | "remains" => {
                    assert!(!denied, "{status}");
                    nothing += 1;
                }
                other => panic!("{other}"),
            }
            if round % 3 == 0 {
                // What is left is cleared away; else the next start finds it.
                tc_guard(&network, &bpffs, &["stop"]);
                assert_eq!(status_of(&network, &bpffs)["state"], "none");
                assert_eq!(
                    filters(&network, "egress") + &filters(&network, "ingress"),
                    ""
                );
            }
        }
        assert!(whole > 0, "{whole} whole, {nothing} nothing");
    }

    /// A guard of a process that was killed, which does not judge, on its shelf or on what is not finished of one: as
    /// when that was killed in the midst of pinning it, or of taking it away.
    fn left_over(network: &Network, bpffs: &Bpffs, is_finished: bool) {
        let guard = start(network, bpffs, &["--pin"]);
        guard.signal(Signal::SIGKILL);
        guard.ended();
        let folder = bpffs.path().join(FOLDER);
        let entries = std::fs::read_dir(&folder).unwrap().flatten();
        let name = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .find(|name| name.starts_with("tc-guard-"));
        let shelf = Shelf::new(bpffs.path(), FOLDER, &name.unwrap());
        Guard::open(&shelf).unwrap().disarm().unwrap();
        if !is_finished {
            let unfinished = format!("{}:new", shelf.path().display());
            std::fs::rename(shelf.path(), unfinished).unwrap();
        }
    }

    #[test]
    fn what_a_kill_has_left_of_pins_is_in_nobody_s_way() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        for is_finished in [false, true] {
            for next in [None, Some(&[][..]), Some(&["--pin"])] {
                left_over(&network, &bpffs, is_finished);
                assert_eq!(status_of(&network, &bpffs)["state"], "remains");
                assert!(allowed(&network, ALICE));
                if let Some(pins) = next {
                    let guard = start(&network, &bpffs, pins);
                    assert!(!allowed(&network, ALICE) && allowed(&network, BOB));
                    guard.stop();
                }
                if next.is_none_or(|pins| !pins.is_empty()) {
                    stop(&network, &bpffs);
                }
                assert_eq!(status_of(&network, &bpffs)["state"], "none");
                assert!(allowed(&network, ALICE));
                assert_eq!(
                    filters(&network, "egress") + &filters(&network, "ingress"),
                    ""
                );
            }
        }
    }

    #[test]
    fn a_reload_that_is_killed_leaves_the_old_policy_or_the_new_one() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let folder = tempfile::tempdir().unwrap();
        let policies = policies(folder.path());
        start_with(&network, &bpffs, &policies[0]).stop();
        let reload = |policy: &str| {
            let mut command = network.machine.command(ebpfkit_path());
            command.args([
                "tc-guard",
                "reload",
                "--bpffs",
                bpffs.text(),
                "--config",
                policy,
            ]);
            Tool::spawn(command)
        };
        let start = Instant::now();
        assert_eq!(reload(&policies[1]).ended().code, Some(0));
        let took = start.elapsed();
        let mut in_force = 1;
        let (mut old, mut new) = (0, 0);
        let rounds = rounds(12);
        for round in 0..rounds {
            let tool = reload(&policies[1 - in_force]);
            if round < rounds - 1 {
                thread::sleep(took * round / (rounds - 2));
                tool.signal(Signal::SIGKILL);
                tool.ended();
            } else {
                // And what the killed ones have left is in nobody's way.
                assert_eq!(tool.ended().code, Some(0));
            }
            let open = [ALICE, BOB].map(|user| allowed(&network, user));
            assert_ne!(open[0], open[1], "round {round}");
            if open[in_force] {
                old += 1;
            } else {
                in_force = 1 - in_force;
                new += 1;
            }
            let status = status_of(&network, &bpffs);
            assert_eq!(status["config"], policies[in_force].as_str(), "{status}");
        }
        assert!(new > 0, "{old} old, {new} new");
        assert!(tc_guard(&network, &bpffs, &["stop"]).status.success());
    }

    /// Whose policy is in force, which must be in force in all its parts: of the two users one is allowed
    /// by both layers, at every interface that was there.
    fn in_force(network: &Network, bpffs: &Bpffs, policies: &[String; 2]) -> usize {
        let status = status_of(network, bpffs);
        assert_eq!(status["state"], "pinned", "{status}");
        assert_eq!(status["layers"], serde_json::json!(["tc", "connect"]));
        assert_eq!(status["interfaces"][0]["name"], "eth0", "{status}");
        assert_eq!(status["interfaces"][0]["whole"], true, "{status}");
        let open = [ALICE, BOB].map(|user| allowed(network, user));
        assert_ne!(open[0], open[1], "{status}");
        let in_force = usize::from(open[1]);
        assert_eq!(status["config"], policies[in_force].as_str(), "{status}");
        in_force
    }

    /// Each takes over what the killed one before it has left.
    #[test]
    fn a_takeover_that_is_killed_leaves_the_old_policy_or_the_new_one() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let folder = tempfile::tempdir().unwrap();
        let policies = policies(folder.path());
        let take_over = |policy: &str| {
            let mut command = network.machine.command(ebpfkit_path());
            command.args(["tc-guard", "run", "--pin", "--bpffs", bpffs.text()]);
            command.args(["--config", policy]);
            Tool::spawn(command)
        };
        let ready = |tool: &Tool| tool.wait("ready", |tool| tool.stderr().contains("ready"));
        let first = take_over(&policies[0]);
        ready(&first);
        first.stop();
        let began = Instant::now();
        let second = take_over(&policies[1]);
        ready(&second);
        let took = began.elapsed();
        second.stop();
        let mut now = 1;
        let (mut old, mut new) = (0, 0);
        let rounds = rounds(12);
        for round in 0..rounds {
            let tool = take_over(&policies[1 - now]);
            if round < rounds - 1 {
                thread::sleep(part_of(took));
            } else {
                ready(&tool);
            }
            tool.signal(Signal::SIGKILL);
            tool.ended();
            let found = in_force(&network, &bpffs, &policies);
            *(if found == now { &mut old } else { &mut new }) += 1;
            now = found;
        }
        assert!(new > 0, "{old} old, {new} new");
        stop(&network, &bpffs);
    }

    /// While interfaces come and go, users are refused and policies are replaced.
    #[test]
    fn a_guard_that_is_killed_as_it_runs_judges_as_before_or_is_gone() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let folder = tempfile::tempdir().unwrap();
        let policies = policies(folder.path());
        let guard = |pin: &[&str]| {
            let run = ["tc-guard", "run", "--bpffs", bpffs.text()];
            let config = ["--config", &policies[0]];
            Tool::start(&network.machine, &[&run[..], &config, pin].concat())
        };
        let machine = &network.machine;
        let late = [
            "link", "add", "late0", "type", "veth", "peer", "name", "late1",
        ];
        for round in 0..5 {
            let tool = guard(&["--pin"]);
            let mut reload = machine.command(ebpfkit_path());
            reload.args(["tc-guard", "reload", "--bpffs", bpffs.text(), "--config"]);
            let began = Instant::now();
            let reload = Tool::spawn({
                reload.arg(&policies[1]);
                reload
            });
            machine.ip(&late);
            thread::sleep(part_of(began.elapsed() * 3));
            tool.signal(Signal::SIGKILL);
            tool.ended();
            // Nobody has killed this one.
            assert_eq!(reload.ended().code, Some(0), "round {round}");
            assert_eq!(in_force(&network, &bpffs, &policies), 1, "round {round}");
            machine.ip(&["link", "del", "late0"]);
        }
        stop(&network, &bpffs);
        for _ in 0..3 {
            let tool = guard(&[]);
            machine.ip(&late);
            thread::sleep(part_of(Duration::from_millis(100)));
            tool.signal(Signal::SIGKILL);
            tool.ended();
            assert!(allowed(&network, ALICE) && allowed(&network, BOB));
            machine.ip(&["link", "del", "late0"]);
        }
    }
}
