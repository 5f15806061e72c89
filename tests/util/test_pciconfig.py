# SPDX-License-Identifier: LGPL-2.1-or-later
"""Configuration space as bytes: yes, no and unknown are different answers, and every walk ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import examples

from pyhostdev.util import pciconfig, pciregs


def config_space(capabilities: dict[int, tuple[int, int]], *, size: int = 256, header: int = 0) -> bytes:
    """Return a space with capabilities at {offset: (id, next)}, the first one listed first."""
    data = bytearray(size)
    data[pciregs.STATUS] = pciregs.STATUS_CAP_LIST if capabilities else 0
    data[pciregs.HEADER_TYPE] = header
    data[pciregs.CAPABILITY_LIST] = next(iter(capabilities), 0)
    for offset, (identity, following) in capabilities.items():
        data[offset], data[offset + 1] = identity, following
    return bytes(data)


@pytest.mark.parametrize(
    ("byte", "kind", "multi"), [(0x00, 0, False), (0x80, 0, True), (0x81, 1, True), (0x01, 1, False)]
)
def test_header_type_byte(byte: int, kind: int, multi: bool) -> None:
    """Bit 7 is the multifunction bit, the other seven are the layout."""
    data = config_space({}, header=byte)
    assert (kind, multi) == (pciconfig.header_type(data), pciconfig.is_multifunction(data))


def test_dead_device_has_no_opinion() -> None:
    """All ones means that the device does not answer: multifunction is unknown, not yes."""
    assert pciconfig.is_multifunction(b"\xff" * 256) is None


def test_short_read_is_unknown() -> None:
    """A value beyond 64 bytes is None, not absent."""
    data = config_space({0x40: (pciregs.CAP_ID_EXPRESS, 0)})[:64]
    assert pciconfig.find_capability(data, pciregs.CAP_ID_EXPRESS) is None
    assert pciconfig.is_pci_express(data) is None
    assert pciconfig.has_flr(data) is None


def test_capability_is_found_behind_reserved_bits() -> None:
    """The low two bits of a pointer do not count."""
    data = config_space({0x40: (0x05, 0x53), 0x50: (pciregs.CAP_ID_EXPRESS, 0)})
    assert pciconfig.find_capability(data, pciregs.CAP_ID_EXPRESS) == 0x50


def test_no_list_means_absent() -> None:
    """Without the status bit the pointer is not followed."""
    data = bytearray(config_space({0x40: (pciregs.CAP_ID_EXPRESS, 0)}))
    data[pciregs.STATUS] = 0
    assert pciconfig.find_capability(bytes(data), pciregs.CAP_ID_EXPRESS) == 0


def test_every_two_node_loop_ends() -> None:
    """All loops of one and two capabilities end with "absent"."""
    offsets = range(0x40, 0x100, 4)
    for first in offsets:
        for second in offsets:
            data = config_space({first: (5, second), second: (5, first)})
            assert pciconfig.find_capability(data, pciregs.CAP_ID_EXPRESS) == 0


@settings(max_examples=examples(100))
@given(st.binary(max_size=4096))
def test_any_bytes_have_an_answer(data: bytes) -> None:
    """No bytes make a walk fail or run without end."""
    for capability in (pciregs.CAP_ID_EXPRESS, pciregs.CAP_ID_AF):
        offset = pciconfig.find_capability(data, capability)
        assert offset is None or 0 <= offset < 256
    extended = pciconfig.find_extended_capability(data, pciregs.EXT_CAP_ID_ACS)
    assert extended is None or 0 <= extended < 4096
    assert pciconfig.has_pm_reset(data) in (True, False, None)


def test_resets_are_read_from_their_capabilities() -> None:
    """PCIe FLR, AF FLR and the PM bit are found at their places in the specification."""
    express = bytearray(config_space({0x40: (pciregs.CAP_ID_EXPRESS, 0)}))
    assert pciconfig.has_flr(bytes(express)) is False
    express[0x40 + 7] = 0x10
    assert pciconfig.has_flr(bytes(express)) is True
    advanced = bytearray(config_space({0x40: (pciregs.CAP_ID_AF, 0)}))
    advanced[0x43] = pciregs.AF_CAP_FLR
    assert pciconfig.has_flr(bytes(advanced)) is True
    power = bytearray(config_space({0x40: (pciregs.CAP_ID_PM, 0)}))
    assert pciconfig.has_pm_reset(bytes(power)) is True
    power[0x44] = pciregs.PM_CTRL_NO_SOFT_RESET
    assert pciconfig.has_pm_reset(bytes(power)) is False
