# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The link of a PCI Express function, from bytes of its configuration space.

Source: PCIE50 7.5.3
"""

from __future__ import annotations

from pyhostdev.util import pciconfig, pciregs
from pyhostdev.util.typed import NamedTuple


class ExpressLinks(NamedTuple):
    """The link of a PCI Express function: the most that its port supports, and how it runs."""

    port: int
    max_speed: int
    max_width: int
    speed: int
    width: int


def express_links(config: bytes) -> ExpressLinks | None:
    """
    Return the link registers; None for a function without a link, and if too few bytes could be read.

    Mirrors: virPCIDeviceHasPCIExpressLink, virPCIDeviceGetLinkCapSta (src/util/virpci.c)
    """
    kind = pciconfig.express_type(config)
    if kind in (None, pciregs.EXP_TYPE_RC_INTEGRATED, pciregs.EXP_TYPE_RC_EVENT_COLLECTOR):
        return None
    offset = pciconfig.find_capability(config, pciregs.CAP_ID_EXPRESS) or 0
    most = pciconfig.dword(config, offset + pciregs.EXP_LNKCAP)
    now = pciconfig.word(config, offset + pciregs.EXP_LNKSTA)
    if most is None or now is None:
        return None
    return ExpressLinks(most >> pciregs.EXP_LNKCAP_PORT_SHIFT, *_speed_and_width(most), *_speed_and_width(now))


def _speed_and_width(register: int) -> tuple[int, int]:
    width = register >> pciregs.EXP_LINK_WIDTH_SHIFT & pciregs.EXP_LINK_WIDTH_MASK
    return register & pciregs.EXP_LINK_SPEED_MASK, width
