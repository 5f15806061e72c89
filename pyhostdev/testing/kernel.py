# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A simulated kernel that reacts to writes in a directory that looks like a host.

It implements the SysfsWriter protocol, as the helper of the live host does, on any tree. It keeps no state of its own:
every write reads the tree, so two processes that simulate on one directory see the same kernel.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from pyhostdev.errors import (
    VIR_ERR_INTERNAL_ERROR,
    ConfigError,
    InDoubtError,
    InternalError,
    OperationError,
    SysfsError,
)
from pyhostdev.testing import attributes
from pyhostdev.testing.answers import Blocked, NotSimulated, Refusal, SimulatedKill
from pyhostdev.testing.drivercore import DriverCore
from pyhostdev.testing.kernelstate import Pending, StateFile
from pyhostdev.testing.nodefiles import SimulatedNodes, react_on_node
from pyhostdev.testing.simdevice import find_device
from pyhostdev.testing.sysfspaths import is_node, path_components
from pyhostdev.testing.tree import Tree, is_live_host
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyhostdev.testing.faults import Fault
    from pyhostdev.util.hostroot import HostRoot

IN_DOUBT = "in-doubt"


class TraceEntry(NamedTuple):
    """One write: path below the root, value, and "ok", "in-doubt" or the errno's name."""

    path: str
    value: bytes
    result: str


class SimulatedKernel(SimulatedNodes):
    """
    The kernel of one fake host; a SysfsWriter.

    ``trace`` lists the writes of this object, including the loading of modules; ``writes`` counts them. A hanging
    write raises InDoubtError at once, without waiting for a deadline. With ``raw``, it writes like a shell: empty
    values are written, too, and the in-flight lock, which keeps a SysfsWriter from a device in doubt, is ignored.
    """

    def __init__(
        self,
        root: HostRoot,
        *,
        privileged: bool = True,
        read_only: bool = False,
        raw: bool = False,
    ) -> None:
        if is_live_host(root):
            raise ConfigError("The kernel of the live host cannot be simulated")
        self.root = root
        self.privileged = privileged
        self.read_only = read_only
        self.raw = raw
        self.trace: list[TraceEntry] = []
        self.events: list[tuple[str, str]] = []  # action and address, as sent to listeners
        self.writes = 0
        self.killed = False
        self._file = StateFile(root)
        self._faults: dict[int, list[Fault]] = {}
        self._block_next: bool | None = None  # None: no; else whether the write will land

    # The SysfsWriter protocol

    def write(self, path: str, value: bytes, *, device: PCIDeviceAddress | str) -> None:
        """
        Write a whole attribute.

        Raises:
            SysfsError: the kernel refuses, or the attribute does not exist.
            InDoubtError: the write hangs, or an earlier write to the device hangs.
            InternalError: the value is empty; the kernel would ignore it.
            NotSimulated: the effect of the write is not simulated.
        """
        device = PCIDeviceAddress.of(device)
        if not value and not self.raw:
            raise InternalError(f"An empty write to '{path}' would change nothing")
        result = self._answer(os.path.relpath(path, self.root.path), value, str(device))
        doing = f"write '{_printable(value)}'"
        if result == IN_DOUBT:
            message = f"Device {device} is in doubt: could not {doing} to '{path}'"
            raise InDoubtError(message, reason=IN_DOUBT, address=device)
        if result != "ok":
            raise SysfsError(getattr(errno, result), path, doing, address=device)

    def load_module(self, name: str) -> None:
        """
        Load a module; its drivers bind to the unbound functions that they match.

        Raises:
            OperationError: the host does not have the module, or may not load it.
            InDoubtError: loading hangs.
        """
        result = self._answer(f"modprobe/{name}", b"", "")
        if result == IN_DOUBT:
            raise InDoubtError(f"Loading the module '{name}' has not finished", reason=IN_DOUBT)
        if result != "ok":
            why = "the kernel has no such module"
            if result != "ENOENT":
                why = os.strerror(getattr(errno, result))
            reason = "vfio-missing" if name.startswith("vfio") else "driver-missing"
            text = f"Cannot load the module '{name}': {why}"
            raise OperationError(text, reason=reason, libvirt_code=VIR_ERR_INTERNAL_ERROR)

    def is_in_flight(self, device: PCIDeviceAddress | str) -> bool:
        """True while a write to the device has not returned, by any SysfsWriter."""
        device = PCIDeviceAddress.of(device)
        if not os.path.lexists(self._file.path):
            return False
        with self.entered(changes=False) as core:
            return core.is_in_flight(str(device))

    def is_group_open(self, path: str) -> bool:
        """Tell whether the kernel reports the node of a group as open."""
        if not os.path.lexists(self._file.path):
            return False
        with self.entered(changes=False) as core:
            return core.groups.is_busy(int(os.path.basename(path)))

    # One write

    def _answer(self, path: str, value: bytes, device: str) -> str:
        """Apply the faults of this write and the kernel's reaction; record and return the result."""
        if self.killed:
            raise SimulatedKill
        self.writes += 1
        faults = self._faults.pop(self.writes, [])
        result = "ok"
        try:
            for fault in faults:
                fault.before(self)
            self._react(path, value, device)
        except Refusal as refusal:
            result = errno.errorcode[refusal.errnum]
        except Blocked:
            result = IN_DOUBT
        self._block_next = None
        self.trace.append(TraceEntry(path, value, result))
        for fault in faults:
            fault.after(self)
        return result

    def _react(self, path: str, value: bytes, device: str) -> None:
        with self.entered() as core:
            self._check_access(path)
            if core.ours and core.is_in_flight(device) and not is_node(path):
                raise Blocked
            self._hang(core, path, value, device)
            try:
                self._dispatch(core, path, value)
            except Blocked:
                self._queue(core, path, value, device)
                raise

    def _check_access(self, path: str) -> None:
        if self.read_only and path.startswith("sys/"):
            raise Refusal(errno.EROFS)
        if not self.privileged:
            raise Refusal(errno.EACCES if path.startswith("sys/") else errno.EPERM)

    def _hang(self, core: DriverCore, path: str, value: bytes, device: str) -> None:
        """
        Prepare a hang: a bind or an unbind hangs in the middle, any other write before its start.

        Raises:
            Blocked: the write hangs here.
        """
        if self._block_next is None or is_node(path):
            return
        halves = path.endswith(("/bind", "/unbind", "/drivers_probe"))
        if self._block_next and halves:
            core.block_next = True
            return
        lands, ours = self._block_next, core.ours
        entry = Pending(device, path, value.hex(), "write", "", "hang", lands=lands, ours=ours)
        core.state.pending.append(entry)
        raise Blocked

    def _queue(self, core: DriverCore, path: str, value: bytes, device: str) -> None:
        """Record a write that waits for a lock; a write stuck inside a driver is already recorded."""
        waiting, core.waiting_for = core.waiting_for, None
        if waiting is not None:
            entry = Pending(device, path, value.hex(), "write", waiting, "queued", True, core.ours)
            core.state.pending.append(entry)

    def _dispatch(self, core: DriverCore, path: str, value: bytes) -> None:
        """
        Find the owner of an attribute and let it react.

        Raises:
            Refusal: ENOENT if the attribute does not exist.
        """
        match path_components(path):
            case ["module", name]:
                core.load_module(name)
            case ["node", *_]:
                react_on_node(core.tree, self.root.join(path), value)
            case ["bus", name]:
                self._write_bus(core, name, value)
            case ["driver", driver, name]:
                self._write_driver(core, driver, name, value)
            case ["device", address, "driver", name]:
                device = find_device(core.tree, address)
                if device is None or device.driver is None:
                    raise Refusal(errno.ENOENT)
                self._write_driver(core, device.driver, name, value)
            case ["device", address, name]:
                self._write_device(core, address, name, value)
            case _:
                raise NotSimulated(f"Writing '{path}' is not simulated")

    def _write_bus(self, core: DriverCore, name: str, value: bytes) -> None:
        if name not in attributes.BUS_ATTRIBUTES:
            raise NotSimulated(f"Writing the bus attribute '{name}' is not simulated")
        if value:
            attributes.BUS_ATTRIBUTES[name](core, value)

    def _write_driver(self, core: DriverCore, driver: str, name: str, value: bytes) -> None:
        if not core.tree.is_directory(os.path.join(self.root.pci_drivers, driver)):
            raise Refusal(errno.ENOENT)
        if name not in attributes.DRIVER_ATTRIBUTES:
            raise NotSimulated(f"Writing the driver attribute '{name}' is not simulated")
        if value:
            attributes.DRIVER_ATTRIBUTES[name](core, core.state.driver(driver), value)

    def _write_device(self, core: DriverCore, address: str, name: str, value: bytes) -> None:
        device = find_device(core.tree, address)
        if device is None or device.read(name) is None:
            raise Refusal(errno.ENOENT)
        if name not in attributes.DEVICE_ATTRIBUTES:
            raise NotSimulated(f"Writing the device attribute '{name}' is not simulated")
        if value:  # kernfs does not call the handler for an empty write
            attributes.DEVICE_ATTRIBUTES[name](core, device, value)

    # State

    @contextlib.contextmanager
    def entered(self, *, changes: bool = True) -> Iterator[DriverCore]:
        """
        Hold the tree's lock and yield the state that the last write left; save its changes.

        Args:
            changes: False for a caller that only reads the state: then there is nothing to save.

        Raises:
            SysfsError: the tree contains something that a kernel does not create, such as a pipe as an attribute.
        """
        try:
            with self._entered(changes) as core:
                yield core
        except SysfsError:
            raise
        except OSError as err:
            where = err.filename or self.root.path
            raise SysfsError(err.errno or errno.EIO, where, "simulate the kernel") from err

    @contextlib.contextmanager
    def _entered(self, changes: bool) -> Iterator[DriverCore]:
        with Tree(self.root) as tree:
            fcntl.flock(tree.fileno(), fcntl.LOCK_EX)
            state = self._file.load(tree)
            core = DriverCore(tree, state, lambda: self._file.save(tree, state))
            core.events = self.events
            changes = changes or bool(state.pending)  # which may be finished now
            self._settle(core)
            core.ours = not self.raw
            try:
                yield core
            finally:
                if changes:
                    self._file.save(tree, state)
                else:
                    self._file.keep(state)

    def _settle(self, core: DriverCore) -> None:
        """Finish the pending writes that no longer have to wait."""
        over = [entry for entry in core.state.pending if _is_over(core, entry)]
        while over:
            with contextlib.suppress(Refusal, Blocked):
                self._finish(core, over[0])
            over = [entry for entry in core.state.pending if _is_over(core, entry)]

    def _finish(self, core: DriverCore, entry: Pending) -> None:
        if entry.stage != "write":
            core.finish(entry)
            return
        core.state.pending.remove(entry)
        core.ours = entry.ours
        if not entry.lands:
            return
        try:
            self._dispatch(core, entry.path, bytes.fromhex(entry.value))
        except Blocked:
            self._queue(core, entry.path, bytes.fromhex(entry.value), entry.device)

    # Controls for tests

    def inject(self, number: int, *faults: Fault) -> None:
        """Inject faults at the number-th write from now, counted from 1."""
        self._faults.setdefault(self.writes + number, []).extend(faults)

    def block_next(self, *, lands: bool) -> None:
        """Make the current write hang."""
        self._block_next = lands

    def kill(self) -> None:
        """
        Kill the writing process: later writes of this object have no effect.

        Raises:
            SimulatedKill: always.
        """
        self.killed = True
        raise SimulatedKill

    def foreign(self) -> SimulatedKernel:
        """Return the same kernel for a shell: without faults, with a separate trace."""
        shell = SimulatedKernel(self.root, raw=True)
        shell.events = self.events
        return shell

    def complete(self, device: PCIDeviceAddress | str | None = None) -> None:
        """Let the hanging writes return, of one device or of all devices, and the writes queued behind them."""
        device = None if device is None else PCIDeviceAddress.of(device)
        with self.entered() as core:
            for index, entry in enumerate(core.state.pending):
                chosen = device is None or entry.device == str(device)
                if chosen and entry.reason in ("hang", "held"):
                    core.state.pending[index] = entry._replace(reason="running")
            self._settle(core)

    def vanish(self, address: PCIDeviceAddress | str, *, for_ever: bool = False) -> None:
        """Remove a function at once, as a surprise removal does; a rescan finds it again unless ``for_ever``."""
        address = PCIDeviceAddress.of(address)
        from pyhostdev.testing import hotplug

        with self.entered() as core:
            device = find_device(core.tree, str(address))
            if device is not None:
                hotplug.vanish(core, device)
            if for_ever:
                hotplug.forget(core, address)

    def change_driver(self, name: str, *, probe: str | None = None, remove: str | None = None) -> None:
        """
        Make a driver misbehave from now on, in every process, or make it behave again.

        Args:
            probe: the name of an errno, "defer" or "hang".
            remove: "hang", or "vfs" to remove the function's VFs first.
        """
        with self.entered() as core:
            spec = core.state.driver(name)
            core.state.drivers[name] = spec._replace(probe=probe, remove=remove)
            core.state.has_hidden_state = True

    @contextlib.contextmanager
    def open_group(self, group: int, devices: Sequence[PCIDeviceAddress | str] | None = None) -> Iterator[int]:
        """
        Hold a group as QEMU does: the node, its container, and devices of the group (by default all on vfio drivers).

        Returns:
            The descriptor that holds the group.

        Raises:
            SysfsError: ENOENT without a node, EBUSY if the node is already open, EPERM if the group is not viable.
        """
        from pyhostdev.testing.guest import SimulatedGuest  # verbs run no guest

        chosen = None if devices is None else [*map(PCIDeviceAddress.of, devices)]
        guest = SimulatedGuest(self, group, chosen)
        try:
            yield guest.fd
        finally:
            guest.vanish()
            guest.let_go()


def _is_over(core: DriverCore, entry: Pending) -> bool:
    if entry.reason == "running":
        return True
    device = find_device(core.tree, entry.device)
    if entry.reason == "held":
        return device is None or not core.groups.is_device_held(device)
    if entry.reason == "queued":
        blocker = find_device(core.tree, entry.driver)
        return blocker is None or core.lock_holder(blocker) is None
    return False


def _printable(value: bytes) -> str:
    return value.decode("ascii", "backslashreplace").replace("\n", "\\n")
