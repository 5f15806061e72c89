# SPDX-License-Identifier: LGPL-2.1-or-later
"""A pinned device is refused if another one is at its address, is found at its new address, and declared there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pyhostdev import DomainDef, Host, HostdevManager, PCIDeviceAddress, RefusedError, SysfsError, XMLError
from pyhostdev.hypervisor.hostdev_pins import repointed
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util import pciidentity

PORTS = """driver pcieport class:0604 builtin
driver ixgbe 8086:1563
driver ixgbevf 8086:1565
driver vfio-pci
0000:00:00.0 8086:2020 060000 group=0
0000:00:02.0 8086:2030 060400 driver=pcieport group=1 bridge={0}-{0} express=root-port acs
0000:00:03.0 8086:2032 060400 driver=pcieport group=2 bridge={1}-{1} express=root-port acs
0000:{0}:00.0 8086:1563 020000 driver=ixgbe group=3 express=endpoint flr acs net=a0 multifunction
0000:{0}:00.1 8086:1563 020000 driver=ixgbe group=4 express=endpoint flr acs net=a1 multifunction
0000:{1}:00.0 8086:1563 020000 driver=ixgbe group=5 express=endpoint flr acs net=b0 {2}
0000:{1}:10.0 8086:1565 020000 driver=ixgbevf group=6 physfn=0000:{1}:00.0 express=endpoint flr
0000:{1}:10.2 8086:1565 020000 driver=ixgbevf group=7 physfn=0000:{1}:00.0 express=endpoint flr
"""
SRIOV = "sriov=4 vf-device=1565 vf-offset=128 vf-stride=2"
EXTRA = "0000:00:01.0 8086:2034 060400 driver=pcieport group=9 bridge=02-02 express=root-port acs\n"
OTHER_SERIAL = "52-54-00-ff-ff-00-00-02"
SERIAL = "52-54-00-ff-ff-00-00-01"


def guest(*addresses: str) -> DomainDef:
    """Return a domain that declares functions of the host."""
    hostdevs = ""
    for text in addresses:
        a = PCIDeviceAddress.parse(text)
        where = f"domain='{a.domain}' bus='0x{a.bus:02x}' slot='0x{a.slot:02x}' function='{a.function}'"
        hostdevs += f"<hostdev mode='subsystem' type='pci' managed='yes'><source><address {where}/></source></hostdev>"
    return DomainDef.parse(
        "<domain type='qemu'><name>d</name><metadata><x:a xmlns:x='urn:x'>kept</x:a></metadata><memory>1048576</memory>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{hostdevs}</devices></domain>"
    )


def host(directory: Path, first: str, second: str, extra: str = "") -> FakeHost:
    """Return a host whose two cards are on these buses."""
    directory.mkdir(exist_ok=True)
    tree = directory / "host.tree"
    tree.write_text(PORTS.format(first, second, SRIOV) + extra)
    return FakeHost.from_tree(tree, directory / "root")


@pytest.fixture
def before(tmp_path: Path) -> FakeHost:
    """The host when its devices were pinned."""
    return host(tmp_path / "before", "02", "03")


@pytest.fixture
def after(tmp_path: Path) -> FakeHost:
    """The same host with one more root port, which takes bus 02."""
    return host(tmp_path / "after", "03", "04", EXTRA)


def put(fake: FakeHost, address: str, **attributes: str) -> None:
    """Write attributes that the simulated kernel lacks."""
    top = Path(fake.root.pci_device(address))
    for name, text in attributes.items():
        path = top / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def reasons(fake: FakeHost, dom: DomainDef) -> list[tuple[str, str]]:
    """Return what a plan says about pins."""
    plan = Host(fake.root).plan(dom)
    return [(f.reason, f.message) for f in plan.findings if "identity" in f.reason]


def pinned(fake: FakeHost, *addresses: str) -> DomainDef:
    """Return a pinned domain, written and read again."""
    dom = guest(*addresses)
    return DomainDef.parse(dom.with_hostdev_pins(Host(fake.root).read_pins(dom)).format())


def test_a_pin_survives_the_xml(before: FakeHost) -> None:
    """All facts are read back unchanged; other metadata is kept; pinning again replaces the pins."""
    put(
        before,
        "0000:02:00.0",
        serial_number=SERIAL,
        net__a0__address="52:54:00:aa:bb:cc",
        net__a0__addr_assign_type="0",
    )
    addresses = ("0000:02:00.0", "0000:03:10.2")
    dom = pinned(before, *addresses)
    pins = Host(before.root).read_pins(dom)
    assert [pin._replace(identity=pin.identity._replace(unseen=(), pf=None)) for pin in pins] == [
        pin._replace(identity=pin.identity._replace(pf=None)) for pin in dom.hostdev_pins()
    ]
    card, vf = (pin.identity for pin in dom.hostdev_pins())
    assert (SERIAL, "52:54:00:aa:bb:cc", "0000:00/02.0/00.0", 0) == (card.serial, card.mac, card.path, card.function)
    assert (1, None, "0000:00/03.0/00.0") == (vf.vf, vf.path, vf.pf and vf.pf.path)
    assert "<x:a xmlns:x=" in str(dom.metadata)
    assert dom.metadata == dom.with_hostdev_pins(pins).metadata
    assert [] == dom.with_hostdev_pins([]).hostdev_pins()


def test_the_same_host_has_nothing_to_say(before: FakeHost) -> None:
    """A pin of the present device causes no finding."""
    assert [] == reasons(before, pinned(before, "0000:02:00.0", "0000:02:00.1", "0000:03:10.2"))


def test_a_renumbered_host_is_refused_found_and_repointed(before: FakeHost, after: FakeHost) -> None:
    """A similar card is at the address; the pinned ones are found by their path, and declared there."""
    dom = pinned(before, "0000:03:00.0")
    (refusal,) = reasons(after, dom)
    assert "changed-identity" == refusal[0]
    assert "place is 0000:00/02.0/00.0, not 0000:00/03.0/00.0" in refusal[1]
    found = Host(after.root).find_pinned(dom)
    assert {"0000:03:00.0": ["0000:04:00.0"]} == {str(a): [*map(str, places)] for a, places in found.items()}
    again = DomainDef.parse(repointed(dom, found).format())
    assert ["0000:04:00.0"] == [str(hostdev.pci_address) for hostdev in again.pci_hostdevs()]
    assert [] == reasons(after, again)


def test_prepare_compares_again(before: FakeHost) -> None:
    """The manager compares the pins again: it refuses a replaced device, and touches nothing."""
    dom = pinned(before, "0000:02:00.1")
    plan = Host(before.root).plan(dom)
    put(before, "0000:02:00.1", revision="0x07")
    untouched = before.snapshot()
    with pytest.raises(RefusedError) as refusal:
        HostdevManager(Host(before.root, writer=before.kernel)).prepare(plan)
    assert ["changed-identity"] == [finding.reason for finding in refusal.value.findings]
    assert untouched == before.snapshot()


def test_a_proven_card_may_have_another_place(before: FakeHost, after: FakeHost) -> None:
    """The serial number identifies the card at any path; with another serial number it is another card."""
    put(before, "0000:03:00.0", serial_number=SERIAL)
    dom = pinned(before, "0000:03:00.0")
    put(after, "0000:03:00.0", serial_number=SERIAL)
    assert [] == reasons(after, dom)
    put(after, "0000:03:00.0", serial_number=OTHER_SERIAL)
    put(after, "0000:04:00.0", serial_number=SERIAL)
    ((_, message),) = reasons(after, dom)
    assert f"serial number is {OTHER_SERIAL}, not {SERIAL}" in message


def test_functions_of_a_card_are_not_mixed_up(before: FakeHost) -> None:
    """The functions of one card have one serial number: the function number counts as well."""
    for function in (0, 1):
        put(before, f"0000:02:00.{function}", serial_number=SERIAL)
    dom = pinned(before, "0000:02:00.0").with_host_addresses(
        {PCIDeviceAddress.parse("0000:02:00.0"): PCIDeviceAddress.parse("0000:02:00.1")}
    )
    ((reason, message),) = reasons(before, dom)
    assert ("changed-identity", True) == (reason, "function number is 1, not 0" in message)
    assert [["0000:02:00.0"]] == [[*map(str, places)] for places in Host(before.root).find_pinned(dom).values()]


def test_a_vf_is_pinned_by_its_pf_and_number(before: FakeHost, after: FakeHost) -> None:
    """A VF's address follows from its PF's: another number, or another PF, is another VF."""
    dom = pinned(before, "0000:03:10.2")
    assert ["0000:04:10.2"] == [str(place) for places in Host(after.root).find_pinned(dom).values() for place in places]
    moved = dom.with_host_addresses({dom.pci_hostdevs()[0].pci_address: PCIDeviceAddress.parse("0000:03:10.0")})
    ((_, message),) = reasons(before, moved)
    assert "VF number is 0, not 1" in message


def test_what_cannot_be_seen_is_a_note(before: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root can read the serial number: without it, the rest is compared, and a note names what was not."""
    put(before, "0000:02:00.0", serial_number=SERIAL)
    dom = pinned(before, "0000:02:00.0")
    real = pciidentity.read_attribute

    def denied(root: object, path: str) -> str | None:
        if path.endswith("serial_number"):
            raise SysfsError(errno.EACCES, path, "read an attribute")
        return real(root, path)  # type: ignore[arg-type]

    monkeypatch.setattr(pciidentity, "read_attribute", denied)
    ((reason, message),) = reasons(before, dom)
    assert ("identity-unchecked", True) == (reason, message.startswith("The serial number of device 0000:02:00.0"))
    assert Host(before.root).plan(dom).ok
    assert ("serial",) == Host(before.root).read_pins(dom)[0].identity.unseen


def test_a_pin_of_an_undeclared_device_is_a_note(before: FakeHost) -> None:
    """A pin whose device is not declared is reported: an edited source would lose its protection silently."""
    dom = pinned(before, "0000:02:00.0")
    dom.hostdevs[0].source_def.function = 1  # type: ignore[union-attr]
    assert ["identity-unchecked"] == [reason for reason, _ in reasons(before, dom)]


def test_repointing_refuses_what_is_unclear(before: FakeHost) -> None:
    """Repointing refuses a device that is absent, in two places, or already declared."""
    dom = pinned(before, "0000:02:00.0")
    (address,) = Host(before.root).find_pinned(dom)
    other = PCIDeviceAddress.parse("0000:02:00.1")
    for places, words in (([], "is not on this host"), ([address, other], "could be any of")):
        with pytest.raises(RefusedError, match=words):
            repointed(dom, {address: places})
    with pytest.raises(RefusedError, match="more than once"):
        repointed(pinned(before, "0000:02:00.0", "0000:02:00.1"), {address: [other]})


@pytest.mark.parametrize(
    ("pin", "words"),
    [
        ("<p:hostdev/>", "has no address"),
        ("<p:hostdev address='x'/>", "is invalid"),
        ("<p:hostdev address='01:00.0' vendr='1'/>", "unknown attribute 'vendr'"),
        ("<p:hostdev address='01:00.0' vendor='-1'/>", "invalid vendor '-1'"),
        ("<p:hostdev address='01:00.0' serial='1'/>", "invalid serial '1'"),
        ("<p:hostdev address='01:00.0' path='../..'/>", "invalid path"),
        ("<p:device address='01:00.0'/>", "unknown element 'device'"),
        ("<p:hostdev address='01:00.0'><p:pf><p:pf/></p:pf></p:hostdev>", "unknown element 'pf'"),
    ],
)
def test_a_wrong_pin_is_refused(pin: str, words: str, before: FakeHost) -> None:
    """``validate`` and ``plan`` refuse an invalid pin, which would protect nothing."""
    dom = guest("0000:02:00.0")
    dom.metadata = f"<metadata><p:hostdevs xmlns:p='urn:pyhostdev:pin:1'>{pin}</p:hostdevs></metadata>"
    for call in (dom.hostdev_pins, dom.validate, lambda: Host(before.root).plan(dom)):
        with pytest.raises(XMLError, match=words):
            call()
