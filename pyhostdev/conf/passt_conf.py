# SPDX-License-Identifier: LGPL-2.1-or-later
"""
An interface's settings for passt, the unprivileged program that forwards its packets.

Mirrors: virDomainNetPortForward (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.xml.xmlcodec import enum, number, unsigned, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, elements
from pyhostdev.errors import XMLError
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from pyhostdev.util.virxml import Element

_port = unsigned(minimum=1, maximum=0xFFFF)


def is_ip_address(text: str, family: str | None = None) -> bool:
    """
    Tell whether a text is an IP address; an IPv4 address may have fewer parts than four, as for ``inet_aton``.

    Args:
        family: ipv4 or ipv6; None for either.
    """
    import socket  # few interfaces have addresses

    try:
        if family == "ipv6" or (family != "ipv4" and ":" in text):
            socket.inet_pton(socket.AF_INET6, text)
        else:
            socket.inet_aton(text)
    except (OSError, ValueError):
        return False
    return " " not in text


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

    def parsed(self, element: Element) -> None:
        """Refuse a route without a gateway. Mirrors: virNetDevIPRouteCreate (src/conf/networkcommon_conf.c)"""
        if self.gateway is None:
            raise XMLError("A <route> needs a gateway", line=self.line)
        if not is_ip_address(self.gateway, self.family):
            raise XMLError(f"Invalid gateway '{shown(self.gateway)}' in <route>", line=self.line)
