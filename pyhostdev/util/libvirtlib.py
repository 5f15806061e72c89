# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The version of the libvirt that is installed on a host, from the name of its library.

The daemon is not asked: it may not be running.
"""

from __future__ import annotations

import os
import re

from pyhostdev.util.typed import TYPE_CHECKING
from pyhostdev.util.virfile import list_names, read_link_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.util.hostroot import HostRoot

_LIBRARY = r"libvirt\.so\.0\.(\d{1,6})\.(\d{1,3})"
_TRIPLET = "-linux-"  # of a directory of Debian's architectures, such as x86_64-linux-gnu

Version = tuple[int, int, int]


def parse_library_name(name: str) -> Version | None:
    """
    Return the version in the file name of libvirt's library; None for any other name.

    Source: libtool's version information of libvirt is 1000 * major + minor, and micro
    """
    match = re.fullmatch(_LIBRARY, name)
    if match is None:
        return None
    number, micro = map(int, match.groups())
    return (*divmod(number, 1000), micro)


def read_installed_libvirt(root: HostRoot) -> Version | None:
    """
    Return the version of a host's libvirt, the newest of several; None if the host has none.

    Raises:
        SysfsError: a directory of libraries exists but cannot be read.

    Host: usr/lib64, usr/lib, usr/lib/TRIPLET: libvirt.so.0, a link to the library
    """
    found = (read_link_name(root, path) for path in library_links(root))
    versions = (parse_library_name(name) for name in found if name is not None)
    return max((version for version in versions if version is not None), default=None)


def library_links(root: HostRoot) -> Iterator[str]:
    """
    Yield the paths where a distribution installs libvirt's library.

    Raises:
        SysfsError: a directory of libraries exists but cannot be read.
    """
    directories = root.library_directories
    yield from (os.path.join(directory, "libvirt.so.0") for directory in directories)
    for directory in directories:
        triplets = (name for name in list_names(root, directory) if _TRIPLET in name)
        yield from (os.path.join(directory, name, "libvirt.so.0") for name in triplets)
