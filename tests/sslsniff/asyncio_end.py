# SPDX-License-Identifier: BSD-2-Clause
"""Ends of TLS connections through asyncio, which keeps TLS apart from the socket, for tests/sslsniff_programs.rs
and tests/sslsniff_peers.rs.

    asyncio_end.py serve CERT PORT      answers each HTTP request with its path, until it is ended
    asyncio_end.py get PORT PATH        waits for a line, asks once, and prints the answer's last line
    asyncio_end.py many PORT PATH COUNT     asks for PATH0, PATH1, … at once, and prints the answers' last lines

PORT may be ADDRESS:PORT.
"""
import asyncio
import json
import ssl
import sys


def place(port):
    host, _, port = port.rpartition(":")
    return host or "127.0.0.1", int(port)


async def answer(reader, writer):
    head = await reader.readuntil(b"\r\n\r\n")
    path = head.split(b" ")[1]
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path))
    await writer.drain()
    writer.close()


async def serve(cert, port):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert)
    server = await asyncio.start_server(answer, *place(port), ssl=context)
    print("listening", flush=True)
    await server.serve_forever()


async def ask(port, path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(*place(port), ssl=context)
    writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
    text = await reader.read()
    return text.split(b"\r\n")[-1].decode(errors="replace")


async def get(port, path):
    sys.stdin.readline()
    print('"' + await ask(port, path) + '"', flush=True)


async def many(port, path, count):
    sys.stdin.readline()
    print(json.dumps(sorted(await asyncio.gather(*(ask(port, f"{path}{i}") for i in range(int(count)))))), flush=True)


asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
