# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The elements of a domain in QEMU's XML namespace: arguments, environment, capabilities and device properties.

They reach QEMU as the user wrote them, and express what the libvirt schema cannot. ``namespace_findings`` and
``bypass_findings`` of ``qemu_command.namespace`` refuse those that would bypass the plan.

Mirrors: qemuDomainXmlNsDef (src/qemu/qemu_domain.h), qemuDomainDefNamespaceParse (src/qemu/qemu_domain.c)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, XMLError
from pyhostdev.util.typed import NamedTuple
from pyhostdev.util.virxml import parse_document, shown, source_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.errors import ConfigError
    from pyhostdev.util.virxml import Element

NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
ELEMENTS = ("commandline", "capabilities", "override", "deprecation")
DEPRECATIONS = ("none", "omit", "reject", "crash")
REMOVE = "remove"

_ENVIRONMENT_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_UNSIGNED_MAX = (1 << 64) - 1
_SIGNED_MAX = (1 << 63) - 1


class QEMUEnvironment(NamedTuple):
    """A variable of QEMU's environment."""

    name: str
    value: str
    line: int | None


class QEMUArgument(NamedTuple):
    """One additional argument of QEMU."""

    value: str
    line: int | None


class QEMUProperty(NamedTuple):
    """A property to override for one device; a value of None removes it."""

    alias: str
    name: str
    value: int | bool | str | None
    line: int | None


class QEMUNamespace(NamedTuple):
    """All elements of a domain in QEMU's namespace, and the errors in them."""

    args: tuple[QEMUArgument, ...] = ()
    env: tuple[QEMUEnvironment, ...] = ()
    added_capabilities: tuple[str, ...] = ()
    deleted_capabilities: tuple[str, ...] = ()
    properties: tuple[QEMUProperty, ...] = ()
    errors: tuple[ConfigError, ...] = ()
    deprecation: str | None = None

    def joined(self, other: QEMUNamespace) -> QEMUNamespace:
        """Return both concatenated, in this order."""
        return QEMUNamespace(
            self.args + other.args,
            self.env + other.env,
            self.added_capabilities + other.added_capabilities,
            self.deleted_capabilities + other.deleted_capabilities,
            self.properties + other.properties,
            self.errors + other.errors,
            self.deprecation or other.deprecation,
        )

    def overridden(self, alias: str | None, properties: dict[str, object]) -> dict[str, object]:
        """Return the properties of a device after the overrides; overridden properties come last."""
        found = dict(properties)
        for row in self.properties:
            if row.alias == alias:
                found.pop(row.name, None)
                found |= {} if row.value is None else {row.name: row.value}
        return found


def namespace_path(name: str) -> str:
    """Return the path of an element in QEMU's namespace, in the form of ``DomainFields.unmodelled``."""
    return f"domain/{{{NAMESPACE}}}{name}"


def namespace_of(dom: DomainFields) -> QEMUNamespace:
    """Return the elements of a domain in QEMU's namespace; ``errors`` lists the invalid ones."""
    found = QEMUNamespace()
    for word in dom.unknown.get((), ()):
        kind = word.name.removeprefix(f"{{{NAMESPACE}}}")
        if word.is_element and kind != word.name and kind in _READERS:
            before = (word.line or 1) - 1
            read = _READERS[kind](_Reader(parse_document(word.value), before))
            found = found.joined(read)
    return found


class _Reader:
    """Reads one element of the namespace and collects its errors."""

    def __init__(self, root: Element, before: int) -> None:
        self.root = root
        self.before = before  # lines of the document before the element
        self.errors: list[ConfigError] = []

    def elements(self, *path: str) -> list[Element]:
        return self.below(self.root, *path)

    def below(self, element: Element, *path: str) -> list[Element]:
        return list(element.iterfind("/".join(f"{{{NAMESPACE}}}{name}" for name in path)))

    def line(self, element: Element) -> int | None:
        return self.before + (source_line(element) or 1)

    def wrong(self, message: str, element: Element, code: int | None = None) -> None:
        self.errors.append(XMLError(message, line=self.line(element), libvirt_code=code))

    def required(self, element: Element, name: str, what: str, code: int | None = None) -> str | None:
        """Return an attribute; if it is missing, record an error and return None."""
        value: str | None = element.get(name)
        if not value and (value is None or name == "name"):
            self.wrong(f"A <{what}> has no {name}", element, code)
            return None
        return value


def _commandline(reader: _Reader) -> QEMUNamespace:
    args, env = [], []
    for element in reader.elements("arg"):
        value = reader.required(element, "value", "qemu:arg", VIR_ERR_INTERNAL_ERROR)
        if value is not None:
            args.append(QEMUArgument(value, reader.line(element)))
    for element in reader.elements("env"):
        name = reader.required(element, "name", "qemu:env", VIR_ERR_INTERNAL_ERROR)
        if name is None:
            continue
        if re.fullmatch(_ENVIRONMENT_NAME, name) is None:
            text = f"'{shown(name)}' is not a valid name of an environment variable"
            reader.wrong(text, element, VIR_ERR_INTERNAL_ERROR)
            continue
        env.append(QEMUEnvironment(name, element.get("value") or "", reader.line(element)))
    return QEMUNamespace(args=tuple(args), env=tuple(env), errors=tuple(reader.errors))


def _capabilities(reader: _Reader) -> QEMUNamespace:
    named: dict[str, list[str]] = {"add": [], "del": []}
    for verb, names in named.items():
        for element in reader.elements(verb):
            name = reader.required(element, "capability", f"qemu:{verb}", VIR_ERR_INTERNAL_ERROR)
            names += [] if name is None else [name]
    return QEMUNamespace(
        added_capabilities=tuple(named["add"]), deleted_capabilities=tuple(named["del"]), errors=tuple(reader.errors)
    )


def _override(reader: _Reader) -> QEMUNamespace:
    rows: list[QEMUProperty] = []
    for device in reader.elements("device"):
        alias = reader.required(device, "alias", "qemu:device")
        for element in reader.below(device, "frontend", "property"):
            rows += _property(reader, alias or "", element)
    return QEMUNamespace(properties=tuple(rows), errors=tuple(reader.errors))


def _property(reader: _Reader, alias: str, element: Element) -> Iterator[QEMUProperty]:
    name = reader.required(element, "name", "qemu:property")
    kind = reader.required(element, "type", "qemu:property")
    if name is None or kind is None:
        return
    if kind == REMOVE:
        yield QEMUProperty(alias, name, None, reader.line(element))
        return
    text = reader.required(element, "value", "qemu:property")
    if kind not in _VALUES:
        expected = ", ".join([*_VALUES, REMOVE])
        reader.wrong(f"Invalid type '{shown(kind)}' of a <qemu:property>: expected one of {expected}", element)
    elif text is not None:
        try:
            yield QEMUProperty(alias, name, _VALUES[kind](text), reader.line(element))
        except ValueError:
            reader.wrong(f"Invalid value '{shown(text)}' of a <qemu:property> of type {kind}", element)


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _integer(text: str, least: int, largest: int) -> int:
    value = int(text, 10)
    if not least <= value <= largest:
        raise ValueError(text)
    return value


_VALUES: dict[str, Callable[[str], int | bool | str]] = {
    "unsigned": lambda text: _integer(text, 0, _UNSIGNED_MAX),
    "signed": lambda text: _integer(text, -_SIGNED_MAX - 1, _SIGNED_MAX),
    "bool": _boolean,
    "string": str,
}


def _deprecation(reader: _Reader) -> QEMUNamespace:
    behaviour = reader.root.get("behavior")
    if behaviour not in DEPRECATIONS:
        reader.wrong(f"<qemu:deprecation> needs a behavior: one of {', '.join(DEPRECATIONS)}", reader.root)
    return QEMUNamespace(deprecation=behaviour, errors=tuple(reader.errors))


_READERS: dict[str, Callable[[_Reader], QEMUNamespace]] = {
    "commandline": _commandline,
    "capabilities": _capabilities,
    "deprecation": _deprecation,
    "override": _override,
}
