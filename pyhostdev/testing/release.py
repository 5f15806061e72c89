# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The release of a simulated kernel, and what differs between releases.

Measured on 6.1.192, 6.12.117 and 7.2.13.
"""

from __future__ import annotations

import re

from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhostdev.testing.tree import Tree

CHANGES = {
    "nvme-enables-in-probe": (6, 2),  # before, a controller that does not start lost its driver a moment after the bind
    "override-without-lock": (6, 12),  # driver_override is stored while an unbind of the function waits
    "fdinfo-names-function": (6, 18),  # vfio-device-syspath
}


def has_change(tree: Tree, change: str) -> bool:
    """
    Return True if the host's kernel has the behaviour of a row of ``CHANGES``.

    Host: reads ``proc/sys/kernel/osrelease``
    """
    number = re.match(r"(\d+)\.(\d+)", (tree.read_file(tree.root.kernel_release) or b"").decode())
    return number is not None and (int(number[1]), int(number[2])) >= CHANGES[change]
