// SPDX-License-Identifier: BSD-2-Clause

//! The life of `ebpfkit tc-guard` on a machine: interfaces that come and go, a guard that stays, and
//! what is done to it.

mod common;

mod root {
    use std::process::{Command, Output};

    use ebpfkit::kernel::tc::Method;
    use ebpfkit::tools::tc_guard::Guard;
    use nix::sys::signal::Signal;
    use serde_json::Value;

    use super::common::{
        ALICE, BOB, Bpffs, CLOUD4, MACHINE4, MetadataService, Network, Tool, ebpfkit_path, sh,
    };

    const V4: &str = "http://169.254.169.254/latest/meta-data/";

    /// A guard of the AWS addresses that allows Bob.
    fn args<'a>(bpffs: &'a Bpffs, bob: &'a str) -> Vec<&'a str> {
        let guarded = ["--cloud", "aws", "--allow-user", bob];
        let mut all = vec!["tc-guard", "run", "--bpffs", bpffs.text()];
        all.extend(guarded);
        all
    }

    fn start(network: &Network, bpffs: &Bpffs, more: &[&str]) -> Tool {
        let bob = BOB.to_string();
        let mut all = args(bpffs, &bob);
        all.extend(more);
        Tool::start(&network.machine, &all)
    }

    fn tc_guard(network: &Network, bpffs: &Bpffs, args: &[&str]) -> Output {
        let mut command = network.machine.command(ebpfkit_path());
        command.args(["-o", "json", "tc-guard"]).args(args);
        command.args(["--bpffs", bpffs.text()]);
        command.output().expect("ebpfkit runs")
    }

    fn status(network: &Network, bpffs: &Bpffs) -> Value {
        let output = tc_guard(network, bpffs, &["status"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|err| panic!("{err}: {output:?}"))
    }

    fn stderr(output: &Output) -> String {
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn allowed(network: &Network, uid: u32) -> bool {
        network.curl(uid, &[V4]).status.success()
    }

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
}
