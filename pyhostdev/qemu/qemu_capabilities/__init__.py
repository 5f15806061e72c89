# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What an emulator binary can do: its machines, CPU models, devices and their properties.

The answers come from the binary itself (``probing``), from an earlier probe of the same file (``cache``), or from the
files stored beside this module, one directory per QEMU release. ``choice`` selects the source and names it.

Mirrors: src/qemu/qemu_capabilities.c
"""

from __future__ import annotations

from pyhostdev.qemu.qemu_capabilities.reading import (
    DEFAULT_VERSION,
    STORED,
    TARGETS,
    QEMUCapabilities,
    load,
    probe,
    probe_data,
    stored_versions,
)

__all__ = [
    "DEFAULT_VERSION",
    "STORED",
    "TARGETS",
    "QEMUCapabilities",
    "for_emulator",
    "load",
    "probe",
    "probe_data",
    "stored_versions",
]


def for_emulator(path: str | None, arch: str) -> QEMUCapabilities:
    """
    Return the capabilities of the emulator at path, or stored ones if it cannot be probed safely.

    Raises:
        ConfigUnsupportedError: it is absent, and no capabilities are stored for the architecture.
        OperationError: it exists but does not answer.
    """
    from pyhostdev.qemu.qemu_capabilities.choice import choose

    return choose(path, arch)
