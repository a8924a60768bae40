#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Checks that an SBOM is what CycloneDX's schema says, names every crate that Cargo.lock has for what it says is in the program, with its checksum, that
its references hold, and that every licence is one that the packages can carry."""

import json
import pathlib
import re
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

PERMISSIVE = {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Unlicense", "Zlib", "Unicode-3.0"}


def acceptable(expression):
    """Whether there is a choice for each part that asks for no more than a notice."""
    plain = re.sub(r"[()]| WITH LLVM-exception", "", expression)
    # "A OR B AND C" is read as (A OR B) AND C: every crate that has both writes it with these parentheses.
    return all(any(choice.strip() in PERMISSIVE for choice in part.split(" OR ")) for part in plain.split(" AND "))


def main():
    (path,) = sys.argv[1:]
    text = pathlib.Path(path).read_text()
    validator = JsonStrictValidator(SchemaVersion.V1_5)
    assert (wrong := validator.validate_str(text)) is None, wrong
    # Strict: what the schema does not know is noticed.
    assert validator.validate_str(text.replace('"purl"', '"pearl"', 1)) is not None
    bom = json.loads(text)
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.5")
    components = {component["bom-ref"]: component for component in bom["components"]}
    assert len(components) == len(bom["components"]), "a reference stands twice"
    root = bom["metadata"]["component"]
    lock = pathlib.Path("Cargo.lock").read_text()
    for component in components.values():
        (licence,) = component["licenses"]
        assert acceptable(licence["expression"]), f"{component['name']}: {licence['expression']}"
        if component["purl"].startswith("pkg:cargo/"):
            entry = f'name = "{component["name"]}"\nversion = "{component["version"]}"\n'
            assert entry in lock, f"{component['bom-ref']} is not in Cargo.lock"
            (digest,) = component["hashes"]
            assert f'checksum = "{digest["content"]}"' in lock, component["bom-ref"]
    known = components.keys() | {root["bom-ref"]}
    for dependency in bom["dependencies"]:
        unknown = {dependency["ref"], *dependency["dependsOn"]} - known
        assert not unknown, unknown
    required = {c["name"] for c in components.values() if c["scope"] == "required"}
    assert {"libbpf", "libbpf-rs", "libbpf-sys", "clap", "nix"} <= required, required
    assert "libbpf-cargo" not in required
    print(f"{path}: {len(components)} components, {len(required)} of them in the program")


if __name__ == "__main__":
    main()
