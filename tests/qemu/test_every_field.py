# SPDX-License-Identifier: LGPL-2.1-or-later
"""No field of a definition is silently ignored: each is built, refused, reported or explained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fieldreads import FieldName, below, by_kind, defined_corpus, definitions, fields, is_read_when_set, read_fields

from pyhostdev import DomainDef
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import Field, Inline, Opaque
from pyhostdev.qemu.qemu_command.elsewhere import ELSEWHERE
from pyhostdev.qemu.qemu_command.ignored import IGNORED, REFUSED_BY_START
from pyhostdev.qemu.qemu_command.refused import REFUSED

TABLES: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "REFUSED": REFUSED,
    "REFUSED_BY_START": REFUSED_BY_START,
    "IGNORED": IGNORED,
    "ELSEWHERE": ELSEWHERE,
}


@pytest.fixture(scope="module")
def corpus() -> list[DomainDef]:
    return defined_corpus()


@pytest.fixture(scope="module")
def read(corpus: list[DomainDef]) -> set[FieldName]:
    return {name for dom in corpus for name in read_fields(dom)}


def in_tables(*names: str) -> set[FieldName]:
    return {(kind, name) for table in names or TABLES for kind, rows in TABLES[table].items() for name in rows}


def is_unit(kind: type[ElementDef], name: str) -> bool:
    """A unit is read together with its number, which has its own row."""
    return name.endswith("_unit") and isinstance(kind.own_fields.get(name.removesuffix("_unit")), Field)


def refused_as_kept(field: Field[Any]) -> bool:
    """Elements kept verbatim are refused together with unknown ones."""
    return isinstance(field, Opaque) and not field.for_host


def test_every_field_is_read_by_a_builder_or_in_a_table(corpus: list[DomainDef], read: set[FieldName]) -> None:
    """
    A field has a value in some domain, and the build of that domain reads it; else a table names its treatment.

    Reads are traced, not guessed from the text of the builders: parsing, defaults and validation do not count.
    """
    told, domains = in_tables(), by_kind(corpus)
    silent = [
        f"{kind.__name__}.{name}"
        for kind in definitions()
        for name, field in fields(kind)
        if (kind.__name__, name) not in told | read and not refused_as_kept(field) and not is_unit(kind, name)
        if not is_read_when_set(kind, name, field, domains.get(kind, []))
    ]
    assert [] == silent


def test_the_trace_sees_what_is_not_read(corpus: list[DomainDef], read: set[FieldName]) -> None:
    """The guard itself: it sees fields that are built, and no field that is only present in the domains."""
    set_somewhere = {name for dom in corpus for part in below(dom) for name in part.__dict__}
    assert {("DomainDiskDef", "serial"), ("DomainFields", "vcpus"), ("CPUFeature", "policy")} <= read
    assert {"snapshot", "cputune", "stats_period"} & set_somewhere
    unbuilt = {("DomainFields", "cputune"), ("DomainFields", "title"), ("DomainMemballoonDef", "stats_period")}
    assert set() == unbuilt & read


def test_refused_fields_are_of_elements() -> None:
    """Fields are refused in the definitions of elements, not in those that share an element with another."""
    inlined = (
        f.definition.__name__ for kind in definitions() for f in kind.own_fields.values() if isinstance(f, Inline)
    )
    assert set() == REFUSED.keys() & set(inlined)


def test_tables_are_true(read: set[FieldName]) -> None:
    """No field in a table is built, and no field is in two tables without conditions."""
    assert set() == in_tables("ELSEWHERE", "REFUSED") & read
    assert set() == in_tables("ELSEWHERE") & in_tables("REFUSED", "REFUSED_BY_START", "IGNORED")


def test_tables_name_fields() -> None:
    """Every rule names an existing field."""
    kinds = {kind.__name__: kind for kind in definitions()}
    fields = {(kind, name) for kind in kinds for name in kinds[kind].declared()}
    assert set() == in_tables() - fields


def test_what_is_said_to_the_host_is_in_a_table() -> None:
    """An element that the command line neither builds nor refuses has a row with its treatment."""
    told = in_tables("REFUSED_BY_START", "IGNORED", "ELSEWHERE")
    loose = {
        (kind.__name__, name)
        for kind in definitions()
        for name, field in fields(kind)
        if isinstance(field, Opaque) and field.for_host
    } - told
    assert set() == loose


def test_words_is_a_domain_of_many_words() -> None:
    """The domain that provides definitions for the trace is valid, and all its attributes and elements are known."""
    dom = DomainDef.parse((Path(__file__).parent.parent.parent / "testdata/qemu/words.xml").read_bytes())
    assert [] == dom.unmodelled()
