# SPDX-License-Identifier: BSD-2-Clause
"""Makes sockets, connects them and sends by them, as others and in others' places.

Reads batches as JSON, one in a line: where sockets are made and where they are used (files to write "0" to), and for
each socket its protocol, its maker's uid, the caller's uid, gid and groups, an address and a port. Prints for each batch
what became of the calls: "refused" or "dropped", else "sent"; of TCP, of which only a packet that is answered tells
what became of it, "called" for the latter.
"""

import errno
import json
import os
import socket
import sys

IP_RECVERR, IPV6_RECVERR = 11, 25


def become(uid, gid, groups):
    os.setresuid(0, 0, 0)
    os.setresgid(0, 0, 0)
    os.setgroups(groups)
    os.setresgid(gid, gid, 0)
    os.setresuid(uid, uid, 0)


def go(place):
    become(0, 0, [])
    with open(place, "w") as procs:
        procs.write("0")


def make(case):
    become(case["maker"], 0, [])
    v6 = ":" in case["address"]
    kind = socket.SOCK_STREAM if case["tcp"] else socket.SOCK_DGRAM
    made = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    # So that send() tells what became of the packet.
    if v6:
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    made.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    return made


# By ICMP, by ICMPv6 and by a reset.
ANSWERS = (errno.EHOSTUNREACH, errno.EACCES, errno.ECONNREFUSED)


def is_answered(made):
    return made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in ANSWERS


def use(case, made):
    become(case["uid"], case["gid"], case["groups"])
    error = made.connect_ex((case["address"], case["port"]))
    if error == errno.EPERM:
        return "refused"
    if case["tcp"] and error in (errno.EINPROGRESS, errno.ECONNREFUSED):
        return "dropped" if error == errno.ECONNREFUSED else "called"
    if error:
        return os.strerror(error)
    try:
        made.send(b"x")
    except OSError as err:
        return "dropped" if err.errno == errno.ENOBUFS else str(err)
    return "sent"


for line in sys.stdin:
    batch = json.loads(line)
    go(batch["made in"])
    sockets = [make(case) for case in batch["cases"]]
    go(batch["used in"])
    fates = [use(case, made) for case, made in zip(batch["cases"], sockets)]
    # No network is in between, but the kernel may have put an answer off until the call had returned.
    fates = ["dropped" if fate in ("called", "sent") and is_answered(made) else fate for fate, made in zip(fates, sockets)]
    print(json.dumps(fates))
    for made in sockets:
        made.close()
    go(batch["home"])
