#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Measure a fleet of different simulated hosts: scale.py [HOSTS] [FORKS] [snapshots]

Each run has its wall time and the CPU time of all processes below it. In one inventory, over local connections: a task
that does nothing (the cost of Ansible), pci_plan, and the same plans by the command alone for some hosts. From
snapshots, on one machine: one plan with several --root. With "snapshots", only the last one. Run by make ansible-scale.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyhostdev import __version__
from pyhostdev.testing.generator import make_tree
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostsnapshot import take_snapshot
from pyhostdev.util.snapshotfile import Manifest, pack

PYHOSTDEV = Path(sys.executable).parent / "pyhostdev"
ANSIBLE = Path(os.environ.get("ANSIBLE_BIN", ".venv-ansible/bin"))
SIZES = (24, 64, 64, 120)  # PCI functions
GUEST = """<domain type='qemu'><name>vm</name><memory unit='MiB'>512</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><hostdev mode='subsystem' type='pci' managed='yes'>
<source><address domain='0' bus='1' slot='0' function='3'/></source></hostdev></devices></domain>"""
ALONE = 12  # hosts that are asked without Ansible
CARD = "15b3:101e"  # virtual functions, which every generated host has


def make_hosts(top: Path, count: int) -> list[Path]:
    """Build hosts of different sizes; each fifth one has lost a function, and each seventh an attribute."""
    hosts = []
    for number in range(count):
        place = top / f"host{number:03d}"
        make_tree(place, SIZES[number % len(SIZES)], seed=number)
        functions = sorted((place / "sys/bus/pci/devices").iterdir())
        chosen = random.Random(number).choice(functions)
        if number % 5 == 4:
            chosen.unlink()
        elif number % 7 == 6:
            (chosen / "driver").unlink(missing_ok=True)
        hosts.append(place)
    return hosts


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds of the processes that the work starts and waits for."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    work()
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ansible(top: Path, forks: int, module: str, arguments: dict[str, object]) -> str:
    """Run one module on all hosts and return what Ansible printed."""
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(top / "collections"),
        "ANSIBLE_HOME": str(top / "home"),
        "ANSIBLE_FORKS": str(forks),
        "LC_ALL": "C.UTF-8",
    }
    words = ["all", "-i", top / "inventory", "-m", module, "-a", json.dumps(arguments), "-o"]
    line = [str(word) for word in (ANSIBLE / "ansible", *words)]
    return subprocess.run(line, env=environment, capture_output=True, text=True).stdout


def main(count: int = 200, forks: int = 2, only: str = "") -> None:
    """Build the fleet, measure, print one line per run."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:  # noqa: S108
        top = Path(directory)
        hosts = make_hosts(top, count)
        if not only:
            with_ansible(top, hosts, forks)
        from_snapshots(top, hosts)


def with_ansible(top: Path, hosts: list[Path], forks: int) -> None:
    """Measure the runs with Ansible, and pyhostdev's part of them."""
    count = len(hosts)
    lines = [f"{host.name} root={host}" for host in hosts]
    shared = ("ansible_connection=local", f"ansible_python_interpreter={sys.executable}")
    (top / "inventory").write_text("\n".join([*lines, "[all:vars]", *shared]) + "\n")
    (tarball,) = Path(os.environ["COLLECTION"]).glob("*.tar.gz")
    galaxy = [
        str(ANSIBLE / "ansible-galaxy"),
        "collection",
        "install",
        str(tarball),
        "-p",
        str(top / "collections"),
    ]
    subprocess.run(galaxy, check=True, capture_output=True)

    vendor, device = CARD.split(":")
    selector = [{"vendor": vendor, "device": device, "count": 4}]
    plan = {"executable": str(PYHOSTDEV), "root": "{{ root }}", "devices": selector, "complete": True}
    said: list[str] = []
    report("ansible, a task that does nothing", count, lambda: ansible(top, forks, "ansible.builtin.ping", {}))
    report("pci_plan", count, lambda: said.append(ansible(top, forks, "pyhostdev.pci.pci_plan", plan)))
    some, wanted = hosts[:ALONE], top / "guest.xml"
    wanted.write_text(GUEST)
    report(f"pyhostdev list and plan, {len(some)} hosts", len(some), lambda: plan_alone(some, wanted, forks))
    answers = [line for line in said[0].splitlines() if " | " in line]
    can = sum(" | SUCCESS" in line for line in answers)
    print(f"{len(answers)} answers: {can} hosts can give four {CARD}, {len(answers) - can} are named with reasons")
    assert can, said[0][-2000:]


def from_snapshots(top: Path, hosts: list[Path]) -> None:
    """Measure one plan for the snapshots of all hosts, which writes nothing anywhere."""
    stored = top / "snapshots"
    stored.mkdir()
    for host in hosts:
        snapshot = take_snapshot(HostRoot(host))
        manifest = Manifest(__version__, None, False, tuple(snapshot.unreadable), tuple(snapshot.present))
        (stored / f"{host.name}.tar.gz").write_bytes(pack(snapshot, manifest))
    files = sorted(stored.iterdir())
    roots = [word for file in files for word in ("--root", file)]
    said: list[str] = []
    wanted = top / "guest.xml"
    wanted.write_text(GUEST)

    def ask() -> None:
        line = [str(word) for word in (PYHOSTDEV, "plan", wanted, *roots)]
        said.append(subprocess.run(line, env=environment, capture_output=True, text=True).stdout)
        left.extend(temporary.iterdir())

    temporary, left = top.parent / f"{top.name}-tmp", list[Path]()
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    before = contents(top)
    report(f"pyhostdev plan, {len(files)} snapshots", len(files), ask)
    lines = said[0].splitlines()[1:]
    can = sum(" yes " in line for line in lines if ".tar.gz" in line)
    size = sum(file.stat().st_size for file in files)
    temporary.rmdir()
    print(f"{can} of {len(files)} snapshots ({size >> 10} KiB) can take the guest")
    print(f"written below the hosts and snapshots: {len(contents(top) ^ before)}; left in TMPDIR: {len(left)}")


def contents(top: Path) -> set[tuple[str, int, int]]:
    """Return each file below a directory with its size and the time of its last change."""
    found = (Path(place, name) for place, below, names in os.walk(top) for name in (*below, *names))
    return {(str(path), (state := path.lstat()).st_size, state.st_mtime_ns) for path in found}


def plan_alone(hosts: list[Path], wanted: Path, forks: int) -> None:
    """Run the two commands of pci_plan on each host, as many at once as Ansible has forks."""

    def ask(host: Path) -> None:
        for words in (["list", "--json"], ["plan", str(wanted), "--json"]):
            subprocess.run([PYHOSTDEV, *words, "--root", host], capture_output=True)

    with ThreadPoolExecutor(forks) as pool:
        list(pool.map(ask, hosts))


def report(name: str, count: int, work: Callable[[], object]) -> None:
    """Print what one run costs, whole and per host."""
    wall, cpu = measured(work)
    print(f"{name:36}{wall:8.1f} s wall {cpu:8.1f} s CPU {1000 * cpu / count:8.0f} ms CPU per host", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:4])
