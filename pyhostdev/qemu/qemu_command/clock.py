# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest's clock and its timers on the command line.

Mirrors: qemuBuildClockCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pyhostdev.qemu.qemu_command.builder import unsupported, uses_machine_option

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder


def build_clock(build: CommandBuilder) -> None:
    """
    Set the guest's clock and its timers.

    Raises:
        ConfigUnsupportedError: QEMU does not have a timer of that name.
    """
    clock = build.dom.clock
    timers = clock.timers if clock is not None else []
    rtc = next((timer for timer in timers if timer.name == "rtc"), None)
    build.add("-rtc", f"base={_base(clock)}{_rtc_options(rtc)}")
    for timer in timers:  # also one that is named twice
        _build_timer(build, timer)


def _base(clock: Any) -> str:
    """
    Return the time that the guest's clock shows at its start.

    For a time zone it is QEMU's local time: QEMU is started with that zone in its environment.
    """
    offset = clock.offset if clock is not None else "utc"
    if offset == "timezone":
        return "localtime"
    if offset == "variable":
        now = time.time()
        zone = time.localtime(now).tm_gmtoff if clock.basis == "localtime" else 0
        return _date(int(now) + zone + int(clock.adjustment or 0))
    return _date(clock.start) if offset == "absolute" else str(offset)


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _rtc_options(timer: Any | None) -> str:
    """Return the options from <timer name='rtc'>: the clock that it follows and the policy for lost ticks."""
    if timer is None:
        return ""
    clock = {"guest": ",clock=vm", "wall": ",clock=host", "realtime": ",clock=rt"}.get(timer.track, "")
    return clock + (",driftfix=slew" if timer.tickpolicy == "catchup" else "")


def _build_timer(build: CommandBuilder, timer: Any) -> None:
    if timer.name == "pit":
        if timer.tickpolicy in ("delay", "discard"):
            build.add("-global", f"kvm-pit.lost_tick_policy={timer.tickpolicy}")
    elif timer.name == "hpet":
        if timer.present is False and not uses_machine_option(build, "hpet"):
            build.add("-no-hpet")
    elif timer.name not in ("rtc", "kvmclock", "hypervclock", "tsc"):
        raise unsupported(f"<timer name='{timer.name}'>", timer)
