# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Running modprobe: which program that is, what it inherits, and why a module was not loaded.
"""

from __future__ import annotations

import errno
import os
from typing import IO, TYPE_CHECKING

from pyhostdev.errors import OperationError, SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.securedir import is_trusted_file
from pyhostdev.util.virfile import read_attribute, read_lines

if TYPE_CHECKING:
    import subprocess

PROGRAMS = ("/usr/sbin/modprobe", "/sbin/modprobe", "/usr/bin/modprobe", "/bin/modprobe")
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # "install" lines of its configuration use it


def find_modprobe(root: HostRoot) -> str:
    """
    Return the program that loads modules: one of the usual paths, else the one that the kernel uses itself.

    Raises:
        OperationError: there is none, or another user could have put it there.

    Host: reads ``proc/sys/kernel/modprobe``
    """
    for path in (*PROGRAMS, read_attribute(root, root.modprobe) or ""):
        if os.path.isabs(path) and os.path.exists(path):
            if is_trusted_file(path):
                return path
            raise OperationError(f"'{path}' cannot be trusted to load a module: another user can change it")
    raise OperationError("There is no 'modprobe' to load a module with")


def start_modprobe(root: HostRoot, name: str, words: IO[bytes]) -> subprocess.Popen[bytes]:
    """
    Start ``modprobe -b``, which obeys the administrator's blacklist; it inherits nothing of ours.

    Args:
        words: a file for what it says, as a pipe would be kept open by one that hangs.

    Raises:
        OperationError: as ``find_modprobe``.
        SysfsError: it cannot be started.
    """
    import subprocess

    try:
        return subprocess.Popen(
            [find_modprobe(root), "-b", "--", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=words,
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
        SysfsError: the kernel has none to give.
    """
    try:
        return open(os.memfd_create("modprobe"), "w+b")
    except OSError as err:
        raise SysfsError(err.errno or errno.EIO, "modprobe", "make a file for what it says") from err


def module_error(root: HostRoot, name: str, code: int, words: str) -> OperationError:
    """Return the error of a module that is not there after modprobe ended with a code and these words."""
    reason = "vfio-missing" if name.startswith("vfio") else "driver-missing"
    if not _is_installed(root, name):
        why = f"the kernel {os.uname().release} has no such module"
    elif code == 0:
        why = "the host's configuration of modprobe prohibits it"
    else:
        why = words.splitlines()[-1] if words else f"modprobe ended with {code}"
    return OperationError(f"Cannot load the module '{name}': {why}", reason=reason)


def _is_installed(root: HostRoot, name: str) -> bool:
    """
    Tell whether the running kernel has a module of that name, in a file or built in.

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
