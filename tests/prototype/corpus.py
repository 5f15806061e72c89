# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The domains that both trees are asked about: folders of NAME.xml, with a host and libvirt's answers if they lie there.

A folder needs nothing but XML. Its host is ``host.tree`` or ``host.json`` in the folder or in one of the two above it,
else that of testdata/oracle. Answers were recorded by the release that the path names: ``oracle-12.8``, or ``oracle``
for 9.0. A folder with an ``index.json`` is asked about as that release only, any other as every release.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trees import TOP

from pyhostdev.conf.libvirt_release import RELEASES
from pyhostdev.testing.fakehost import FakeHost

OWN = TOP / "testdata" / "oracle"
EVERY_RELEASE = tuple(map(str, RELEASES))
_RECORDED = re.compile(r"oracle(?:-(\d+\.\d+))?")
_DISK = re.compile(r"<source dev='/(dev/[^']*)'")


class CorpusError(Exception):
    """A folder cannot be used; the message is one sentence."""


class Case(NamedTuple):
    """One domain: the XML, and files beside it that begin with its name."""

    name: str
    folder: Path

    def file(self, suffix: str) -> Path:
        """Return the path of a file that belongs to the case, which may not exist."""
        return self.folder / f"{self.name}{suffix}"

    def questions(self) -> Iterator[tuple[str, str]]:
        """Yield what is asked: the kind of the question, and the file that it needs or an empty text."""
        yield from (("xml", ""), ("argv", ""), ("plan", ""))
        yield "start", str(self.file(".first")) if self.file(".first").exists() else ""
        for kind in ("edit", "live"):
            if self.file(f".{kind}").exists():
                yield kind, str(self.file(f".{kind}"))


class Folder(NamedTuple):
    """Domains of one host."""

    path: Path
    host: Path
    recorded: str | None  # the release whose answers lie there
    releases: tuple[str, ...]  # as which both trees are asked
    cases: tuple[Case, ...]
    beyond: tuple[re.Pattern[str], ...] = ()  # XML whose answers are meant to differ from libvirt's

    def is_judged(self, case: Case) -> bool:
        """Tell whether libvirt's answers are wanted for a case."""
        text = case.file(".xml").read_text(encoding="utf-8", errors="replace")
        return not any(pattern.search(text) for pattern in self.beyond)

    def build_host(self, directory: Path) -> None:
        """
        Write the host below a directory, with the disks of the domains that libvirt could start.

        Raises:
            CorpusError: the program that reads host.json is not there.
        """
        if self.host.suffix == ".tree":
            FakeHost.from_tree(self.host, directory)
        else:
            program = _beside(self.host.parent, "fakesys.py")
            if program is None:
                raise CorpusError(f"There is no fakesys.py beside {self.host}, which makes a host of it")
            subprocess.run([sys.executable, str(program), str(self.host), str(directory)], check=True)
        for case in self.cases:
            _write_disks(case, directory)


def read_folder(path: Path, wanted: re.Pattern[str] | None = None) -> Folder:
    """
    Return the domains in a folder, only those whose names match if a pattern is given.

    Raises:
        CorpusError: the folder does not exist or has no domain.
    """
    path = path.resolve()
    names = sorted(file.stem for file in path.glob("*.xml") if not file.stem.endswith(".out"))
    if not names:
        raise CorpusError(f"There is no domain (NAME.xml) in {path}")
    index = _index(path)
    recorded = _recorded_release(path)
    crashed = {name for name, facts in index.items() if facts.get("crash")}
    return Folder(
        path,
        _host(path),
        recorded,
        (recorded,) if index and recorded else EVERY_RELEASE,
        tuple(Case(name, path) for name in names if name not in crashed and (wanted is None or wanted.search(name))),
        tuple(_beyond(path)),
    )


def _index(path: Path) -> dict[str, dict[str, Any]]:
    file = path / "index.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _recorded_release(path: Path) -> str | None:
    for part in reversed(path.resolve().parts):
        match = _RECORDED.fullmatch(part)
        if match is not None:
            return match[1] or EVERY_RELEASE[0]
    return None


def _host(path: Path) -> Path:
    for folder in (path, path.parent, path.parent.parent):
        for name in ("host.tree", "host.json"):
            if (folder / name).exists():
                return folder / name
    return OWN / "host.tree"


def _beyond(path: Path) -> Iterator[re.Pattern[str]]:
    file = _beside(path, "beyond.json")
    for row in json.loads(file.read_text()) if file is not None else ():
        yield re.compile(row["xml"])


def _beside(folder: Path, name: str) -> Path | None:
    """Return a file in a folder, in the two above it, or in a folder ``oracle`` beside any of them."""
    above = (folder, folder.parent, folder.parent.parent)
    places = [*above, *(place.parent / "oracle" for place in above)]
    return next((place / name for place in places if (place / name).exists()), None)


def _write_disks(case: Case, directory: Path) -> None:
    """Write the block devices that libvirt found when it started the domain."""
    start = case.file(".start.json")
    if not start.exists() or json.loads(start.read_text())["error"] is not None:
        return
    for name in _DISK.findall(case.file(".xml").read_text()):
        disk = directory / name
        disk.parent.mkdir(parents=True, exist_ok=True)
        disk.touch()
