# SPDX-License-Identifier: LGPL-2.1-or-later
"""The comparison as one page of HTML that needs no other file; all text in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from comparison import VERDICTS, Change, Comparison, Group
from report import name_of, spaced, summary, title_of

CASES_MAX = 40  # cases of a group whose domain and remaining difference are on the page

_STYLE = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 110em; padding: 0 1em }
table { border-collapse: collapse } th, td { padding: .1em .7em; text-align: left }
table.lines { width: 100% } .lines td { font: 13px/1.4 monospace; white-space: pre-wrap; word-break: break-all }
.lines td.mark { width: 3em; white-space: nowrap; text-align: center; color: #555 }
.add { background: #e2f5e2 } .del { background: #fbe3e3 } pre { white-space: pre-wrap; word-break: break-all }
.nearer { color: #176b17 } .farther { color: #b01818 } summary { cursor: pointer }
"""
_CLASS = {"+": "add", "-": "del", " ": ""}


def page_of(found: Comparison) -> str:
    """Return the page."""
    head = f"<meta charset='utf-8'><title>pyhostdev prototype</title><style>{_STYLE}</style>"
    parts = [f"<h1>{escape(summary(found))}</h1>", *_unanswered(found), *_table(found)]
    parts += [part for group in found.groups for part in _group(found, group)]
    return f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"


def _unanswered(found: Comparison) -> Iterator[str]:
    if found.unanswered:
        yield f"<p>Not compared, as one of the trees does not answer: {escape(', '.join(found.unanswered))}.</p>"


def _table(found: Comparison) -> Iterator[str]:
    if not found.groups:
        return
    yield "<table>" + _cells("th", ("libvirt", "column", "changed", *VERDICTS))
    for release, column, changed, counts in found.rows():
        yield _cells("td", (release, column, changed, *(counts[verdict] for verdict in VERDICTS)))
    yield "</table>"


def _cells(tag: str, words: Iterable[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(word))}</{tag}>" for word in words) + "</tr>"


def _group(found: Comparison, group: Group) -> Iterator[str]:
    yield f"<h2>{escape(title_of(group))}</h2>"
    releases = list(found.holders(group, ""))
    yield "<table class='lines'>" + _cells("th", [*(f"libvirt {release}" for release in releases), ""])
    for line in group.changes[0].difference():
        yield _line(line, found.holders(group, line[1:]).values())
    yield "</table>"
    for change in group.changes[:CASES_MAX]:
        yield from _case(change)
    rest = group.changes[CASES_MAX:]
    if rest:
        names = ", ".join(map(name_of, rest))
        yield f"<details><summary>{len(rest)} more</summary><p>{escape(names)}</p></details>"


def _line(line: str, holders: Iterable[bool]) -> str:
    marks = "".join(f"<td class='mark'>{'=' if has else '·'}</td>" for has in holders)
    return f"<tr class='{_CLASS[line[0]]}'>{marks}<td>{escape(spaced(line))}</td></tr>"


def _case(change: Change) -> Iterator[str]:
    """Yield one domain: its XML, and what still differs from libvirt's answer."""
    verdict = escape(change.verdict)
    yield f"<details><summary class='{verdict}'>{escape(name_of(change))}: {verdict}</summary>"
    yield f"<pre>{escape(change.question.case.file('.xml').read_text(errors='replace'))}</pre>"
    remainder = change.remainder()
    if remainder:
        yield "<p>What differs from libvirt's answer now (-: only libvirt's, +: only this tree's):</p>"
        yield "<table class='lines'>"
        yield from (_line(line, ()) for line in remainder)
        yield "</table>"
    yield "</details>"
