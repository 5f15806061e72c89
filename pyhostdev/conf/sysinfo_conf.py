# SPDX-License-Identifier: LGPL-2.1-or-later
"""
SMBIOS tables and fw_cfg files.

Mirrors: virSysinfoDef (src/util/virsysinfo.h)
"""

from __future__ import annotations

from pyhostdev.conf.xml.xmlcodec import enum
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, content, elements

# table -> the names of its entries, in the order of printing
SMBIOS_ENTRIES = {
    "bios": ("vendor", "version", "date", "release"),
    "system": ("manufacturer", "product", "version", "serial", "uuid", "sku", "family"),
    "baseBoard": ("manufacturer", "product", "version", "serial", "asset", "location"),
    "chassis": ("manufacturer", "version", "serial", "asset", "sku"),
}


class SysinfoEntry(ElementDef):
    """One value; a file of fwcfg instead of a value."""

    tag = "entry"

    name = attribute("name")
    file = attribute("file")
    value = content("", default="")


class SysinfoTable(ElementDef):
    """One SMBIOS table."""

    entries = elements("entry", SysinfoEntry)

    def values(self, table: str) -> dict[str, str]:
        """Return the values by name in SMBIOS order; of equal names the first counts."""
        said: dict[str | None, str] = {}
        for entry in self.entries:
            said.setdefault(entry.name, entry.value)
        return {name: said[name] for name in SMBIOS_ENTRIES[table] if said.get(name)}

    def normalise(self, table: str) -> None:
        """Drop entries that the table does not have, and sort the others."""
        self.entries = [SysinfoEntry(name=name, value=value) for name, value in self.values(table).items()]


class SysinfoDef(ElementDef):
    """
    One <sysinfo>: SMBIOS tables, or files of fw_cfg.

    Mirrors: virSysinfoDef (src/util/virsysinfo.h)
    """

    tag = "sysinfo"

    type = attribute("type", enum("smbios", "fwcfg"), required=True)
    bios = elements("bios", SysinfoTable)
    system = elements("system", SysinfoTable)
    boards = elements("baseBoard", SysinfoTable)
    chassis = elements("chassis", SysinfoTable)
    oem_strings = elements("oemStrings/entry", SysinfoEntry)
    entries = elements("entry", SysinfoEntry)

    def tables(self) -> list[tuple[str, SysinfoTable]]:
        """Return the SMBIOS tables in the order of their types; only base boards can occur more than once."""
        found = [("bios", table) for table in self.bios[:1]]
        found += [("system", table) for table in self.system[:1]]
        found += [("baseBoard", table) for table in self.boards]
        return found + [("chassis", table) for table in self.chassis[:1]]

    def normalise(self) -> None:
        """Keep only the entries of this type, in libvirt's order."""
        self.bios, self.system, self.chassis = self.bios[:1], self.system[:1], self.chassis[:1]
        for table, part in self.tables():
            part.normalise(table)

    @property
    def uuid_entry(self) -> SysinfoEntry | None:
        """The entry of the system UUID, None without one."""
        return next((e for t in self.system[:1] for e in t.entries if e.name == "uuid" and e.value), None)
