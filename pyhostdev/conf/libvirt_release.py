# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The libvirt releases whose answers are given, and one table of all that differs between them.

A release is a value that callers hand down; code asks it for a row by name where the behaviour stands, and compares no
versions. What an emulator can do is another matter, and its capabilities are asked for that: a row may only print what
the emulator has.

Every row was seen in recorded answers of the releases in ``RELEASES``: ``since`` is the first of them that has it.
"""

from __future__ import annotations

from typing import NamedTuple

from pyhostdev.errors import ConfigError
from pyhostdev.util.virxml import shown


class Change(NamedTuple):
    """One difference: the first release that has it, and what was seen."""

    since: tuple[int, int]
    what: str


_11_3 = (11, 3)
_12_8 = (12, 8)

CHANGES: dict[str, Change] = {
    "memory-size-in-kib": Change(_11_3, "-m size=1048576k instead of -m 1024"),
    "machine-acpi": Change(_11_3, "acpi=on|off in -machine, at its end, instead of -no-acpi"),
    "machine-hpet": Change(_11_3, "hpet=off in -machine, before acpi=, instead of -no-hpet"),
    "added-controllers-sorted": Change(_11_3, "added controllers stand among those of their type, by index"),
    "itco-watchdog": Change(_11_3, "q35's own watchdog is named in the XML, and lets the chipset reboot"),
    "raw-image-one-node": Change(_11_3, "a raw image has no format node, and its storage node says read-only"),
    "hostdev-driver-model": Change(_11_3, "<driver model=> of a host device is kept"),
    "attribute-number": Change(_11_3, "27 for invalid values of hostdev's mode and type, and of address types; was 67"),
    "mdev-uuid-number": Change(_12_8, "27 for a mediated device's missing or wrong uuid; was 67 or 1"),
    "video-device": Change(_12_8, "<model device=> of a virtio video"),
    "iommu-after-pci-controllers": Change(_12_8, "intel-iommu and virtio-iommu behind the PCI controllers"),
    "monitor-object": Change(_12_8, "-object monitor-qmp instead of -mon"),
}


class LibvirtRelease(NamedTuple):
    """A release, ordered by its version, with the QEMU that Debian has beside it."""

    version: tuple[int, int]
    qemu: str

    def __str__(self) -> str:
        return ".".join(map(str, self.version))

    def has(self, change: str) -> bool:
        """
        Return True when the release behaves as a row of ``CHANGES`` says.

        Raises:
            KeyError: there is no such row.
        """
        return CHANGES[change].since <= self.version

    @classmethod
    def parse(cls, text: str) -> LibvirtRelease:
        """
        Return the release of a version: 12.8, or 12.8.0.

        Raises:
            ConfigError: its answers are not known.
        """
        found = next((release for release in RELEASES if text in (str(release), f"{release}.0")), None)
        if found is None:
            known = ", ".join(map(str, RELEASES))
            raise ConfigError(f"Nothing is known about libvirt '{shown(text)}' (releases: {known})")
        return found


RELEASES = (
    LibvirtRelease((9, 0), "7.2"),  # Debian 12
    LibvirtRelease(_11_3, "10.0"),  # Debian 13
    LibvirtRelease(_12_8, "11.1"),  # Debian forky
)
DEFAULT_RELEASE = RELEASES[0]
