# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts about functions and their relatives: the multifunction rule of row S6 on every shape of device."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from pyhostdev import DomainDef, Host, PCIDevice, PCIDeviceAddress, SysfsError, is_pci_multifunction_device
from pyhostdev.testing.fakehost import FakeHost

Fake = Callable[[str], FakeHost]


def device(fake: FakeHost, address: str) -> PCIDevice:
    dev = Host(fake.root).pci_device(PCIDeviceAddress.parse(address))
    assert dev is not None
    return dev


def set_header_type(fake: FakeHost, address: str, value: int) -> None:
    with open(f"{fake.root.pci_device(PCIDeviceAddress.parse(address))}/config", "r+b") as config:
        config.seek(0x0E)
        config.write(bytes((value,)))


def test_s6_function_0_decides(bcm5719: FakeHost) -> None:
    """S6: a function's own bit does not count while function 0 can be read."""
    set_header_type(bcm5719, "0001:09:00.2", 0x00)
    assert device(bcm5719, "0001:09:00.2").is_multifunction() is True
    set_header_type(bcm5719, "0001:09:00.0", 0x00)
    set_header_type(bcm5719, "0001:09:00.2", 0x80)
    assert device(bcm5719, "0001:09:00.2").is_multifunction() is False


def test_s6_own_bit_where_function_0_is_absent_or_dead(bcm5719: FakeHost) -> None:
    """S6: without a readable function 0 the function's own bit decides."""
    set_header_type(bcm5719, "0001:09:00.0", 0xFF)
    assert device(bcm5719, "0001:09:00.1").is_multifunction() is True
    os.unlink(bcm5719.root.pci_device(PCIDeviceAddress.parse("0001:09:00.0")))
    assert device(bcm5719, "0001:09:00.1").is_multifunction() is True
    set_header_type(bcm5719, "0001:09:00.1", 0x00)
    assert device(bcm5719, "0001:09:00.1").is_multifunction() is False


def test_s6_unreadable_is_unknown(bcm5719: FakeHost) -> None:
    """S6: if neither function 0 nor the function can be read, the answer is None, not False."""
    for function in (0, 1):
        set_header_type(bcm5719, f"0001:09:00.{function}", 0xFF)
    assert device(bcm5719, "0001:09:00.1").is_multifunction() is None
    for function in (0, 1):
        os.unlink(f"{bcm5719.root.pci_device(PCIDeviceAddress(1, 9, 0, function))}/config")
    assert device(bcm5719, "0001:09:00.1").is_multifunction() is None


def test_s6_siblings_share_domain_bus_and_slot(fakehost: Fake) -> None:
    """S6: siblings are the functions of the slot, VFs left out."""
    fake = fakehost("pf-multifunction")
    for address in ("0000:06:12.0", "0000:06:12.1"):
        siblings = [str(dev.address) for dev in device(fake, address).read_siblings()]
        assert ["0000:06:12.0", "0000:06:12.1"] == siblings
    assert ["0000:06:12.4"] == [str(dev.address) for dev in device(fake, "0000:06:12.4").read_siblings()]


def test_s6_vf_with_the_bit_set_is_not_multifunction(fakehost: Fake) -> None:
    """S6: some hardware sets the bit in a VF's header by mistake; it does not count."""
    fake = fakehost("pf-multifunction")
    set_header_type(fake, "0000:06:12.2", 0x80)
    assert device(fake, "0000:06:12.2").is_multifunction() is False


def test_s6_under_ari_the_whole_bus_is_one_device(fakehost: Fake) -> None:
    """S6: functions 8 and 9 look like slot 1, and are siblings of function 0; its VFs are not."""
    fake = fakehost("ari")
    siblings = [str(dev.address) for dev in device(fake, "0000:05:01.1").read_siblings()]
    assert [f"0000:05:00.{n}" for n in range(8)] + ["0000:05:01.0", "0000:05:01.1"] == siblings
    for function in (0, 1):  # what looks like slot 1 has a function 0 of its own, which has no say
        set_header_type(fake, f"0000:05:01.{function}", 0x00)
    assert device(fake, "0000:05:01.1").is_multifunction() is True


def test_s6_seeds_names_answer(fakehost: Fake, domain: Callable[..., DomainDef]) -> None:
    """S6: the seed's helper gives the same answer for a hostdev, False for a missing device."""
    host = Host(fakehost("libvirt").root)
    words = ["0005:90:01.2", "0000:00:01.0", "0000:06:12.1", "0009:00:00.0"]
    hostdevs = domain("vm1", *words).hostdevs
    assert [True, False, False, False] == [is_pci_multifunction_device(h, host) for h in hostdevs]


def test_list_answers_without_config_where_a_function_is_alone(fakehost: Fake) -> None:
    """A scan reports False for a function alone in its slot, without reading a byte."""
    fake = fakehost("bcm5719")
    os.unlink(f"{fake.root.pci_device(PCIDeviceAddress.parse('0001:07:00.0'))}/config")
    scan = Host(fake.root).scan()
    answers = {str(dev.address): scan.is_multifunction(dev) for dev in scan}
    assert answers["0001:07:00.0"] is False
    assert all(answers[f"0001:09:00.{function}"] for function in range(4))


def test_five_digit_domain(fakehost: Fake) -> None:
    """A domain beyond 16 bits is read, printed and found like any other."""
    host = Host(fakehost("wide-domain").root)
    address = PCIDeviceAddress.parse("10000:82:00.1")
    assert (0x10000, "10000:82:00.1") == (address.domain, str(address))
    found = host.scan().find(address)
    assert found is not None
    assert (14, "igb", True) == (found.iommu_group, found.driver, found.is_multifunction())


def test_scan_and_single_read_agree(fakehost: Fake) -> None:
    """A function read alone equals the same function in a scan, on every shipped host."""
    from pyhostdev.testing.fakehost import named_hosts

    for name in named_hosts():
        host = Host(fakehost(name).root)
        for dev in host.scan():
            alone = host.pci_device(dev.address)
            assert alone is not None
            facts = ("vendor", "device", "class_", "driver", "iommu_group", "physfn", "header_type")
            assert [getattr(dev, f) for f in facts] == [getattr(alone, f) for f in facts]


def test_vfs_of_a_pf_in_order(fakehost: Fake) -> None:
    """A PF's VFs come in the order of their numbers, and point back to it."""
    fake = fakehost("pf-multifunction")
    pf = device(fake, "0000:06:12.1")
    assert ["0000:06:12.3", "0000:06:12.5"] == [str(address) for address in pf.read_virtual_functions()]
    assert pf.address == device(fake, "0000:06:12.5").physfn


@pytest.mark.parametrize(("words", "alone", "method"), [("pm flr", True, "flr"), ("pm", True, "pm"), ("", False, None)])
def test_usable_reset_hits_this_function_alone(fakehost: Fake, words: str, alone: bool, method: str | None) -> None:
    """Function-level methods come first; the bus counts only for a function that has it to itself."""
    other = "" if alone else "0000:01:00.1 8086:10d3 020000 group=2 multifunction express=endpoint\n"
    fake = fakehost(
        "driver pcieport class:0604 builtin\n"
        "0000:00:01.0 8086:1901 060400 driver=pcieport group=1 bridge=01-01 express=root-port\n"
        f"0000:01:00.0 8086:10d3 020000 group=2 multifunction express=endpoint {words}\n{other}"
    )
    assert method == device(fake, "0000:01:00.0").usable_reset()


def test_absent_is_none_and_malformed_is_an_error(bcm5719: FakeHost) -> None:
    """A missing attribute is None; for an invalid one, the error names its file."""
    top = bcm5719.root.pci_device(PCIDeviceAddress.parse("0001:09:00.0"))
    os.unlink(f"{top}/numa_node")
    assert device(bcm5719, "0001:09:00.0").numa_node is None
    with open(f"{top}/revision", "w") as stream:
        stream.write("red\n")
    with pytest.raises(SysfsError, match="revision"):
        _ = device(bcm5719, "0001:09:00.0").revision


def test_missing_device_is_none(bcm5719: FakeHost) -> None:
    """No function, no object."""
    assert Host(bcm5719.root).pci_device(PCIDeviceAddress.parse("0001:0a:00.0")) is None
