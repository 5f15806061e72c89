# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Answer the questions of the oracle's compare.py through the public API.

    oracle_server.py [--libvirt RELEASE] SYSFS DEV

The answers are those of a libvirt release with the QEMU that goes with it; of 9.0 without the option.
SYSFS is DIR/sys of a host that takes the place of /. Reads lines "KIND<TAB>FILE<TAB>EXTRA" and answers each
with one line of JSON: {"ok": value}, or {"error": message, "code": libvirt's error number}. What a start does
happens in a kernel that refuses nothing, and is as before when the answer is given; completeness is left to QEMU, as
libvirt does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pyhostdev import DomainDef, DomainHostdevDef, Host, HostdevManager, HostRoot, PCIDeviceAddress, Plan
from pyhostdev.conf.hostdev_conf import USBSource
from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.conf.net_conf import DomainNetDef
from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError, ConfigUnsupportedError, HostdevError
from pyhostdev.qemu import attach_device, build_command_line, define, detach_device, update_device
from pyhostdev.qemu.qemu_command import stored_capabilities
from pyhostdev.qemu.qemu_driver import plan, refuse_missing_storage
from pyhostdev.qemu.qemu_hotplug import Guest
from pyhostdev.qemu.qemu_hotplug.connection import PERIPHERAL, QEMURefusedError
from pyhostdev.qemu.qemu_hotplug.livestate import live_definition, parse_hostdevs
from pyhostdev.qemu.qemu_process.iommufd import refuse_missing_descriptors
from pyhostdev.util.modprobe import module_error

OLDEST = RELEASES[0]
NO_TAP = 3  # compare.py does not look at a tap's descriptor
NO_NODE = 4  # nor at those of iommufd
GIVEN = "-associated.xml"  # a case of this name was recorded with the descriptors that it names
RENDER_NODE = "renderD128"
GIVEN_BACK = ""


def parse(path: str) -> DomainDef:
    """Read a definition from a file."""
    return DomainDef.parse(Path(path).read_bytes())


class Write(NamedTuple):
    """One write that reached the kernel."""

    path: str
    value: bytes
    result: str


class RecordingKernel:
    """
    The kernel that the answers were recorded on: it refuses nothing, not even what a real vfio-pci would.

    A SysfsWriter that moves the links of drivers and remembers the writes.
    """

    def __init__(self, root: HostRoot) -> None:
        self.root = root
        self.trace: list[Write] = []
        self.links: dict[tuple[Path, Path], Path] = {}  # as they were before an unbind
        self.overrides: dict[PCIDeviceAddress, bytes] = {}  # as they were before the first write

    def write(self, path: str, value: bytes, *, device: PCIDeviceAddress) -> None:
        """Take a driver override, an unbind or a bind; all else is only remembered."""
        self.trace.append(Write(path.removeprefix(self.root.path), value, "ok"))
        top = Path(self.root.pci_device(device))
        attribute = Path(path)
        if attribute.name == "driver_override":
            self.overrides.setdefault(device, attribute.read_bytes().strip())
            attribute.write_bytes(value.strip() + b"\n" if value.strip() else b"(null)\n")
        elif attribute.name == "unbind":
            for link in (top / "driver", attribute.parent / str(device)):
                self.links[link, attribute.parent] = link.readlink()
                link.unlink()
            self.show_node(device, None)
        elif attribute.name == "bind":
            for link, target in (
                (top / "driver", f"../../drivers/{attribute.parent.name}"),
                (attribute.parent / str(device), f"../../devices/{device}"),
            ):
                link.symlink_to(self.links.get((link, attribute.parent), target))
            self.show_node(device, attribute.parent.name)

    def show_node(self, device: PCIDeviceAddress, driver: str | None) -> None:
        """Show the function's own VFIO device while a VFIO driver holds it, on a host with iommufd."""
        folder = Path(self.root.pci_device(device), "vfio-dev")
        shutil.rmtree(folder, ignore_errors=True)
        if driver is not None and "vfio" in driver and Path(self.root.dev_iommu).exists():
            (folder / self.node_of(device)).mkdir(parents=True)

    def node_of(self, device: PCIDeviceAddress) -> str:
        """Return the name of a function's VFIO device: numbered by its place among all functions."""
        names = sorted(path.name for path in Path(self.root.pci_device(device)).parent.iterdir())
        return f"vfio{names.index(str(device))}"

    def open_node(self, path: str, number: int | None, *, device: PCIDeviceAddress) -> int:
        """Open nothing: the nodes of this host are plain files."""
        return os.open(os.devnull, os.O_RDWR)

    def open_iommufd(self, path: str) -> int:
        """Open nothing."""
        return os.open(os.devnull, os.O_RDWR)

    def charge_to_process(self, fd: int, path: str) -> None:
        """Accept."""

    def load_module(self, name: str) -> None:
        """Refuse: what this host can have is loaded."""
        raise module_error(self.root, name, 1, "")

    def is_in_flight(self, device: PCIDeviceAddress) -> bool:
        """Every write comes back."""
        return False


class QEMUWithoutDevices:
    """A running QEMU that has the devices of its command line, takes descriptors and objects, and refuses devices."""

    class RefusalError(Exception):
        """The answer to a command."""

        error_class = "GenericError"

    class Silence:
        """Events that never come."""

        async def get(self) -> dict[str, Any]:
            """Wait."""
            await asyncio.Event().wait()
            return {}

    def __init__(self, dom: DomainDef) -> None:
        self.events = self.Silence()
        self.ids = [info.alias for _, info in live_definition(dom).device_infos() if info.alias]

    def send_fd(self, fd: int) -> None:
        """Take a descriptor."""

    async def execute(self, cmd: str, arguments: dict[str, Any] | None = None) -> Any:
        """Answer questions."""
        if cmd == "query-status":
            return {"status": "running"}
        if cmd == "qom-list":
            found = self.ids if arguments == {"path": PERIPHERAL} else []
            return [{"name": name, "type": "child<device>"} for name in found]
        if cmd in ("getfd", "closefd", "object-add"):
            return {}
        raise self.RefusalError("there is no such device")


class Server:
    """One host, and the answers about definitions on it."""

    def __init__(self, sysfs: str, release: LibvirtRelease = OLDEST) -> None:
        self.release = release
        self.root = HostRoot(Path(sysfs).parent)
        self.host = Host(self.root)
        self.fd_groups: dict[str, tuple[int, ...]] = {}

    def answer(self, kind: str, path: str, extra: str) -> Any:
        """
        Return the answer to one question.

        Raises:
            HostdevError: libvirt's number is in it.
        """
        dom = parse(path)
        self.fd_groups = {str(dom.iommufd_fdgroup): (NO_NODE,)} if path.endswith(GIVEN) else {}
        if kind == "xml":
            return self.define(dom).format()
        if kind == "argv":
            return self.argv(dom)
        if kind == "start":
            return self.start(dom, extra)
        if kind == "live":
            return self.live(dom, extra)
        if kind == "edit":
            return self.edit(dom, extra)
        if kind == "plan":
            return self.explain(dom)
        raise ConfigUnsupportedError(f"'{kind}' is not answered")

    def define(self, dom: DomainDef) -> DomainDef:
        """Return the definition with defaults and addresses."""
        return define(dom, stored_capabilities(dom, self.release), self.host, release=self.release)

    def argv(self, dom: DomainDef) -> list[str]:
        """Return the command line: that of a start, whose iommufd has descriptors, where the start succeeds."""
        if not self.is_startable(dom):
            return self.build(self.as_converted(dom))
        with self.render_node():
            return self._started_argv(dom)

    @contextmanager
    def render_node(self) -> Iterator[None]:
        """Show the graphics card of the recordings, whose one node their starts name; descriptions of hosts lack it."""
        folder = Path(self.root.dev_dri)
        folder.mkdir()
        try:
            (folder / RENDER_NODE).touch()
            yield
        finally:
            shutil.rmtree(folder)

    def _started_argv(self, dom: DomainDef) -> list[str]:
        if not dom.needs_iommufd() or self.start(dom, "")["error"] is not None:
            return self.build(dom)
        return self.build(dom, vfio_fd=lambda address: NO_NODE)

    def as_converted(self, dom: DomainDef) -> DomainDef:
        """
        Return a domain as libvirt changes it before it only prints its command line, which we do not.

        Interfaces become plain taps that keep model, MAC address, script and boot order. USB devices are not looked
        for, so that one without an address is an error.

        Raises:
            ConfigError: a USB host device has no address.

        Mirrors: qemuConnectDomainXMLToNative (src/qemu/qemu_driver.c)
        """
        converted = dom.copy()  # not the complete one: what is read again has its controllers sorted
        for hostdev in converted.hostdevs:
            source = hostdev.source_def
            if isinstance(source, USBSource) and source.bus is None:
                raise ConfigError("A USB host device has no address", libvirt_code=VIR_ERR_INTERNAL_ERROR)
        for at, net in enumerate(self.define(dom).interfaces):
            if net.type != "hostdev":
                converted.interfaces[at] = _plain_tap(net)
        return converted

    def build(self, dom: DomainDef, vfio_fd: Callable[[PCIDeviceAddress | None], int] | None = None) -> list[str]:
        """
        Return the command line, with or without descriptors of VFIO nodes.

        It is that of a start where the guest could be started, which opens sockets and files for QEMU.
        """
        opener = (lambda path: NO_TAP) if self.is_startable(dom) else None
        return build_command_line(
            dom,
            host=self.host,
            state_dir="@ROOT@",
            tap_fd=lambda net: NO_TAP,
            vfio_fd=vfio_fd,
            socket_fd=opener,
            file_fd=opener,
            release=self.release,
        )

    def is_startable(self, dom: DomainDef) -> bool:
        """Tell whether the host has the images and the devices that QEMU gets; without a device none was started."""
        if not dom.pci_hostdevs():
            return False
        if any(h.is_assigned and self.host.pci_device(h.pci_address) is None for h in dom.pci_hostdevs()):
            return False
        try:
            refuse_missing_storage(dom, self.host)
        except HostdevError:
            return False
        return True

    def explain(self, dom: DomainDef) -> str:
        """Return what ``pyhostdev plan`` prints; compare.py does not ask for it, ``make prototype`` does."""
        capabilities = stored_capabilities(dom, self.release)
        found = plan(self.host, dom, capabilities=capabilities, release=self.release, fd_groups=self.fd_groups)
        return found.explain()

    def edit(self, dom: DomainDef, steps: str) -> dict[str, Any]:
        """Return the errors of changes to the definition, and what it is after all of them."""
        verbs = {"attach": attach_device, "detach": detach_device, "update": update_device}
        capabilities = stored_capabilities(dom, self.release)
        defined = self.define(dom)
        codes: list[int | None] = []
        for verb, xml in json.loads(Path(steps).read_text()):
            try:
                defined = verbs[verb](defined, xml, capabilities, self.host, self.release)
                codes.append(None)
            except HostdevError as err:
                codes.append(err.code_in(self.release))
        return {"codes": codes, "xml": defined.format()}

    def start(self, dom: DomainDef, first: str) -> dict[str, Any]:
        """Return what starting and stopping a domain does to devices, while another one runs or not."""
        with tempfile.TemporaryDirectory() as state_dir:
            kernel = RecordingKernel(self.root)
            manager = HostdevManager(Host(self.root, state_dir=state_dir, writer=kernel))
            others = [self.define(parse(first))] if first else []
            for other in others:
                manager.prepare(self.plan(manager, other))
            begin = len(kernel.trace)
            error = self._start_and_stop(manager, dom)
            steps = kernel.trace[begin:]
            for other in others:
                manager.release(other.name)
        code = None if error is None else error.code_in(self.release)
        return {"error": error and str(error), "code": code, **written(steps, kernel.overrides)}

    def _start_and_stop(self, manager: HostdevManager, dom: DomainDef) -> HostdevError | None:
        try:
            defined = DomainDef.parse(self.define(dom).format())  # libvirt starts a copy that it makes from the XML
            self.build(defined)
            self._pass_over_missing(defined)
            plan = self.plan(manager, defined)
            if plan.ok:
                refuse_missing_storage(defined, manager.host)
                refuse_missing_descriptors(defined, self.fd_groups)
            with manager.prepared(plan):
                return None
        except HostdevError as err:
            return err

    def plan(self, manager: HostdevManager, dom: DomainDef) -> Plan:
        """Plan as libvirt would: it leaves completeness to QEMU, and sets MAC and VLAN of an interface itself."""
        networks = [f"vf-network:{h.pci_address}" for h in dom.pci_hostdevs() if h.interface is not None]
        return manager.host.plan(dom, "off", accept=networks, release=self.release)

    def live(self, dom: DomainDef, steps: str) -> dict[str, Any]:
        """Return what plugging and unplugging does while a domain runs, and its host devices afterwards."""
        with tempfile.TemporaryDirectory() as state_dir:
            kernel = RecordingKernel(self.root)
            manager = HostdevManager(Host(self.root, state_dir=state_dir, writer=kernel))
            defined = self.define(dom)
            manager.prepare(self.plan(manager, defined))
            qemu = QEMUWithoutDevices(defined)
            guest = Guest(qemu, manager, defined, capabilities=stored_capabilities(dom, self.release),
                          release=self.release)  # fmt: skip
            found = []
            for verb, xml in json.loads(Path(steps).read_text()):
                begin = len(kernel.trace)
                code = self._live_step(guest, manager, verb, xml)
                found.append({"code": code, **written(kernel.trace[begin:], kernel.overrides)})
            hostdevs = [hostdev.format() for hostdev in guest.definition.hostdevs]
            manager.release(str(defined.name), guest_ended=True)
        return {"steps": found, "hostdevs": hostdevs}

    def _live_step(self, guest: Guest, manager: HostdevManager, verb: str, xml: str) -> Any:
        """Return None, libvirt's number, or the command of QEMU that has no such device."""
        try:
            hostdevs = parse_hostdevs(xml, is_live=False)
            if verb == "detach":
                addresses = [hostdev.pci_address for hostdev in hostdevs]
                asyncio.run(guest.detach(addresses, timeout_s=0, policy="off"))
            else:
                self._live_attach(guest, manager, hostdevs)
        except QEMURefusedError as err:
            return {"qemu": err.command}
        except HostdevError as err:
            return err.code_in(self.release)
        return None

    def _live_attach(self, guest: Guest, manager: HostdevManager, hostdevs: list[DomainHostdevDef]) -> None:
        plan = manager.host.plan_attach(guest.definition, hostdevs, "off", release=self.release)
        if {finding.reason for finding in plan.obstacles} == {"device-missing"} and not hostdevs[0].is_assigned:
            guest.state.save(guest.plan_guest_side(plan).definition)  # we refuse it, libvirt only writes it down
        else:
            asyncio.run(guest.attach(plan))

    def _pass_over_missing(self, dom: DomainDef) -> None:
        """Drop host devices that are not there: we refuse them, libvirt lets QEMU find out."""
        hostdevs = dom.hostdevs
        dom.hostdevs = [h for h in hostdevs if not h.is_pci or self.host.pci_device(h.pci_address) is not None]


def _plain_tap(net: DomainNetDef) -> DomainNetDef:
    tap = DomainNetDef(type="ethernet", mac=net.mac, model=net.model, script=net.script)
    tap.info.boot_order = net.info.boot_order
    return tap


def written(trace: list[Write], overrides: Mapping[PCIDeviceAddress, bytes]) -> dict[str, list[list[str]]]:
    """Return the writes as compare.py wants them, and all of them one by one, which it does not look at."""
    writes = [["/" + entry.path.lstrip("/"), entry.value.decode(), entry.result] for entry in trace]
    return {"ops": handovers(trace, overrides), "writes": writes}


def handovers(trace: list[Write], overrides: Mapping[PCIDeviceAddress, bytes]) -> list[list[str]]:
    """
    Return the writes that hand a device over or give it back, in libvirt's form.

    We give back by naming the host's driver first and restoring the override last; only the last counts. Where libvirt
    clears the override of a device that had one before, we restore it, which is also to give back.
    """
    found = []
    for entry in trace:
        value = entry.value.strip()
        is_handover = entry.path.endswith("/driver_override") and (b"vfio" in value or not value)
        if is_handover:
            is_back = not value or value == overrides[PCIDeviceAddress.parse(Path(entry.path).parent.name)]
            found.append(["/" + entry.path.lstrip("/"), GIVEN_BACK if is_back else value.decode(), entry.result])
    return found


def main() -> None:
    """Serve standard input until it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--libvirt", type=LibvirtRelease.parse, default=OLDEST)
    parser.add_argument("sysfs")
    parser.add_argument("dev")
    options = parser.parse_args()
    server = Server(options.sysfs, options.libvirt)
    for line in sys.stdin:
        kind, path, extra = line.rstrip("\n").split("\t")
        try:
            answer = {"ok": server.answer(kind, path, extra)}
        except HostdevError as err:
            answer = {"error": str(err), "code": err.code_in(server.release)}
        except Exception as err:
            traceback.print_exc()  # a bug here is one wrong answer, and must not end the others
            answer = {"error": str(err), "code": VIR_ERR_INTERNAL_ERROR}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
