# SPDX-License-Identifier: BSD-2-Clause
"""The ends of a TLS connection, for tests/sslsniff.rs. Clients wait for a line on standard
input before they start.

    peer.py serve CERT PORT SIZE...   for each SIZE, reads so many bytes on a connection, and writes
                                      as many in a single call on another
    peer.py send PORT SIZE...         the other end, which waits for a line before each connection
    peer.py text PORT PIECE...        writes each piece in a call of its own and reads the echo
    peer.py late PORT TEXT            connects, says so, waits for another line, writes and reads the echo
    peer.py echo CERT PORT            writes back what comes on one connection
    peer.py reset CERT PORT           reads, writes that back, and resets the connection
    peer.py shut PORT TEXT            writes, reads the echo, and once it is reset says that it is done
    peer.py plain PORT                a server that does not speak TLS, for one connection
    peer.py proxy CERT PORT TO        an HTTPS proxy (CONNECT) for one connection, always to port TO
"""
import hashlib
import json
import random
import select
import socket
import ssl
import struct
import sys
import threading


def payload(size, who):
    return random.Random(f"{who} {size}").randbytes(size)


def read_all(tls, size):
    data = bytearray()
    while len(data) < size:
        part = tls.recv(min(size - len(data), 1 << 20))
        if not part:
            break
        data += part
    return bytes(data)


def listen(port):
    server = socket.create_server(("127.0.0.1", port))
    print("listening", flush=True)
    return server


def server_context(cert):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert)
    return context


def connect(port):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port)))


def digest(data):
    return hashlib.sha256(data).hexdigest()


def transfer(tls, sends, size):
    """In one call of the library, if it sends. Closing before the other end does could take back
    what is still under way."""
    if sends:
        data = payload(size, "some")
        assert tls.write(data) == size
        assert not tls.recv(1)
    else:
        data = read_all(tls, size)
    print(json.dumps({"sha256": digest(data)}), flush=True)


def serve(cert, port, *sizes):
    server, context = listen(int(port)), server_context(cert)
    for size in map(int, sizes):
        for sends in [False, True]:
            with context.wrap_socket(server.accept()[0], server_side=True) as tls:
                transfer(tls, sends, size)
            del tls


def send(port, *sizes):
    for size in map(int, sizes):
        for sends in [True, False]:
            sys.stdin.readline()
            with connect(int(port)) as tls:
                transfer(tls, sends, size)
            del tls


def text(port, *pieces):
    sys.stdin.readline()
    with connect(int(port)) as tls:
        tls.setblocking(False)
        for piece in pieces:
            piece = piece.encode().decode("unicode_escape").encode("latin-1")
            tls.write(piece)
            missing = len(piece)
            while missing:
                try:
                    missing -= len(tls.recv(1 << 16))
                except ssl.SSLWantReadError:
                    select.select([tls], [], [])
    print(json.dumps({}), flush=True)


def late(port, words):
    sys.stdin.readline()
    with connect(int(port)) as tls:
        print("connected", flush=True)
        sys.stdin.readline()
        tls.write(words.encode())
        assert read_all(tls, len(words)) == words.encode()
    print(json.dumps({}), flush=True)


def echo(cert, port):
    server, context = listen(int(port)), server_context(cert)
    with context.wrap_socket(server.accept()[0], server_side=True) as tls:
        while data := tls.recv(1 << 16):
            tls.write(data)


def reset(cert, port):
    server, context = listen(int(port)), server_context(cert)
    with context.wrap_socket(server.accept()[0], server_side=True) as tls:
        tls.write(tls.recv(1 << 16))
        # Until the other end has it.
        assert tls.recv(1)
        tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def shut(port, words):
    sys.stdin.readline()
    with connect(int(port)) as tls:
        tls.write(words.encode())
        assert read_all(tls, len(words)) == words.encode()
        tls.write(b".")
        poll = select.poll()
        poll.register(tls, 0)
        assert poll.poll()
        try:
            tls.unwrap()
        except OSError:
            pass
    print(json.dumps({}), flush=True)


def plain(port):
    server = listen(int(port))
    with server.accept()[0] as connection:
        connection.recv(1 << 16)
        connection.sendall(b"no TLS here\r\n")


def pump(source, sink):
    while data := source.recv(1 << 16):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


def proxy(cert, port, to):
    server, context = listen(int(port)), server_context(cert)
    with context.wrap_socket(server.accept()[0], server_side=True) as tls:
        while b"\r\n\r\n" not in tls.recv(1 << 16):
            pass
        with socket.create_connection(("127.0.0.1", int(to))) as target:
            tls.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            thread = threading.Thread(target=pump, args=(target, tls), daemon=True)
            thread.start()
            try:
                while data := tls.recv(1 << 16):
                    target.sendall(data)
            except OSError:
                pass


globals()[sys.argv[1]](*sys.argv[2:])
