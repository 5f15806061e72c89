# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Devices of the board: TPM, USB hubs, watchdogs, panic notifiers, memory.

Mirrors: the devices' own structures (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.device_conf import WORD_NUMBERS, DeviceInfo
from pyhostdev.conf.os_conf import SizeDef
from pyhostdev.conf.virtio_conf import VirtioOptions
from pyhostdev.conf.xml.xmlcodec import (
    Codec,
    cpuset,
    enum,
    hexadecimal,
    number,
    signed,
    size_unit,
    unit_factor,
    yes_no,
)
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, content, flag, inline, optional_element
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, VIR_ERR_INTERNAL_ERROR, XMLError
from pyhostdev.util.viruuid import normal_uuid
from pyhostdev.util.virxml import ULLONG_MAX

if TYPE_CHECKING:
    from collections.abc import Collection

    from pyhostdev.util.virxml import Element

uuid_text = Codec(normal_uuid, str, "32 hexadecimal digits", code=VIR_ERR_INTERNAL_ERROR)
_base = hexadecimal(0, maximum=ULLONG_MAX)


class TPMSource(ElementDef):
    """The state directory of a TPM emulator, or the socket of an external one."""

    tag = "source"

    type = attribute("type", enum("dir", "file", "unix"))
    mode = attribute("mode", enum("connect", "bind"))
    path = attribute("path")


_EMULATOR_WORDS = (
    *("backend/@version", "backend/@persistent_state", "backend/@debug"),
    *("backend/encryption", "backend/active_pcr_banks", "backend/profile"),
)
# type of a TPM's backend -> what libvirt does not read of it
_UNREAD_TPM_WORDS = {
    "passthrough": (*_EMULATOR_WORDS, "backend/source"),
    "external": (*_EMULATOR_WORDS, "backend/device"),
    "emulator": ("backend/device",),
    "": (*_EMULATOR_WORDS, "backend/device", "backend/source"),
}


class DomainTPMDef(ElementDef):
    """
    A trusted platform module.

    Mirrors: virDomainTPMDef (src/conf/domain_conf.h)
    """

    tag = "tpm"

    model = attribute("model", enum("tpm-tis", "tpm-crb", "tpm-spapr", "tpm-spapr-proxy"))
    backend_type = attribute("backend/@type", enum("passthrough", "emulator", "external"))
    backend_version = attribute("backend/@version", enum("1.2", "2.0"))
    persistent_state = attribute("backend/@persistent_state", yes_no, code=VIR_ERR_INTERNAL_ERROR)
    device_path = attribute("backend/device/@path")
    debug = attribute("backend/@debug", number, since="tpm-profile")
    encryption_secret = attribute("backend/encryption/@secret", uuid_text)
    pcr_sha1 = flag("backend/active_pcr_banks/sha1")
    pcr_sha256 = flag("backend/active_pcr_banks/sha256")
    pcr_sha384 = flag("backend/active_pcr_banks/sha384")
    pcr_sha512 = flag("backend/active_pcr_banks/sha512")
    profile_name = attribute("backend/profile/@name", since="tpm-profile")
    profile_source = attribute("backend/profile/@source", since="tpm-profile")
    profile_remove_disabled = attribute(
        "backend/profile/@removeDisabled", enum("check", "fips-host"), since="tpm-profile"
    )
    backend_source = optional_element("backend/source", TPMSource)
    info = inline(DeviceInfo)

    @classmethod
    def unread(cls, element: Element) -> Collection[str]:
        """
        Return what backends of other types have.

        Mirrors: virDomainTPMDefParseXML (src/conf/domain_conf.c)
        """
        backend = element.find("backend")
        return () if backend is None else _UNREAD_TPM_WORDS.get(backend.get("type", ""), ())

    @property
    def pcr_banks(self) -> list[str]:
        """The active banks of platform configuration registers; empty for the emulator's default."""
        return [bank for bank in ("sha1", "sha256", "sha384", "sha512") if getattr(self, f"pcr_{bank}")]


class DomainHubDef(ElementDef):
    """A USB hub."""

    tag = "hub"

    type = attribute(
        "type", enum("usb"), code=VIR_ERR_CONFIG_UNSUPPORTED, missing=VIR_ERR_INTERNAL_ERROR, required=True
    )
    info = inline(DeviceInfo)


class DomainWatchdogDef(ElementDef):
    """A watchdog: acts if the guest no longer resets its timer."""

    tag = "watchdog"

    model = attribute(
        "model",
        enum("i6300esb", "ib700", "diag288", since={"itco": "itco-watchdog"}),
        code=VIR_ERR_CONFIG_UNSUPPORTED,
        missing=VIR_ERR_INTERNAL_ERROR,
        required=True,
        renumbered=WORD_NUMBERS,
    )
    action = attribute(
        "action",
        enum("reset", "shutdown", "poweroff", "pause", "dump", "none", "inject-nmi"),
        default="reset",
        code=VIR_ERR_CONFIG_UNSUPPORTED,
        renumbered=WORD_NUMBERS,
    )
    info = inline(DeviceInfo)


class DomainPanicDef(ElementDef):
    """The device with which the guest reports a crash."""

    tag = "panic"

    model = attribute(
        "model",
        enum("isa", "pseries", "hyperv", "s390", since={"pvpanic": "pvpanic-pci"}),
        code=VIR_ERR_CONFIG_UNSUPPORTED,
    )
    info = inline(DeviceInfo)


class DomainPstoreDef(ElementDef):
    """
    Persistent store (pstore) for the guest's last messages.

    Mirrors: virDomainPstoreDef (src/conf/domain_conf.h)
    """

    tag = "pstore"

    backend = attribute("backend", enum("acpi-erst"), required=True)
    path = content("path")
    size = optional_element("size", SizeDef)
    info = inline(DeviceInfo)

    @property
    def size_kib(self) -> int:
        """Its size in KiB, 0 if it is not given."""
        return self.size.kib if self.size is not None else 0


class DomainNVRAMDef(ElementDef):
    """The NVRAM device of pseries."""

    tag = "nvram"

    info = inline(DeviceInfo)


class DomainMemoryDef(ElementDef):
    """Memory as a device."""

    tag = "memory"

    model = attribute("model", enum("dimm", "nvdimm", "virtio-pmem", "virtio-mem", "sgx-epc"), required=True)
    access = attribute("access", enum("shared", "private"))
    discard = attribute("discard", yes_no)
    uuid = content("uuid", uuid_text)
    source_nodemask = content("source/nodemask", cpuset)
    source_pagesize = content("source/pagesize", number)
    source_pagesize_unit = attribute("source/pagesize/@unit", size_unit)
    source_path = content("source/path")
    source_alignsize = content("source/alignsize", number)
    source_alignsize_unit = attribute("source/alignsize/@unit", size_unit)
    source_pmem = flag("source/pmem")
    target_size = content("target/size", number)
    target_size_unit = attribute("target/size/@unit", size_unit)
    target_node = content("target/node", signed())
    target_label_size = content("target/label/size", number)
    target_label_size_unit = attribute("target/label/size/@unit", size_unit)
    target_block = content("target/block", number)
    target_block_unit = attribute("target/block/@unit", size_unit)
    dynamic_memslots = attribute("target/@dynamicMemslots", yes_no, since="memory-target-words")
    target_requested = content("target/requested", number)
    target_requested_unit = attribute("target/requested/@unit", size_unit)
    target_current = content("target/current", number)
    target_current_unit = attribute("target/current/@unit", size_unit)
    target_base = attribute("target/address/@base", _base)
    target_readonly = flag("target/readonly")
    virtio = inline(VirtioOptions)
    info = inline(DeviceInfo)

    def parsed(self, element: Element) -> None:
        """
        Refuse memory without a size.

        Mirrors: virDomainMemoryTargetDefParseXML (src/conf/domain_conf.c)
        """
        if self.target_size is None:
            raise XMLError("A <memory> device needs the <size> of its <target>", line=self.line)

    @property
    def size_kib(self) -> int:
        """The size in KiB, rounded up."""
        return -(-(self.target_size or 0) * unit_factor(self.target_size_unit) // 1024)
