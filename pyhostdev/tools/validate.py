# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev validate``: check a domain's XML against the schema and the rules, with line numbers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigError
from pyhostdev.tools import arguments, releases
from pyhostdev.tools.main import complain

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.util.finding import Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_file(parser)
    arguments.add_root(parser)
    releases.add_release(parser)


def run(args: argparse.Namespace) -> int:
    """Print every error and every note with its line; return 1 if there is an error."""
    host = arguments.host_of(args)
    data = arguments.read_file(args.file)
    definition, errors = _parsed(data)
    if definition is not None:
        errors = _definition_errors(definition, host, args)
        for finding in _notes(definition, releases.release_of(args, host)):
            complain(f"{args.file}: {_at(finding.line)}note: {finding.message}")
    sentences = _sentences(data, errors)
    for line, sentence in sentences:
        complain(f"{args.file}: {_at(line)}{sentence}")
    return 1 if sentences else 0


def _at(line: int | None) -> str:
    return f"line {line}: " if line else ""


def _parsed(data: bytes) -> tuple[DomainDef | None, list[ConfigError]]:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.unknown_words import with_unknown_words

    try:
        return DomainDef.parse(data), []
    except ConfigError as err:
        return None, with_unknown_words(err)


def _definition_errors(definition: DomainDef, host: Host, args: argparse.Namespace) -> list[ConfigError]:
    """Return the errors of a definition that could be parsed, including those that appear after its defaults."""
    from pyhostdev.conf.domain_validate import validate_all
    from pyhostdev.qemu import define

    errors = validate_all(definition, host)
    try:
        capabilities = releases.capabilities_of(args, definition, host)
        define(definition, capabilities, host, release=releases.release_of(args, host))
    except ConfigError as err:
        errors += [err, *err.others]
    return errors


def _notes(definition: DomainDef, release: LibvirtRelease) -> list[Finding]:
    from pyhostdev.conf.newer_words import dropped_word_notes
    from pyhostdev.conf.unknown_words import kept_words

    words = [*dropped_word_notes(definition, release), *kept_words(definition)]
    return sorted(words, key=lambda word: word.line or 0)


def _sentences(data: bytes, errors: list[ConfigError]) -> list[tuple[int | None, str]]:
    """Return every error once with its line; if a rule and the schema report the same line, keep the clearer rule."""
    from pyhostdev.conf.domain_schema import validate_schema

    lines = {err.line for err in errors}
    first = {(err.line, err.message): err.with_reason for err in reversed(errors)}
    found: list[tuple[int | None, str]] = [(line, text) for (line, _), text in reversed(first.items())]
    found += [(line, text) for line, text in validate_schema(data) if line not in lines]
    return sorted(dict.fromkeys(found), key=lambda error: error[0] or 0)
