# SPDX-License-Identifier: BSD-2-Clause
"""Ends of TLS connections that say ping and pong, for tests/sslsniff_peers.rs and tests/sslsniff_hellos.rs.

    ends.py serve PORT OPTIONS      one connection after another, until it is ended
    ends.py get PORT OPTIONS        waits for a line, connects, asks, and prints what went wrong, if anything did

OPTIONS are JSON: `cert`; `min` and `max` (versions), `alpn`, `name`, `verify`, `keylog`; `times` (connections, each
resuming the session of the last one); `aside` (what a callback sends on another socket within calls of the library, in
Base64); `memory` (TLS and the socket apart); and with that `prefix` (so many other bytes
go before the hello, in the same system call), `again` (what the client sends goes through another socket of this
process), `inside` (a connection within the connection).
"""
import base64
import json
import socket
import ssl
import sys
import threading


def context(options, side):
    made = ssl.SSLContext(side)
    if "cert" in options:
        made.load_cert_chain(options["cert"])
    if side == ssl.PROTOCOL_TLS_CLIENT and not options.get("verify"):
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    for option, attribute in [("min", "minimum_version"), ("max", "maximum_version")]:
        if option in options:
            setattr(made, attribute, ssl.TLSVersion[options[option]])
    if "alpn" in options:
        made.set_alpn_protocols(options["alpn"])
    if "keylog" in options:
        made.keylog_filename = options["keylog"]
    if "aside" in options:
        sink = socket.create_server(("127.0.0.1", 0))
        other, data = socket.create_connection(sink.getsockname()), base64.b64decode(options["aside"])
        made._msg_callback = lambda *_: sink and other.sendall(data)
    return made


class Memory:
    """As asyncio does it. `below` is a socket, or another of these."""

    def __init__(self, below, made, prefix=0, **kwargs):
        self.below, self.prefix = below, prefix
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = made.wrap_bio(self.incoming, self.outgoing, **kwargs)
        self.call(self.tls.do_handshake)

    def flush(self):
        if self.outgoing.pending:
            self.below.sendall(b"x" * self.prefix + self.outgoing.read())
            self.prefix = 0

    def call(self, function, *args):
        while True:
            try:
                return function(*args)
            except ssl.SSLWantReadError:
                self.flush()
                data = self.below.recv(1 << 16)
                self.incoming.write(data) if data else self.incoming.write_eof()
            finally:
                self.flush()

    def recv(self, size):
        return self.call(self.tls.read, size)

    def sendall(self, data):
        self.call(self.tls.write, data)

    def close(self):
        self.below.close()


def pass_on(port):
    """A port of this process that passes all on to another port."""
    server = socket.create_server(("127.0.0.1", 0))

    def pump(source, sink):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def run():
        one, other = server.accept()[0], socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=pump, args=(other, one), daemon=True).start()
        pump(one, other)

    threading.Thread(target=run, daemon=True).start()
    return server.getsockname()[1]


def serve(port, options):
    made = context(options, ssl.PROTOCOL_TLS_SERVER)
    server = socket.create_server(("127.0.0.1", int(port)))
    print("listening", flush=True)
    while True:
        sock = server.accept()[0]
        sock.recv(options.get("prefix", 0))
        try:
            if options.get("memory"):
                tls = Memory(sock, made, server_side=True)
                if options.get("inside"):
                    tls = Memory(tls, made, server_side=True)
            else:
                tls = made.wrap_socket(sock, server_side=True)
            tls.recv(4)
            tls.sendall(b"pong")
            tls.recv(1)
            tls.close()
        except OSError:
            pass
        tls = None
        sock.close()


def get(port, options):
    made = context(options, ssl.PROTOCOL_TLS_CLIENT)
    sys.stdin.readline()
    port, session = int(port), None
    if options.get("again"):
        port = pass_on(port)
    name = options.get("name")
    for _ in range(options.get("times", 1)):
        sock = socket.create_connection(("127.0.0.1", port))
        try:
            if options.get("memory"):
                tls = Memory(sock, made, options.get("prefix", 0), server_hostname=name, session=session)
                if options.get("inside"):
                    tls = Memory(tls, made, server_hostname=name)
            else:
                tls = made.wrap_socket(sock, server_hostname=name, session=session)
            tls.sendall(b"ping")
            tls.recv(4)
            session = getattr(tls, "tls", tls).session
            tls.close()
        except OSError as err:
            print(json.dumps(str(err)), flush=True)
        tls = None
        sock.close()
    print(json.dumps({"port": port}), flush=True)


globals()[sys.argv[1]](sys.argv[2], json.loads(sys.argv[3]))
