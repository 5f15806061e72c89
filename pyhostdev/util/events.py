# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The host's PCI functions, kept up to date by kernel events.

An event only tells where to look; the state is always read from sysfs.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Protocol

from pyhostdev.errors import ConfigError, InvalidAddressError
from pyhostdev.util import pciscan, scanrefresh
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.livescan import LiveScan
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virpci import PCIDevice

BATCH_MAX = 1024  # events per poll, so that a poll returns even during a storm of events
REFRESH_MAX = 8  # a rescan costs more than reading an eighth of all functions one by one
_REFRESH_MIN = 64  # functions that are read one by one on any host
_RECEIVE_BUFFER = 16 << 20  # some 50,000 events: one write can create thousands of VFs


class PCIEvent(NamedTuple):
    """One kernel event; ``action`` is add, remove, bind, unbind, change, online, offline or move."""

    action: str
    address: PCIDeviceAddress


class EventSource(Protocol):
    """A source of events; it listens from the moment it is created."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when an event is waiting."""

    def receive(self, timeout_s: float) -> PCIEvent | None:
        """
        Return the next event, None if none arrives in time.

        Raises:
            OSError: events were lost.
        """

    def restart(self) -> None:
        """Start listening again, without the queued events."""

    def close(self) -> None:
        """Stop listening."""


class UdevEvents:
    """
    The kernel events of the PCI bus, before udev has processed them.

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
        with suppress(OSError):  # an unprivileged user keeps the default size, and rescans more often
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
                continue  # not a function: a port's services have a bus of their own
        return None

    def close(self) -> None:
        """Close the socket."""
        del self._monitor  # pyudev closes the socket with the last reference


class PCIMonitor:
    """
    A scan that follows changes: add, remove, bind, unbind, VFs.

        with PCIMonitor(HostRoot()) as monitor:
            while True:
                for event in monitor.poll(timeout_s=60):
                    print(event.action, monitor.functions.find(event.address))

    ``functions`` equals a scan once the kernel is quiet and all its events were polled. Between two polls it does not
    change, and its indexes make no system call. A caller with an event loop waits for ``fileno()`` itself.

    Args:
        source: events for a root other than /, which has no kernel to listen to.

    Raises:
        ConfigError: the root is a directory and has no source, or pyudev is not installed.
        SysfsError: an attribute exists but cannot be read.
    """

    def __init__(self, root: HostRoot, source: EventSource | None = None) -> None:
        if source is None and not root.is_live:
            raise ConfigError(f"The directory {root.path} has no source of events")
        self.root = root
        self.source: EventSource = UdevEvents() if source is None else source
        self.rescans = 0
        self._dirty: set[PCIDeviceAddress] = set()
        self._is_stale = False
        with ExitStack() as undo:
            undo.callback(self.source.close)
            self._reader = pciscan.FunctionReader(root)
            undo.callback(self._reader.close)
            # The source is already listening: changes during the scan are read again afterwards.
            self._whole = scanrefresh.scan(root)
            self.functions = LiveScan(root, self._whole)
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
        Apply the pending kernel events and return them; read everything again if events were lost.

        An empty list means that nothing happened, unless ``rescans`` has increased. A function that could not be read
        is read again at the next call.

        Args:
            timeout_s: how long to wait for the first event.

        Raises:
            SysfsError: an attribute exists but cannot be read.
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

        A VF's ``add`` comes before its ``physfn`` link. If the VF gets no driver, only ``change`` follows: the PF's at
        the end, and the VF's own if the kernel sends one [measured on 6.1].

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

    def refresh(self, addresses: Iterable[PCIDeviceAddress | str]) -> list[PCIDevice]:
        """
        Read some functions again, whether an event named them or not; return those that exist.

        Raises:
            SysfsError: an attribute exists but cannot be read.
        """
        asked = sorted(set(map(PCIDeviceAddress.of, addresses)))
        self.functions.update(asked, self._reader.read(asked))
        found = (self.functions.find(address) for address in asked)
        return [dev for dev in found if dev is not None]

    def rescan(self) -> None:
        """
        Read all functions again, but none that is proven unchanged since all were read the last time.

        Raises:
            SysfsError: an attribute exists but cannot be read.
        """
        self._whole = scanrefresh.refresh(self.root, self._whole)
        self.functions.replace(self._whole)
        self.rescans += 1
        self._dirty.clear()
        self._is_stale = False


def events_lost() -> OSError:
    """Return the error that a source raises when events were lost, like a kernel socket."""
    return OSError(errno.ENOBUFS, "The kernel's events came faster than they were read")
