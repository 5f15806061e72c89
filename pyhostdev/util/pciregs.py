# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Registers of PCI configuration space, by their names in the specifications.

Source: PCI30 is PCI Local Bus 3.0, PCIPM12 is PCI Power Management 1.2, PCIE50 is PCI Express Base 5.0,
BRIDGE12 is PCI-to-PCI Bridge 1.2, AF10 is the Advanced Features ECN.
"""

from __future__ import annotations

CONFIG_SIZE = 256  # PCI30 6.1
CONFIG_SIZE_EXPRESS = 4096  # PCIE50 7.2
CONFIG_SIZE_UNPRIVILEGED = 64  # what the kernel returns without CAP_SYS_ADMIN (drivers/pci/pci-sysfs.c)

VENDOR_ID = 0x00  # PCI30 6.1, 16 bits
STATUS = 0x06  # PCI30 6.2.3, 16 bits
STATUS_CAP_LIST = 0x0010  # PCI30 6.2.3, bit 4
HEADER_TYPE = 0x0E  # PCI30 6.2.1
HEADER_TYPE_MASK = 0x7F  # PCI30 6.2.1, bits 0-6
HEADER_TYPE_MULTIFUNCTION = 0x80  # PCI30 6.2.1, bit 7
HEADER_TYPE_ENDPOINT = 0  # PCI30 6.1
HEADER_TYPE_BRIDGE = 1  # BRIDGE12 3.2
HEADER_TYPE_CARDBUS = 2
HEADER_TYPE_DEAD = 0x7F  # a device that does not answer reads as all ones
SECONDARY_BUS = 0x19  # BRIDGE12 3.2.5.3
SUBORDINATE_BUS = 0x1A  # BRIDGE12 3.2.5.4
CAPABILITY_LIST = 0x34  # PCI30 6.7
CAP_START = 0x40  # PCI30 6.1: the header ends here

CAP_ID_PM = 0x01  # PCIPM12 3.2.1
CAP_ID_EXPRESS = 0x10  # PCIE50 7.5.3.1
CAP_ID_AF = 0x13  # AF10
CAP_STEPS_MAX = 48  # (256 - 64) / 4: each capability takes at least a dword

EXT_CAP_START = 0x100  # PCIE50 7.6.1
EXT_CAP_ID_DSN = 0x0003  # PCIE50 7.9.3
EXT_CAP_ID_ACS = 0x000D  # PCIE50 7.7.8
ACS_CTRL = 0x06  # PCIE50 7.7.8.3, from the capability's start
EXT_CAP_ID_ARI = 0x000E  # PCIE50 7.8.7
EXT_CAP_ID_SRIOV = 0x0010  # PCIE50 9.3.3
EXT_CAP_STEPS_MAX = (CONFIG_SIZE_EXPRESS - EXT_CAP_START) // 8

PM_CTRL = 0x04  # PCIPM12 3.2.4, from the capability's start
PM_CTRL_NO_SOFT_RESET = 0x0008  # PCIPM12 3.2.4, bit 3

EXP_FLAGS = 0x02  # PCIE50 7.5.3.2, from the capability's start
EXP_FLAGS_TYPE_SHIFT = 4
EXP_FLAGS_TYPE_MASK = 0xF
EXP_TYPE_ROOT_PORT = 0x4
EXP_TYPE_UPSTREAM = 0x5
EXP_TYPE_DOWNSTREAM = 0x6
EXP_TYPE_RC_INTEGRATED = 0x9
EXP_TYPE_RC_EVENT_COLLECTOR = 0xA
EXP_DEVCAP = 0x04  # PCIE50 7.5.3.3
EXP_DEVCAP_FLR = 1 << 28
EXP_LNKCAP = 0x0C  # PCIE50 7.5.3.6
EXP_LNKCAP_PORT_SHIFT = 24
EXP_LNKSTA = 0x12  # PCIE50 7.5.3.8
EXP_LINK_SPEED_MASK = 0xF  # of both registers, bits 0-3
EXP_LINK_WIDTH_SHIFT = 4  # of both registers, bits 4-9
EXP_LINK_WIDTH_MASK = 0x3F

AF_CAP = 0x03  # AF10
AF_CAP_FLR = 0x02

CLASS_BASE_NETWORK = 0x02  # PCI30 appendix D
CLASS_BRIDGE_PCI = 0x0604  # base class and sub-class, without the interface
CLASS_BRIDGE_HOST = 0x0600  # PCI30 appendix D
CLASS_DISPLAY = 0x03
CLASS_BASE_BRIDGE = 0x06
