# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The state of a kernel that sysfs does not show: id tables, dynamic ids, hanging writes, holders of groups.

It is kept in ``DIR/fakehost.state``, so that all processes that simulate on DIR share one kernel. A described host has
the file from the start. On any other tree the file appears with the first write and starts with what the bindings
show. It is removed when every function is back on its first driver: the tree is then in its original form.
"""

from __future__ import annotations

import os
from itertools import pairwise

from pyhostdev.errors import ConfigError, HostdevError
from pyhostdev.testing.driverspec import DriverSpec, driver_kind
from pyhostdev.testing.simdevice import SimDevice, find_device
from pyhostdev.util.hostroot import check_driver_name
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.testing.tree import Tree
    from pyhostdev.util.hostroot import HostRoot

STATE_FILE = "fakehost.state"
PARKED = "fakehost.parked"  # directories of a driver, moved away when it was unbound
REMOVED = "fakehost.removed"  # functions removed from the bus
_VERSION = 1


class Pending(NamedTuple):
    """
    One write that has not returned.

    ``stage`` tells what is left: "remove" or "probe" (that half of an unbind or bind, in ``driver``), or "write" (all
    of it). ``reason`` tells how long it waits: "held" while the device is held open, "hang" until complete(), "queued"
    behind the write that holds the device's lock, "running" if the simulating process died in the middle. A write
    with ``lands`` False has no effect. ``ours`` marks a write of a SysfsWriter, which blocks its later writes.
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
    """The state of one simulated kernel, as stored in its file."""

    __slots__ = (
        "described",
        "drivers",
        "dynamic",
        "has_hidden_state",
        "held",
        "moved",
        "override_changed",
        "pending",
        "removed",
        "reset_methods",
        "uevent_driver",
        "vfio_free",
    )

    def __init__(self) -> None:
        self.described = False
        self.has_hidden_state = False  # a write changed state that the tree's bindings do not show
        self.override_changed = False  # in this write, for a function on vfio-pci; not saved in the file
        self.uevent_driver = True
        self.drivers: dict[str, DriverSpec] = {}
        self.dynamic: dict[str, list[str]] = {}
        self.held: dict[str, list[str]] = {}
        self.moved: dict[str, str | None] = {}
        self.pending: list[Pending] = []
        self.removed: dict[str, tuple[str, int | None]] = {}
        self.reset_methods: dict[str, str] = {}
        self.vfio_free: list[int] | None = None  # sorted; all after the last are free too; None: not counted yet

    @property
    def is_learnable(self) -> bool:
        """True if all of the state can be learned from a tree."""
        lists = (self.moved, self.pending, self.removed, self.reset_methods, self.held)
        kept = (self.described, self.has_hidden_state, *lists)
        return not any(kept)

    def driver(self, name: str) -> DriverSpec:
        """Return the description of a driver; an undescribed driver matches nothing."""
        return self.drivers.get(name) or DriverSpec(name, kind=driver_kind(name))

    def to_json(self) -> dict[str, Any]:
        """Return the contents of the file."""
        return {
            "version": _VERSION,
            "described": self.described,
            "taught": self.has_hidden_state,
            "uevent_driver": self.uevent_driver,
            "drivers": [list(spec) for spec in self.drivers.values()],
            "dynamic": self.dynamic,
            "held": self.held,
            "moved": self.moved,
            "pending": [list(entry) for entry in self.pending],
            "removed": self.removed,
            "reset_methods": self.reset_methods,
            **({} if self.vfio_free is None else {"vfio_free": self.vfio_free}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> KernelState:
        """
        Return the state stored in a file.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, ConfigError: the contents are invalid.
        """
        state = cls()
        state.described = bool(data["described"])
        state.has_hidden_state = bool(data["taught"])
        state.uevent_driver = bool(data["uevent_driver"])
        state.drivers = {spec.name: spec for spec in map(_driver_of, data["drivers"])}
        state.dynamic = {check_driver_name(name): _texts(ids) for name, ids in data["dynamic"].items()}
        state.held = {f"{int(group)}": _texts(names) for group, names in data["held"].items()}
        state.moved = {_device(name): driver and check_driver_name(driver) for name, driver in data["moved"].items()}
        state.pending = [_pending_of(entry) for entry in data["pending"]]
        state.removed = {_device(name): _removed_of(*entry) for name, entry in data["removed"].items()}
        state.reset_methods = {_device(name): _text(methods) for name, methods in data["reset_methods"].items()}
        state.vfio_free = _numbers(data["vfio_free"]) if "vfio_free" in data else None
        return state


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a text")
    return value


def _texts(values: Any) -> list[str]:
    return [_text(value) for value in values]


def _numbers(values: Any) -> list[int]:
    """Return numbers that ascend from at least zero."""
    numbers = [-1, *map(int, values)]
    if len(numbers) == 1 or any(a >= b for a, b in pairwise(numbers)):
        raise ValueError("these are not free numbers")
    return numbers[1:]


def _device(name: str) -> str:
    """Return a function's name after checking it, because it becomes part of a path."""
    if str(PCIDeviceAddress.parse(name)) != name:
        raise ValueError(f"{name!r:.40} is not the name of a function")
    return name


def _driver_of(fields: Any) -> DriverSpec:
    name, ids, kind, module, *rest = fields
    if module is not None:
        check_driver_name(module)
    availability, probe, remove = (text and _text(text) for text in rest)
    return DriverSpec(check_driver_name(name), tuple(_texts(ids)), _text(kind), module, availability, probe, remove)


def _pending_of(fields: Any) -> Pending:
    device, path, value, stage, driver, reason = _texts(fields[:6])
    lands, ours = map(bool, fields[6:])
    entry = Pending(device, path, value, stage, driver, reason, lands, ours)
    if entry.driver and entry.stage != "write":
        check_driver_name(entry.driver)
    bytes.fromhex(entry.value)
    return entry


def _removed_of(path: Any, group: Any) -> tuple[str, int | None]:
    """Return the path of a removed function below the root, and its group."""
    parts = _text(path).split("/")
    if parts[0] != "sys" or ".." in parts:
        raise ValueError(f"{path!r:.40} is not below sys")
    return path, None if group is None else int(group)


def _learn_binding(state: KernelState, device: SimDevice, driver: str) -> None:
    """A driver matches the functions bound to it; vfio-pci without an override must have a dynamic id."""
    spec = state.driver(driver)
    if spec.kind == "vfio" and device.override == driver:
        return
    pattern = f"{device.number('vendor') & 0xFFFF:04x}:{device.number('device') & 0xFFFF:04x}"
    if spec.kind == "vfio":
        ids = state.dynamic.setdefault(driver, [])
        ids += [pattern] if pattern not in ids else []
    elif pattern not in spec.ids:
        state.drivers[driver] = spec._replace(ids=(*spec.ids, pattern))


def learn_state(tree: Tree) -> KernelState:
    """
    Return the state that the bindings of a tree show.

    Host: reads the ``driver`` link of every function, ids and override of bound functions, ``uevent`` of one of them
    """
    root = tree.root
    state = KernelState()
    state.uevent_driver = False
    for name in tree.list_dir(root.pci_drivers):
        state.drivers[name] = state.driver(name)
    bound = list(_bound_devices(tree))
    for device, driver in bound:
        _learn_binding(state, device, driver)
    if bound:
        state.uevent_driver = b"DRIVER=" in (bound[-1][0].read("uevent") or b"")
    return state


def _bound_devices(tree: Tree) -> Iterator[tuple[SimDevice, str]]:
    for name in tree.list_dir(tree.root.pci_devices):
        driver = tree.link_name(os.path.join(tree.root.pci_devices, name, "driver"))
        device = None if driver is None else find_device(tree, name)
        if driver is not None and device is not None:
            yield device, driver


class StateFile:
    """Reads and writes the state of one tree; the caller holds the tree's lock."""

    def __init__(self, root: HostRoot) -> None:
        self.path = root.join(STATE_FILE)
        self._text: bytes | None = None
        self._saved: KernelState | None = None  # the state in the text; None while it may change
        self._learned: dict[str, Any] | None = None

    def load(self, tree: Tree) -> KernelState:
        """
        Return the state from the file, or the state learned from the tree if there is no file.

        Raises:
            ConfigError: the contents of the file are invalid.
        """
        text = tree.read_file(self.path)
        saved, self._saved = self._saved, None
        if saved is not None and text == self._text:
            saved.override_changed = False
            return saved
        self._text = text
        if text is None:
            state = learn_state(tree)
            self._learned = state.to_json()
            return state
        from pyhostdev.util.virjson import parse_json

        self._learned = None
        try:
            return KernelState.from_json(parse_json(text))
        except (ValueError, TypeError, KeyError, AttributeError, HostdevError) as err:
            raise ConfigError(f"'{self.path}' is not the state of a simulated kernel ({err})") from None

    def keep(self, state: KernelState) -> None:
        """Keep a loaded state that nothing has changed."""
        self._saved = None if self._text is None else state

    def save(self, tree: Tree, state: KernelState) -> None:
        """Write the state if it has changed, by a rename: a reader sees the old or the new state."""
        if state.is_learnable and self._is_learned_from_tree(tree, state):
            if self._text is not None:
                tree.drop_file(self.path)
                tree.sweep()
            self._text = self._saved = None
            return
        import json

        text = json.dumps(state.to_json(), separators=(",", ":")).encode()
        if text != self._text:
            tree.replace_file(self.path, text)
        self._text, self._saved = text, state

    def _is_learned_from_tree(self, tree: Tree, state: KernelState) -> bool:
        """True if this state can be learned from the tree alone."""
        wanted = state.to_json()
        wanted.pop("vfio_free", None)  # can be counted again
        if self._text is None and self._learned == wanted and not state.override_changed:
            return True
        return learn_state(tree).to_json() == wanted
