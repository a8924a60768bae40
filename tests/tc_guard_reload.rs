// SPDX-License-Identifier: BSD-2-Clause

//! What a policy has granted is gone with it: `ebpfkit tc-guard reload` while sockets are open.

mod common;

mod root {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{ChildStdin, ChildStdout, Command, Stdio};

    use super::common::tc_guard::{start_with, status, stderr, stop, tc_guard};
    use super::common::{ALICE, BOB, Background, Bpffs, CLOUD4, Network, python3};

    /// A group without a name.
    const OPERATORS: u32 = 54400;

    /// Sends a datagram by its one socket to each port that it is told, and says when.
    const SENDER: &str = "
import signal, socket, sys
signal.alarm(300)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
connected = False
for line in sys.stdin:
    port = int(line)
    try:
        if sys.argv[2] == 'connected':
            if not connected:
                s.connect((sys.argv[1], port))
            connected = True
            # Nobody listens: what is told of the datagram before ends the next call, which then sends nothing.
            s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            # No hook sees this one, only the packet's.
            s.send(b'x')
        else:
            s.sendto(b'x', (sys.argv[1], port))
    except OSError:
        pass
    print(port, flush=True)
";

    struct Sender {
        stdin: ChildStdin,
        said: BufReader<ChildStdout>,
        _child: Background,
    }

    impl Sender {
        fn start(mut command: Command, how: &str) -> Self {
            let mut child = command
                .args(["-c", SENDER, CLOUD4, how])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            Self {
                stdin: child.stdin.take().unwrap(),
                said: BufReader::new(child.stdout.take().unwrap()),
                _child: Background(child),
            }
        }

        fn send(&mut self, port: u16) {
            writeln!(self.stdin, "{port}").unwrap();
            let mut line = String::new();
            self.said.read_line(&mut line).unwrap();
            assert_eq!(line.trim(), port.to_string());
        }
    }

    /// Allowed and denied so far.
    fn counted(network: &Network, bpffs: &Bpffs) -> (u64, u64) {
        let status = status(network, bpffs);
        let count = |name: &str| status["counters"][name].as_u64().unwrap();
        (count("allowed"), count("denied"))
    }

    /// Starts a guard with the first policy; the second one replaces it between two calls of `send`.
    fn over_a_reload(
        first: &str,
        second: &str,
        sender: impl FnOnce(&Network) -> Sender,
        send: impl Fn(&mut Sender),
    ) -> [(u64, u64); 2] {
        let network = Network::new();
        let bpffs = Bpffs::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        std::fs::write(&path, first).unwrap();
        let path = path.to_str().unwrap();
        let guard = start_with(&network, &bpffs, path);
        let mut sender = sender(&network);
        send(&mut sender);
        let before = counted(&network, &bpffs);
        std::fs::write(path, second).unwrap();
        let output = tc_guard(&network, &bpffs, &["reload"]);
        assert!(output.status.success(), "{}", stderr(&output));
        send(&mut sender);
        let (allowed, denied) = counted(&network, &bpffs);
        guard.stop();
        stop(&network, &bpffs);
        [before, (allowed - before.0, denied - before.1)]
    }

    fn rule(port: u16, subject: &str) -> String {
        format!("[[rule]]\nendpoints = [\"{CLOUD4}:{port}/udp\"]\n{subject}\n")
    }

    #[test]
    fn what_a_socket_was_granted_is_gone_with_the_policy() {
        let (alice, bob) = (format!("users = [{ALICE}]"), format!("users = [{BOB}]"));
        let counted = over_a_reload(
            &[rule(9001, &alice), rule(9002, &bob)].concat(),
            &[rule(9001, &bob), rule(9002, &alice)].concat(),
            |network| Sender::start(network.machine.command_as(ALICE, python3()), "free"),
            |sender| {
                [9001, 9002, 9001]
                    .into_iter()
                    .for_each(|port| sender.send(port))
            },
        );
        assert_eq!(counted, [(2, 1), (1, 2)]);
    }

    #[test]
    fn the_groups_of_a_caller_say_nothing_of_another_policy_s_rules() {
        // Rules are told apart by their number, and the first one is for others then.
        let (group, bob) = (
            format!("groups = [{OPERATORS}]"),
            format!("users = [{BOB}]"),
        );
        let counted = over_a_reload(
            &rule(9001, &group),
            &rule(9001, &bob),
            |network| {
                let mut command = network.machine.command("setpriv");
                command.args(["--reuid", &ALICE.to_string()]);
                command.args(["--regid", &OPERATORS.to_string(), "--clear-groups", "--"]);
                command.arg(python3());
                Sender::start(command, "connected")
            },
            |sender| sender.send(9001),
        );
        assert_eq!(counted, [(1, 0), (0, 1)]);
    }
}
