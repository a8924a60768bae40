#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Runs the shell commands that documents show: blocks that are fenced and called `sh`, whole, and each command of this
project's program in any other block, up to its being ready. What cannot run in a test, as it needs a registry, a cluster,
another distribution or a person, is called `console` or indented, and is another program's.

usage: run_blocks.py REPOSITORY DOCUMENT...

Wants a network namespace where nobody else is, and /etc to itself."""

import contextlib
import fcntl
import os
import pathlib
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time

PATIENCE = 300
# What is run of a block that is not run whole. setpriv is there to give the program its privileges.
OURS = ["ebpfkit", "setpriv", "tshark"]
# Other programs that blocks show which are not run whole, and where that is tried, or why it cannot be.
ELSEWHERE = {
    "make": "these are the tests themselves and what they begin with",
    "apt": "a package is installed by tests/packages/try_package, with dpkg",
    "dnf": "a package is installed by tests/packages/try_package, with rpm",
    "pacman": "a package is installed by tests/packages/try_package",
    "packaging/source-archives": "tests/packages/run builds packages so",
    "cd": "tests/packages/run builds packages so",
    "mv": "tests/packages/run builds packages so",
    "dpkg-buildpackage": "tests/packages/run builds packages so",
    "rpmbuild": "tests/packages/run builds packages so",
    "systemctl": "tests/packages/try_booted.py has a systemd",
    "journalctl": "tests/packages/try_booted.py has a systemd",
    "curl": "tests/demo.rs has a server that is guarded",
    "podman": "there is no engine to build an image; the recipe is linted",
    "kubectl": "there is no cluster; the manifests are checked against Kubernetes' schemas",
}
# What documents call a process that the reader has.
A_PROCESS = "4711"
# `check` says with 1 that something can get past a guard, as all but certainly something can.
STATUSES = {"ebpfkit tc-guard check": [0, 1]}


def run(*words):
    return subprocess.run(words, check=True, text=True, capture_output=True, timeout=PATIENCE).stdout


def blocks(text):
    """Blocks of code, each with what it is called: those between fences, and what is indented."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    indented = re.compile(r"(?:^    .*\n|^\n(?=    ))+", re.MULTILINE)
    found = [(block.start(), block[1], block[2]) for block in fenced.finditer(text)]
    # As many lines as before, so that the order can be told.
    rest = fenced.sub(lambda block: re.sub(r"[^\n]", " ", block[0]).replace("    ", "..  "), text)
    found += [(block.start(), "", re.sub(r"^    ", "", block[0], flags=re.MULTILINE)) for block in indented.finditer(rest)]
    return [(name, block) for _, name, block in sorted(found)]


def typed(block):
    """The commands in a block, as root would type them."""
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        command = re.sub(r"^sudo (-u \w+ )?", "", line.removeprefix("$ "))
        program = command.split(" ")[0]
        # A synopsis is none.
        if program in OURS and not re.search(r"[…<\[]|^ebpfkit:", command):
            yield command.split("  #")[0].rstrip()
        elif line.startswith(("$ ", "sudo ", "make ")):
            yield command


def commands(block):
    """The commands of ours in a block. What another one is for is known."""
    for command in typed(block):
        program = command.split(" ")[0]
        if program in OURS:
            yield command
        elif program not in ELSEWHERE:
            sys.exit(f"{command}: neither run nor said to be tried elsewhere")


def expect(command, status, said):
    if status not in STATUSES.get(command, [0]):
        sys.exit(f"{command}: exit status {status}\n{said}")


def until_ready(command):
    """Runs a command to its end, or until it says that it is ready: then it is interrupted, which ends it well."""
    with subprocess.Popen(["sh", "-c", f"exec {command}"], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, start_new_session=True) as process:
        said = ""
        for line in process.stdout:
            said += line
            if re.fullmatch(r"ebpfkit: [a-z-]+: ready\n", line) and " -- " not in command:
                os.killpg(process.pid, signal.SIGINT)
    expect(command, process.returncode, said)


def on_a_terminal(command):
    """Runs a command that has the whole terminal, and presses q."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(["sh", "-c", f"exec {command}"], stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    said, asked = b"", False
    # Linux says EIO where the other end is closed.
    with contextlib.suppress(OSError):
        while part := os.read(ours, 65536):
            said += part
            # It has switched to the other screen, and has drawn on it.
            if not asked and b"\x1b[?1049h" in said and len(said) > 1000:
                asked = True
                os.write(ours, b"q")
    os.close(ours)
    if not asked:
        sys.exit(f"{command}: not drawn\n{said}")
    expect(command, process.wait(timeout=PATIENCE), said)


def until_listening(port):
    for _ in range(PATIENCE * 10):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    sys.exit(f"nobody listens at {port}")


def try_commands(block, process):
    ran = 0
    for command in commands(block):
        command = re.sub(rf"\b{A_PROCESS}\b", str(process), command)
        (on_a_terminal if " --live" in command else until_ready)(command)
        ran += 1
    if ran and "tc-guard run --pin" in block:
        run("ebpfkit", "--quiet", "tc-guard", "stop")
    return ran


def main():
    repository, *documents = sys.argv[1:]
    repository = pathlib.Path(repository)
    whole, single = 0, 0
    run("ip", "link", "set", "lo", "up")
    # What documents call the machine's interface. It leads nowhere.
    run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "nowhere")
    run("ip", "link", "set", "eth0", "up")
    run("systemd-sysusers", str(repository / "packaging/systemd/ebpfkit.sysusers"))
    pathlib.Path("/etc/ebpfkit").mkdir()
    shutil.copy(repository / "examples/aws.toml", "/etc/ebpfkit/guard.toml")
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "certificate.pem")
        server = subprocess.Popen(["openssl", "s_server", "-quiet", "-www", "-accept", "8443", "-key", "key.pem", "-cert",
                                   "certificate.pem"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until_listening(8443)
            for document in documents:
                for name, block in blocks((repository / document).read_text()):
                    if name != "sh":
                        single += try_commands(block, server.pid)
                        continue
                    done = subprocess.run(["sh", "-eu", "-c", block], cwd=repository, text=True, stdout=subprocess.PIPE,
                                          stderr=subprocess.STDOUT, timeout=PATIENCE)
                    if done.returncode != 0:
                        sys.exit(f"{document}: exit status {done.returncode}\n{block}\n{done.stdout}")
                    whole += 1
        finally:
            server.kill()
            server.wait()
    if whole < 2 or single < 20:
        sys.exit(f"only {whole} blocks and {single} commands found")
    print(f"    {whole} blocks and {single} other commands of {len(documents)} documents ran")


if __name__ == "__main__":
    main()
