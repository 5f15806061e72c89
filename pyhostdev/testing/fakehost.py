# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Fake hosts: a directory made from a description, and the kernel that reacts in it.

    host = FakeHost.named("bcm5719", tmp_path)
    host.kernel.write(path, b"0001:09:00.0", device=address)
    assert before == host.snapshot()
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigError
from pyhostdev.testing.hostbuild import HostBuilder
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.testing.treefile import parse_host, read_host
from pyhostdev.util.hostroot import HostRoot

if TYPE_CHECKING:
    from pyhostdev.testing.treefile import HostSpec

HOSTS = os.path.join(os.path.dirname(__file__), "hosts")
_OWN = "fakehost."  # files of the simulation, which no host has


def named_hosts() -> list[str]:
    """Return the names of the hosts that come with the package."""
    return sorted(name.removesuffix(".tree") for name in os.listdir(HOSTS) if name.endswith(".tree"))


class FakeHost:
    """One fake host; ``root`` is for everything that takes a HostRoot, ``kernel`` is its SysfsWriter."""

    def __init__(self, spec: HostSpec, directory: str | os.PathLike[str]) -> None:
        self.root = HostRoot(directory)
        self.spec = spec
        HostBuilder(self.root, spec).build()
        self.kernel = SimulatedKernel(self.root)

    def __repr__(self) -> str:
        return f"<FakeHost {self.spec.name} in {self.root.path}>"

    @classmethod
    def from_tree(cls, tree: str | os.PathLike[str], directory: str | os.PathLike[str]) -> FakeHost:
        """
        Build a host from a description: its text, when that has a newline, else the path of its file.

        Raises:
            ConfigError: the description is wrong; its line is named.
            FileExistsError: the directory holds a host already.
        """
        if isinstance(tree, str) and "\n" in tree:
            return cls(parse_host(tree), directory)
        return cls(read_host(tree), directory)

    @classmethod
    def named(cls, name: str, directory: str | os.PathLike[str]) -> FakeHost:
        """
        Build one of the hosts that come with the package.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in named_hosts():
            raise ConfigError(f"No host is called '{name}': there are {', '.join(named_hosts())}")
        return cls(read_host(os.path.join(HOSTS, f"{name}.tree")), directory)

    def snapshot(self, *, books: bool = False) -> dict[str, bytes | str | None]:
        """
        Return the whole tree: a file's bytes, a link's target, None for a directory.

        Args:
            books: include run, where managers keep their state.
        """
        return snapshot_tree(self.root.path, skip=() if books else ("run",))


def snapshot_tree(directory: str, *, skip: tuple[str, ...] = ()) -> dict[str, bytes | str | None]:
    """Return every file, link and directory below a directory but the simulation's own, and ``skip`` at its top."""
    found: dict[str, bytes | str | None] = {}
    top = [n for n in sorted(os.listdir(directory)) if n not in skip and not n.startswith(_OWN)]
    todo = list(reversed(top))
    while todo:
        name = todo.pop()
        path = os.path.join(directory, name)
        if os.path.islink(path):
            found[name] = os.readlink(path)
        elif os.path.isdir(path):
            found[name] = None
            todo += [f"{name}/{entry}" for entry in sorted(os.listdir(path), reverse=True)]
        else:
            with open(path, "rb") as file:
                found[name] = file.read()
    return found
