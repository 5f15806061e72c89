# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices without a PCI address, and small additions of newer releases."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from pyhostdev import ConfigUnsupportedError, DomainDef, XMLError
from pyhostdev.conf.bus_address_conf import VirtioMMIOAddress
from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_capabilities import load

R9_0, R11_3, R12_8 = RELEASES
DOMAIN = """
<domain type='qemu'><name>d</name><memory unit='MiB'>1024</memory>{head}
  <os><type arch='{arch}' machine='{machine}'>hvm</type></os><devices>{devices}</devices></domain>
"""
PSTORE = "<pstore backend='acpi-erst'><path>/erst</path><size unit='KiB'>8</size></pstore>"
MMIO = "<address type='virtio-mmio'/>"


def domain(devices: str = "", head: str = "", arch: str = "x86_64", machine: str = "q35") -> DomainDef:
    return DomainDef.parse(DOMAIN.format(devices=devices, head=head, arch=arch, machine=machine))


def argv(dom: DomainDef, release: LibvirtRelease = R12_8) -> list[str]:
    return build_command_line(dom, load(str(dom.os.arch), release.qemu), release=release)


def devices(args: list[str]) -> list[str]:
    return [json.loads(word)["driver"] for option, word in pairwise(args) if option == "-device"]


@pytest.mark.parametrize("release", [R11_3, R12_8], ids=str)
def test_pstore(release: LibvirtRelease) -> None:
    """The memory is a shared file, and the device is on a conventional PCI bus."""
    args = argv(domain(PSTORE, "<features><acpi/></features>"), release)
    backend = {"qom-type": "memory-backend-file", "id": "mempstore0", "mem-path": "/erst", "size": 8192, "share": True}
    where = args.index(json.dumps(backend, separators=(",", ":")))
    device = json.loads(args[where + 2])
    assert ("acpi-erst", "pstore0", "mempstore0") == (device["driver"], device["id"], device["memdev"])


def test_pstore_of_an_older_release() -> None:
    """9.0 does not know the element, and drops it."""
    dom = domain(PSTORE)
    assert "pstore" not in define(dom, load("x86_64", R9_0.qemu), release=R9_0).format()
    assert "acpi-erst" not in devices(argv(dom, R9_0))


def test_pstore_that_cannot_be_built() -> None:
    """A missing size or another architecture is refused."""
    with pytest.raises(XMLError, match="needs a <size>"):
        argv(domain("<pstore backend='acpi-erst'><path>/erst</path></pstore>"))
    with pytest.raises(ConfigUnsupportedError, match="in this machine"):
        argv(domain(PSTORE, arch="ppc64", machine="pseries"))
    with pytest.raises(XMLError):
        define(domain("<pstore backend='paper'/>"), load("x86_64"), release=R12_8)


@pytest.mark.parametrize(("size", "mib"), [("<tb-cache unit='KiB'>102400", 100), ("<tb-cache unit='MiB'>7", 7)])
def test_translation_cache(size: str, mib: int) -> None:
    """The cache of translated code has its size in MiB; it is ignored with KVM."""
    args = argv(domain(head=f"<features><tcg>{size}</tb-cache></tcg></features>"))
    assert f"tcg,tb-size={mib}" == args[args.index("-accel") + 1]


def test_one_device_on_mmio_brings_the_others() -> None:
    """On ARM's virt, all virtio devices without an address follow the first one that is on virtio-mmio."""
    disk = "<disk type='file'><source file='/d'/><target dev='vda' bus='virtio'/>{}</disk>"
    rest = (
        "<interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>"
        "<memballoon model='virtio'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
        "<channel type='unix'><target type='virtio' name='a'/></channel>"
    )
    dom = define(domain(disk.format(MMIO) + rest, arch="aarch64", machine="virt"), load("aarch64"), release=R12_8)
    assert 1 == sum(controller.is_pci for controller in dom.controllers)
    found = [info.address for _, info in dom.device_infos() if isinstance(info.address, VirtioMMIOAddress)]
    assert 5 == len(found)
    kinds = ["serial", "blk", "net", "balloon", "rng"]
    expected = [f"virtio-{kind}-device" for kind in kinds]
    assert expected == [name for name in devices(argv(dom)) if name.endswith("-device")]
    other = define(domain(disk.format("") + rest, arch="aarch64", machine="virt"), load("aarch64"), release=R12_8)
    assert not any(isinstance(info.address, VirtioMMIOAddress) for _, info in other.device_infos())


def test_controller_of_a_machine_without_pci() -> None:
    """11.3 accepts a PCI controller there, and places nothing on it; 12.8 refuses it."""
    words = "<controller type='pci' index='0' model='pci-root'/><controller type='usb'/><memballoon model='none'/>"
    dom = domain(words, arch="aarch64", machine="realview-pbx-a9")
    defined = define(dom, load("aarch64", R11_3.qemu), release=R11_3)
    assert [None, None] == [controller.info.address for controller in defined.controllers]
    with pytest.raises(ConfigUnsupportedError):
        define(dom, load("aarch64", R12_8.qemu), release=R12_8)
