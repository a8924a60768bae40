# SPDX-License-Identifier: BSD-2-Clause
"""Answers as the metadata services of AWS, its containers, Azure and Google do: service.py ADDRESS ...

Each address on port 80. Says "ready" when it listens.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CREDENTIALS = {
    "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "A", "SecretAccessKey": "B", "Token": "C", "RoleArn": "R",
    "LastUpdated": "2020-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z",
}
AZURE = {"access_token": "x", "expires_in": "3600", "expires_on": "4000000000", "resource": "r", "token_type": "Bearer"}
GOOGLE = {"access_token": "x", "expires_in": 3600, "token_type": "Bearer"}
ACCOUNT = {"email": "a@b", "scopes": ["s"], "aliases": []}

ANSWERS = {
    "/latest/meta-data/iam/security-credentials/": "role",
    "/latest/meta-data/iam/security-credentials/role": CREDENTIALS,
    "/latest/meta-data/placement/availability-zone/": "xx-north-1a",
    "/latest/meta-data/instance-id": "i-0",
    "/latest/user-data": "#!/bin/sh",
    "/v2/credentials/abc": CREDENTIALS,
    "/metadata/identity/oauth2/token": AZURE,
    "/": "computeMetadata/",
    "/computeMetadata/v1/project/project-id": "project",
    "/computeMetadata/v1/universe/universe-domain": "googleapis.com",
    "/computeMetadata/v1/instance/service-accounts/default/": ACCOUNT,
    "/computeMetadata/v1/instance/service-accounts/default/token": GOOGLE,
    "/computeMetadata/v1/instance/service-accounts/a@b/token": GOOGLE,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body):
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_PUT(self):
        path = urlsplit(self.path).path
        if path != "/latest/api/token":
            return self.answer(404, "")
        # What a service says that has no session tokens, or a container that is too many hops away.
        if "X-Without-Tokens" in self.headers:
            return self.answer(403, "")
        return self.answer(200, "TOKEN")

    def do_GET(self):
        path = urlsplit(self.path).path
        # Azure refuses what has no header, and some clients ask first whether anybody does.
        if path.startswith("/metadata/") and self.headers.get("Metadata", "").lower() != "true":
            return self.answer(400, {"error": "invalid_request"})
        body = ANSWERS.get(path)
        return self.answer(404, "") if body is None else self.answer(200, body)

    def log_message(self, *_):
        pass


servers = [ThreadingHTTPServer((address, 80), Handler) for address in sys.argv[1:]]
for server in servers:
    threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
