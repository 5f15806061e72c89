# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A host's description as text, in the form that ``treefile`` parses; comments of an original text are lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.testing.driverspec import driver_kind
from pyhostdev.testing.hostspec import EXPRESS_KINDS, FunctionSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.testing.driverspec import DriverSpec
    from pyhostdev.testing.hostspec import HostSpec

_EXPRESS_NAMES = {number: name for name, number in EXPRESS_KINDS.items()}


def _flag(value: object) -> str | None:
    """Return a flag's value: None if it has none, or the value that replaces ``on``."""
    return None if value in (True, "on") else f"{value}"


# In the order of a line; default values are left out
_WORDS: dict[str, tuple[str, Callable[[Any], str | None]]] = {
    "driver": ("driver", str),
    "nodriver": ("nodriver", _flag),
    "override": ("override", str),
    "group": ("group", str),
    "subsystem": ("subsys", lambda ids: f"{ids[0]:04x}:{ids[1]:04x}"),
    "revision": ("rev", lambda number: f"{number:02x}"),
    "numa_node": ("numa", str),
    "multifunction": ("multifunction", _flag),
    "bridge": ("bridge", lambda buses: f"{buses[0]:02x}-{buses[1]:02x}"),
    "express": ("express", _EXPRESS_NAMES.__getitem__),
    "pm": ("pm", _flag),
    "flr": ("flr", _flag),
    "af": ("af", _flag),
    "acs": ("acs", _flag),
    "ari": ("ari", _flag),
    "sriov": ("sriov", str),
    "vf_device": ("vf-device", lambda number: f"{number:04x}"),
    "vf_offset": ("vf-offset", str),
    "vf_stride": ("vf-stride", str),
    "autoprobe": ("autoprobe", str),
    "physfn": ("physfn", str),
    "parent": ("parent", str),
    "boot_vga": ("boot-vga", _flag),
    "net": ("net", ",".join),
    "block": ("block", ",".join),
    "dump": ("dump", str),
}


def format_function(spec: FunctionSpec) -> str:
    """Return a function's line, and the lines of its dumped bytes."""
    words = [str(spec.address), f"{spec.vendor:04x}:{spec.device:04x}", f"{spec.class_:06x}"]
    for field, (word, show) in _WORDS.items():
        value = getattr(spec, field)
        if value != FunctionSpec._field_defaults[field]:
            text = show(value)
            words.append(word if text is None else f"{word}={text}")
    patches = [f"  {offset:02x}: {content.hex(' ')}" for offset, content in spec.patches]
    return "\n".join([" ".join(words), *patches])


def format_driver(spec: DriverSpec) -> str:
    """Return a driver's line."""
    words = ["driver", spec.name, *spec.ids]
    if spec.availability != "loaded":
        words.append(spec.availability)
    if spec.kind != driver_kind(spec.name):
        words.append(spec.kind)
    if spec.module is None:
        words.append("builtin")
    elif spec.module != spec.name.replace("-", "_"):
        words.append(f"module={spec.module}")
    words += [f"{key}={value}" for key, value in (("probe", spec.probe), ("remove", spec.remove)) if value]
    return " ".join(words)


def format_host(host: HostSpec) -> str:
    """Return the whole description; ``parse_host`` parses it into the same host."""
    return "\n".join(_lines(host)) + "\n"


def _lines(host: HostSpec) -> Iterator[str]:
    yield from (format_driver(spec) for spec in host.drivers.values())
    yield from (format_function(spec) for spec in host.functions.values())
    yield from (f"group {group} {kind}" for group, kind in host.group_types.items())
    for member in host.members:
        driver = f" driver={member.driver}" if member.driver else ""
        yield f"member {member.group} {member.name}{driver}"
    yield from (f"{key} {value}" for key, value in host.settings.items())
    yield from (f"mount {' '.join(mount)}" for mount in host.mounts)
    yield from (f"swap {device}" for device in host.swaps)
    yield from (f"route {interface}" for interface in host.routes)
