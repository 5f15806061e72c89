# SPDX-License-Identifier: LGPL-2.1-or-later
"""
An interface's settings for passt, the unprivileged program that forwards its packets.

Mirrors: virDomainNetPortForward (src/conf/domain_conf.h)
"""

from __future__ import annotations

from pyhostdev.conf.xml.xmlcodec import enum, number, unsigned, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, elements

_port = unsigned(minimum=1, maximum=0xFFFF)


class PortRange(ElementDef):
    """A range of host ports that are forwarded to the guest, or excluded."""

    tag = "range"

    start = attribute("start", _port, required=True)
    end = attribute("end", _port)
    to = attribute("to", _port)
    exclude = attribute("exclude", yes_no)


class PortForward(ElementDef):
    """The host ports that are forwarded to the guest."""

    tag = "portForward"

    proto = attribute("proto", enum("tcp", "udp"), required=True)
    address = attribute("address")
    dev = attribute("dev")
    ranges = elements("range", PortRange)


class NetRoute(ElementDef):
    """A route of the guest."""

    tag = "route"

    family = attribute("family")
    address = attribute("address")
    netmask = attribute("netmask")
    prefix = attribute("prefix", number)
    gateway = attribute("gateway")
    metric = attribute("metric", number)
