# SPDX-License-Identifier: LGPL-2.1-or-later
"""The time from a domain's XML to QEMU's command line, by the number of host devices."""

from __future__ import annotations

from typing import Any

import pytest

from pyhostdev import DomainDef
from pyhostdev.qemu import build_command_line
from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities, load

HOSTDEV = """
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <driver name='vfio'/>
      <source><address domain='0x0002' bus='{bus:#04x}' slot='{slot:#04x}' function='0x0'/></source>
    </hostdev>"""

DOMAIN = """<domain type='kvm'>
  <name>bench</name>
  <uuid>7d4cf5a0-31b0-4c8e-9d5d-3f7d0d5c1d01</uuid>
  <memory unit='GiB'>8</memory>
  <vcpu>8</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'><source file='/a.img'/><target dev='vda' bus='virtio'/></disk>
    <interface type='user'><mac address='52:54:00:aa:bb:00'/><model type='virtio'/></interface>{hostdevs}
  </devices>
</domain>"""


def xml(machine: str, count: int) -> str:
    hostdevs = "".join(HOSTDEV.format(bus=1 + number // 32, slot=number % 32) for number in range(count))
    return DOMAIN.format(machine=machine, hostdevs=hostdevs)


def argv_of(text: str, capabilities: QEMUCapabilities) -> list[str]:
    return build_command_line(DomainDef.parse(text), capabilities)


@pytest.mark.parametrize("count", [1, 40, 160], ids="{}-hostdevs".format)
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_xml_to_argv(benchmark: Any, machine: str, count: int) -> None:
    """Parse the XML, fill in defaults and addresses, and build the command line."""
    text, capabilities = xml(machine, count), load("x86_64")
    argv = argv_of(text, capabilities)
    assert count == sum('"driver":"vfio-pci"' in word for word in argv)
    benchmark(argv_of, text, capabilities)


@pytest.mark.parametrize("count", [40], ids="{}-hostdevs".format)
def test_parse(benchmark: Any, count: int) -> None:
    """The parsing alone."""
    text = xml("q35", count)
    assert count == len(DomainDef.parse(text).hostdevs)
    benchmark(DomainDef.parse, text)


def test_load_capabilities(benchmark: Any) -> None:
    """Reading the stored answers of one emulator."""
    assert load("x86_64").has_device("vfio-pci")
    benchmark(load, "x86_64")
