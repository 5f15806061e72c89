# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A graphics card whose IOMMU group has more functions, from the first question to the last byte, without XML and without
hardware: the list of NVIDIA/gpu-admin-tools issues 23 and 24.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyhostdev import DomainDef, Host, HostdevManager, PCIDeviceAddress, SysfsError
from pyhostdev.conf.hostdev_conf import DomainHostdevDef
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.faults import Fail
from pyhostdev.tools.main import main

TREE = """
driver pcieport class:0604 builtin
driver nvidia 10de:2230
driver snd_hda_intel class:0403
driver xhci_hcd class:0c0330 builtin
driver nvidia-gpu 10de:1adb
driver vfio-pci
0000:00:01.0 8086:a70d 060400 driver=pcieport group=1 bridge=01-01 express=root-port acs
0000:01:00.0 10de:2230 030000 driver=nvidia group=17 multifunction express=endpoint flr boot-vga
0000:01:00.1 10de:1aef 040300 driver=snd_hda_intel override=snd_hda_intel group=17 multifunction express=endpoint
0000:01:00.2 10de:1adc 0c0330 driver=xhci_hcd group=17 multifunction express=endpoint pm
0000:01:00.3 10de:1adb 0c8000 nodriver group=17 multifunction express=endpoint pm
"""
GPU, AUDIO, USB, SERIAL = (f"0000:01:00.{function}" for function in range(4))
SCREEN = ["--accept", f"boot-vga:{GPU}"]
OWNER = ["--owner", "gpu-vm"]


@pytest.fixture
def workstation(fakehost: Callable[[str], FakeHost]) -> FakeHost:
    """A host with one card of four functions: one has an override, one has no driver."""
    return fakehost(TREE)


def test_the_list(workstation: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """Query, dry run, a consent for each member, bind, roll back, status, restore."""
    before = workstation.snapshot()
    root = ["--root", workstation.root.path]

    def ask(*words: str, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert code == main([*words, *root]), capsys.readouterr()
        return capsys.readouterr()

    def plan(*words: str, code: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(ask("plan", *words, *OWNER, "--json", code=code)[0])
        return found

    # query: the members of the card's group and their drivers, by the card's address
    group = json.loads(ask("show", GPU, "--json")[0])["iommu_group"]
    members = json.loads(ask("list", "--group", str(group), "--json", "--names")[0])
    drivers = {GPU: "nvidia", AUDIO: "snd_hda_intel", USB: "xhci_hcd", SERIAL: None}
    assert drivers == {member["address"]: member["driver"] for member in members}

    # dry run: each member that the user did not name is named with its reason, and so is the boot screen
    refused = plan("--device", GPU, code=1)
    reasons = {(finding["reason"], finding["address"]) for finding in refused["findings"] if finding["address"]}
    assert {("incomplete-device", AUDIO), ("incomplete-device", USB), ("boot-vga", GPU)} <= reasons
    # a consent to some members does not cover the others
    still = plan("--device", GPU, "--keep", AUDIO, *SCREEN, code=1)
    assert {USB} == {finding["address"] for finding in still["findings"] if finding["severity"] == "error"}
    assert [GPU] == [step["address"] for step in refused["steps"] if step["action"] == "detach"]
    named = ["--device", GPU, "--keep", AUDIO, USB, SERIAL]
    assert {"boot-vga"} == {f["reason"] for f in plan(*named, code=1)["findings"] if f["severity"] == "consent"}
    dry = plan(*named, *SCREEN, code=0)
    assert {step["address"]: step["from"] for step in dry["steps"] if step["action"] == "detach"} == drivers
    assert before == workstation.snapshot()

    # a bind that the kernel refuses at any point: what was moved is moved back, drivers and overrides included
    assert 10 < refuse_each_write(workstation, lambda: before == workstation.snapshot())

    # bind, and ask for owner and roles
    ask("prepare", *named, *SCREEN, *OWNER, "--simulate")
    state = json.loads(ask("status", "--json")[0])["active"]
    assert {GPU: "assigned", AUDIO: "kept", USB: "kept", SERIAL: "kept"} == {r["address"]: r["role"] for r in state}
    assert ({"gpu-vm"}, {"vfio-pci"}) == ({r["owner"] for r in state}, {r["driver"] for r in state})
    assert drivers == {r["address"]: r["original_driver"] for r in state}
    other = ask("prepare", *named, "--owner", "other", *SCREEN, "--simulate", code=1)[1]
    assert "is in use by domain 'gpu-vm'" in other

    # restore: every driver, the override of one function, and no driver where there was none
    ask("release", *OWNER, "--simulate")
    assert before == workstation.snapshot()
    device = workstation.root.pci_device
    assert "snd_hda_intel\n" == Path(device(AUDIO), "driver_override").read_text()
    assert not os.path.lexists(f"{device(SERIAL)}/driver")


def refuse_each_write(fake: FakeHost, is_as_before: Callable[[], bool]) -> int:
    """Prepare the card by the library, each time with another write refused; return how many writes there are."""
    host = Host(fake.root, writer=fake.kernel)
    addresses = map(PCIDeviceAddress.parse, (GPU, AUDIO, USB, SERIAL))
    devices = [DomainHostdevDef.for_pci(a, managed=True, unassigned=str(a) != GPU) for a in addresses]
    plan = host.plan(DomainDef(name="gpu-vm", hostdevs=devices), accept=[f"boot-vga:{GPU}"])
    manager = HostdevManager(host)
    start = fake.kernel.writes
    manager.prepare(plan)
    writes = fake.kernel.writes - start
    manager.release("gpu-vm")
    for number in range(1, writes + 1):
        fake.kernel.inject(number, Fail(errno.EBUSY))
        with pytest.raises(SysfsError) as failed:
            manager.prepare(plan)
        assert (errno.EBUSY, True) == (failed.value.errno, failed.value.rolled_back)
        assert is_as_before()
    return writes
