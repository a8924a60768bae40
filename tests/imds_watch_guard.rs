// SPDX-License-Identifier: BSD-2-Clause

//! imds-watch beside a guard: requests of users whom the policy in force does not name.

mod common;

mod root {
    use std::fs;
    use std::process::Command;

    use serde_json::{Value, json};

    use crate::common::{
        ALICE, BOB, Bpffs, IMDS4, MetadataService, Network, TOKEN, Tool, copy_program,
        ebpfkit_path, sh,
    };

    fn watch(network: &Network, args: &[&str]) -> Tool {
        let mut all = vec!["imds-watch", "--cloud", "aws"];
        all.extend(args);
        Tool::start(&network.machine, &all)
    }

    /// A guard that only reports, so that everybody's requests are sent.
    fn guard(network: &Network, bpffs: &Bpffs, more: &[&str]) -> Tool {
        let alice = ALICE.to_string();
        let mut all = vec!["tc-guard", "run", "--bpffs", bpffs.text(), "--cloud", "aws"];
        all.extend(["--audit", "--allow-user", &alice]);
        all.extend(more);
        Tool::start(&network.machine, &all)
    }

    fn ask(network: &Network, uid: u32, path: &str) {
        let header = format!("X-aws-ec2-metadata-token: {TOKEN}");
        let url = format!("http://{IMDS4}{path}");
        let output = network.curl(uid, &["-H", &header, &url]);
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    fn the_policy_of_a_pinned_guard_counts_and_so_does_one_that_replaces_it() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        // It stays when its process ends.
        guard(&network, &bpffs, &["--pin"]).stop();
        let tool = watch(&network, &["--bpffs", bpffs.text()]);
        assert!(tool.stderr().contains("a guard is in force here"));
        for uid in [ALICE, BOB] {
            ask(&network, uid, "/latest/first");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.toml");
        let policy = format!("[[rule]]\nclouds = [\"aws\"]\nusers = [{BOB}]\nmode = \"audit\"\n");
        fs::write(&file, policy).unwrap();
        let tc_guard = |args: &[&str]| {
            let mut command = network.machine.command(ebpfkit_path());
            command.arg("tc-guard").args(args);
            sh(command.args(["--bpffs", bpffs.text()]))
        };
        tc_guard(&["reload", "--config", file.to_str().unwrap()]);
        tool.wait("the new policy", |tool| {
            tool.stderr().contains("the guard has another policy")
        });
        for uid in [ALICE, BOB] {
            ask(&network, uid, "/latest/second");
        }
        tc_guard(&["stop"]);
        tool.wait("the guard's end", |tool| {
            tool.stderr().contains("the guard has gone")
        });
        ask(&network, ALICE, "/latest/third");
        let ended = tool.stop();
        let found: Vec<_> = ended
            .kind("request")
            .into_iter()
            .map(|event| (&event["uid"], &event["path"], &event["findings"]))
            .collect();
        let unknown = json!(["unknown-user"]);
        let expected = [
            (json!(BOB), json!("/latest/first")),
            (json!(ALICE), json!("/latest/second")),
            (json!(ALICE), json!("/latest/third")),
        ];
        let expected: Vec<(&Value, &Value, &Value)> = expected
            .iter()
            .map(|(uid, path)| (uid, path, &unknown))
            .collect();
        assert_eq!(found, expected, "{ended:#?}");
        // Those of the others woke nobody.
        assert_eq!(ended.summary()["clean"], 2, "{ended:#?}");
    }

    #[test]
    fn a_guard_that_is_not_to_be_asked_is_told_about() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let bpffs = Bpffs::new();
        let note = "no user is judged by a guard's policy";
        // A process's own.
        let own = guard(&network, &bpffs, &[]);
        let tool = watch(&network, &[]);
        ask(&network, BOB, "/latest/a");
        let ended = tool.stop();
        assert!(ended.stderr.contains(note), "{}", ended.stderr);
        assert!(ended.stderr.contains("--policy"), "{}", ended.stderr);
        assert_eq!(ended.kind("request").len(), 0, "{ended:#?}");
        own.stop();
        // Without the privilege to look at it.
        guard(&network, &bpffs, &["--pin"]).stop();
        let binary = bpffs
            .path()
            .parent()
            .unwrap()
            .join(format!("ebpfkit-unprivileged-{}", std::process::id()));
        copy_program(ebpfkit_path(), &binary);
        let caps = "+net_raw,+bpf,+perfmon,+net_admin";
        let mut command = network.machine.command("setpriv");
        command.args(["--reuid", &ALICE.to_string(), "--clear-groups"]);
        command.args(["--inh-caps", caps, "--ambient-caps", caps, "--"]);
        command.arg(&binary).args(["imds-watch", "--cloud", "aws"]);
        let output = command.args(["--bpffs", bpffs.text()]).output();
        fs::remove_file(&binary).unwrap();
        let output = output.unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_ne!(output.status.code(), Some(0), "{err}");
        assert!(err.contains("permission denied"), "{err}");
        assert!(err.contains("CAP_DAC_READ_SEARCH"), "{err}");
        // One that is given goes before one that is found.
        let tool = watch(&network, &["--ignore-guard"]);
        assert!(!tool.stderr().contains("guard"), "{}", tool.stderr());
        tool.stop();
        let output = Command::new(ebpfkit_path())
            .args(["imds-watch", "--bpffs", "/proc", "--allow-user", "0"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}
