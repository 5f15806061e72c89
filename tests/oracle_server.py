# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Answer the questions of the oracle's compare.py through the public API.

    oracle_server.py SYSFS DEV

SYSFS is DIR/sys of a host that takes the place of /. Reads lines "KIND<TAB>FILE<TAB>EXTRA" and answers each
with one line of JSON: {"ok": value}, or {"error": message, "code": libvirt's error number}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyhostdev
from pyhostdev.errors import HostdevError
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_command import stored_capabilities

NO_TAP = 3  # compare.py does not look at a tap's descriptor


class Server:
    """One host, and the answers about definitions on it."""

    def __init__(self, sysfs: str) -> None:
        self.host = pyhostdev.Host(Path(sysfs).parent)

    def answer(self, kind: str, path: str, extra: str) -> Any:
        """
        Return the answer to one question.

        Raises:
            HostdevError: libvirt's number is in it.
        """
        dom = pyhostdev.DomainDef.parse(Path(path).read_bytes())
        capabilities = stored_capabilities(dom)
        if kind == "xml":
            return define(dom, capabilities, self.host).format()
        if kind == "argv":
            return build_command_line(dom, capabilities, host=self.host, state_dir="@ROOT@", tap_fd=lambda net: NO_TAP)
        raise HostdevError(f"'{kind}' is not answered yet")


def main() -> None:
    """Serve standard input until it ends."""
    server = Server(sys.argv[1])
    for line in sys.stdin:
        kind, path, extra = line.rstrip("\n").split("\t")
        try:
            answer = {"ok": server.answer(kind, path, extra)}
        except HostdevError as err:
            answer = {"error": str(err), "code": err.libvirt_code}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
