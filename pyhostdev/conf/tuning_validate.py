# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The rules for threads, memory, features of the machine, and limits and counters of the host's side.

Mirrors: virDomainDefValidateInternal and its parts (src/conf/domain_validate.c), src/conf/numa_conf.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.xml.xmlcodec import nodes_of
from pyhostdev.errors import (
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_INVALID_ARG,
    VIR_ERR_XML_DETAIL,
    ConfigError,
    ConfigUnsupportedError,
    XMLError,
)
from pyhostdev.util.virxml import parse_elements, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.conf.cpu_conf import NumaCell
    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.conf.vcpu_conf import ThreadPool
    from pyhostdev.conf.xml.xmldef import ElementDef

    Errors = Iterator[ConfigError]

# of control groups: cpu.cfs_period_us and cpu.cfs_quota_us (kernel Documentation/scheduler/sched-bwc.rst)
_PERIOD_US = (1000, 1000000)
_QUOTA_US = (1000, 18446744073709551)
_PERIODS = ("period", "global_period", "emulator_period", "iothread_period")
_QUOTAS = ("quota", "global_quota", "emulator_quota", "iothread_quota")
_PERF_EVENTS = frozenset(
    (
        *("cmt", "mbmt", "mbml", "cpu_cycles", "instructions", "cache_references", "cache_misses"),
        *("branch_instructions", "branch_misses", "bus_cycles", "stalled_cycles_frontend", "stalled_cycles_backend"),
        *("ref_cpu_cycles", "cpu_clock", "task_clock", "page_faults", "context_switches", "cpu_migrations"),
        *("page_faults_min", "page_faults_maj", "alignment_faults", "emulation_faults"),
    )
)


def tuning_errors(dom: DomainFields) -> Errors:
    """Yield the errors in libvirt's order."""
    for rule in _RULES:
        yield from rule(dom)


def _feature_words(dom: DomainFields) -> Errors:
    """Yield an error for each unknown feature: libvirt refuses these, unlike other unknown elements."""
    named: list[tuple[ElementDef | None, int | None]] = [
        (dom.features, None),
        (dom.features.hyperv, None),
        (dom.features.kvm, None),
    ]
    for part, code in named:
        for path, word in part.own_unknown() if part is not None else ():
            if word.is_element and not path and not word.is_foreign and part is not None:
                text = f"<{part.tag}> has no feature '{shown(word.name)}'"
                yield ConfigUnsupportedError(text, line=word.line, libvirt_code=code)


def _cell_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainNumaDefParseXML (src/conf/numa_conf.c)"""
    cells = dom.cpu.cells if dom.cpu is not None else []
    cell_of: dict[int, NumaCell] = {}
    for cell in cells:
        cpus = cell.cpu_numbers
        shared = min(cpus & cell_of.keys(), default=None)
        if shared is not None:
            text = f"NUMA cells {cell_of[shared].id} and {cell.id} share virtual CPUs"
            yield ConfigUnsupportedError(text, line=cell.line)
        cell_of.update(dict.fromkeys(cpus, cell))


def _hugepage_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainDefMemtuneValidate, virDomainHugepagesParseXML"""
    cells = len(dom.cpu.cells) if dom.cpu is not None else 0
    seen: set[int] = set()
    defaults = 0
    for page in dom.memory_backing.pages:
        if not page.size:
            yield XMLError("Huge pages need a size", line=page.line, libvirt_code=VIR_ERR_XML_DETAIL)
        nodes = set(nodes_of(page.nodeset)) if page.nodeset else set()
        defaults += not nodes
        if nodes & seen or defaults > 1:
            text = "A NUMA cell can have only one size of huge pages"
            yield XMLError(text, line=page.line, libvirt_code=VIR_ERR_XML_DETAIL)
        defaults = min(defaults, 1)
        if any(node >= cells for node in nodes):
            text = f"Huge pages name NUMA cell {max(nodes)}, which the guest does not have"
            yield XMLError(text, line=page.line, libvirt_code=VIR_ERR_XML_DETAIL)
        seen |= nodes


def _cputune_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainDefCputuneValidate (src/conf/domain_validate.c)"""
    tune = dom.cputune
    if tune is None:
        return
    limits = {**dict.fromkeys(_PERIODS, _PERIOD_US), **dict.fromkeys(_QUOTAS, _QUOTA_US)}
    for name, (least, most) in limits.items():
        value = getattr(tune, name)
        if value is not None and value > 0 and not least <= value <= most:
            text = f"<{name}> of <cputune> is not within {least} and {most}"
            yield ConfigUnsupportedError(text, line=tune.line_of(name))


def _iothread_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainDefValidateIOThreads (src/conf/domain_validate.c)"""
    pools: list[ThreadPool] = [*dom.iothread_ids]
    if dom.default_iothread is not None:
        pools.append(dom.default_iothread)
    for pool in pools:
        least, most = pool.thread_pool_min, pool.thread_pool_max
        if most == 0:
            yield ConfigUnsupportedError("thread_pool_max must be a positive number", line=pool.line)
        elif least is not None and (most is None or least > most):
            yield ConfigUnsupportedError("thread_pool_min needs a thread_pool_max that is not below it", line=pool.line)


def _resctrl_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainResctrlVcpuMatch (src/conf/domain_conf.c)"""
    tune = dom.cputune
    seen: list[set[int]] = []
    texts = (tune.cachetune, tune.memorytune) if tune is not None else ()
    for part in (part for text in texts for part in parse_elements(text)):
        try:
            vcpus = set(nodes_of(part.get("vcpus") or ""))
        except ValueError:
            text = f"'{shown(part.get('vcpus') or '')}' is not a set of virtual CPUs"
            yield XMLError(text, line=dom.line, libvirt_code=VIR_ERR_INVALID_ARG)
            continue
        if any(vcpus & other and vcpus != other for other in seen):
            yield XMLError("Two parts of <cachetune> and <memorytune> share virtual CPUs", line=dom.line)
        seen.append(vcpus)


def _perf_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainPerfEventDefParseXML"""
    seen: set[str] = set()
    for event in (event for perf in parse_elements(dom.perf) for event in perf.iterfind("event")):
        name = event.get("name") or ""
        if name not in _PERF_EVENTS:
            yield XMLError(f"Unknown performance event '{shown(name)}'", line=dom.line)
        if name in seen:
            yield XMLError(f"The performance event '{shown(name)}' is named twice", line=dom.line)
        seen.add(name)


def _blkio_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainBlkioDeviceParseXML"""
    seen: set[str] = set()
    for device in (device for tune in parse_elements(dom.blkiotune) for device in tune.iterfind("device")):
        path = device.findtext("path")
        if path is None:
            yield ConfigUnsupportedError("A <device> of <blkiotune> needs a <path>", line=dom.line)
        elif path in seen:
            yield ConfigUnsupportedError(f"<blkiotune> names '{shown(path)}' twice", line=dom.line)
        seen.add(path or "")


def _cell_cpu_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainDefPostParseNumaCPUs, virDomainNumatuneParseXML"""
    cells = dom.cpu.cells if dom.cpu is not None else []
    if cells and max(max(cell.cpu_numbers, default=0) for cell in cells) >= dom.vcpus:
        yield ConfigUnsupportedError(
            f"A NUMA cell has a virtual CPU beyond the {dom.vcpus} of the guest",
            line=cells[0].line,
            libvirt_code=VIR_ERR_INTERNAL_ERROR,
        )


_RULES: tuple[Callable[[DomainFields], Errors], ...] = (
    _feature_words,
    _cell_errors,
    _hugepage_errors,
    _cputune_errors,
    _iothread_errors,
    _resctrl_errors,
    _perf_errors,
    _blkio_errors,
    _cell_cpu_errors,
)
