# SPDX-License-Identifier: LGPL-2.1-or-later
"""PCI addresses: every usual spelling is read, libvirt's is printed, nothing is out of range."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhostdev.errors import InvalidAddressError
from pyhostdev.util.pciaddress import PCIDeviceAddress

ADDRESSES = st.builds(
    PCIDeviceAddress,
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFF),
    st.integers(0, 0x1F),
    st.integers(0, 7),
)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("0000:01:00.0", "0000:01:00.0"),
        ("01:00.3", "0000:01:00.3"),
        ("0001:09:1F.7", "0001:09:1f.7"),
        ("pci_0000_01_00_0", "0000:01:00.0"),
        ("10001:80:05.0", "10001:80:05.0"),
        ("pci_10001_80_05_0", "10001:80:05.0"),
        ("ffffffff:ff:1f.7", "ffffffff:ff:1f.7"),
    ],
)
def test_parse_prints_libvirts_form(text: str, printed: str) -> None:
    """Every usual spelling is read; the printed one has four domain digits or more."""
    assert printed == str(PCIDeviceAddress.parse(text))


@pytest.mark.parametrize(
    "text",
    ["", "0000:01:00", "0000:01:00.8", "0000:01:20.0", "0000:100:00.0", "123456789:01:00.0", " 01:00.0",
     "01:00.0\n", "0000-01-00.0", "٠٠٠٠:01:00.0", "000:01:00.0", "../../etc", "pci_0000_1_0_0"],
)  # fmt: skip
def test_parse_refuses_other_texts(text: str) -> None:
    """Junk, out-of-range parts and foreign digits are an InvalidAddressError, never a guess."""
    with pytest.raises(InvalidAddressError):
        PCIDeviceAddress.parse(text)


@given(ADDRESSES)
def test_both_forms_round_trip(address: PCIDeviceAddress) -> None:
    """str() and the node device's name parse back to the same address."""
    assert address == PCIDeviceAddress.parse(str(address))
    assert address == PCIDeviceAddress.parse(address.nodedev_name)


@given(st.lists(ADDRESSES))
def test_order_is_by_number(addresses: list[PCIDeviceAddress]) -> None:
    """Addresses sort by domain, bus, slot and function, wide domains after narrow ones."""
    as_numbers = sorted((a.domain, a.bus, a.slot, a.function) for a in addresses)
    assert as_numbers == [tuple(a) for a in sorted(addresses)]


@pytest.mark.parametrize("part", [(-1, 0, 0, 0), (0, 256, 0, 0), (0, 0, 32, 0), (0, 0, 0, 8), (1 << 32, 0, 0, 0)])
def test_check_names_the_part(part: tuple[int, int, int, int]) -> None:
    """Numbers out of range are refused; the error names the part."""
    with pytest.raises(InvalidAddressError, match="domain|bus|slot|function"):
        PCIDeviceAddress(*part).check()
