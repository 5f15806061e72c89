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

# definition -> field -> values that are accepted because they change nothing
REFUSED: dict[str, dict[str, tuple[object, ...]]] = {
    "DomainFields": {
        "bootloader": (),
        "bootloader_args": (),
    },
    "OSDef": {
        "init": (),
        "init_arguments": (),
        "init_dir": (),
        "init_user": (),
        "init_group": (),
        "root": (),
        "bios_useserial": (False,),
        "type": ("hvm",),
    },
    "ClockTimer": {"threshold": (), "slew": (), "limit": ()},
    "FeaturesDef": {
        "viridian": (),
        "privnet": (),
        "async_teardown": (False,),
    },
    "DomainChrDef": {"target_address": ()},
    "DomainSmartcardDef": {"certificates": (), "database": ()},
    "StorageSource": {"tls_hostname": (), "volume": (), "dir": (), "startup_policy": ("mandatory",)},
    "DomainDiskDef": {"driver_name": ("qemu",), "sgio": ("filtered",)},
    "DomainFSDef": {
        "driver_name": ("path",),
        "driver_format": (),
        "space_soft_limit": (),
    },
    "DomainNetDef": {
        "guest_dev": (),
        "backend_domain": (),
    },
    "DomainGraphicsDef": {
        "fullscreen": (False,),
        "multi_user": (),
        "replace_user": (),
    },
    "DomainVideoDef": {"accel2d": (False,), "rendernode": ()},
    "DomainHostdevDef": {"rawio": (), "sgio": ()},
}


def unbuilt_errors(dom: ElementDef) -> list[ConfigUnsupportedError]:
    """Return an error for each field of a definition that is not built, with its line."""
    return list(_unbuilt(dom))


def _unbuilt(definition: ElementDef) -> Iterator[ConfigUnsupportedError]:
    for name, harmless in _refused(type(definition)).items():
        value = getattr(definition, name)
        if value not in (None, False, [], *harmless):
            yield _error(definition, name, value)
    for part in parts_of(definition):
        yield from _unbuilt(part)


@cache  # one entry for each class
def _refused(kind: type) -> dict[str, tuple[object, ...]]:
    """Return the refused fields of a class, its bases' included."""
    return {name: found for base in kind.__mro__ for name, found in REFUSED.get(base.__name__, {}).items()}


def parts_of(definition: ElementDef) -> Iterator[ElementDef]:
    """Yield the nested definitions: those that share the element of this one, and those of child elements."""
    for name in definition.table().nested:
        value = definition.__dict__.get(name)
        if isinstance(value, ElementDef):
            yield value
        elif value:
            yield from value


def _error(definition: ElementDef, name: str, value: Any) -> ConfigUnsupportedError:
    where = value[0] if isinstance(value, list) and isinstance(value[0], ElementDef) else definition
    tag = f"<{definition.tag}>" if definition.tag else "the device"
    error = unsupported(f"'{name.replace('_', ' ')}' of {tag}", where)
    error.line = definition.line_of(name)
    return error
