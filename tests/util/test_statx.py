# SPDX-License-Identifier: LGPL-2.1-or-later
"""Device numbers, read without a request to a file server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyhostdev.util.statx import read_device_number


@pytest.mark.parametrize("name", ["/dev/null", "/dev/zero", "/dev/full"])
def test_number_is_what_stat_says(name: str) -> None:
    """Major and minor are those of st_rdev."""
    assert os.stat(name).st_rdev == read_device_number(name)


def test_other_files_have_none(tmp_path: Path) -> None:
    """Files and directories are not devices; a missing file is an error with its errno."""
    (tmp_path / "file").write_text("")
    assert [None, None] == [read_device_number(str(path)) for path in (tmp_path, tmp_path / "file")]
    with pytest.raises(FileNotFoundError):
        read_device_number(str(tmp_path / "none"))
