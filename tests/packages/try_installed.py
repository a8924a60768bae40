#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Tries an installed ebpfkit as its users would: the program, its manual pages, completions and units, and the services
as systemd would start them, with setpriv in its place: the unit's user, its capabilities and no others, its options
from /etc/ebpfkit, no-new-privs, and a socket to be notified on.

It is run in a network namespace of its own, which it gives an address on loopback and an interface; nothing is sent
anywhere else."""

import json
import os
import pathlib
import pty
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request

# Generous: the machine may be busy with much else.
PATIENCE = 120
PROGRAM = "/usr/bin/ebpfkit"
UNITS = {"ebpfkit-tc-guard": "ebpfkit-guard", "ebpfkit-imds-watch": "ebpfkit-watch"}
# Processes to be ended, whatever happens.
STARTED = []


def run(*words, **more):
    """Standard output of a command that has to succeed."""
    return subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE, timeout=PATIENCE, **more).stdout


def unit_path(name):
    return pathlib.Path("/usr/lib/systemd/system") / f"{name}.service"


def unit_values(name, key):
    return re.findall(rf"^{key}=(.*)$", unit_path(name).read_text(), re.MULTILINE)


def as_service(name, words):
    """The command line that runs `words` as the unit would."""
    (capabilities,) = unit_values(name, "AmbientCapabilities")
    assert unit_values(name, "CapabilityBoundingSet") == [capabilities]
    (user,) = unit_values(name, "User")
    assert user == UNITS[name]
    caps = "-all," + ",".join("+" + word.removeprefix("CAP_").lower() for word in capabilities.split())
    # BindPaths= below a TemporaryFileSystem=: of what is there, the service sees one folder.
    view = []
    for place in (place.removeprefix("-") for place in unit_values(name, "BindPaths")):
        (above,) = unit_values(name, "TemporaryFileSystem")
        above = above.split(":")[0]
        script = (f"mkdir -p /run/kept && mount --bind {place} /run/kept && mount -t tmpfs -o mode=0755 tmpfs {above} && "
                  f"mkdir {place} && mount --bind /run/kept {place} && umount /run/kept && exec \"$@\"")
        view = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    # --clear-groups, and not --init-groups: nobody has put the user into another group.
    return [*view, "setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--inh-caps", caps, "--ambient-caps", caps,
            "--bounding-set", caps, "--no-new-privs", *words]


def command_of(name, key="ExecStart"):
    """The unit's command, with the variables of its EnvironmentFile as systemd puts them in: $NAME is split at blanks."""
    settings = {}
    for path in unit_values(name, "EnvironmentFile"):
        settings |= dict(line.split("=", 1) for line in pathlib.Path(path).read_text().splitlines()
                         if line and not line.startswith("#"))
    (start,) = unit_values(name, key)
    words = []
    for word in start.split():
        words += settings[word[1:]].split() if word.startswith("$") else [word]
    return words


def prepare(name):
    """What the unit has root do before it starts: where systemd is, and here that would be the machine itself."""
    elsewhere = ["/usr/bin/nsenter", "--target", "1", "--mount"]
    for line in unit_values(name, "ExecStartPre"):
        words = shlex.split(line)
        assert words[0].startswith("+") and [words[0][1:], *words[1:4]] == elsewhere, line
        run(*words[4:])


class Service:
    """A tool that has said that it is ready, to the socket that a service manager would have given it."""

    def __init__(self, name, words):
        prepare(name)
        with tempfile.TemporaryDirectory(dir="/run") as folder:
            os.chmod(folder, 0o755)
            path = f"{folder}/notify"
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            listener.bind(path)
            os.chmod(path, 0o777)
            listener.settimeout(PATIENCE)
            self.process = subprocess.Popen(as_service(name, words), env={"NOTIFY_SOCKET": path}, text=True,
                                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            STARTED.append(self.process)
            try:
                message = listener.recv(4096).decode()
            except TimeoutError:
                self.process.kill()
                sys.exit(f"{name}: never ready: {self.process.communicate()}")
            assert "READY=1" in message.split("\n"), message

    def end(self):
        """Ends it as a service manager does; its lines of JSON."""
        self.process.terminate()
        out, err = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, (self.process.returncode, out, err)
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def serve(*words):
    """Starts a server, which is ended with this program at the latest."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    STARTED.append(process)
    return process


def wait_for(port):
    for _ in range(PATIENCE * 10):
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        # Not how long something takes is tested: only that it comes.
        subprocess.run(["sleep", "0.1"], check=True)
    sys.exit(f"nothing listens on port {port}")


def curl(url, *words):
    """The exit status: 0, or 7 if the connection was refused."""
    return subprocess.run(["curl", "--silent", "--insecure", "--output", "/dev/null", "--max-time", "60", *words, url],
                          timeout=PATIENCE).returncode


def try_program():
    assert re.fullmatch(r"ebpfkit \d+\.\d+\.\d+\n", run(PROGRAM, "--version"))
    states = [json.loads(line) for line in run(PROGRAM, "-o", "json", "doctor").splitlines()]
    assert {line["for"]: line["state"] for line in states if line["kind"] == "diagnosis"} == {
        "tc-guard": "ready", "imds-watch": "ready", "sslsniff": "ready"}, states


def try_documents():
    pages = sorted(pathlib.Path("/usr/share/man").glob("man*/ebpfkit*"))
    names = {page.name.removesuffix(".gz") for page in pages}
    assert {"ebpfkit.8", "ebpfkit-tc-guard.8", "ebpfkit-imds-watch.8", "ebpfkit-sslsniff.8",
            "ebpfkit-doctor.8", "ebpfkit-tc-guard.toml.5"} <= names, names
    for page in pages:
        # -W all would be the same: the default level of -T lint is style, the lowest.
        complaints = subprocess.run(["mandoc", "-T", "lint", page], text=True, stdout=subprocess.PIPE).stdout
        # Pages of other packages are not always installed.
        complaints = [line for line in complaints.splitlines() if "referenced manual not found" not in line]
        assert complaints == [], complaints
    for shell, path in [("bash", "bash-completion/completions/ebpfkit"),
                        ("zsh", "zsh/*/_ebpfkit"),
                        ("fish", "fish/vendor_completions.d/ebpfkit.fish")]:
        (script,) = pathlib.Path("/usr/share").glob(path)
        run(shell, "-n", str(script))
    # What each shell makes of `ebpfkit imd`, from where it looks by itself.
    offered = run("bash", "--norc", "-c", ". /usr/share/bash-completion/completions/ebpfkit;"
                  "COMP_WORDS=(ebpfkit imd) COMP_CWORD=1; _ebpfkit ebpfkit imd ebpfkit; echo ${COMPREPLY[@]}")
    assert offered == "imds-watch\n", offered
    offered = run("fish", "--no-config", "-c", "source /usr/share/fish/vendor_completions.d/ebpfkit.fish;"
                  "complete -C 'ebpfkit imd'")
    assert offered.split()[0] == "imds-watch", offered
    try_zsh()


def try_zsh():
    """On a terminal, as zsh's completion works nowhere else. Debian's zsh looks below vendor-completions, others' below
    site-functions."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], {"PATH": os.environ["PATH"], "TERM": "vt100", "PS1": "% ", "HOME": "/run"})

    def until(text):
        said = b""
        while text not in said:
            assert select.select([terminal], [], [], PATIENCE)[0], said
            said += os.read(terminal, 4096)
    try:
        os.write(terminal, b"fpath=(/usr/share/zsh/{vendor-completions,site-functions} $fpath); "
                           b"autoload -Uz compinit; compinit -D -u; echo rea''dy\n")
        until(b"ready\r\n")
        os.write(terminal, b"ebpfkit imd\t")
        until(b"ebpfkit imds-watch")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def try_units():
    for name, user in UNITS.items():
        run("systemd-analyze", "verify", str(unit_path(name)))
        run("systemd-analyze", "security", "--offline=true", "--threshold=30", str(unit_path(name)))
        uid = int(run("id", "-u", user))
        assert 0 < uid < 1000, f"{user} is {uid}, no system user"
        assert ":/usr/sbin/nologin" in run("getent", "passwd", user)
    assert run("id", "-u", "ebpfkit-guard") != run("id", "-u", "ebpfkit-watch")
    for path in pathlib.Path("/etc/ebpfkit").iterdir():
        assert path.stat().st_uid == 0 and path.stat().st_mode & 0o022 == 0, path
    settings = "/etc/ebpfkit/tc-guard.toml"
    assert '\nmode = "audit"\n' in pathlib.Path(settings).read_text(), "the first run has to deny nothing"
    run(PROGRAM, "tc-guard", "run", "--config", settings, "--check-config")


def try_services_as_configured():
    """With the options that were installed: they get ready, and end well."""
    for name in UNITS:
        Service(name, command_of(name)).end()
    run(PROGRAM, "tc-guard", "stop", stderr=subprocess.DEVNULL)


def server():
    serve("python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/tests", "8080")
    wait_for(8080)


def nobody_gets_through():
    return subprocess.run(["setpriv", "--reuid", "nobody", "--clear-groups", "curl", "--silent", "--output", "/dev/null",
                           "--max-time", "10", "http://127.0.0.1:8080/"], timeout=PATIENCE).returncode == 0


def try_life_of_the_guard_s_unit():
    """Audit first, a reload that enforces, a wrong one that changes nothing, and no gap when the process dies, is started
    again, or ends."""
    name = "ebpfkit-tc-guard"
    settings = pathlib.Path("/etc/ebpfkit/tc-guard.toml")
    installed = settings.read_text()
    policy = 'interfaces = ["lo"]\n[[rule]]\nendpoints = ["127.0.0.1:8080/tcp"]\nusers = ["root"]\n'
    server()
    try:
        settings.write_text('mode = "audit"\n' + policy)
        guard = Service(name, command_of(name))
        assert nobody_gets_through()

        settings.write_text(policy)
        run(*as_service(name, command_of(name, "ExecReload")), stderr=subprocess.DEVNULL)
        assert not nobody_gets_through() and curl("http://127.0.0.1:8080/") == 0

        settings.write_text("nonsense\n" + policy)
        wrong = subprocess.run(as_service(name, command_of(name, "ExecReload")), stderr=subprocess.PIPE, text=True)
        assert wrong.returncode == 2 and "tc-guard.toml:1:" in wrong.stderr, wrong
        assert not nobody_gets_through()

        settings.write_text(policy)
        guard.process.send_signal(signal.SIGKILL)
        guard.process.wait()
        assert not nobody_gets_through(), "killing the process has opened the way"
        guard = Service(name, command_of(name))
        assert not nobody_gets_through()
        guard.end()
        assert not nobody_gets_through(), "ending the service has opened the way"

        run(PROGRAM, "-o", "json", "tc-guard", "status")
        run(PROGRAM, "tc-guard", "stop", stderr=subprocess.DEVNULL)
        assert nobody_gets_through()
    finally:
        settings.write_text(installed)


def try_guard():
    server()
    words = [PROGRAM, "-o", "json", "tc-guard", "run", "--endpoint", "127.0.0.1:8080/tcp", "-i", "lo",
             "--allow-user", "root"]
    guard = Service("ebpfkit-tc-guard", words)
    allowed = curl("http://127.0.0.1:8080/")
    denied = not nobody_gets_through()
    lines = guard.end()
    assert allowed == 0 and denied, (allowed, denied)
    verdicts = {line["user"] for line in lines if line["kind"] == "verdict" and line["verdict"] == "denied"}
    assert verdicts == {"nobody"}, lines
    assert curl("http://127.0.0.1:8080/") == 0

    watch = Service("ebpfkit-imds-watch", [PROGRAM, "-o", "json", "imds-watch", "--all", "-i", "lo",
                                           "--endpoint", "127.0.0.1:8080"])
    # From this process, which is there for as long as its executable may be looked up.
    with urllib.request.urlopen("http://127.0.0.1:8080/pacman.conf", timeout=PATIENCE) as answer:
        assert b"[options]" in answer.read()
    (request,) = [line for line in watch.end() if line["kind"] == "request"]
    assert (request["method"], request["path"], request["user"]) == ("GET", "/pacman.conf", "root"), request
    # The kernel's path of the executable begins above the copy of the machine that this runs in.
    assert request["pid"] == os.getpid() and request["exe"].endswith(os.readlink("/proc/self/exe")), request


def try_sslsniff():
    with tempfile.TemporaryDirectory() as folder:
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
            "/CN=localhost", "-keyout", f"{folder}/key", "-out", f"{folder}/certificate", stderr=subprocess.DEVNULL)
        serve("openssl", "s_server", "-www", "-quiet", "-accept", "127.0.0.1:8443", "-key", f"{folder}/key",
              "-cert", f"{folder}/certificate")
        wait_for(8443)
        out = run(PROGRAM, "-o", "json", "sslsniff", "--", "curl", "--silent", "--insecure", "--http1.1", "--header",
                  "Authorization: hidden", "--output", "/dev/null", "https://127.0.0.1:8443/", stderr=subprocess.DEVNULL)
        data = [line for line in map(json.loads, out.splitlines()) if line["kind"] == "data"]
        written = "".join(line.get("data", "") for line in data if line["direction"] == "write")
        assert written.startswith("GET / HTTP/1.1\r\n"), data
        assert "hidden" not in written and "Authorization: ******" in written, written


def main():
    run("ip", "link", "set", "lo", "up")
    # An interface that is not loopback, and leads nowhere: the configured guard wants one.
    run("ip", "link", "add", "veth-a", "type", "veth", "peer", "name", "veth-b")
    for trial in [try_program, try_documents, try_units, try_services_as_configured,
                  try_life_of_the_guard_s_unit, try_guard, try_sslsniff]:
        print(f"    {trial.__name__.replace('_', ' ')}", flush=True)
        try:
            trial()
        finally:
            for process in STARTED:
                process.kill()
                process.wait()
            STARTED.clear()


if __name__ == "__main__":
    main()
