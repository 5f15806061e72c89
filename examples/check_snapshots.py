#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which hosts can take this domain? check_snapshots.py DOMAIN.xml HOST.tree...

A .tree file describes a host as text. The check runs in continuous integration: no hardware, no privileges.
The exit code is 0 if every host can take the domain, else 1.
"""

from __future__ import annotations

import sys
import tempfile

import pyhostdev
from pyhostdev.testing import FakeHost


def obstacles(domain: pyhostdev.DomainDef, tree: str) -> list[str]:
    """Return the obstacles on one host, one sentence per finding."""
    with tempfile.TemporaryDirectory() as directory:
        host = pyhostdev.Host(FakeHost.from_tree(tree, directory).root)
        return [f"{finding.reason}: {finding.message}" for finding in host.plan(domain).obstacles]


def main(path: str, *trees: str) -> int:
    """Print one line per host, and the obstacles below it."""
    with open(path, encoding="utf-8") as stream:
        domain = pyhostdev.DomainDef.parse(stream.read())
    refused = 0
    for tree in trees:
        found = obstacles(domain, tree)
        refused += bool(found)
        print(f"{tree}: {'refused' if found else 'can take it'}")
        for sentence in found:
            print(f"  {sentence}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
