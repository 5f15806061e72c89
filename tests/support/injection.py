# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Injection: the text of a definition could end an option's value and begin another option.

Every attribute and every text of a domain gets such an ending, one at a time. The result must have the same keys as
before; a value that cannot be represented must be refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.errors import HostdevError
from pyhostdev.qemu.qemu_command import build_command_line

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
ENDS = (",evil=on", "evil=on", ",,evil=on", ",id=evil", "\n,evil", '","evil":"on')
ALONE = ("-S", "-no-user-config", "-nodefaults", "-no-shutdown", "-no-acpi", "-no-hpet")
WORDS = ("-append", "-kernel", "-initrd", "-dtb", "-bios", "-k", "-uuid", "-S")  # their value is one word of any kind


def definitions() -> list[Path]:
    """Return all definitions of testdata; some of them are refused."""
    return sorted(path for path in TESTDATA.rglob("*.xml") if not path.name.endswith(".out.xml"))


def argv_of(text: bytes) -> list[str] | None:
    """Return the command line of a definition, None if it is refused."""
    try:
        return build_command_line(DomainDef.parse(text))
    except HostdevError:
        return None


def keys_of(argv: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the options with the keys of their values, as QEMU reads them."""
    found: list[tuple[str, tuple[str, ...]]] = []
    option = ""
    for word in argv[1:]:
        if word.startswith("-") and not option:
            found.append((word, ()))
            option = "" if word in ALONE else word
            continue
        found[-1] = (option, () if option in WORDS else value_keys(word))
        option = ""
    return found


def value_keys(value: str) -> tuple[str, ...]:
    """Return the keys in one value: of JSON, or of QEMU's option grammar, in which two commas are one."""
    if value.startswith("{"):
        return tuple(sorted(json_keys(json.loads(value))))
    keys = (re.match(r"([^=\0]*)=", part) for part in value.replace(",,", "\0").split(","))
    return tuple(sorted(key[1] if key else "" for key in keys))


def json_keys(value: object) -> Iterator[str]:
    """Yield the keys of an object and of those in it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from json_keys(inner)


def hostile(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield what was changed in a definition, and the definition that it became."""
    root = etree.fromstring(path.read_bytes())
    for element in root.iter("{}*"):  # words in QEMU's own namespace add options: that is what they are for
        for name in list(element.attrib):
            value = str(element.get(name))
            for end in ENDS:
                element.set(name, f"{value}{end}")
                yield f"{path.name}: {element.tag}/@{name}{end!r}", etree.tostring(root)  # type: ignore[str-bytes-safe]
            element.set(name, str(value))
        if element.text and element.text.strip():
            value = str(element.text)
            for end in ENDS:
                element.text = f"{value}{end}"
                yield f"{path.name}: {element.tag}{end!r}", etree.tostring(root)
            element.text = value


def injections(path: Path, step: int = 1, first: int = 0) -> Iterator[str]:
    """Yield each change of a definition after which QEMU would read other keys; none if the definition is refused."""
    before = argv_of(path.read_bytes())
    if before is None:
        return
    wanted = keys_of(before)
    for number, (what, text) in enumerate(hostile(path)):
        if number % step == first % step:
            argv = argv_of(text)
            if argv is not None and not set(keys_of(argv)) <= set(wanted):
                new = sorted(set(keys_of(argv)) - set(wanted))
                if any("evil" in key for _, keys in new for key in keys):
                    yield f"{what}: {new}"
