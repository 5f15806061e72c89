# SPDX-License-Identifier: LGPL-2.1-or-later
"""Releases of libvirt as values, and the table of their differences."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pyhostdev import ConfigError
from pyhostdev.conf.libvirt_release import CHANGES, DEFAULT_RELEASE, RELEASES, LibvirtRelease
from pyhostdev.qemu.qemu_capabilities import DEFAULT_VERSION, stored_versions

PACKAGE = Path(__file__).parents[2] / "pyhostdev"
# asked, or named where a word is declared or an error is made
ASKED = re.compile(r"""(?:\bhas\(\s*|since=|Renumbering\(\s*|since=\{"[^"]+": |"tdx": )"([a-z0-9-]+)\"""")


@pytest.mark.parametrize(("text", "version"), [("9.0", (9, 0)), ("11.3", (11, 3)), ("12.8.0", (12, 8))])
def test_a_release_is_read_from_its_version(text: str, version: tuple[int, int]) -> None:
    """Two or three numbers name a release; it prints as two."""
    release = LibvirtRelease.parse(text)
    assert (version, ".".join(map(str, version))) == (release.version, str(release))


@pytest.mark.parametrize("text", ["", "9", "9.1", "12.8.1", "latest", "\x1b[31m"])
def test_an_unrecorded_release_is_refused(text: str) -> None:
    """A release without recorded answers is refused."""
    with pytest.raises(ConfigError, match="expected one of 9.0, 11.3, 12.8"):
        LibvirtRelease.parse(text)


@pytest.mark.parametrize(
    ("version", "nearest"),
    [((8, 5), "9.0"), ((9, 0), "9.0"), ((11, 2), "9.0"), ((11, 3), "11.3"), ((12, 0), "11.3"), ((13, 0), "12.8")],
)
def test_any_version_has_a_nearest_release(version: tuple[int, int], nearest: str) -> None:
    """The nearest release is the newest known one that is not newer; else the oldest."""
    assert nearest == str(LibvirtRelease.nearest(version))


def test_releases_are_in_order_and_have_a_stored_qemu() -> None:
    """The newest is the default, and each release has the stored capabilities of its QEMU."""
    assert sorted(RELEASES) == list(RELEASES)
    assert RELEASES[-1] == DEFAULT_RELEASE
    assert DEFAULT_VERSION == DEFAULT_RELEASE.qemu
    assert [release.qemu for release in RELEASES] == stored_versions()


def test_a_release_has_what_came_with_it_and_before() -> None:
    """A row holds for its own release and for all later ones."""
    first = {name: next(r for r in RELEASES if r.has(name)) for name in CHANGES}
    assert {name: change.since for name, change in CHANGES.items()} == {n: r.version for n, r in first.items()}
    assert not any(RELEASES[0].has(name) for name in CHANGES)
    assert all(DEFAULT_RELEASE.has(name) for name in CHANGES)
    with pytest.raises(KeyError):
        DEFAULT_RELEASE.has("no-such-row")


def test_every_row_is_asked_for_and_every_question_has_a_row() -> None:
    """Every row of the table is used, and the code only asks for existing rows."""
    texts = [path.read_text() for path in PACKAGE.rglob("*.py")]
    assert set(CHANGES) == {name for text in texts for name in ASKED.findall(text)}


def test_no_code_compares_releases() -> None:
    """Outside of the table nothing looks at a release's version."""
    for path in PACKAGE.rglob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        versions = [node for node in nodes if node.attr == "version" and "release" in ast.dump(node.value)]
        assert not versions or path.name == "libvirt_release.py", path
