# SPDX-License-Identifier: BSD-2-Clause
"""A client that makes calls of GnuTLS which no program of the tests makes, for tests/sslsniff_programs.rs.

    gnutls.py PORT     waits for a line, and sends to an echo what is under CALLS
"""
import ctypes
import errno
import socket
import sys

lib = ctypes.CDLL("libgnutls.so.30")
for name in ["gnutls_record_send", "gnutls_record_send2", "gnutls_record_recv"]:
    getattr(lib, name).restype = ctypes.c_ssize_t
AGAIN = -28
CLIENT = 2
CREDENTIALS_CERTIFICATE = 1

sys.stdin.readline()
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
session = ctypes.c_void_p()
credentials = ctypes.c_void_p()
is_full = False


@ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
def push(_, start, length):
    """Sends, or says once that there is no room."""
    global is_full
    if is_full:
        is_full = False
        lib.gnutls_transport_set_errno(session, errno.EAGAIN)
        return -1
    return connection.send(ctypes.string_at(start, length))


def send(data):
    """Sends the bytes, or goes on with those before."""
    return lib.gnutls_record_send(session, data, ctypes.c_size_t(len(data or b"")))


def receive(wanted):
    """Reads so many bytes."""
    buffer = ctypes.create_string_buffer(wanted)
    got = 0
    while got < wanted:
        part = lib.gnutls_record_recv(session, ctypes.byref(buffer, got), ctypes.c_size_t(wanted - got))
        # A ticket is none of the bytes.
        assert part > 0 or part == AGAIN, part
        got += max(part, 0)


assert lib.gnutls_certificate_allocate_credentials(ctypes.byref(credentials)) == 0
assert lib.gnutls_init(ctypes.byref(session), CLIENT) == 0
assert lib.gnutls_set_default_priority(session) == 0
assert lib.gnutls_credentials_set(session, CREDENTIALS_CERTIFICATE, credentials) == 0
lib.gnutls_transport_set_int2(session, connection.fileno(), connection.fileno())
lib.gnutls_transport_set_push_function(session, push)
assert lib.gnutls_handshake(session) == 0
# CALLS
assert send(b"plain") == 5
receive(5)
lib.gnutls_record_cork(session)
assert send(b"corked") == 6
assert send(b" twice") == 6
assert lib.gnutls_record_uncork(session, 1) == 12
receive(12)
assert send(b"after") == 5
receive(5)
assert lib.gnutls_record_send2(session, b"padded", ctypes.c_size_t(6), ctypes.c_size_t(16), 0) == 6
receive(6)
is_full = True
assert send(b"again") == AGAIN
assert send(None) == 5
receive(5)
lib.gnutls_bye(session, 0)
lib.gnutls_deinit(session)
print("{}", flush=True)
