# SPDX-License-Identifier: LGPL-2.1-or-later
"""The capabilities of an emulator: stored answers, and the probe that recorded them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from pyhostdev import ConfigUnsupportedError, OperationError
from pyhostdev.qemu.qemu_capabilities import for_emulator, load, probe, probe_data, stored_versions
from pyhostdev.qemu.qemu_capabilities.asked import ASKED_DEVICES, ASKED_MACHINES, ASKED_OBJECTS

BINARY = "/usr/bin/qemu-system-x86_64"
needs_qemu = pytest.mark.skipif(shutil.which(BINARY) is None, reason=f"{BINARY} is not installed")


@pytest.mark.parametrize(
    ("arch", "alias", "machine", "cpu", "ram"),
    [
        ("x86_64", "pc", "pc-i440fx-7.2", "qemu64", "pc.ram"),
        ("x86_64", "q35", "pc-q35-7.2", "qemu64", "pc.ram"),
        ("i686", "pc", "pc-i440fx-7.2", "qemu32", "pc.ram"),
        ("ppc64", "pseries", "pseries-7.2", "POWER9", "ppc_spapr.ram"),
        ("aarch64", "virt", "virt-7.2", "cortex-a15", "mach-virt.ram"),
    ],
)
def test_stored_capabilities_know_machines(arch: str, alias: str, machine: str, cpu: str, ram: str) -> None:
    """An alias leads to the machine of QEMU 7.2, with libvirt's name of its default CPU."""
    capabilities = load(arch, "7.2")
    row = capabilities.machine(alias)
    assert (machine, cpu, ram) == (row.name, row.default_cpu, row.ram_id)
    assert (machine, cpu) == (capabilities.canonical_machine(alias), capabilities.default_cpu(alias))


def test_unknown_machine_is_refused_by_name() -> None:
    """A machine that the binary does not have is named."""
    with pytest.raises(ConfigUnsupportedError, match="pc-i440fx-0.1"):
        load("x86_64").machine("pc-i440fx-0.1")


@pytest.mark.parametrize("arch", ["vax", "../x86_64", ""])
def test_unknown_architecture_is_refused(arch: str) -> None:
    """An architecture is a name, never a path, and only stored ones exist."""
    with pytest.raises(ConfigUnsupportedError):
        load(arch)


def test_devices_and_properties() -> None:
    """Devices by type or by QEMU's short name; properties of the recorded devices only."""
    capabilities = load("x86_64")
    assert [True, True, False] == [capabilities.has_device(n) for n in ("vfio-pci", "lsi", "no-such-device")]
    assert {"rombar"} == {"rombar", "no-such-property"} & capabilities.properties_of("vfio-pci")
    assert [set(), {"x"}] == [capabilities.properties_of("edu"), capabilities.properties_of("edu", {"x"})]


@pytest.mark.parametrize(
    ("version", "arch", "machine", "cpu"),
    [
        ("10.0", "x86_64", "pc-q35-10.0", "qemu64"),
        ("10.0", "ppc64", "pseries-10.0", "POWER10"),
        ("11.1", "i686", "pc-q35-11.1", "qemu32"),
        ("11.1", "ppc64", "pseries-11.1", "POWER11"),
        ("11.1", "aarch64", "virt-11.1", None),
    ],
)
def test_newer_releases_are_stored(version: str, arch: str, machine: str, cpu: str | None) -> None:
    """Each stored release has the machines of its version; it serves when it is asked for by its version only."""
    capabilities = load(arch, version)
    alias = machine.split("-")[-2]
    assert (machine, cpu) == (capabilities.canonical_machine(alias), capabilities.default_cpu(machine))
    assert version == ".".join(map(str, capabilities.version[:2]))
    assert (11, 1) == load(arch).version[:2]


@pytest.mark.parametrize("version", stored_versions())
@pytest.mark.parametrize("arch", ["x86_64", "i686", "ppc64", "aarch64"])
def test_properties_of_all_that_is_asked_are_stored(version: str, arch: str) -> None:
    """Devices, objects and machine families that a binary has are stored with their properties."""
    capabilities = load(arch, version)
    asked = capabilities.devices.intersection(ASKED_DEVICES) | capabilities.types.intersection(ASKED_OBJECTS)
    assert asked < capabilities.properties.keys()
    assert len(capabilities.properties.keys() & ASKED_MACHINES) == 1


def test_stored_answers_are_read_once() -> None:
    """Equal requests get the same object; the reason for not probing is a part of the request."""
    assert load("x86_64", "10.0") is load("x86_64", "10.0")
    assert "no reason" == load("x86_64", "10.0", why_stored="no reason").why_stored


def test_absent_emulator_is_answered_for_by_the_stored_one() -> None:
    """A definition with an emulator that is absent here can still be built."""
    capabilities = for_emulator("/nonexistent/qemu-system-x86_64", "x86_64")
    assert load("x86_64").version == capabilities.version


def test_a_program_that_is_not_an_emulator_is_an_error() -> None:
    """A binary that does not speak QMP is named, and no stored capabilities replace it."""
    pytest.importorskip("qemu.qmp", reason="the library qemu.qmp is not installed")
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)  # it runs as the user `nobody`
        impostor = Path(top, "qemu")
        impostor.write_text("#!/bin/sh\necho no QEMU >&2\nexit 3\n")
        impostor.chmod(0o755)
        with pytest.raises(OperationError, match="no QEMU"):
            probe(str(impostor))


@needs_qemu
def test_probe_says_what_is_stored() -> None:
    """The installed binary, when it is the recorded version, gives the recorded answers."""
    data, stored = probe_data(BINARY), load("x86_64")
    if tuple(data["version"][:2]) != stored.version[:2]:
        pytest.skip(f"the installed QEMU is {data['version']}")
    assert stored.arch == data["arch"]
    assert "vfio-pci" in data["devices"]
    assert set(data["properties"]["pcie-root-port"]) == set(stored.properties["pcie-root-port"])
