# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Defaults of the ports and <listen> elements of graphics.

Mirrors: virDomainGraphicsDefParseXML and its parts (src/conf/domain_conf.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.graphics_conf import GraphicsListen
from pyhostdev.errors import XMLError

if TYPE_CHECKING:
    from pyhostdev.conf.graphics_conf import DomainGraphicsDef


_WITH_GL = ("spice", "sdl", "egl-headless", "dbus")


def fill_graphics(graphics: DomainGraphicsDef) -> None:
    """
    Fill in the defaults of one <graphics>.

    Raises:
        XMLError: its listen addresses contradict each other.
    """
    if graphics.type in ("vnc", "spice", "rdp"):
        _fill_listens(graphics)
    else:
        graphics.listens = []
    if graphics.type not in _WITH_GL:
        graphics.gl_enable = graphics.gl_rendernode = None
    graphics.channels = [channel for channel in graphics.channels if channel.mode != "any"]
    if graphics.type == "vnc":
        _fill_vnc(graphics)
    elif graphics.type == "spice":
        _fill_spice(graphics)


def _fill_listens(graphics: DomainGraphicsDef) -> None:
    """
    Give the ``listen`` attribute and the first <listen> of type address the same value.

    Mirrors: virDomainGraphicsListensParseXML
    """
    if not graphics.listens:
        graphics.listens = [_listen_of(graphics)]
    first = graphics.listens[0]
    attribute = graphics.listen
    addresses = [part.address for part in graphics.listens if part.type == "address"]
    if attribute is not None and addresses and addresses[0] not in (None, attribute):
        raise XMLError(
            f"listen='{attribute}' of <graphics> is not the address '{addresses[0]}' of its <listen>",
            line=graphics.line,
        )
    if attribute is not None and first.type == "address" and first.address is None:
        first.address = attribute
    graphics.listen = first.address if first.type == "address" else None
    graphics.socket = first.socket if graphics.type == "vnc" else None


def _listen_of(graphics: DomainGraphicsDef) -> GraphicsListen:
    if graphics.type == "vnc" and graphics.socket is not None:
        return GraphicsListen(type="socket", socket=graphics.socket)
    return GraphicsListen(type="address", address=graphics.listen or None)


def _fill_vnc(graphics: DomainGraphicsDef) -> None:
    if graphics.listens[0].type in ("socket", "none"):
        graphics.port = graphics.autoport = None
        return
    if graphics.port == -1 or (graphics.port is None and graphics.autoport is not False):
        graphics.autoport = True
    graphics.autoport = bool(graphics.autoport)
    if graphics.autoport:
        graphics.port = -1


def _fill_spice(graphics: DomainGraphicsDef) -> None:
    """
    Fill in the ports of SPICE; without a port it does not listen.

    Mirrors: virDomainGraphicsDefParseXMLSpice, virDomainDefPostParseGraphics
    """
    if graphics.default_mode == "any":
        graphics.default_mode = None
    if graphics.port == -1 and graphics.tls_port == -1:
        graphics.autoport = True
    if graphics.port == -1 or graphics.autoport:
        graphics.port = None
    if graphics.tls_port == -1 or graphics.autoport:
        graphics.tls_port = None
    first = graphics.listens[0]
    if first.type == "address" and not (graphics.port or graphics.tls_port or graphics.autoport):
        graphics.listens[0] = first = GraphicsListen(type="none")
        graphics.listen = None
    graphics.port = graphics.port or None
    graphics.tls_port = graphics.tls_port or None
    if first.type in ("none", "socket"):
        graphics.port = graphics.tls_port = graphics.autoport = None
    elif not graphics.autoport:
        graphics.autoport = False
