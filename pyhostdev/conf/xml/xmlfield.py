# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The fields of a definition's table: the place of a value in the XML, and its meaning.

A path names the elements around the value; they are printed if they contain something.
"""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import Literal, cast

from pyhostdev.conf.xml.xmlcodec import Codec, expected_words, text
from pyhostdev.errors import ConfigError, InternalError, XMLError, raise_all
from pyhostdev.util.typed import TYPE_CHECKING, Any, Generic, TypeVar, overload
from pyhostdev.util.virxml import dump_element, invalid_value, source_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.xml.definition import Definition
    from pyhostdev.errors import Renumbering
    from pyhostdev.util.virxml import Element

ERRORS_MAX = 100  # reported per list of elements

T = TypeVar("T")
D = TypeVar("D", bound="Definition")


class Field(Generic[T]):
    """
    One row of a table: the place of a value, and its meaning.

    The value lives in the instance's dict, and the default in the class, so that Python itself finds both.
    """

    name = ""
    package = ""  # of the definition with this field
    make: Callable[[], Any] | None = None  # makes the value that each new instance gets
    leaf = ""  # attribute name, for attributes
    keeps_empty = False  # an empty text is a value; else it counts as absent
    is_single = False  # an element of which only the first counts

    def __init__(self, path: str, default: T, *, quiet: bool = False, since: str | None = None) -> None:
        parts = path.split("/") if path else []
        if parts and parts[-1].startswith("@"):
            parts, self.leaf = parts[:-1], parts[-1][1:]
        self.path = tuple(parts)
        self.default = default
        self.quiet = quiet  # True if the default is not printed
        self.since = since  # the row of CHANGES that brought the field; older releases drop it

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.package = owner.__module__.rpartition(".")[0]

    if TYPE_CHECKING:

        def __get__(self, instance: Definition | None, owner: type) -> T:
            """Describe what a definition has in the place of the field."""

    def put_default(self, owner: type, name: str) -> None:
        """Put the default into the class, in the place of the field."""
        setattr(owner, name, self.default)

    def load(self, found: list[Element]) -> T:
        """Return the value in the found elements, at least one; for fields that are elements."""
        raise InternalError(f"{type(self).__name__} does not implement load")

    def parse(self, text: str) -> T:
        """
        Return the value of a text; for fields that are attributes or texts.

        Raises:
            ValueError: the text is not valid.
        """
        raise InternalError(f"{type(self).__name__} does not implement parse")


class _Value(Field[T]):
    """A value that is one text in the XML."""

    def __init__(self, path: str, codec: Codec[Any], default: Any, code: int | None, **options: Any) -> None:
        self.lenient = options.pop("lenient", False)  # libvirt ignores an invalid value
        self.required = options.pop("required", False)
        self.renumbered = options.pop("renumbered", None)  # the row of CHANGES that changed the code of a refusal
        missing = options.pop("missing", None)
        super().__init__(path, default, **options)
        self.codec = codec
        self.parse = codec.parse  # type: ignore[assignment,method-assign]  # one call less for each value
        self.code = code or codec.code
        self.missing = missing or self.code  # of an absent value

    def refusal(self, value: str, tag: str, line: int | None, why: str | None = None) -> XMLError:
        """Return the error of a value that the codec refuses, or an older release for the reason given."""
        what = f"'{self.leaf}' in <{tag}>" if self.leaf else f"<{tag}>"
        why = why or f"expected {expected_words(self.codec, value)}"
        return invalid_value(what, value, why, line, self.code, self.renumbered)


class Attribute(_Value[T]):
    """An attribute of the element, or of one below it."""


class Content(_Value[T]):
    """
    The text of the element, or of one below it; an empty one counts as absent.

    Mirrors: virXPathString (src/util/virxml.c)
    """

    def __init__(self, path: str, codec: Codec[Any], default: Any, code: int | None, **options: Any) -> None:
        self.keeps_empty = options.pop("keeps_empty", False)
        super().__init__(path, codec, default, code, **options)


def refuse_second(found: list[Element], code: int | None) -> None:
    """
    Refuse a second element if there is a VIR_ERR_* number for it.

    Raises:
        XMLError: has the line of the second element.
    """
    if code is not None and len(found) > 1:
        text = f"<{found[1].tag}> can appear only once"
        raise XMLError(text, line=source_line(found[1]), libvirt_code=code)


class Flag(Field[bool]):
    """An empty element: present or absent."""

    def parse(self, text: str) -> bool:
        """Return True: the element is there."""
        return True


class Opaque(Field["str | None"]):
    """A known element with contents that are kept unchanged."""

    def __init__(self, path: str, *, for_host: bool, since: str | None, second: int | None) -> None:
        super().__init__(path, None, since=since)
        self.for_host = for_host  # it configures the host; the hypervisor driver applies or reports it
        self.second = second  # the VIR_ERR_* number that refuses a second element

    def load(self, found: list[Element]) -> str | None:
        """
        Return the elements with their contents as text.

        Raises:
            XMLError: there is a second one, which libvirt refuses.
        """
        refuse_second(found, self.second)
        return "\n".join(map(dump_element, found))


class Nested(Field[T]):
    """
    An element with its own definition.

    The definition may be given as ``module.Class`` in the package of the owner: it is imported on first use, which
    shortens the start of programs.
    """

    def __init__(
        self,
        path: str,
        definition: type[Definition] | str,
        default: Any,
        *,
        since: str | None = None,
        second: int | None = None,
    ) -> None:
        super().__init__(path, default, since=since)
        self._definition = definition
        self.second = second  # the VIR_ERR_* number that refuses a second element

    @cached_property
    def definition(self) -> type[Definition]:
        """The class of the element's definition."""
        if isinstance(self._definition, str):
            module, name = self._definition.split(".")
            return cast("type[Definition]", getattr(import_module(f"{self.package}.{module}"), name))
        return self._definition


class OptionalElement(Nested["D | None"]):
    """An optional element with its own definition."""

    is_single = True

    def load(self, found: list[Element]) -> D | None:
        """
        Return the definition in the element.

        Raises:
            XMLError: there is a second one, which libvirt refuses.
        """
        refuse_second(found, self.second)
        return self.definition.from_element(found[0])  # type: ignore[return-value]  # it is a D


class DefaultElement(Nested[D]):
    """An element with its own definition that is never None, and is printed unless it is empty."""

    is_single = True

    def load(self, found: list[Element]) -> D:
        """
        Return the definition in the element.

        Raises:
            XMLError: there is a second one, which libvirt refuses.
        """
        refuse_second(found, self.second)
        return self.definition.from_element(found[0])  # type: ignore[return-value]  # it is a D

    def put_default(self, owner: type, name: str) -> None:
        """Leave the field in the class: it makes the default."""

    def __get__(self, instance: Definition | None, owner: type) -> D:
        """Create the definition of an instance on first access; a class has the field itself."""
        if instance is None:
            return cast("D", self)
        made = instance.__dict__[self.name] = cast("D", self.definition())
        return made


class Elements(Nested["list[D]"]):
    """A list of elements with their own definitions."""

    make = list

    def load(self, found: list[Element]) -> list[D]:
        """
        Return the definitions in the elements.

        Raises:
            ConfigError: elements are wrong; the first error, with further ones in ``others``.
        """
        definitions: list[D] = []
        errors: list[ConfigError] = []
        definition = self.definition
        for element in found:
            try:
                definitions.append(definition.from_element(element))  # type: ignore[arg-type]  # it is a D
            except ConfigError as err:
                errors.append(err)
                definitions += [] if err.readable is None else [err.readable]
                if len(errors) == ERRORS_MAX:
                    break
        raise_all(errors, definitions)
        return definitions


class Ignored(Field[None]):
    """Attributes and elements that libvirt ignores here; dropped."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        super().__init__("", None)
        self.paths = paths

    def load(self, found: list[Element]) -> None:
        """Return None: the contents are dropped."""

    def parse(self, text: str) -> None:
        """Return None: the contents are dropped."""


class Inline(Field[D]):
    """A definition that shares its owner's element, and its lines: its rows are read and printed there."""

    def __init__(self, definition: type[D]) -> None:
        super().__init__("", cast("D", None))
        self.definition = definition

    def put_default(self, owner: type, name: str) -> None:
        """Leave the field in the class: it makes the default."""

    def __get__(self, instance: Definition | None, owner: type) -> D:
        """Create the definition of an instance on first access; a class has the field itself."""
        if instance is None:
            return cast("D", self)
        made = instance.__dict__[self.name] = self.definition()
        made.line, made.lines = instance.line, instance.lines
        return made


@overload
def attribute(path: str, *, lenient: bool = ..., since: str | None = ...) -> Attribute[str | None]: ...
@overload
def attribute(path: str, *, required: Literal[True]) -> Attribute[str]: ...
@overload
def attribute(
    path: str,
    codec: Codec[T],
    *,
    code: int | None = ...,
    missing: int | None = ...,
    required: Literal[True],
    renumbered: Renumbering | None = ...,
) -> Attribute[T]: ...
@overload
def attribute(
    path: str,
    codec: Codec[T],
    *,
    code: int | None = ...,
    lenient: bool = ...,
    since: str | None = ...,
    renumbered: Renumbering | None = ...,
) -> Attribute[T | None]: ...
@overload
def attribute(
    path: str,
    codec: Codec[T] = ...,
    *,
    default: T,
    code: int | None = ...,
    quiet: bool = ...,
    lenient: bool = ...,
    renumbered: Renumbering | None = ...,
) -> Attribute[T]: ...
def attribute(
    path: str,
    codec: Codec[Any] = text,
    *,
    default: Any = None,
    code: int | None = None,
    **options: Any,
) -> Attribute[Any]:
    """
    Declare an attribute; ``driver/@name`` is one of a child element.

    Args:
        default: the value of an absent attribute; it is printed.
        code: the VIR_ERR_* number of an invalid value; default 27.
        options: ``quiet`` does not print the default, ``lenient`` uses it for a value that the codec refuses,
            ``required`` refuses absence (``missing`` is its number; default: that of an invalid value), ``since`` names
            the change that brought the attribute, ``renumbered`` the one that changed the numbers.
    """
    *parents, leaf = path.split("/")
    where = "/".join([*parents, "@" + leaf.removeprefix("@")])
    return Attribute(where, codec, default, code, **options)


@overload
def content(path: str, *, lenient: bool = ..., since: str | None = ...) -> Content[str | None]: ...
@overload
def content(path: str, *, required: Literal[True]) -> Content[str]: ...
@overload
def content(path: str, codec: Codec[T], *, code: int | None = ..., required: Literal[True]) -> Content[T]: ...
@overload
def content(
    path: str,
    codec: Codec[T],
    *,
    code: int | None = ...,
    lenient: bool = ...,
    since: str | None = ...,
    keeps_empty: bool = ...,
) -> Content[T | None]: ...
@overload
def content(
    path: str,
    codec: Codec[T] = ...,
    *,
    default: T,
    code: int | None = ...,
    quiet: bool = ...,
    lenient: bool = ...,
    keeps_empty: bool = ...,
) -> Content[T]: ...
def content(
    path: str,
    codec: Codec[Any] = text,
    *,
    default: Any = None,
    code: int | None = None,
    **options: Any,
) -> Content[Any]:
    """
    Declare the text of an element; the empty path is the definition's own.

    Args:
        options: as for ``attribute``; ``keeps_empty`` takes an empty text for a value.
    """
    return Content(path, codec, default, code, **options)


def flag(path: str) -> Flag:
    """Declare an empty element; its presence is the value."""
    return Flag(path, False)


def opaque(path: str, *, for_host: bool = False, since: str | None = None, second: int | None = None) -> Opaque:
    """
    Declare an element that is kept verbatim.

    Args:
        for_host: the element configures the host's side; the hypervisor driver decides how to treat it.
        since: the row of CHANGES that brought the element.
        second: the VIR_ERR_* number that refuses a second element.
    """
    return Opaque(path, for_host=for_host, since=since, second=second)


def ignored(*paths: str) -> Ignored:
    """Declare an attribute (``address/@device``) or element (``vendor``) that is dropped."""
    return Ignored(paths)


@overload
def optional_element(
    path: str, definition: type[D], *, since: str | None = ..., second: int | None = ...
) -> OptionalElement[D]: ...
@overload
def optional_element(
    path: str, definition: str, *, since: str | None = ..., second: int | None = ...
) -> OptionalElement[Any]: ...
def optional_element(
    path: str, definition: type[Definition] | str, *, since: str | None = None, second: int | None = None
) -> OptionalElement[Any]:
    """
    Declare an element with its own definition; the value is None if the element is absent.

    Args:
        since: the row of CHANGES that brought the element.
        second: the VIR_ERR_* number that refuses a second element.
    """
    return OptionalElement(path, definition, None, since=since, second=second)


@overload
def element_or_default(path: str, definition: type[D], *, second: int | None = ...) -> DefaultElement[D]: ...
@overload
def element_or_default(path: str, definition: str, *, second: int | None = ...) -> DefaultElement[Any]: ...
def element_or_default(
    path: str, definition: type[Definition] | str, *, second: int | None = None
) -> DefaultElement[Any]:
    """
    Declare an element with its own definition; the value is an empty definition if the element is absent.

    Args:
        second: the VIR_ERR_* number that refuses a second element.
    """
    return DefaultElement(path, definition, None, second=second)


@overload
def elements(path: str, definition: type[D], *, since: str | None = ...) -> Elements[D]: ...
@overload
def elements(path: str, definition: str, *, since: str | None = ...) -> Elements[Any]: ...
def elements(path: str, definition: type[Definition] | str, *, since: str | None = None) -> Elements[Any]:
    """Declare a list of elements with their own definitions."""
    return Elements(path, definition, (), since=since)


def inline(definition: type[D]) -> Inline[D]:
    """Declare a definition that shares the owner's element; its fields are read and printed at this position."""
    return Inline(definition)
