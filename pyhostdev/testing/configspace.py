# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Configuration space built from a function's description: a scanner or lspci reads the bytes as that function.

Source: register names and their specifications are in pyhostdev.util.pciregs; the names below are used only here.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigError
from pyhostdev.testing.treefile import parse_dump_line
from pyhostdev.util import pciregs

if TYPE_CHECKING:
    from pyhostdev.testing.hostspec import FunctionSpec

_COMMAND_MEMORY_MASTER = 0x0006  # PCI30 6.2.2: answers memory accesses, may master the bus
_REVISION_AND_CLASS = 0x08  # PCI30 6.2.1
_PRIMARY_BUS = 0x18  # BRIDGE12 3.2.5.2
_SUBSYSTEM = 0x2C  # PCI30 6.2.4
_VF_ID = 0xFFFF  # PCIE50 9.3.4.1.1: vendor and device of a VF read as all ones
_LINK_X4_8GT = 0x0043  # PCIE50 7.5.3.6: 8 GT/s, four lanes; the status register agrees
_EXPRESS_VERSION = 2
_DEVCAP2 = 0x24  # PCIE50 7.5.3.15
_DEVCTL2 = 0x28  # PCIE50 7.5.3.16
_ARI_FORWARDING = 1 << 5  # PCIE50 7.5.3.15 and .16, the same bit
_ACS_SV_RR_CR_UF = 0x1D  # PCIE50 7.7.8.2: the controls that isolate functions
_SRIOV_CTRL_ENABLED = 0x09  # PCIE50 9.3.3.3: VF enable, VF memory enable
_SRIOV_SIZE = 0x40
_PORT_TYPES = (0x4, 0x5, pciregs.EXP_TYPE_DOWNSTREAM)


def _power_management(spec: FunctionSpec) -> bytes:
    control = 0 if spec.pm == "on" else pciregs.PM_CTRL_NO_SOFT_RESET
    return struct.pack("<HH", 0x0003, control)


def _express(spec: FunctionSpec, kind: int) -> bytes:
    body = bytearray(0x3C)
    flags = _EXPRESS_VERSION | kind << pciregs.EXP_FLAGS_TYPE_SHIFT
    struct.pack_into("<H", body, pciregs.EXP_FLAGS, flags)
    flr = pciregs.EXP_DEVCAP_FLR if spec.flr else 0
    struct.pack_into("<I", body, pciregs.EXP_DEVCAP, flr)
    struct.pack_into("<I", body, pciregs.EXP_LNKCAP, _LINK_X4_8GT | spec.address.slot << 24)
    struct.pack_into("<H", body, pciregs.EXP_LNKSTA, _LINK_X4_8GT)
    if kind in _PORT_TYPES:
        struct.pack_into("<I", body, _DEVCAP2, _ARI_FORWARDING)
        struct.pack_into("<H", body, _DEVCTL2, _ARI_FORWARDING if spec.ari else 0)
    return bytes(body[2:])  # without the id and the next pointer


def _capabilities(spec: FunctionSpec) -> list[tuple[int, bytes]]:
    """Return id and body of each capability, in chain order."""
    found = []
    if spec.pm is not None:
        found.append((pciregs.CAP_ID_PM, _power_management(spec)))
    if spec.af:
        found.append((pciregs.CAP_ID_AF, bytes((6, 0x01 | pciregs.AF_CAP_FLR, 0, 0))))
    if spec.express is not None:
        found.append((pciregs.CAP_ID_EXPRESS, _express(spec, spec.express)))
    return found


def _sriov(spec: FunctionSpec, numvfs: int) -> bytes:
    body = bytearray(_SRIOV_SIZE)
    struct.pack_into("<H", body, 0x08, _SRIOV_CTRL_ENABLED if numvfs else 0)
    total = spec.sriov or 0
    struct.pack_into("<HHH", body, 0x0C, total, total, numvfs)
    struct.pack_into("<HH", body, 0x14, spec.vf_offset, spec.vf_stride)
    struct.pack_into("<H", body, 0x1A, spec.vf_device)
    struct.pack_into("<II", body, 0x1C, 0x553, 1)  # supported page sizes; 4 KiB is selected
    return bytes(body[4:])


def _extended_capabilities(spec: FunctionSpec, numvfs: int) -> list[tuple[int, bytes]]:
    """Return id and body of each extended capability, in chain order."""
    found = []
    if spec.acs is not None:
        control = _ACS_SV_RR_CR_UF if spec.acs == "on" else 0
        found.append((pciregs.EXT_CAP_ID_ACS, struct.pack("<HH", _ACS_SV_RR_CR_UF, control)))
    if spec.ari and spec.bridge is None:
        found.append((pciregs.EXT_CAP_ID_ARI, bytes(4)))
    if spec.sriov is not None:
        found.append((pciregs.EXT_CAP_ID_SRIOV, _sriov(spec, numvfs)))
    return found


def _write_header(config: bytearray, spec: FunctionSpec) -> None:
    ids = (spec.vendor, spec.device) if spec.physfn is None else (_VF_ID, _VF_ID)
    struct.pack_into("<HHH", config, pciregs.VENDOR_ID, *ids, _COMMAND_MEMORY_MASTER)
    struct.pack_into("<I", config, _REVISION_AND_CLASS, spec.class_ << 8 | spec.revision)
    if spec.physfn is None and spec.multifunction:
        config[pciregs.HEADER_TYPE] = pciregs.HEADER_TYPE_MULTIFUNCTION
    if spec.bridge is not None:
        config[pciregs.HEADER_TYPE] |= pciregs.HEADER_TYPE_BRIDGE
        config[_PRIMARY_BUS : _PRIMARY_BUS + 3] = (spec.address.bus, *spec.bridge)
    else:
        subsystem = spec.subsystem or (spec.vendor, spec.device)
        struct.pack_into("<HH", config, _SUBSYSTEM, *subsystem)


def _write_capabilities(config: bytearray, spec: FunctionSpec) -> None:
    pointer, where = pciregs.CAPABILITY_LIST, pciregs.CAP_START
    for capability, body in _capabilities(spec):
        config[pointer] = where
        config[where] = capability
        config[where + 2 : where + 2 + len(body)] = body
        pointer, where = where + 1, (where + 2 + len(body) + 3) & ~3
    if config[pciregs.CAPABILITY_LIST]:
        struct.pack_into("<H", config, pciregs.STATUS, pciregs.STATUS_CAP_LIST)


def _write_extended(config: bytearray, spec: FunctionSpec, numvfs: int) -> None:
    where = pciregs.EXT_CAP_START
    found = _extended_capabilities(spec, numvfs)
    for number, (capability, body) in enumerate(found):
        after = where + 4 + len(body)
        following = after if number + 1 < len(found) else 0
        struct.pack_into("<I", config, where, capability | 1 << 16 | following << 20)
        config[where + 4 : after] = body
        where = after


def build_config(spec: FunctionSpec, *, numvfs: int = 0) -> bytes:
    """
    Return the configuration space described by the fields of a description.

    Host: nothing is read; a ``dump=`` field is handled by read_dump()
    """
    size = pciregs.CONFIG_SIZE if spec.express is None else pciregs.CONFIG_SIZE_EXPRESS
    config = bytearray(size)
    _write_header(config, spec)
    _write_capabilities(config, spec)
    if spec.express is not None:
        _write_extended(config, spec, numvfs)
    return apply_patches(bytes(config), spec)


def apply_patches(config: bytes, spec: FunctionSpec) -> bytes:
    """
    Replace the bytes given by the hex dump lines below a function.

    Raises:
        ConfigError: a byte lies outside configuration space.
    """
    patched = bytearray(config)
    for offset, data in spec.patches:
        if offset + len(data) > len(config):
            raise ConfigError(f"The dump of {spec.address} has bytes beyond its config space")
        patched[offset : offset + len(data)] = data
    return bytes(patched)


def read_dump(directory: str, name: str) -> bytes:
    """
    Read a whole configuration space from NAME.hex, whose lines have the form of ``lspci -xxxx``.

    Returns:
        64, 256 or 4096 bytes, the smallest that holds the lines.

    Raises:
        ConfigError: a line is not a dump line, or there are too many bytes.
        OSError: the file cannot be read.
    """
    with open(os.path.join(directory, f"{name}.hex"), encoding="ascii") as file:
        lines = [line for line in file if line.strip() and not line.startswith("#")]
    config = bytearray(pciregs.CONFIG_SIZE_EXPRESS)
    end = 0
    for line in lines:
        try:
            offset, data = parse_dump_line(line)
        except ValueError as err:
            raise ConfigError(f"'{name}.hex': {err}") from err
        config[offset : offset + len(data)] = data
        end = max(end, offset + len(data))
    return bytes(config[: _size_for(end, name)])


def _size_for(end: int, name: str) -> int:
    """Return the smallest size of a configuration space that holds so many bytes."""
    for size in (pciregs.CONFIG_SIZE_UNPRIVILEGED, pciregs.CONFIG_SIZE, pciregs.CONFIG_SIZE_EXPRESS):
        if size >= end:
            return size
    raise ConfigError(f"'{name}.hex' is longer than a configuration space")
