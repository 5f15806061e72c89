# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU's rules for firmware, SMBIOS and fw_cfg.

Mirrors: qemuValidateDomainDef (src/qemu/qemu_validate.c), virDomainDefOSValidate (src/conf/domain_validate.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.errors import VIR_ERR_XML_DETAIL, ConfigUnsupportedError, XMLError
from pyhostdev.qemu.qemu_domain import X86, is_q35

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.errors import ConfigError

    Errors = Iterator[ConfigError]

_CHOSEN_BY_9_0 = ("loader", "loader_readonly", "loader_type", "nvram_template")
_OF_OTHERS = ("opt/ovmf/", "opt/org.qemu/")  # fw_cfg prefixes reserved for firmware and QEMU


def firmware_errors(dom: DomainDef, release: LibvirtRelease) -> Errors:
    """Yield the errors of a domain's firmware."""
    os = dom.os
    has_flash = os.loader_type == "pflash" or os.firmware == "efi"
    if has_flash and not dom.features.acpi and os.arch in X86:
        yield ConfigUnsupportedError("UEFI needs ACPI on this architecture", line=os.line)
    if dom.features.acpi and not has_flash and os.arch == "aarch64":
        yield ConfigUnsupportedError("ACPI needs UEFI on this architecture", line=os.line)
    if os.loader_secure and not (is_q35(dom) and dom.features.smm):
        yield ConfigUnsupportedError("Secure boot needs a q35 machine with SMM", line=os.line)
    yield from _choice_errors(dom, release)
    yield from _fw_cfg_errors(dom)


def choice_errors(dom: DomainDef, release: LibvirtRelease) -> Errors:
    """Yield the errors of a request that no firmware can fulfil; they are reported before a firmware is chosen."""
    yield from _variables_errors(dom)
    yield from _feature_errors(dom)


def _choice_errors(dom: DomainDef, release: LibvirtRelease) -> Errors:
    os = dom.os
    if os.firmware_features and os.firmware is None:
        yield XMLError("<firmware> needs <os firmware=>", line=os.line, libvirt_code=VIR_ERR_XML_DETAIL)
    if os.firmware is None or release.has("firmware-and-loader"):
        return
    for name in (name for name in _CHOSEN_BY_9_0 if getattr(os, name) is not None):
        message = f"<os firmware=> chooses the firmware, and '{name.replace('_', ' ')}' names one"
        yield XMLError(message, line=os.line, libvirt_code=VIR_ERR_XML_DETAIL)


def _feature_errors(dom: DomainDef) -> Errors:
    os = dom.os
    wanted = {feature.name: feature.enabled for feature in os.firmware_features}
    if wanted.get("enrolled-keys") and wanted.get("secure-boot") is False:
        yield _detail("Enrolled keys need secure boot", os)


def _variables_errors(dom: DomainDef) -> Errors:
    """Mirrors: virDomainDefOSValidate (src/conf/domain_validate.c)"""
    os = dom.os
    has_own = os.nvram is not None or os.nvram_source is not None or os.nvram_template is not None
    if not has_own:
        return
    if os.firmware == "bios":
        yield _detail("Firmware of type bios cannot have a variable store", os)
    elif os.firmware is None and os.loader is None:
        yield _detail("<nvram> needs a <loader>, or firmware to be chosen", os)
    elif os.loader_stateless:
        yield _detail("A stateless <loader> cannot have <nvram>", os)


def _detail(message: str, where: Any) -> ConfigError:
    return XMLError(message, line=where.line, libvirt_code=VIR_ERR_XML_DETAIL)


def _fw_cfg_errors(dom: DomainDef) -> Errors:
    """Mirrors: qemuValidateDomainDefSysinfo"""
    for entry in (entry for info in dom.sysinfos if info.type == "fwcfg" for entry in info.entries):
        name = entry.name or ""
        if not name.startswith("opt/") or name.startswith(_OF_OTHERS):
            message = f"The name of a fw_cfg file must start with opt/, but not with {' or '.join(_OF_OTHERS)}"
            yield ConfigUnsupportedError(message, line=entry.line)
        if not entry.value and not entry.file:
            yield XMLError("A fw_cfg <entry> needs a value or a file", line=entry.line)
