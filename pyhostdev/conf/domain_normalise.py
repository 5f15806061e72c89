# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Normalise a definition: units, order of disks, implied values.

Mirrors: what the parser of libvirt does on its way (src/conf/domain_conf.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.clock_conf import ClockDef
from pyhostdev.conf.device_conf import DeviceInfo
from pyhostdev.conf.disk_conf import DomainDiskDef
from pyhostdev.conf.domain_limits import name_errors
from pyhostdev.conf.graphics_postparse import fill_graphics
from pyhostdev.conf.hypervisor_features_conf import HypervFeatures
from pyhostdev.conf.os_conf import SizeDef
from pyhostdev.conf.redundant_values import drop_redundant_values
from pyhostdev.conf.tuning_postparse import normalise_tuning
from pyhostdev.conf.xml.xmlcodec import unit_factor
from pyhostdev.errors import VIR_ERR_XML_DETAIL, XMLError, raise_all
from pyhostdev.util.viruuid import normal_uuid
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.conf.features_conf import FeaturesDef

_NAMESPACE = "urn:pyhostdev:domain"  # of the UUIDs derived from a domain's name


def normalise(dom: DomainFields) -> None:
    """Bring a definition into libvirt's normal form."""
    _normalise_memory(dom)
    normalise_tuning(dom)
    dom.id = None
    # libvirt generates a random one when it defines a domain; here the same file must give the same guest
    dom.uuid = dom.uuid or _sysinfo_uuid(dom) or _uuid_of_name(dom.name)
    dom.os.loader = dom.os.loader or None  # without a path, <loader> only restricts the choice of firmware
    _refuse_two_uuids(dom)
    if dom.genid == "":
        dom.genid = _uuid_of_name(f"{dom.uuid} genid")
    raise_all(list(name_errors(dom)))
    _normalise_features(dom.features)
    if dom.memballoon is not None and dom.memballoon.model == "none":
        dom.memballoon.info = DeviceInfo()  # libvirt does not read it
    drop_redundant_values(dom)
    dom.clock = dom.clock or ClockDef()
    dom.on_poweroff = dom.on_poweroff or "destroy"
    dom.on_reboot = dom.on_reboot or "restart"
    dom.on_crash = dom.on_crash or "destroy"
    _sort_disks(dom)
    for sysinfo in dom.sysinfos:
        sysinfo.normalise()
    for graphics in dom.graphics:
        fill_graphics(graphics)
    for device, info in dom.device_infos():
        info.drop_foreign(device.tag)


def _uuid_of_name(name: str) -> str:
    """Return a UUID derived from a name: the same name gives the same UUID."""
    import uuid  # loads OpenSSL; most domains have a UUID

    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, _NAMESPACE), name))


def _sysinfo_uuid(dom: DomainFields) -> str | None:
    """
    Return the UUID in <sysinfo>, in libvirt's spelling; None without one.

    Raises:
        XMLError: the value is not a UUID.

    Mirrors: virSysinfoSystemParseXML (src/util/virsysinfo.c)
    """
    entries = (info.uuid_entry for info in dom.sysinfos if info.type == "smbios")
    entry = next((entry for entry in entries if entry is not None), None)
    if entry is None:
        return None
    try:
        return normal_uuid(entry.value)
    except ValueError:
        text = f"'{shown(entry.value)}' in <sysinfo> is not a valid UUID"
        raise XMLError(text, line=entry.line or dom.line, libvirt_code=VIR_ERR_XML_DETAIL) from None


def _refuse_two_uuids(dom: DomainFields) -> None:
    """
    Refuse a domain whose <sysinfo> has another UUID than the one that the guest sees.

    Raises:
        XMLError: the UUIDs differ; the message names both.
    """
    firmware = _sysinfo_uuid(dom)
    seen = dom.hwuuid or dom.uuid
    if firmware not in (None, seen):
        text = f"The domain has UUID {seen}, but <sysinfo> has {firmware}"
        raise XMLError(text, line=dom.line, libvirt_code=VIR_ERR_XML_DETAIL)


def _normalise_memory(dom: DomainFields) -> None:
    for name in ("current_memory", "hard_limit", "soft_limit", "min_guarantee", "swap_hard_limit"):
        size = getattr(dom, name)
        if size is not None:
            setattr(dom, name, SizeDef.of_kib(size.kib))
    if dom.min_guarantee is not None and not dom.min_guarantee.kib:
        dom.min_guarantee = None
    dom.memory.value, dom.memory.unit = dom.memory_kib, "KiB"
    if dom.max_memory is not None:
        dom.max_memory.value, dom.max_memory.unit = dom.max_memory.kib, "KiB"
        dom.max_memory.slots = dom.max_memory.slots or None
        if not dom.max_memory.kib and dom.max_memory.slots is None:
            dom.max_memory = None
    for disk in dom.disks:
        for encryption in (disk.encryption, disk.source.encryption if disk.source is not None else None):
            if encryption is not None:
                encryption.engine = encryption.engine or "qemu"
    for disk in dom.disks:
        if disk.metadata_cache is not None:
            disk.metadata_cache *= unit_factor(disk.metadata_cache_unit or "bytes")
            disk.metadata_cache_unit = "bytes"
    for module in dom.memories:
        for name in ("block", "requested"):
            amount = getattr(module, f"target_{name}")
            if amount is not None:
                factor = unit_factor(getattr(module, f"target_{name}_unit"))
                setattr(module, f"target_{name}", -(-amount * factor // 1024))
                setattr(module, f"target_{name}_unit", "KiB")
    for page in dom.memory_backing.pages:
        if page.size is not None:
            page.size, page.unit = -(-page.size * unit_factor(page.unit) // 1024), "KiB"
    for cell in dom.cpu.cells if dom.cpu is not None else ():
        cell.memory, cell.unit = cell.memory_kib, "KiB"
        for cache in cell.caches:
            cache.size, cache.size_unit = cache.size_kib, "KiB"
            cache.line_size, cache.line_size_unit = cache.line_bytes, "B"
    for bandwidth in dom.cpu.bandwidths if dom.cpu is not None else ():
        bandwidth.value, bandwidth.unit = bandwidth.kib, "KiB"


def _normalise_features(features: FeaturesDef) -> None:
    """Set the state of features without one to on."""
    for name in ("hap", "pvspinlock", "pmu", "vmport", "smm", "vmcoreinfo"):
        if getattr(features, name) and getattr(features, f"{name}_state") is None:
            setattr(features, f"{name}_state", True)
    if features.hyperv is not None:
        features.hyperv.mode = features.hyperv.mode or "custom"
        if features.hyperv.mode != "custom":
            features.hyperv = HypervFeatures(mode=features.hyperv.mode)
    if features.tcg_tb_cache is not None:
        size = features.tcg_tb_cache * unit_factor(features.tcg_tb_cache_unit)
        features.tcg_tb_cache, features.tcg_tb_cache_unit = (-(-size // 1024), "KiB") if size else (None, None)
    if features.hpt_maxpagesize is not None:
        size = features.hpt_maxpagesize * unit_factor(features.hpt_maxpagesize_unit)
        features.hpt_maxpagesize, features.hpt_maxpagesize_unit = (-(-size // 1024), "KiB") if size else (None, None)


def _sort_disks(dom: DomainFields) -> None:
    """
    Group the disks by bus and sort them by name; buses keep the order of their first disk.

    Mirrors: virDomainDiskInsert (src/conf/domain_conf.c)
    """
    buses: dict[str | None, list[DomainDiskDef]] = {}
    for disk in dom.disks:
        buses.setdefault(disk.bus, []).append(disk)
    dom.disks = [disk for disks in buses.values() for disk in sorted(disks, key=DomainDiskDef.name_index)]
