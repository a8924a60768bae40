# SPDX-License-Identifier: BSD-2-Clause
"""A client that does not free its connection as others do, for tests/sslsniff_calls.rs.

    left.py PORT HOW [NAME]     waits for "go" and sends abcdef to an echo and reads it; then
                                ends       ends without freeing the connection
                                executes   becomes a program that waits for a line
                                elsewhere  frees it in a thread of another name than the main one's, which is NAME
                                repeats    becomes this program, for the next port, and ends
                                shares     takes a reference, drops one, does so with ghi, drops the last
"""
import ctypes
import os
import socket
import ssl
import sys
import threading

library = next(line.split()[-1] for line in open("/proc/self/maps") if "libssl" in line)
lib = ctypes.CDLL(library)
for name in ["TLS_client_method", "SSL_CTX_new", "SSL_new"]:
    getattr(lib, name).restype = ctypes.c_void_p

if len(sys.argv) > 3:
    open("/proc/self/comm", "w").write(sys.argv[3])
# "go\n", and no more of what is there.
os.read(0, 3)
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
if sys.argv[2] == "elsewhere":
    def free():
        open(f"/proc/self/task/{threading.get_native_id()}/comm", "w").write("another")
        lib.SSL_free(tls)
    thread = threading.Thread(target=free)
    thread.start()
    thread.join()
if sys.argv[2] == "repeats":
    print(tls.value, flush=True)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:-2], str(int(sys.argv[1]) + 1), "follows"])
if sys.argv[2] == "follows":
    print(tls.value, flush=True)
if sys.argv[2] == "shares":
    assert lib.SSL_up_ref(tls) == 1
    lib.SSL_free(tls)
    say(b"ghi")
    lib.SSL_shutdown(tls)
    lib.SSL_free(tls)
os._exit(0)
