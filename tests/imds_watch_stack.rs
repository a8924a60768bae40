// SPDX-License-Identifier: BSD-2-Clause

//! `ebpfkit imds-watch --stack`, with what the machines of tests/vm have; tests/imds_watch_programs.rs
//! has other programs.

mod common;

mod root {
    use std::process::Stdio;

    use crate::common::{ALICE, Background, IMDS4, MetadataService, Network, Tool, ebpfkit_path};

    fn url() -> String {
        format!("http://{IMDS4}/latest/meta-data/")
    }

    #[test]
    fn the_functions_that_opened_the_connection_are_told() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let args = ["imds-watch", "--cloud", "aws", "--stack"];
        let tool = Tool::start(&network.machine, &args);
        // It stays until its files were read.
        let script = format!(
            "import socket,sys\ns=socket.create_connection((\"{IMDS4}\",80))\n\
             for _ in range(2):\n s.sendall(b'GET /latest/meta-data/ HTTP/1.1\\r\\n\\r\\n')\n s.recv(9999)\n\
             sys.stdin.readline()"
        );
        let mut command = network.machine.command_as(ALICE, "/usr/bin/python3");
        command.args(["-c", &script]).stdin(Stdio::piped());
        let mut child = Background(command.spawn().unwrap());
        tool.wait("both requests", |tool| tool.count("request") == 2);
        drop(child.0.stdin.take());
        child.0.wait().unwrap();
        let ended = tool.stop();
        for event in ended.kind("request") {
            let first = &event["stack"][0];
            assert!(first["address"].as_str().unwrap().starts_with("0x"));
            assert!(first["file"].as_str().unwrap().contains("/libc"), "{event}");
            let function = first["function"].as_str().unwrap();
            assert!(function.contains("connect"), "{event}");
        }
    }

    #[test]
    fn nothing_is_said_of_stacks_unless_it_is_asked_for() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        let tool = Tool::start(&network.machine, &["imds-watch", "--cloud", "aws"]);
        network.curl(ALICE, &[&url()]);
        let ended = tool.stop();
        let event = ended.kind("request")[0];
        assert!(event.get("stack").is_none() && event.get("stack_reason").is_none());
    }

    #[test]
    fn without_what_it_takes_it_is_refused_with_the_reason() {
        let network = Network::new();
        let mut command = network.machine.command("setpriv");
        command
            .args(["--bounding-set=-net_admin", "--"])
            .arg(ebpfkit_path())
            .args(["imds-watch", "--stack"]);
        let output = command.output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{err}");
        assert!(err.contains("--stack"), "{err}");
        assert!(err.contains("CAP_NET_ADMIN is missing"), "{err}");
    }
}
