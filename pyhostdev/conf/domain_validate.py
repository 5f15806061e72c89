# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The rules for definitions that all hypervisors share.

Every rule yields errors instead of raising them, so that the user sees all errors at once.

Mirrors: src/conf/domain_validate.c
"""

from __future__ import annotations

from collections import Counter

from pyhostdev.conf.address_conf import UnassignedAddress
from pyhostdev.conf.device_conf import is_user_alias
from pyhostdev.conf.device_validate import device_errors
from pyhostdev.conf.domain_limits import name_errors
from pyhostdev.conf.hostdev_conf import MdevSource, PCISource, SCSIHostSource, SCSISource, USBSource
from pyhostdev.conf.hostfacts import is_multifunction
from pyhostdev.conf.peripheral_validate import RULES as PERIPHERAL_RULES
from pyhostdev.conf.tuning_validate import tuning_errors
from pyhostdev.conf.unknown_words import unknown_words
from pyhostdev.errors import VIR_ERR_XML_DETAIL, ConfigError, ConfigUnsupportedError, XMLError, raise_all
from pyhostdev.util.finding import ERROR
from pyhostdev.util.typed import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.conf.hostdev_conf import DomainHostdevDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.xml.xmldef import ElementDef

USHORT_MAX = 0xFFFF  # of the firmware's timeouts in milliseconds


class HypervisorRules(Protocol):
    """The rules of a hypervisor, checked together with the general ones."""

    def domain_errors(self, dom: Any) -> Iterator[ConfigError]:
        """Yield the errors that concern the whole domain."""

    def device_errors(self, dom: Any, device: ElementDef) -> Iterator[ConfigError]:
        """Yield the errors of one device."""


def domain_errors(
    dom: DomainFields, host: HostFacts | None = None, hypervisor: HypervisorRules | None = None
) -> Iterator[ConfigError]:
    """
    Yield all errors of a domain, in libvirt's order.

    Mirrors: virDomainDefValidate (src/conf/domain_validate.c)
    """
    if hypervisor is not None:
        yield from hypervisor.domain_errors(dom)
    for device in dom.devices():
        yield from _unassigned_errors(device)
        yield from device_errors(dom, device)
        if hypervisor is not None:
            yield from hypervisor.device_errors(dom, device)
    for rule in _RULES:
        yield from rule(dom)
    if host is not None:
        yield from _host_errors(dom, host)


def validate_domain(
    dom: DomainFields, host: HostFacts | None = None, hypervisor: HypervisorRules | None = None
) -> None:
    """
    Refuse an invalid domain.

    Raises:
        XMLError, ConfigUnsupportedError: the first error; ``others`` has the rest.
    """
    raise_all(list(domain_errors(dom, host, hypervisor)))


def validate_all(
    dom: DomainFields, host: HostFacts | None = None, hypervisor: HypervisorRules | None = None
) -> list[ConfigError]:
    """Return all errors of a domain by line, including unknown attributes and elements of host devices."""
    errors = [*word_errors(dom), *domain_errors(dom, host, hypervisor)]
    return sorted(errors, key=lambda error: error.line or 0)


def pin_errors(dom: DomainFields) -> Iterator[ConfigError]:
    """Yield the error of invalid pins in the metadata, which libvirt does not read."""
    if dom.metadata is None:
        return
    from pyhostdev.conf.pin_conf import read_pins  # few domains have metadata

    try:
        read_pins(dom)
    except XMLError as err:
        yield err


def word_errors(dom: DomainFields) -> Iterator[ConfigError]:
    """
    Yield an error for each unknown attribute or element of a host device, and each value that no release accepts.

    libvirt, or an older release, ignores them, so ``domain_errors`` does not yield them.
    """
    wrong = [finding for finding in unknown_words(dom) if finding.severity == ERROR]
    yield from (XMLError(finding.message, line=finding.line, reason=finding.reason) for finding in wrong)
    reported = {(finding.message, finding.line) for finding in wrong}
    for _, part in dom.walk():
        errors = (word.error for word in part.invalid_words)
        yield from (error for error in errors if (error.message, error.line) not in reported)


def _unassigned_errors(device: ElementDef) -> Iterator[ConfigError]:
    """
    Yield an error for ``type='unassigned'`` on anything but a host device.

    Mirrors: virDomainDeviceInfoValidate (src/conf/domain_validate.c)
    """
    info = getattr(device, "info", None)
    if info is not None and device.tag != "hostdev" and isinstance(info.address, UnassignedAddress):
        yield ConfigUnsupportedError(
            f"Only a hostdev can have an address of type unassigned, not this {device.tag}", line=device.line
        )


def _host_errors(dom: DomainFields, host: HostFacts) -> Iterator[ConfigError]:
    """
    Yield an error for ``assigned='no'`` if the host shows a device with one function.

    A missing or unreadable device is accepted: a stored definition must not become invalid because a card was removed.
    """
    for hostdev in dom.hostdevs:
        if hostdev.assigned is False and is_multifunction(host, hostdev.pci_address) is False:
            yield XMLError(
                f"Device {hostdev.pci_address} has only one function, so it cannot have assigned='no'",
                line=hostdev.line,
                reason="not-multifunction",
                address=hostdev.pci_address,
            )


def _disk_duplicates(dom: DomainFields) -> Iterator[ConfigError]:
    """Mirrors: virDomainDiskDefCheckDuplicateInfo (src/conf/domain_conf.c)"""
    for name in ("target", "wwn", "serial"):
        seen: set[str] = set()
        for disk in dom.disks:
            value = getattr(disk, name)
            if value in seen and name != "serial":
                yield XMLError(f"Two disks have the same {name} '{value}'", line=disk.line)
            if value is not None:
                seen.add(value)


def _hostdev_duplicates(dom: DomainFields) -> Iterator[ConfigError]:
    """
    Yield an error for a host device that is declared twice, as a hostdev or an interface.

    Mirrors: virDomainDefHostdevValidate (src/conf/domain_validate.c)
    """
    seen: set[Hashable] = set()
    has_ramfb = False
    for hostdev in dom.all_hostdevs():
        key = _identity(hostdev)
        if key in seen:
            yield XMLError(f"Host device {_printed(hostdev)} is declared twice", line=hostdev.line)
        if key is not None:
            seen.add(key)
        if hostdev.ramfb and has_ramfb:
            yield ConfigUnsupportedError("Two host devices have ramfb", line=hostdev.line)
        has_ramfb = has_ramfb or bool(hostdev.ramfb)


def _printed(hostdev: DomainHostdevDef) -> str:
    return str(hostdev.source) if hostdev.is_pci else f"of type {hostdev.type}"


def _identity(hostdev: DomainHostdevDef) -> Hashable:
    """
    Return the identity of a host device on the host; None if its source is empty.

    Mirrors: virDomainHostdevMatch (src/conf/domain_conf.c)
    """
    source = hostdev.source_def
    if hostdev.mode != "subsystem":
        return None
    if isinstance(source, PCISource):
        return ("pci", source.address)
    if isinstance(source, USBSource):
        if source.bus and source.device:
            return ("usb", source.bus, source.device)
        return ("usb-id", source.vendor_id, source.product_id)
    if isinstance(source, MdevSource):
        return ("mdev", str(source.uuid).lower())
    if isinstance(source, SCSIHostSource):
        return ("scsi_host", source.wwpn)
    if isinstance(source, SCSISource):
        return ("scsi", source.adapter, source.bus, source.target, source.unit, source.name, source.host)
    return None


def _drive_duplicates(dom: DomainFields) -> Iterator[ConfigError]:
    """Mirrors: virDomainDefDuplicateDriveAddressesValidate (src/conf/domain_validate.c)"""
    seen: set[Hashable] = set()
    users: list[tuple[str | None, Any]] = [(disk.bus, disk) for disk in dom.disks]
    users += [("scsi", hostdev) for hostdev in dom.hostdevs if hostdev.type == "scsi"]
    for bus, user in users:
        address = user.info.address
        if address is None or address.kind != "drive":
            continue
        key = (bus, address.controller, address.bus, address.target, address.unit)
        if key in seen:
            yield ConfigUnsupportedError(f"Two devices have the same address on the {bus} bus", line=user.line)
        seen.add(key)


def _throttle_group_errors(dom: DomainFields) -> Iterator[ConfigError]:
    if not dom.throttle_groups:
        return
    from pyhostdev.conf.disk_validate import throttle_group_errors

    yield from throttle_group_errors(dom)


def _topology_errors(dom: DomainFields) -> Iterator[ConfigError]:
    """Mirrors: virDomainDefGetVcpusTopology (src/conf/domain_conf.c)"""
    cpu = dom.cpu
    if cpu is None or not cpu.sockets:
        return
    total = cpu.sockets * (cpu.dies or 1) * (cpu.clusters or 1) * (cpu.cores or 1) * (cpu.threads or 1)
    if total != dom.vcpus:
        yield ConfigUnsupportedError(
            f"The CPU topology has {total} threads, but the domain has {dom.vcpus} virtual CPUs", line=cpu.line
        )


def _alias_duplicates(dom: DomainFields) -> Iterator[ConfigError]:
    """Mirrors: virDomainDefValidateAliases (src/conf/domain_validate.c)"""
    seen: set[str] = set()
    for device, info in dom.device_infos():
        alias = info.alias
        if alias is None or not is_user_alias(alias):
            continue
        if alias in seen:
            yield ConfigUnsupportedError(f"Two devices have the same alias '{alias}'", line=device.line)
        seen.add(alias)


def _iommufd_errors(dom: DomainFields) -> Iterator[ConfigError]:
    """Mirrors: virDomainDefIommufdValidate (src/conf/domain_validate.c)"""
    for second in dom.iommufds[1:2]:
        yield XMLError("A domain can have only one <iommufd>", line=second.line)
    for iommufd in dom.iommufds:
        if iommufd.fdgroup is not None and not iommufd.enabled:
            yield ConfigUnsupportedError("A disabled <iommufd> cannot have an fdgroup", line=iommufd.line)


# model -> its options
_IOMMU_OPTIONS = {
    "intel": ("intremap", "caching_mode", "eim", "iotlb", "aw_bits", "dma_translation"),
    "amd": ("intremap", "iotlb", "xtsup", "passthrough"),
    "smmuv3": ("pci_bus", "accel", "cmdqv", "ats", "ril", "ssidsize", "oas"),
    "virtio": ("granule_mode", "granule", "granule_unit"),
}


def _iommu_errors(dom: DomainFields) -> Iterator[ConfigError]:
    """Mirrors: virDomainIOMMUDefValidate, virDomainDefIOMMUValidate (src/conf/domain_validate.c)"""
    for iommu in dom.iommus:
        own = _IOMMU_OPTIONS[iommu.model]
        foreign = [name for names in _IOMMU_OPTIONS.values() for name in names if name not in own]
        if any(getattr(iommu, name) is not None for name in foreign):
            yield XMLError(f"An IOMMU of model {iommu.model} cannot have options of other models", line=iommu.line)
        if iommu.model in ("intel", "smmuv3") and iommu.info.address is not None:
            yield XMLError(f"An IOMMU of model {iommu.model} cannot have an address", line=iommu.line)
        if iommu.intremap and dom.features.ioapic_driver != "qemu":
            yield ConfigUnsupportedError("Interrupt remapping needs <ioapic driver='qemu'/>", line=iommu.line)
        if iommu.eim and not iommu.intremap:
            yield ConfigUnsupportedError("Extended interrupt mode needs interrupt remapping", line=iommu.line)


def _os_errors(dom: DomainFields) -> Iterator[ConfigError]:
    """Mirrors: virDomainDefOSValidate, virDomainDefBootValidate (src/conf/domain_validate.c)"""
    boot = dom.os
    has_loader = bool(boot.loader_type or boot.loader_readonly or boot.loader_secure) or boot.has_child("loader")
    if has_loader and not boot.loader and boot.firmware is None:
        yield XMLError(
            "A <loader> without path needs firmware to be chosen", line=boot.line, libvirt_code=VIR_ERR_XML_DETAIL
        )
    if boot.shim is not None and boot.kernel is None:
        yield ConfigUnsupportedError("<shim> needs a <kernel>", line=boot.line)
    if boot.type == "exe" and boot.init is None:
        yield XMLError("An <os> of type exe needs <init>", line=boot.line)
    if (boot.bootmenu_timeout or 0) > USHORT_MAX:
        yield ConfigUnsupportedError("The timeout of the boot menu is too long", line=boot.line)
    delay = boot.bios_reboot_timeout
    if delay is not None and not -1 <= delay <= USHORT_MAX:
        yield ConfigUnsupportedError("The reboot timeout is out of range", line=boot.line)


def _video_errors(dom: DomainFields) -> Iterator[ConfigError]:
    """Mirrors: virDomainDefVideoValidate (src/conf/domain_validate.c)"""
    if len(dom.videos) > 1 and any(video.model_type == "none" for video in dom.videos):
        yield ConfigUnsupportedError("A video device of type none must be the only one", line=dom.line)


def _timer_errors(dom: DomainFields) -> Iterator[ConfigError]:
    """Mirrors: virDomainDefPostParseTimer (src/conf/domain_postparse.c)"""
    for timer in dom.clock.timers if dom.clock is not None else ():
        name, line = timer.name, timer.line
        if timer.tickpolicy is not None and name in ("kvmclock", "hypervclock"):
            yield ConfigUnsupportedError(f"Timer {name} cannot have a tickpolicy", line=line)
        if timer.tickpolicy != "catchup" and (timer.threshold or timer.slew or timer.limit):
            yield XMLError("Only tickpolicy='catchup' can have <catchup>", line=line)
        if name != "tsc" and (timer.frequency or timer.mode):
            yield ConfigUnsupportedError(f"Timer {name} cannot have a frequency or a mode", line=line)
        if name not in ("platform", "rtc") and timer.track is not None:
            yield ConfigUnsupportedError(f"Timer {name} cannot have 'track'", line=line)


def _audio_errors(dom: DomainFields) -> Iterator[ConfigError]:
    """Mirrors: virDomainAudioDefValidate, virDomainEnsureAudioID (src/conf/domain_validate.c)"""
    ids = Counter(audio.id for audio in dom.audios)
    for audio in dom.audios:
        if ids[audio.id] > 1:
            yield XMLError(f"Two audio backends have the same id {audio.id}", line=audio.line)
    for audio in dom.audios:
        sides = (audio.input, audio.output)
        if any(side.fixed_settings is not True and side.has_settings for side in sides):
            yield ConfigUnsupportedError("<settings> of <audio> needs fixedSettings='yes'", line=audio.line)
        if any(side.fixed_settings and not side.mixing_engine for side in sides):
            yield ConfigUnsupportedError("fixedSettings='yes' of <audio> needs mixingEngine='yes'", line=audio.line)
    users: list[Any] = [*dom.sounds, *dom.graphics]
    for user in users:
        if user.audio_id and user.audio_id not in ids:
            yield XMLError(f"The domain has no audio backend with id {user.audio_id}", line=user.line)


_RULES: tuple[Callable[[DomainFields], Iterator[ConfigError]], ...] = (
    name_errors,
    tuning_errors,
    _throttle_group_errors,
    _audio_errors,
    _disk_duplicates,
    _hostdev_duplicates,
    _drive_duplicates,
    _topology_errors,
    _alias_duplicates,
    _iommu_errors,
    _iommufd_errors,
    _timer_errors,
    _os_errors,
    _video_errors,
    *PERIPHERAL_RULES,
)
