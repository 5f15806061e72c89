# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Choose the firmware of a guest among the firmware descriptors of the host.

A descriptor is a JSON file that comes with a firmware; QEMU's docs/interop/firmware.json defines its format.

Mirrors: src/qemu/qemu_firmware.c
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pyhostdev.errors import VIR_ERR_OPERATION_FAILED, ConfigUnsupportedError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import is_directory, list_names, read_bytes
from pyhostdev.util.virjson import parse_json
from pyhostdev.util.virxml import nearest_words, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.conf.os_conf import OSDef

DESCRIPTOR_BYTES_MAX = 1 << 16  # one has a few hundred bytes
DESCRIPTORS_MAX = 256  # in a directory
_MODES = ("split", "combined", "stateless")
_INTERFACES = {"efi": "uefi", "bios": "bios"}

# firmware -> template of its variables; libvirt's list for firmware without a descriptor
_NVRAM_TEMPLATES = {
    "/usr/share/OVMF/OVMF_CODE.fd": "/usr/share/OVMF/OVMF_VARS.fd",
    "/usr/share/OVMF/OVMF_CODE.secboot.fd": "/usr/share/OVMF/OVMF_VARS.fd",
    "/usr/share/OVMF/OVMF_CODE.ms.fd": "/usr/share/OVMF/OVMF_VARS.ms.fd",
    "/usr/share/AAVMF/AAVMF_CODE.fd": "/usr/share/AAVMF/AAVMF_VARS.fd",
    "/usr/share/AAVMF/AAVMF32_CODE.fd": "/usr/share/AAVMF/AAVMF32_VARS.fd",
}


class Image(NamedTuple):
    """A firmware file and its format."""

    path: str
    format: str


class Firmware(NamedTuple):
    """
    One firmware descriptor.

    ``mode`` is "split", "combined" or "stateless" for firmware in flash, "memory" for a ROM. ``template`` is the file
    that a guest's variables are copied from. ``machines`` lists pairs of an architecture and a pattern of machine
    types.
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
        Return the firmware in a descriptor; None for a mapping that libvirt does not use, such as a kernel.

        Raises:
            ValueError: the text is not a descriptor.
        """
        said: Any = parse_json(text)
        try:
            mapping = said["mapping"]
            if mapping["device"] not in ("memory", "flash"):
                return None
            mode, executable = _executable(mapping)
            template = _image(mapping["nvram-template"]) if mode == "split" else None
            machines = [
                (_text(t["architecture"]), pattern) for t in said["targets"] for pattern in _texts(t["machines"])
            ]
            words = (_texts(said["interface-types"]), mode, executable, template, tuple(machines))
            return cls(name, *words, frozenset(_texts(said["features"])))
        except (KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"it lacks {err}") from err

    def serves(self, arch: str | None, machine: str | None) -> bool:
        """True if the firmware supports the architecture and the machine type."""
        return any(arch == known and fnmatchcase(machine or "", pattern) for known, pattern in self.machines)


def _usual(name: str, code: str, variables: str, machines: tuple[str, ...], *features: str) -> Firmware:
    """Return firmware of Debian's package ovmf."""
    directory = "/usr/share/OVMF"
    images = (Image(f"{directory}/{code}", "raw"), Image(f"{directory}/{variables}", "raw"))
    places = tuple(("x86_64", machine) for machine in machines)
    return Firmware(name, ("uefi",), "split", *images, places, frozenset({"acpi-s3", *features}))


_Q35, _ALL = ("pc-q35-*",), ("pc-i440fx-*", "pc-q35-*")
_USUAL = (
    _usual("40", "OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd", _Q35, "enrolled-keys", "requires-smm", "secure-boot"),
    _usual("50", "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd", _Q35, "requires-smm", "secure-boot"),
    _usual("60", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", _ALL),
    Firmware(
        "60",
        ("uefi",),
        "split",
        Image("/usr/share/AAVMF/AAVMF_CODE.fd", "raw"),
        Image("/usr/share/AAVMF/AAVMF_VARS.fd", "raw"),
        (("aarch64", "virt-*"),),
        frozenset(),
    ),
)


def _executable(mapping: Any) -> tuple[str, Image]:
    """Return the mode of a mapping and the image that the guest runs."""
    if mapping["device"] == "memory":
        return "memory", Image(_text(mapping["filename"]), "raw")
    return _mode(mapping), _image(mapping["executable"])


def _image(said: Any) -> Image:
    return Image(_text(said["filename"]), _text(said["format"]))


def _mode(mapping: Any) -> str:
    mode = _text(mapping.get("mode", "split"))
    if mode not in _MODES:
        raise ValueError(f"the mode '{shown(mode)}' is unknown")
    return mode


def _text(said: Any) -> str:
    """Return a text that a definition can have; raise ValueError for anything else."""
    if not isinstance(said, str) or not said.isprintable():
        raise ValueError(f"{said!a:.40} is not a text")
    return said


def _texts(said: Any) -> tuple[str, ...]:
    if not isinstance(said, list):
        raise ValueError(f"{said!a:.40} is not a list")
    return tuple(map(_text, said))


def read_firmwares(root: HostRoot) -> list[Firmware]:
    """
    Return the host's firmware in order of preference: sorted by file name.

    The administrator's descriptor replaces the vendor's of the same name; an empty file only hides it.

    Raises:
        ConfigUnsupportedError: a file is not a descriptor.
        SysfsError: a file cannot be read.
    """
    found: dict[str, str] = {}
    for directory in root.firmware_descriptors:
        names = list_names(root, directory, DESCRIPTORS_MAX)
        found |= {name: os.path.join(directory, name) for name in names if name[-5:] == ".json"}
    return [part for name in sorted(found) for part in _read(root, found[name])]


def _read(root: HostRoot, path: str) -> Iterator[Firmware]:
    text = read_bytes(root, path, DESCRIPTOR_BYTES_MAX)
    if not text:
        return
    try:
        firmware = Firmware.parse(os.path.basename(path), text)
    except ValueError as err:
        raise ConfigUnsupportedError(f"'{path}' is not a firmware descriptor: {err}") from err
    if firmware is not None:
        yield firmware


def is_chosen_at_start(release: LibvirtRelease) -> bool:
    """True for a libvirt release that chooses firmware at each start instead of storing the choice."""
    return not release.has("firmware-in-definition")


def fill_firmware(dom: DomainDef, host: HostFacts | None, release: LibvirtRelease) -> None:
    """
    Store the chosen firmware and the path of its variables in a definition.

    Args:
        host: provides the descriptors; None leaves the choice open.

    Raises:
        ConfigUnsupportedError: no firmware of the host matches, or a descriptor is damaged.

    Mirrors: qemuFirmwareFillDomain
    """
    chosen = None if is_chosen_at_start(release) else _choose(dom, host)
    if chosen is not None:
        _apply(dom, chosen)
        dom.os.firmware_features = _features(chosen)
        dom.os.firmware = dom.os.firmware or "efi"
    elif release.has("nvram-template") and dom.os.nvram is not None:
        _fill_known_template(dom.os)
    _place_variables(dom.os, dom.name)
    if release.has("firmware-format"):
        _fill_formats(dom.os, release)


def _fill_known_template(os_: OSDef) -> None:
    """Fill in the template of firmware that libvirt knows by its path, which is raw."""
    if os_.nvram_template is None and os_.loader in _NVRAM_TEMPLATES:
        os_.nvram_template = _NVRAM_TEMPLATES[os_.loader]
        os_.nvram_template_format = os_.nvram_template_format or "raw"


def choose_at_start(dom: DomainDef, host: HostFacts | None, release: LibvirtRelease) -> None:
    """
    Choose the firmware of a guest that starts, for a release that does not store the choice.

    Raises:
        ConfigUnsupportedError: no firmware of the host matches.

    Mirrors: qemuFirmwareFillDomain of libvirt 9.0
    """
    if is_chosen_at_start(release) and dom.os.firmware is not None and host is not None:
        chosen = _choose(dom, host)
        if chosen is not None:
            _apply(dom, chosen)
            _place_variables(dom.os, dom.name)
            dom.os.firmware, dom.os.firmware_features = None, []  # the choice is made


def _choose(dom: DomainDef, host: HostFacts | None) -> Firmware | None:
    """Return the first matching firmware; None if none is requested, or its file is unknown."""
    is_asked = dom.os.firmware is not None
    if host is None or not (is_asked or (dom.os.loader is not None and dom.os.loader_type == "pflash")):
        return None
    is_unknown = has_no_descriptors(host.root)
    firmwares = list(_USUAL) if is_unknown else read_firmwares(host.root)
    wants_json = (dom.os.varstore_path, dom.os.varstore_template) != (None, None)  # which no descriptor here has
    found = next((firmware for firmware in firmwares if not wants_json and _suits(dom, firmware)), None)
    if found is None and is_asked and not _needs_no_descriptor(dom.os, firmwares, is_unknown):
        raise ConfigUnsupportedError(
            _no_match(dom.os, firmwares), line=dom.os.line, libvirt_code=VIR_ERR_OPERATION_FAILED
        )
    return found


def has_no_descriptors(root: HostRoot) -> bool:
    """True for a directory in place of ``/`` that tells nothing about firmware, such as a snapshot of devices."""
    return not (root.is_live or any(is_directory(root, directory) for directory in root.firmware_descriptors))


def is_undescribed(os_: OSDef, firmwares: list[Firmware]) -> bool:
    """
    True if the definition names all files of firmware itself, and no descriptor of this host has its loader.

    libvirt refuses such a definition, which comes from a host with other firmware; QEMU only needs the files.
    """
    is_known = os_.loader in _NVRAM_TEMPLATES or any(firmware.executable.path == os_.loader for firmware in firmwares)
    return os_.firmware is not None and not is_known and bool(os_.nvram is not None or os_.loader_stateless)


def _needs_no_descriptor(os_: OSDef, firmwares: list[Firmware], is_unknown: bool) -> bool:
    """
    Return True if firmware that no descriptor matches can be used: its files are known, or all named.

    Mirrors: qemuFirmwareFillDomainLegacy, for files that libvirt knows
    """
    if os_.loader is None or os_.loader_type != "pflash":
        return False
    is_known = os_.loader in _NVRAM_TEMPLATES and os_.loader_readonly is not False
    return is_unknown or is_known or is_undescribed(os_, firmwares)


def _no_match(os_: OSDef, firmwares: list[Firmware]) -> str:
    """Return why no firmware matches, with the nearest file if the loader is not one of the host's."""
    paths = [firmware.executable.path for firmware in firmwares]
    message = f"No '{os_.firmware}' firmware of this host matches <os>"
    if os_.loader is None or os_.loader in paths:
        return message
    near = nearest_words(os_.loader, paths, 1)
    hint = f"; the nearest is '{shown(near[0])}'" if near else ""
    return f"{message}: no descriptor names the loader '{shown(os_.loader)}'{hint}"


def _suits(dom: DomainDef, firmware: Firmware) -> bool:
    """
    Return True if a firmware matches a definition.

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
    Return True if a firmware has the files and formats that a definition names.

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
    from pyhostdev.conf.boot_conf import FirmwareFeature

    names = ("enrolled-keys", "secure-boot")
    return [FirmwareFeature(name=name, enabled=name in firmware.features) for name in names]


def _place_variables(os_: OSDef, name: str | None) -> None:
    """Choose the path of the variables for read-only firmware in flash; the file belongs to this guest."""
    has_own = bool(os_.nvram) or os_.nvram_source is not None or os_.loader_stateless
    if os_.loader is None or os_.loader_type != "pflash" or not os_.loader_readonly or has_own:
        return
    ending = "qcow2" if os_.nvram_format == "qcow2" else "fd"
    os_.nvram = f"{HostRoot.NVRAM}/{name}_VARS.{ending}"


def _fill_formats(os_: OSDef, release: LibvirtRelease) -> None:
    """Fill in the format of firmware in flash, and of its variables."""
    if os_.loader is not None and (os_.loader_type == "pflash" or release.has("rom-format")):
        os_.loader_format = os_.loader_format or "raw"
    if os_.loader is not None and os_.loader_type == "pflash":
        if os_.nvram is not None or os_.nvram_source is not None:
            os_.nvram_format = os_.nvram_format or "raw"
        if os_.nvram_template is not None and release.has("template-format-always"):
            os_.nvram_template_format = os_.nvram_template_format or os_.nvram_format or "raw"
