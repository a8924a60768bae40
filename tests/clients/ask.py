# SPDX-License-Identifier: BSD-2-Clause
"""Asks for metadata as programs do that use a library: ask.py CLIENT"""

import os
import sys
import urllib.request

IMDS = "http://169.254.169.254"
TOKEN = "X-aws-ec2-metadata-token"


def with_urllib():
    def ask(path, method="GET", **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        urllib.request.urlopen(urllib.request.Request(IMDS + path, method=method, headers=headers), timeout=10).read()

    ask("/latest/meta-data/instance-id")
    ask("/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    ask("/latest/meta-data/instance-id", X_aws_ec2_metadata_token="TOKEN")


def with_requests():
    import requests

    ttl = {TOKEN + "-ttl-seconds": "60"}
    with requests.Session() as session:
        token = session.put(IMDS + "/latest/api/token", headers=ttl, timeout=10).text
        session.get(IMDS + "/latest/meta-data/instance-id", headers={TOKEN: token}, timeout=10).raise_for_status()
        session.get(IMDS + "/latest/meta-data/instance-id", timeout=10).raise_for_status()


def with_botocore():
    from botocore.session import get_session

    # As `aws` does with a role of the machine.
    credentials = get_session().get_credentials()
    assert credentials.get_frozen_credentials().access_key == "A"


def botocore_region():
    from botocore.utils import InstanceMetadataRegionFetcher

    assert InstanceMetadataRegionFetcher(timeout=10).retrieve_region() == "xx-north-1"


def botocore_without_tokens():
    from botocore.httpsession import URLLib3Session
    from botocore.utils import InstanceMetadataFetcher

    send = URLLib3Session.send

    def marked(self, request):
        if request.method == "PUT":
            request.headers["X-Without-Tokens"] = "1"
        return send(self, request)

    URLLib3Session.send = marked
    assert InstanceMetadataFetcher(timeout=10).retrieve_iam_role_credentials()["access_key"] == "A"


def botocore_in_a_container():
    os.environ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "/v2/credentials/abc"
    with_botocore()


def azure_identity():
    from azure.identity import ManagedIdentityCredential

    assert ManagedIdentityCredential().get_token("https://vault.azure.net/.default").token == "x"


def azure_identity_by_default():
    from azure.identity import DefaultAzureCredential

    others = ["environment", "workload_identity", "shared_token_cache", "visual_studio_code", "cli", "powershell",
              "developer_cli"]
    credential = DefaultAzureCredential(**{f"exclude_{one}_credential": True for one in others})
    assert credential.get_token("https://vault.azure.net/.default").token == "x"


def google_auth():
    import google.auth
    from google.auth.transport.requests import Request

    credentials, project = google.auth.default()
    assert project == "project"
    credentials.refresh(Request())
    assert credentials.token == "x"


for name in list(os.environ):
    if name.lower().endswith("_proxy"):
        del os.environ[name]
os.environ.update(GCE_METADATA_HOST="169.254.169.254", AWS_EC2_METADATA_DISABLED="false")
globals()[sys.argv[1]]()
