# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The fields of a definition that the command line's builders really read.

While a domain is built, every read of a field is recorded with its definition. Parsing, printing, defaults, addresses
and validation do not count: a field that only they read never reaches QEMU.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pyhostdev.conf
from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE, RELEASES
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import (
    Attribute,
    Content,
    DefaultElement,
    Elements,
    Field,
    Flag,
    Ignored,
    Inline,
    Opaque,
    OptionalElement,
)
from pyhostdev.errors import HostdevError
from pyhostdev.qemu import qemu_command
from pyhostdev.qemu.qemu_command.refused import nested_definitions

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
_GENERIC = (DomainDef._by_field.__code__,)  # reads every device's field by its name, and builds nothing
TEXTS = ("1", "16", "4096", "0x10", "x", "/x", "10s", "00:11:22:33:44:55")

FieldName = tuple[str, str]  # the class that declares it, and its name


def definitions(kind: type[ElementDef] = ElementDef) -> Iterator[type[ElementDef]]:
    """Yield all definitions of the conf room, not those that a test made up."""
    for module in pkgutil.iter_modules(pyhostdev.conf.__path__):
        importlib.import_module(f"pyhostdev.conf.{module.name}")
    for derived in kind.__subclasses__():
        if derived.__module__.startswith(pyhostdev.conf.__name__):
            yield derived
            yield from definitions(derived)


def fields(kind: type[ElementDef]) -> Iterator[tuple[str, Field[Any]]]:
    """Yield the fields that hold a value of their own and that a class declares itself."""
    for name, field in kind.own_fields.items():
        if not isinstance(field, (Inline, Ignored)):
            yield name, field


def below(definition: ElementDef) -> Iterator[ElementDef]:
    """Yield a definition and all that are in it."""
    yield definition
    for part in nested_definitions(definition):
        yield from below(part)


def defined_corpus() -> list[DomainDef]:
    """Return the domains of testdata with their defaults and addresses; those in later/ as the newest release does."""
    found = []
    paths = sorted(path for path in TESTDATA.rglob("*.xml") if not path.name.endswith(".out.xml"))
    for path in sorted(paths, key=lambda path: path.parent.name != "qemu"):
        with suppress(HostdevError):
            dom = DomainDef.parse(path.read_bytes())
            release = RELEASES[0] if path.parent.name != "later" else RELEASES[-1]
            dom = qemu_command.define(dom, qemu_command.stored_capabilities(dom, release), release=release)
            dom.__dict__["release"] = release
            found.append(dom)
    return found


class Reads:
    """The fields that were read, by the identity of the definition."""

    def __init__(self) -> None:
        self.found: set[tuple[int, str]] = set()

    def of_building(self, dom: DomainDef) -> Reads:
        """Build a defined domain, even if parts of it are refused, and record the reads."""
        read = object.__getattribute__

        def noted(definition: ElementDef, name: str) -> Any:
            if name in read(definition, "declared")() and sys._getframe(1).f_code not in _GENERIC:
                self.found.add((id(definition), name))
            return read(definition, name)

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(qemu_command, "define", return_value=dom))
            # these read everything, or every device, and build nothing
            qemu_command.assign_aliases(dom)
            for elsewhere in ("unmodelled_errors", "unbuilt_errors", "assign_aliases"):
                stack.enter_context(mock.patch.object(qemu_command, elsewhere, return_value=[]))
            release = dom.__dict__.get("release", DEFAULT_RELEASE)
            capabilities = qemu_command.stored_capabilities(dom, release)
            stack.enter_context(mock.patch.object(ElementDef, "__getattribute__", noted))
            with suppress(HostdevError, TypeError, ValueError, AttributeError):  # of values that are made up
                qemu_command.build_command_line(dom, capabilities, release=release)
        return self

    def has(self, parts: list[ElementDef], name: str) -> bool:
        """True when a field of one of these definitions was read."""
        return any((id(part), name) in self.found for part in parts)


def read_fields(dom: DomainDef) -> set[FieldName]:
    """Return the fields that have a value in a domain and that are read while it is built."""
    reads = Reads().of_building(dom)
    return {
        (owner.__name__, name)
        for part in below(dom)
        for owner in type(part).__mro__
        if issubclass(owner, ElementDef)
        for name, _ in fields(owner)
        if part.__dict__.get(name) not in (None, False, []) and reads.has([part], name)
    }


def values(field: Any) -> list[Any]:
    """Return some values that a field can have."""
    if isinstance(field, (OptionalElement, DefaultElement)):
        return [field.definition()]
    if isinstance(field, Elements):
        return [[field.definition()]]
    if isinstance(field, Opaque):
        return [f"<{field.path[-1]}/>"]
    if isinstance(field, Flag):
        return [True]
    assert isinstance(field, (Attribute, Content))
    found = []
    for text in (*field.codec.words, *TEXTS):
        with suppress(ValueError):
            found.append(field.codec.parse(text))
    return found[:3]


def by_kind(corpus: list[DomainDef]) -> dict[type, list[DomainDef]]:
    """Return the domains that have a definition of a class, by the class."""
    found: dict[type, list[DomainDef]] = {}
    for dom in corpus:
        for kind in {base for part in below(dom) for base in type(part).__mro__}:
            found.setdefault(kind, []).append(dom)
    return found


def is_read_when_set(kind: type[ElementDef], name: str, field: Any, fitting: list[DomainDef], limit: int = 6) -> bool:
    """
    Tell whether a builder reads a field with a value, in one of the first domains that have such a definition.

    Raises:
        AssertionError: no domain has such a definition: the corpus lacks it.
    """
    assert fitting, f"no domain of the corpus has a {kind.__name__}"
    for dom in fitting[:limit]:
        for value in values(field):
            clone = dom.copy()
            parts = [part for part in below(clone) if isinstance(part, kind)]
            for part in parts:
                part.__dict__[name] = value
            if Reads().of_building(clone).has(parts, name):
                return True
    return False
