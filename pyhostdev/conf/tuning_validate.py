# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The rules for threads, memory and features of the machine.

Mirrors: virDomainDefValidateInternal and its parts (src/conf/domain_validate.c), src/conf/numa_conf.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.xml.xmlcodec import nodes_of
from pyhostdev.errors import (
    VIR_ERR_INVALID_ARG,
    VIR_ERR_XML_DETAIL,
    ConfigError,
    ConfigUnsupportedError,
    XMLError,
)
from pyhostdev.util.virxml import parse_document, shown

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
    masters = 0
    for page in dom.memory_backing.pages:
        if not page.size:
            yield XMLError("Huge pages have a size", line=page.line, libvirt_code=VIR_ERR_XML_DETAIL)
        nodes = set(nodes_of(page.nodeset)) if page.nodeset else set()
        masters += not nodes
        if nodes & seen or masters > 1:
            text = "A NUMA cell has two sizes of huge pages"
            yield XMLError(text, line=page.line, libvirt_code=VIR_ERR_XML_DETAIL)
        masters = min(masters, 1)
        if any(node >= cells for node in nodes):
            text = f"Huge pages are for NUMA cell {max(nodes)}, which the guest does not have"
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
    for part in parse_document(f"<all>{''.join(text or '' for text in texts)}</all>"):
        try:
            vcpus = set(nodes_of(part.get("vcpus") or ""))
        except ValueError:
            text = f"'{shown(part.get('vcpus') or '')}' is not a set of virtual CPUs"
            yield XMLError(text, line=dom.line, libvirt_code=VIR_ERR_INVALID_ARG)
            continue
        if any(vcpus & other and vcpus != other for other in seen):
            yield XMLError("Two parts of <cachetune> and <memorytune> share virtual CPUs", line=dom.line)
        seen.append(vcpus)


_RULES: tuple[Callable[[DomainFields], Errors], ...] = (
    _feature_words,
    _cell_errors,
    _hugepage_errors,
    _cputune_errors,
    _iothread_errors,
    _resctrl_errors,
)
