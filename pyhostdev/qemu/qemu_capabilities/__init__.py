# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What an emulator binary can do: its machines, CPU models, devices and the properties we ask about.

The answers come from the binary itself (``probing``), from an earlier probe of the same file (``cache``), or from those
that are stored beside this module, one directory per QEMU release. ``choice`` decides which, and says so.

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
    Return what the emulator at path can do, or the stored answer where it cannot be asked safely.

    Raises:
        ConfigUnsupportedError: it is absent, and nothing is stored for the architecture.
        OperationError: it is there and does not answer.
    """
    from pyhostdev.qemu.qemu_capabilities.choice import choose

    return choose(path, arch)
