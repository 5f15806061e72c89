# SPDX-License-Identifier: LGPL-2.1-or-later
"""
CD-ROM drives of a host.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot

_SCSI_CDROM_MAJOR = 11  # kernel include/uapi/linux/major.h


def is_cdrom_drive(root: HostRoot, path: str) -> bool:
    """
    Return True if a path leads to a CD-ROM drive; False for anything else, also for a path that cannot be read.

    Host: the path itself
    Mirrors: virFileIsCDROM (src/util/virfile.c)
    """
    try:
        status = os.stat(root.join(path.lstrip("/")))
    except (OSError, ValueError):
        return False
    return stat.S_ISBLK(status.st_mode) and os.major(status.st_rdev) == _SCSI_CDROM_MAJOR
