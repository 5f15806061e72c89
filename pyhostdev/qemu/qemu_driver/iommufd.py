# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a start by iommufd needs of the caller and of the host.

Mirrors: qemuProcessOpenIommuFd (src/qemu/qemu_process.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.errors import RefusedError
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pyhostdev.conf.domain_conf import DomainDef

    FDGroups = Mapping[str, Sequence[int]]


def missing_descriptors(dom: DomainDef, fd_groups: FDGroups) -> Iterator[Finding]:
    """Yield a finding if a domain names a group of descriptors that the caller does not hand over."""
    name = dom.iommufd_fdgroup
    if name is not None and not fd_groups.get(name):
        text = f"The caller does not hand over the descriptors that <iommufd fdgroup='{shown(name)}'> names"
        yield Finding("fdgroup-missing", ERROR, None, text, dom.iommufds[0].line)


def refuse_missing_descriptors(dom: DomainDef, fd_groups: FDGroups) -> None:
    """
    Refuse a domain that names a group of descriptors which the caller does not hand over.

    Raises:
        RefusedError: with libvirt's number for it.

    Mirrors: the use of virDomainFDAssociate's groups in qemuProcessOpenIommuFd
    """
    found = list(missing_descriptors(dom, fd_groups))
    if found:
        raise RefusedError(found)
