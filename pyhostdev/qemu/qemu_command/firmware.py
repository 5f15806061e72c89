# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Firmware on the command line: flash chips for its code and its variables, or a ROM.

Mirrors: qemuBuildPflashBlockdevCommandLine, qemuBuildDomainLoaderCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.qemu.qemu_command.block import storage_properties
from pyhostdev.qemu.qemu_command.builder import unsupported
from pyhostdev.qemu.qemu_firmware import choose_at_start

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

_CODE = "libvirt-pflash0"
_VARIABLES = "libvirt-pflash1"


def build_firmware_blockdevs(build: CommandBuilder) -> None:
    """
    Add the block nodes of the flash chips.

    Raises:
        ConfigUnsupportedError: the host has no matching firmware, or the variables are not in a file.
    """
    choose_at_start(build.dom, build.host, build.release)
    os = build.dom.os
    if os.firmware is not None and os.loader is None:
        raise unsupported(f"<os firmware='{os.firmware}'> without a <loader> (a host is needed to choose one)", os)
    if os.loader_type != "pflash":
        return
    if os.loader is not None:
        _build_flash(build, _CODE, os.loader, os.loader_format, bool(os.loader_readonly))
    _build_variables(build)


def _build_variables(build: CommandBuilder) -> None:
    """Add the block nodes of the flash chip that holds the variables."""
    place = _variables(build)
    if place is not None and _is_one_node(build):
        build.add_json("-blockdev", {**place, "node-name": f"{_VARIABLES}-storage", "read-only": False})
    elif place is not None:
        _build_nodes(build, _VARIABLES, place, build.dom.os.nvram_format, False)


def _variables(build: CommandBuilder) -> Properties | None:
    """
    Return the block driver of the variables, with their place; None without variables.

    Raises:
        ConfigUnsupportedError: we cannot build this kind of source.
    """
    os = build.dom.os
    if os.nvram_source is not None:
        return storage_properties(build, os.nvram_type or "file", os.nvram_source, f"{_VARIABLES}-storage")
    return None if os.nvram is None else {"driver": "file", "filename": os.nvram}


def _build_flash(build: CommandBuilder, node: str, path: str, format_: str | None, readonly: bool) -> None:
    """Add the nodes of a flash chip in a file: the file and its format."""
    _build_nodes(build, node, {"driver": "file", "filename": path}, format_, readonly)


def _build_nodes(build: CommandBuilder, node: str, place: Properties, format_: str | None, readonly: bool) -> None:
    storage = {**place, "node-name": f"{node}-storage"}
    build.add_json("-blockdev", {**storage, "auto-read-only": True, "discard": "unmap"})
    image = {"node-name": f"{node}-format", "read-only": readonly, "driver": format_ or "raw"}
    build.add_json("-blockdev", {**image, "file": f"{node}-storage"})


def _is_one_node(build: CommandBuilder) -> bool:
    """True if the variables need no format node."""
    return build.release.has("raw-image-one-node") and build.dom.os.nvram_format in (None, "raw")


def has_variables(os: Any) -> bool:
    """True if the firmware keeps variables."""
    return os.nvram is not None or os.nvram_source is not None


def flash_options(build: CommandBuilder) -> list[str]:
    """Return the machine options that name the flash chips."""
    os = build.dom.os
    if os.loader_type != "pflash":
        return []
    variables = f"{_VARIABLES}-{'storage' if _is_one_node(build) else 'format'}"
    return [f"pflash0={_CODE}-format", *([f"pflash1={variables}"] if has_variables(os) else [])]


def build_loader(build: CommandBuilder) -> None:
    """Add a ROM as -bios; for secure flash, let only SMM write to the variables."""
    os = build.dom.os
    if os.loader is not None and os.loader_type != "pflash":
        build.add("-bios", os.loader)
    elif os.loader_secure:
        build.add("-global", "driver=cfi.pflash01,property=secure,value=on")
