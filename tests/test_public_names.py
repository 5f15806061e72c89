# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a public method takes and returns is public; old names still work; an address is accepted as text."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from typing import Any

import pytest

import pyhostdev
from pyhostdev.conf.hostdev_conf import DomainHostdevDef
from pyhostdev.errors import InvalidAddressError
from pyhostdev.qemu.qemu_capabilities import load
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util.pciaddress import PCIDeviceAddress

CLASSES = ("Host", "HostdevManager", "Plan", "Scan")
# types of the parts below, which are documented where they stand
KNOWN = {"AbstractContextManager", "BadRecord", "Definition", "GroupMember", "Identity", "Journal", "Plug", "Record"}
KNOWN |= {"Request", "StateDir"}
A = "0001:09:00.0"


def named_classes(name: str) -> set[str]:
    """Return the names of our own classes in the signatures of a class's public methods."""
    found: set[str] = set()
    for method, function in inspect.getmembers(getattr(pyhostdev, name), callable):
        if not method.startswith("_") and "pyhostdev" in getattr(function, "__module__", ""):
            texts = inspect.get_annotations(function).values()
            found |= {word for text in texts for word in re.findall(r"\b[A-Z]\w+", str(text))}
    standard = set(dir(typing)) | set(dir(importlib.import_module("collections.abc"))) | {"None", "Any", "PathLike"}
    return found - standard - KNOWN


@pytest.mark.parametrize("name", CLASSES)
def test_types_of_public_methods_are_public(name: str) -> None:
    """The return type of every public method can be imported."""
    assert set() == named_classes(name) - set(pyhostdev.__all__)


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


def test_an_address_is_accepted_as_text(bcm5719: FakeHost) -> None:
    """Every public method that takes an address takes its text, and nothing else that looks like a path."""
    host = pyhostdev.Host(bcm5719.root, writer=bcm5719.kernel)
    manager, scan, address = pyhostdev.HostdevManager(host), host.scan(), PCIDeviceAddress.parse(A)
    assert host.pci_device(A).address == address == scan.find(A).address
    assert (14, True, False) == (host.iommu_group(A), host.is_pci_express(A), host.is_in_flight(A))
    assert bcm5719.root.pci_device(A) == bcm5719.root.pci_device(address)
    assert address == pyhostdev.DomainHostdevDef.for_pci(A).pci_address
    manager.nodedev_detach(A)
    manager.nodedev_reattach(A)
    for call in (host.pci_device, scan.find, host.iommu_group, bcm5719.root.pci_device, manager.nodedev_detach):
        with pytest.raises(InvalidAddressError):
            call(f"../devices/{A}")


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
