# SPDX-License-Identifier: LGPL-2.1-or-later
"""Conversion between the two spellings of a not assigned device."""

from __future__ import annotations

from typing import Any

import pytest

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.errors import ConfigError, XMLError
from pyhostdev.util.pciaddress import PCIDeviceAddress

CARD = "0001:09:00"
UNASSIGNED = "<address type='unassigned'/>"


def domain(*rows: tuple[str, str, str]) -> DomainDef:
    """Make a domain of (address, attributes, inner elements)."""
    devices = []
    for text, attributes, inner in rows:
        a = PCIDeviceAddress.parse(text)
        source = f"<address domain='{a.domain}' bus='{a.bus}' slot='{a.slot}' function='{a.function}'/>"
        devices.append(f"<hostdev type='pci' {attributes}><source>{source}</source>{inner}</hostdev>")
    return DomainDef.parse(f"<domain type='kvm'><name>d</name><devices>{''.join(devices)}</devices></domain>")


def said(dom: DomainDef) -> list[tuple[bool | None, bool]]:
    return [(hostdev.assigned, hostdev.info.is_unassigned) for hostdev in dom.hostdevs]


class SingleFunctionHost:
    def pci_device(self, address: Any) -> Any:
        return self

    def is_multifunction(self) -> bool:
        return False


one_function: Any = SingleFunctionHost()


def test_to_unassigned_leaves_no_assigned_anywhere() -> None:
    """libvirt ignores the attribute, and would give the function to the guest: no attribute may be left."""
    dom = domain(
        (f"{CARD}.0", "assigned='yes'", "<address type='pci' slot='4'/>"),
        (f"{CARD}.1", "assigned='no'", ""),
        (f"{CARD}.2", "", UNASSIGNED),
        (f"{CARD}.3", "", ""),
    )
    other = dom.with_spelling("unassigned")
    assert [(None, False), (None, True), (None, True), (None, False)] == said(other)
    assert 4 == other.hostdevs[0].info.pci.slot
    assert "assigned='" not in other.format().replace("unassigned'", "")
    assert [True, False, False, True] == [hostdev.is_assigned for hostdev in other.hostdevs]


def test_to_assigned_writes_on_every_function_of_a_device_that_has_one_not_assigned() -> None:
    """Other devices are left as they are."""
    dom = domain((f"{CARD}.0", "", ""), (f"{CARD}.1", "", UNASSIGNED), ("0000:03:00.0", "", ""))
    assert [(True, False), (False, False), (None, False)] == said(dom.with_spelling("assigned"))


def test_there_and_back_means_the_same() -> None:
    """Two conversions do not change which functions are assigned."""
    dom = domain((f"{CARD}.0", "", ""), (f"{CARD}.1", "", UNASSIGNED), (f"{CARD}.3", "", ""))
    back = dom.with_spelling("assigned").with_spelling("unassigned")
    assert dom == back
    assert said(dom.with_spelling("assigned")) == said(back.with_spelling("assigned"))


def test_the_original_is_not_changed() -> None:
    """A conversion returns a copy."""
    dom = domain((f"{CARD}.0", "assigned='no'", ""))
    before = dom.format()
    dom.with_spelling("unassigned")
    assert before == dom.format()


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("alias", "<alias name='ua-x'/>"),
        ("boot", "<boot order='1'/>"),
        ("rom", "<rom bar='off'/>"),
        ("acpi", "<acpi index='1'/>"),
        ("teaming", "<teaming type='transient' persistent='ua-n'/>"),
    ],
)
def test_to_assigned_refuses_by_name_what_it_cannot_express(name: str, inner: str) -> None:
    """An unassigned device may have elements that assigned='no' forbids; the error names element and device."""
    dom = domain((f"{CARD}.1", "", inner + UNASSIGNED))
    with pytest.raises(XMLError, match=f"<{name}>") as error:
        dom.with_spelling("assigned")
    assert f"{CARD}.1" == str(error.value.address)


def test_to_assigned_refuses_a_device_of_one_function() -> None:
    """With a host, a device with one function cannot be converted to the attribute."""
    dom = domain(("0000:03:00.0", "", UNASSIGNED))
    dom.with_spelling("assigned")
    with pytest.raises(XMLError) as error:
        dom.with_spelling("assigned", one_function)
    assert ("not-multifunction", "0000:03:00.0") == (error.value.reason, str(error.value.address))


def test_another_spelling_does_not_exist() -> None:
    """Only the two."""
    with pytest.raises(ConfigError, match="spelling"):
        domain().with_spelling("partial")
