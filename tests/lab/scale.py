#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The scan on a real kernel's sysfs: 10,000 functions in large IOMMU groups, and 1,000 VFs without IOMMU.

Writes benchmarks/lab_scale.json, which ``make bench`` puts into RESULTS.md. Not part of ``make lab``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import boot
import fetch
import initramfs
import suites
import topology
from run import compile_ahead

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "lab_scale.json"
CONTROLLERS = 8
VFS = 126  # of each: QEMU's NVMe controller can have 127


class Host(NamedTuple):
    """One boot; ``has_iommu`` and ``controllers`` are what boot.py has no option for."""

    title: str
    options: tuple[str, ...]
    has_iommu: bool
    controllers: int


HOSTS = [
    Host(
        "10,000 functions in IOMMU groups of 248",
        ("--functions", "10000", "--farm-shape", "conv", "--mem", "4096", "--modules", ""),
        True,
        0,
    ),
    Host(
        f"{CONTROLLERS * VFS:,} VFs of {CONTROLLERS} NVMe controllers, no IOMMU",
        ("--modules", "nvme", "--vfs", str(VFS), "--mem", "3072"),  # a PF's driver makes its VFs
        False,
        CONTROLLERS,
    ),
]


def controllers(number: int) -> list[str]:
    """NVMe controllers with many possible VFs, each below its own root port."""
    devices = []
    for index in range(number):
        port, subsystem, nvme = topology.nvme(VFS)
        for old, new in (
            ("rpnvme", f"rpnvme{index}"),
            ("subsys0", f"subsys{index}"),
            ("id=nvme0", f"id=nvme{index}"),
            ("serial=lab0", f"serial=lab{index}"),
            (f"addr={topology.NVME_SLOT}", f"addr={topology.FARM_SLOTS.start + index:x}"),
            ("chassis=2", f"chassis={100 + index}"),
        ):
            port, subsystem, nvme = (text.replace(old, new) for text in (port, subsystem, nvme))
        devices += [port, subsystem, nvme]
    return devices


def without_iommu(argv: list[str]) -> list[str]:
    """Take the IOMMU out: it costs memory by the square of what is behind it."""
    at = next(index for index, word in enumerate(argv) if word.startswith("intel-iommu"))
    return argv[: at - 1] + argv[at + 1 :]


def run_host(host: Host, command: list[str]) -> dict[str, Any]:
    """
    Boot a host, run the measurement in it, and return what it left.

    Raises:
        RuntimeError: it did not end.
    """
    fixed = ("--sriov", "0", "--no-autoload", "--timeout", "900")
    options = boot.parse([*host.options, *fixed, "--", *command])
    kernel = boot.kernel_of(options.kernel)
    modules = options.kernel / "lib/modules" / kernel.name.removeprefix("vmlinuz-")
    init = (boot.HERE / "l1/init").read_text()
    archive = initramfs.cached(boot.CACHE, init, modules, boot.EARLY_MODULES)
    with tempfile.TemporaryDirectory(prefix="lab-job-") as directory:
        job = boot.Job(Path(directory), options)
        argv = boot.qemu_argv(options, job, kernel, archive)
        devices = boot.devices_of(options) + controllers(host.controllers)
        boot.write_config(devices, job.directory / "devices.cfg")
        report = boot.run(argv if host.has_iommu else without_iommu(argv), options)
        boot.note(", ".join(report.times))
        if report.exit_status:
            sys.stderr.write(job.console.read_text(errors="replace")[-boot.CONSOLE_TAIL :])
            raise RuntimeError(f"{host.title}: status {report.exit_status}")
        left: dict[str, Any] = json.loads((job.out / "scale.json").read_text())
        return left


def main() -> int:
    """Run both hosts, and write their results."""
    try:
        fetch.fetch()
    except suites.UnavailableError as err:
        print(f"scale: skipped, the lab cannot be had here: {err}")
        return 0
    compile_ahead()
    sys.path.insert(0, str(BENCHMARKS))
    from floor import Floor

    library = Floor.build(boot.CACHE)
    command = [sys.executable, str(boot.HERE / "in_guest/scale.py"), str(library)]
    found = []
    for host in HOSTS:
        print(f"scale: {host.title}", flush=True)
        facts = run_host(host, command)
        count = f"{facts['functions']:,} functions, {facts['vfs']:,} VFs, {facts['groups']:,} IOMMU groups"
        times = {name: round(ratio, 3) for name, ratio in facts["times"].items()}
        found.append({"title": f"{host.title} ({count})", "times": times})
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
