# SPDX-License-Identifier: BSD-2-Clause
"""A client that makes calls of OpenSSL which no program of the tests makes, for tests/sslsniff_calls.rs.

    calls.py PORT       waits for a line, sends abcdef to an echo and reads it after two peeks
"""
import ctypes
import socket
import ssl
import sys

library = next(line.split()[-1] for line in open("/proc/self/maps") if "libssl" in line)
lib = ctypes.CDLL(library)
POINTERS = ["TLS_client_method", "SSL_CTX_new", "SSL_new", "SSL_get_version"]
for name in POINTERS:
    getattr(lib, name).restype = ctypes.c_void_p
SSL_CTRL_SET_TLSEXT_HOSTNAME = 55

sys.stdin.readline()
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
tls = ctypes.c_void_p(lib.SSL_new(ctypes.c_void_p(lib.SSL_CTX_new(ctypes.c_void_p(lib.TLS_client_method())))))
assert lib.SSL_set_fd(tls, connection.fileno()) == 1
assert lib.SSL_ctrl(tls, SSL_CTRL_SET_TLSEXT_HOSTNAME, ctypes.c_long(0), b"name.example") == 1
assert lib.SSL_connect(tls) == 1
assert lib.SSL_session_reused(tls) == 0
lib.SSL_get_version(tls)
assert lib.SSL_write(tls, b"abcdef", 6) == 6
buffer = ctypes.create_string_buffer(100)
length = ctypes.c_size_t()
assert lib.SSL_peek(tls, buffer, 3) == 3
assert lib.SSL_peek_ex(tls, buffer, ctypes.c_size_t(100), ctypes.byref(length)) == 1
assert length.value == 6
assert lib.SSL_read(tls, buffer, 100) == 6
lib.SSL_shutdown(tls)
lib.SSL_free(tls)
print("{}", flush=True)
