# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The C scanner's work in plain Python: every attribute of every function is read.

It is the reference for the scanner's tests and the baseline of its benchmarks; it is not a fallback.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from pyhostdev.errors import SysfsError
from pyhostdev.util import confined
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciscan import ScanRecord
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virfile import read_link

_NAME = re.compile(r"([0-9a-f]{4}|[1-9a-f][0-9a-f]{4,7}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")
_NUMBER = re.compile(rb"(?:0[xX])?([0-9a-fA-F]{1,8})\n?")
_GROUP = re.compile(r"[0-9]{1,10}", re.ASCII)
_MODALIAS = re.compile(
    rb"pci:v0000(?P<vendor>[0-9a-f]{4})d0000(?P<device>[0-9a-f]{4})"
    rb"sv0000(?P<subsystem_vendor>[0-9a-f]{4})sd0000(?P<subsystem_device>[0-9a-f]{4})"
    rb"bc(?P<base>[0-9a-f]{2})sc(?P<sub>[0-9a-f]{2})i(?P<interface>[0-9a-f]{2})\n?",
    re.IGNORECASE,
)
_GROUP_MAX = 0xFFFFFFFE
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ELOOP)
_DOING = "scan the PCI functions"


class Identity(NamedTuple):
    """The identity that a function reports; None for a value that it does not report."""

    vendor: int | None
    device: int | None
    subsystem_vendor: int | None
    subsystem_device: int | None
    class_: int | None


def scan(root: HostRoot) -> list[ScanRecord]:
    """
    Read the sysfs attributes of every PCI function, one after the other; sorted by address.

    Raises:
        SysfsError: the root has no PCI bus, or an attribute exists but cannot be read or understood.

    Host: sys/bus/pci/devices
    """
    try:
        with confined.opened(confined.open_directory(root, root.pci_devices)) as fd:
            names = os.listdir(fd)
    except OSError as err:
        raise SysfsError(err.errno or 0, root.pci_devices, _DOING) from err
    listed = sorted((_sort_key(name), name) for name in names if _NAME.fullmatch(name))
    records = (_read_function(root, os.path.join(root.pci_devices, name), name) for _, name in listed)
    return [record for record in records if record is not None]


def _sort_key(name: str) -> tuple[int, ...]:
    match = _NAME.fullmatch(name)
    assert match is not None
    return tuple(int(part, 16) for part in match.groups())


def _read_function(root: HostRoot, top: str, name: str) -> ScanRecord | None:
    identity = read_identity(root, top)
    record = ScanRecord(
        name, *identity, _read_link(root, top, "driver"), _read_group(root, top), _read_physfn(root, top)
    )
    return record if _is_directory(root, top) else None


def _is_directory(root: HostRoot, path: str) -> bool:
    try:
        with confined.opened(confined.open_path(root, path)) as fd:
            return stat.S_ISDIR(os.fstat(fd).st_mode)
    except OSError as err:
        if err.errno in _ABSENT:
            return False
        raise SysfsError(err.errno or 0, path, _DOING) from err


def _read(root: HostRoot, path: str) -> bytes | None:
    try:
        with confined.opened(confined.open_file(root, path)) as fd:
            return os.read(fd, 4096)
    except OSError as err:
        if err.errno in _ABSENT:
            return None
        if err.errno == confined.NOT_A_FILE:
            raise SysfsError(errno.EINVAL, path, "read an attribute that is not a regular file") from err
        raise SysfsError(err.errno or 0, path, _DOING) from err


def read_identity(root: HostRoot, top: str) -> Identity:
    """Return the identity from ``modalias``, or from the single files if ``modalias`` is absent or malformed."""
    modalias = _read(root, os.path.join(top, "modalias"))
    match = _MODALIAS.fullmatch(modalias) if modalias is not None else None
    if match is None:
        return read_identity_files(root, top)
    parts = {name: int(text, 16) for name, text in match.groupdict().items()}
    class_ = parts["base"] << 16 | parts["sub"] << 8 | parts["interface"]
    return Identity(
        parts["vendor"],
        parts["device"],
        parts["subsystem_vendor"],
        parts["subsystem_device"],
        class_,
    )


def read_identity_files(root: HostRoot, top: str) -> Identity:
    """Return the identity from ``vendor``, ``device``, ``subsystem_*`` and ``class``."""
    return Identity(
        _read_number(root, top, "vendor", 0xFFFF),
        _read_number(root, top, "device", 0xFFFF),
        _read_number(root, top, "subsystem_vendor", 0xFFFF),
        _read_number(root, top, "subsystem_device", 0xFFFF),
        _read_number(root, top, "class", 0xFFFFFF),
    )


def _read_number(root: HostRoot, top: str, name: str, limit: int) -> int | None:
    path = os.path.join(top, name)
    content = _read(root, path)
    if content is None:
        return None
    match = _NUMBER.fullmatch(content)
    value = int(match.group(1), 16) if match else limit + 1
    if value > limit:
        raise SysfsError(errno.EBADMSG, path, _DOING)
    return value


def _read_link(root: HostRoot, top: str, name: str) -> str | None:
    path = os.path.join(top, name)
    try:
        target = read_link(root, path)
    except SysfsError as err:
        if err.errno in _ABSENT:
            return None
        raise SysfsError(err.errno or 0, path, _DOING) from err
    if target is None:
        return None
    base = target.rpartition("/")[2]
    if not base:
        raise SysfsError(errno.EBADMSG, path, _DOING)
    return base


def _read_group(root: HostRoot, top: str) -> int | None:
    name = _read_link(root, top, "iommu_group")
    if name is None:
        return None
    if _GROUP.fullmatch(name) is None or int(name) > _GROUP_MAX:
        raise SysfsError(errno.EBADMSG, os.path.join(top, "iommu_group"), _DOING)
    return int(name)


def _read_physfn(root: HostRoot, top: str) -> str | None:
    name = _read_link(root, top, "physfn")
    if name is not None and _NAME.fullmatch(name) is None:
        raise SysfsError(errno.EBADMSG, os.path.join(top, "physfn"), _DOING)
    return name
