# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The attributes of sysfs that pyhostdev reads, by the kind of device.
"""

from __future__ import annotations

ATTRIBUTES = (  # of a PCI function; its configuration space and its VPD have readers of their own
    "vendor",
    "device",
    "subsystem_vendor",
    "subsystem_device",
    "class",
    "revision",
    "numa_node",
    "boot_vga",
    "driver_override",
    "ari_enabled",
    "reset_method",
    "sriov_totalvfs",
    "sriov_numvfs",
    "sriov_vf_device",
    "sriov_offset",
    "sriov_stride",
    "sriov_drivers_autoprobe",
    "modalias",
    "irq",
    "resource",
    "serial_number",
    "max_link_speed",
    "max_link_width",
    "current_link_speed",
    "current_link_width",
)
CLASS_ATTRIBUTES = ("address", "addr_assign_type", "operstate", "dev", "partition", "size", "name", "mtu")
TYPE_ATTRIBUTES = ("name", "device_api", "available_instances")  # of a type of mediated devices
USB_ATTRIBUTES = ("idVendor", "idProduct", "busnum", "devnum")
