# SPDX-License-Identifier: LGPL-2.1-or-later
"""The XML of a node device: what each fact is printed as, in libvirt's order."""

from __future__ import annotations

from typing import Any

import pytest
from lxml import etree

from pyhostdev.conf.node_device_conf import NodeDevCapPCIDev, NodeDeviceDef, PCIELink, node_device_name
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virpcivpd import PCIVPDResource

ADDRESS = PCIDeviceAddress(0, 0x42, 0, 0)


def lines(**facts: Any) -> list[str]:
    """Return what the facts add to the capability, without the indent of its depth."""
    pci = NodeDevCapPCIDev(ADDRESS, **facts)
    text = NodeDeviceDef("pci_0000_42_00_0", "/sys/devices/x", "computer", None, pci).format()
    etree.fromstring(text)
    inside = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return [
        line for line in inside if not line.startswith(("<domain", "<bus", "<slot", "<function", "<product", "<ven"))
    ]


def test_vpd() -> None:
    """Known fields have their own elements and come first; the others follow by family, each with its index."""
    readonly = {
        "V0": "PCIeGen4 x8",
        "SN": "MT2113X00000",
        "PN": "MBF2H332A",
        "EC": "B1",
        "VA": "MLX:MN=MLNX",
        "MN": "m",
    }
    readwrite = {"Y0": "system", "V1": "vendor & son", "YA": "tag"}
    assert [
        "<capability type='vpd'>",
        "  <name>BlueField-2 &lt;DPU&gt;</name>",
        "  <fields access='readonly'>",
        "    <change_level>B1</change_level>",
        "    <manufacture_id>m</manufacture_id>",
        "    <part_number>MBF2H332A</part_number>",
        "    <serial_number>MT2113X00000</serial_number>",
        "    <vendor_field index='0'>PCIeGen4 x8</vendor_field>",
        "    <vendor_field index='A'>MLX:MN=MLNX</vendor_field>",
        "  </fields>",
        "  <fields access='readwrite'>",
        "    <asset_tag>tag</asset_tag>",
        "    <vendor_field index='1'>vendor &amp; son</vendor_field>",
        "    <system_field index='0'>system</system_field>",
        "  </fields>",
        "</capability>",
    ] == lines(vpd=PCIVPDResource("BlueField-2 <DPU>", readonly, readwrite))


def test_vpd_without_sections() -> None:
    """A section that the device lacks is left out; one without a printable field is there and empty."""
    assert [
        "<capability type='vpd'>",
        "  <fields access='readonly'>",
        "  </fields>",
        "</capability>",
    ] == lines(vpd=PCIVPDResource(None, {}, None))
    assert ["<capability type='vpd'>", "</capability>"] == lines(vpd=PCIVPDResource(None, None, None))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, []),
        ({"is_pci_express": True}, ["<pci-express/>"]),
        (
            {"is_pci_express": True, "link_cap": PCIELink(6, 16, 1), "link_sta": PCIELink(0, 0)},
            [
                "<pci-express>",
                "  <link validity='cap' port='1' speed='64' width='16'/>",
                "  <link validity='sta' width='0'/>",
                "</pci-express>",
            ],
        ),
        ({"max_virtual_functions": 4}, ["<capability type='virt_functions' maxCount='4'/>"]),
        ({"header_type": 0}, []),
        ({"header_type": 1}, ["<capability type='pci-bridge'/>"]),
        ({"header_type": 2}, ["<capability type='cardbus-bridge'/>"]),
        ({"header_type": 0x7F}, []),
        ({"numa_node": 0}, ["<numa node='0'/>"]),
        ({"class_": 0xFF00}, ["<class>0x00ff00</class>"]),
    ],
)
def test_one_fact(facts: dict[str, Any], expected: list[str]) -> None:
    """Zero is a value; a speed of zero, an absent port and an unknown header type are not printed."""
    assert expected == lines(**facts)


def test_order() -> None:
    """The capabilities stand before the group, the NUMA node and the links."""
    found = lines(
        class_=0x020000,
        physical_function=ADDRESS,
        virtual_functions=(ADDRESS,),
        header_type=1,
        vpd=PCIVPDResource("x", None, None),
        iommu_group=3,
        iommu_group_devices=(ADDRESS,),
        numa_node=1,
        is_pci_express=True,
    )
    starts = [line for line in found if not line.startswith((" ", "</"))]
    assert [
        "<class>0x020000</class>",
        "<capability type='phys_function'>",
        "<capability type='virt_functions'>",
        "<capability type='pci-bridge'/>",
        "<capability type='vpd'>",
        "<iommuGroup number='3'>",
        "<numa node='1'/>",
        "<pci-express/>",
    ] == starts


def test_name() -> None:
    """The name has the digits of sysfs, also for domains beyond 0xffff."""
    assert "pci_0000_42_00_0" == node_device_name(ADDRESS)
    assert "pci_10000_e0_1f_7" == node_device_name(PCIDeviceAddress(0x10000, 0xE0, 0x1F, 7))
