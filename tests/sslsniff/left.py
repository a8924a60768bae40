# SPDX-License-Identifier: BSD-2-Clause
"""A client that does not free its connection as others do, for tests/sslsniff_calls.rs.

    left.py PORT HOW            waits for a line and sends abcdef to an echo and reads it; then
                                ends       ends without freeing the connection
                                executes   becomes a program that waits for a line
                                shares     takes a reference, drops one, does so with ghi, drops the last
"""
import ctypes
import os
import socket
import ssl
import sys

library = next(line.split()[-1] for line in open("/proc/self/maps") if "libssl" in line)
lib = ctypes.CDLL(library)
for name in ["TLS_client_method", "SSL_CTX_new", "SSL_new"]:
    getattr(lib, name).restype = ctypes.c_void_p

sys.stdin.readline()
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
tls = ctypes.c_void_p(lib.SSL_new(ctypes.c_void_p(lib.SSL_CTX_new(ctypes.c_void_p(lib.TLS_client_method())))))
assert lib.SSL_set_fd(tls, connection.fileno()) == 1
assert lib.SSL_connect(tls) == 1
buffer = ctypes.create_string_buffer(100)


def say(words):
    assert lib.SSL_write(tls, words, len(words)) == len(words)
    assert lib.SSL_read(tls, buffer, 100) == len(words)


say(b"abcdef")
# The echo waits for this or for more.
if sys.argv[2] != "shares":
    lib.SSL_shutdown(tls)
if sys.argv[2] == "executes":
    os.execv(sys.executable, [sys.executable, "-c", "input()"])
if sys.argv[2] == "shares":
    assert lib.SSL_up_ref(tls) == 1
    lib.SSL_free(tls)
    say(b"ghi")
    lib.SSL_shutdown(tls)
    lib.SSL_free(tls)
os._exit(0)
