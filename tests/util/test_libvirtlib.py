# SPDX-License-Identifier: LGPL-2.1-or-later
"""The version of a host's libvirt, from the name of its library."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhostdev import HostRoot
from pyhostdev.util.libvirtlib import parse_library_name, read_installed_libvirt


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("libvirt.so.0.9000.0", (9, 0, 0)),
        ("libvirt.so.0.11003.2", (11, 3, 2)),
        ("libvirt.so.0.12008.0", (12, 8, 0)),
        ("libvirt.so.0", None),
        ("libvirt-qemu.so.0.9000.0", None),
        ("libvirt.so.0.9000.0.bak", None),
        ("libvirt.so.0.99999999.0", None),
    ],
)
def test_the_name_of_the_library_has_the_version(name: str, version: tuple[int, int, int] | None) -> None:
    """The thousands are the major number; any other name has no version."""
    assert version == parse_library_name(name)


@pytest.mark.parametrize("directory", ["usr/lib64", "usr/lib", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"])
def test_the_library_is_found_where_distributions_have_it(directory: str, tmp_path: Path) -> None:
    """The target of the library's link has the version; the newest of several counts."""
    (tmp_path / directory).mkdir(parents=True)
    assert None is read_installed_libvirt(HostRoot(tmp_path))
    (tmp_path / directory / "libvirt.so.0").symlink_to("libvirt.so.0.11003.0")
    assert (11, 3, 0) == read_installed_libvirt(HostRoot(tmp_path))
    (tmp_path / "usr/lib/powerpc64le-linux-gnu").mkdir(parents=True)
    (tmp_path / "usr/lib/powerpc64le-linux-gnu/libvirt.so.0").symlink_to("libvirt.so.0.9007.0")
    assert (11, 3, 0) == read_installed_libvirt(HostRoot(tmp_path))


def test_a_library_that_says_no_version_counts_as_absent(tmp_path: Path) -> None:
    """A link to anything else counts as an absent library."""
    (tmp_path / "usr/lib64").mkdir(parents=True)
    (tmp_path / "usr/lib64/libvirt.so.0").symlink_to("/somewhere/else")
    assert None is read_installed_libvirt(HostRoot(tmp_path))
