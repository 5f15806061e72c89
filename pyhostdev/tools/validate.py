# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev validate``: check a domain's XML against the schema and the rules, with line numbers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigError
from pyhostdev.tools import arguments
from pyhostdev.tools.main import complain

if TYPE_CHECKING:
    from pyhostdev.hypervisor.host import Host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_file(parser)
    arguments.add_root(parser)
    arguments.add_capabilities(parser)


def run(args: argparse.Namespace) -> int:
    """Print every error with its line; 1 when there is one."""
    host = arguments.host_of(args)
    errors = _errors(arguments.read_file(args.file), host, args)
    for line, sentence in errors:
        where = f"line {line}: " if line else ""
        complain(f"{args.file}: {where}{sentence}")
    return 1 if errors else 0


def _errors(data: bytes, host: Host, args: argparse.Namespace) -> list[tuple[int | None, str]]:
    """Return every error with its line; where a rule and the schema speak of one line, the rule is clearer."""
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.domain_validate import validate_all, validate_schema
    from pyhostdev.qemu import define

    try:
        definition = DomainDef.parse(data)
        errors = validate_all(definition, host)
        if not errors:
            define(definition, arguments.capabilities_of(args, definition, host), host)
    except ConfigError as err:
        errors = [err, *err.others]
    lines = {err.line for err in errors}
    found: list[tuple[int | None, str]] = [(err.line, err.with_reason) for err in errors]
    found += [(line, text) for line, text in validate_schema(data) if line not in lines]
    return sorted(dict.fromkeys(found), key=lambda error: error[0] or 0)
