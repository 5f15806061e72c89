# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The host's PCI functions, kept up to date by the kernel's own events.

An event says where to look, sysfs says what is there: what an event claims is never believed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import NamedTuple, Protocol

from pyhostdev.errors import ConfigError, InvalidAddressError
from pyhostdev.util import pciscan
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.livescan import LiveScan
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.virpci import PCIDevice

BATCH_MAX = 1024  # events of one poll: who asks for news gets an answer during a storm, too
REFRESH_MAX = 8  # a rescan is dearer than reading an eighth of all functions one by one
_REFRESH_MIN = 64  # functions that are read one by one on any host
_RECEIVE_BUFFER = 16 << 20  # some 50,000 events: VFs come by the thousand


class PCIEvent(NamedTuple):
    """One event of the kernel; ``action`` is add, remove, bind, unbind, change, online, offline or move."""

    action: str
    address: PCIDeviceAddress


class EventSource(Protocol):
    """Where events come from; it listens from the moment it is made."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is an event."""

    def receive(self, timeout_s: float) -> PCIEvent | None:
        """
        Return the next event, None when there is none in time.

        Raises:
            OSError: events were lost.
        """

    def restart(self) -> None:
        """Listen anew, without what was queued."""

    def close(self) -> None:
        """Listen no more."""


class UdevEvents:
    """
    The kernel's events of the PCI bus, before udev has done anything about them.

    Raises:
        ConfigError: pyudev is not installed.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """
        Open the socket anew; events that were not received are lost.

        Raises:
            ConfigError: pyudev is not installed.
        """
        try:
            import pyudev
        except ImportError as err:
            raise ConfigError("Following the host's events needs pyudev") from err
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        monitor.filter_by("pci")
        with suppress(OSError):  # an ordinary user stays with the default, and rescans more often
            monitor.set_receive_buffer_size(_RECEIVE_BUFFER)
        monitor.start()
        self._monitor = monitor

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait for."""
        return int(self._monitor.fileno())

    def receive(self, timeout_s: float) -> PCIEvent | None:
        """
        Return the next event of a PCI function, None when none comes in time.

        Raises:
            OSError: events were lost (ENOBUFS).
        """
        while (device := self._monitor.poll(timeout_s)) is not None:
            try:
                return PCIEvent(device.action, PCIDeviceAddress.parse(device.sys_name))
            except InvalidAddressError:
                continue  # not a function: services of a port are on a bus of their own
        return None

    def close(self) -> None:
        """Close the socket."""
        del self._monitor  # pyudev closes the socket with the last reference


class PCIMonitor:
    """
    One scan, and then what changes: add, remove, bind, unbind, VFs.

        with PCIMonitor(HostRoot()) as monitor:
            while True:
                for event in monitor.poll(timeout_s=60):
                    print(event.action, monitor.functions.find(event.address))

    ``functions`` equals a scan once the kernel is quiet and everything it said was polled; between two polls it stands
    still, and its indexes make no system call. Whoever has a loop waits for ``fileno()`` himself.

    Args:
        source: for a directory that takes the place of /, which has no kernel to listen to.

    Raises:
        ConfigError: a directory without a source, or pyudev is not installed.
        SysfsError: an attribute is there and cannot be read.
    """

    def __init__(self, root: HostRoot, source: EventSource | None = None) -> None:
        if source is None and not root.is_live:
            raise ConfigError(f"Nobody sends events for the directory {root.path}")
        self.root = root
        self.source: EventSource = UdevEvents() if source is None else source
        self.rescans = 0
        self._dirty: set[PCIDeviceAddress] = set()
        self._is_stale = False
        with ExitStack() as undo:
            undo.callback(self.source.close)
            self._reader = pciscan.FunctionReader(root)
            undo.callback(self._reader.close)
            # The source listens already: what happens during the scan is read again afterwards.
            self.functions = LiveScan(root, pciscan.scan(root))
            undo.pop_all()

    def __enter__(self) -> PCIMonitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; ``functions`` stays as it is."""
        self.source.close()
        self._reader.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when ``poll`` has something to do."""
        return self.source.fileno()

    def poll(self, timeout_s: float = 0) -> list[PCIEvent]:
        """
        Take in what the kernel has said, and return it; where events were lost everything is read again.

        Nothing returned means that nothing was heard, unless ``rescans`` counts one more. What could not be read
        stays to be read at the next call.

        Args:
            timeout_s: how long to wait for the first event.

        Raises:
            SysfsError: an attribute is there and cannot be read.
        """
        events: list[PCIEvent] = []
        try:
            while len(events) < BATCH_MAX:
                event = self.source.receive(0 if events else timeout_s)
                if event is None:
                    break
                events.append(event)
        except OSError:
            self._is_stale = True
            self.source.restart()
        self._dirty.update(event.address for event in events)
        self._dirty.update(self._virtual_functions(events))
        self._catch_up()
        return events

    def _virtual_functions(self, events: Iterable[PCIEvent]) -> Iterable[PCIDeviceAddress]:
        """
        Yield the VFs of PFs that changed.

        A VF's ``add`` comes before its ``physfn`` link. Where it gets no driver nothing follows but ``change``: the
        PF's at the end, and the VF's own where the kernel sends one [measured on 6.1].

        Source: pci_iov_add_virtfn, sriov_enable (drivers/pci/iov.c)
        """
        changed = {event.address for event in events if event.action == "change"}
        for address in changed:
            dev = self.functions.find(address)
            if dev is not None and not dev.is_virtual_function:
                yield from dev.read_virtual_functions()
                yield from (vf.address for vf in self.functions.virtual_functions.get(address, ()))

    def _catch_up(self) -> None:
        few = max(_REFRESH_MIN, len(self.functions) // REFRESH_MAX)
        if self._is_stale or len(self._dirty) > few:
            self.rescan()
        elif self._dirty:
            self.refresh(self._dirty)
            self._dirty.clear()

    def refresh(self, addresses: Iterable[PCIDeviceAddress]) -> list[PCIDevice]:
        """
        Read some functions again, whether an event named them or not; return those that are there.

        Raises:
            SysfsError: an attribute is there and cannot be read.
        """
        asked = sorted(set(addresses))
        self.functions.update(asked, self._reader.read(asked))
        found = (self.functions.find(address) for address in asked)
        return [dev for dev in found if dev is not None]

    def rescan(self) -> None:
        """
        Read all functions again.

        Raises:
            SysfsError: an attribute is there and cannot be read.
        """
        self.functions.replace(pciscan.scan(self.root))
        self.rescans += 1
        self._dirty.clear()
        self._is_stale = False


def events_lost() -> OSError:
    """Return what a source raises when events were lost, as the kernel's sockets do."""
    return OSError(errno.ENOBUFS, "The kernel's events came faster than they were read")
