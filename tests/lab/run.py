#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The lab: fetch its parts, boot each host once, run its scenario there, report times.

Exit status 0 if every scenario passed, or if the lab is not available here: then it names what is missing.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

import fetch
import programs
import suites
from boot import CACHE, EXIT_NOT_BOOTED, HERE, KERNEL, kernel_of

PATIENCE = 3 if os.environ.get("CI") == "true" else 1  # machines of continuous integration are slow and busy
BOOT_ATTEMPTS = 2 if PATIENCE > 1 else 1


PINNED = CACHE / "pinned"  # what one host leaves for the next
SOAK = os.environ.get("LAB_SOAK") == "1"  # the long form of what is about crashes and races, alone


class Host(NamedTuple):
    """One boot: the host's devices, and the script that runs in it."""

    name: str
    options: tuple[str, ...]
    script: str
    timeout_s: int


HOSTS = [
    Host("one IOMMU group and an NVMe controller with VFs", ("--nic", "onegroup", "--vfs", "4"), "onegroup.py", 600),
    Host("a card plugged into a running guest", ("--nic", "onegroup", "--vfs", "4"), "hotplug.py", 1200),
    Host("a card that is pinned", ("--nic", "onegroup", "--vfs", "4", "--out", str(PINNED)), "pins.py", 200),
    Host("another card before it", ("--nic", "onegroup", "--earlier", "--env", f"LAB_PINNED={PINNED}"), "pins.py", 120),
    Host("a bridge in the group and a disk", ("--nic", "bridge", "--disk"), "bridge.py", 120),
    Host("a card near a NUMA node", ("--nic", "onegroup"), "numa.py", 900),
    Host("kernel events", ("--nic", "onegroup", "--vfs", "4"), "events.py", 120),
    Host("crashes, races and other programs", ("--smp", "2", "--nic", "onegroup", "--vfs", "4"), "soak.py", 400),
]
WHOLE = Host(
    "a guest that has everything",
    (
        "--smp", "2", "--mem", "3072", "--nic", "onegroup", "--usb",
        "--modules", "vfio-pci tun bridge uinput evdev usbhid hid_generic",
    ),
    "whole.py", 3600,
)  # fmt: skip
LIBVIRT = Host(
    "the hook beside libvirtd",
    ("--nic", "onegroup", "--vfs", "4", "--env", "LAB_LIBVIRT"), "libvirt_hook.py", 1800,
)  # fmt: skip
SOAK_HOSTS = [HOSTS[-1]._replace(timeout_s=3600)]


def say(text: str) -> None:
    """Print one of our own lines."""
    sys.stdout.write(f"lab: {text}\n")
    sys.stdout.flush()


def compile_ahead() -> None:
    """Compile what the hosts import: they are ten times slower at it, and cannot keep the result."""
    package = importlib.util.find_spec("pyhostdev")
    for directory in (*(package.submodule_search_locations or () if package else ()), str(HERE)):
        compileall.compile_dir(directory, quiet=2)


def run_in(host: Host, steps: list[str]) -> int:
    """Boot a host and run its script; a boot that fails may be tried again."""
    words = [
        sys.executable, str(HERE / "boot.py"), *host.options,
        "--timeout", str(host.timeout_s * PATIENCE), "--env", f"LAB_PATIENCE={PATIENCE}",
        "--env", "LAB_SOAK", "--env", "LAB_SEED",
        "--", sys.executable, str(HERE / "in_guest" / host.script), *steps,
    ]  # fmt: skip
    for attempt in range(BOOT_ATTEMPTS):
        status = subprocess.run(words).returncode
        if status != EXIT_NOT_BOOTED:
            return status
        say(f"the host did not boot (attempt {attempt + 1} of {BOOT_ATTEMPTS})")
    return status


def hosts_with(steps: list[str], hosts: list[Host]) -> list[Host]:
    """Return the hosts whose script names one of the steps; all of them if no step is named."""
    texts = {host.script: (HERE / "in_guest" / host.script).read_text() for host in hosts}
    wanted = [re.compile(rf"\b{re.escape(step)}\b") for step in steps]
    return [host for host in hosts if not steps or any(step.search(texts[host.script]) for step in wanted)]


def with_libvirt() -> list[Host]:
    """Return the host with libvirtd: of another root, or of this machine."""
    if os.environ.get("LAB_LIBVIRT") or shutil.which("libvirtd"):
        return [LIBVIRT]
    say("without libvirtd: LAB_LIBVIRT names a Debian root that has it")
    return []


def with_programs(host: Host) -> Host | None:
    """Return a host with what its script takes from this machine; None, and a line about it, if it cannot be had."""
    if host is not WHOLE:
        return host
    try:
        virtiofsd = programs.fetch(CACHE)
    except suites.UnavailableError as err:
        say(f"without {host.name}: {err}")
        return None
    return host._replace(options=(*host.options, "--env", f"LAB_VIRTIOFSD={virtiofsd}"))


def main(steps: list[str]) -> int:
    """Run every host, or the named steps only; return how it went."""
    begin = time.monotonic()
    try:
        fetch.fetch()
    except suites.UnavailableError as err:
        say(f"skipped, it cannot be had here: {err}")
        return 0
    compile_ahead()
    say(f"kernel {kernel_of(KERNEL).name.removeprefix('vmlinuz-')}, ready after {time.monotonic() - begin:.0f} s")
    results = []
    wanted = hosts_with(steps, SOAK_HOSTS if SOAK else [*HOSTS, WHOLE, *with_libvirt()])
    for host in filter(None, map(with_programs, wanted)):
        start = time.monotonic()
        say(f"host with {host.name}")
        status = run_in(host, steps)
        results.append(status)
        say(f"{'passed' if status == 0 else f'FAILED ({status})'} in {time.monotonic() - start:.0f} s: {host.name}")
    say(f"{'passed' if not any(results) else 'FAILED'} in {time.monotonic() - begin:.0f} s")
    return 1 if any(results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
