# SPDX-License-Identifier: LGPL-2.1-or-later
"""What QEMU and its machines cannot do is refused when a domain is defined, with libvirt's number."""

from __future__ import annotations

import pytest

from pyhostdev import ConfigError, DomainDef
from pyhostdev.conf.domain_validate import validate_all
from pyhostdev.qemu import define
from pyhostdev.qemu.qemu_capabilities import load
from pyhostdev.qemu.qemu_validate import QEMURules

PORT = "<controller type='pci' index='1' model='pcie-root-port'>{}</controller>"
BRIDGE = "<controller type='pci' index='1' model='pci-bridge'>{}</controller>"
MDEV = """<hostdev mode='subsystem' type='mdev' model='{}'{}><source>
  <address uuid='53764d0e-85a0-42b4-af5c-2046b460b1dc'/></source></hostdev>"""
FILTERED = """<hostdev mode='subsystem' type='pci'><source writeFiltering='no'>
  <address bus='1'/></source></hostdev>"""
KVMCLOCK = "<clock offset='utc'><timer name='kvmclock' present='yes'/></clock>"
USB_DISK_ON_PCI = """<disk type='file'><source file='/a'/><target dev='sda' bus='usb'/>
  <address type='pci' slot='9'/></disk>"""
USB_OFF = "<controller type='usb' model='none'/>"


def parse(
    devices: str = "", *, machine: str = "q35", arch: str = "x86_64", head: str = "", os_more: str = ""
) -> DomainDef:
    return DomainDef.parse(
        f"<domain type='qemu'><name>vm</name><memory unit='MiB'>128</memory>{head}"
        f"<os><type arch='{arch}' machine='{machine}'>hvm</type>{os_more}</os><devices>{devices}</devices></domain>"
    )


FLASH = "<loader readonly='yes' type='pflash'>/fw</loader><nvram>/vars</nvram>"

REFUSED = {
    "expander on i440fx": (parse("<controller type='pci' index='1' model='pcie-expander-bus'/>", machine="pc"), 67),
    "port of another device": (parse(PORT.format("<model name='i82801b11-bridge'/>")), 67),
    "port with a bus number": (parse(PORT.format("<target busNr='5'/>")), 67),
    "bridge with a port": (parse(BRIDGE.format("<target port='1'/>"), machine="pc"), 67),
    "bridge without hotplug": (parse(BRIDGE.format("<target hotplug='off'/>"), machine="pc"), 67),
    "root without hotplug": (
        parse("<controller type='pci' index='0' model='pcie-root'><target hotplug='off'/></controller>"),
        67,
    ),
    "intel iommu on i440fx": (parse("<iommu model='intel'/>", machine="pc"), 67),
    "smmu on x86": (parse("<iommu model='smmuv3'/>"), 67),
    "flash without acpi": (parse(os_more=FLASH), 67),
    "acpi without flash on arm": (parse(arch="aarch64", machine="virt", head="<features><acpi/></features>"), 67),
    "pseries feature": (parse(head="<features><htm state='on'/></features>"), 67),
    "tseg on i440fx": (parse(machine="pc", head="<features><smm><tseg>16</tseg></smm></features>"), 67),
    "gic on x86": (parse(head="<features><gic version='3'/></features>"), 67),
    "kvmclock on pseries": (
        parse(arch="ppc64", machine="pseries", head=KVMCLOCK),
        67,
    ),
    "sleep states on pseries": (
        parse(arch="ppc64", machine="pseries", head="<pm><suspend-to-mem enabled='yes'/></pm>"),
        67,
    ),
    "spice channel without spice": (
        parse("<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>"),
        67,
    ),
    "display without graphics": (parse(MDEV.format("vfio-pci", " display='on'")), 67),
    "ccw device on x86": (parse(MDEV.format("vfio-ccw", "")), 67),
    "write filtering": (parse(FILTERED), 67),
    "second ide controller": (parse("<controller type='ide' index='1'/>", machine="pc"), 67),
    "ide on q35": (parse("<controller type='ide' index='0'/>"), 67),
    "parallel on pseries": (parse("<parallel type='null'/>", arch="ppc64", machine="pseries"), 67),
    "xen balloon": (parse("<memballoon model='xen'/>"), 67),
    "too many usb ports": (parse("<controller type='usb' model='nec-xhci' ports='16'/>"), 67),
    "usb hub without usb": (parse(f"{USB_OFF}<hub type='usb'/>"), 67),
    "usb disk on pci": (
        parse(USB_DISK_ON_PCI),
        1,
    ),
    "unknown machine": (parse(machine="pc-i440fx-0.1"), 67),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_domain_is_refused(case: str) -> None:
    """Each rule has its number, and a line where the device has one."""
    dom, code = REFUSED[case]
    arch = str(dom.os.arch) if dom.os is not None else ""
    with pytest.raises(ConfigError) as refusal:
        define(dom, load(arch))
    assert code == refusal.value.libvirt_code


ACCEPTED = {
    "expander on q35": parse("<controller type='pci' index='1' model='pcie-expander-bus'/>"),
    "older port": parse(PORT.format("<model name='ioh3420'/>")),
    "port without hotplug": parse(PORT.format("<target hotplug='off'/>")),
    "root without hotplug": parse(
        "<controller type='pci' index='0' model='pci-root'><target hotplug='off'/></controller>", machine="pc"
    ),
    "flash with acpi": parse(os_more=FLASH, head="<features><acpi/></features>"),
    "smm on q35": parse(head="<features><smm state='on'/></features>"),
    "display off without graphics": parse(MDEV.format("vfio-pci", " display='off'")),
    "usb off": parse(USB_OFF),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_possible_domain_is_accepted(case: str) -> None:
    """The neighbours of what is refused are not."""
    dom = ACCEPTED[case]
    assert define(dom, load("x86_64")).name == dom.name


def test_all_errors_are_found_at_once() -> None:
    """Validating a domain reports the general rules' errors and QEMU's."""
    dom = parse("<iommu model='smmuv3'/><memballoon model='xen'/>", machine="pc-i440fx-7.2")
    errors = validate_all(dom, hypervisor=QEMURules(load("x86_64")))
    assert 2 <= len(errors)
