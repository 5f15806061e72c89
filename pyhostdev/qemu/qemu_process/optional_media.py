# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Disks that a guest may start without: their file is absent, and startupPolicy is optional.

Mirrors: qemuDomainCheckDiskStartupPolicy (src/qemu/qemu_domain.c)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyhostdev.util.finding import NOTE, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host

_REMOVABLE = ("cdrom", "floppy")


def absent_media(dom: DomainDef, host: Host) -> Iterator[Finding]:
    """Yield a note for each disk without which the guest starts."""
    for disk in dom.disks:
        if _is_absent(disk, host):
            message = (
                f"The file of disk '{disk.target}' is absent; the guest starts without it (startupPolicy='optional')"
            )
            yield Finding("ignored", NOTE, None, message, disk.line)


def without_absent_media(dom: DomainDef, host: Host) -> DomainDef:
    """Remove the absent optional disks from a domain and return it; a removable drive stays, without its medium."""
    for disk in dom.disks:
        if disk.device in _REMOVABLE and _is_absent(disk, host):
            disk.source = None
    dom.disks = [disk for disk in dom.disks if not _is_absent(disk, host)]
    return dom


def _is_absent(disk: Any, host: Host) -> bool:
    """Return True for an optional disk whose file this machine lacks; another root does not show files."""
    source = disk.source
    path = None if source is None else {"file": source.file, "block": source.dev}.get(disk.type)
    is_optional = source is not None and source.startup_policy == "optional"
    return path is not None and is_optional and host.root.is_live and not os.path.exists(path)
