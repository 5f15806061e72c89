# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The resources that a guest needs besides devices: CPUs to pin to, NUMA nodes, huge pages, room for its memory.

Otherwise QEMU or the kernel would refuse later, when devices are already detached. A resource that the host does not
show is not checked.
"""

from __future__ import annotations

import errno
import os
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.xml.xmlcodec import nodes_of, set_text, unit_factor
from pyhostdev.errors import SysfsError
from pyhostdev.util.finding import ERROR, Finding
from pyhostdev.util.virfile import read_attribute

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.hostroot import HostRoot

_DEFAULT_HUGEPAGE_KIB = 2048
_BY_MACHINE = "0"  # of overcommit_memory: refuses a mapping larger than memory and swap (kernel, mm/util.c)
_NUMBER = re.compile(r"[0-9]{1,18}")


def resource_obstacles(dom: DomainDef, host: Host) -> Iterator[Finding]:
    """
    Yield an error for each processor or node that the host lacks, for huge pages that are not free, and for memory that
    cannot be mapped.

    Raises:
        SysfsError: a file exists but cannot be read.

    Host:
        sys/devices/system/cpu/online, sys/devices/system/node/online, sys/kernel/mm/hugepages/*/free_hugepages,
        proc/sys/vm/overcommit_memory
    """
    root = host.root
    yield from _absent(_cpu_sets(dom), _online(root, root.online_cpus), "processor")
    yield from _absent(_node_sets(dom), _online(root, root.online_nodes), "NUMA node")
    yield from _hugepage_obstacles(dom, root)
    yield from _memory_obstacles(dom, root)


def _memory_obstacles(dom: DomainDef, root: HostRoot) -> Iterator[Finding]:
    """
    Yield an error if this machine's kernel refuses to map memory of the guest's size; no page is touched.

    Only a guest larger than the machine is tried. A block of ordinary memory is tried as QEMU maps it if the kernel's
    answer depends on the machine alone (overcommit_memory is 0); otherwise only the size of address spaces counts.
    """
    blocks = list(_memory_blocks(dom))
    total = sum(kib for kib, _ in blocks)
    largest = max((kib for kib, is_ordinary in blocks if is_ordinary), default=0)
    if not root.is_live or total <= _physical_kib():
        return
    is_refused = _map_error(total, accounted=False) == errno.ENOMEM
    if not is_refused and largest > _physical_kib() and read_attribute(root, root.overcommit_memory) == _BY_MACHINE:
        is_refused, total = _map_error(largest, accounted=True) == errno.ENOMEM, largest
    if is_refused:
        message = f"The host cannot map {total} KiB of memory for the guest, which is more than it has"
        yield Finding("no-memory", ERROR, None, message, dom.line)


def _memory_blocks(dom: DomainDef) -> Iterator[tuple[int, bool]]:
    """Yield the size in KiB of each block that QEMU maps, and whether it is ordinary memory of QEMU alone."""
    backing = dom.memory_backing
    is_ordinary = not backing.hugepages and backing.source_type in (None, "anonymous")
    is_ordinary = is_ordinary and backing.access_mode in (None, "private")
    cells = dom.cpu.cells if dom.cpu is not None else []
    if not cells:
        yield dom.memory_kib - sum(module.size_kib for module in dom.memories), is_ordinary
    for cell in cells:
        yield cell.memory_kib, is_ordinary and cell.mem_access in (None, "private")
    for module in dom.memories:
        yield module.size_kib, False


def _physical_kib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024


def _map_error(kib: int, *, accounted: bool) -> int:
    """Return the errno of a mapping of this size, 0 without an error; the kernel accounts only what can be written."""
    import mmap  # few guests are larger than the machine

    flags, protection = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE if accounted else 0
    try:
        mmap.mmap(-1, kib * 1024, flags=flags, prot=protection).close()
    except OverflowError:
        return errno.ENOMEM
    except OSError as err:
        return err.errno or errno.EIO
    return 0


def _hugepage_obstacles(dom: DomainDef, root: HostRoot) -> Iterator[Finding]:
    for kib, needed in _hugepages(dom).items():
        free = read_attribute(root, root.free_hugepages(kib))
        if free is not None and _NUMBER.fullmatch(free) and int(free) < needed:
            message = f"The guest needs {needed} huge pages of {kib} KiB, and the host has {free} free ones"
            yield Finding("no-hugepages", ERROR, None, message, dom.memory_backing.line)


def _online(root: HostRoot, path: str) -> set[int] | None:
    """Return the numbers in a file such as 0-3; None if the host does not have the file."""
    text = read_attribute(root, path)
    try:
        return None if text is None else set(nodes_of(text))
    except ValueError:
        raise SysfsError(errno.EINVAL, path, "read a list of numbers") from None


def _absent(sets: list[tuple[Any, str | None]], online: set[int] | None, what: str) -> Iterator[Finding]:
    """Yield an error for each set with a number that is not online."""
    if online is None:
        return
    for place, numbers in sets:
        missing = set(nodes_of(numbers)) - online if numbers else set()
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
        size = _page_size(backing.pages, node)
        if size >= _DEFAULT_HUGEPAGE_KIB:
            needed[size] += -(-kib // size)
    return needed


def _page_size(pages: Sequence[Any], node: int | None) -> int:
    """Return the size in KiB of the pages of a guest node: its own <page>, or the one for all; 0 for plain memory."""
    own = [page for page in pages if page.nodeset and node in nodes_of(page.nodeset)]
    masters = [page for page in pages if not page.nodeset]
    chosen = next(iter([*own, *masters]), None)
    if chosen is not None and chosen.size:
        return int(chosen.size * unit_factor(chosen.unit) // 1024)
    return 0 if pages else _DEFAULT_HUGEPAGE_KIB
