# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Boot and memory of a domain.

Mirrors: virDomainOSDef, virDomainMemtune (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.xml.xmlcodec import (
    big_number,
    cpuset,
    enum,
    number,
    on_off,
    signed,
    size_unit,
    yes_no,
)
from pyhostdev.conf.xml.xmlcodec import unit_factor as unit_factor
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import (
    Elements,
    OptionalElement,
    attribute,
    content,
    elements,
    flag,
    opaque,
    optional_element,
)
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, VIR_ERR_XML_ERROR

if TYPE_CHECKING:
    from pyhostdev.conf.boot_conf import ACPITable, BootDev, FirmwareFeature, InitArgument
    from pyhostdev.conf.storage_source_conf import StorageSource

ARCHITECTURES = (
    "alpha",
    "armv6l",
    "armv7l",
    "armv7b",
    "aarch64",
    "cris",
    "i686",
    "itanium",
    "lm32",
    "loongarch64",
    "m68k",
    "microblaze",
    "microblazeel",
    "mips",
    "mipsel",
    "mips64",
    "mips64el",
    "or32",
    "parisc",
    "parisc64",
    "ppc",
    "ppcle",
    "ppc64",
    "ppc64le",
    "ppcemb",
    "riscv32",
    "riscv64",
    "s390",
    "s390x",
    "sh4",
    "sh4eb",
    "sparc",
    "sparc64",
    "unicore32",
    "x86_64",
    "xtensa",
    "xtensaeb",
)

NUMA_MODES = ("strict", "preferred", "interleave", "restrictive")


class OSDef(ElementDef):
    """
    The <os> element: machine, firmware and boot.

    Mirrors: virDomainOSDef (src/conf/domain_conf.h)
    """

    tag = "os"

    firmware = attribute("firmware", enum("bios", "efi"))
    type = content("type", enum("hvm", "xen", "linux", "exe", "uml", "xenpvh"), code=VIR_ERR_CONFIG_UNSUPPORTED)
    arch = attribute("type/@arch", enum(*ARCHITECTURES), code=VIR_ERR_CONFIG_UNSUPPORTED)
    machine = attribute("type/@machine")
    firmware_features: Elements[FirmwareFeature] = elements("firmware/feature", "boot_conf.FirmwareFeature")
    init = content("init")
    init_arguments: Elements[InitArgument] = elements("initarg", "boot_conf.InitArgument")
    init_env = opaque("initenv")
    init_dir = content("initdir")
    init_user = content("inituser")
    init_group = content("initgroup")
    loader = content("loader")
    loader_readonly = attribute("loader/@readonly", yes_no)
    loader_secure = attribute("loader/@secure", yes_no)
    loader_type = attribute("loader/@type", enum("rom", "pflash"))
    loader_stateless = attribute("loader/@stateless", yes_no)
    loader_format = attribute("loader/@format", enum("raw", "qcow2"), since="firmware-format")
    nvram = content("nvram")
    nvram_template = attribute("nvram/@template")
    nvram_type = attribute("nvram/@type", enum("file", "block", "dir", "network", "volume", "nvme", "vhostuser"))
    nvram_format = attribute("nvram/@format", enum("raw", "qcow2"), since="firmware-format")
    nvram_template_format = attribute("nvram/@templateFormat", enum("raw", "qcow2"), since="firmware-format")
    varstore_template = attribute("varstore/@template", since="firmware-varstore")
    varstore_path = attribute("varstore/@path", since="firmware-varstore")
    nvram_source: OptionalElement[StorageSource] = optional_element("nvram/source", "storage_source_conf.StorageSource")
    kernel = content("kernel")
    initrd = content("initrd")
    cmdline = content("cmdline")
    dtb = content("dtb")
    shim = content("shim", since="direct-shim")
    root = content("root")
    acpi_tables: Elements[ACPITable] = elements("acpi/table", "boot_conf.ACPITable")
    boots: Elements[BootDev] = elements("boot", "boot_conf.BootDev")
    bootmenu_enable = attribute("bootmenu/@enable", yes_no)
    bootmenu_timeout = attribute("bootmenu/@timeout", number)
    bios_useserial = attribute("bios/@useserial", yes_no, lenient=True)
    bios_reboot_timeout = attribute("bios/@rebootTimeout", signed())
    smbios_mode = attribute("smbios/@mode", enum("none", "emulate", "host", "sysinfo"), code=VIR_ERR_CONFIG_UNSUPPORTED)

    @property
    def boot_devs(self) -> list[str]:
        """The kinds of devices to boot from, in order."""
        return [boot.dev or "" for boot in self.boots]


class IOMMUFDDef(ElementDef):
    """The domain's <iommufd>: the default for host devices, and the group of descriptors."""

    tag = "iommufd"

    enabled = attribute("enabled", yes_no, required=True)
    fdgroup = attribute("fdgroup")


class SizeDef(ElementDef):
    """An amount of memory with its unit; use ``kib``."""

    value = content("", big_number, default=0)
    unit = attribute("unit", size_unit)

    def hides(self, name: str) -> bool:
        """Return True for an absent amount; a zero in the XML is printed."""
        return name == "value" and not self.value and self.unit is None and self.line is None

    @classmethod
    def of_kib(cls, kib: int) -> SizeDef:
        """Return an amount in KiB."""
        return cls(value=kib, unit="KiB")

    @property
    def kib(self) -> int:
        """The amount in KiB, rounded up."""
        return -(-self.value * unit_factor(self.unit) // 1024)


class DomainMemorySize(SizeDef):
    """The domain's memory."""

    tag = "memory"

    dump_core = attribute("dumpCore", on_off)


class MaxMemorySize(SizeDef):
    """The maximum memory of the domain."""

    tag = "maxMemory"

    slots = attribute("slots", number)


class HugePage(ElementDef):
    """A page size, and the NUMA cells that use it."""

    tag = "page"

    size = attribute("size", big_number, required=True)
    unit = attribute("unit", size_unit)
    nodeset = attribute("nodeset", cpuset)


class MemoryBackingDef(ElementDef):
    """How the domain's memory is backed on the host."""

    tag = "memoryBacking"

    hugepages = flag("hugepages")
    pages = elements("hugepages/page", HugePage)
    nosharepages = flag("nosharepages")
    locked = flag("locked")
    source_type = attribute("source/@type", enum("file", "anonymous", "memfd"), code=VIR_ERR_CONFIG_UNSUPPORTED)
    access_mode = attribute("access/@mode", enum("shared", "private"), code=VIR_ERR_CONFIG_UNSUPPORTED)
    allocation_mode = attribute("allocation/@mode", enum("immediate", "ondemand"))
    allocation_threads = attribute("allocation/@threads", number)
    discard = flag("discard")


class NumaMemNode(ElementDef):
    """The host nodes for the memory of one NUMA cell."""

    tag = "memnode"

    cellid = attribute("cellid", number, required=True)
    mode = attribute("mode", enum(*NUMA_MODES))
    nodeset = attribute("nodeset", cpuset, required=True, missing=VIR_ERR_XML_ERROR)


class NumaTuneDef(ElementDef):
    """The host nodes for the guest's memory."""

    tag = "numatune"

    mode = attribute("memory/@mode", enum(*NUMA_MODES), code=VIR_ERR_CONFIG_UNSUPPORTED)
    nodeset = attribute("memory/@nodeset", cpuset)
    placement = attribute("memory/@placement", enum("static", "auto"), code=VIR_ERR_CONFIG_UNSUPPORTED)
    memnodes = elements("memnode", NumaMemNode)
