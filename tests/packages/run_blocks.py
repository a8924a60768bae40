#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Runs the blocks of shell commands in documents: those that are fenced and called `sh`. What cannot run in a test, as it
needs a registry, a cluster or a person, is called `console` there.

usage: run_blocks.py REPOSITORY DOCUMENT..."""

import pathlib
import re
import subprocess
import sys

PATIENCE = 300


def main():
    repository, *documents = sys.argv[1:]
    ran = 0
    for document in documents:
        text = pathlib.Path(repository, document).read_text()
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            done = subprocess.run(["sh", "-eu", "-c", block], cwd=repository, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=PATIENCE)
            if done.returncode != 0:
                sys.exit(f"{document}: exit status {done.returncode}\n{block}\n{done.stdout}")
            ran += 1
    if ran < 2:
        sys.exit(f"only {ran} blocks found")
    print(f"    {ran} blocks of {len(documents)} documents ran")


if __name__ == "__main__":
    main()
