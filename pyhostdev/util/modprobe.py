# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Running modprobe: find the program, bound its environment, and explain why a module was not loaded.
"""

from __future__ import annotations

import errno
import os
from typing import IO, TYPE_CHECKING

from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, OperationError, SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.securedir import is_trusted_file
from pyhostdev.util.virfile import read_attribute, read_lines

if TYPE_CHECKING:
    import subprocess

PROGRAMS = ("/usr/sbin/modprobe", "/sbin/modprobe", "/usr/bin/modprobe", "/bin/modprobe")
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # for "install" lines in its configuration


def find_modprobe(root: HostRoot) -> str:
    """
    Return the program that loads modules: at one of the usual paths, else the program that the kernel uses.

    Raises:
        OperationError: no program was found, or another user could have put it there.

    Host: reads ``proc/sys/kernel/modprobe``
    """
    for path in (*PROGRAMS, read_attribute(root, root.modprobe) or ""):
        if os.path.isabs(path) and os.path.exists(path):
            if is_trusted_file(path):
                return path
            raise OperationError(f"'{path}' cannot be trusted to load a module: another user can change it")
    raise OperationError("Cannot load a module: the program 'modprobe' was not found")


def start_modprobe(root: HostRoot, name: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """
    Start ``modprobe -b``, which honors the administrator's blacklist; it inherits no descriptor and no environment.

    Args:
        output: a file for its messages; a hanging modprobe would keep a pipe open.

    Raises:
        OperationError: as ``find_modprobe``.
        SysfsError: the program cannot be started.
    """
    import subprocess

    try:
        return subprocess.Popen(
            [find_modprobe(root), "-b", "--", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            env=ENVIRONMENT,
            cwd=HostRoot("/").path,
            umask=0o022,
            start_new_session=True,
        )
    except OSError as err:
        raise SysfsError(err.errno or errno.EIO, "modprobe", "start a program") from err


def scratch() -> IO[bytes]:
    """
    Return an empty file without a name.

    Raises:
        SysfsError: the kernel cannot create the file.
    """
    try:
        return open(os.memfd_create("modprobe"), "w+b")
    except OSError as err:
        raise SysfsError(err.errno or errno.EIO, "modprobe", "create a file for its messages") from err


def module_error(root: HostRoot, name: str, code: int, output: str) -> OperationError:
    """Return the error for a module that is not loaded after modprobe ended with this exit code and output."""
    reason = "vfio-missing" if name.startswith("vfio") else "driver-missing"
    if not _is_installed(root, name):
        why = f"the kernel {os.uname().release} has no such module"
    elif code == 0:
        why = "the host's modprobe configuration prohibits it"
    else:
        why = output.splitlines()[-1] if output else f"modprobe ended with {code}"
    text = f"Cannot load the module '{name}': {why}"
    return OperationError(text, reason=reason, libvirt_code=VIR_ERR_INTERNAL_ERROR)


def _is_installed(root: HostRoot, name: str) -> bool:
    """
    Tell whether the running kernel has a module of that name, as a file or built in.

    Host: lib/modules/RELEASE/modules.dep, lib/modules/RELEASE/modules.builtin
    """
    top = os.path.dirname(root.modules_dep(os.uname().release))
    wanted = name.replace("-", "_")
    for index in ("modules.dep", "modules.builtin"):
        lines = read_lines(root, os.path.join(top, index))
        files = (os.path.basename(line.split(":")[0].strip()) for line in lines)
        if wanted in (file.split(".ko")[0].replace("-", "_") for file in files):
            return True
    return False
