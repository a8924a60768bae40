# SPDX-License-Identifier: BSD-2-Clause
"""Connections in memory that fail as they read, for tests/sslsniff_hellos.rs: nothing calls for a handshake but a read.

    failing.py CERTIFICATE      waits for a line between two that are there by then and one that comes after
"""
import ctypes
import ssl
import sys

server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(sys.argv[1])
client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client.check_hostname, client.verify_mode = False, ssl.CERT_NONE


class End:
    def __init__(self, context, **kwargs):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, **kwargs)

    def tries(self, function, *args):
        try:
            return function(*args)
        except ssl.SSLWantReadError:
            return None

    def fails(self, what):
        self.incoming.write(what)
        try:
            self.tls.read(1)
        except ssl.SSLError as err:
            return err.reason
        return None


def before():
    """One that was there before, and does no longer understand what it gets."""
    ends = [End(server, server_side=True), End(client)]
    for _ in range(4):
        for end, other in [ends, reversed(ends)]:
            end.tries(end.tls.do_handshake)
            other.incoming.write(end.outgoing.read())
    return ends


older = before()
path = next(line.split()[-1] for line in open("/proc/self/maps") if "libssl" in line)
library = ctypes.CDLL(path)
for name in ["TLS_client_method", "SSL_CTX_new", "SSL_new", "SSL_get_version"]:
    getattr(library, name).restype = ctypes.c_void_p
SSL_CTRL_SET_TLSEXT_HOSTNAME = 55

print("here", flush=True)
sys.stdin.readline()
assert older[0].fails(b"no record of TLS, but something else") is not None
del older[:]
fresh = End(server, server_side=True)
assert fresh.fails(b"GET / HTTP/1.1\r\n\r\n") == "HTTP_REQUEST"
del fresh
# What it would like best, and no name: nothing is agreed upon.
context = ctypes.c_void_p(library.SSL_CTX_new(ctypes.c_void_p(library.TLS_client_method())))
tls = ctypes.c_void_p(library.SSL_new(context))
library.SSL_set_connect_state(tls)
assert library.SSL_ctrl(tls, SSL_CTRL_SET_TLSEXT_HOSTNAME, ctypes.c_long(0), None) == 1
assert ctypes.string_at(library.SSL_get_version(tls)).startswith(b"TLS")
library.SSL_free(tls)
