# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest's clock and its timers.

Mirrors: virDomainClockDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyhostdev.conf.xml.xmlcodec import big_number, enum, signed, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, elements
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, VIR_ERR_INTERNAL_ERROR, XMLError
from pyhostdev.util.virxml import ULLONG_MAX, shown

if TYPE_CHECKING:
    from pyhostdev.util.virxml import Element

SECONDS = r"[-+]?[0-9]{1,18}"  # of a clock's adjustment


class ClockTimer(ElementDef):
    """One timer of the guest."""

    tag = "timer"

    name = attribute(
        "name",
        enum("platform", "pit", "rtc", "hpet", "tsc", "kvmclock", "hypervclock", "armvtimer"),
        required=True,
    )
    present = attribute("present", yes_no)
    tickpolicy = attribute("tickpolicy", enum("delay", "catchup", "merge", "discard"))
    track = attribute("track", enum("boot", "guest", "wall", "realtime"))
    frequency = attribute("frequency", big_number)
    mode = attribute("mode", enum("auto", "native", "emulate", "paravirt", "smpsafe"))
    threshold = attribute("catchup/@threshold", big_number)
    slew = attribute("catchup/@slew", big_number)
    limit = attribute("catchup/@limit", big_number)


class ClockDef(ElementDef):
    """
    The guest's clock.

    Mirrors: virDomainClockDef (src/conf/domain_conf.h)
    """

    tag = "clock"

    offset = attribute(
        "offset",
        enum("utc", "localtime", "variable", "timezone", "absolute"),
        default="utc",
        code=VIR_ERR_CONFIG_UNSUPPORTED,
    )
    adjustment = attribute("adjustment")
    basis = attribute("basis", enum("utc", "localtime"), code=VIR_ERR_CONFIG_UNSUPPORTED)
    timezone = attribute("timezone")
    start = attribute("start", signed(-ULLONG_MAX, maximum=ULLONG_MAX), code=VIR_ERR_INTERNAL_ERROR)
    timers = elements("timer", ClockTimer)

    def parsed(self, element: Element) -> None:
        """
        Refuse an offset without its number or name.

        Mirrors: virDomainClockDefParseXML (src/conf/domain_conf.c)
        """
        missing = {"timezone": self.timezone, "absolute": self.start}
        if self.offset in missing and missing[self.offset] is None:
            what = "timezone" if self.offset == "timezone" else "start"
            text = f"<clock> with offset='{self.offset}' lacks '{what}'"
            raise XMLError(text, line=self.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)
        seconds = self.adjustment if self.offset in ("utc", "localtime") else None
        if seconds not in (None, "reset") and not re.fullmatch(SECONDS, str(seconds), re.ASCII):
            text = f"The adjustment '{shown(str(seconds))}' of <clock> is not a number of seconds"
            raise XMLError(text, line=self.line)
