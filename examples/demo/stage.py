# SPDX-License-Identifier: BSD-2-Clause
"""What the demonstration stands on: two network namespaces, programs in them, and the end of all of it.

Everything that is made here belongs to a Stage, and is gone when its `with` block ends, however it ends.
"""

import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

# How long anything may take before the demonstration gives up. Emulated machines are slow.
PATIENCE = 60
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")

# Addresses for documentation (RFC 5737, RFC 3849), on the link between the two namespaces.
MACHINE4, MACHINE6 = "192.0.2.2", "2001:db8::2"
CLOUD4, CLOUD6 = "192.0.2.1", "2001:db8::1"


class Failed(Exception):
    """Something did not happen that was promised."""


class Blocked(Exception):
    """This machine cannot do it; the message says what is missing and how to get it."""


class Stopped(Exception):
    """A signal came."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


def plain_environment(home):
    """An environment in which curl goes where it is told: no proxy, no ~/.curlrc."""
    kept = {name: os.environ[name] for name in ("NO_COLOR", "TERM") if name in os.environ}
    return {"PATH": os.environ["PATH"], "HOME": home, "LANG": "C.UTF-8", **kept}


class Program:
    """A program at work. What it prints is kept line by line, both streams in one, as a terminal would show it."""

    def __init__(self, name, argv, **options):
        self.name = name
        self.lines = []
        self.shown = 0
        # A session of its own: Ctrl-C is for the demonstration, which then ends its programs in order.
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True, **options)
        self.pid = self.process.pid
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line.decode(errors="replace").rstrip("\n"))

    def text(self):
        """All that it has printed, without colours."""
        return ESCAPES.sub("", "\n".join(list(self.lines)))

    def unseen(self):
        """The lines that were not asked for before."""
        lines = self.lines[self.shown:]
        self.shown += len(lines)
        return lines

    def wait_until(self, what, done):
        """Waits until done(text) is true, and returns what it gives."""
        deadline = time.monotonic() + PATIENCE
        while True:
            ended = self.process.poll() is not None and not self.reader.is_alive()
            found = done(self.text())
            if found:
                return found
            if ended:
                raise Failed(f"{self.name} ended with {self.process.returncode}, and not: {what}\n{self.text()}")
            if time.monotonic() > deadline:
                raise Failed(f"not after {PATIENCE} s: {what}; {self.name} said:\n{self.text()}")
            time.sleep(0.01)

    def wait_for(self, pattern, what=None):
        """Waits for a line that matches, and returns the match."""
        return self.wait_until(what or f"a line like {pattern!r}", re.compile(pattern, re.MULTILINE).search)

    def end(self, number=signal.SIGTERM):
        """Ends it by a signal, or by force if that does not do; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.reader.join(PATIENCE)
        return code


class Stage:
    """The machine, the cloud, and a folder for their files."""

    def __init__(self, ebpfkit):
        self.ebpfkit = ebpfkit
        self.machine = f"ebpfkit-demo-{os.getpid()}-machine"
        self.cloud = f"ebpfkit-demo-{os.getpid()}-cloud"
        self.programs = []
        self.sessions = []
        self.folder = None
        self.colors = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def open(self):
        """Makes the two namespaces and the folder, all or nothing."""
        # Not TMPDIR: other users must reach it.
        self.folder = tempfile.mkdtemp(prefix="ebpfkit-demo-", dir="/tmp")
        os.chmod(self.folder, 0o755)
        self.environment = plain_environment(self.folder)
        try:
            self.build()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def ip(self, *args):
        done = subprocess.run(["ip", *args], capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise Blocked(f"'{shlex.join(['ip', *args])}' failed: {done.stderr.strip()}\n"
                          "Network namespaces and veth pairs are needed. In a container, that takes --privileged; "
                          "otherwise a kernel with CONFIG_NET_NS and CONFIG_VETH.")

    def build(self):
        for name in (self.machine, self.cloud):
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")
        self.ip("-n", self.machine, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.cloud)
        self.ipv6 = os.path.exists("/proc/sys/net/ipv6")
        for name, v4, v6, gateway4, gateway6 in ((self.machine, MACHINE4, MACHINE6, CLOUD4, CLOUD6),
                                                 (self.cloud, CLOUD4, CLOUD6, None, None)):
            self.ip("-n", name, "addr", "add", f"{v4}/24", "dev", "eth0")
            self.ip("-n", name, "link", "set", "eth0", "up")
            if self.ipv6:
                # Switched off where the machine's own default is so.
                subprocess.run([*self.entering(name), "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6"],
                               capture_output=True, timeout=PATIENCE)
                self.ip("-n", name, "addr", "add", f"{v6}/64", "dev", "eth0", "nodad")
            if gateway4:
                self.ip("-n", name, "route", "add", "default", "via", gateway4)
            if gateway6 and self.ipv6:
                self.ip("-n", name, "-6", "route", "add", "default", "via", gateway6)

    def entering(self, name):
        # `ip netns exec` would hide bpffs and cgroup2 behind a sysfs of its own.
        return ["nsenter", f"--net=/run/netns/{name}", "--"]

    def argv(self, namespace, user, command):
        """What runs `command`, a line as one types it, in a namespace as a user (a name or a number)."""
        typed = ["sh", "-c", command] if "$" in command else shlex.split(command)
        if typed[0] == "ebpfkit":
            # Its output goes through this program, so it cannot see the terminal by itself.
            typed[:1] = [self.ebpfkit, "--color", "always" if self.colors else "never"]
        argv = self.entering(namespace)
        if user != "root":
            try:
                group = str(pwd.getpwnam(user).pw_gid)
            except KeyError:
                group = user
            argv += ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--"]
        return argv + typed

    def start(self, name, namespace, user, command):
        """Starts a program that goes on until it is ended."""
        program = Program(name, self.argv(namespace, user, command), cwd=self.folder, env=self.environment)
        self.programs.append(program)
        self.sessions.append(program.pid)
        return program

    def run(self, namespace, user, command):
        """Runs a program to its end; returns it, with its exit status in `code`."""
        program = self.start(command.split()[0], namespace, user, command)
        try:
            program.code = program.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"still at work after {PATIENCE} s: {command}") from None
        program.reader.join(PATIENCE)
        self.programs.remove(program)
        return program

    def end(self, program, number=signal.SIGINT):
        self.programs.remove(program)
        return program.end(number)

    def close(self):
        """Ends and removes everything. Can be called again."""
        while self.programs:
            # The last first: the tools before the servers that they watch.
            self.programs.pop().end()
        for name in (self.machine, self.cloud):
            if os.path.exists(f"/run/netns/{name}"):
                subprocess.run(["ip", "netns", "del", name], timeout=PATIENCE)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def left(self):
        """What should be gone and is not."""
        left = [f"network namespace {name}" for name in (self.machine, self.cloud)
                if os.path.exists(f"/run/netns/{name}")]
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/stat") as file:
                    # pid (comm) state ppid pgrp session …
                    comm, _, rest = file.read().partition("(")[2].rpartition(")")
            except OSError:
                continue
            state, _, _, session = rest.split()[:4]
            if int(session) in self.sessions and state != "Z":
                left.append(f"process {entry} ({comm})")
        if os.path.exists(self.folder):
            left.append(self.folder)
        return left
