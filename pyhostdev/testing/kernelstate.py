# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a kernel knows and sysfs does not show: id tables, dynamic ids, writes that hang, who holds a group.

Kept in ``DIR/fakehost.state``, so that every process that simulates on DIR is the same kernel. A described host has
the file from the start. On a tree that somebody else made it appears with the first write, holds what the bindings
taught, and goes when every function is back on its first driver: the tree is then as it came.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from pyhostdev.testing.driverspec import DriverSpec, driver_kind
from pyhostdev.testing.simdevice import SimDevice, drop_file, find_device, link_name, list_dir, put_file, read_file

if TYPE_CHECKING:
    from pyhostdev.util.hostroot import HostRoot

STATE_FILE = "fakehost.state"
PARKED = "fakehost.parked"  # directories that belong to a driver and went with it
REMOVED = "fakehost.removed"  # functions taken off the bus
_VERSION = 1


class Pending(NamedTuple):
    """
    One write that has not come back.

    ``stage`` says what is left: "remove" or "probe" (that half of unbind or bind, in ``driver``), or "write" (all of
    it). ``reason`` says until when: "held" while somebody holds the device open, "hang" until complete(), "queued"
    behind the write that has the device's lock, "running" when the simulating process died in the middle. One with
    ``lands`` False leaves no effect. ``ours`` are the writes of a SysfsWriter, which keep its later ones away.
    """

    device: str
    path: str
    value: str
    stage: str
    driver: str
    reason: str
    lands: bool
    ours: bool


class KernelState:
    """The state of one simulated kernel, as it is in its file."""

    __slots__ = (
        "described",
        "drivers",
        "dynamic",
        "held",
        "moved",
        "override_changed",
        "pending",
        "removed",
        "reset_methods",
        "taught",
        "uevent_driver",
    )

    def __init__(self) -> None:
        self.described = False
        self.taught = False  # by a write: the tree's bindings do not show it
        self.override_changed = False  # in this write, of a function on vfio-pci; not kept in the file
        self.uevent_driver = True
        self.drivers: dict[str, DriverSpec] = {}
        self.dynamic: dict[str, list[str]] = {}
        self.held: dict[str, list[str]] = {}
        self.moved: dict[str, str | None] = {}
        self.pending: list[Pending] = []
        self.removed: dict[str, tuple[str, int | None]] = {}
        self.reset_methods: dict[str, str] = {}

    @property
    def is_learnable(self) -> bool:
        """True when nothing is kept that no tree can teach."""
        lists = (self.moved, self.pending, self.removed, self.reset_methods, self.held)
        kept = (self.described, self.taught, *lists)
        return not any(kept)

    def driver(self, name: str) -> DriverSpec:
        """Return what is known of a driver; one that nobody described matches nothing."""
        return self.drivers.get(name) or DriverSpec(name, kind=driver_kind(name))

    def to_json(self) -> dict[str, Any]:
        """Return the file's content."""
        return {
            "version": _VERSION,
            "described": self.described,
            "taught": self.taught,
            "uevent_driver": self.uevent_driver,
            "drivers": [list(spec) for spec in self.drivers.values()],
            "dynamic": self.dynamic,
            "held": self.held,
            "moved": self.moved,
            "pending": [list(entry) for entry in self.pending],
            "removed": self.removed,
            "reset_methods": self.reset_methods,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> KernelState:
        """Return the state that a file holds."""
        state = cls()
        state.described = data["described"]
        state.taught = data["taught"]
        state.uevent_driver = data["uevent_driver"]
        for name, ids, *rest in data["drivers"]:
            state.drivers[name] = DriverSpec(name, tuple(ids), *rest)
        state.dynamic = data["dynamic"]
        state.held = data["held"]
        state.moved = data["moved"]
        state.pending = [Pending(*entry) for entry in data["pending"]]
        state.removed = {name: (path, group) for name, (path, group) in data["removed"].items()}
        state.reset_methods = data["reset_methods"]
        return state


def _learn_binding(state: KernelState, device: SimDevice, driver: str) -> None:
    """A driver matches what it is bound to; vfio-pci without an override has been given a dynamic id."""
    spec = state.driver(driver)
    if spec.kind == "vfio" and device.override == driver:
        return
    pattern = f"{device.number('vendor') & 0xFFFF:04x}:{device.number('device') & 0xFFFF:04x}"
    if spec.kind == "vfio":
        ids = state.dynamic.setdefault(driver, [])
        ids += [pattern] if pattern not in ids else []
    elif pattern not in spec.ids:
        state.drivers[driver] = spec._replace(ids=(*spec.ids, pattern))


def learn_state(root: HostRoot) -> KernelState:
    """
    Return what the bindings of a tree teach.

    Host: reads the ``driver`` link of every function, ids and override of the bound ones, ``uevent`` of one of them.
    """
    state = KernelState()
    state.uevent_driver = False
    for name in list_dir(root.pci_drivers):
        state.drivers[name] = state.driver(name)
    bound: SimDevice | None = None
    for name in list_dir(root.pci_devices):
        driver = link_name(os.path.join(root.pci_devices, name, "driver"))
        device = None if driver is None else find_device(root, name)
        if driver is not None and device is not None:
            bound = device
            _learn_binding(state, device, driver)
    if bound is not None:
        state.uevent_driver = b"DRIVER=" in (bound.read("uevent") or b"")
    return state


class StateFile:
    """Reads and writes the state of one tree; the caller holds the tree's lock."""

    def __init__(self, root: HostRoot) -> None:
        self.root = root
        self.path = root.join(STATE_FILE)
        self._text: bytes | None = None
        self._learned: dict[str, Any] | None = None

    def load(self) -> KernelState:
        """Return the state as the file has it, or what the tree teaches where there is none."""
        self._text = read_file(self.path)
        if self._text is None:
            state = learn_state(self.root)
            self._learned = state.to_json()
            return state
        import json

        self._learned = None
        return KernelState.from_json(json.loads(self._text))

    def save(self, state: KernelState) -> None:
        """Write the state when it has changed, by rename: a reader sees the old or the new one."""
        if state.is_learnable and self._teaches(state):
            drop_file(self.path)
            self._text = None
            return
        import json

        text = json.dumps(state.to_json(), separators=(",", ":")).encode()
        if text != self._text:
            temporary = f"{self.path}.{os.getpid()}"
            put_file(temporary, text)
            os.rename(temporary, self.path)
            self._text = text

    def _teaches(self, state: KernelState) -> bool:
        """True when the tree alone would teach this state again."""
        wanted = state.to_json()
        if self._text is None and self._learned == wanted and not state.override_changed:
            return True
        return learn_state(self.root).to_json() == wanted
