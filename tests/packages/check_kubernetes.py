#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Checks what a schema does not: that every file of a kustomization is there and named once, and that the pods have no
more than they need."""

import pathlib
import sys

import yaml

CAPABILITIES = {
    "tc-guard": {"BPF", "NET_ADMIN", "PERFMON"},
    "imds-watch": {"BPF", "PERFMON", "NET_RAW", "NET_ADMIN", "SYS_PTRACE"},
}
READ_ONLY = {"/sys/fs/cgroup"}


def check_pod(name, pod):
    (container,) = pod["containers"]
    security = container["securityContext"]
    assert security["privileged"] is False and security["allowPrivilegeEscalation"] is False, name
    assert security["readOnlyRootFilesystem"] is True, name
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
    assert security["capabilities"]["drop"] == ["ALL"], name
    assert set(security["capabilities"]["add"]) == CAPABILITIES[name], name
    assert pod["automountServiceAccountToken"] is False, name
    assert all(isinstance(word, str) for word in container["args"]), name
    mounts = {mount["name"]: mount for mount in container.get("volumeMounts", [])}
    for volume in pod.get("volumes", []):
        path = volume["hostPath"]["path"]
        assert mounts[volume["name"]]["readOnly"] is (path in READ_ONLY), f"{name}: {path}"


def main():
    base = pathlib.Path(sys.argv[1])
    found = set()
    for kustomization in sorted(base.glob("*/kustomization.yaml")):
        folder = kustomization.parent
        named = yaml.safe_load(kustomization.read_text())["resources"]
        for resource in named:
            path = folder / resource
            assert path.exists(), f"{kustomization}: no {resource}"
            if path.is_dir():
                assert folder.resolve() not in [path.resolve(), *path.resolve().parents], "kustomize refuses a cycle"
                assert path.resolve() not in folder.resolve().parents, "kustomize refuses a cycle"
                assert (path / "kustomization.yaml").exists(), path
        beside = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert beside == {name for name in named if name.endswith(".yaml")}, f"{folder}: {beside} against {named}"
        for name in beside:
            for document in yaml.safe_load_all((folder / name).read_text()):
                if document["kind"] == "DaemonSet":
                    name = document["metadata"]["name"]
                    check_pod(name, document["spec"]["template"]["spec"])
                    found.add(name)
    assert found == CAPABILITIES.keys(), found
    print(f"kubernetes: {', '.join(sorted(found))} have what they need and no more")


if __name__ == "__main__":
    main()
