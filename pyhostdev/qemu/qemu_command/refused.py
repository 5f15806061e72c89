# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The fields of a definition that we cannot put on a command line: each is refused by name, with its line.

Every field is either read while the command line is built, or is in this table or in one of ``ignored``. A test traces
the reads and proves this, so nothing that a user wrote is omitted silently.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.qemu.qemu_command.builder import unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.errors import ConfigUnsupportedError

# definition of an element -> field -> values that are accepted because they change nothing
REFUSED: dict[str, dict[str, tuple[object, ...]]] = {
    "DomainFields": {
        "bootloader": (),
        "bootloader_args": (),
    },
    "OSDef": {
        "type": ("hvm",),
    },
    "StorageSource": {
        "volume": (),
        "auth": (),
        "encryption": (),
        "cookies": (),
    },
    "DomainDiskDef": {"driver_name": ("qemu",), "sgio": ("filtered",), "auth": (), "encryption": ()},
    "DomainFSDef": {
        "driver_name": ("path",),
        "space_soft_limit": (),
    },
    "DomainNetDef": {
        "guest_dev": (),
        "backend_domain": (),
    },
    "DomainGraphicsDef": {
        "multi_user": (),
        "replace_user": (),
    },
    "DomainVideoDef": {"accel2d": (False,), "rendernode": ()},
    "DomainHostdevDef": {"rawio": (), "sgio": ()},
}


# field -> what to write instead
_INSTEAD = {
    "auth": "libvirt's secret driver keeps its key, and pyhostdev has no such store",
    "encryption": "libvirt's secret driver keeps its key, and pyhostdev has no such store",
    "volume": "name the file or device of the volume in a <disk> of type file or block",
    "cookies": "QEMU takes them encrypted, and pyhostdev has no cipher",
    "space_soft_limit": "leave it out",
    "guest_dev": "leave it out",
    "backend_domain": "leave it out",
    "rendernode": "write it in the <gl> of <graphics>",
    "rawio": "leave it out",
    "sgio": "leave it out",
}


def unbuilt_errors(dom: ElementDef) -> list[ConfigUnsupportedError]:
    """Return an error for each field of a definition that is not built, with its line."""
    found: list[ConfigUnsupportedError] = []
    for definition in dom.elements():
        kind: type = type(definition)
        refused = _refused(kind)
        if refused:
            found += _own_errors(definition, refused)
    return found


def _own_errors(definition: ElementDef, refused: dict[str, tuple[object, ...]]) -> Iterator[ConfigUnsupportedError]:
    for name, harmless in refused.items():
        value = definition.__dict__.get(name)
        if value is not None and value not in (False, [], *harmless):
            yield _error(definition, name, value, harmless)


@cache  # one entry for each class
def _refused(kind: type) -> dict[str, tuple[object, ...]]:
    """Return the refused fields of a class and its bases."""
    return {name: found for base in kind.__mro__ for name, found in REFUSED.get(base.__name__, {}).items()}


def nested_definitions(definition: ElementDef) -> list[ElementDef]:
    """Return the nested definitions: those that share the element of this one, and those of child elements."""
    found: list[ElementDef] = []
    state = definition.__dict__
    for name in definition.table.nested:
        value = state.get(name)
        if isinstance(value, ElementDef):
            found.append(value)
        elif value:
            found += value
    return found


def _error(definition: ElementDef, name: str, value: Any, harmless: tuple[object, ...]) -> ConfigUnsupportedError:
    where = value[0] if isinstance(value, list) and isinstance(value[0], ElementDef) else definition
    tag = f"<{definition.tag}>" if definition.tag else "the device"
    allowed = [word for word in harmless if isinstance(word, str)]
    instead = f"only '{' or '.join(allowed)}' is" if allowed else _INSTEAD.get(name)
    error = unsupported(f"'{name.replace('_', ' ')}' of {tag}", where, instead)
    error.line = definition.line_of(name)
    return error
