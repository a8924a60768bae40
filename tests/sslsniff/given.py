# SPDX-License-Identifier: BSD-2-Clause
"""Gives connections of OpenSSL descriptors in several ways, and after each names a server, which sslsniff tells, for
tests/sslsniff_peers.rs.

    given.py PORT       waits for a line
"""
import ctypes
import socket
import ssl  # noqa: F401 it brings the library
import sys

library = next(line.split()[-1] for line in open("/proc/self/maps") if "libssl" in line)
lib = ctypes.CDLL(library)
for name in ["TLS_client_method", "SSL_CTX_new", "SSL_new", "BIO_s_mem", "BIO_new"]:
    getattr(lib, name).restype = ctypes.c_void_p
SSL_CTRL_SET_TLSEXT_HOSTNAME = 55

sys.stdin.readline()
port = int(sys.argv[1])
one, other = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
context = ctypes.c_void_p(lib.SSL_CTX_new(ctypes.c_void_p(lib.TLS_client_method())))


def connection():
    return ctypes.c_void_p(lib.SSL_new(context))


def memory():
    return ctypes.c_void_p(lib.BIO_new(ctypes.c_void_p(lib.BIO_s_mem())))


def say(tls, name):
    assert lib.SSL_ctrl(tls, SSL_CTRL_SET_TLSEXT_HOSTNAME, ctypes.c_long(0), name) == 1


tls = connection()
say(tls, b"nothing")
lib.SSL_set_fd(tls, one.fileno())
say(tls, b"one-fd")

tls = connection()
lib.SSL_set_fd(tls, one.fileno())
bio = memory()
lib.SSL_set_bio(tls, bio, bio)
say(tls, b"taken-back")

tls = connection()
lib.SSL_set_rfd(tls, other.fileno())
say(tls, b"one-direction")
lib.SSL_set_wfd(tls, other.fileno())
say(tls, b"both-directions")
lib.SSL_set0_wbio(tls, memory())
say(tls, b"one-taken-back")

tls = connection()
lib.SSL_set_rfd(tls, one.fileno())
lib.SSL_set_wfd(tls, other.fileno())
say(tls, b"two-sockets")

tls = connection()
with open("/dev/null") as file:
    lib.SSL_set_fd(tls, file.fileno())
    say(tls, b"no-socket")
lib.SSL_set_fd(tls, 1 << 20)
say(tls, b"no-file")
print('{"one": %d, "other": %d}' % (one.getsockname()[1], other.getsockname()[1]), flush=True)
