# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The rules for memory devices, TPMs, random number generators, security labels and SMBIOS tables.

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
from pyhostdev.util.virxml import is_blank, parse_elements, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.board_conf import DomainMemoryDef, DomainTPMDef
    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.conf.rng_conf import DomainRNGDef
    from pyhostdev.util.virxml import Element

    Errors = Iterator[ConfigError]

_LABEL_MIN_KIB = 128  # of an NVDIMM: NVDIMM Namespace Specification, minimum size of the label area
_BLOCK_MIN_KIB = 2048  # of virtio-mem: the size of a transparent huge page
_DATE = r"(0?[1-9]|1[0-2])/(0?[1-9]|[12][0-9]|3[01])/([0-9]{2}|[0-9]{4})"


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
        yield XMLError(f"The label of an NVDIMM must have at least {_LABEL_MIN_KIB} KiB", line=memory.line)
    if label is not None and label >= memory.size_kib:
        yield XMLError("The label of an NVDIMM must be smaller than the NVDIMM", line=memory.line)
    if memory.source_path is None:
        yield _detail("An NVDIMM needs the <path> of its <source>", memory)
    if memory.discard:
        yield _unsupported("An NVDIMM cannot be discarded", memory)
    if memory.uuid is not None and dom.os.arch not in ("ppc64", "ppc64le"):
        yield _unsupported(f"An NVDIMM cannot have a <uuid> on {dom.os.arch}", memory)


def _pmem_errors(_dom: DomainFields, memory: DomainMemoryDef) -> Errors:
    if memory.source_path is None:
        yield _detail("Memory of model virtio-pmem needs the <path> of its <source>", memory)
    if memory.discard:
        yield _unsupported("Memory of model virtio-pmem cannot be discarded", memory)
    if memory.target_node is not None:
        yield _unsupported("Memory of model virtio-pmem cannot have a NUMA cell", memory)


def _virtio_mem_errors(_dom: DomainFields, memory: DomainMemoryDef) -> Errors:
    block = _kib(memory.target_block, memory.target_block_unit) or 0
    requested = _kib(memory.target_requested, memory.target_requested_unit) or 0
    if requested > memory.size_kib:
        yield _detail("The requested size of virtio-mem exceeds the size of the device", memory)
    if block & (block - 1):
        yield _detail("The block size of virtio-mem must be a power of two", memory)
    elif block < _BLOCK_MIN_KIB:
        yield _detail(f"The block size of virtio-mem must be at least {_BLOCK_MIN_KIB} KiB", memory)
    elif requested % block:
        yield _detail("The requested size of virtio-mem must be a multiple of its block size", memory)
    elif memory.target_base is not None and memory.target_base % (block * 1024):
        yield _detail("The address of virtio-mem must be a multiple of its block size", memory)


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
    if tpm.backend_version == "1.2" and tpm.model not in (None, "tpm-tis"):
        yield _unsupported(f"A TPM of version 1.2 cannot have the model {tpm.model}", tpm)
    if any(word.is_element for word in tpm.unknown.get(("backend", "active_pcr_banks"), ())):
        yield _unsupported("<active_pcr_banks> has an unknown bank", tpm)
    if tpm.backend_type == "external":
        yield from _external_tpm_errors(tpm)


def _external_tpm_errors(tpm: DomainTPMDef) -> Errors:
    source = tpm.backend_source
    if source is None or source.type is None:
        yield XMLError("A TPM of type external needs a <source type='unix'>", line=tpm.line)
    elif source.type == "dir":
        yield _unsupported("A TPM of type external cannot have a source of type dir", tpm)
    elif source.type != "unix":
        yield XMLError(f"A TPM of type external cannot have a source of type {source.type}", line=tpm.line)
    elif source.mode == "bind":
        yield XMLError("The <source> of a TPM of type external must have mode='connect'", line=tpm.line)
    elif source.path is None:
        yield XMLError("A TPM of type external needs the path of its emulator's socket", line=tpm.line)


def tpm_number_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainDefTPMValidate"""
    plain = [tpm for tpm in dom.tpms if tpm.model != "tpm-spapr-proxy"]
    for tpm in plain[1:]:
        yield _unsupported("A guest can have at most one TPM", tpm)


def rng_errors(dom: DomainFields, rng: DomainRNGDef) -> Errors:
    """Mirrors: virDomainRNGDefParseXML"""
    if rng.backend is None:
        yield XMLError("An <rng> needs a <backend>", line=rng.line)


def _label_errors(dom: DomainFields, label: Element) -> Errors:
    kind, relabel = label.get("type", "dynamic"), label.get("relabel")
    if kind not in ("dynamic", "static", "none"):
        yield XMLError(f"Invalid type '{shown(kind)}' of a <seclabel>", line=dom.line)
    if (kind, relabel) in (("dynamic", "no"), ("none", "yes")):
        yield _unsupported(f"A <seclabel> of type {kind} cannot have relabel='{relabel}'", dom)
    if kind == "static" and label.get("model") != "none" and not label.findtext("label"):
        yield XMLError("A <seclabel> of type static needs a <label>", line=dom.line)


def label_errors(dom: DomainFields) -> Errors:
    """
    Yield the errors of security labels, of the domain and of its disks.

    Mirrors: virSecurityLabelDefsParseXML, virSecurityDeviceLabelDefParseXML (src/conf/domain_conf.c)
    """
    labels = parse_elements(dom.seclabel)
    models = [label.get("model") for label in labels]
    for model in sorted({str(model) for model in models if models.count(model) > 1}):
        yield _detail(f"The domain has two labels of the model '{shown(model)}'", dom)
    if len(labels) > 1 and None in models:
        yield XMLError("Each of several <seclabel> needs a model", line=dom.line)
    for label in labels:
        yield from _label_errors(dom, label)
    for disk in dom.disks:
        if disk.source is not None:
            yield from _device_label_errors(parse_elements(disk.source.seclabel), disk.source)


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


def idmap_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainIdmapDefParseXML, virDomainIdMapEntrySort (src/conf/domain_conf.c)"""
    entries = [entry for idmap in parse_elements(dom.idmap) for entry in idmap if isinstance(entry.tag, str)]
    for entry in entries:
        if any(not str(entry.get(name, "")).isdigit() for name in ("start", "target", "count")):
            yield XMLError(f"<{entry.tag}> of <idmap> needs start, target and count", line=dom.line)
    if len({entry.tag for entry in entries}) == 1:
        yield _unsupported("<idmap> needs both <uid> and <gid>", dom)


def lease_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainLeaseDefParseXML (src/conf/domain_conf.c)"""
    for lease in parse_elements(dom.lease):
        if not lease.findtext("key"):
            yield XMLError("A <lease> needs a <key>", line=dom.line)
        elif not lease.xpath("string(target/@path)"):
            yield XMLError("A <lease> needs the path of its <target>", line=dom.line)


def resource_errors(dom: DomainFields) -> Errors:
    """Mirrors: virDomainResourceDefParse (src/conf/domain_conf.c)"""
    if is_blank(dom.resource):
        yield XMLError("<resource> is empty", line=dom.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)


def sysinfo_errors(dom: DomainFields) -> Errors:
    """Mirrors: virSysinfoBIOSParseXML (src/util/virsysinfo.c)"""
    for info in dom.sysinfos:
        for entry in info.bios[0].entries if info.bios else ():
            if entry.name == "date" and not re.fullmatch(_DATE, entry.value):
                yield _detail(f"The BIOS date '{shown(entry.value)}' is not written as MM/DD/YYYY", entry)


RULES = (tpm_number_errors, label_errors, sysinfo_errors, idmap_errors, lease_errors, resource_errors)
