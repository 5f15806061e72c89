# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Settings of a paused QEMU before the guest runs: thread affinity and passwords.

They end with QEMU, so nothing is undone.

Mirrors: qemuProcessSetupPid, qemuProcessInitPasswords (src/qemu/qemu_process.c)
"""

from __future__ import annotations

import calendar
import os
import time
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.xml.xmlcodec import nodes_of
from pyhostdev.errors import OperationError
from pyhostdev.util.hostroot import HostRoot

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.qemu.qemu_process.monitor import QEMUMonitor

_EXPIRY = "%Y-%m-%dT%H:%M:%S"  # in UTC


async def apply_tuning(dom: DomainDef, monitor: QEMUMonitor, pid: int) -> None:
    """
    Pin QEMU's threads, and set the passwords of its display servers.

    Raises:
        OperationError: the kernel or QEMU refuses.

    Host:
        /proc/PID/task of QEMU itself; the affinity of its threads.
    """
    if needs_pins(dom):
        await _pin(dom, monitor, pid)
    for graphics in dom.graphics:
        if graphics.type in ("vnc", "spice") and graphics.passwd is not None:
            await _set_password(monitor, graphics)


def needs_pins(dom: DomainDef) -> bool:
    """Return True if the definition pins a thread."""
    tune = dom.cputune
    pins = tune is not None and bool(tune.vcpupins or tune.emulatorpin or tune.iothreadpins)
    return pins or dom.vcpu_cpuset is not None


def guest_environment(dom: DomainDef) -> dict[str, str]:
    """Return the variables for QEMU's environment: the guest's time zone, and the X display of its window."""
    found: dict[str, str] = {}
    if dom.clock is not None and dom.clock.offset == "timezone":
        found["TZ"] = str(dom.clock.timezone)
    for graphics in dom.graphics:
        if graphics.type == "sdl":
            words = {"DISPLAY": graphics.display, "XAUTHORITY": graphics.xauth}
            found |= {name: value for name, value in words.items() if value is not None}
    return found


async def _pin(dom: DomainDef, monitor: QEMUMonitor, pid: int) -> None:
    vcpus = {int(cpu["cpu-index"]): int(cpu["thread-id"]) for cpu in await _listed(monitor, "query-cpus-fast")}
    named = {str(thread["id"]): int(thread["thread-id"]) for thread in await _listed(monitor, "query-iothreads")}
    tune = dom.cputune
    vcpu_pins = {pin.vcpu: pin.cpuset for pin in tune.vcpupins} if tune is not None else {}
    thread_pins = {f"iothread{pin.iothread}": pin.cpuset for pin in tune.iothreadpins} if tune is not None else {}
    emulator = tune.emulatorpin.cpuset if tune is not None and tune.emulatorpin is not None else dom.vcpu_cpuset
    for thread in {int(name) for name in os.listdir(HostRoot("/").tasks(pid))} - {*vcpus.values(), *named.values()}:
        _bind(thread, emulator)
    for number, thread in vcpus.items():
        _bind(thread, vcpu_pins.get(number, dom.vcpu_cpuset))
    for name, thread in named.items():
        _bind(thread, thread_pins.get(name, dom.vcpu_cpuset))


async def _listed(monitor: QEMUMonitor, command: str) -> list[dict[str, Any]]:
    """
    Return the list of objects that a command answers.

    Raises:
        OperationError: the answer is malformed.
    """
    answer = await monitor.execute(command)
    if not isinstance(answer, list) or not all(isinstance(item, dict) and "thread-id" in item for item in answer):
        raise OperationError(f"QEMU's answer to '{command}' is not a list of threads")
    return answer


def _bind(thread: int, cpus: str | None) -> None:
    """
    Pin a thread to these CPUs; a thread that has ended is ignored.

    Raises:
        OperationError: none of the CPUs is online, or the permission is missing.
    """
    if cpus is None:
        return
    try:
        os.sched_setaffinity(thread, nodes_of(cpus))
    except ProcessLookupError:
        return
    except OSError as err:
        raise OperationError(f"Cannot pin QEMU's thread {thread} to the CPUs {cpus}: {err.strerror}") from err


async def _set_password(monitor: QEMUMonitor, graphics: Any) -> None:
    protocol = graphics.type
    options = {} if graphics.connected is None else {"connected": graphics.connected}
    await monitor.execute("set_password", protocol=protocol, password=graphics.passwd, **options)
    if graphics.passwd_valid_to is not None:
        end = calendar.timegm(time.strptime(graphics.passwd_valid_to, _EXPIRY))
        await monitor.execute("expire_password", protocol=protocol, time=str(end))
