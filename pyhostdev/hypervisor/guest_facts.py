# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The file with the facts about a running guest, in its runtime directory, and the guests whose file cannot be used.

Verbs that do not need QEMU read it without the QEMU driver.
"""

from __future__ import annotations

import os

from pyhostdev.errors import HostdevError
from pyhostdev.util.journal import BadRecord
from pyhostdev.util.statedir import StateDir
from pyhostdev.util.typed import Any, NamedTuple
from pyhostdev.util.virjson import format_json, parse_json

GUEST_FILE = "guest.json"
_VERSION = 1
_PREFIX = "domain-"
_WHY_MAX = 200  # characters: an error can repeat a part of the file


class GuestFacts(NamedTuple):
    """The facts that the owner of a guest stores: its name, QEMU's pid, the libvirt release, QEMU's uid and gid."""

    name: str
    pid: int
    release: str
    node_owner: tuple[int, int] | None

    def to_bytes(self) -> bytes:
        """Return the contents of the file."""
        return format_json({"version": _VERSION, **self._asdict()}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> GuestFacts:
        """
        Return the facts in a file's bytes.

        Raises:
            ValueError: the file is malformed, or another version wrote it.
        """
        try:
            fields: dict[str, Any] = parse_json(data)
            if fields["version"] != _VERSION or not isinstance(fields["name"], str):
                raise ValueError("it was written by another version")
            owner = fields["node_owner"]
            node_owner = None if owner is None else (int(owner[0]), int(owner[1]))
            return cls(fields["name"], int(fields["pid"]), str(fields["release"]), node_owner)
        except (KeyError, TypeError, IndexError, AttributeError) as err:
            raise ValueError(f"a field is missing or malformed ({err})") from None


def runtime_directories(state_dir: str, *, below: str | None = None) -> list[str]:
    """
    Return the runtime directories of all guests.

    Raises:
        OperationError: the directory above them cannot be trusted.
        SysfsError: it cannot be read.
    """
    top = os.path.join(state_dir, "lib", "qemu")
    return [os.path.join(top, name) for name in StateDir(top, below=below).names() if name.startswith(_PREFIX)]


def read_facts(path: str, *, below: str | None = None) -> GuestFacts | None:
    """
    Return the facts in a runtime directory; None if the guest is being started or removed.

    Raises:
        ValueError: the file is malformed, or another version wrote it.
        OperationError: the directory cannot be trusted.
        SysfsError: the file cannot be read.
    """
    data = StateDir(path, below=below).read(GUEST_FILE)
    return None if data is None else GuestFacts.from_bytes(data)


def unreadable_guests(state: StateDir) -> list[BadRecord]:
    """Return the runtime directories whose guest is unknown, each with the reason; they need not be a guest's."""
    try:
        paths = runtime_directories(state.path, below=state.below)
    except HostdevError as err:
        return [BadRecord("lib/qemu", str(err))]
    found = ((path, _why_unreadable(path, state.below)) for path in paths)
    return [BadRecord(os.path.basename(path), why) for path, why in found if why is not None]


def unknown_guest_text(bad: BadRecord) -> str:
    """Return the sentence about one of ``unreadable_guests``."""
    return f"The guest in '{bad.name}' is unknown, because its {GUEST_FILE} cannot be used: {bad.why}"


def _why_unreadable(path: str, below: str | None) -> str | None:
    try:
        read_facts(path, below=below)
    except ValueError as err:
        return str(err)[:_WHY_MAX]
    except HostdevError as err:
        return str(err)
    return None
