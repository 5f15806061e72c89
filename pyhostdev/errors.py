# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The errors of pyhostdev: data first, one sentence when printed.

A class says what the caller can do about it; ``libvirt_code`` is the VIR_ERR_* number libvirt would
have reported, and is independent of the class.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

# virErrorNumber (include/libvirt/virterror.h)
VIR_ERR_INTERNAL_ERROR = 1
VIR_ERR_XML_ERROR = 27
VIR_ERR_SYSTEM_ERROR = 38
VIR_ERR_OPERATION_INVALID = 55
VIR_ERR_CONFIG_UNSUPPORTED = 67
VIR_ERR_OPERATION_TIMEOUT = 68
VIR_ERR_OPERATION_FAILED = 9
VIR_ERR_DEVICE_MISSING = 99

# What libvirt reports for a finding, where that is not VIR_ERR_OPERATION_INVALID
REFUSAL_CODES = {
    "device-missing": VIR_ERR_DEVICE_MISSING,
    "not-endpoint": VIR_ERR_INTERNAL_ERROR,
    "image-missing": VIR_ERR_SYSTEM_ERROR,
    "image-unreadable": VIR_ERR_SYSTEM_ERROR,
}


class HostdevError(Exception):
    """
    Root of the tree; never raised itself.

    ``reason`` is one of the stable codes of a finding, or None; ``address`` is the host device it is
    about (anything that prints as one), or None. ``rolled_back`` is True when a change that failed was undone
    completely, False when ``recover`` has work to do, None where nothing was being changed.
    """

    libvirt_code = VIR_ERR_INTERNAL_ERROR
    rolled_back: bool | None = None

    def __init__(
        self,
        message: str,
        *,
        libvirt_code: int | None = None,
        reason: str | None = None,
        address: object | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.address = address
        if libvirt_code is not None:
            self.libvirt_code = libvirt_code

    def __str__(self) -> str:
        return self.message

    @property
    def with_reason(self) -> str:
        """The sentence behind its reason code, when it has one."""
        return f"{self.reason}: {self.message}" if self.reason else self.message


class ConfigError(HostdevError):
    """
    The XML or the request is wrong; nothing was touched.

    ``others`` holds the further errors that were found in the same pass.
    """

    libvirt_code = VIR_ERR_XML_ERROR
    others: tuple[ConfigError, ...] = ()

    def __init__(self, message: str, *, line: int | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.line = line


class XMLError(ConfigError):
    """The XML does not say what the grammar of a domain asks for."""


class InvalidAddressError(ConfigError):
    """A text or a set of numbers is no PCI address."""


class ConfigUnsupportedError(ConfigError):
    """The XML is right, and pyhostdev or the emulator cannot do what it asks for."""

    libvirt_code = VIR_ERR_CONFIG_UNSUPPORTED


def raise_all(errors: Sequence[ConfigError]) -> None:
    """
    Raise the first of some errors, with the rest in ``others``; do nothing where there is none.

    Raises:
        ConfigError: the first error.
    """
    if not errors:
        return
    found = [part for error in errors for part in (error, *error.others)]
    unique = {(part.line, part.with_reason): part for part in reversed(found)}
    first = found[0]
    first.others = tuple(
        part for part in found if part is not first and unique.get((part.line, part.with_reason)) is part
    )
    raise first


class RefusedError(HostdevError):
    """
    The request is valid and the host or the state stands in the way; nothing was touched.

    ``findings`` holds all of them, in the order of the plan; the text names the first and counts the rest.
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
    """We tried and failed; ``rolled_back`` says how the host is now."""

    libvirt_code = VIR_ERR_OPERATION_FAILED

    def __init__(self, message: str, *, rolled_back: bool | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.rolled_back = rolled_back


class DeviceInUseError(OperationError):
    """The device belongs to a domain, or somebody holds it open."""

    libvirt_code = VIR_ERR_OPERATION_INVALID


class DeviceMissingError(OperationError):
    """The host has no such device, or it went away."""

    libvirt_code = VIR_ERR_DEVICE_MISSING


class InDoubtError(OperationError):
    """A write did not come back within its deadline and may still take effect."""

    libvirt_code = VIR_ERR_OPERATION_TIMEOUT


class SysfsError(HostdevError, OSError):
    """
    The kernel refused a read or a write.

    Has ``errno``, ``filename`` and ``doing`` (what was tried, as a verb phrase). Whatever the errno, this is no
    FileNotFoundError or PermissionError: test ``errno``.
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
    """A bug of pyhostdev; never raised for what a user wrote."""
