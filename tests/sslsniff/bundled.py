# SPDX-License-Identifier: BSD-2-Clause
"""Clients by packages that bring their own TLS library, for tests/sslsniff_programs.rs.

    bundled.py curl PORT PATH         by pycurl
    bundled.py openssl PORT PATH      by pyOpenSSL, and so by cryptography
"""
import socket
import sys


def curl(port, path):
    import pycurl

    one = pycurl.Curl()
    one.setopt(pycurl.URL, f"https://127.0.0.1:{port}{path}")
    one.setopt(pycurl.PROXY, "")
    one.setopt(pycurl.TIMEOUT, 50)
    one.setopt(pycurl.SSL_VERIFYPEER, 0)
    one.setopt(pycurl.SSL_VERIFYHOST, 0)
    one.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    one.setopt(pycurl.WRITEFUNCTION, lambda data: None)
    one.perform()


def openssl(port, path):
    from OpenSSL import SSL

    sock = socket.create_connection(("127.0.0.1", int(port)))
    tls = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), sock)
    tls.set_connect_state()
    tls.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    try:
        while tls.recv(1 << 16):
            pass
    except SSL.ZeroReturnError:
        pass


globals()[sys.argv[1]](*sys.argv[2:])
