# SPDX-License-Identifier: LGPL-2.1-or-later
"""Host devices: rows S1 and S2 of the contract, sources, and the guest's side."""

from __future__ import annotations

from typing import Any

import pytest

from pyhostdev.conf.address_conf import PCIGuestAddress, UnassignedAddress
from pyhostdev.conf.device_conf import BOOTABLE
from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.conf.hostdev_conf import DomainHostdevDef, MdevSource, SCSISource, USBSource
from pyhostdev.errors import ConfigError, ConfigUnsupportedError, SysfsError, XMLError
from pyhostdev.util.pciaddress import PCIDeviceAddress

UUID = "53764d0e-85a0-42b4-af5c-2046b460b1dc"
SOURCE = "<source><address domain='0x0001' bus='0x09' slot='0x00' function='{}'/></source>"
SCSI = "<source><adapter name='s'/><address bus='0' target='0' unit='0'/></source>"
FUNCTION_0 = PCIDeviceAddress(1, 9, 0, 0)


def hostdev(attributes: str = "", inner: str = "", function: int = 0) -> str:
    return f"<hostdev type='pci' {attributes}>\n{SOURCE.format(function)}\n{inner}</hostdev>"


def domain(*devices: str) -> DomainDef:
    return DomainDef.parse(f"<domain type='kvm'><name>d</name>\n<devices>\n{''.join(devices)}</devices></domain>")


class StubFunction:
    def __init__(self, multifunction: bool | Exception | None) -> None:
        self.multifunction = multifunction

    def is_multifunction(self) -> bool | None:
        if isinstance(self.multifunction, Exception):
            raise self.multifunction
        return self.multifunction


class StubHost:
    """A host on which all functions are equal."""

    def __init__(self, multifunction: bool | Exception | None, *, present: bool = True) -> None:
        self.function = StubFunction(multifunction) if present else None

    def pci_device(self, address: Any) -> Any:
        return self.function


def stub_host(multifunction: bool | Exception | None, *, present: bool = True) -> Any:
    """Return a host with this answer."""
    return StubHost(multifunction, present=present)


@pytest.mark.parametrize(
    ("attributes", "assigned", "is_assigned"),
    [("", None, True), ("assigned='yes'", True, True), ("assigned='no'", False, False)],
)
def test_s1_assigned_has_three_states_and_is_never_invented(
    attributes: str, assigned: bool | None, is_assigned: bool
) -> None:
    """Absent means yes and stays absent when printed; yes and no are printed as written."""
    device = DomainHostdevDef.parse(hostdev(attributes))
    assert (assigned, is_assigned) == (device.assigned, device.is_assigned)
    assert ("assigned" in device.format()) is (assigned is not None)
    assert device == DomainHostdevDef.parse(device.format())


@pytest.mark.parametrize("value", ["", "maybe", "on", "true", "1", "YES", " no"])
def test_s1_another_value_of_assigned_is_a_parse_error(value: str) -> None:
    """Only yes and no are values."""
    with pytest.raises(XMLError, match="assigned") as error:
        DomainHostdevDef.parse(hostdev(f"assigned='{value}'"))
    assert (27, 1) == (error.value.libvirt_code, error.value.line)


@pytest.mark.parametrize(
    "device",
    [
        "<hostdev type='usb' assigned='{}'><source><address bus='1' device='2'/></source></hostdev>",
        "<hostdev type='scsi' assigned='{}'>{SCSI}</hostdev>".replace("{SCSI}", SCSI),
        f"<hostdev type='mdev' model='vfio-pci' assigned='{{}}'><source><address uuid='{UUID}'/></source></hostdev>",
        "<hostdev mode='capabilities' type='storage' assigned='{}'><source><block>/x</block></source></hostdev>",
        "<interface type='hostdev' assigned='{}'><source><address type='pci' bus='1'/></source></interface>",
        "<interface type='user' assigned='{}'/>",
        "<disk assigned='{}'><target dev='vda'/></disk>",
        "<controller type='pci' model='pci-root' assigned='{}'/>",
        "<thing assigned='{}'/>",
        "<hostdev type='pci'><source assigned='{}'><address bus='1'/></source></hostdev>",
        "<hostdev type='pci'><source><address bus='1' assigned='{}'/></source></hostdev>",
        "<hostdev type='pci'><driver assigned='{}'/><source><address bus='1'/></source></hostdev>",
    ],
)
@pytest.mark.parametrize("value", ["yes", "no"])
def test_s1_assigned_elsewhere_is_a_parse_error(device: str, value: str) -> None:
    """assigned= is only valid on PCI host devices: ignored elsewhere, it would assign a device by mistake."""
    with pytest.raises(XMLError, match="assigned") as error:
        domain(device.format(value))
    assert 3 == error.value.line


def test_all_misplaced_attributes_are_reported_and_metadata_is_not_read() -> None:
    """Every misplaced attribute gives an error with its line; metadata belongs to other programs."""
    metadata = "<name>n</name><metadata><their:card xmlns:their='urn:their' assigned='no'/></metadata>"
    text = f"<domain type='kvm' assigned='no'>{metadata}<devices>\n<disk assigned='no'/>\n</devices></domain>"
    with pytest.raises(XMLError) as error:
        DomainDef.parse(text)
    assert [(found.line, str(found)) for found in (error.value, *error.value.others)] == [
        (1, "<domain> cannot have 'assigned'"),
        (2, "<disk> cannot have 'assigned'"),
    ]


def test_s1_a_single_function_device_cannot_be_kept_from_the_guest() -> None:
    """validate(host) names the device with reason not-multifunction; without a host it is accepted."""
    dom = domain(hostdev("assigned='no'"))
    dom.validate()
    domain(hostdev("assigned='yes'")).validate(stub_host(False))  # says what holds anyway
    with pytest.raises(ConfigError) as error:
        dom.validate(stub_host(False))
    assert ("not-multifunction", FUNCTION_0, 3) == (error.value.reason, error.value.address, error.value.line)


@pytest.mark.parametrize(
    "host",
    [
        stub_host(True),
        stub_host(None),
        stub_host(None, present=False),
        stub_host(SysfsError(5, "/sys/x", "read")),
    ],
)
def test_s1_a_device_that_is_multifunction_unknown_missing_or_unreadable_passes(host: Any) -> None:
    """A stored definition must not become invalid because a card was pulled."""
    domain(hostdev("assigned='no'")).validate(host)


def test_s1_single_function_device_without_the_attribute_is_valid() -> None:
    """The rule concerns the attribute; libvirt's spelling is valid for any device."""
    domain(hostdev(), hostdev(inner="<address type='unassigned'/>", function=1)).validate(stub_host(False))


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("address", "<address type='pci' slot='4'/>"),
        ("address", "<address type='pci'/>"),
        ("address", "<address type='unassigned'/>"),
        ("alias", "<alias name='ua-x'/>"),
        ("alias", "<alias name='hostdev0'/>"),
        ("boot", "<boot order='1'/>"),
        ("rom", "<rom bar='off'/>"),
        ("rom", "<rom/>"),
        ("acpi", "<acpi index='7'/>"),
        ("teaming", "<teaming type='transient' persistent='ua-n'/>"),
    ],
)
def test_s2_a_not_assigned_device_cannot_have_what_needs_the_guest(name: str, element: str) -> None:
    """Each element is refused by name, with its line."""
    with pytest.raises(XMLError, match=f"<{name}>") as error:
        DomainHostdevDef.parse(hostdev("assigned='no'", element))
    assert (27, 1) == (error.value.libvirt_code, error.value.line)
    DomainHostdevDef.parse(hostdev("assigned='yes'" if "unassigned" not in element else "", element))


def test_s2_unassigned_contradicts_assigned_yes() -> None:
    """The two spellings cannot contradict each other."""
    with pytest.raises(XMLError, match="unassigned"):
        DomainHostdevDef.parse(hostdev("assigned='yes'", "<address type='unassigned'/>"))


def test_s2_holds_for_definitions_made_by_hand() -> None:
    """validate refuses what parse would have refused."""
    dom = domain()
    dom.hostdevs = [DomainHostdevDef.for_pci(FUNCTION_0, assigned=False)]
    dom.validate()
    dom.hostdevs[0].info.address = PCIGuestAddress(slot=4)
    with pytest.raises(XMLError, match="<address>"):
        dom.validate()


@pytest.mark.parametrize(
    ("device", "spelling"),
    [
        (hostdev(), None),
        (hostdev("assigned='yes'"), "assigned"),
        (hostdev("assigned='no'"), "assigned"),
        (hostdev(inner="<address type='unassigned'/>"), "unassigned"),
    ],
)
def test_a_hostdev_knows_its_spelling(device: str, spelling: str | None) -> None:
    """The user's spelling is kept."""
    assert spelling == DomainHostdevDef.parse(device).spelling


def test_guest_visible_hostdevs_leaves_out_both_spellings() -> None:
    """Both spellings are left out; order and other types are kept."""
    dom = domain(
        hostdev("assigned='yes'"),
        hostdev("assigned='no'", function=1),
        hostdev(inner="<address type='unassigned'/>", function=2),
        hostdev(function=3),
        "<interface type='hostdev'><source><address type='pci' bus='1'/></source></interface>",
        "<hostdev type='usb'><source><address bus='1' device='2'/></source></hostdev>",
    )
    seen = dom.guest_visible_hostdevs()
    assert ["pci", "pci", "pci", "usb"] == [device.type for device in seen]
    assert [0x01, 0x09, 0x09] == [device.pci_address.bus for device in seen[:3]]
    assert [0, 0, 1, 2, 3] == [device.pci_address.function for device in dom.pci_hostdevs()]


def test_an_interface_that_is_a_hostdev_shares_its_guest_side() -> None:
    """Alias and address of the interface are those of the host device behind it."""
    dom = domain("<interface type='hostdev' managed='yes'><source><address type='pci' bus='1'/></source></interface>")
    net = dom.interfaces[0]
    net.info.address = PCIGuestAddress(slot=4)
    assert dom.pci_hostdevs()[0].info.pci.slot == 4
    assert (True, "<interface") == (net.hostdev.managed, dom.interfaces[0].format()[:10])
    net.managed = False
    assert not net.hostdev.managed, "the host device is the interface as it is now"
    net.managed = True
    copy = dom.copy()
    copy.interfaces[0].info.address = None
    assert None is copy.pci_hostdevs()[0].info.pci
    assert 4 == dom.pci_hostdevs()[0].info.pci.slot


def test_for_pci_is_what_the_xml_would_say() -> None:
    """The constructor and the parser give equal definitions."""
    made = DomainHostdevDef.for_pci(PCIDeviceAddress(0x10000, 9, 0, 3), managed=True, unassigned=True)
    text = """<hostdev mode='subsystem' type='pci' managed='yes'>
  <source>
    <address domain='0x10000' bus='0x09' slot='0x00' function='0x3'/>
  </source>
  <address type='unassigned'/>
</hostdev>
"""
    assert (text, made) == (made.format(), DomainHostdevDef.parse(text))


@pytest.mark.parametrize(
    ("type_", "model", "source", "kind"),
    [
        ("usb", "", "<vendor id='0x1'/><product id='0x2'/>", USBSource),
        ("scsi", "", "<adapter name='scsi_host0'/><address bus='0' target='0' unit='0'/>", SCSISource),
        ("mdev", "model='vfio-pci'", "<address uuid='53764d0e-85a0-42b4-af5c-2046b460b1dc'/>", MdevSource),
    ],
)
def test_other_hostdevs_have_sources_of_their_own(type_: str, model: str, source: str, kind: type) -> None:
    """The type of a hostdev determines the class of its source."""
    device = DomainHostdevDef.parse(f"<hostdev type='{type_}' {model}><source>{source}</source></hostdev>")
    assert (kind, False) == (type(device.source), device.is_pci)
    assert device == DomainHostdevDef.parse(device.format())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("<hostdev type='pci'/>", 27),
        ("<hostdev><source/></hostdev>", 27),
        ("<hostdev type='PCI'><source/></hostdev>", 67),
        ("<hostdev type='pci' mode='Subsystem'><source/></hostdev>", 67),
        ("<hostdev type='pci' model='vfio-pci'><source/></hostdev>", 27),
        ("<hostdev type='mdev'><source><address uuid='53764d0e-85a0-42b4-af5c-2046b460b1dc'/></source></hostdev>", 27),
        ("<hostdev type='mdev' model='vfio-pci'><source><address/></source></hostdev>", 67),
        ("<hostdev type='pci' rawio='yes'><source/></hostdev>", 27),
        ("<hostdev type='pci'><source/><address type='bogus'/></hostdev>", 67),
        ("<hostdev type='pci'><source/><address/></hostdev>", 1),
        ("<hostdev type='pci'><source><address bus='0x100'/></source></hostdev>", 27),
        ("<hostdev type='pci'><source/><address type='pci' function='8' bus='1'/></hostdev>", 27),
        ("<hostdev type='pci'><driver name='foo'/><source/></hostdev>", 27),
    ],
)
def test_what_libvirt_does_not_parse_has_its_error_number(text: str, code: int) -> None:
    """The wording is ours, the number is libvirt's."""
    with pytest.raises(ConfigError) as error:
        DomainHostdevDef.parse(text)
    assert code == error.value.libvirt_code


def test_a_wrong_kind_of_guest_address_is_for_validation() -> None:
    """A PCI host device at a USB address parses, and is refused with libvirt's internal error."""
    dom = domain(hostdev(inner="<address type='usb' bus='0' port='1'/>"))
    with pytest.raises(ConfigUnsupportedError) as error:
        dom.validate()
    assert 1 == error.value.libvirt_code


def test_aliases_that_are_not_the_users_are_dropped() -> None:
    """Only ua- names with safe characters stay, as in libvirt's inactive definitions."""
    names = ["ua-one", "hostdev0", "ua-a b", "ua-"]
    parsed = [DomainHostdevDef.parse(hostdev(inner=f"<alias name='{name}'/>")).info.alias for name in names]
    assert ["ua-one", None, None, "ua-"] == parsed


def test_unassigned_is_an_address_without_numbers() -> None:
    """It parses and prints alone."""
    device = DomainHostdevDef.parse(hostdev(inner="<address type='unassigned'/>"))
    assert (UnassignedAddress(), False) == (device.info.address, device.info.needs_address)


@pytest.mark.parametrize("tag", BOOTABLE)
@pytest.mark.parametrize("more", ["", "<alias name='ua-x'/>"])
def test_boot_without_order_is_refused(tag: str, more: str) -> None:
    """On each kind of device of which libvirt reads <boot>, with and without another part of what devices share."""
    with pytest.raises(ConfigError) as caught:
        domain(f"<{tag} type='pci'><source/><boot/>{more}</{tag}>")
    assert "A <boot> has no order" in [error.message for error in (caught.value, *caught.value.others)]
