# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What differs between the two trees, and whether it comes nearer to libvirt's recorded answers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lines import COLUMNS, Answer, recorded
from servers import Answers, Question

VERDICTS = ("nearer", "farther", "as near", "not recorded")
MISSING = Answer((), ())


class Change(NamedTuple):
    """One answer that differs."""

    question: Question
    base: Answer
    this: Answer
    wanted: tuple[str, ...] | None  # libvirt's answer, None if it was not recorded or is not to be followed

    @property
    def distances(self) -> tuple[int, int] | None:
        """The number of lines that differ from libvirt's answer: before, and now."""
        if self.wanted is None:
            return None
        return distance(self.base.judged, self.wanted), distance(self.this.judged, self.wanted)

    @property
    def verdict(self) -> str:
        """One of ``VERDICTS``."""
        if self.distances is None:
            return "not recorded"
        before, now = self.distances
        return "nearer" if now < before else "farther" if now > before else "as near"

    def difference(self) -> list[str]:
        """Return the lines that differ with one line around them, each marked with ' ', '-' or '+'."""
        return marked(self.base.shown, self.this.shown)

    def remainder(self) -> list[str]:
        """Return what still differs: '-' marks a line that only libvirt has, '+' one that only this tree has."""
        return [] if self.wanted is None else marked(self.wanted, self.this.judged)


class Group(NamedTuple):
    """Answers that differ by the same lines."""

    column: str
    changes: tuple[Change, ...]

    def count(self, verdict: str) -> int:
        """Return the number of answers with a verdict."""
        return sum(change.verdict == verdict for change in self.changes)

    def verdicts(self) -> str:
        """Return the counts of the verdicts as text."""
        return ", ".join(f"{self.count(verdict)} {verdict}" for verdict in VERDICTS if self.count(verdict))


class Comparison(NamedTuple):
    """Everything that the report shows."""

    base: str
    asked: int
    cases: int
    groups: tuple[Group, ...]
    unanswered: tuple[str, ...]  # columns for which one of the trees has no answer
    recordings: dict[tuple[str, str], dict[str, frozenset[str]]]  # case and column: the lines of each release

    def changes(self) -> Iterator[Change]:
        """Yield all answers that differ."""
        for group in self.groups:
            yield from group.changes

    def rows(self) -> Iterator[tuple[str, str, int, dict[str, int]]]:
        """Yield release, column, number of changed answers and number of each verdict, where something changed."""
        table: dict[tuple[str, str], dict[str, int]] = {}
        for change in self.changes():
            counts = table.setdefault((change.question.release, change.question.column), dict.fromkeys(VERDICTS, 0))
            counts[change.verdict] += 1
        for release, column in sorted(table, key=lambda row: (_version(row[0]), COLUMNS.index(row[1]))):
            counts = table[release, column]
            yield release, column, sum(counts.values()), counts

    def holders(self, group: Group, line: str) -> dict[str, bool]:
        """Return for each release that recorded the group's first case whether its answer has a line."""
        question = group.changes[0].question
        found = self.recordings.get((question.case.name, question.column), {})
        return {release: line in lines for release, lines in sorted(found.items(), key=lambda item: _version(item[0]))}


def compare(base: str, before: Answers, now: Answers, judged: Iterable[Question]) -> Comparison:
    """
    Return what differs between the answers of two trees.

    Args:
        judged: questions whose answers by libvirt are wanted.
    """
    wanted = {question: recorded(question.case, question.column) for question in judged}
    changes = []
    unanswered = set()
    for question in sorted(now, key=_order):
        old, new = before.get(question), now[question]
        if old is None or new is None:
            unanswered.add(question.column)
        elif old.shown != new.shown:
            changes.append(Change(question, old, new, wanted.get(question)))
    return Comparison(
        base,
        len(now),
        len({(question.case.folder, question.case.name) for question in now}),
        tuple(_groups(changes)),
        tuple(column for column in COLUMNS if column in unanswered),
        _recordings(wanted, {(change.question.case.name, change.question.column) for change in changes}),
    )


def distance(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Return the number of lines to replace, insert or delete."""
    codes = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    return sum(max(end - begin, to - at) for tag, begin, end, at, to in codes if tag != "equal")


def marked(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return a unified difference without its headers."""
    found = list(difflib.unified_diff(old, new, lineterm="", n=1))[2:]
    return [line for line in found if not line.startswith("@@")]


def _groups(changes: Sequence[Change]) -> Iterator[Group]:
    """Yield the changes by column and lines, the most frequent first."""
    table: dict[tuple[str, ...], list[Change]] = {}
    for change in changes:
        lines = (line for line in change.difference() if not line.startswith(" "))
        table.setdefault((change.question.column, *lines), []).append(change)
    order = sorted(table, key=lambda key: (COLUMNS.index(key[0]), -len(table[key])))
    for key in order:
        yield Group(key[0], tuple(table[key]))


def _recordings(
    wanted: dict[Question, tuple[str, ...] | None], changed: set[tuple[str, str]]
) -> dict[tuple[str, str], dict[str, frozenset[str]]]:
    """Return libvirt's lines for the cases that changed, by release."""
    found: dict[tuple[str, str], dict[str, frozenset[str]]] = {}
    for question, lines in wanted.items():
        key = question.case.name, question.column
        if key in changed and lines is not None:
            found.setdefault(key, {})[question.release] = frozenset(lines)
    return found


def _order(question: Question) -> tuple[int, tuple[int, ...], str]:
    return COLUMNS.index(question.column), _version(question.release), question.case.name


def _version(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))
