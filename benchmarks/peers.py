# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other ways to list the PCI functions of a host: lspci, pyudev, and plain Python as in other tools."""

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


class SameAlgorithm:
    """
    The scanner's algorithm in the leanest plain Python: the difference is the gain of C.

    It trusts the tree and leaves out the scanner's checks.
    """

    def __init__(self, sysfs: str) -> None:
        self.devices = os.open(os.path.join(sysfs, "bus/pci/devices"), os.O_RDONLY)
        self.drivers_top = os.path.join(sysfs, "bus/pci/drivers")
        self.parent = -1

    def run(self) -> tuple[list[tuple[Any, ...]], dict[str | None, list[str]]]:
        """Read all functions and groups."""
        drivers = {
            name: driver
            for driver in os.listdir(self.drivers_top)
            for name in os.listdir(os.path.join(self.drivers_top, driver))
        }
        functions: list[tuple[Any, ...]] = []
        groups: dict[str | None, list[str]] = defaultdict(list)
        bus = ""
        pfs: dict[str, Any] = {}
        first: dict[str, Any] = {}
        for name in sorted(os.listdir(self.devices)):
            if name[:-5] != bus:
                bus = name[:-5]
                self._enter(name)
            pf = pfs.get(name)
            ids = first.get(pf) if pf else None
            if ids is None:
                ids = self._modalias(name)
                if pf:
                    first[pf] = ids
                elif ids[6] != "06":
                    self._find_vfs(name, pfs)
            group = self._link(f"{name}/iommu_group")
            functions.append((name, ids, drivers.get(name), group, pf))
            groups[group].append(name)
        os.close(self.parent)
        os.close(self.devices)
        return functions, groups

    def _enter(self, name: str) -> None:
        if self.parent >= 0:
            os.close(self.parent)
        top = os.readlink(name, dir_fd=self.devices).rpartition("/")[0]
        self.parent = os.open(top, os.O_PATH | os.O_DIRECTORY, dir_fd=self.devices)

    def _modalias(self, name: str) -> tuple[Any, ...]:
        fd = os.open(f"{name}/modalias", os.O_RDONLY, dir_fd=self.parent)
        text = os.read(fd, 64).decode()
        os.close(fd)
        numbers = [int(text[at : at + 8], 16) for at in (5, 14, 24, 34)]
        return (*numbers, text[48:50], text[51:53], text[44:46])

    def _link(self, path: str) -> str | None:
        try:
            return os.readlink(path, dir_fd=self.parent).rpartition("/")[2]
        except OSError:
            return None

    def _find_vfs(self, name: str, pfs: dict[str, str]) -> None:
        first, second = self._link(f"{name}/virtfn0"), self._link(f"{name}/virtfn1")
        if first is None:
            return
        key = _key(first)
        stride = _key(second) - key if second else 1
        fd = os.open(name, os.O_RDONLY, dir_fd=self.parent)
        count = sum(entry.startswith("virtfn") for entry in os.listdir(fd))
        os.close(fd)
        pfs.update((_name(key + number * stride), name) for number in range(count))


def _key(name: str) -> int:
    return int(name[:4], 16) << 16 | int(name[5:7], 16) << 8 | int(name[8:10], 16) << 3 | int(name[11])


def _name(key: int) -> str:
    return f"{key >> 16:04x}:{key >> 8 & 255:02x}:{key >> 3 & 31:02x}.{key & 7}"


def lspci(sysfs: str, *options: str) -> list[str] | None:
    """Return the command that lists the functions of a sysfs; None where lspci is not installed."""
    program = shutil.which("lspci", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin")
    if program is None:
        return None
    where = [] if sysfs == "/sys" else ["-A", "linux-sysfs", "-O", f"sysfs.path={sysfs}/bus/pci"]
    return [program, *where, *options]


def run(command: list[str]) -> float:
    """
    Run a command to its end; return its CPU seconds.

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
    """Enumerate the live host's functions by pyudev, with driver, group and PF; return their number."""
    import pyudev

    count = 0
    for device in pyudev.Context().list_devices(subsystem="pci"):
        _ = device.get("PCI_ID"), device.get("PCI_CLASS"), device.driver
        _ = [_plain_link(device.sys_path, name) for name in ("iommu_group", "physfn")]
        count += 1
    return count
