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
from pyhostdev.testing.hostbuild import bind_described, build_host, link_described, put_described
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.testing.topology import Topology
from pyhostdev.testing.tree import Tree
from pyhostdev.testing.treefile import check_function, parse_function, parse_host, read_host
from pyhostdev.util.hostroot import HostRoot

if TYPE_CHECKING:
    from pyhostdev.testing.hostspec import HostSpec
    from pyhostdev.testing.simdevice import SimDevice
    from pyhostdev.util.pciaddress import PCIDeviceAddress

HOSTS = os.path.join(os.path.dirname(__file__), "hosts")
_ROOMS = ("dev", "lib", "proc", "run", "sys")
_OWN = "fakehost."  # files of the simulation, which no host has


def named_hosts() -> list[str]:
    """Return the names of the hosts that come with the package."""
    return sorted(name.removesuffix(".tree") for name in os.listdir(HOSTS) if name.endswith(".tree"))


class FakeHost:
    """One fake host; ``root`` is for everything that takes a HostRoot, ``kernel`` is its SysfsWriter."""

    def __init__(self, spec: HostSpec, directory: str | os.PathLike[str]) -> None:
        self.root = HostRoot(directory)
        self.spec = spec
        build_host(self.root, spec)
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

    def add_function(self, line: str) -> SimDevice:
        """
        Plug in a function, from a line of a description; without ``driver=`` it goes to a driver that matches.

        Raises:
            ConfigError: the line is wrong, or there is such a function.
        """
        try:
            spec = parse_function(line)
            check_function(self.spec, spec)
        except ValueError as err:
            raise ConfigError(f"'{line}': {err}") from err
        if os.path.lexists(self.root.pci_device(spec.address)):
            raise ConfigError(f"There is a function at {spec.address}")
        self.spec.functions[spec.address] = spec
        from pyhostdev.testing import hotplug

        topology = Topology(self.spec)
        with self.kernel.entered() as core:
            device = put_described(core.tree, topology, spec)
            link_described(core.tree, topology, self.spec.functions[spec.physfn or spec.address])
            hotplug.forget(core, spec.address)  # what was removed there is not what a rescan finds
            core.tell("add", device)
            if spec.driver is not None:
                bind_described(core, spec)
            elif not spec.nodriver:
                core.attach_new(device)
        return device

    def remove_function(self, address: PCIDeviceAddress) -> None:
        """Pull out a function, with its VFs; nothing brings it back."""
        self.kernel.vanish(address, for_ever=True)
        gone = [a for a, spec in self.spec.functions.items() if address in (a, spec.physfn)]
        for other in gone:
            del self.spec.functions[other]

    def reboot(self) -> None:
        """
        Start the host anew as it was described and changed by add_function() and remove_function().

        Bindings, overrides and dynamic ids are gone, as is ``run``; the boot's id is another one.
        """
        import uuid

        with Tree(self.root) as tree:
            for name in tree.list_dir(self.root.path):
                if name in _ROOMS or name.startswith(_OWN):
                    tree.drop_tree(self.root.join(name))
        self.spec.settings["boot-id"] = str(uuid.uuid4())
        build_host(self.root, self.spec)
        self.kernel = SimulatedKernel(self.root)

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
