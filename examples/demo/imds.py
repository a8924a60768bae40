#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""A metadata service that answers as Amazon EC2's does, with made-up content.

    examples/demo/imds.py [--v2-only] ADDR:PORT...      such as 169.254.169.254:80 '[fd00:ec2::254]:80'

Version 2: PUT /latest/api/token gives a token, if the header X-aws-ec2-metadata-token-ttl-seconds says for how long
(1 to 21600 seconds) and no X-Forwarded-For shows that the request came through a proxy; a GET with that token in
X-aws-ec2-metadata-token is answered until it expires, one with any other token gets 401. Version 1: a GET without a
token is answered as well, unless --v2-only.

It binds the addresses in the network namespace that it is started in: give it one of its own. On standard output are
a line "ready ADDR:PORT..." (port 0 takes a free one) and one for each request: status, method, path.
"""

import argparse
import http.server
import json
import secrets
import signal
import socket
import socketserver
import sys
import threading
import time

ROLE = "demo-role"
# The key pair of AWS's own documentation.
CREDENTIALS = {
    "Code": "Success",
    "Type": "AWS-HMAC",
    "AccessKeyId": "ASIAIOSFODNN7EXAMPLE",
    "SecretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "Token": "made-up-session-token",
    "Expiration": "2099-12-31T23:59:59Z",
}
IDENTITY = {
    "accountId": "123456789012",
    "architecture": "x86_64",
    "imageId": "ami-0123456789abcdef0",
    "instanceId": "i-0123456789abcdef0",
    "instanceType": "t3.micro",
    "privateIp": "192.0.2.2",
    "region": "eu-central-1",
    "version": "2017-09-30",
}
LEAVES = {
    "meta-data/ami-id": IDENTITY["imageId"],
    "meta-data/hostname": "machine.internal",
    "meta-data/iam/info": json.dumps({"Code": "Success", "InstanceProfileId": "AIPAIOSFODNN7EXAMPLE"}, indent=2),
    f"meta-data/iam/security-credentials/{ROLE}": json.dumps(CREDENTIALS, indent=2),
    "meta-data/instance-id": IDENTITY["instanceId"],
    "meta-data/instance-type": IDENTITY["instanceType"],
    "meta-data/local-ipv4": IDENTITY["privateIp"],
    "meta-data/placement/region": IDENTITY["region"],
    "dynamic/instance-identity/document": json.dumps(IDENTITY, indent=2),
    "dynamic/instance-identity/signature": "bWFkZSB1cA==",
    "user-data": "#cloud-config\nhostname: machine\n",
}
LONGEST_TTL = 21600


def lookup(path):
    """The content at a path below /latest/, the names in it if it is a folder, None if there is nothing."""
    path = path.strip("/")
    if path in LEAVES:
        return LEAVES[path]
    below = f"{path}/" if path else ""
    names = {}
    for leaf in LEAVES:
        if leaf.startswith(below):
            name, slash, _ = leaf[len(below):].partition("/")
            names[name + slash] = None
    return "\n".join(sorted(names)) or None


class Tokens:
    """The tokens that were given out, until they expire."""

    def __init__(self):
        self.expiry = {}
        self.lock = threading.Lock()

    def new(self, seconds):
        token = secrets.token_urlsafe(40) + "=="
        with self.lock:
            self.expiry[token] = time.monotonic() + seconds
        return token

    def left(self, token):
        """Whole seconds that it is good for; 0 if it is none, or expired."""
        with self.lock:
            return max(0, round(self.expiry.get(token, 0) - time.monotonic() + 0.5))


TOKENS = Tokens()


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "EC2ws"
    sys_version = ""
    # A connection that says nothing does not hold its thread for ever.
    timeout = 60
    v2_only = False

    def do_PUT(self):
        length = self.headers.get("Content-Length", "0")
        self.rfile.read(min(int(length), 1 << 16) if length.isdigit() else 0)
        if self.path.partition("?")[0] != "/latest/api/token":
            return self.refuse(405, "Method Not Allowed")
        if "X-Forwarded-For" in self.headers:
            return self.refuse(403, "Forbidden")
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if not (ttl.isascii() and ttl.isdigit() and 1 <= int(ttl) <= LONGEST_TTL):
            return self.refuse(400, "Bad Request")
        return self.answer(TOKENS.new(int(ttl)), ttl)

    def do_GET(self):
        token = self.headers.get("X-aws-ec2-metadata-token")
        left = TOKENS.left(token) if token else 0
        if not left and (token or self.v2_only):
            return self.refuse(401, "Unauthorized")
        path = self.path.partition("?")[0]
        if path == "/":
            content = "1.0\nlatest"
        elif path == "/latest" or path.startswith("/latest/"):
            content = lookup(path[len("/latest"):])
        else:
            content = None
        if content is None:
            return self.refuse(404, "Not Found")
        return self.answer(content, str(left) if left else None)

    do_HEAD = do_GET

    def answer(self, text, ttl=None, status=200, kind="text/plain"):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if ttl:
            self.send_header("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", ttl)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, words):
        title = f"{status} - {words}"
        self.answer(f'<?xml version="1.0" encoding="iso-8859-1"?>\n<html><head><title>{title}</title></head>'
                    f"<body><h1>{title}</h1></body></html>\n", status=status, kind="text/html")

    def log_request(self, code="-", size="-"):
        print(int(code), self.command, self.path, flush=True)

    def log_message(self, format, *args):  # noqa: A002, the library's name
        print("!", format % args, file=sys.stderr, flush=True)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    # Not http.server's: that one looks its own address up in the DNS.
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, host, port):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Service)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--v2-only", action="store_true", help="401 for requests without a token")
    parser.add_argument("addresses", nargs="+", metavar="ADDR:PORT", help="such as '[fd00:ec2::254]:80'")
    args = parser.parse_args()
    Service.v2_only = args.v2_only
    ready = ["ready"]
    for address in args.addresses:
        host, _, port = address.rpartition(":")
        if not (host and port.isdigit()):
            parser.error(f"'{address}' is not ADDR:PORT")
        server = Server(host.strip("[]"), int(port))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ready.append(f"{host}:{server.server_address[1]}")
    print(*ready, flush=True)
    signal.pause()


if __name__ == "__main__":
    # SIGINT and SIGTERM end it at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()
