#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Unpacks an Alpine package and says what apk would not like about it, or what should not be in it: it has the program,
manual pages and completions, all of root, and neither units nor settings nor scripts, as Alpine has no systemd.

usage: check_apk.py PACKAGE PROGRAM"""

import gzip
import hashlib
import io
import pathlib
import sys
import tarfile
import zlib

PAGES = ["man8/ebpfkit.8", "man8/ebpfkit-tc-guard.8", "man8/ebpfkit-imds-watch.8", "man8/ebpfkit-sslsniff.8",
         "man8/ebpfkit-doctor.8", "man5/ebpfkit-tc-guard.toml.5"]
COMPLETIONS = ["bash-completion/completions/ebpfkit", "zsh/site-functions/_ebpfkit", "fish/vendor_completions.d/ebpfkit.fish"]


def streams(packed):
    """An .apk is gzip streams one after another, of an archive each: each as it is packed."""
    while packed:
        stream = zlib.decompressobj(wbits=31)
        stream.decompress(packed)
        assert stream.eof, "cut off"
        yield packed[:len(packed) - len(stream.unused_data)]
        packed = stream.unused_data


def members(packed):
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as archive:
        return {member.name: (member, archive.extractfile(member).read() if member.isfile() else b"")
                for member in archive}


def main():
    package, program = map(pathlib.Path, sys.argv[1:])
    control_packed, data_packed = streams(package.read_bytes())
    control, data = members(control_packed), members(data_packed)

    assert set(control) == {".PKGINFO"}, set(control)
    pairs = [line.split(" = ", 1) for line in control[".PKGINFO"][1].decode().splitlines() if not line.startswith("#")]
    info = dict(pairs)
    version = next(line for line in pathlib.Path("Cargo.toml").read_text().splitlines() if line.startswith("version = "))
    assert info["pkgname"] == "ebpfkit", info
    assert info["pkgver"] == version.split('"')[1] + "-r1", info
    assert info["arch"] in ["x86_64", "aarch64"] and info["arch"] in package.name, info
    assert info["datahash"] == hashlib.sha256(data_packed).hexdigest(), info
    assert {value for key, value in pairs if key == "depend"} == {"libelf", "libgcc", "musl", "zlib"}, pairs

    for name, (member, text) in data.items():
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "root", "root"), name
        mode = 0o755 if member.isdir() or name == "usr/bin/ebpfkit" else 0o644
        assert member.mode & 0o7777 == mode, (name, oct(member.mode))
        if member.isfile():
            # What apk compares with when it audits a system.
            assert member.pax_headers["APK-TOOLS.checksum.SHA1"] == hashlib.sha1(text).hexdigest(), name
    assert data["usr/bin/ebpfkit"][1] == program.read_bytes()
    for page in PAGES:
        assert gzip.decompress(data[f"usr/share/man/{page}.gz"][1]), page
    for name in COMPLETIONS:
        assert data[f"usr/share/{name}"][1], name
    other = [name for name in data if not name.startswith("usr/")]
    assert not [name for name in other if name != "usr"] and not [name for name in data if "systemd" in name], other
    assert not [name for name in data if "sysusers" in name or name.startswith("usr/lib")], sorted(data)
    print(f"    {package.name}: {len(data)} files and folders")


if __name__ == "__main__":
    main()
