# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guest addresses and the controllers that they need, rule by rule."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyhostdev import ConfigError, ConfigUnsupportedError, DomainDef, PCIDeviceAddress, XMLError
from pyhostdev.qemu import define
from pyhostdev.qemu.qemu_capabilities import load

CARD = "0005:90:01"
BRIDGE = "<controller type='pci' index='1' model='pci-bridge'>{}</controller>"


class Functions:
    """A host with the facts of the test: conventional functions, groups, single functions."""

    def __init__(self, conventional: str = "", groups: dict[str, int] | None = None, single: str = "") -> None:
        self.conventional, self.groups, self.single = conventional.split(), groups or {}, single.split()

    def is_pci_express(self, address: PCIDeviceAddress) -> bool | None:
        return str(address) not in self.conventional

    def iommu_group(self, address: PCIDeviceAddress) -> int | None:
        return self.groups.get(str(address))

    def pci_device(self, address: PCIDeviceAddress) -> SimpleNamespace:
        return SimpleNamespace(is_multifunction=lambda: str(address) not in self.single)


def hostdev(source: str, guest: str = "", attributes: str = "") -> str:
    a = PCIDeviceAddress.parse(source)
    address = ""
    if guest == "unassigned":
        address = "<address type='unassigned'/>"
    elif guest:
        g = PCIDeviceAddress.parse(guest)
        address = f"<address type='pci' bus='{g.bus}' slot='{g.slot}' function='{g.function}'/>"
    return (
        f"<hostdev mode='subsystem' type='pci'{attributes}><source><address domain='{a.domain}' bus='{a.bus}' "
        f"slot='{a.slot}' function='{a.function}'/></source>{address}</hostdev>"
    )


def defined(
    *devices: str, machine: str = "pc", arch: str = "x86_64", host: Any = None, keep_together: bool = False
) -> DomainDef:
    dom = DomainDef.parse(
        "<domain type='qemu'><name>vm</name><memory unit='MiB'>512</memory>"
        f"<os><type arch='{arch}' machine='{machine}'>hvm</type></os>"
        f"<devices>{''.join(devices)}<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
    )
    return define(dom, load(arch), host, keep_together=keep_together)


def guests(dom: DomainDef) -> list[str]:
    found = (hostdev.info.pci for hostdev in dom.pci_hostdevs())
    return ["-" if address is None else str(address.pci)[5:] for address in found]


def models(dom: DomainDef) -> dict[int | None, str | None]:
    return {c.index: c.model for c in dom.controllers if c.is_pci}


def test_i440fx_keeps_room_for_a_bridge_unless_full() -> None:
    """30 devices would leave no slot of bus 0 for a bridge, so a bridge takes the last slot first."""
    sources = [f"0002:{bus:02x}:00.0" for bus in range(1, 32)]
    assert {0: "pci-root"} == models(defined(*map(hostdev, sources[:29])))
    assert {0: "pci-root", 1: "pci-bridge"} == models(defined(*map(hostdev, sources[:30])))


def test_q35_gets_one_spare_port_when_we_choose_the_topology() -> None:
    """There is one spare port for hot-plug, unless the user chose the ports."""
    dom = defined(hostdev(f"{CARD}.0"), machine="q35")
    assert {0: "pcie-root", 1: "pcie-root-port", 2: "pcie-root-port"} == models(dom)
    port = "<controller type='pci' index='1' model='pcie-root-port'/>"
    assert 2 == len(models(defined(port, hostdev(f"{CARD}.0"), machine="q35")))


def test_conventional_function_gets_a_bridge_on_q35() -> None:
    """A function that the host reports as conventional goes behind a bridge, and the bridge into a port."""
    dom = defined(hostdev(f"{CARD}.0"), machine="q35", host=Functions(conventional=f"{CARD}.0"))
    assert {0: "pcie-root", 1: "pcie-root-port", 2: "pcie-to-pci-bridge", 3: "pcie-root-port"} == models(dom)
    assert ["02:01.0"] == guests(dom)


def test_missing_function_counts_as_express() -> None:
    """A function that the host does not have gets an Express port, as in libvirt."""
    assert ["01:00.0"] == guests(defined(hostdev(f"{CARD}.0"), machine="q35", host=None))


def test_root_ports_have_chassis_and_port_of_their_place() -> None:
    """The chassis is the index; the port is computed from slot and function."""
    dom = defined(hostdev(f"{CARD}.0"), machine="q35")
    ports = [c for c in dom.controllers if c.model == "pcie-root-port"]
    assert [(1, 8), (2, 9)] == [(c.chassis, c.port) for c in ports]


def test_skipped_indices_are_filled() -> None:
    """A bridge at index 3 brings those at 1 and 2."""
    dom = defined("<controller type='pci' index='3' model='pci-bridge'/>")
    assert {0: "pci-root", 1: "pci-bridge", 2: "pci-bridge", 3: "pci-bridge"} == models(dom)


def test_s3_unassigned_in_either_spelling_gets_no_address() -> None:
    """S3: neither spelling takes a slot."""
    spelled = [hostdev(f"{CARD}.1", attributes=" assigned='no'"), hostdev(f"{CARD}.2", "unassigned")]
    assert ["-", "-", "00:02.0"] == guests(defined(*spelled, hostdev(f"{CARD}.0")))


def test_multifunction_off_is_the_users_word() -> None:
    """Function 0 is marked multifunction, unless the user forbids it."""
    dom = defined(hostdev(f"{CARD}.0", "00:05.0"), hostdev(f"{CARD}.1", "00:05.1"))
    assert [True, None] == [h.info.pci.multifunction for h in dom.hostdevs if h.info.pci]
    again = DomainDef.parse(dom.format().replace("multifunction='on'", "multifunction='off'"))
    dom = define(again, load("x86_64"))
    assert [False, None] == [h.info.pci.multifunction for h in dom.hostdevs if h.info.pci]


@pytest.mark.parametrize(
    ("devices", "machine", "code"),
    [
        ([hostdev(f"{CARD}.0", "00:05.0"), hostdev(f"{CARD}.1", "00:05.0")], "pc", 27),
        ([hostdev(f"{CARD}.0", "00:01.0")], "pc", 27),
        ([hostdev(f"{CARD}.0", "00:1f.0")], "q35", 27),
        ([BRIDGE.format(""), hostdev(f"{CARD}.0", "01:00.0")], "pc", 27),
        (["<controller type='ide' index='0'><address type='pci' slot='5'/></controller>"], "pc", 1),
        ([BRIDGE.format("<address type='pci' bus='1' slot='1'/>")], "pc", 67),
        (["<controller type='pci' index='1' model='pcie-root-port'/>"], "pc", 1),
    ],
)
def test_impossible_topologies_have_libvirts_number(devices: list[str], machine: str, code: int) -> None:
    """A taken or impossible address is 27, our own failure 1, a bus above itself 67."""
    with pytest.raises(ConfigError) as refusal:
        defined(*devices, machine=machine)
    assert code == refusal.value.libvirt_code


def test_pseries_runs_out_of_target_indices() -> None:
    """More groups than host bridges are an error: two bridges cannot have one number."""
    sources = [f"0002:{bus:02x}:00.0" for bus in range(1, 34)]
    host = Functions(groups={source: number for number, source in enumerate(sources)})
    with pytest.raises(ConfigUnsupportedError, match="target index"):
        defined(*map(hostdev, sources), machine="pseries", arch="ppc64", host=host)


def test_keep_together_puts_a_device_into_one_slot() -> None:
    """The assigned functions of a device keep their numbers in one slot; the rest of the guest is as before."""
    devices = [hostdev(f"{CARD}.{f}") for f in (0, 3)] + [hostdev("0001:01:00.1")]
    assert ["00:02.0", "00:02.3", "00:03.0"] == guests(defined(*devices, keep_together=True))
    assert ["00:02.0", "00:03.0", "00:04.0"] == guests(defined(*devices))


def test_keep_together_fills_function_0() -> None:
    """Without function 0 the guest would see no function: the lowest assigned function becomes function 0."""
    devices = [hostdev(f"{CARD}.3"), hostdev(f"{CARD}.1")]
    assert ["00:02.3", "00:02.0"] == guests(defined(*devices, keep_together=True))


def test_keep_together_shares_a_port_on_q35() -> None:
    """On q35 one root port holds all functions of a device, with one spare as always."""
    devices = [hostdev(f"{CARD}.{f}") for f in range(4)]
    dom = defined(*devices, machine="q35", keep_together=True)
    assert [f"01:00.{f}" for f in range(4)] == guests(dom)
    assert 3 == len(models(dom))
    assert [True, None, None, None] == [h.info.pci.multifunction for h in dom.hostdevs if h.info.pci]


def test_keep_together_shares_a_slot_on_pseries() -> None:
    """On pseries the slot is behind the host bridge of the functions' group."""
    groups = {f"{CARD}.{f}": 7 for f in range(4)}
    devices = [hostdev(f"{CARD}.{f}") for f in (0, 2)]
    dom = defined(*devices, machine="pseries", arch="ppc64", host=Functions(groups=groups), keep_together=True)
    assert ["01:01.0", "01:01.2"] == guests(dom)


def test_keep_together_cannot_join_different_groups_on_pseries() -> None:
    """Functions of different groups stay behind different host bridges."""
    groups = {f"{CARD}.0": 7, f"{CARD}.1": 8}
    devices = [hostdev(f"{CARD}.{f}") for f in (0, 1)]
    dom = defined(*devices, machine="pseries", arch="ppc64", host=Functions(groups=groups), keep_together=True)
    assert ["01:01.0", "02:01.0"] == guests(dom)


def test_keep_together_follows_the_users_slot() -> None:
    """If one function has an address, the others join its slot."""
    devices = [hostdev(f"{CARD}.0", "00:09.0"), hostdev(f"{CARD}.1")]
    assert ["00:09.0", "00:09.1"] == guests(defined(*devices, keep_together=True))


def test_keep_together_leaves_virtual_functions_apart() -> None:
    """VFs are not kept together: they share a slot number without being one device."""
    vfs = ["0000:82:10.0", "0000:82:10.2"]
    dom = defined(*map(hostdev, vfs), host=Functions(single=" ".join(vfs)), keep_together=True)
    assert ["00:02.0", "00:03.0"] == guests(dom)


def test_keep_together_leaves_out_what_the_guest_does_not_get() -> None:
    """Unassigned functions take no function number of the slot."""
    devices = [hostdev(f"{CARD}.0", attributes=" assigned='no'"), hostdev(f"{CARD}.1"), hostdev(f"{CARD}.2")]
    assert ["-", "00:02.0", "00:02.2"] == guests(defined(*devices, keep_together=True))


def test_keep_together_is_stable() -> None:
    """Defining again without the option keeps the addresses."""
    dom = defined(hostdev(f"{CARD}.1"), hostdev(f"{CARD}.2"), machine="q35", keep_together=True)
    assert dom.format() == define(DomainDef.parse(dom.format()), load("x86_64")).format()


CHANNEL = "<channel type='pty'><target type='virtio' name='{}'/>{}</channel>"


def test_virtio_ports_count_from_one_and_consoles_from_zero() -> None:
    """Port 0 is kept for a console, which QEMU places; chosen ports are left alone."""
    chosen = "<address type='virtio-serial' controller='0' bus='0' port='2'/>"
    console = "<console type='pty'><target type='virtio'/></console>"
    dom = defined(CHANNEL.format("a", ""), CHANNEL.format("b", chosen), CHANNEL.format("c", ""), console)
    channels: list[Any] = dom.channels
    assert [1, 2, 3] == [device.info.address.port for device in channels]
    assert None is dom.consoles[0].info.address


def test_two_channels_cannot_have_one_port() -> None:
    """A port in use is an error."""
    chosen = "<address type='virtio-serial' controller='0' bus='0' port='2'/>"
    with pytest.raises(XMLError):
        defined(CHANNEL.format("a", chosen), CHANNEL.format("b", chosen))


def usb_guest(*devices: str) -> DomainDef:
    dom = DomainDef.parse(
        "<domain type='qemu'><name>vm</name><memory unit='MiB'>512</memory>"
        "<os><type arch='x86_64' machine='pc'>hvm</type></os>"
        f"<devices><controller type='usb' model='piix3-uhci'/>{''.join(devices)}</devices></domain>"
    )
    return define(dom, load("x86_64"))


def usb_ports(dom: DomainDef) -> list[str | None]:
    devices: list[Any] = [*dom.hubs, *(i for i in dom.inputs if i.bus == "usb")]
    return [device.info.address.port for device in devices]


def test_a_hub_is_added_when_usb_ports_run_out() -> None:
    """Two ports and three devices: a hub takes the first port, and the remaining devices are behind it."""
    tablets = ["<input type='tablet' bus='usb'/>"] * 3
    assert ["1", "2", "1.1", "1.2"] == usb_ports(usb_guest(*tablets))


def test_usb_port_of_the_user_is_kept() -> None:
    """A chosen port is kept, the others avoid it; a missing port is refused."""
    chosen = "<input type='tablet' bus='usb'><address type='usb' bus='0' port='{}'/></input>"
    assert ["1", "2"] == usb_ports(usb_guest(chosen.format(1), "<input type='tablet' bus='usb'/>"))
    with pytest.raises(XMLError):
        usb_guest(chosen.format(3))


def test_spapr_vio_registers_start_per_kind() -> None:
    """Serial ports and disks' controllers have ranges of their own, and no register is given twice."""
    serial = "<serial type='pty'/>"
    scsi = "<controller type='scsi' index='{}' model='ibmvscsi'/>"
    dom = defined(serial, serial, scsi.format(0), scsi.format(1), machine="pseries", arch="ppc64")
    devices: list[Any] = [*dom.serials, *(c for c in dom.controllers if c.type == "scsi")]
    assert [0x30000000, 0x30001000, 0x2000, 0x3000] == [device.info.address.reg for device in devices]
