# SPDX-License-Identifier: BSD-2-Clause
"""A client that makes calls of OpenSSL which no program of the tests makes, for tests/sslsniff_calls.rs.

    calls.py PORT [filter]      waits for a line, sends abcdef to an echo and reads it after two peeks; with `filter`
                                under a seccomp filter that kills for the system calls which probes use on x86-64
"""
import ctypes
import mmap
import socket
import ssl
import struct
import sys
import tempfile

library = next(line.split()[-1] for line in open("/proc/self/maps") if "libssl" in line)
lib = ctypes.CDLL(library)
POINTERS = ["TLS_client_method", "SSL_CTX_new", "SSL_new", "SSL_get_version"]
for name in POINTERS:
    getattr(lib, name).restype = ctypes.c_void_p
SSL_CTRL_SET_TLSEXT_HOSTNAME = 55

if "filter" in sys.argv:
    libc = ctypes.CDLL(None)
    # linux/filter.h: load seccomp_data.nr; to the kill if it is uretprobe (335, 6.11) or uprobe (336, 6.18); allow; kill.
    code = b"".join(struct.pack("HBBI", *one) for one in [
        (0x20, 0, 0, 0), (0x15, 2, 0, 335), (0x15, 1, 0, 336), (0x06, 0, 0, 0x7fff0000), (0x06, 0, 0, 0x80000000)])
    instructions = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", 5, ctypes.addressof(instructions))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
sys.stdin.readline()
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
tls = ctypes.c_void_p(lib.SSL_new(ctypes.c_void_p(lib.SSL_CTX_new(ctypes.c_void_p(lib.TLS_client_method())))))
assert lib.SSL_set_fd(tls, connection.fileno()) == 1
# A name where nobody has looked yet, as a constant is; then the one that counts.
with tempfile.TemporaryFile() as file:
    file.write(b"constant.example\0".ljust(mmap.PAGESIZE, b"\0"))
    file.flush()
    constant = mmap.mmap(file.fileno(), mmap.PAGESIZE, mmap.MAP_PRIVATE)
name = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(constant)))
assert lib.SSL_ctrl(tls, SSL_CTRL_SET_TLSEXT_HOSTNAME, ctypes.c_long(0), name) == 1
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
