#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Tries the services of an installed ebpfkit under systemd, which tests/packages/boot has started: as their units say, and
by systemctl alone. It is run in systemd's network namespace, where there is nobody else.

usage: try_booted.py UPGRADE...

UPGRADE is the command that puts another version of the package in this one's place. The services are left running: whoever
removes the package next has to end them."""

import json
import os
import pathlib
import pwd
import subprocess
import sys
import threading

PATIENCE = 120
GUARD, WATCH = "ebpfkit-tc-guard.service", "ebpfkit-imds-watch.service"
POLICY = pathlib.Path("/etc/ebpfkit/tc-guard.toml")
OPTIONS = pathlib.Path("/etc/ebpfkit/imds-watch.conf")
RULE = 'interfaces = ["lo"]\n[[rule]]\nendpoints = ["127.0.0.1:8080/tcp"]\nusers = ["root"]\n'
# curl's exit status where nobody listens, or a connection is refused.
REFUSED = 7
# The numbers of linux/capability.h.
CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13, "SYS_PTRACE": 19, "PERFMON": 38, "BPF": 39}


def run(*words):
    """Standard output of a command that has to succeed."""
    done = subprocess.run(words, text=True, capture_output=True, timeout=PATIENCE)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}{journal()}")
    return done.stdout


def journal(unit=None):
    words = ["journalctl", "--no-pager", "--output", "cat", *(["--unit", unit] if unit else [])]
    # What was written by now is there then.
    subprocess.run(["journalctl", "--sync"], check=True, timeout=PATIENCE)
    return subprocess.run(words, text=True, stdout=subprocess.PIPE, timeout=PATIENCE).stdout


def fails(*words):
    done = subprocess.run(words, text=True, capture_output=True, timeout=PATIENCE)
    assert done.returncode != 0, (words, done)


def shown(unit, *keys):
    """Properties of a unit."""
    text = run("systemctl", "show", unit, *[f"--property={key}" for key in keys])
    found = dict(line.split("=", 1) for line in text.splitlines())
    return [found[key] for key in keys]


def until(what, holds):
    for _ in range(PATIENCE * 10):
        if holds():
            return
        subprocess.run(["sleep", "0.1"], check=True)
    sys.exit(f"{what}: never\n{journal()}")


def request(user):
    """The exit status of a request: 0, or curl's for what went wrong."""
    words = ["curl", "--silent", "--output", "/dev/null", "--max-time", "30", "http://127.0.0.1:8080/pacman.conf"]
    return subprocess.run(["setpriv", "--reuid", user, "--clear-groups", *words], timeout=PATIENCE).returncode


def let_through():
    """Whether nobody's requests are, or are refused at once; root's always are let through."""
    assert request("root") == 0
    code = request("nobody")
    assert code in [0, REFUSED], code
    return code == 0


class Attempts:
    """Nobody's requests, one after the other, as long as something goes on."""

    def __enter__(self):
        self.codes = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.attempt)
        self.thread.start()
        return self

    def attempt(self):
        while not self.over.is_set():
            self.codes.append(request("nobody"))

    def __exit__(self, *_):
        until("two attempts", lambda: len(self.codes) >= 2)
        self.over.set()
        self.thread.join()
        assert set(self.codes) == {REFUSED}, self.codes


def runs_as(unit, user, capabilities):
    """A service that is ready, and has its user, its capabilities and no more."""
    state, pid = shown(unit, "ActiveState", "MainPID")
    assert state == "active" and pid != "0", (unit, state, pid, journal())
    status = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    uid = pwd.getpwnam(user).pw_uid
    assert 0 < uid < 1000 and status["Uid"].split() == [str(uid)] * 4, status["Uid"]
    wanted = sum(1 << CAPABILITIES[name] for name in capabilities)
    for kind in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]:
        assert int(status[kind], 16) == wanted, (unit, kind, status[kind], f"{wanted:x}")
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), status
    return pid


def guard_is_well():
    return runs_as(GUARD, "ebpfkit-guard", ["BPF", "NET_ADMIN", "PERFMON"])


def watch_is_well():
    return runs_as(WATCH, "ebpfkit-watch", ["BPF", "PERFMON", "NET_RAW", "NET_ADMIN", "SYS_PTRACE"])


def try_as_installed():
    """Nothing runs until somebody says so; then both get ready with the settings that came with them."""
    for unit in [GUARD, WATCH]:
        assert shown(unit, "ActiveState", "UnitFileState") == ["inactive", "disabled"], unit
        run("systemctl", "enable", "--now", unit)
    guard_is_well()
    watch_is_well()
    # Root sees whose the guard is, in the folder that the service was given.
    status = json.loads(run("ebpfkit", "-o", "json", "tc-guard", "status"))
    assert (status["state"], status["mode"]) == ("pinned", "audit"), status
    for unit in [WATCH, GUARD]:
        run("systemctl", "stop", unit)
        assert shown(unit, "ActiveState", "Result") == ["inactive", "success"], journal(unit)
    run("ebpfkit", "tc-guard", "stop")


def try_guard():
    POLICY.write_text('mode = "audit"\n' + RULE)
    run("systemctl", "start", GUARD)
    guard_is_well()
    assert let_through()

    POLICY.write_text(RULE)
    before = guard_is_well()
    run("systemctl", "reload", GUARD)
    assert guard_is_well() == before, "a reload is no restart"
    assert not let_through()

    POLICY.write_text("nonsense\n" + RULE)
    fails("systemctl", "reload", GUARD)
    assert "tc-guard.toml:1:" in journal(GUARD)
    assert guard_is_well() == before and not let_through()
    # Root's own pins would be useless to the service.
    fails("ebpfkit", "tc-guard", "reload", "--config", str(POLICY))

    # Wrong settings are not tried again and again, and do not open the way.
    with Attempts():
        fails("systemctl", "restart", GUARD)
        assert shown(GUARD, "ActiveState", "ExecMainStatus", "NRestarts") == ["failed", "2", "0"], journal(GUARD)
    POLICY.write_text(RULE)
    with Attempts():
        run("systemctl", "start", GUARD)
    guard_is_well()

    with Attempts():
        run("systemctl", "restart", GUARD)
    assert guard_is_well() != before
    with Attempts():
        run("systemctl", "kill", "--signal=KILL", GUARD)
        until("started again", lambda: shown(GUARD, "ActiveState", "NRestarts") == ["active", "1"])
    guard_is_well()
    assert "denied" in journal(GUARD)

    with Attempts():
        run("systemctl", "stop", GUARD)
    assert shown(GUARD, "ActiveState", "Result") == ["inactive", "success"], journal(GUARD)
    assert not let_through(), "stopping the service has opened the way"
    run("ebpfkit", "tc-guard", "stop")
    assert let_through()


def try_watch():
    OPTIONS.write_text("IMDS_WATCH_OPTIONS=--output json --all --interface lo --endpoint 127.0.0.1:8080\n")
    run("systemctl", "start", WATCH)
    before = watch_is_well()
    requests = 0
    for again in [False, True]:
        if again:
            run("systemctl", "restart", WATCH)
            assert watch_is_well() != before
        assert request("root") == 0
        requests += 1

        def told():
            lines = [json.loads(line) for line in journal(WATCH).splitlines() if line.startswith("{")]
            return [line for line in lines if line["kind"] == "request"]
        until("a request in the journal", lambda: len(told()) == requests)
        last = told()[-1]
        assert (last["method"], last["path"], last["user"], last["status"]) == ("GET", "/pacman.conf", "root", 200), last
        assert last["comm"] == "curl" and last["exe"].endswith("/usr/bin/curl"), last

    OPTIONS.write_text("IMDS_WATCH_OPTIONS=--no-such-option\n")
    fails("systemctl", "restart", WATCH)
    assert shown(WATCH, "ActiveState", "ExecMainStatus", "NRestarts") == ["failed", "2", "0"], journal(WATCH)


def try_upgrade():
    """A service that runs goes on with the new program, one that does not stays as it is; settings that were changed stay;
    and the guard is there all the while."""
    POLICY.write_text(RULE)
    # So many starts in so short a time are systemd's limit.
    run("systemctl", "reset-failed", GUARD, WATCH)
    run("systemctl", "start", GUARD)
    before = guard_is_well()
    assert shown(WATCH, "ActiveState") == ["inactive"]
    with Attempts():
        said = run(*sys.argv[1:])
    assert guard_is_well() != before, f"still the old program:\n{said}{journal(GUARD)}"
    assert shown(WATCH, "ActiveState") == ["inactive"]
    assert POLICY.read_text() == RULE
    beside = sorted(path.name for path in POLICY.parent.iterdir())
    assert beside == ["imds-watch.conf", "tc-guard.toml"], beside
    run("systemctl", "stop", GUARD)
    run("ebpfkit", "tc-guard", "stop")


def main():
    run("ip", "link", "set", "lo", "up")
    # An interface that is not loopback, and leads nowhere: the configured guard wants one.
    run("ip", "link", "add", "veth-a", "type", "veth", "peer", "name", "veth-b")
    server = subprocess.Popen(["python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/tests", "8080"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    installed = {path: path.read_text() for path in [POLICY, OPTIONS]}
    try:
        until("the server", lambda: request("root") == 0)
        for trial in [try_as_installed, try_guard, try_watch, try_upgrade]:
            print(f"    {trial.__name__.replace('_', ' ')} under systemd", flush=True)
            trial()
    finally:
        server.kill()
        server.wait()
        for path, text in installed.items():
            path.write_text(text)
    run("systemctl", "reset-failed", GUARD, WATCH)
    for unit in [GUARD, WATCH]:
        run("systemctl", "start", unit)
    assert os.path.isdir("/sys/fs/bpf/ebpfkit")


if __name__ == "__main__":
    main()
