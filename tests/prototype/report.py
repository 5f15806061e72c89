# SPDX-License-Identifier: LGPL-2.1-or-later
"""The comparison as text."""

from __future__ import annotations

from collections.abc import Iterator

from comparison import VERDICTS, Change, Comparison, Group

NAMES_MAX = 6  # cases that are named for each group


def text_of(found: Comparison) -> str:
    """Return the summary, then each group of equal differences."""
    lines = [summary(found), *_unanswered(found)]
    if found.groups:
        lines += ["", *_table(found)]
    for group in found.groups:
        lines += ["", *_group(found, group)]
    return "\n".join(lines) + "\n"


def summary(found: Comparison) -> str:
    """Return the result in one sentence."""
    changed = sum(1 for _ in found.changes())
    verdict = f"{changed} differ" if changed else "all are equal"
    return f"This tree against {found.base}: {found.asked} answers about {found.cases} domains, {verdict}"


def _unanswered(found: Comparison) -> Iterator[str]:
    if found.unanswered:
        yield f"not compared, as one of the trees does not answer: {', '.join(found.unanswered)}"


def _table(found: Comparison) -> Iterator[str]:
    yield _row("libvirt", "column", "changed", *VERDICTS)
    for release, column, changed, counts in found.rows():
        yield _row(release, column, str(changed), *(str(counts[verdict]) for verdict in VERDICTS))


def _row(*words: str) -> str:
    return "".join(f"{word:<14}" for word in words).rstrip()


def _group(found: Comparison, group: Group) -> Iterator[str]:
    yield f"== {title_of(group)}"
    for change in group.changes[:NAMES_MAX]:
        yield f"   {name_of(change)}"
    if len(group.changes) > NAMES_MAX:
        yield f"   and {len(group.changes) - NAMES_MAX} more"
    yield from _difference(found, group)


def title_of(group: Group) -> str:
    """Return column, number of answers and number of each verdict."""
    count = len(group.changes)
    return f"{group.column}: {count} {'answer' if count == 1 else 'answers'} ({group.verdicts()})"


def name_of(change: Change) -> str:
    """Return release and case, and how far from libvirt's answer it was and is."""
    text = f"{change.question.release} {change.question.case.name}"
    if change.distances is None:
        return text
    before, now = change.distances
    return f"{text}: {now} lines differ from libvirt's, {before} before" if before != now else text


def spaced(line: str) -> str:
    """Return a marked line with its mark apart: options begin with a dash, too."""
    return f"{line[0]} {line[1:]}"


def _difference(found: Comparison, group: Group) -> Iterator[str]:
    """Yield the lines of the first case; before each, a mark for each release of libvirt that has or lacks it."""
    releases = list(found.holders(group, ""))
    if releases:
        yield f"   in the answer of libvirt {' '.join(releases)}"
    for line in group.changes[0].difference():
        holders = found.holders(group, line[1:])
        marks = " ".join(f"{'=' if has else '.':^{len(release)}}" for release, has in holders.items())
        yield f"   {marks + '  ' if marks else ''}{spaced(line)}"
