# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The rules for memory devices, TPMs, security labels, shared memory and limits of the host's side.

Mirrors: virDomainMemoryDefValidate and its neighbours (src/conf/domain_validate.c), and the checks of
src/conf/domain_conf.c
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.os_conf import unit_factor
from pyhostdev.errors import (
    VIR_ERR_INTERNAL_ERROR,
    VIR_ERR_XML_DETAIL,
    ConfigError,
    ConfigUnsupportedError,
    XMLError,
)
from pyhostdev.util.virxml import parse_document, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.board_conf import DomainMemoryDef, DomainTPMDef
    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.conf.rng_conf import DomainRNGDef

    Errors = Iterator[ConfigError]

_LABEL_MIN_KIB = 128  # of an NVDIMM: NVDIMM Namespace Specification, minimum size of the label area
_BLOCK_MIN_KIB = 2048  # of virtio-mem: the size of a transparent huge page
_PERF_EVENTS = frozenset(
    (
        *("cmt", "mbmt", "mbml", "cpu_cycles", "instructions", "cache_references", "cache_misses"),
        *("branch_instructions", "branch_misses", "bus_cycles", "stalled_cycles_frontend", "stalled_cycles_backend"),
        *("ref_cpu_cycles", "cpu_clock", "task_clock", "page_faults", "context_switches", "cpu_migrations"),
        *("page_faults_min", "page_faults_maj", "alignment_faults", "emulation_faults"),
    )
)
_DATE = re.compile(r"(0?[1-9]|1[0-2])/(0?[1-9]|[12][0-9]|3[01])/([0-9]{2}|[0-9]{4})", re.ASCII)


def _detail(message: str, where: Any) -> ConfigError:
    return XMLError(message, line=where.line, libvirt_code=VIR_ERR_XML_DETAIL)


def _unsupported(message: str, where: Any) -> ConfigError:
    return ConfigUnsupportedError(message, line=where.line)


def memory_errors(dom: DomainFields, memory: DomainMemoryDef) -> Errors:
    """Yield the errors of one memory device."""
    cells = len(dom.cpu.cells) if dom.cpu is not None else 0
    node = memory.target_node
    if node is not None and node >= cells:
        yield _detail(f"A memory device is for NUMA cell {node}, which the guest does not have", memory)
    rule = {"nvdimm": _nvdimm_errors, "virtio-pmem": _pmem_errors, "virtio-mem": _virtio_mem_errors}.get(memory.model)
    if rule is not None:
        yield from rule(dom, memory)


def _nvdimm_errors(dom: DomainFields, memory: DomainMemoryDef) -> Errors:
    label = _kib(memory.target_label_size, memory.target_label_size_unit)
    if label is not None and label < _LABEL_MIN_KIB:
        yield XMLError(f"The label of an NVDIMM has at least {_LABEL_MIN_KIB} KiB", line=memory.line)
    if label is not None and label >= memory.size_kib:
        yield XMLError("The label of an NVDIMM must be smaller than the NVDIMM", line=memory.line)
    if memory.source_path is None:
        yield _detail("An NVDIMM needs the <path> of its <source>", memory)
    if memory.discard:
        yield _unsupported("An NVDIMM cannot be discarded", memory)
    if memory.uuid is not None and dom.os.arch not in ("ppc64", "ppc64le"):
        yield _unsupported(f"An NVDIMM has no <uuid> on {dom.os.arch}", memory)


def _pmem_errors(_dom: DomainFields, memory: DomainMemoryDef) -> Errors:
    if memory.source_path is None:
        yield _detail("Memory of model virtio-pmem needs the <path> of its <source>", memory)
    if memory.discard:
        yield _unsupported("Memory of model virtio-pmem cannot be discarded", memory)
    if memory.target_node is not None:
        yield _unsupported("Memory of model virtio-pmem is not part of a NUMA cell", memory)


def _virtio_mem_errors(_dom: DomainFields, memory: DomainMemoryDef) -> Errors:
    block = _kib(memory.target_block, memory.target_block_unit) or 0
    requested = _kib(memory.target_requested, memory.target_requested_unit) or 0
    if requested > memory.size_kib:
        yield _detail("Memory of model virtio-mem is smaller than what is requested of it", memory)
    if block & (block - 1):
        yield _detail("The block size of virtio-mem is a power of two", memory)
    elif block < _BLOCK_MIN_KIB:
        yield _detail(f"The block size of virtio-mem is at least {_BLOCK_MIN_KIB} KiB", memory)
    elif requested % block:
        yield _detail("The requested size of virtio-mem is a multiple of its block size", memory)
    elif memory.target_base is not None and memory.target_base % (block * 1024):
        yield _detail("The address of virtio-mem is a multiple of its block size", memory)


def _kib(size: int | None, unit: str | None) -> int | None:
    return None if size is None else -(-size * unit_factor(unit) // 1024)


def tpm_errors(dom: DomainFields, tpm: DomainTPMDef) -> Errors:
    """
    Yield the errors of one TPM.

    Mirrors: virDomainTPMDefParseXML, virDomainTPMDevValidate
    """
    if tpm.backend_type is None:
        yield XMLError("A <tpm> needs a <backend>", line=tpm.line)
    if tpm.pcr_banks and tpm.backend_version == "1.2":
        yield XMLError("<active_pcr_banks> needs a TPM of version 2.0", line=tpm.line)
    if tpm.profile_source is not None and tpm.backend_version == "1.2":
        yield XMLError("<profile> needs a TPM of version 2.0", line=tpm.line)
    source = tpm.backend_source
    if tpm.backend_type == "external" and (source is None or source.type != "unix"):
        yield XMLError("A TPM of type external needs a <source type='unix'>", line=tpm.line)
    elif tpm.backend_type == "external" and source is not None and source.mode == "bind":
        yield XMLError("A TPM of type external connects to its emulator", line=tpm.line)
    elif tpm.backend_type == "external" and source is not None and source.path is None:
        yield XMLError("A TPM of type external needs the path of its emulator's socket", line=tpm.line)


def tpm_number_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainDefTPMValidate"""
    plain = [tpm for tpm in dom.tpms if tpm.model != "tpm-spapr-proxy"]
    for tpm in plain[1:]:
        yield _unsupported("A guest has one TPM at most", tpm)


def rng_errors(dom: DomainFields, rng: DomainRNGDef) -> Errors:
    """Mirrors: virDomainRNGDefParseXML"""
    if rng.backend is None:
        yield XMLError("An <rng> needs a <backend>", line=rng.line)


def label_errors(dom: DomainFields) -> Errors:
    """
    Yield the errors of security labels, of the domain and of its disks and character devices.

    Mirrors: virSecurityLabelDefsParseXML, virSecurityDeviceLabelDefParseXML (src/conf/domain_conf.c)
    """
    labels = _labels(dom.seclabel)
    models = [label.get("model") for label in labels]
    for model in sorted({str(model) for model in models if models.count(model) > 1}):
        yield _detail(f"The domain has two labels of the model '{shown(model)}'", dom)
    if len(labels) > 1 and None in models:
        yield XMLError("Each of several <seclabel> needs a model", line=dom.line)
    for label in labels:
        if label.get("type", "dynamic") not in ("dynamic", "static", "none"):
            yield XMLError(f"Invalid type '{shown(str(label.get('type')))}' of a <seclabel>", line=dom.line)
        kind, relabel = label.get("type", "dynamic"), label.get("relabel")
        if (kind, relabel) in (("dynamic", "no"), ("none", "yes")):
            yield _unsupported(f"A <seclabel> of type {kind} cannot have relabel='{relabel}'", dom)
        if kind == "static" and label.get("model") != "none" and not label.findtext("label"):
            yield XMLError("A <seclabel> of type static needs a <label>", line=dom.line)
    for disk in dom.disks:
        for source in (part for part in (disk.source,) if part is not None):
            yield from _device_label_errors(_labels(source.seclabel), source)


def _device_label_errors(labels: list[Any], where: Any) -> Errors:
    models = [label.get("model") for label in labels if label.get("model") is not None]
    if len(set(models)) < len(models):
        yield _detail("A device has two labels of one model", where)
    for label in labels:
        text, relabel = label.findtext("label"), label.get("relabel")
        if text and relabel == "no":
            yield XMLError("A <seclabel> with relabel='no' cannot have a <label>", line=where.line)
        if not text and relabel == "yes":
            yield XMLError("A <seclabel> with relabel='yes' needs a <label>", line=where.line)


def _labels(text: str | None) -> list[Any]:
    return [] if text is None else list(parse_document(f"<seclabels>{text}</seclabels>"))


def perf_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainPerfEventDefParseXML"""
    seen: set[str] = set()
    for event in parse_document(dom.perf).iter("event") if dom.perf is not None else ():
        name = event.get("name") or ""
        if name not in _PERF_EVENTS:
            yield XMLError(f"There is no performance event '{shown(name)}'", line=dom.line)
        if name in seen:
            yield XMLError(f"The performance event '{shown(name)}' is named twice", line=dom.line)
        seen.add(name)


def blkio_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainBlkioDeviceParseXML"""
    seen: set[str] = set()
    for device in parse_document(dom.blkiotune).iter("device") if dom.blkiotune is not None else ():
        path = device.findtext("path")
        if path is None:
            yield _unsupported("A <device> of <blkiotune> needs a <path>", dom)
        elif path in seen:
            yield _unsupported(f"<blkiotune> names '{shown(path)}' twice", dom)
        seen.add(path or "")


def sysinfo_errors(dom: DomainFields) -> Errors:
    """Mirrors: virSysinfoBIOSParseXML (src/util/virsysinfo.c)"""
    for info in dom.sysinfos:
        for table in info.bios[:1]:
            for entry in (part for part in table.entries if part.name == "date"):
                if not _DATE.fullmatch(entry.value):
                    yield XMLError(
                        f"The BIOS date '{shown(entry.value)}' is not written as MM/DD/YYYY",
                        line=entry.line or dom.line,
                        libvirt_code=VIR_ERR_XML_DETAIL,
                    )


def smartcard_number_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainSmartcardDefParseXML"""
    for card in dom.smartcards:
        if card.mode == "host-certificates" and len(card.certificates) != 3:
            yield XMLError("A smartcard of mode host-certificates needs three certificates", line=card.line)


def numa_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainDefPostParseNumaCPUs, virDomainNumatuneParseXML"""
    cells = dom.cpu.cells if dom.cpu is not None else []
    if cells and max(max(cell.cpu_numbers, default=0) for cell in cells) >= dom.vcpus:
        yield ConfigUnsupportedError(
            f"A NUMA cell has more virtual CPUs than the {dom.vcpus} of the guest",
            line=cells[0].line,
            libvirt_code=VIR_ERR_INTERNAL_ERROR,
        )


def bandwidth_errors(dom: DomainFields) -> Errors:
    """Mirrors: virNetDevBandwidthParseRate (src/conf/netdev_bandwidth_conf.c)"""
    for net in dom.interfaces:
        for rate in parse_document(net.bandwidth) if net.bandwidth is not None else ():
            if rate.get("average") is None and rate.get("floor") is None:
                yield _detail("<bandwidth> needs an average or a floor", net)


RULES = (
    bandwidth_errors,
    tpm_number_errors,
    label_errors,
    perf_errors,
    blkio_errors,
    sysinfo_errors,
    smartcard_number_errors,
    numa_errors,
)
