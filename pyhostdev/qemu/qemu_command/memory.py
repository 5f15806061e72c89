# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest's memory and its NUMA nodes on the command line.

Mirrors: qemuBuildMemCommandLine, qemuBuildMemoryBackendProps, qemuBuildNumaCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.xml.xmlcodec import nodes_of, unit_factor
from pyhostdev.qemu.qemu_command.builder import on_off, unsupported
from pyhostdev.qemu.qemu_command.hmat import build_hmat, initiator_options
from pyhostdev.qemu.qemu_domain import PPC64
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from pyhostdev.conf.board_conf import DomainMemoryDef
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

_KIB = 1024
_PSERIES_STEP_KIB = 256 * _KIB  # the firmware hands out memory in blocks of 256 MiB
_DEFAULT_HUGEPAGE_KIB = 2048  # of x86, unless the kernel command line changes it
_PAGE_KIB = 4  # an ordinary page; "huge" pages of this size are ordinary memory
_REMOTE_DISTANCE, _LOCAL_DISTANCE = 20, 10  # ACPI 6.5, 5.2.17: the defaults
_POLICIES = {"strict": "bind", "preferred": "preferred", "interleave": "interleave"}


class MemoryRequest(NamedTuple):
    """
    The memory that a backend object must provide.

    ``node`` is the guest's NUMA cell, None outside cells. ``access`` is shared or private where the cell or the module
    chooses it itself. ``named`` is True for the machine's own memory: its id must be the same in all QEMU versions.
    ``module`` is the memory device that the memory is for, which may define more about it.
    """

    alias: str
    kib: int
    access: str | None = None
    node: int | None = None
    named: bool = False
    discard: bool | None = None
    module: DomainMemoryDef | None = None


def build_memory(build: CommandBuilder) -> None:
    """Set the size of the guest's memory and add its backend."""
    dom = build.dom
    size = f"size={_initial_kib(build)}k"
    if dom.max_memory is not None and dom.has_memory_hotplug:
        slots = f"slots={dom.max_memory.slots}," if dom.max_memory.slots else ""
        build.add("-m", f"{size},{slots}maxmem={dom.max_memory.kib}k")
    elif build.release.has("memory-size-in-kib"):
        build.add("-m", size)
    else:
        build.add("-m", str(_initial_kib(build) // 1024))
    ram = build.capabilities.machine(str(dom.os.machine)).ram_id
    if ram is not None and not (dom.cpu is not None and dom.cpu.cells):
        add_memory(build, MemoryRequest(ram, _initial_kib(build), named=True))
    locked = dom.memory_backing is not None and dom.memory_backing.locked
    build.add("-overcommit", f"mem-lock={on_off(locked)}")


def _initial_kib(build: CommandBuilder) -> int:
    """Return the memory at start in KiB: all memory except memory devices."""
    cells = build.dom.cpu.cells if build.dom.cpu is not None else []
    if cells:
        return sum(_aligned(build, cell.memory_kib) for cell in cells)
    return _aligned(build, build.dom.memory_kib - sum(module.size_kib for module in build.dom.memories))


def _aligned(build: CommandBuilder, kib: int) -> int:
    """
    Return an amount of memory in KiB, rounded up to the machine's granularity.

    Mirrors: qemuDomainAlignMemorySizes (src/qemu/qemu_domain.c)
    """
    step = _PSERIES_STEP_KIB if build.dom.os.arch in PPC64 else _KIB
    return -(-kib // step) * step


def add_memory(build: CommandBuilder, request: MemoryRequest) -> None:
    """
    Add a memory backend; if it is preallocated on chosen host nodes, also the context of the threads that do so.

    Raises:
        ConfigUnsupportedError: we cannot build this kind of backend.

    Mirrors: qemuBuildMemoryBackendProps, qemuBuildThreadContextProps
    """
    kind, properties = _backend(build, request)
    nodes = properties.get("host-nodes")
    if nodes and properties.get("prealloc") and build.capabilities.has_object("thread-context"):
        context = f"tc-{request.alias}"
        build.add_object("thread-context", context, **{"node-affinity": nodes})
        properties["prealloc-context"] = context
    build.add_object(kind, request.alias, **properties)


def _backend(build: CommandBuilder, request: MemoryRequest) -> tuple[str, Properties]:
    backing = build.dom.memory_backing
    access = request.access or backing.access_mode
    page_kib = _module_page_kib(build, request)
    kind, properties = _kind(build, request, access, page_kib)
    own, prealloc = _module_words(request.module, page_kib is not None or backing.allocation_mode == "immediate")
    return kind, {
        **properties,
        "share": None if access is None else access == "shared",
        "x-use-canonical-path-for-ramblock-id": False if request.named and kind != "memory-backend-ram" else None,
        "reserve": False if request.module is not None and request.module.model == "virtio-mem" else None,
        "prealloc": prealloc,
        "prealloc-threads": backing.allocation_threads if prealloc else None,
        "size": request.kib * _KIB,
        **own,
        **_policy(build, request),
    }


def _module_page_kib(build: CommandBuilder, request: MemoryRequest) -> int | None:
    """Return the page size of a module, by default that of its cell; None for a module that is a file."""
    module = request.module
    if module is not None and module.source_path is not None:
        return None
    if module is not None and module.source_pagesize is not None:
        kib = module.source_pagesize * unit_factor(module.source_pagesize_unit) // _KIB
        return None if kib == _PAGE_KIB else kib
    return _page_kib(build.dom.memory_backing, request.node)


def _module_words(module: DomainMemoryDef | None, prealloc: bool) -> tuple[Properties, bool | None]:
    """Return the properties that only a module has, and whether its memory is allocated at the start."""
    if module is None or module.model == "dimm":
        return {}, prealloc or None
    if module.model != "nvdimm":
        return {}, None  # virtio devices get it piece by piece, or from their file
    pmem = bool(module.source_pmem)
    align = module.source_alignsize
    words = {"align": align * unit_factor(module.source_alignsize_unit) if align else None, "pmem": pmem or None}
    return words, None if pmem else True


def _kind(
    build: CommandBuilder, request: MemoryRequest, access: str | None, page_kib: int | None
) -> tuple[str, Properties]:
    """Return the type of the memory backend, and the properties of its source."""
    backing = build.dom.memory_backing
    if request.module is not None and request.module.source_path is not None:
        return "memory-backend-file", {"mem-path": request.module.source_path}
    if backing.source_type == "memfd":
        huge = {} if page_kib is None else {"hugetlb": True, "hugetlbsize": page_kib * _KIB}
        return "memory-backend-memfd", huge
    if page_kib is None and access is None and backing.source_type != "file":
        return "memory-backend-ram", {}
    alias = request.alias if request.module is None else str(request.module.info.alias)
    path = build.paths.memory(alias) if page_kib is None else _hugepage_path(build, page_kib)
    discard = True if request.discard or (request.discard is None and backing.discard) else None
    return "memory-backend-file", {"mem-path": path, "discard-data": discard}


def _policy(build: CommandBuilder, request: MemoryRequest) -> Properties:
    """
    Return the host nodes of the memory and their policy; empty for mode restrictive, which needs a control group.

    Raises:
        ConfigUnsupportedError: numad would choose the nodes.
    """
    tune = build.dom.numatune
    if request.module is not None and request.module.source_nodemask is not None:
        return {"host-nodes": nodes_of(request.module.source_nodemask), "policy": _POLICIES[tune.mode or "strict"]}
    mode, nodes = _mode_and_nodes(build, request.node)
    if nodes is None or mode == "restrictive":
        return {}
    return {"host-nodes": nodes_of(nodes), "policy": _POLICIES[mode or "strict"]}


def _mode_and_nodes(build: CommandBuilder, cell: int | None) -> tuple[str | None, str | None]:
    """Return the mode and the node set of a guest cell's <memnode>, or else of <numatune>."""
    tune = build.dom.numatune
    own = next((memnode for memnode in tune.memnodes if memnode.cellid == cell), None)
    if own is not None:
        return own.mode, own.nodeset
    if tune.placement == "auto":
        where = tune if tune.line is not None else build.dom
        raise unsupported("Automatic NUMA placement, which numad chooses,", where, "write placement='static'")
    return tune.mode, tune.nodeset


def _page_kib(backing: Any, node: int | None) -> int | None:
    """
    Return the huge page size of a cell's memory in KiB; None for ordinary pages.

    Without a size in the definition it is the default huge page size.
    """
    if not backing.hugepages:
        return None
    if not backing.pages:
        return _DEFAULT_HUGEPAGE_KIB
    own = [page for page in backing.pages if page.nodeset and node in nodes_of(page.nodeset)]
    page = next(iter(own), None) or next((page for page in backing.pages if not page.nodeset), None)
    kib = None if page is None else int(page.size * unit_factor(page.unit)) // _KIB
    return None if kib == _PAGE_KIB else kib


def _hugepage_path(build: CommandBuilder, kib: int) -> str:
    directory = "/dev/hugepages" if kib == _DEFAULT_HUGEPAGE_KIB else f"/dev/hugepages{kib >> 20}G"
    return f"{directory}/libvirt/qemu/{build.paths.short_name}"


def build_numa(build: CommandBuilder) -> None:
    """Add the guest's NUMA nodes."""
    cpu = build.dom.cpu
    if cpu is None or not cpu.cells:
        return
    for cell in cpu.cells:
        _build_cell(build, cell)
    if any(cell.distances for cell in cpu.cells):
        _build_distances(build, cpu.cells)
    build_hmat(build, cpu)


def _build_cell(build: CommandBuilder, cell: Any) -> None:
    memory = []
    if cell.memory_kib or not build.release.has("numa-cells-without-memory"):
        alias = f"ram-node{cell.id}"
        memory = [f"memdev={alias}"]
        kib = _aligned(build, cell.memory_kib)
        add_memory(build, MemoryRequest(alias, kib, cell.mem_access, cell.id, discard=cell.discard))
    cpus = [f"cpus={part}" for part in (cell.cpus or "").split(",") if part]
    build.add("-numa", ",".join(["node", f"nodeid={cell.id}", *cpus, *initiator_options(build, cell), *memory]))


def _build_distances(build: CommandBuilder, cells: list[Any]) -> None:
    """Add the distance between all pairs of cells; QEMU requires all of them or none."""
    for cell in cells:
        known = {sibling.id: sibling.value for sibling in cell.distances}
        for other in cells:
            default = _LOCAL_DISTANCE if other is cell else _REMOTE_DISTANCE
            build.add("-numa", f"dist,src={cell.id},dst={other.id},val={known.get(other.id, default)}")
