# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which firmware a guest boots with: chosen by the descriptors of the host, as the definition asks.

A descriptor is a JSON file of a distribution; docs/interop/firmware.json of QEMU defines its form.

Mirrors: src/qemu/qemu_firmware.c
"""

from __future__ import annotations

import json
import os
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from pyhostdev.errors import VIR_ERR_OPERATION_FAILED, ConfigUnsupportedError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.virfile import list_names, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.conf.os_conf import OSDef

DESCRIPTOR_BYTES_MAX = 1 << 20
_INTERFACES = {"efi": "uefi", "bios": "bios"}

# firmware -> what its variables are made from; libvirt's own list, where no descriptor names the firmware
_NVRAM_TEMPLATES = {
    "/usr/share/OVMF/OVMF_CODE.fd": "/usr/share/OVMF/OVMF_VARS.fd",
    "/usr/share/OVMF/OVMF_CODE.secboot.fd": "/usr/share/OVMF/OVMF_VARS.fd",
    "/usr/share/OVMF/OVMF_CODE.ms.fd": "/usr/share/OVMF/OVMF_VARS.ms.fd",
    "/usr/share/AAVMF/AAVMF_CODE.fd": "/usr/share/AAVMF/AAVMF_VARS.fd",
    "/usr/share/AAVMF/AAVMF32_CODE.fd": "/usr/share/AAVMF/AAVMF32_VARS.fd",
}


class Image(NamedTuple):
    """A file of firmware and its format."""

    path: str
    format: str


class Firmware(NamedTuple):
    """
    One descriptor.

    ``mode`` of a firmware in flash is "split", "combined" or "stateless"; "memory" stands for a ROM. ``template`` is
    what a guest's variables are made from. ``machines`` has patterns by architecture.
    """

    name: str
    interfaces: tuple[str, ...]
    mode: str
    executable: Image
    template: Image | None
    machines: tuple[tuple[str, str], ...]
    features: frozenset[str]

    @classmethod
    def parse(cls, name: str, text: bytes) -> Firmware | None:
        """
        Return the firmware of a descriptor; None for a kind of mapping that libvirt does not use, such as a kernel.

        Raises:
            ValueError: the text is not a descriptor.
        """
        said: Any = json.loads(text)
        try:
            mapping = said["mapping"]
            if mapping["device"] == "memory":
                mode, executable = "memory", Image(str(mapping["filename"]), "raw")
            elif mapping["device"] == "flash":
                mode, executable = mapping.get("mode", "split"), _image(mapping["executable"])
            else:
                return None
            template = _image(mapping["nvram-template"]) if mode == "split" else None
            machines = [(t["architecture"], pattern) for t in said["targets"] for pattern in t["machines"]]
            words = (tuple(said["interface-types"]), mode, executable, template, tuple(machines))
            return cls(name, *words, frozenset(said["features"]))
        except (KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"it lacks {err}") from err

    def serves(self, arch: str | None, machine: str | None) -> bool:
        """True for the architecture and a machine type that the firmware was made for."""
        return any(arch == known and fnmatchcase(machine or "", pattern) for known, pattern in self.machines)


def _image(said: Any) -> Image:
    return Image(str(said["filename"]), str(said["format"]))


def read_firmwares(root: HostRoot) -> list[Firmware]:
    """
    Return the host's firmware in the order of preference: by file name, the administrator's instead of the vendor's.

    An empty file hides the vendor's of the same name.

    Raises:
        ConfigUnsupportedError: a file is not a descriptor.
        SysfsError: a file cannot be read.
    """
    found: dict[str, str] = {}
    for directory in root.firmware_descriptors:
        found |= {name: os.path.join(directory, name) for name in list_names(root, directory) if name[-5:] == ".json"}
    return [part for name in sorted(found) for part in _read(root, found[name])]


def _read(root: HostRoot, path: str) -> Iterator[Firmware]:
    text = read_bytes(root, path, DESCRIPTOR_BYTES_MAX)
    if not text:
        return
    try:
        firmware = Firmware.parse(os.path.basename(path), text)
    except ValueError as err:
        raise ConfigUnsupportedError(f"'{path}' does not describe firmware: {err}") from err
    if firmware is not None:
        yield firmware


def is_chosen_at_start(release: LibvirtRelease) -> bool:
    """True for a release whose definitions do not say which firmware was chosen."""
    return not release.has("firmware-in-definition")


def fill_firmware(dom: DomainDef, host: HostFacts | None, release: LibvirtRelease) -> None:
    """
    Say in a definition what its firmware is, and where its variables are.

    Args:
        host: has the descriptors; None has none, and leaves the choice open.

    Raises:
        ConfigUnsupportedError: the host has no firmware as it is asked for, or a descriptor is damaged.

    Mirrors: qemuFirmwareFillDomain
    """
    chosen = None if is_chosen_at_start(release) else _choose(dom, host)
    if chosen is not None:
        _apply(dom, chosen)
        dom.os.firmware_features = _features(chosen)
        dom.os.firmware = dom.os.firmware or "efi"
    elif release.has("nvram-template") and dom.os.nvram is not None:
        dom.os.nvram_template = dom.os.nvram_template or _NVRAM_TEMPLATES.get(dom.os.loader or "")
    _place_variables(dom.os, dom.name)
    if release.has("firmware-format"):
        _fill_formats(dom.os, release)


def choose_at_start(dom: DomainDef, host: HostFacts | None, release: LibvirtRelease) -> None:
    """
    Choose the firmware of a guest whose definition leaves it open until it starts.

    Raises:
        ConfigUnsupportedError: the host has no firmware as it is asked for.

    Mirrors: qemuFirmwareFillDomain of libvirt 9.0
    """
    if is_chosen_at_start(release) and dom.os.firmware is not None and host is not None:
        chosen = _choose(dom, host)
        if chosen is not None:
            _apply(dom, chosen)
            _place_variables(dom.os, dom.name)
            dom.os.firmware, dom.os.firmware_features = None, []  # the choice is made


def _choose(dom: DomainDef, host: HostFacts | None) -> Firmware | None:
    """Return the first firmware that is as the definition asks; None where none is asked for, or known by its path."""
    is_asked = dom.os.firmware is not None
    if host is None or not (is_asked or (dom.os.loader is not None and dom.os.loader_type == "pflash")):
        return None
    found = next((firmware for firmware in read_firmwares(host.root) if _suits(dom, firmware)), None)
    if found is None and is_asked:
        raise ConfigUnsupportedError(
            f"This host has no firmware '{dom.os.firmware}' as <os> asks for it",
            line=dom.os.line,
            libvirt_code=VIR_ERR_OPERATION_FAILED,
        )
    return found


def _suits(dom: DomainDef, firmware: Firmware) -> bool:
    """
    Tell whether a firmware is what a definition asks for.

    Mirrors: qemuFirmwareMatchDomain
    """
    os_, features = dom.os, firmware.features
    wanted = {feature.name: feature.enabled for feature in os_.firmware_features}
    return (
        _INTERFACES.get(os_.firmware or "efi") in firmware.interfaces
        and firmware.serves(os_.arch, os_.machine)
        and _suits_paths(os_, firmware)
        and _suits_secure(dom, "requires-smm" in features)
        and all((name in features) == enabled for name, enabled in wanted.items())
        and not (dom.suspend_to_mem and "acpi-s3" not in features)
        and not (dom.suspend_to_disk and "acpi-s4" not in features)
    )


def _suits_secure(dom: DomainDef, requires_smm: bool) -> bool:
    has_smm = not (dom.features.smm and dom.features.smm_state is False)
    if requires_smm:
        return has_smm and dom.os.loader_secure is not False
    return dom.os.loader_secure is not True


def _suits_paths(os_: OSDef, firmware: Firmware) -> bool:
    """
    Compare a firmware with the files and formats that a definition names.

    Mirrors: qemuFirmwareMatchPaths
    """
    template = firmware.template or Image("", "")
    pairs = [
        (os_.loader, firmware.executable.path),
        (os_.loader_type, "rom" if firmware.mode == "memory" else "pflash"),
        (os_.loader_format, firmware.executable.format),
        (os_.nvram_template, template.path),
        (os_.nvram_template_format, template.format),
        (os_.nvram_format, template.format),
    ]
    if firmware.mode != "memory":
        mode = "stateless" if os_.loader_stateless else "split" if os_.loader_readonly is not False else "combined"
        pairs.append((mode, firmware.mode))
    return all(said in (None, has) for said, has in pairs)


def _apply(dom: DomainDef, firmware: Firmware) -> None:
    """
    Write a firmware into a definition.

    Mirrors: qemuFirmwareEnableFeatures
    """
    os_ = dom.os
    os_.loader = firmware.executable.path
    os_.loader_type = "rom" if firmware.mode == "memory" else "pflash"
    if firmware.mode != "memory":
        os_.loader_readonly = firmware.mode != "combined"
        os_.loader_format = firmware.executable.format
    if firmware.template is not None and os_.nvram_source is None:
        os_.nvram_template, os_.nvram_template_format = firmware.template
        os_.nvram_format = os_.nvram_format or firmware.template.format
    if "requires-smm" in firmware.features:
        dom.features.smm = dom.features.smm_state = True
        os_.loader_secure = True


def _features(firmware: Firmware) -> list[Any]:
    from pyhostdev.conf.os_conf import FirmwareFeature

    names = ("enrolled-keys", "secure-boot")
    return [FirmwareFeature(name=name, enabled=name in firmware.features) for name in names]


def _place_variables(os_: OSDef, name: str | None) -> None:
    """Give the variables of firmware in a flash chip that is not written a file of the guest's own."""
    has_own = os_.nvram is not None or os_.nvram_source is not None or os_.loader_stateless
    if os_.loader is None or os_.loader_type != "pflash" or not os_.loader_readonly or has_own:
        return
    ending = "qcow2" if os_.nvram_format == "qcow2" else "fd"
    os_.nvram = f"{HostRoot.NVRAM}/{name}_VARS.{ending}"


def _fill_formats(os_: OSDef, release: LibvirtRelease) -> None:
    """Say the format of firmware in a flash chip, and of its variables."""
    if os_.loader is not None and os_.loader_type == "pflash":
        os_.loader_format = os_.loader_format or "raw"
        if os_.nvram is not None:
            os_.nvram_format = os_.nvram_format or "raw"
        if os_.nvram_template is not None and release.has("template-format-always"):
            os_.nvram_template_format = os_.nvram_template_format or "raw"
