#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Runs the blocks of shell commands in documents: those that are fenced and called `sh`, and what STARTED names. Every other block that has a
command (fenced and called `console`, or indented) is in NOT_RUN, with what keeps it from being run here, or with
the test that runs it; a block that is neither run nor listed is an error, and so is an entry without a block.

usage: run_blocks.py REPOSITORY DOCUMENT..."""

import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading

PATIENCE = 300

REGISTRY = "the distribution's package manager and network; tests/packages/try_package installs the file"
DEMO = "builds for minutes; tests/demo.rs runs what it shows"
SUITE = "a whole test suite"
CLUSTER = "there is no cluster; tests/packages/run checks the manifests against Kubernetes' schemas"
BUILD = "builds for minutes; tests/packages/run builds by these commands"
SYNOPSIS = "runs until it is ended; tests/docs.rs has the program understand each line, its own tests run it"
OUTPUT = "a session, whose output has times and numbers; the tool's own tests check such lines"

# The first line of a block, by document.
NOT_RUN = {
    "README.md": {
        "make demo": DEMO,
        "sudo apt install ./ebpfkit_0.1.0-1_amd64.deb": REGISTRY,
        "sudo dnf install ./ebpfkit-0.1.0-1.x86_64.rpm": REGISTRY,
        "sudo pacman -U ebpfkit-0.1.0-1-x86_64.pkg.tar.zst": REGISTRY,
        "kubectl apply -k packaging/kubernetes/base": CLUSTER,
        "make build": BUILD,
        "$ sudo -u nobody curl -sS http://169.254.169.254/": OUTPUT,
        "$ sudo ebpfkit sslsniff -- curl -sk -o /dev/null -H 'Authorization: Bearer secret' https://localhost:8443/": OUTPUT,
        "$ sudo ebpfkit doctor": "a session; a block of docs/install.md runs it",
    },
    "CONTRIBUTING.md": {
        "make build": BUILD,
        "make test                     # everything that this machine's kernel can run; needs root or sudo": SUITE,
    },
    "docs/RELEASE.md": {
        "$ git tag --sign v0.1.0 --message 'ebpfkit 0.1.0'": "wants a person's key",
        "$ packaging/source-archives build/release": BUILD,
        "$ cd build/release && sha256sum -- *.tar.?z *.deb *.rpm *.pkg.tar.zst *.cdx.json > SHA256SUMS": "wants a person's key",
    },
    "docs/imds-watch.md": {
        "ebpfkit imds-watch                              # all clouds, all interfaces, lines for people": SYNOPSIS,
        "$ sudo ebpfkit imds-watch --cloud aws --stack": OUTPUT,
    },
    "docs/install.md": {
        "$ sudo apt install ./ebpfkit_0.1.0-1_amd64.deb": REGISTRY,
        "$ packaging/source-archives ..": BUILD,
        "$ sudo dnf install ./ebpfkit-0.1.0-1.x86_64.rpm": REGISTRY,
        "$ packaging/source-archives ~/rpmbuild/SOURCES": BUILD,
        "$ sudo pacman -U ebpfkit-0.1.0-1-x86_64.pkg.tar.zst": REGISTRY,
        "$ make build": BUILD,
        "$ sudo systemctl enable --now ebpfkit-tc-guard ebpfkit-imds-watch": "wants systemd; tests/packages/try_booted.py does it",
        "$ podman build -f packaging/container/Containerfile -t ebpfkit:0.1.0 .": "wants a registry of images",
        "$ kubectl apply -k packaging/kubernetes/base": CLUSTER,
    },
    "docs/sslsniff.md": {
        "ebpfkit sslsniff [-p PID]… [-u USER]… [-c COMM]… [--cgroup PATH|UNIT|CONTAINER]… [--lib PATH]… [-- COMMAND …]": SYNOPSIS,
        "$ sudo ebpfkit doctor sslsniff -p 4711": "names a process of the reader's",
        "$ sudo ebpfkit sslsniff --stack -c caller": OUTPUT,
        "$ sudo ebpfkit sslsniff --http": OUTPUT,
        "$ sudo ebpfkit sslsniff --pcap out.pcapng -- curl -sk https://localhost:8443/": "wants a server; tests/wireshark.rs does it",
    },
    "docs/tc-guard.md": {
        "ebpfkit tc-guard learn --cloud aws --for 24h --write guard.toml": "takes a day",
        "ebpfkit tc-guard check": "judges the machine that it runs on; the tool's own tests run it",
    },
}

# Blocks whose first command is run until it says that it is ready, and then ended by SIGINT; or, if it has an end, until that.
STARTED = {
    "README.md": ["$ sudo ebpfkit tc-guard run --cloud aws --allow-user root", "$ sudo ebpfkit imds-watch --cloud aws"],
    "docs/install.md": ["$ sudo setpriv --reuid ebpfkit-guard --regid ebpfkit-guard --clear-groups --no-new-privs \\"],
    "docs/tc-guard.md": ["ebpfkit tc-guard run --cloud aws --allow-user root --audit",
                         "ebpfkit tc-guard run --config /etc/ebpfkit/guard.toml --check-config",
                         "ebpfkit tc-guard run --config /etc/ebpfkit/guard.toml",
                         "ebpfkit tc-guard run --pin --config /etc/ebpfkit/guard.toml"],
}


def blocks(text):
    """Each block of code of a document: its language, or "" for an indented one, and its text."""
    kept = []

    def fenced(match):
        kept.append((match[2], re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE)))
        return "\n"
    rest = re.sub(r"^( *)```(\w*)\n(.*?)^ *```$", fenced, text, flags=re.MULTILINE | re.DOTALL)
    for match in re.finditer(r"(?:^\n)((?: {4}.*\n)+)", rest, re.MULTILINE):
        kept.append(("", re.sub(r"^ +", "", match[1], flags=re.MULTILINE)))
    return kept


def is_command(language, block):
    return language in ["sh", "console"] or re.match(r"(\$ )?(sudo |make\b|ebpfkit |cargo |kubectl |packaging/|tests/)", block)


def prepare(repository):
    """What a reader has who has installed the program, and a policy of their own."""
    for command in [["ip", "link", "set", "lo", "up"], ["ip", "link", "add", "blocks", "type", "veth", "peer", "name", "nowhere"],
                    ["ip", "link", "set", "blocks", "up"],
                    ["install", "-D", f"{repository}/packaging/config/tc-guard.toml", "/etc/ebpfkit/guard.toml"],
                    ["systemd-sysusers", f"{repository}/packaging/systemd/ebpfkit.sysusers"]]:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def start(repository, document, block):
    """The first command of a block, up to the line that a backslash does not continue."""
    # There for this block alone: a block that installs has to do so.
    installed = pathlib.Path("/usr/local/bin/ebpfkit")
    shutil.copy(f"{repository}/target/release/ebpfkit", installed)
    command = re.match(r"(?:\$ )?((?:.*\\\n)*.*)", block)[1]
    process = subprocess.Popen(["sh", "-euc", f"exec {command}"], text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    guard = threading.Timer(PATIENCE, process.kill)
    guard.start()
    said = ""
    for line in process.stderr:
        said += line
        if line.rstrip().endswith(": ready"):
            process.send_signal(signal.SIGINT)
    code = process.wait()
    installed.unlink()
    guard.cancel()
    if code != 0 or not (": ready" in said or "--check-config" in command):
        sys.exit(f"{document}: exit status {code}\n{command}\n{said}")


def main():
    repository, *documents = sys.argv[1:]
    prepare(repository)
    ran = 0
    unlisted, listed = [], {(document, line) for table in [NOT_RUN, STARTED] for document, lines in table.items() for line in lines}
    for document in documents:
        for language, block in blocks(pathlib.Path(repository, document).read_text()):
            if not is_command(language, block):
                continue
            if language != "sh":
                key = document, block.splitlines()[0]
                if key[1] in STARTED.get(document, []):
                    start(repository, document, block)
                    ran += 1
                elif key[1] not in NOT_RUN.get(document, {}):
                    unlisted.append(key)
                listed.discard(key)
                continue
            done = subprocess.run(["sh", "-eu", "-c", block], cwd=repository, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=PATIENCE)
            if done.returncode != 0:
                sys.exit(f"{document}: exit status {done.returncode}\n{block}\n{done.stdout}")
            ran += 1
    for document, line in unlisted:
        print(f"{document}: neither run (call it `sh`) nor listed with a reason in tests/packages/run_blocks.py: {line}")
    for document, line in sorted(listed):
        print(f"{document}: listed in tests/packages/run_blocks.py, and not there: {line}")
    if unlisted or listed:
        sys.exit(f"{ran} blocks ran, {len(unlisted)} are not listed, {len(listed)} are not there")
    print(f"    {ran} blocks of {len(documents)} documents ran, {sum(map(len, NOT_RUN.values()))} are listed with a reason")


if __name__ == "__main__":
    main()
