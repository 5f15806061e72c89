#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Measure a fleet of different simulated hosts in one inventory, over local connections: scale.py [HOSTS] [FORKS]

Three runs over all hosts, each with its wall time and the CPU time of all processes below it: a task that does nothing
(Ansible's own cost), pci_plan, and the same plans by the command alone. Run by make ansible-scale.
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

from pyhostdev.testing.generator import make_tree

PYHOSTDEV = Path(sys.executable).parent / "pyhostdev"
ANSIBLE = Path(os.environ.get("ANSIBLE_BIN", ".venv-ansible/bin"))
SIZES = (24, 64, 64, 120)  # PCI functions
CARD = "8086:1521"  # a card with four functions


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


def main(count: int = 200, forks: int = 2) -> None:
    """Build the fleet, measure, print one line per run."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:  # noqa: S108
        top = Path(directory)
        hosts = make_hosts(top, count)
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
        report("pyhostdev list and plan alone", count, lambda: plan_alone(hosts, forks))
        answers = [line for line in said[0].splitlines() if " | " in line]
        can = sum(" | SUCCESS" in line for line in answers)
        print(
            f"{len(answers)} answers: {can} hosts can take a {CARD} card, {len(answers) - can} are named with reasons"
        )


def plan_alone(hosts: list[Path], forks: int) -> None:
    """Run the two commands of pci_plan on each host, as many at once as Ansible has forks."""
    domain = Path(__file__).parents[3] / "pyhostdev/tools/guests/seed.xml"

    def ask(host: Path) -> None:
        for words in (["list", "--json"], ["plan", str(domain), "--json"]):
            subprocess.run([PYHOSTDEV, *words, "--root", host], capture_output=True)

    with ThreadPoolExecutor(forks) as pool:
        list(pool.map(ask, hosts))


def report(name: str, count: int, work: Callable[[], object]) -> None:
    """Print what one run costs, whole and per host."""
    wall, cpu = measured(work)
    print(f"{name:36}{wall:8.1f} s wall {cpu:8.1f} s CPU {1000 * cpu / count:8.0f} ms CPU per host", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
