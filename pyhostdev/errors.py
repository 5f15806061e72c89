# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The errors of pyhostdev: data first, one sentence when printed.

The class tells the caller how to react; ``libvirt_code`` is the VIR_ERR_* number libvirt would
have reported, and is independent of the class.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing costs more than all of these classes
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    class HasChanges(Protocol):
        """A libvirt release, as far as an error needs it."""

        def has(self, change: str) -> bool:
            """Return True if the release has a row of CHANGES."""


# virErrorNumber (include/libvirt/virterror.h)
VIR_ERR_INTERNAL_ERROR = 1
VIR_ERR_INVALID_ARG = 8
VIR_ERR_NO_SOURCE = 19
VIR_ERR_NO_TARGET = 20
VIR_ERR_NO_NAME = 21
VIR_ERR_XML_ERROR = 27
VIR_ERR_XML_DETAIL = 35  # the document is not well-formed
VIR_ERR_SYSTEM_ERROR = 38
VIR_ERR_OVERFLOW = 47
VIR_ERR_OPERATION_INVALID = 55
VIR_ERR_CONFIG_UNSUPPORTED = 67
VIR_ERR_OPERATION_TIMEOUT = 68
VIR_ERR_ARGUMENT_UNSUPPORTED = 74
VIR_ERR_OPERATION_FAILED = 9
VIR_ERR_OPERATION_UNSUPPORTED = 84
VIR_ERR_DEVICE_MISSING = 99

# The code that libvirt reports for a finding, where that is not VIR_ERR_OPERATION_INVALID
REFUSAL_CODES = {
    "device-missing": VIR_ERR_DEVICE_MISSING,
    "fdgroup-missing": VIR_ERR_INVALID_ARG,
    "driver-missing": VIR_ERR_INTERNAL_ERROR,
    "not-endpoint": VIR_ERR_INTERNAL_ERROR,
    "image-missing": VIR_ERR_SYSTEM_ERROR,
    "image-unreadable": VIR_ERR_SYSTEM_ERROR,
    "image-unusable": VIR_ERR_SYSTEM_ERROR,
    "port-unusable": VIR_ERR_INTERNAL_ERROR,
    "address-missing": VIR_ERR_INTERNAL_ERROR,
}


class Renumbering:
    """An error number that changed with a row of CHANGES."""

    __slots__ = ("change", "code")

    def __init__(self, change: str, code: int) -> None:
        self.change = change
        self.code = code


class HostdevError(Exception):
    """
    Base class of all errors; never raised itself.

    ``reason`` is one of the stable codes of a finding, or None. ``address`` is the host device concerned (anything
    that prints as an address), or None. ``rolled_back`` is True when a failed change was undone completely, False
    when ``recover`` has to finish the work, and None when nothing was being changed.
    """

    libvirt_code = VIR_ERR_INTERNAL_ERROR
    rolled_back: bool | None = None
    renumbered: Renumbering | None = None

    def __init__(
        self,
        message: str,
        *,
        libvirt_code: int | None = None,
        renumbered: Renumbering | None = None,
        reason: str | None = None,
        address: object | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.address = address
        if libvirt_code is not None:
            self.libvirt_code = libvirt_code
        if renumbered is not None:
            self.renumbered = renumbered

    def code_in(self, release: HasChanges) -> int:
        """Return the number that a libvirt release reports; ``libvirt_code`` is that of the oldest one."""
        if self.renumbered is not None and release.has(self.renumbered.change):
            return self.renumbered.code
        return self.libvirt_code

    def __str__(self) -> str:
        return self.message

    @property
    def with_reason(self) -> str:
        """The message, preceded by its reason code when it has one."""
        return f"{self.reason}: {self.message}" if self.reason else self.message


class ConfigError(HostdevError):
    """
    The XML or the request is wrong; nothing was touched.

    ``others`` holds further errors found in the same pass. ``readable`` is what could be read of a definition with
    wrong values, for further messages; None without any.
    """

    libvirt_code = VIR_ERR_XML_ERROR
    others: tuple[ConfigError, ...] = ()
    readable: Any = None

    def __init__(self, message: str, *, line: int | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.line = line


class XMLError(ConfigError):
    """The XML does not follow the grammar of a domain."""


class InvalidAddressError(ConfigError):
    """A string or a set of numbers is not a PCI address."""


class ConfigUnsupportedError(ConfigError):
    """The XML is valid, but pyhostdev or the emulator does not support what it requests."""

    libvirt_code = VIR_ERR_CONFIG_UNSUPPORTED


def raise_all(errors: Sequence[ConfigError], readable: Any = None) -> None:
    """
    Raise the first of several errors, with the rest in ``others``; do nothing if the sequence is empty.

    Args:
        readable: what could be read of a definition.

    Raises:
        ConfigError: the first error.
    """
    if not errors:
        return
    found = [part for error in errors for part in (error, *error.others)]
    unique = {(part.line, part.with_reason): part for part in reversed(found)}
    first = found[0]
    first.readable = readable
    first.others = tuple(
        part for part in found if part is not first and unique.get((part.line, part.with_reason)) is part
    )
    raise first


class RefusedError(HostdevError):
    """
    The request is valid, but the host or the state prevents it; nothing was touched.

    ``findings`` holds all of them, in the order of the plan; the message names the first and counts the rest.
    """

    libvirt_code = VIR_ERR_OPERATION_INVALID

    def __init__(self, findings: Sequence[Any], plan: Any = None) -> None:
        first = findings[0]
        rest = len(findings) - 1
        more = "" if rest == 0 else f" (and {rest} more)"
        super().__init__(f"{first.message}{more}", reason=first.reason, address=first.address)
        self.findings = tuple(findings)
        self.plan = plan
        self.libvirt_code = REFUSAL_CODES.get(first.reason, VIR_ERR_OPERATION_INVALID)


class OperationError(HostdevError):
    """A change was tried and failed; ``rolled_back`` tells the state of the host."""

    libvirt_code = VIR_ERR_OPERATION_FAILED

    def __init__(self, message: str, *, rolled_back: bool | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.rolled_back = rolled_back


class DeviceInUseError(OperationError):
    """The device belongs to a domain, or a process holds it open."""

    libvirt_code = VIR_ERR_OPERATION_INVALID


class DeviceMissingError(OperationError):
    """The host does not have the device, or the device went away."""

    libvirt_code = VIR_ERR_DEVICE_MISSING


class PendingError(OperationError):
    """A guest was asked to release its devices but has not done so: nothing was reattached; repeat the call."""


class InDoubtError(OperationError):
    """A write did not return within its deadline and may still take effect."""

    libvirt_code = VIR_ERR_OPERATION_TIMEOUT


class SysfsError(HostdevError, OSError):
    """
    The kernel refused a read or a write.

    It has ``errno``, ``filename`` and ``doing`` (what was tried, as a verb phrase). It is never a FileNotFoundError or
    a PermissionError, whatever the errno: test ``errno``.
    """

    libvirt_code = VIR_ERR_SYSTEM_ERROR

    def __new__(cls, *args: Any, **fields: Any) -> SysfsError:
        """Make the error itself, and not the subclass of OSError for its errno."""
        return OSError.__new__(cls)

    def __init__(self, errnum: int, filename: str, doing: str, *, address: object | None = None) -> None:
        HostdevError.__init__(self, f"Cannot {doing}: {os.strerror(errnum)} ('{filename}')", address=address)
        self.errno = errnum
        self.strerror = os.strerror(errnum)
        self.filename = filename
        self.doing = doing


class InternalError(HostdevError):
    """A bug in pyhostdev; never raised for user input."""
