// SPDX-License-Identifier: BSD-2-Clause

//! `examples/demo/run` and the metadata service that it is played with.

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::python3;

fn demo(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples/demo")
        .join(file)
}

/// The made-up metadata service, on a free port of the loopback.
struct Service {
    child: Child,
    place: String,
}

impl Service {
    fn start(options: &[&str]) -> Self {
        let mut child = Command::new(python3())
            .arg(demo("imds.py"))
            .args(options)
            .arg("127.0.0.1:0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 runs");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .expect("a line");
        let place = line.trim().strip_prefix("ready ").expect(&line).to_owned();
        Self { child, place }
    }

    /// The status and the body of the answer.
    fn ask(&self, path: &str, options: &[&str]) -> (String, String) {
        let asked = Command::new("curl")
            .args(["-q", "-sS", "--max-time", "10", "--noproxy", "*"])
            .args(["-w", "\n%{http_code}"])
            .args(options)
            .arg(format!("http://{}{path}", self.place))
            .output()
            .expect("curl runs");
        let text = String::from_utf8(asked.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').expect(&text);
        (status.to_owned(), body.to_owned())
    }

    fn token(&self) -> String {
        let (status, token) = self.ask(
            "/latest/api/token",
            &[
                "-X",
                "PUT",
                "-H",
                "X-aws-ec2-metadata-token-ttl-seconds: 60",
            ],
        );
        assert_eq!(status, "200");
        token
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_metadata_service_gives_tokens_as_aws_does() {
    let service = Service::start(&[]);
    let put = |headers: &[&str]| {
        let mut options = vec!["-X", "PUT"];
        for header in headers {
            options.extend(["-H", header]);
        }
        service.ask("/latest/api/token", &options).0
    };
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 21600";
    assert_eq!(put(&[ttl]), "200");
    assert_eq!(put(&[]), "400");
    assert_eq!(put(&["X-aws-ec2-metadata-token-ttl-seconds: 21601"]), "400");
    assert_eq!(put(&["X-aws-ec2-metadata-token-ttl-seconds: 0"]), "400");
    assert_eq!(put(&[ttl, "X-Forwarded-For: 192.0.2.1"]), "403");
}

#[test]
fn the_metadata_service_answers_both_versions_and_refuses_a_wrong_token() {
    let service = Service::start(&[]);
    let path = "/latest/meta-data/instance-id";
    let id = ("200".to_owned(), "i-0123456789abcdef0".to_owned());
    let right = format!("X-aws-ec2-metadata-token: {}", service.token());
    assert_eq!(service.ask(path, &["-H", &right]), id);
    assert_eq!(service.ask(path, &[]), id);
    let wrong = ["-H", "X-aws-ec2-metadata-token: wrong"];
    assert_eq!(service.ask(path, &wrong).0, "401");
    assert_eq!(service.ask("/latest/none", &[]).0, "404");
    let (_, names) = service.ask("/latest/", &[]);
    assert_eq!(names, "dynamic/\nmeta-data/\nuser-data");
}

#[test]
fn the_metadata_service_can_insist_on_version_2() {
    let service = Service::start(&["--v2-only"]);
    let path = "/latest/user-data";
    assert_eq!(service.ask(path, &[]).0, "401");
    let right = format!("X-aws-ec2-metadata-token: {}", service.token());
    assert_eq!(service.ask(path, &["-H", &right]).0, "200");
}

mod root {
    use std::fs;
    use std::io::{BufRead as _, Read as _};
    use std::os::unix::fs::PermissionsExt as _;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::common::ebpfkit_path;
    use super::{BufReader, Child, Command, Path, PathBuf, Stdio, demo};

    fn start(ebpfkit: &Path) -> Child {
        Command::new(demo("run"))
            .env("EBPFKIT", ebpfkit)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the demonstration starts")
    }

    /// What it printed to standard output and standard error, and its exit status.
    fn play(ebpfkit: &Path) -> (String, String, Option<i32>) {
        let output = start(ebpfkit).wait_with_output().expect("it ends");
        (
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
            output.status.code(),
        )
    }

    /// The namespaces that it says it made are gone.
    fn assert_gone(pid: u32) {
        for name in ["machine", "cloud"] {
            let path = format!("/run/netns/ebpfkit-demo-{pid}-{name}");
            assert!(!Path::new(&path).exists(), "{path}");
        }
    }

    #[test]
    fn the_demonstration_shows_what_it_promises() {
        let demonstration = start(&ebpfkit_path());
        let pid = demonstration.id();
        let output = demonstration.wait_with_output().expect("it ends");
        let out = String::from_utf8(output.stdout).unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
        for line in [
            "the user nobody holds the machine's keys",
            "root reads metadata as before",
            "refused over IPv4 after ",
            "denied     user nobody",
            "-> 169.254.169.254:80/tcp (aws) in connect()",
            "the metadata service heard nothing of it",
            " imdsv1,credentials GET /latest/meta-data/iam/security-credentials/demo-role by curl[",
            "        POST /orders HTTP/1.1",
            "        HTTP/1.1 201 Created",
            "no filter, no process, no namespace, no file is left",
            "All of it was seen, in ",
        ] {
            assert!(out.contains(line), "no '{line}' in\n{out}");
        }
        assert!(
            out.contains(&format!("ebpfkit-demo-{pid}-machine")),
            "{out}"
        );
        assert!(
            !out.contains('\u{1b}'),
            "colours where there is no terminal"
        );
        assert_gone(pid);
    }

    /// ebpfkit, but for the calls that these arms of the shell's `case` take over; `$real` is the
    /// real one. It is gone with the folder.
    fn fake(arms: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let fake = folder.path().join("ebpfkit");
        let real = ebpfkit_path();
        let text = format!(
            "#!/bin/sh\nreal='{}'\ncase \"$*\" in\n{arms}\nesac\nexec \"$real\" \"$@\"\n",
            real.display()
        );
        fs::write(&fake, text).unwrap();
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
        (folder, fake)
    }

    /// A doctor who is done at once, where a test is not about it.
    const NO_DOCTOR: &str = "*doctor*) exit 0 ;;";

    #[test]
    fn a_guard_that_lets_through_fails_the_demonstration() {
        let lax = "*'tc-guard run'*) exec \"$real\" \"$@\" --audit ;;";
        let (_folder, lax) = fake(&format!("{NO_DOCTOR}\n{lax}"));
        let (out, err, code) = play(&lax);
        assert_eq!(code, Some(1), "{out}\n{err}");
        assert!(err.starts_with("demo: step 2 (tc-guard "), "{err}");
        assert!(err.contains("curl ended with 0"), "{err}");
    }

    #[test]
    fn where_doctor_finds_a_tool_blocked_it_says_so_and_ends_with_3() {
        let blocked = "sslsniff: blocked: CAP_PERFMON is missing; to mend it: run as root";
        let (_folder, ill) = fake(&format!("*doctor*) echo '{blocked}'; exit 3 ;;"));
        let (out, err, code) = play(&ill);
        assert_eq!(code, Some(3), "{out}\n{err}");
        assert!(out.contains(blocked), "{out}");
        assert!(err.contains("doctor"), "{err}");
    }

    #[test]
    fn a_demonstration_that_is_ended_leaves_nothing() {
        let (_folder, ebpfkit) = fake(NO_DOCTOR);
        let mut demonstration = start(&ebpfkit);
        let mut reader = BufReader::new(demonstration.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("ebpfkit: tc-guard: ready") {
            line.clear();
            assert_ne!(reader.read_line(&mut line).unwrap(), 0, "it ended early");
        }
        let pid = demonstration.id();
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
        reader.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(demonstration.wait().unwrap().code(), Some(143));
        assert_gone(pid);
    }

    #[test]
    fn without_a_binary_it_says_what_builds_it() {
        let (out, err, code) = play(Path::new("/nonexistent/ebpfkit"));
        assert_eq!(code, Some(3), "{out}\n{err}");
        assert!(err.contains("make build"), "{err}");
    }
}
