# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Select the capabilities for a domain: those of its emulator, stored ones, or those that the caller names.
"""

from __future__ import annotations

import os
import re
import stat
from importlib.util import find_spec

from pyhostdev.errors import ConfigError, ConfigUnsupportedError, OperationError
from pyhostdev.qemu.qemu_capabilities import cache
from pyhostdev.qemu.qemu_capabilities.reading import TARGETS, QEMUCapabilities, load, probe_data, stored_versions
from pyhostdev.qemu.qemu_capabilities.trust import why_untrusted
from pyhostdev.util.virjson import parse_json

PROBE = "probe"
FILE_BYTES = 4 << 20
# the emulator that also runs the guests of a smaller architecture; QEMU's names
LARGER = {"i386": "x86_64", "arm": "aarch64", "ppc": "ppc64", "ppc64le": "ppc64"}

# what the names of machine types start with -> the newest of the family
_DISTRIBUTIONS = {"pc-q35-": "q35", "pc-i440fx-": "pc", "virt-": "virt", "pseries-": "pseries"}
_NO_QMP = "the Python module qemu.qmp is not installed"
VERSION = re.compile(r"[0-9]+(\.[0-9]+)+")


def choose(
    emulator: str | None,
    arch: str,
    *,
    choice: str | None = None,
    may_run: bool = True,
    stored: str | None = None,
    machine: str | None = None,
) -> QEMUCapabilities:
    """
    Return the capabilities to use for a domain; their ``origin`` names the source.

    Args:
        choice: a stored release (7.2), a file that a probe wrote, or "probe" to run even an emulator that is not
            trusted; None probes a trusted emulator, and uses stored capabilities otherwise.
        stored: the QEMU release of the stored capabilities that are used if the emulator is not probed.
        machine: the domain's machine type; stored capabilities of another release are used if only they have it.
        may_run: False if the host is not this machine, because its emulators can differ from those of this machine.

    Raises:
        ConfigError: the file was not written by a probe, or "probe" was chosen and no program may run.
        ConfigUnsupportedError: no capabilities are stored for the architecture, or the chosen ones are for another.
        OperationError: the emulator does not answer.
    """
    if choice == PROBE:
        found = _probed_on_request(emulator, may_run)
    elif choice is not None and VERSION.fullmatch(choice):
        found = load(arch, choice)
    elif choice is not None:
        found = _read_file(choice)
    else:
        why = _why_not_asked(emulator, may_run)
        found = _stored(arch, stored, why, machine) if why is not None else _asked(str(emulator))
    _check_arch(found, arch)
    return found


def _stored(arch: str, version: str | None, why: str, machine: str | None) -> QEMUCapabilities:
    """
    Return stored capabilities: of a release, or of the newest other one if only that one has the machine type.

    A machine type that a distribution added can do what the family's newest machine of the release can.

    Raises:
        ConfigUnsupportedError: no capabilities are stored for the architecture.
    """
    found = load(arch, version, why_stored=why)
    if machine is None or found.has_machine(machine):
        return found
    said = f"{why}; QEMU {version or found.release} has no machine type '{machine}'"
    other = next((other for other in reversed(stored_versions()) if load(arch, other).has_machine(machine)), None)
    if other is not None:
        return load(arch, other, why_stored=said)
    return _with_family(found, machine)


def _with_family(found: QEMUCapabilities, machine: str) -> QEMUCapabilities:
    """Return capabilities in which a distribution's machine type is like the newest one of its family."""
    family = next((alias for prefix, alias in _DISTRIBUTIONS.items() if _is_distributions(machine, prefix)), None)
    has_family = family is not None and found.has_machine(family)
    return found.with_machine_like(machine, str(family)) if has_family else found


def _is_distributions(machine: str, prefix: str) -> bool:
    """Return True for a machine type of a distribution: its version is a name (pc-q35-rhel9.4.0, pc-i440fx-focal)."""
    return machine.startswith(prefix) and machine[len(prefix) :][:1].isalpha()


def _check_arch(found: QEMUCapabilities, arch: str) -> None:
    """Refuse capabilities for another architecture; a 64-bit emulator also runs the family's 32-bit guests."""
    target = TARGETS.get(arch, arch)
    if found.arch not in (target, LARGER.get(target)):
        raise ConfigUnsupportedError(
            f"The domain's architecture is '{arch}', the {found.origin} are for '{found.arch}'"
        )


def _probed_on_request(emulator: str | None, may_run: bool) -> QEMUCapabilities:
    if not may_run:
        raise ConfigError("An emulator cannot be probed for another root; choose a stored release or a file")
    if emulator is None or not os.path.isabs(emulator):
        raise ConfigUnsupportedError("Cannot probe: the domain has no <emulator> with an absolute path")
    if not has_qmp():
        raise ConfigUnsupportedError(f"Cannot probe the emulator: {_NO_QMP}")
    return _asked(emulator)


def _why_not_asked(emulator: str | None, may_run: bool) -> str | None:
    if not may_run:
        return "emulators are not run for another root"
    if emulator is None:
        return "the domain has no <emulator>"
    if not os.path.lexists(emulator):
        return f"the emulator '{emulator}' is not on this machine"
    why = why_untrusted(emulator)
    if why is not None:
        return f"the emulator '{emulator}' is not trusted: {why}"
    return None if has_qmp() else _NO_QMP


def has_qmp() -> bool:
    """Return True if the library that speaks to QEMU's monitor is installed; it comes with the extra 'start'."""
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
            pass  # written by another version of pyhostdev: probe again and replace the file
    try:
        before = cache.identity(emulator)
    except OSError as err:
        raise ConfigUnsupportedError(f"Cannot read the status of the emulator '{emulator}': {err.strerror}") from err
    data = probe_data(emulator)
    try:
        found = QEMUCapabilities(data, origin)
    except ConfigError as err:
        raise OperationError(f"Cannot probe the emulator '{emulator}': {err.message}") from err
    cache.write(emulator, before, data)
    return found


def _read_file(path: str) -> QEMUCapabilities:
    """
    Return the capabilities in a file.

    Raises:
        ConfigError: the file cannot be read, or was not written by a probe.
    """
    try:
        data = parse_json(_content(path))
    except OSError as err:
        raise ConfigError(f"Cannot read '{path}': {err.strerror}") from err
    except ValueError as err:
        raise ConfigError(f"'{path}' is not a capabilities file in JSON") from err
    return QEMUCapabilities(data, f"capabilities in '{path}'")


def _content(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"'{path}' is not a regular file")
        content = stream.read(FILE_BYTES + 1)
    if len(content) > FILE_BYTES:
        raise ConfigError(f"'{path}' is larger than the limit of {FILE_BYTES} bytes")
    return content
