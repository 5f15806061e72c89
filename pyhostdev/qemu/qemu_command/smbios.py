# SPDX-License-Identifier: LGPL-2.1-or-later
"""
SMBIOS tables and fw_cfg files on the command line.

Mirrors: qemuBuildSmbiosCommandLine, qemuBuildSysinfoCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.sysinfo_conf import SMBIOS_ENTRIES
from pyhostdev.qemu.qemu_command.builder import option_value, unsupported
from pyhostdev.util.virfile import is_directory, read_attribute

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder
    from pyhostdev.util.hostroot import HostRoot

_TYPES = {"bios": 0, "system": 1, "baseBoard": 2, "chassis": 3}  # SMBIOS 7.1 to 7.4
_OEM_STRINGS = 11  # SMBIOS 7.12

# table -> value -> its file in sysfs (Documentation/ABI/testing/sysfs-firmware-dmi-tables)
_HOST_NAMES = {
    "bios": {"vendor": "bios_vendor", "version": "bios_version", "date": "bios_date", "release": "bios_release"},
    "system": {
        "manufacturer": "sys_vendor",
        "product": "product_name",
        "version": "product_version",
        "serial": "product_serial",
        "sku": "product_sku",
        "family": "product_family",
    },
    "baseBoard": {
        "manufacturer": "board_vendor",
        "product": "board_name",
        "version": "board_version",
        "serial": "board_serial",
        "asset": "board_asset_tag",
    },
    "chassis": {
        "manufacturer": "chassis_vendor",
        "version": "chassis_version",
        "serial": "chassis_serial",
        "asset": "chassis_asset_tag",
    },
}


def build_smbios(build: CommandBuilder) -> None:
    """
    Add the SMBIOS tables of the definition, or copies of the host's.

    Raises:
        ConfigUnsupportedError: the source of the tables is missing.
    """
    dom = build.dom
    if dom.os.smbios_mode == "host":
        _add_host_tables(build)
    elif dom.os.smbios_mode == "sysinfo":
        info = next((info for info in dom.sysinfos if info.type == "smbios"), None)
        if info is None:
            raise unsupported("<smbios mode='sysinfo'> without a <sysinfo type='smbios'>", dom.os)
        _add_own_tables(build, info)


def _add_own_tables(build: CommandBuilder, info: Any) -> None:
    """Add the tables of a <sysinfo>."""
    for table, part in info.tables():
        _add_table(build, table, part.values(table))
    strings = [f"value={option_value(entry.value)}" for entry in info.oem_strings]
    if strings:
        build.add("-smbios", ",".join([f"type={_OEM_STRINGS}", *strings]))


def _add_table(build: CommandBuilder, table: str, values: dict[str, str]) -> None:
    words = [f"{name}={option_value(value)}" for name, value in values.items()]
    if words:
        build.add("-smbios", ",".join([f"type={_TYPES[table]}", *words]))


def _add_host_tables(build: CommandBuilder) -> None:
    root = None if build.host is None else build.host.root
    tables = {table: host_table(root, table) for table in SMBIOS_ENTRIES} if root is not None else {}
    if not any(tables.values()) and (root is None or not has_no_tables(root)):
        raise unsupported("<smbios mode='host'> on a host without SMBIOS tables in sysfs", build.dom.os)
    for table, values in tables.items():
        _add_table(build, table, values)


def has_no_tables(root: HostRoot) -> bool:
    """True for a directory in place of ``/`` that has no SMBIOS tables, such as a snapshot of devices."""
    return not (root.is_live or is_directory(root, root.dmi("")))


def host_table(root: HostRoot, table: str) -> dict[str, str]:
    """
    Return the values of one of the host's tables, without the UUID: the guest has its own.

    Mirrors: virSysinfoRead (src/util/virsysinfo.c)
    """
    found = {name: read_attribute(root, root.dmi(known)) for name, known in _HOST_NAMES[table].items()}
    return {name: value for name, value in found.items() if value}


def build_fw_cfg(build: CommandBuilder) -> None:
    """Add the fw_cfg files. Unlike libvirt, we double a comma in a value, so it cannot end the value."""
    for info in build.dom.sysinfos:
        for entry in info.entries if info.type == "fwcfg" else []:
            what = f"file={option_value(entry.file)}" if entry.file else f"string={option_value(entry.value)}"
            build.add("-fw_cfg", f"name={option_value(entry.name or '')},{what}")
