# SPDX-License-Identifier: LGPL-2.1-or-later
"""How others list the PCI functions of a host: lspci, pyudev, and plain Python as tools write it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import defaultdict
from typing import Any

LSPCI = {"lspci -n": ["-n"], "lspci -nk": ["-nk"], "lspci -Dvmmnnk": ["-Dvmmnnk"]}

_HEADER_TYPE = 14


def plain_python(sysfs: str) -> tuple[dict[str, dict[str, Any]], dict[Any, list[str]]]:
    """Read ids, class, header type, driver, group and PF of every function, one file after the other."""
    base = os.path.join(sysfs, "bus/pci/devices")
    functions: dict[str, dict[str, Any]] = {}
    groups: dict[Any, list[str]] = defaultdict(list)
    for name in sorted(os.listdir(base)):
        function = _plain_function(os.path.join(base, name))
        functions[name] = function
        groups[function["group"]].append(name)
    return functions, groups


def _plain_function(top: str) -> dict[str, Any]:
    with open(os.path.join(top, "config"), "rb") as file:
        config = file.read(64)
    return {
        "vendor": int(_plain_read(top, "vendor"), 16),
        "device": int(_plain_read(top, "device"), 16),
        "class": int(_plain_read(top, "class"), 16),
        "header_type": config[_HEADER_TYPE] if len(config) > _HEADER_TYPE else None,
        "driver": _plain_link(top, "driver"),
        "group": _plain_link(top, "iommu_group"),
        "pf": _plain_link(top, "physfn"),
    }


def _plain_read(top: str, name: str) -> str:
    with open(os.path.join(top, name), encoding="ascii") as file:
        return file.read().strip()


def _plain_link(top: str, name: str) -> str | None:
    path = os.path.join(top, name)
    return os.path.basename(os.readlink(path)) if os.path.islink(path) else None


def lspci(sysfs: str, *options: str) -> list[str] | None:
    """Return the command that lists the functions of a sysfs; None where lspci is not installed."""
    program = shutil.which("lspci", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin")
    if program is None:
        return None
    where = [] if sysfs == "/sys" else ["-A", "linux-sysfs", "-O", f"sysfs.path={sysfs}/bus/pci"]
    return [program, *where, *options]


def run(command: list[str]) -> float:
    """
    Run a command to its end; the CPU seconds it took.

    Raises:
        CalledProcessError: it failed.
    """
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return usage.ru_utime + usage.ru_stime


def pyudev_facts() -> int:
    """Enumerate the live host's functions by pyudev, with driver, group and PF; how many there are."""
    import pyudev

    count = 0
    for device in pyudev.Context().list_devices(subsystem="pci"):
        _ = device.get("PCI_ID"), device.get("PCI_CLASS"), device.driver
        _ = [_plain_link(device.sys_path, name) for name in ("iommu_group", "physfn")]
        count += 1
    return count
