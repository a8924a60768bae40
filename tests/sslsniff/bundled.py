# SPDX-License-Identifier: BSD-2-Clause
"""Clients by packages that bring their own TLS library, for tests/sslsniff_programs.rs and tests/sslsniff_servers.rs.

    bundled.py curl PORT PATH         by pycurl
    bundled.py openssl PORT PATH      by pyOpenSSL, and so by cryptography
    bundled.py memory PORT PATH       the same, TLS and the socket apart

Those that say when they have their library, and wait for a line then:

    bundled.py postgres PORT FOLDER   by psycopg2: selects the text in each file of a folder, and gets it back
    bundled.py mysql PORT FOLDER      by mysql-connector, likewise
    bundled.py kafka PORT FILE        by confluent-kafka, under the name in a file: connects until another line comes
    bundled.py grpc                   has grpcio's library, and ends with another line
"""
import pathlib
import socket
import sys


def ready():
    print("imported", flush=True)
    sys.stdin.readline()


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


def memory(port, path):
    from OpenSSL import SSL

    sock = socket.create_connection(("127.0.0.1", int(port)))
    tls = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    tls.set_connect_state()

    def flush():
        try:
            while True:
                sock.sendall(tls.bio_read(1 << 16))
        except SSL.WantReadError:
            pass

    def call(function, *args):
        while True:
            try:
                result = function(*args)
                flush()
                return result
            except SSL.WantReadError:
                flush()
                tls.bio_write(sock.recv(1 << 16))

    call(tls.do_handshake)
    call(tls.send, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    try:
        while call(tls.recv, 1 << 16):
            pass
    except SSL.ZeroReturnError:
        pass


def select(cursor, folder, statement):
    for path in sorted(pathlib.Path(folder).iterdir()):
        text = path.read_text()
        statement(cursor, text)
        assert cursor.fetchone()[0] == text


def postgres(port, folder):
    import psycopg2

    ready()
    connection = psycopg2.connect(host="127.0.0.1", port=port, user="alice", dbname="postgres", sslmode="require")
    select(connection.cursor(), folder, lambda cursor, text: cursor.execute("SELECT %s", (text,)))


def mysql(port, folder):
    # First, as Python's own ssl would bring the system's library along, under the same name.
    import _mysql_connector  # noqa: F401
    import mysql.connector

    ready()
    connection = mysql.connector.connect(host="127.0.0.1", port=int(port), user="root", use_pure=False,
                                         charset="utf8mb4", collation="utf8mb4_general_ci")
    select(connection.cursor(), folder, lambda cursor, text: cursor.execute(f"SELECT '{text}'"))


def kafka(port, file):
    import select as ready_for

    import confluent_kafka

    ready()
    producer = confluent_kafka.Producer({
        "bootstrap.servers": f"127.0.0.1:{port}", "client.id": pathlib.Path(file).read_text(), "security.protocol": "ssl",
        "enable.ssl.certificate.verification": False, "ssl.endpoint.identification.algorithm": "none",
        "reconnect.backoff.ms": 1, "reconnect.backoff.max.ms": 10, "log_level": 0})
    while not ready_for.select([sys.stdin], [], [], 0)[0]:
        try:
            producer.list_topics(timeout=1)
        except confluent_kafka.KafkaException:
            pass


def grpc():
    import grpc as _

    ready()


globals()[sys.argv[1]](*sys.argv[2:])
