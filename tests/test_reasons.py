# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reasons that the code gives and the table that explains them are the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parent.parent
GIVES = {"Finding", "Use", "_error"}  # their first argument is a reason


def rows() -> dict[str, str]:
    """Return the table's severities by reason."""
    lines = (TOP / "docs/reasons.md").read_text().splitlines()
    return dict(found.groups() for line in lines if (found := re.match(r"\| `([a-z0-9-]+)` \| (\w+) \|", line)))  # type: ignore[misc]


def given() -> Iterator[str]:
    """Yield the reasons in the code: of what is made with one, and of what is named so."""
    for path in (TOP / "pyhostdev").rglob("*.py"):
        if "testing" not in path.parts:
            for node in ast.walk(ast.parse(path.read_text())):
                for part in parts(node):
                    yield from literals(part)


def literals(expression: ast.expr) -> list[str]:
    """Return the texts an expression can be."""
    if isinstance(expression, ast.IfExp):
        return literals(expression.body) + literals(expression.orelse)
    if isinstance(expression, ast.Tuple):
        return [text for item in expression.elts for text in literals(item)]
    return [str(expression.value)] if isinstance(expression, ast.Constant) and expression.value else []


def parts(node: ast.AST) -> list[ast.expr]:
    """Return the expressions of a node that can only be a reason."""
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        first = node.args[:1] if name in GIVES else []
        return [*first, *(k.value for k in node.keywords if k.arg == "reason")]
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "reason":
        return [node.value]
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
        names = [getattr(target, "id", "") for target in node.targets[0].elts]
        return [node.value] if "BOOT_VGA" in names else []
    return []


def test_table_of_reasons_is_what_the_code_gives() -> None:
    """Every reason is explained, and nothing is explained that is never said."""
    assert sorted(rows()) == sorted(set(given()))


def test_consents_are_those_that_can_be_given() -> None:
    """What the table says can be accepted is what the command line and a plan take."""
    from pyhostdev.hypervisor.hostdev_checks import CONSENT_REASONS

    assert sorted(CONSENT_REASONS) == sorted(reason for reason, severity in rows().items() if severity == "consent")
