# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which capabilities answer for a domain: its own emulator's, stored ones, or those that the caller names.
"""

from __future__ import annotations

import json
import os
import re
import stat
from importlib.util import find_spec

from pyhostdev.errors import ConfigError, ConfigUnsupportedError, OperationError
from pyhostdev.qemu.qemu_capabilities import cache
from pyhostdev.qemu.qemu_capabilities.reading import TARGETS, QEMUCapabilities, load, probe_data
from pyhostdev.qemu.qemu_capabilities.trust import why_untrusted

PROBE = "probe"
FILE_BYTES = 4 << 20
# emulators that run the guests of a smaller one, by QEMU's names
LARGER = {"i386": "x86_64", "arm": "aarch64", "ppc": "ppc64", "ppc64le": "ppc64"}

_NO_QMP = "the Python module qemu.qmp is not installed"
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)+")


def choose(emulator: str | None, arch: str, *, choice: str | None = None, may_run: bool = True) -> QEMUCapabilities:
    """
    Return the capabilities that answer for a domain; ``origin`` says which they are.

    Args:
        choice: a stored release (7.2), a file that a probe wrote, or "probe" for the emulator whatever its owner; None
            asks a trusted emulator, and takes the newest stored ones where it cannot be asked.
        may_run: False where the host is not this machine, whose programs say nothing about it.

    Raises:
        ConfigError: the file is not what a probe writes, or "probe" where no program may run.
        ConfigUnsupportedError: nothing is stored for the architecture, or the answers are about another one.
        OperationError: the emulator does not answer.
    """
    if choice == PROBE:
        found = _probed_on_request(emulator, may_run)
    elif choice is not None and _VERSION.fullmatch(choice):
        found = load(arch, choice)
    elif choice is not None:
        found = _read_file(choice)
    else:
        why = _why_not_asked(emulator, may_run)
        found = load(arch, why_stored=why) if why is not None else _asked(str(emulator))
    _check_arch(found, arch)
    return found


def _check_arch(found: QEMUCapabilities, arch: str) -> None:
    """Refuse answers about other processors; a family's larger emulator runs the smaller guests, too."""
    target = TARGETS.get(arch, arch)
    if found.arch not in (target, LARGER.get(target)):
        raise ConfigUnsupportedError(
            f"The domain's architecture is '{arch}', the {found.origin} are for '{found.arch}'"
        )


def _probed_on_request(emulator: str | None, may_run: bool) -> QEMUCapabilities:
    if not may_run:
        raise ConfigError("With another root no emulator is run: choose a stored release or a file")
    if emulator is None or not os.path.isabs(emulator):
        raise ConfigUnsupportedError("The domain names no emulator by an absolute path, so there is nothing to probe")
    if not _has_qmp():
        raise ConfigUnsupportedError(f"The emulator cannot be asked: {_NO_QMP}")
    return _asked(emulator)


def _why_not_asked(emulator: str | None, may_run: bool) -> str | None:
    if not may_run:
        return "no emulator is run for another root"
    if emulator is None:
        return "the domain names no emulator"
    if not os.path.lexists(emulator):
        return f"the emulator '{emulator}' is not on this machine"
    why = why_untrusted(emulator)
    if why is not None:
        return f"the emulator '{emulator}' is not trusted: {why}"
    return None if _has_qmp() else _NO_QMP


def _has_qmp() -> bool:
    try:
        return find_spec("qemu.qmp") is not None
    except ModuleNotFoundError:
        return False


def _asked(emulator: str) -> QEMUCapabilities:
    origin = f"capabilities of the emulator '{emulator}'"
    data = cache.read(emulator)
    if data is not None:
        try:
            return QEMUCapabilities(data, origin)
        except ConfigError:
            pass  # written by another version: asked again, and written anew
    try:
        before = cache.identity(emulator)
    except OSError as err:
        raise ConfigUnsupportedError(f"The emulator '{emulator}' cannot be looked at: {err.strerror}") from err
    data = probe_data(emulator)
    try:
        found = QEMUCapabilities(data, origin)
    except ConfigError as err:
        raise OperationError(f"The emulator '{emulator}' cannot be asked: {err.message}") from err
    cache.write(emulator, before, data)
    return found


def _read_file(path: str) -> QEMUCapabilities:
    """
    Return the capabilities in a file.

    Raises:
        ConfigError: it cannot be read, or is not what a probe writes.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as stream:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(f"'{path}' is not a regular file")
            content = stream.read(FILE_BYTES + 1)
        if len(content) > FILE_BYTES:
            raise ConfigError(f"'{path}' is larger than the limit of {FILE_BYTES} bytes")
        data = json.loads(content)
    except OSError as err:
        raise ConfigError(f"Cannot read '{path}': {err.strerror}") from err
    except (ValueError, RecursionError) as err:
        raise ConfigError(f"'{path}' is not a file of capabilities") from err
    return QEMUCapabilities(data, f"capabilities in '{path}'")
