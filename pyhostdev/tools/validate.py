# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev validate``: check a domain's XML against the schema and the rules, with line numbers."""

from __future__ import annotations

import argparse

from pyhostdev.errors import ConfigError
from pyhostdev.tools import arguments
from pyhostdev.tools.main import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_file(parser)
    arguments.add_root(parser)


def run(args: argparse.Namespace) -> int:
    """Print every error with its line; 1 when there is one."""
    host = arguments.host_of(args)
    errors = _errors(arguments.read_file(args.file), host)
    for line, sentence in errors:
        where = f"line {line}: " if line else ""
        complain(f"{args.file}: {where}{sentence}")
    return 1 if errors else 0


def _errors(data: bytes, host: object) -> list[tuple[int | None, str]]:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.domain_validate import validate_all, validate_schema

    try:
        errors = list(validate_schema(data))
        definition = DomainDef.parse(data)
    except ConfigError as err:
        return _once([*locals().get("errors", []), (err.line, _sentence(err))])
    return _once(errors + [(err.line, _sentence(err)) for err in validate_all(definition, host)])
