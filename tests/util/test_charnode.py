# SPDX-License-Identifier: LGPL-2.1-or-later
"""A path in a definition is opened with root's privileges only if it is the expected kind of device."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyhostdev.errors import OperationError
from pyhostdev.util.charnode import is_tun, is_vhost_net, open_character_device


def test_a_device_of_the_expected_kind_is_opened() -> None:
    """The descriptor refers to the node, and other programs do not inherit it."""
    fd = open_character_device("/dev/null", "nothing", lambda major, minor: (major, minor) == (1, 3))
    try:
        assert (True, False) == (stat.S_ISCHR(os.fstat(fd).st_mode), os.get_inheritable(fd))
    finally:
        os.close(fd)


@pytest.mark.parametrize("is_expected", [is_tun, is_vhost_net])
def test_another_device_is_not_opened(is_expected: object) -> None:
    """A device of another kind is refused: root could open it, and QEMU would inherit it."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OperationError, match="another kind of file"):
        open_character_device("/dev/null", "vhost-net", is_expected)  # type: ignore[arg-type]
    assert before == os.listdir("/proc/self/fd")


def test_a_file_is_not_opened(tmp_path: Path) -> None:
    """A regular file is refused; for a missing one, the kernel's error is reported."""
    (tmp_path / "file").touch()
    for name, words in (("file", "another kind of file"), ("absent", "No such file")):
        with pytest.raises(OperationError, match=words):
            open_character_device(str(tmp_path / name), "vhost-net", lambda _major, _minor: True)
