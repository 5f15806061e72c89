# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The time that a user waits: whole processes, compared with lspci and an empty interpreter, and queries.

As a program: ``waits.py [--rounds N]`` writes waits.json, of which ``goals.py`` makes the second table of RESULTS.md.
Ends with 1 when a goal is missed. Our processes and the empty one run without site-packages' own start, which an
editable installation makes slow.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import persons
import refreshes
from definitions import goals_of_definitions
from measure import AS_SYSFS, INFORMATION, SIZE, CPart, Goal, Trees, in_turns, machine, trees_in_memory

import pyhostdev
from pyhostdev import DomainDef, Host
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.generator import synthetic_host
from pyhostdev.tools.demo import GUEST
from pyhostdev.util import pciscan
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostscan import Scan

HERE = Path(__file__).parent
RESULTS = HERE / "waits.json"
EMPTY = [sys.executable, "-S", "-c", "import os"]
PATHS = [str(Path(pyhostdev.__file__).parents[1]), *filter(None, sys.path)]
START = f"import sys; sys.path[:] = {PATHS!r}; "
MAIN = "from pyhostdev.tools.main import main; sys.exit(main())"  # as the installed script
# the peak since the exec; getrusage also counts the process that forked
WEIGHED = "from pyhostdev.tools.main import main; main(); " + (
    "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')], file=sys.stderr)"
)
CARD = "0001:09:00.0"
PLANNED = 64
AGAIN = (100, 1000, SIZE)  # functions of a host that is read again
MEMORY = 35  # MB

HOSTDEV = (
    "<hostdev mode='subsystem' type='pci' managed='yes'><source>"
    "<address domain='{0.domain}' bus='{0.bus}' slot='{0.slot}' function='{0.function}'/></source></hostdev>"
)
DOMAIN = (
    "<domain type='kvm'><name>a</name><memory>1024</memory>"
    "<os><type machine='q35'>hvm</type></os><devices>{}</devices></domain>"
)


def ours(*words: str) -> list[str]:
    """Return the command of a verb."""
    return [sys.executable, "-S", "-c", START + MAIN, *words]


def processes(rounds: int, commands: dict[str, list[str]]) -> dict[str, float]:
    """Run commands in turns; return medians of CPU milliseconds."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for name in [*commands] * (rounds + 1):  # the first round warms up
        taken[name].append(peers.run(commands[name]) * 1e3)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def list_against_lspci(costs: dict[int, dict[str, float]]) -> Iterator[Goal]:
    """Compare list with lspci."""
    limits = {1000: (("list", 1.0),), SIZE: (("list", 0.35), ("list --json", 0.2))}
    for size, those in limits.items():
        times = costs[size]
        for name, limit in those:
            figure = times[name] / times["lspci -nk"] if "lspci -nk" in times else None
            yield Goal(f"{name} / lspci -nk, {size:,} functions, whole processes", figure, limit)


def domain_of(top: Path) -> Callable[[HostRoot], tuple[str, str]]:
    """Return what writes a domain with one function of a host; its file, and the function's address."""

    def write(root: HostRoot) -> tuple[str, str]:
        address = Scan(root, pciscan.scan_with(root, AS_SYSFS)).assignable()[0].address
        path = top / f"{os.path.basename(root.path)}.xml"
        path.write_text(DOMAIN.format(HOSTDEV.format(address)), encoding="ascii")
        return str(path), str(address)

    return write


def start_goals(top: Path, rounds: int) -> Iterator[Goal]:
    """Compare small verbs with an empty interpreter."""
    root = FakeHost.named("bcm5719", top / "bcm5719").root.path
    commands = {
        "python": EMPTY,
        "import pyhostdev": [sys.executable, "-S", "-c", START + "import os, pyhostdev"],
        "--version": ours("--version"),
        "show": ours("show", CARD, "--root", root),
        "status": ours("status", "--root", root),
    }
    times = processes(rounds, commands)
    limits = {"import pyhostdev": 1.25, "--version": 1.5, "show": 4.5, "status": 4.5}
    for name, limit in limits.items():
        yield Goal(f"{name} / python that does nothing", times[name] / times["python"], limit)


def change_goals(top: Path, rounds: int) -> Iterator[Goal]:
    """Compare a simulated change of the seed's devices with the import of lxml, which reading XML needs."""
    root = FakeHost.named("bcm5719", top / "changed").root.path
    lxml = [sys.executable, "-S", "-c", START + "import lxml.etree"]
    taken: dict[str, list[float]] = {"lxml": [], "prepare": [], "release": []}
    for _ in range(rounds + 1):
        taken["lxml"].append(peers.run(lxml))
        taken["prepare"].append(peers.run(ours("prepare", str(GUEST), "--root", root, "--simulate")))
        taken["release"].append(peers.run(ours("release", str(GUEST), "--root", root, "--simulate")))
    t = {name: statistics.median(times[1:]) for name, times in taken.items()}
    for name in ("prepare", "release"):
        yield Goal(f"{name} --simulate of the seed / import lxml.etree", t[name] / t["lxml"], 1.6)


def emulator_goals(top: Path) -> Iterator[Goal]:
    """Count the emulators that a second argv starts."""
    figure = None
    emulator = shutil.which("qemu-system-x86_64")
    if emulator and shutil.which("strace"):
        path = top / "asked.xml"
        devices = f"<emulator>{emulator}</emulator>"
        path.write_text(DOMAIN.format(devices), encoding="ascii")
        command = ours("argv", str(path), "--state-dir", str(top / "state"))
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        traced = ["strace", "-f", "-e", "trace=execve", *command]
        done = subprocess.run(traced, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        figure = done.stderr.count(f'execve("{emulator}"') if done.returncode == 0 else None
    yield Goal("emulators that the second call of argv asks", figure, 0)


def list_goals(trees: Trees) -> Iterator[Goal]:
    """Measure list, and look for opens that wake a device."""
    command = ours("list", "--root", trees("sriov", SIZE).path)
    weighed = [*command[:3], START + WEIGHED, *command[4:]]
    done = subprocess.run(weighed, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True)
    yield Goal(f"MB that list takes, {SIZE:,} functions", int(done.stderr) / 1024, MEMORY)
    opened = None
    if shutil.which("strace"):
        traced = ["strace", "-f", "-e", "trace=/^open", *command]
        done = subprocess.run(traced, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            opened = len(re.findall(r"/(?:config|ari_enabled)\"", done.stderr))
    yield Goal("opens of config and ari_enabled in list", opened, 0)


def bulk_goals(trees: Trees, rounds: int) -> Iterator[Goal]:
    """Compare the facts of all functions with their scan."""
    root = trees("sriov", SIZE)
    kept = pciscan.scan_with(root, AS_SYSFS)

    def columns() -> None:
        found = Scan(root, pciscan.scan_with(root, AS_SYSFS)).columns()
        assert found.address and found.driver and found.iommu_group and found.physfn

    def five_facts() -> None:
        for dev in Scan(root, pciscan.scan_with(root, AS_SYSFS)):
            _ = dev.address, dev.vendor, dev.driver, dev.iommu_group, dev.physfn

    works: dict[str, Any] = {
        "c": CPart(root, AS_SYSFS),
        "scan": lambda: pciscan.scan_with(root, AS_SYSFS),
        "columns": columns,
        "facts": five_facts,
        "assignable": lambda: len(Scan(root, kept).assignable()),
    }
    t = in_turns(rounds, works)
    yield Goal("columns of address, driver, group and PF / C part", t["columns"] / t["c"], 1.35)
    yield Goal("assignable() / scan", t["assignable"] / t["scan"], 1)
    yield Goal("all objects, five facts each / C part", t["facts"] / t["c"], INFORMATION)


def plan_goals(top: Path, rounds: int) -> Iterator[Goal]:
    """Compare a plan of many devices with reading their facts in C."""
    fake = FakeHost(synthetic_host(300), top / "fake-300")
    vfs = [address for address, spec in fake.spec.functions.items() if spec.physfn][:PLANNED]
    definition = DomainDef.parse(DOMAIN.format("".join(map(HOSTDEV.format, vfs))).encode())
    host, reader = Host(fake.root), pciscan.FunctionReader(fake.root)
    t = in_turns(rounds, {"plan": lambda: len(host.plan(definition).steps), "c": lambda: many(reader, vfs)})
    reader.close()
    yield Goal(f"plan of {PLANNED} devices / their facts in C", t["plan"] / t["c"] * 20, 6)


def many(reader: pciscan.FunctionReader, addresses: list[pciscan.PCIDeviceAddress]) -> None:
    """Repeat a read often enough to be timed."""
    for _ in range(20):
        reader.read(addresses)


def fake_host_goals(top: Path) -> Iterator[Goal]:
    """Compare the cost of a function of a simulated host of two sizes."""
    sizes = (500, 4000)
    t = in_turns(1, {str(size): lambda size=size: build(top, size) for size in sizes})  # type: ignore[misc]
    each = [t[str(size)] / size for size in sizes]
    yield Goal(f"FakeHost, cost of a function, {sizes[1]:,} / {sizes[0]:,}", each[1] / each[0], 1.3)


def build(top: Path, size: int) -> None:
    """Build a host and remove it."""
    with tempfile.TemporaryDirectory(dir=top) as directory:
        FakeHost(synthetic_host(size), directory)


def lines() -> list[str]:
    """Return the table of the latest measurement."""
    if not RESULTS.exists():
        return []
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    found = [
        "",
        "## What a person waits for",
        "",
        f"Measured by `waits.py` on: {kept['machine']}.{kept.get('busy', '')}",
        "",
    ]
    found += ["| goal | limit | figure | met |", "|---|---|---|---|", *kept["goals"]]
    return [*found, *persons.lines(kept["costs"])]


def how_busy() -> str:
    """Return a sentence if other programs ran meanwhile; ratios hold then, but their spread is larger."""
    load = os.getloadavg()[2]
    return f" Other programs ran meanwhile: the load was {load:.0f}." if load > (os.cpu_count() or 1) + 1 else ""


def main() -> int:
    """Measure, print and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # it would compile everything at each call
    with trees_in_memory() as (trees, _), tempfile.TemporaryDirectory(dir=trees.top) as directory:
        top = Path(directory)
        costs = persons.costs(trees, ours, domain_of(top), rounds)
        found = [*list_against_lspci(costs), *start_goals(top, rounds), *change_goals(top, rounds)]
        found += [*emulator_goals(top), *list_goals(trees), *bulk_goals(trees, rounds)]
        inventories = {size: refreshes.costs(top, size, rounds) for size in AGAIN}
        found += refreshes.goals_of_refresh(inventories[SIZE])
        found += [*plan_goals(top, rounds), *goals_of_definitions(top), *fake_host_goals(top)]
    rows = [goal.row() for goal in found]
    print(*rows, sep="\n")
    milliseconds = {size: {name: s * 1e3 for name, s in times.items()} for size, times in inventories.items()}
    persons.draw(costs, milliseconds)
    kept = {"machine": machine(), "busy": how_busy(), "goals": rows, "costs": costs}
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    return 0 if all(goal.is_met is not False for goal in found) else 1


if __name__ == "__main__":
    sys.exit(main())
