# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The render nodes of a host, through which a program draws with OpenGL.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from pyhostdev.util.virfile import list_names

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot

_RENDER_NODE = re.compile(r"renderD([0-9]{1,9})", re.ASCII)


def first_render_node(root: HostRoot) -> str | None:
    """
    Return the path of the render node with the lowest number, as QEMU opens it; None if the host shows none.

    Raises:
        SysfsError: the directory cannot be read.

    Host: ``dev/dri``

    Mirrors: virHostGetDRMRenderNode (src/util/virutil.c)
    """
    found = [match for name in list_names(root, root.dev_dri) if (match := _RENDER_NODE.fullmatch(name))]
    lowest = min(found, key=lambda match: int(match[1]), default=None)
    return None if lowest is None else os.path.join("/dev/dri", lowest[0])
