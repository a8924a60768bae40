# SPDX-License-Identifier: BSD-2-Clause
"""Ends of TLS connections through asyncio, which keeps TLS apart from the socket, for tests/sslsniff_programs.rs.

    asyncio_end.py serve CERT PORT      answers each HTTP request with its path, until it is ended
    asyncio_end.py get PORT PATH        waits for a line, asks once, and prints the answer's last line
"""
import asyncio
import ssl
import sys


async def answer(reader, writer):
    head = await reader.readuntil(b"\r\n\r\n")
    path = head.split(b" ")[1]
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path))
    await writer.drain()
    writer.close()


async def serve(cert, port):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert)
    server = await asyncio.start_server(answer, "127.0.0.1", int(port), ssl=context)
    print("listening", flush=True)
    await server.serve_forever()


async def get(port, path):
    sys.stdin.readline()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port), ssl=context)
    writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
    text = await reader.read()
    print('"' + text.split(b"\r\n")[-1].decode(errors="replace") + '"', flush=True)


asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
