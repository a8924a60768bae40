# SPDX-License-Identifier: BSD-2-Clause
"""Ends of a TLS connection by BoringSSL, for tests/sslsniff_versions.rs. What is in each file of a folder goes from one to
the other and back, each in a single call.

    boring.py LIBRARIES serve FOLDER CERT KEY PORT      for one connection
    boring.py LIBRARIES send FOLDER PORT                waits for a line before it begins
"""
import ctypes
import pathlib
import socket
import sys

libraries, what, folder, *rest = sys.argv[1:]
ctypes.CDLL(f"{libraries}/libcrypto.so.0", ctypes.RTLD_GLOBAL)
lib = ctypes.CDLL(f"{libraries}/libssl.so.0")
for name in ["TLS_method", "SSL_CTX_new", "SSL_new", "SSL_get_version"]:
    getattr(lib, name).restype = ctypes.c_void_p
PEM = 1


def start(context, connection):
    tls = ctypes.c_void_p(lib.SSL_new(context))
    assert lib.SSL_set_fd(tls, connection.fileno()) == 1
    return tls


def put(tls, data):
    assert lib.SSL_write(tls, data, len(data)) == len(data)


def get(tls, size):
    data, buffer = bytearray(), ctypes.create_string_buffer(1 << 16)
    while len(data) < size:
        length = lib.SSL_read(tls, buffer, min(size - len(data), len(buffer)))
        assert length > 0
        data += buffer.raw[:length]
    return bytes(data)


def end(tls):
    lib.SSL_shutdown(tls)
    lib.SSL_free(tls)


files = [path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir())]
context = ctypes.c_void_p(lib.SSL_CTX_new(ctypes.c_void_p(lib.TLS_method())))
if what == "serve":
    cert, key, port = rest
    assert lib.SSL_CTX_use_certificate_file(context, cert.encode(), PEM) == 1
    assert lib.SSL_CTX_use_PrivateKey_file(context, key.encode(), PEM) == 1
    server = socket.create_server(("127.0.0.1", int(port)))
    print("listening", flush=True)
    connection = server.accept()[0]
    tls = start(context, connection)
    assert lib.SSL_accept(tls) == 1
    for data in files:
        assert get(tls, len(data)) == data
        put(tls, data)
    end(tls)
else:
    sys.stdin.readline()
    connection = socket.create_connection(("127.0.0.1", int(rest[0])))
    tls = start(context, connection)
    assert lib.SSL_set_tlsext_host_name(tls, b"name.example") == 1
    assert lib.SSL_connect(tls) == 1
    lib.SSL_get_version(tls)
    for data in files:
        put(tls, data)
        assert get(tls, len(data)) == data
    end(tls)
print("{}", flush=True)
