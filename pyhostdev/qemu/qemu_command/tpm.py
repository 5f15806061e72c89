# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Trusted platform modules on the command line.

Mirrors: qemuBuildTPMsCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.qemu.qemu_command.builder import option_value, unsupported
from pyhostdev.qemu.qemu_domain import tpm_driver
from pyhostdev.util.hostroot import HostRoot

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder

DEFAULT_DEVICE = HostRoot.DEV + "tpm0"


def build_tpms(build: CommandBuilder) -> None:
    """Add the TPMs; a proxy of pseries has no backend."""
    for tpm in build.dom.tpms:
        with build.collecting():
            backend = f"tpm-{tpm.info.alias}"
            if tpm.model == "tpm-spapr-proxy":
                path = tpm.device_path or DEFAULT_DEVICE
                build.add_device({"driver": tpm.model, "id": tpm.info.alias, "host-path": path})
                continue
            _build_backend(build, tpm, backend)
            device = {
                "driver": tpm_driver(str(build.dom.os.arch), str(tpm.model)),
                "tpmdev": backend,
                "id": tpm.info.alias,
            }
            build.add_device({**device, **build.address(tpm)})


def _build_backend(build: CommandBuilder, tpm: Any, backend: str) -> None:
    if tpm.backend_type == "passthrough":
        _build_passthrough(build, tpm, backend)
        return
    path = emulator_socket(build, tpm)
    build.add("-chardev", f"socket,id=chrtpm,path={option_value(path)}")
    build.add("-tpmdev", f"emulator,id={backend},chardev=chrtpm")


def emulator_socket(build: CommandBuilder, tpm: Any) -> str:
    """
    Return the path of the socket at which the TPM emulator listens, whether start runs it or another program.

    Raises:
        ConfigUnsupportedError: the backend is external, and the definition has no path of a socket.
    """
    if tpm.backend_type == "emulator":
        return build.paths.tpm_socket
    source = tpm.backend_source
    if source is None or source.type != "unix" or not source.path:
        raise unsupported("A <backend type='external'> without the path of a socket", tpm)
    return str(source.path)


def _build_passthrough(build: CommandBuilder, tpm: Any, backend: str) -> None:
    device = tpm.device_path or DEFAULT_DEVICE
    node = build.passed_file(device, f"{tpm.info.alias}-tpm")
    cancel = build.passed_file(HostRoot.tpm_cancel(device), f"{tpm.info.alias}-cancel")
    where = f"path={option_value(node)},cancel-path={option_value(cancel)}"
    build.add("-tpmdev", f"passthrough,id={backend},{where}")
