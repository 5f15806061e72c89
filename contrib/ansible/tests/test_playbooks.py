# SPDX-License-Identifier: LGPL-2.1-or-later
"""The playbooks and the role on simulated hosts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyhostdev.testing.fakehost import HOSTS
from pyhostdev.tools.demo import GUEST

SEED = (Path(HOSTS) / "bcm5719.tree").read_text()
CARD = [f"0001:09:00.{function}" for function in range(4)]
Build = Callable[..., Any]


def recap(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, int]]:
    """Return Ansible's counts of each host."""
    lines = done.stdout.partition("PLAY RECAP")[2].splitlines()
    found = {line.split()[0]: dict(re.findall(r"(\w+)=(\d+)", line)) for line in lines if " : " in line}
    return {host: {key: int(value) for key, value in counts.items()} for host, counts in found.items()}


def test_which_hosts(fleet: Build) -> None:
    """The hosts that can take the guest are named; a broken one fails alone; nothing is written."""
    some = fleet(web="bcm5719", db="sriov", other="bcm5719", gone=None)
    before = some.trees()
    done = some.playbook("which_hosts", pyhostdev_domain=GUEST)
    assert "can take it: other web" in done.stdout, done.stdout + done.stderr
    assert "device-missing" in done.stdout
    failed = {host: counts["failed"] for host, counts in recap(done).items()}
    assert {"web": 0, "db": 0, "other": 0, "gone": 1, "localhost": 0} == failed
    assert before == some.trees()


def test_firmware_upgrade_stops_at_the_first_changed_host(fleet: Build, tmp_path: Path) -> None:
    """The second host's groups change: it is named, the third is not touched, and the first one is done."""
    some = fleet(a="bcm5719", b="bcm5719", c="bcm5719")
    log = tmp_path / "log"
    upgrade = tmp_path / "upgrade"
    moved = some.hosts["b"].root
    upgrade.write_text(
        f"#!/bin/sh\necho $1 >>{log}\n"
        f"test $1 != b || mv {moved.iommu_group_devices(15)}/0001:07:00.0 {moved.iommu_group_devices(14)}/ &&\n"
        f"test $1 != b || ln -sfn {os.path.dirname(moved.iommu_group_devices(14))}"
        f" {moved.pci_device('0001:07:00.0')}/iommu_group\n"
    )
    upgrade.chmod(0o755)
    command = [str(upgrade), "{{ inventory_hostname }}"]
    snapshot = str(tmp_path / "{{ inventory_hostname }}.tar.gz")
    done = some.playbook("firmware_upgrade", pyhostdev_firmware_command=command, pyhostdev_snapshot=snapshot)
    assert 0 != done.returncode
    assert ["a", "b"] == log.read_text().split(), done.stdout
    counts = recap(done)
    assert (0, 1) == (counts["a"]["failed"], counts["b"]["failed"])
    assert "c" not in counts
    assert "The host has changed: 0001:07:00.0: group-" in done.stdout


def test_firmware_upgrade_in_check_mode(fleet: Build, tmp_path: Path) -> None:
    """Check mode runs no upgrade; a device in use refuses it."""
    some = fleet(a="bcm5719")
    before = some.trees()
    command = ["touch", str(tmp_path / "upgraded")]
    variables = {"pyhostdev_firmware_command": command, "pyhostdev_snapshot": str(tmp_path / "before.tar.gz")}
    done = some.playbook("firmware_upgrade", "--check", **variables)
    assert 0 == done.returncode, done.stdout
    assert not (tmp_path / "upgraded").exists()
    assert not (tmp_path / "before.tar.gz").exists()
    assert before == some.trees()
    some.module("pci_prepare", owner="vm1", devices=[{"driver": "tg3"}])
    done = some.playbook("firmware_upgrade", **variables)
    assert f"in use: {' '.join(CARD)}" in done.stdout
    assert not (tmp_path / "upgraded").exists()


def test_park(fleet: Build, tmp_path: Path) -> None:
    """Functions are parked now and by a unit at boot, once; then they are given back and the unit is gone."""
    some = fleet(web="bcm5719")
    before = some.trees()
    place = {
        "pyhostdev_config_dir": str(tmp_path / "etc"),
        "pyhostdev_unit_dir": str(tmp_path),
        "pyhostdev_systemd": False,
        "pyhostdev_devices": [{"address": CARD[0]}],
    }
    unit = tmp_path / "pyhostdev-park.service"
    assert 0 == some.playbook("park", "--check", **place).returncode
    assert before == some.trees()
    assert not unit.exists()

    done = some.playbook("park", **place)
    assert (0, 0) == (done.returncode, recap(done)["web"]["failed"]), done.stdout + done.stderr
    assert {"vfio-pci"} == {_driver(some, address) for address in CARD}
    assert f"prepare {tmp_path}/etc/parked.xml" in unit.read_text()
    prepared = some.trees()
    again = some.playbook("park", **place)
    assert (0, 0) == (again.returncode, recap(again)["web"]["changed"]), again.stdout
    assert prepared == some.trees()

    assert 0 == some.playbook("park", **place, pyhostdev_state="released").returncode
    assert before == some.trees()
    assert not unit.exists()
    # what the unit runs at boot parks the same functions
    some.playbook("park", **place)
    some.module("pci_release", owner="parked")
    command = [Path(sys.executable).parent / "pyhostdev", "prepare", tmp_path / "etc/parked.xml"]
    subprocess.run([*command, "--root", some.hosts["web"].root.path, "--simulate"], check=True)
    again = some.playbook("park", **place)
    assert (0, 0) == (again.returncode, recap(again)["web"]["changed"]), again.stdout


def _driver(some: Any, address: str) -> str:
    return os.path.basename(os.readlink(f"{some.hosts['web'].root.pci_device(address)}/driver"))


def test_role_installs_the_wheel_and_the_hook(fleet: Build, tmp_path: Path) -> None:
    """The wheel is installed into an environment of its own, and the hook runs there."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, Path(__file__).parents[3]], check=True
    )
    (wheel,) = tmp_path.glob("pyhostdev-*.whl")
    some = fleet(web="bcm5719")
    play = tmp_path / "play.yml"
    play.write_text("- hosts: all\n  gather_facts: false\n  roles: [pyhostdev.pci.host]\n")
    variables = {"pyhostdev_install": "wheel", "pyhostdev_wheel": str(wheel), "pyhostdev_venv": str(tmp_path / "venv")}
    words = ["-e", json.dumps({**variables, "pyhostdev_libvirt_hook": True})]

    def role(*more: str) -> dict[str, int]:
        done = some.ansible.run("ansible-playbook", "-i", some.inventory, play, *words, *more)
        assert 0 == done.returncode, done.stdout + done.stderr
        return recap(done)["web"]

    assert 0 != role()["changed"]
    version = subprocess.run([tmp_path / "venv/bin/pyhostdev", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("pyhostdev 0.")
    hook = Path(some.hosts["web"].root.libvirt_hook("50-pyhostdev"))
    call = [hook, "seed", "prepare", "begin", "-"]
    with open(GUEST, encoding="utf-8") as guest:
        assert 0 == subprocess.run(call, stdin=guest).returncode
    broken = Path(GUEST).read_text().replace("function='0x3'", "function='0x7'")
    refused = subprocess.run(call, input=broken, capture_output=True, text=True)
    assert (1, True) == (refused.returncode, "device-missing" in refused.stderr)
    assert 0 == role()["changed"]
    other = ["-e", json.dumps({"pyhostdev_hook_options": ["--policy", "group"]})]
    assert 0 == role(*other, "--check")["changed"]
    assert "--policy auto" in hook.read_text()
    assert 2 == role(*other)["changed"]
    assert "--policy group" in hook.read_text()
    hook.write_text("#!/bin/sh\nexit 0\n")
    foreign = some.ansible.run("ansible-playbook", "-i", some.inventory, play, *words)
    assert (2, True) == (foreign.returncode, "was not written by pyhostdev" in foreign.stdout)
    assert "#!/bin/sh\nexit 0\n" == hook.read_text()
