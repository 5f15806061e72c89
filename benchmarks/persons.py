# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Every verb that a person waits for, and the tools that they would use else, as whole processes on hosts of three sizes.

Tools that read /sys itself run in a mount namespace of their own, in which the host's directory is /sys; that takes
root, and 2 to 4 ms of the figure. What is not installed is named.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import peers
import svgplot
from measure import Trees

from pyhostdev.util.hostroot import HostRoot

SIZES = (20, 1000, 10_000)
SLOW = ("driverctl list-devices", "dpdk-devbind -s")  # seconds at the largest size
PLOTTED = ("list", "list --json", "plan", "lspci -nk", "pyudev", "driverctl list-devices", "dpdk-devbind -s")
PLOT = Path(__file__).parent / "waits.svg"
REFRESHED = Path(__file__).parent / "refresh.svg"
PYUDEV = "import pyudev; [(d.get('PCI_ID'), d.driver) for d in pyudev.Context().list_devices(subsystem='pci')]"
IN_NAMESPACE = 'mount --bind "$1" /sys && shift && exec "$@"'

Ours = Callable[..., list[str]]
Commands = dict[str, list[str]]


def verbs(ours: Ours, root: HostRoot, domain: str, card: str) -> Commands:
    """Return our verbs by name."""
    at = ("--root", root.path)
    return {
        "list": ours("list", *at),
        "list --json": ours("list", "--json", *at),
        "show": ours("show", card, *at),
        "plan": ours("plan", domain, *at),
        "validate": ours("validate", domain, *at),
        "argv": ours("argv", domain, *at),
        "xml": ours("xml", domain, *at),
        "status": ours("status", *at),
    }


def in_place_of_sys(root: HostRoot, command: list[str]) -> list[str] | None:
    """Return the command that runs another with a host's directory as /sys; None where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return None
    return ["unshare", "-m", "sh", "-c", IN_NAMESPACE, "sh", root.join("sys"), *command]


def tools(root: HostRoot) -> dict[str, list[str] | None]:
    """Return other tools by name, None for those that are not here."""
    found = {f"lspci {option}": peers.lspci(root.join("sys"), option) for option in ("-n", "-nk")}
    others = {
        "pyudev": [sys.executable, "-c", PYUDEV],
        "driverctl list-devices": ["driverctl", "list-devices"],
        "dpdk-devbind -s": ["dpdk-devbind.py", "-s"],
        "virsh nodedev-list": ["virsh", "nodedev-list", "--cap", "pci"],
    }
    for name, command in others.items():
        is_there = shutil.which(command[0]) is not None
        found[name] = in_place_of_sys(root, command) if is_there else None
    return found


def usable(commands: dict[str, list[str] | None]) -> Commands:
    """Return the tools that are installed and end well here."""
    found = {}
    for name, command in commands.items():
        try:
            if command is not None:
                peers.run(command)
                found[name] = command
        except (OSError, peers.subprocess.CalledProcessError):
            continue
    return found


def costs(
    trees: Trees, ours: Ours, domain: Callable[[HostRoot], tuple[str, str]], rounds: int
) -> dict[int, dict[str, float]]:
    """Measure verbs and tools; CPU milliseconds by size and name."""
    table = {}
    for size in SIZES:
        root = trees("sriov", size)
        commands = {**verbs(ours, root, *domain(root)), **usable(tools(root))}
        slow = {name: command for name, command in commands.items() if name in SLOW}
        quick = {name: command for name, command in commands.items() if name not in SLOW}
        table[size] = {**in_turns(rounds, quick), **in_turns(1, slow)}
    return table


def in_turns(rounds: int, commands: Commands) -> dict[str, float]:
    """Run commands in turns; medians of CPU milliseconds."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for name in [*commands] * (rounds + 1):  # the first round warms up
        taken[name].append(peers.run(commands[name]) * 1e3)
    return {name: sorted(times[1:])[len(times[1:]) // 2] for name, times in taken.items()}


def lines(table: dict[str, dict[str, float]]) -> list[str]:
    """Return the table of the latest measurement, with the tools that were not there."""
    sizes = list(table)
    names = list(dict.fromkeys(name for times in table.values() for name in times))
    found = ["", "CPU milliseconds, whole processes, by the number of the host's functions:", ""]
    found += [f"| command | {' | '.join(f'{int(size):,}' for size in sizes)} |", "|---|" + "---|" * len(sizes)]
    for name in names:
        cells = (f"{table[size][name]:.3g}" if name in table[size] else "not here" for size in sizes)
        found.append(f"| {name} | {' | '.join(cells)} |")
    missing = [name for name in tools(HostRoot("/")) if name not in names]
    if missing:
        found += ["", f"Not installed where this was measured, or without what they need: {', '.join(missing)}."]
    found += ["", "![plot](waits.svg)", "", "An inventory that is read again, in a process that runs already:"]
    return [*found, "", "![plot](refresh.svg)"]


def draw(table: dict[int, dict[str, float]], inventories: dict[int, dict[str, float]]) -> None:
    """Draw the commands, and in a plot of its own what a program waits for that reads a host again."""
    names = [name for name in PLOTTED if all(name in times for times in table.values())]
    curves = {name: [(size, times[name]) for size, times in table.items()] for name in names}
    PLOT.write_text(svgplot.draw("What a person waits for", "functions", "CPU ms", curves), encoding="utf-8")
    names = list(next(iter(inventories.values())))
    again = {name: [(size, times[name]) for size, times in inventories.items()] for name in names}
    REFRESHED.write_text(svgplot.draw("Reading a host again", "functions", "CPU ms", again), encoding="utf-8")
