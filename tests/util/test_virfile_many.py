# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many questions at once have the answers of single ones."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyhostdev.errors import SysfsError
from pyhostdev.util import confined
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.virfile import (
    list_all_names,
    list_names,
    read_attribute,
    read_attributes,
    read_link_name,
    read_link_names,
    read_status,
    read_statuses,
)


@pytest.fixture
def root(tmp_path: Path) -> HostRoot:
    """A directory with files, links inside and outside, and nothing else."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one").write_text("1\n")
        (tmp_path / name / "two").symlink_to("one")
        (tmp_path / name / "away").symlink_to("/etc/passwd")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("inside\n")
    return HostRoot(tmp_path)


def paths(root: HostRoot, *names: str) -> list[str]:
    return [root.join(f"{top}/{name}") for top in ("a", "b", "nowhere") for name in names]


def test_answers_are_those_of_single_questions(root: HostRoot) -> None:
    """Of what is there, absent, a link, and a link that would lead out of the root."""
    files = paths(root, "one", "two", "away", "absent")
    assert [read_attribute(root, path) for path in files] == read_attributes(root, files)
    assert "inside" == read_attributes(root, files)[2]
    single = [read_status(root, path) for path in files]
    assert [found and found.st_ino for found in single] == [
        found and found.inode for found in read_statuses(root, files)
    ]
    links = paths(root, "two", "away", "absent")
    assert [read_link_name(root, path) for path in links] == read_link_names(root, links)
    tops = [root.join(top) for top in ("a", "b", "nowhere")]
    assert [sorted(list_names(root, top)) for top in tops] == [sorted(names) for names in list_all_names(root, tops)]


def test_no_question_has_no_answer(root: HostRoot) -> None:
    """Nothing is opened for it."""
    assert [] == read_statuses(root, [])
    assert [] == read_attributes(root, [])
    assert [] == list_all_names(root, [])


def test_first_failure_is_raised(root: HostRoot) -> None:
    """A directory is not a file, a file is not a link, and a listing may have too many names."""
    with pytest.raises(SysfsError) as failed:
        read_attributes(root, [root.join("a/one"), root.join("a")])
    assert (errno.EISDIR, root.join("a")) == (failed.value.errno, failed.value.filename)
    with pytest.raises(SysfsError) as failed:
        read_link_names(root, paths(root, "one"))
    assert errno.EINVAL == failed.value.errno
    with pytest.raises(SysfsError) as failed:
        list_all_names(root, [root.join("a")], limit=2)
    assert errno.EFBIG == failed.value.errno
    os.mkfifo(root.join("a/fifo"))
    with pytest.raises(SysfsError) as failed:
        read_attributes(root, paths(root, "fifo"))
    assert errno.EINVAL == failed.value.errno


def test_answers_that_do_not_fit_are_asked_again(root: HostRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory for answers is small, and grows for one that is larger."""
    for number in range(3000):
        Path(root.join("b"), f"name-{number:050}").touch()
    monkeypatch.setattr(confined, "_ROOM", 4096)
    names = list_all_names(root, [root.join("a"), root.join("b"), root.join("a")])
    assert [3, 3003, 3] == [len(found) for found in names]
    text = "x" * 60_000
    for top in ("a", "b"):
        Path(root.join(top), "one").write_text(text)
    assert [text, text, None] == read_attributes(root, paths(root, "one"))
