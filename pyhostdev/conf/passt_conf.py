# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What an interface says to passt, the program that carries its packets without privileges.

Mirrors: virDomainNetPortForward (src/conf/domain_conf.h)
"""

from __future__ import annotations

from pyhostdev.conf.xml.xmlcodec import enum, number, unsigned, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, elements

_port = unsigned(minimum=1, maximum=0xFFFF)


class PortRange(ElementDef):
    """Ports of the host that lead to the guest, or are left out."""

    tag = "range"

    start = attribute("start", _port, required=True)
    end = attribute("end", _port)
    to = attribute("to", _port)
    exclude = attribute("exclude", yes_no)


class PortForward(ElementDef):
    """Which ports of the host lead to the guest."""

    tag = "portForward"

    proto = attribute("proto", enum("tcp", "udp"), required=True)
    address = attribute("address")
    dev = attribute("dev")
    ranges = elements("range", PortRange)


class NetRoute(ElementDef):
    """A way out of the guest's network."""

    tag = "route"

    family = attribute("family")
    address = attribute("address")
    netmask = attribute("netmask")
    prefix = attribute("prefix", number)
    gateway = attribute("gateway")
    metric = attribute("metric", number)
