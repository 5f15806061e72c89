# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Normalise CPUs, I/O threads, memory placement and the clock.

Mirrors: virDomainVcpuParse, virDomainIOThreadIDDefArrayInit, virDomainNumatuneSet, virDomainClockDefParseXML
(src/conf/domain_conf.c, src/conf/numa_conf.c)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.clock_conf import SECONDS
from pyhostdev.conf.vcpu_conf import IOThreadDef, IOThreadSched, VcpuDef, VcpuSched
from pyhostdev.conf.xml.xmlcodec import nodes_of
from pyhostdev.errors import (
    VIR_ERR_CONFIG_UNSUPPORTED,
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_XML_DETAIL,
    ConfigUnsupportedError,
    XMLError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyhostdev.conf.clock_conf import ClockDef
    from pyhostdev.conf.cpu_conf import NumaCell
    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.conf.vcpu_conf import CPUTuneDef

_TIMES = tuple(
    f"{thread}{what}" for thread in ("", "global_", "emulator_", "iothread_") for what in ("period", "quota")
)
LOCAL_DISTANCE, UNREACHABLE = 10, 255  # ACPI 6.5, 5.2.17 (SLIT)


def normalise_tuning(dom: DomainFields) -> None:
    """
    Bring threads, memory placement and the clock into libvirt's normal form.

    Raises:
        ConfigError: numbers contradict each other.
    """
    normalise_vcpus(dom)
    _normalise_iothreads(dom)
    _normalise_pins(dom)
    _normalise_numatune(dom)
    if dom.cpu is not None:
        _normalise_distances(dom.cpu.cells)
    if dom.clock is not None:
        _normalise_clock(dom.clock)


def normalise_vcpus(dom: DomainFields) -> None:
    """
    Compute the number of virtual CPUs at the start.

    Raises:
        ConfigError: more CPUs are online than exist.
    """
    is_auto = dom.numatune.placement == "auto" and dom.vcpu_cpuset is None
    dom.vcpu_placement = dom.vcpu_placement or ("auto" if is_auto else "static")
    if dom.vcpu_placement == "auto":
        dom.vcpu_cpuset = None
    if dom.vcpu_list:
        _normalise_vcpu_list(dom)
    if dom.vcpu_current is not None and dom.vcpu_current > dom.vcpus:
        raise ConfigUnsupportedError(f"{dom.vcpu_current} of {dom.vcpus} virtual CPUs cannot be online", line=dom.line)
    if dom.vcpu_current == dom.vcpus:
        dom.vcpu_current = None


def _fill_vcpu(vcpu: VcpuDef) -> None:
    if vcpu.hotpluggable is None:
        vcpu.hotpluggable = not vcpu.enabled
    if vcpu.id == 0 and not (vcpu.enabled and not vcpu.hotpluggable):
        text = "Virtual CPU 0 must be enabled and not hotpluggable"
        code = None if vcpu.enabled else VIR_ERR_CONFIG_UNSUPPORTED
        raise XMLError(text, line=vcpu.line, libvirt_code=code)
    if not vcpu.enabled and not vcpu.hotpluggable:
        raise XMLError(f"Virtual CPU {vcpu.id} is off, so it must be hotpluggable", line=vcpu.line)


def _normalise_vcpu_list(dom: DomainFields) -> None:
    """Complete the list of virtual CPUs; unlisted ones are off and not hotpluggable."""
    named = {vcpu.id: vcpu for vcpu in dom.vcpu_list}
    for vcpu in dom.vcpu_list:
        _fill_vcpu(vcpu)
    too_high = [vcpu for vcpu in dom.vcpu_list if vcpu.id >= dom.vcpus]
    if too_high:
        raise XMLError(f"The domain has no virtual CPU {too_high[0].id}", line=too_high[0].line)
    orders = [vcpu.order for vcpu in dom.vcpu_list if vcpu.order is not None]
    if len(set(orders)) != len(orders):
        raise XMLError("Two virtual CPUs have the same order", line=dom.vcpu_list[0].line)
    if len(named) != len(dom.vcpu_list):
        raise XMLError("A virtual CPU is listed twice", line=dom.vcpu_list[0].line)
    dom.vcpu_list = [named[number] for number in sorted(named)]
    online = sum(1 for vcpu in dom.vcpu_list if vcpu.enabled)
    dom.vcpu_current = online if online else dom.vcpu_current


def _normalise_iothreads(dom: DomainFields) -> None:
    """Number the I/O threads: listed ones keep their ids, the others get the lowest free ones."""
    used = [thread.id for thread in dom.iothread_ids]
    if len(set(used)) != len(used):
        raise XMLError("Two I/O threads have the same id", line=dom.iothread_ids[0].line)
    count = max(dom.iothreads or 0, len(used))
    dom.iothreads = count or None
    if dom.iothread_ids:
        free = (number for number in range(1, count + 1) if number not in used)
        dom.iothread_ids += [IOThreadDef(id=next(free)) for _ in range(count - len(used))]


def iothread_numbers(dom: DomainFields) -> list[int]:
    """Return the ids of the I/O threads: those in the definition, or numbered from 1."""
    if dom.iothread_ids:
        return [thread.id for thread in dom.iothread_ids]
    return list(range(1, (dom.iothreads or 0) + 1))


def _normalise_pins(dom: DomainFields) -> None:
    """Drop the pins of missing virtual CPUs, as libvirt does; sort the others."""
    tune = dom.cputune
    if tune is None:
        return
    tune.vcpupins = sorted((pin for pin in tune.vcpupins if pin.vcpu < dom.vcpus), key=lambda pin: pin.vcpu)
    vcpus = [pin.vcpu for pin in tune.vcpupins]
    if len(set(vcpus)) != len(vcpus):
        raise XMLError("A virtual CPU is pinned twice", line=tune.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)
    threads = [pin.iothread for pin in tune.iothreadpins]
    if len(set(threads)) != len(threads):
        raise XMLError("An I/O thread is pinned twice", line=tune.line)
    for pin in tune.iothreadpins:
        if pin.iothread not in iothread_numbers(dom):
            raise ConfigUnsupportedError(f"I/O thread {pin.iothread} does not exist", line=pin.line)
    order = {number: place for place, number in enumerate(iothread_numbers(dom))}
    tune.iothreadpins.sort(key=lambda pin: order[pin.iothread])
    if dom.vcpu_placement == "auto":
        tune.emulatorpin, tune.vcpupins = None, []
    _normalise_scheds(dom, tune)
    for name in _TIMES:
        setattr(tune, name, getattr(tune, name) or None)  # 0 does not limit
    if not tune.format_lines(tune.tag, always=False):
        dom.cputune = None


def _normalise_scheds(dom: DomainFields, tune: CPUTuneDef) -> None:
    """
    Write each thread's scheduler on its own.

    Raises:
        ConfigError: a thread does not exist, or has two schedulers.

    Mirrors: virDomainThreadSchedParseHelper (src/conf/domain_conf.c)
    """
    vcpus = _by_thread(tune.vcpusched, "vcpus", range(dom.vcpus), "virtual CPU")
    tune.vcpusched = [
        VcpuSched(vcpus=str(number), scheduler=said.scheduler, priority=said.priority)
        for number, said in sorted(vcpus.items())
    ]
    numbers = iothread_numbers(dom)
    threads = _by_thread(tune.iothreadsched, "iothreads", numbers, "I/O thread")
    tune.iothreadsched = [
        IOThreadSched(iothreads=str(number), scheduler=said.scheduler, priority=said.priority)
        for number, said in sorted(threads.items(), key=lambda item: numbers.index(item[0]))
    ]


def _by_thread(scheds: list[Any], name: str, known: Sequence[int], what: str) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for sched in scheds:
        for number in nodes_of(getattr(sched, name)):
            if number not in known:
                raise ConfigUnsupportedError(f"The {what} {number} does not exist", line=sched.line)
            if number in found:
                text = f"Two schedulers name {what} {number}"
                raise XMLError(text, line=sched.line, libvirt_code=VIR_ERR_XML_DETAIL)
            found[number] = sched
    return found


def _normalise_numatune(dom: DomainFields) -> None:
    """
    Fill in the placement of memory: static with a set of nodes, otherwise automatic.

    Mirrors: virDomainNumatuneParseXML, virDomainNumatuneSet (src/conf/numa_conf.c)
    """
    tune, is_auto = dom.numatune, dom.vcpu_placement == "auto"
    said = (tune.mode, tune.nodeset, tune.placement) != (None, None, None)
    if not said and is_auto:
        tune.placement, said = "auto", True
    if said:
        tune.mode = tune.mode or "strict"
        default = "auto" if tune.nodeset is None and is_auto else "static"
        placement = tune.placement or default
        if placement == "static" and tune.nodeset is None:
            raise ConfigUnsupportedError("Static NUMA placement needs a nodeset", line=tune.line or dom.line)
        tune.placement = "auto" if placement == "auto" else None
        tune.nodeset = None if placement == "auto" else tune.nodeset
    _normalise_memnodes(dom)


def _normalise_memnodes(dom: DomainFields) -> None:
    tune = dom.numatune
    if tune.memnodes and tune.placement == "auto":
        raise ConfigUnsupportedError("<memnode> and automatic NUMA placement exclude each other", line=tune.line)
    cells = len(dom.cpu.cells) if dom.cpu is not None else 0
    seen: set[int] = set()
    for node in tune.memnodes:
        node.mode = node.mode or "strict"
        if node.cellid >= cells:
            raise XMLError(f"The guest has no NUMA cell {node.cellid}", line=node.line)
        if node.cellid in seen:
            raise XMLError(f"Two <memnode> name cell {node.cellid}", line=node.line)
        if tune.mode == "restrictive" and node.mode != "restrictive":
            raise XMLError("A <memnode> must be restrictive if <memory> is", line=node.line)
        seen.add(node.cellid)
    tune.memnodes.sort(key=lambda node: int(node.cellid))


def _check_distance(sibling: Any, own: int, cells: int) -> None:
    if sibling.id >= cells or not LOCAL_DISTANCE <= sibling.value <= UNREACHABLE:
        raise XMLError("Invalid NUMA cell or distance of a <sibling>", line=sibling.line)
    if (sibling.id == own) != (sibling.value == LOCAL_DISTANCE):
        raise XMLError(f"{LOCAL_DISTANCE} is the distance of a cell to itself", line=sibling.line)


def _normalise_distances(cells: list[NumaCell]) -> None:
    """
    Fill in all distances of a cell that has one, symmetrically.

    Raises:
        XMLError: a cell is missing, or a distance is invalid in ACPI.

    Mirrors: virDomainNumaDefNodeDistanceParseXML (src/conf/numa_conf.c)
    """
    table: dict[int, dict[int, int]] = {}
    for place, cell in enumerate(cells):
        own = cell.id if cell.id is not None else place
        for sibling in cell.distances:
            _check_distance(sibling, own, len(cells))
            table.setdefault(own, {own: LOCAL_DISTANCE})[sibling.id] = sibling.value
            table.setdefault(sibling.id, {sibling.id: LOCAL_DISTANCE}).setdefault(own, sibling.value)
    for place, cell in enumerate(cells):
        own = cell.id if cell.id is not None else place
        cell.distances = [_sibling(number, value) for number, value in sorted(table.get(own, {}).items())]


def _sibling(number: int, value: int) -> Any:
    from pyhostdev.conf.cpu_conf import NumaSibling

    return NumaSibling(id=number, value=value)


def _normalise_clock(clock: ClockDef) -> None:
    """Normalise a clock with an offset in seconds to offset='variable'."""
    if clock.offset in ("utc", "localtime") and clock.adjustment not in (None, "reset"):
        clock.basis, clock.offset = clock.offset, "variable"
    if clock.offset != "variable":
        clock.basis = None
    if clock.offset == "variable":
        adjustment = clock.adjustment or ""
        # libvirt reads any other text as 0
        seconds = int(adjustment) if re.fullmatch(SECONDS, adjustment, re.ASCII) else 0
        clock.adjustment, clock.basis = str(seconds), clock.basis or "utc"
