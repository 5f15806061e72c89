# SPDX-License-Identifier: LGPL-2.1-or-later
"""
virtinst, the library of virt-install, reads our node devices and builds domains that we plan and build.

VIRTINST_PYTHON is the command of a Python that has virtinst; by default the system's Python.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyhostdev
from pyhostdev.testing import FakeHost

PYTHON = shlex.split(os.environ.get("VIRTINST_PYTHON", "/usr/bin/python3"))
SCRIPT = Path(__file__).parent / "virtinst_domain.py"
CARD = [f"0001:09:00.{function}" for function in range(4)]
Build = Callable[..., pyhostdev.DomainDef]


@pytest.fixture(scope="module", autouse=True)
def virtinst() -> None:
    """Skip where virtinst cannot be imported, and name what is missing."""
    done = subprocess.run([*PYTHON, SCRIPT], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"virtinst is missing: {(done.stderr.strip() or 'no reason').splitlines()[-1]}")


@pytest.fixture
def built() -> Iterator[Build]:
    """A function that has virtinst build a domain from functions of a host; those in ``kept`` are not assigned."""
    # below this directory: a Python in another root sees the repository at its path, and nothing else
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent, prefix=".nodedev-") as top:

        def build(host: pyhostdev.Host, *addresses: str, kept: tuple[str, ...] = ()) -> pyhostdev.DomainDef:
            paths = []
            for address in (*addresses, *kept):
                path = Path(top) / f"{address}{'.kept' if address in kept else ''}.xml"
                node = host.node_device(address)
                assert node is not None
                path.write_text(node.format())
                paths.append(path)
            done = subprocess.run([*PYTHON, SCRIPT, *paths], capture_output=True, text=True)
            assert 0 == done.returncode, done.stderr
            return pyhostdev.DomainDef.parse(done.stdout)

        yield build


def test_whole_card(built: Build, fakehost: Callable[[str], FakeHost]) -> None:
    """All functions of a card: virtinst's domain is planned as a whole and built."""
    host = pyhostdev.Host(fakehost("bcm5719").root)
    domain = built(host, *CARD)
    assert CARD == [str(hostdev.pci_address) for hostdev in domain.pci_hostdevs()]
    assert host.plan(domain).ok
    assert 4 == sum("vfio-pci" in word for word in command_line(domain, host))


def test_part_of_a_card(built: Build, fakehost: Callable[[str], FakeHost]) -> None:
    """libvirt's spelling of a kept function survives virtinst, and only the others reach QEMU."""
    host = pyhostdev.Host(fakehost("bcm5719").root)
    domain = built(host, CARD[0], CARD[3], kept=(CARD[1], CARD[2]))
    plan = host.plan(domain)
    assert plan.ok, plan.explain()
    assert {CARD[1], CARD[2]} == {str(step.address) for step in plan.steps if step.role == "unassigned"}
    assert 2 == sum("vfio-pci" in word for word in command_line(domain, host))


def test_virtual_function(built: Build, fakehost: Callable[[str], FakeHost]) -> None:
    """A VF of virtinst's is planned alone, in its own group."""
    host = pyhostdev.Host(fakehost("sriov").root)
    assert not [f for f in host.plan(built(host, "0000:03:10.2")).obstacles if f.reason != "default-route"]


def command_line(domain: pyhostdev.DomainDef, host: pyhostdev.Host) -> list[str]:
    """Return QEMU's arguments."""
    capabilities = pyhostdev.qemu.for_emulator(None, "x86_64")
    defined = pyhostdev.qemu.define(domain, capabilities, host)
    return [str(word) for word in pyhostdev.qemu.build_command_line(defined, capabilities, host=host)]
