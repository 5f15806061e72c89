# SPDX-License-Identifier: LGPL-2.1-or-later
"""The grammar of host devices as a RelaxNG schema, and documents checked against it."""

from __future__ import annotations

import os

from pyhostdev.errors import XMLError
from pyhostdev.util.virxml import parse_document

SCHEMA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "schemas", "hostdev.rng")


def validate_schema(source: str | bytes) -> list[tuple[int, str]]:
    """
    Return what in a document the schema does not allow, as line and sentence; empty when all is well.

    A whole domain can be checked, or one hostdev: elements other than host devices are let through.
    """
    from lxml import etree

    try:
        root = parse_document(source)
    except XMLError as err:
        return [(err.line or 1, str(err))]
    schema = etree.RelaxNG(etree.parse(SCHEMA))
    if schema.validate(root):
        return []
    return [(error.line, f"{error.message}") for error in schema.error_log]
