# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a fake host's /proc says: the boot, mounted block devices, the default route, who has a group open.

Source: formats are proc(5)'s
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from pyhostdev.testing.simdevice import drop_tree, put_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.testing.hostspec import HostSpec
    from pyhostdev.util.hostroot import HostRoot

_FIRST_PID = 4000
_ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"


def put_proc(root: HostRoot, host: HostSpec) -> None:
    """
    Write the files that tell what the host is doing with its devices.

    Host: writes below ``proc``
    """
    numbered = list(enumerate(host.mounts, 20))
    texts = {
        "sys/kernel/random/boot_id": f"{host.boot_id}\n",
        "sys/kernel/osrelease": f"{host.release}\n",
        "mounts": "".join(f"/dev/{d} {where} {fs} rw 0 0\n" for d, where, fs in host.mounts),
        "self/mountinfo": "".join(
            f"{n} 1 259:{n - 20} / {where} rw - {fs} /dev/{d} rw\n" for n, (d, where, fs) in numbered
        ),
        "swaps": "Filename\tType\tSize\tUsed\tPriority\n"
        + "".join(f"/dev/{name}\tpartition\t1048572\t0\t-2\n" for name in host.swaps),
        "net/route": _ROUTES
        + "".join(f"{name}\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" for name in host.routes),
    }
    for name, text in texts.items():
        path = os.path.join(root.proc, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        put_file(path, text.encode())


@contextlib.contextmanager
def holding_process(root: HostRoot, node: str) -> Iterator[None]:
    """
    Show a process that has a node of VFIO open, as long as the block runs; a host without proc shows none.

    Host: writes ``proc/PID``
    """
    if not os.path.isdir(root.proc):
        yield
        return
    pid = next(n for n in range(_FIRST_PID, 1 << 22) if not os.path.exists(f"{root.proc}/{n}"))
    directory = os.path.join(root.proc, str(pid))
    descriptors = os.path.join(directory, "fd")
    os.makedirs(descriptors)
    put_file(os.path.join(directory, "comm"), b"qemu-system-x86\n")
    os.symlink("/dev/vfio/vfio", os.path.join(descriptors, "20"))
    os.symlink(os.path.join("/", os.path.relpath(node, root.path)), os.path.join(descriptors, "21"))
    try:
        yield
    finally:
        drop_tree(directory)
