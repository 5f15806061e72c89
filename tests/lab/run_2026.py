#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The lab of 2026: a kernel with iommufd, device nodes and variant drivers, built here, and the newest QEMU.

LAB_QEMU_VERSION=10.0 takes that QEMU, which has no virtio card with VFs. Exit status 0 if every scenario passed, or if
a part cannot be had here: then it names what is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import emulators
import fetch
import kernel_2026
import suites
from boot import CACHE, HERE, KERNEL, kernel_of
from run import PATIENCE, Host, compile_ahead, hosts_with, run_in, say

if TYPE_CHECKING:
    from pathlib import Path

SNAPSHOT = CACHE / "kernels"  # what the host with Debian's kernel leaves for the other
ONE_CARD = ("--nic", "onegroup", "--vfs", "4", "--igb", "0")
HOSTS = [
    Host("a guest by groups and by nodes", ONE_CARD, "iommufd.py", 1800),
    Host(
        "a card plugged into a running guest by nodes",
        ("--nic", "onegroup", "--vfs", "4", "--env", "LAB_IOMMUFD=1"), "hotplug.py", 1800,
    ),
    Host("crashes, races and other programs", ("--smp", "2", "--nic", "onegroup", "--vfs", "4"), "soak.py", 1200),
    Host("kernel events", ("--nic", "onegroup", "--vfs", "4"), "events.py", 300),
    Host(
        "this machine with Debian's kernel",
        ("--nic", "onegroup", "--vfs", "4", "--kernel", str(KERNEL), "--out", str(SNAPSHOT)), "kernels.py", 300,
    ),
    Host(
        "the same machine with this kernel",
        ("--nic", "onegroup", "--vfs", "4", "--env", f"LAB_BEFORE={SNAPSHOT}"), "kernels.py", 300,
    ),
]  # fmt: skip
VARIANTS = Host(
    "virtual functions: variant drivers and network identity",
    ("--nic", "onegroup", "--igb", "2", "--virtio-sriov", "2"), "vfs.py", 1800,
)  # fmt: skip
WITHOUT_VIRTIO = VARIANTS._replace(options=("--nic", "onegroup", "--igb", "2"))


HERE_WITHOUT_DEVICES = Host("guests without a device", (), "acpi.py", 1800)  # under each QEMU, on this machine
NO_CARD = " ".join(f"0000:01:00.{function}" for function in range(4))  # a name for what such a step does not touch


def hosts_of(version: str) -> list[Host]:
    """Return the hosts that a QEMU can be; a virtio card with VFs came with 11.0."""
    if int(version.partition(".")[0]) >= 11:
        return [*HOSTS, VARIANTS]
    say(f"QEMU {version} has no virtio card with VFs: without variant drivers")
    return [*HOSTS, WITHOUT_VIRTIO]


def main(steps: list[str]) -> int:
    """Run every host, or the named steps only; return how it went."""
    begin = time.monotonic()
    version = os.environ.get("LAB_QEMU_VERSION") or emulators.NEWEST
    try:
        fetch.fetch()
        qemu = emulators.fetch(version, CACHE)
        kernel_2026.build()
    except suites.UnavailableError as err:
        say(f"skipped, it cannot be had here: {err}")
        return 0
    compile_ahead()
    release = kernel_of(kernel_2026.KERNEL_2026).name.removeprefix("vmlinuz-")
    say(f"kernel {release}, QEMU {version}, ready after {time.monotonic() - begin:.0f} s")
    os.environ["LAB_QEMU_VERSION"] = version
    results = [_run(host, steps, qemu) for host in hosts_with(steps, hosts_of(version))]
    if hosts_with(steps, [HERE_WITHOUT_DEVICES]):
        results += [_run_here(name, root, steps) for name, root in _emulators().items()]
    say(f"{'passed' if not any(results) else 'FAILED'} in {time.monotonic() - begin:.0f} s")
    return 1 if any(results) else 0


def _run(host: Host, steps: list[str], qemu: Path) -> int:
    start = time.monotonic()
    say(f"host with {host.name}")
    more = ("--kernel", str(kernel_2026.KERNEL_2026), "--qemu", str(qemu), "--env", "LAB_QEMU_VERSION")
    status = run_in(host._replace(options=(*more, *host.options)), steps)  # a host may name another kernel
    verdict = "passed" if status == 0 else f"FAILED ({status})"
    say(f"{verdict} in {time.monotonic() - start:.0f} s: {host.name} (deadlines x {PATIENCE})")
    return status


def _emulators() -> dict[str, Path | None]:
    """Return the root directory of each QEMU; None for the installed one."""
    return {"installed": None, **{version: emulators.fetch(version, CACHE) for version in emulators.SUITES}}


def _run_here(name: str, root: Path | None, steps: list[str]) -> int:
    start = time.monotonic()
    say(f"{HERE_WITHOUT_DEVICES.name}, QEMU {name}")
    words = [sys.executable, str(HERE / "in_guest" / HERE_WITHOUT_DEVICES.script), *steps]
    program = emulators.SYSTEM
    if root is not None:
        program = emulators.write_script(root, CACHE / f"qemu-{name}.sh")
        words = emulators.with_modules(root, words)
    own = {"LAB_NIC": NO_CARD, "LAB_NVME": "", "LAB_KERNEL": str(KERNEL), "LAB_QEMU": program}
    environment = {key: text for key, text in os.environ.items() if not key.startswith("LAB_")}
    status = subprocess.run(words, env={**environment, **own, "LAB_PATIENCE": str(PATIENCE)}).returncode
    verdict = "passed" if status == 0 else f"FAILED ({status})"
    say(f"{verdict} in {time.monotonic() - start:.0f} s: {HERE_WITHOUT_DEVICES.name}, QEMU {name}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
