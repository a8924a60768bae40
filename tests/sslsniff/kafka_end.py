# SPDX-License-Identifier: BSD-2-Clause
"""A server for tests/sslsniff_servers.rs that understands as much of Kafka's protocol as it takes to answer a client's first
request with a file of a folder, each on a connection of its own.

    kafka_end.py CERT PORT FOLDER
"""
import pathlib
import socket
import ssl
import struct
import sys

cert, port, folder = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert)
server = socket.create_server(("127.0.0.1", int(port)))
print("listening", flush=True)


def read(tls, size):
    data = b""
    while len(data) < size:
        part = tls.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def answer(payload):
    """Says whether the client has read all of it: it asks for more then, or gives up."""
    with context.wrap_socket(server.accept()[0], server_side=True) as tls:
        # A request is its length, what it is and its version, a number that is to be in the answer, and who asks.
        length, = struct.unpack(">i", read(tls, 4))
        request = read(tls, length)
        data = request[4:8] + payload
        tls.sendall(struct.pack(">i", len(data)) + data)
        try:
            tls.recv(1)
        except OSError:
            pass


for path in sorted(pathlib.Path(folder).iterdir()):
    while True:
        try:
            answer(path.read_bytes())
            break
        except (EOFError, OSError):
            # A client may think better of a connection, and make another.
            pass
