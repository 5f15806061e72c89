# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a public method takes and returns is public; old names still work; an address is accepted as text."""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyhostdev
import pyhostdev.qemu
import pyhostdev.testing
from pyhostdev.conf.hostdev_conf import DomainHostdevDef
from pyhostdev.errors import InvalidAddressError
from pyhostdev.qemu.qemu_capabilities import load
from pyhostdev.testing.events import SimulatedEvents
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.record import Plug
from pyhostdev.util.sysfs_writer import ForkedWriter

PACKAGES = (pyhostdev, pyhostdev.qemu, pyhostdev.testing)
CLASSES = [
    (package, name) for package in PACKAGES for name in package.__all__ if inspect.isclass(getattr(package, name))
]
PUBLIC = {name for package in PACKAGES for name in package.__all__}
# how definitions are made of tables, and the parts of a definition: documented in docs/prototyping.md
TABLES = {"Element", "ElementDef", "ElementPlan", "Field", "InvalidWord", "Table", "Unknown"}
PARTS = {"DeviceInfo", "DomainFields", "DomainIOMMUDef", "HostdevSource", "InterfaceNetwork"}
# fields of public classes, and what only pyhostdev itself passes
INNER = {"AbstractContextManager", "DeviceNode", "HasChanges", "MemoryLimit", "Path", "PathLike"}
INNER |= {"Asked", "Binding", "Events", "GivenNode", "MediatedDeviceType", "PCIELink", "PCIVPDResource", "Proposing"}
INNER |= {"Renumbering", "Request", "ScanRecord", "Snapshot"}
INNER |= {"DriverCore", "FaultyKernel", "GroupKernel", "Place", "SimulatedDevice"}  # of the simulator
STANDARD = {"Self"} | set(dir(typing)) | set(dir(builtins)) | set(dir(importlib.import_module("collections.abc")))
A, B = "0001:09:00.0", "0001:07:00.0"
CARD = pyhostdev.DomainDef(name="vm", hostdevs=[pyhostdev.DomainHostdevDef.for_pci(A, managed=True)])


def annotated(made: Any) -> Iterator[Any]:
    """Yield the annotated parts of a class that its users see: fields, methods and properties."""
    yield made
    for method in dir(made):
        value = inspect.getattr_static(made, method)
        value = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if inspect.isfunction(value) and "pyhostdev" in value.__module__ and not method.startswith("_"):
            yield value


def named_classes(made: Any) -> set[str]:
    """Return the names of our own classes in the signatures of a class."""
    texts = (t for part in annotated(made) for name, t in inspect.get_annotations(part).items() if name[0] != "_")
    return {word for text in texts for word in re.findall(r"\b[A-Z]\w+", str(text))} - STANDARD


@pytest.mark.parametrize(("package", "name"), CLASSES, ids=lambda part: getattr(part, "__name__", part))
def test_types_of_public_methods_are_public(package: Any, name: str) -> None:
    """What a public method takes or returns, and what a public field holds, can be imported."""
    assert set() == named_classes(getattr(package, name)) - PUBLIC - TABLES - PARTS - INNER


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("hypervisor.hostdev_plan", "Fate", "FunctionPlan"),
        ("conf.domain_conf", "Proposal", "ProposedHostdev"),
        ("hypervisor.hostdev_recover", "Recovered", "RecoveryResult"),
        ("util.pciassign", "Obstacle", "Finding"),
    ],
)
def test_old_names_work_and_warn(module: str, old: str, new: str) -> None:
    """An old spelling gives the same class and says what it is called now."""
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(pyhostdev, new) is getattr(importlib.import_module(f"pyhostdev.{module}"), old)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = importlib.import_module(f"pyhostdev.{module}").nonsense


def test_old_names_of_attributes_work_and_warn() -> None:
    """A renamed attribute gives the same value and names the new spelling."""
    hostdev = DomainHostdevDef.for_pci("0000:01:00.0", managed=True)
    hostdev.host_driver.model = "xe-vfio-pci"
    with pytest.warns(DeprecationWarning, match=r"host_driver\.model"):
        assert "xe-vfio-pci" == hostdev.driver_model
    capabilities = load("x86_64", why_stored="it is absent")
    with pytest.warns(DeprecationWarning, match="why_not_probed"):
        assert capabilities.why_not_probed == capabilities.apology
    with pytest.warns(DeprecationWarning, match="properties_of"):
        assert [True, False] == [capabilities.has_property("vfio-pci", name) for name in ("rombar", "no-such-property")]


def test_an_address_is_accepted_as_text(bcm5719: FakeHost, tmp_path: Path) -> None:
    """Every public method that takes an address takes its text, and nothing else that looks like a path."""
    host = pyhostdev.Host(bcm5719.root, writer=bcm5719.kernel)
    manager, scan, address = pyhostdev.HostdevManager(host), host.scan(), PCIDeviceAddress.parse(A)
    function = scan.find(A)
    assert function is not None
    assert host.pci_device(A).address == address == function.address
    assert (14, True, False) == (host.iommu_group(A), host.is_pci_express(A), host.is_in_flight(A))
    assert bcm5719.root.pci_device(A) == bcm5719.root.pci_device(address)
    assert address == pyhostdev.DomainHostdevDef.for_pci(A).pci_address
    manager.nodedev_detach(A)
    manager.nodedev_reattach(A)
    plan = host.plan(CARD)
    monitor = pyhostdev.PCIMonitor(bcm5719.root, SimulatedEvents(bcm5719.kernel))
    assert [A] == [str(dev.address) for dev in monitor.refresh([A])]
    assert plan.with_guest_addresses({A: "02:00.0"}).guest_addresses[address] == PCIDeviceAddress.parse("02:00.0")
    assert [B] == [str(hostdev.pci_address) for hostdev in CARD.with_host_addresses({A: B}).pci_hostdevs()]
    writer, live = bcm5719.kernel, ForkedWriter(bcm5719.root, inflight_dir=str(tmp_path / "in-flight"))
    assert not writer.is_in_flight(A)
    assert not live.is_in_flight(A)
    for call in (
        *(host.pci_device, host.node_device, host.iommu_group, host.is_pci_express, host.is_in_flight),
        *(manager.nodedev_detach, manager.nodedev_reattach, manager.nodedev_reset, scan.find),
        *(bcm5719.root.pci_device, bcm5719.root.driverctl_override, CARD.guest_address_space),
        *(writer.is_in_flight, writer.vanish, writer.complete, bcm5719.remove_function, live.is_in_flight),
        lambda text: writer.write(bcm5719.root.pci_device(A), b"1", device=text),
        lambda text: live.write(bcm5719.root.pci_device(A), b"1", device=text),
        lambda text: manager.prepare(plan, by_descriptor=[text]),
        lambda text: scan.free_virtual_functions(function, taken=[text]),
        lambda text: writer.open_group(14, [text]).__enter__(),
        lambda text: writer.open_devices([text]).__enter__(),
        lambda text: monitor.refresh([text]),
        lambda text: plan.with_nodes({text: []}),
        lambda text: plan.with_plugs({text: Plug("pci", "plugged", None, None)}),
        lambda text: plan.with_guest_addresses({text: A}),
        lambda text: CARD.with_host_addresses({A: text}),
        pyhostdev.DomainHostdevDef.for_pci,
    ):
        for text in (f"../devices/{A}", f"{A}/..", "", f"{A}\n"):
            with pytest.raises(InvalidAddressError):
                call(text)


def test_assignable_means_that_no_one_is_asked(bcm5719: FakeHost) -> None:
    """A mounted disk asks for consent and a host bridge is refused; each is an obstacle."""
    scan: Any = pyhostdev.Host(bcm5719.root).scan()
    (found,) = scan.obstacles(scan.find("0001:00:00.0"))
    assert ("not-endpoint", "error") == (found.reason, found.severity)
    assert scan.is_assignable(scan.find("0001:07:00.0"))
    mounts = bcm5719.root.join("proc/mounts")
    with open(mounts, "a") as stream:
        stream.write("/dev/nvme0n1 /srv ext4 rw 0 0\n")
    scan = pyhostdev.Host(bcm5719.root).scan()
    (found,) = scan.obstacles(scan.find("0001:07:00.0"))
    assert ("mounted", "consent") == (found.reason, found.severity)
    assert "0001:07:00.0" not in [str(dev.address) for dev in scan.assignable()]
