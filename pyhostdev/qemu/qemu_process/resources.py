# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The resources that a guest needs besides devices: CPUs to pin to, NUMA nodes, huge pages.

Otherwise QEMU or the kernel would refuse later, when devices are already detached. A resource that the host does not
show is not checked.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.xml.xmlcodec import nodes_of, set_text, unit_factor
from pyhostdev.util.finding import ERROR, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host

_DEFAULT_HUGEPAGE_KIB = 2048


def resource_obstacles(dom: DomainDef, host: Host) -> Iterator[Finding]:
    """
    Yield an error for each processor or node that the host lacks, and for huge pages that are not free.

    Host:
        sys/devices/system/cpu/online, sys/devices/system/node/online, sys/kernel/mm/hugepages/*/free_hugepages
    """
    root = host.root
    yield from _absent(_cpu_sets(dom), _read(root.online_cpus), "processor")
    yield from _absent(_node_sets(dom), _read(root.online_nodes), "NUMA node")
    for kib, needed in _hugepages(dom).items():
        free = _read(root.free_hugepages(kib))
        if free is not None and free.isdecimal() and int(free) < needed:
            message = f"The guest needs {needed} huge pages of {kib} KiB, and the host has {free} free ones"
            yield Finding("no-hugepages", ERROR, None, message, dom.memory_backing.line)


def _read(path: str) -> str | None:
    """Return the text of a file; None if the host does not have the file."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def _absent(sets: list[tuple[Any, str | None]], online: str | None, what: str) -> Iterator[Finding]:
    """Yield an error for each set with a number that is not online."""
    if online is None:
        return
    there = set(nodes_of(online))
    for place, numbers in sets:
        missing = set(nodes_of(numbers)) - there if numbers else set()
        if missing:
            message = f"The host has no {what} {set_text(missing)} online, which <{place.tag}> names"
            yield Finding("no-processor", ERROR, None, message, place.line)


def _cpu_sets(dom: DomainDef) -> list[tuple[Any, str | None]]:
    tune = dom.cputune
    pins: list[Any] = []
    if tune is not None:
        pins = [*tune.vcpupins, *tune.iothreadpins, *([tune.emulatorpin] if tune.emulatorpin is not None else [])]
    return [(dom, dom.vcpu_cpuset), *((pin, pin.cpuset) for pin in pins)]


def _node_sets(dom: DomainDef) -> list[tuple[Any, str | None]]:
    tune = dom.numatune
    return [(tune, tune.nodeset), *((node, node.nodeset) for node in tune.memnodes)]


def _hugepages(dom: DomainDef) -> dict[int, int]:
    """Return the number of huge pages that the guest needs, by page size in KiB."""
    backing = dom.memory_backing
    needed: dict[int, int] = defaultdict(int)
    if not backing.hugepages:
        return needed
    cells = dom.cpu.cells if dom.cpu is not None else []
    parts = [(cell.id, cell.memory_kib) for cell in cells] or [(None, dom.memory_kib)]
    for node, kib in parts:
        own = [page for page in backing.pages if page.nodeset and node in nodes_of(page.nodeset)]
        masters = [page for page in backing.pages if not page.nodeset]
        chosen = next(iter([*own, *masters]), None)
        if chosen is not None and chosen.size:
            size = chosen.size * unit_factor(chosen.unit) // 1024
        elif not backing.pages:
            size = _DEFAULT_HUGEPAGE_KIB
        else:
            continue
        if size >= _DEFAULT_HUGEPAGE_KIB:
            needed[size] += -(-kib // size)
    return needed
