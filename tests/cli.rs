// SPDX-License-Identifier: BSD-2-Clause

//! The command line without privileges: help, usage errors, exit codes.

use assert_cmd::Command;

fn ebpfkit(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("ebpfkit").expect("the binary");
    let output = command.args(args).output().expect("it runs");
    (
        output.status.code().expect("an exit code"),
        String::from_utf8(output.stdout).expect("UTF-8"),
        String::from_utf8(output.stderr).expect("UTF-8"),
    )
}

#[test]
fn help_names_every_tool_and_the_exit_codes() {
    let (code, out, err) = ebpfkit(&["--help"]);
    assert_eq!((code, err.as_str()), (0, ""));
    for word in [
        "tc-guard",
        "imds-watch",
        "sslsniff",
        "doctor",
        "Exit status",
    ] {
        assert!(out.contains(word), "{word}: {out}");
    }
}

#[test]
fn every_tool_explains_itself() {
    for tool in [
        &["tc-guard", "run"][..],
        &["imds-watch"],
        &["sslsniff"],
        &["doctor"],
    ] {
        let (code, out, _) = ebpfkit(&[tool, &["--help"]].concat());
        assert_eq!(code, 0, "{tool:?}");
        assert!(
            out.contains("Usage: ebpfkit") && out.contains("--output"),
            "{out}"
        );
    }
}

#[test]
fn the_version_is_the_package_s() {
    let (code, out, _) = ebpfkit(&["--version"]);
    assert_eq!(
        (code, out.trim()),
        (0, concat!("ebpfkit ", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn wrong_usage_exits_with_2_and_names_the_text_that_was_wrong() {
    for (args, named) in [
        (&["nosuch"][..], "nosuch"),
        (&["tc-guard", "run"], "--cloud"),
        (&["tc-guard", "run", "--cloud", "asw"], "\"asw\""),
        (
            &[
                "tc-guard",
                "run",
                "--cloud",
                "aws",
                "--allow-user",
                "no such user",
            ],
            "no such user",
        ),
        (
            &["tc-guard", "run", "--endpoint", "1.2.3.4:99999"],
            "\"99999\"",
        ),
        (
            &["tc-guard", "run", "--endpoint", "10.0.0.1/8"],
            "10.0.0.0/8",
        ),
        (
            &["tc-guard", "run", "--cloud", "aws", "-i", "no-such-if"],
            "no-such-if",
        ),
        (
            &["tc-guard", "run", "--cloud", "aws", "--deny", "maybe"],
            "maybe",
        ),
        (&["imds-watch", "--cloud", "asw"], "\"asw\""),
        (&["imds-watch", "--endpoint", "1.2.3.4:0"], "\"0\""),
        (&["sslsniff", "-u", "no such user"], "no such user"),
        (&["sslsniff", "-p", "-1"], "-1"),
        (&["sslsniff", "--max-bytes", "many"], "many"),
        (&["doctor", "nosuch"], "nosuch"),
        (&["-v", "-q", "doctor"], "--quiet"),
        (&["-o", "xml", "doctor"], "xml"),
    ] {
        let (code, out, err) = ebpfkit(args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.contains(named), "{args:?}: {err}");
    }
}

#[test]
fn common_options_stand_before_or_after_the_tool() {
    for args in [
        ["-o", "json", "doctor", "nosuch"],
        ["doctor", "-o", "json", "nosuch"],
    ] {
        let (code, _, err) = ebpfkit(&args);
        assert!(
            code == 2 && err.contains("nosuch") && !err.contains("json'"),
            "{err}"
        );
    }
}

#[test]
fn an_error_message_carries_no_escape_to_the_terminal() {
    let (code, _, err) = ebpfkit(&["tc-guard", "run", "--cloud", "a\u{1b}[31mb"]);
    assert_eq!(code, 2);
    assert!(!err.contains('\u{1b}'), "{err:?}");
}

#[test]
fn every_policy_of_the_examples_is_good() {
    let mut checked = 0;
    for entry in std::fs::read_dir("examples").expect("examples") {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "toml") {
            let path = path.to_str().unwrap();
            let (code, out, err) =
                ebpfkit(&["tc-guard", "run", "--check-config", "--config", path]);
            assert_eq!(code, 0, "{path}: {err}");
            assert!(out.contains("the policy is good"), "{path}: {out}");
            checked += 1;
        }
    }
    assert!(checked >= 4, "{checked}");
}

#[test]
fn a_bad_policy_is_named_with_its_place_and_guards_nothing() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().unwrap();
    for (text, place) in [
        ("[[rule]]\nclouds = [\"asw\"]\n", "2:11: "),
        (
            "[[rule]]\nclouds = [\"aws\"]\nusers = [\"nobody at all\"]\n",
            "3:10: ",
        ),
        ("[[rule]]\ncloud = [\"aws\"]\n", "2:1: unknown field"),
    ] {
        std::fs::write(path, text).unwrap();
        let (code, out, err) = ebpfkit(&["tc-guard", "run", "--config", path]);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.contains(&format!("{path}:{place}")), "{err}");
    }
    let (code, _, err) = ebpfkit(&["tc-guard", "run", "--config", "/nosuch.toml"]);
    assert!(code == 1 && err.contains("/nosuch.toml"), "{err}");
    let (code, _, err) = ebpfkit(&[
        "tc-guard",
        "run",
        "--config",
        "examples/aws.toml",
        "--allow-user",
        "root",
    ]);
    assert!(code == 2 && err.contains("--cloud or --endpoint"), "{err}");
}

mod root {
    use super::ebpfkit;

    #[test]
    fn the_doctor_finds_every_tool_usable() {
        let (code, out, err) = ebpfkit(&["-o", "json", "doctor"]);
        assert_eq!(code, 0, "{out}{err}");
        let lines: Vec<serde_json::Value> = out
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let tools: Vec<_> = lines
            .iter()
            .map(|line| line["for"].as_str().unwrap())
            .collect();
        assert_eq!(tools, ["tc-guard", "imds-watch", "sslsniff"]);
        for line in &lines {
            assert_eq!(line["kind"], "diagnosis");
            let state = line["state"].as_str().unwrap();
            assert!(matches!(state, "ready" | "degraded"), "{line}");
            assert_eq!(state == "degraded", line.get("lost").is_some(), "{line}");
        }
    }

    #[test]
    fn the_doctor_names_what_an_ordinary_user_lacks() {
        let binary = assert_cmd::cargo::cargo_bin("ebpfkit");
        let output = std::process::Command::new("setpriv")
            .args(["--reuid", "54321", "--regid", "54321", "--clear-groups"])
            .args(["--inh-caps=-all", "--bounding-set=-all", "--"])
            .arg(binary)
            .args(["doctor"])
            .output()
            .expect("setpriv");
        assert_eq!(output.status.code(), Some(3));
        let out = String::from_utf8(output.stdout).unwrap();
        for line in out.lines() {
            assert!(
                line.contains("blocked") && line.contains("CAP_BPF"),
                "{line}"
            );
        }
        assert_eq!(out.lines().count(), 3, "{out}");
    }
}
