# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Shared host directories on the command line: those that QEMU serves itself (9p), and those of a virtiofsd.

Mirrors: qemuBuildFilesystemCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.qemu.qemu_command.builder import option_value, unsupported, virtio_driver, virtio_options

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder

_SECURITY = {"mapped": "mapped", "squash": "none"}


def build_filesystems(build: CommandBuilder) -> None:
    """Add the shared directories."""
    for filesystem in build.dom.filesystems:
        with build.collecting():
            if filesystem.type != "mount" or filesystem.driver_type not in (None, "path", "handle", "virtiofs", "mtp"):
                raise unsupported("A <filesystem> that is not a directory shared by 9p or virtiofs", filesystem)
            if filesystem.is_virtiofs:
                _build_virtiofs(build, filesystem)
            elif filesystem.is_mtp:
                _build_mtp(build, filesystem)
            else:
                _build_9p(build, filesystem)


def _build_virtiofs(build: CommandBuilder, filesystem: Any) -> None:
    """
    Connect to a virtiofsd: the one that start runs, or one that listens at <source socket=>.

    Mirrors: qemuBuildVHostUserFsCommandLine
    """
    alias = str(filesystem.info.alias)
    chardev = f"chr-vu-{alias}"
    socket = filesystem.source_socket or build.paths.fs_socket(alias)
    build.add("-chardev", f"socket,id={chardev},path={option_value(socket)}")
    build.add_device(
        {
            "driver": "vhost-user-fs-pci",
            "id": alias,
            "chardev": chardev,
            "queue-size": filesystem.queue or None,
            "tag": filesystem.target,
            "bootindex": build.bootindex(filesystem),
            **virtio_options(filesystem),
            **build.address(filesystem),
        }
    )


def _build_mtp(build: CommandBuilder, filesystem: Any) -> None:
    """
    Add a USB device that shows the directory.

    Mirrors: qemuBuildMTPCommandLine
    """
    properties = {"driver": "usb-mtp", "id": filesystem.info.alias, "rootdir": filesystem.source_dir}
    properties |= {"desc": filesystem.target, "readonly": bool(filesystem.readonly)}
    build.add_device({**properties, **build.address(filesystem)})


def _build_9p(build: CommandBuilder, filesystem: Any) -> None:
    if filesystem.space_hard_limit is not None:
        raise unsupported("<filesystem> with limits", filesystem)
    backend = f"fsdev-{filesystem.info.alias}"
    build.add("-fsdev", ",".join(_fsdev_options(build, filesystem, backend)))
    build.add_device(
        {
            "driver": virtio_driver("9p", filesystem.model),
            **virtio_options(filesystem),
            "id": filesystem.info.alias,
            "fsdev": backend,
            "mount_tag": filesystem.target,
            **build.address(filesystem),
        }
    )


def _fsdev_options(build: CommandBuilder, filesystem: Any, backend: str) -> list[str]:
    """Return the options of the directory that a 9p device shows."""
    options = ["local", f"security_model={_SECURITY.get(filesystem.accessmode, 'passthrough')}"]
    if filesystem.multidevs not in (None, "default"):
        options.append(f"multidevs={filesystem.multidevs}")
    for name in ("fmode", "dmode"):
        if getattr(filesystem, name) is not None:
            options.append(f"{name}={getattr(filesystem, name):04o}")
    if filesystem.wrpolicy == "immediate":
        options.append("writeout=immediate")
    options += [f"id={backend}", f"path={option_value(filesystem.source_dir or '')}"]
    if filesystem.readonly:
        options.append("readonly=on" if build.release.has("fs-readonly-on") else "readonly")
    return options
