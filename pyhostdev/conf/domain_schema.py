# SPDX-License-Identifier: LGPL-2.1-or-later
"""Check documents against the RelaxNG schema of host devices."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING

from lxml import etree

from pyhostdev.conf.hostdev_conf import misplaced_assigned
from pyhostdev.conf.schema_words import explain
from pyhostdev.errors import XMLError
from pyhostdev.util.virxml import parse_document, source_line

if TYPE_CHECKING:
    from pyhostdev.util.virxml import Element

NODES_MAX = 1000  # elements in one <hostdev>; the longest that libvirt prints has about 30
SCHEMA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "schemas", "hostdev.rng")


def validate_schema(source: str | bytes) -> list[tuple[int, str]]:
    """
    Return the schema errors of a document as (line, sentence); empty if it is valid.

    The document is a domain or one hostdev; elements other than host devices are not checked.
    """
    try:
        root = parse_document(source)
    except XMLError as err:
        return [(err.line or 1, str(err))]
    errors = [(error.line or 1, str(error)) for error in misplaced_assigned(root)]
    hostdevs = list(root.iter("hostdev"))
    schema = _schema() if hostdevs else None
    for hostdev in hostdevs:
        errors += _hostdev_errors(schema, hostdev)
    return errors


def _schema() -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(SCHEMA))


def _hostdev_errors(schema: etree.RelaxNG, hostdev: Element) -> list[tuple[int, str]]:
    """
    Check one host device separately.

    In a whole document the validator tries every alternative, reports the root, and takes quadratic time.
    """
    line = source_line(hostdev) or 1
    if sum(1 for _ in hostdev.iter()) > NODES_MAX:
        return [(line, f"A <hostdev> has more than {NODES_MAX} elements")]
    if schema.validate(copy.deepcopy(hostdev)):
        return []
    return explain(schema.validate, hostdev)
