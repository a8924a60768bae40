// SPDX-License-Identifier: BSD-2-Clause

//! imds-watch's live view, on a terminal of its own.

mod common;

mod root {
    use std::process::{Command, Stdio};

    use crate::common::{ALICE, IMDS4, MetadataService, Network, ebpfkit_path, python3, sh};

    /// Runs the view on a terminal until it is ready, has a request made, waits until that is on the
    /// screen, ends the view, and prints whether the screen was left, the terminal is as it was, and
    /// what came after it.
    const ON_A_TERMINAL: &str = r#"
import fcntl, os, pty, select, signal, struct, subprocess, sys, termios, time
main, other = pty.openpty()
fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
before = termios.tcgetattr(other)
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(other, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(other, number)
    os.environ["TERM"] = "xterm"
    os.execv(sys.argv[1], [sys.argv[1], "imds-watch", "--cloud", "aws", "--live"])
seen, asked, told, ended = b"", False, False, 0
patience = time.monotonic() + 60
while not ended:
    if time.monotonic() > patience:
        os.kill(pid, signal.SIGKILL)
    if select.select([main], [], [], 0.05)[0]:
        seen += os.read(main, 65536)
    else:
        ended, status = os.waitpid(pid, os.WNOHANG)
    if b"nobody" in seen and not asked:
        asked = True
        assert termios.tcgetattr(other)[3] & termios.ECHO == 0
        subprocess.run(["setpriv", "--reuid", sys.argv[3], "curl", "-sS", "--noproxy", "*", sys.argv[4]],
                       stdout=subprocess.DEVNULL, check=True)
    # Only what has changed is drawn, word by word.
    if b"imdsv1,user-data" in seen and not told:
        told = True
        if sys.argv[2] == "q":
            os.write(main, b"q")
        else:
            os.kill(pid, getattr(signal, sys.argv[2]))
screen, left, after = seen.partition(b"\x1b[?1049l")
same = termios.tcgetattr(other) == before
print(os.waitstatus_to_exitcode(status), told, bool(left), same)
print(after.decode(errors="replace") if left else seen)
"#;

    #[test]
    fn the_view_shows_who_asked_and_gives_the_terminal_back_however_it_ends() {
        let network = Network::new();
        let _service = MetadataService::start(&network);
        for how in ["q", "SIGTERM"] {
            let mut command = network.machine.command(python3());
            command.args(["-c", ON_A_TERMINAL]).arg(ebpfkit_path());
            command.args([how, &ALICE.to_string()]);
            command.arg(format!("http://{IMDS4}/latest/user-data"));
            let out = sh(&mut command);
            let (first, after) = out.split_once('\n').unwrap();
            assert_eq!(first, "0 True True True", "{how}: {out}");
            // The table stays to be read.
            for part in [
                "v1 1",
                "curl[",
                "/latest/user-data",
                "safe to require IMDSv2:",
                "1 calls had no session token",
                "1 requests shown",
            ] {
                assert!(after.contains(part), "{how}: {part} is not in {after}");
            }
        }
    }

    #[test]
    fn the_view_needs_a_terminal_and_no_json() {
        for (args, named) in [
            (vec!["imds-watch", "--live"], "--live: standard input"),
            (vec!["-o", "json", "imds-watch", "--live"], "-o json"),
        ] {
            let output = Command::new(ebpfkit_path())
                .args(args)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let err = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{err}");
            assert!(err.contains(named), "{err}");
        }
    }
}
