# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How fast the guest's NUMA nodes reach each other's memory, on the command line.

Mirrors: qemuBuildNumaHMATCommandLine (src/qemu/qemu_command.c), virDomainNumaGetNodeInitiator (src/conf/numa_conf.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder

_HIERARCHY = ("memory", "first-level", "second-level", "third-level")
_ASSOCIATIVITY = {"none": "none", "direct": "direct", "full": "complex"}
_POLICIES = {"none": "none", "writeback": "write-back", "writethrough": "write-through"}


def initiator_options(build: CommandBuilder, cell: Any) -> list[str]:
    """Return the option that names the node whose processors are nearest to a cell, if the guest has an HMAT."""
    cpu = build.dom.cpu
    if cpu is None or not cpu.has_hmat:
        return []
    return [f"initiator={_initiator(cpu, cell)}"]


def _initiator(cpu: Any, cell: Any) -> int:
    """Return the cell itself if it has processors; else the fastest, or the first cell with processors."""
    if cell.cpus:
        return int(cell.id)
    fast = [way for way in cpu.bandwidths if way.target == cell.id]
    if fast:
        return int(max(fast, key=lambda way: way.value).initiator)
    quick = [way for way in cpu.latencies if way.target == cell.id]
    if quick:
        return int(min(quick, key=lambda way: way.value).initiator)
    return int(next((other.id for other in cpu.cells if other.cpus), 0))


def build_hmat(build: CommandBuilder, cpu: Any) -> None:
    """Add the latencies and bandwidths between nodes, and the caches of their memory."""
    for way in cpu.latencies:
        build.add("-numa", f"{_interconnect_options(way)}-latency,latency={way.value}")
    for way in cpu.bandwidths:
        build.add("-numa", f"{_interconnect_options(way)}-bandwidth,bandwidth={way.kib}K")
    for cell in cpu.cells:
        for cache in sorted(cell.caches, key=lambda cache: int(cache.level)):
            options = [
                f"hmat-cache,node-id={cell.id}",
                f"size={cache.size_kib}K",
                f"level={cache.level}",
                f"associativity={_ASSOCIATIVITY[cache.associativity]}",
                f"policy={_POLICIES[cache.policy]}",
                f"line={cache.line_bytes}",
            ]
            build.add("-numa", ",".join(options))


def _interconnect_options(way: Any) -> str:
    level = _HIERARCHY[way.cache or 0]
    return f"hmat-lb,initiator={way.initiator},target={way.target},hierarchy={level},data-type={way.type}"
