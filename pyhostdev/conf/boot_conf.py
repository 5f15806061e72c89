# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The elements of <os> that many domains lack: devices to boot from, tables, features of firmware.

Mirrors: virDomainOSDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

from pyhostdev.conf.xml.xmlcodec import enum, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, content


class BootDev(ElementDef):
    """One kind of device to boot from."""

    tag = "boot"

    dev = attribute("dev", enum("fd", "cdrom", "hd", "network"), required=True)


class InitArgument(ElementDef):
    """An argument of a container's init."""

    tag = "initarg"

    value = content("", default="")


class FirmwareFeature(ElementDef):
    """A feature that the firmware must have or lack."""

    tag = "feature"

    enabled = attribute("enabled", yes_no, required=True)
    name = attribute("name", enum("enrolled-keys", "secure-boot"), required=True)


class ACPITable(ElementDef):
    """A file with an ACPI table."""

    tag = "table"

    type = attribute("type", enum("slic", since={"raw": "acpi-tables"}), required=True)
    path = content("", default="")
