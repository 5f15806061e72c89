# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Fake hosts: a directory built from a description, and the kernel that reacts in it.

    host = FakeHost.named("bcm5719", tmp_path)
    host.kernel.write(path, b"0001:09:00.0", device=address)
    assert before == host.snapshot()
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigError
from pyhostdev.testing.hostbuild import (
    bind_described,
    build_host,
    build_once,
    link_described,
    put_described,
)
from pyhostdev.testing.kernel import SimulatedKernel
from pyhostdev.testing.topology import Topology
from pyhostdev.testing.tree import Tree
from pyhostdev.testing.treefile import check_function, parse_function, parse_host, read_host
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyhostdev import Host
    from pyhostdev.testing.hostspec import HostSpec
    from pyhostdev.testing.simdevice import SimDevice

HOSTS = os.path.join(os.path.dirname(__file__), "hosts")
_ROOMS = ("dev", "lib", "proc", "run", "sys")
_OWN = "fakehost."  # prefix of the simulation's own files, which a real host does not have


def named_hosts() -> list[str]:
    """Return the names of the hosts included in the package."""
    return sorted(name.removesuffix(".tree") for name in os.listdir(HOSTS) if name.endswith(".tree"))


class FakeHost:
    """One fake host; pass ``root`` to anything that takes a HostRoot; ``kernel`` is its SysfsWriter."""

    def __init__(
        self,
        spec: HostSpec,
        directory: str | os.PathLike[str],
        *,
        build: Callable[[HostRoot, HostSpec], None] = build_host,
    ) -> None:
        self.root = HostRoot(directory)
        self.spec = spec
        build(self.root, spec)
        self.kernel = SimulatedKernel(self.root)

    def __repr__(self) -> str:
        return f"<FakeHost {self.spec.name} in {self.root.path}>"

    @classmethod
    def from_tree(cls, tree: str | os.PathLike[str], directory: str | os.PathLike[str]) -> FakeHost:
        """
        Build a host from a description: from its text if that contains a newline, else from the file at that path.

        Raises:
            ConfigError: the description is invalid; the message names its line.
            FileExistsError: the directory already holds a host.
        """
        spec = parse_host(tree) if isinstance(tree, str) and "\n" in tree else read_host(tree)
        has_dumps = any(function.dump is not None for function in spec.functions.values())
        return cls(spec, directory, build=build_host if has_dumps else build_once)

    @classmethod
    def named(cls, name: str, directory: str | os.PathLike[str]) -> FakeHost:
        """
        Build one of the hosts included in the package.

        Raises:
            ConfigError: there is no host of that name.
        """
        if name not in named_hosts():
            raise ConfigError(f"Unknown host '{name}': expected one of {', '.join(named_hosts())}")
        return cls(read_host(os.path.join(HOSTS, f"{name}.tree")), directory, build=build_once)

    def host(self, **options: Any) -> Host:
        """
        Return the host for a HostdevManager, with the simulated kernel as its writer.

        Args:
            options: further arguments of ``pyhostdev.Host``.
        """
        from pyhostdev import Host

        return Host(self.root, writer=self.kernel, **options)

    def add_function(self, line: str) -> SimDevice:
        """
        Plug in a function given by a description line; without ``driver=``, a matching driver binds to it.

        Raises:
            ConfigError: the line is invalid, or the address is taken.
        """
        try:
            spec = parse_function(line)
            check_function(self.spec, spec)
        except ValueError as err:
            raise ConfigError(f"'{line}': {err}") from err
        if os.path.lexists(self.root.pci_device(spec.address)):
            raise ConfigError(f"Address {spec.address} already has a function")
        self.spec.functions[spec.address] = spec
        from pyhostdev.testing import hotplug

        topology = Topology(self.spec)
        with self.kernel.entered() as core:
            device = put_described(core.tree, topology, spec)
            link_described(core.tree, topology, self.spec.functions[spec.physfn or spec.address])
            hotplug.forget(core, spec.address)  # a rescan must not bring back an earlier function
            core.tell("add", device)
            if spec.driver is not None:
                bind_described(core, spec)
            elif not spec.nodriver:
                core.attach_new(device)
        return device

    def remove_function(self, address: PCIDeviceAddress | str) -> None:
        """Unplug a function and its VFs for good; a rescan does not bring them back."""
        address = PCIDeviceAddress.of(address)
        self.kernel.vanish(address, for_ever=True)
        gone = [a for a, spec in self.spec.functions.items() if address in (a, spec.physfn)]
        for other in gone:
            del self.spec.functions[other]

    def reboot(self) -> None:
        """
        Restart the host as described, including the changes by add_function() and remove_function().

        Bindings, overrides, dynamic ids and ``run`` are gone; the boot id is new.
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
        Return the whole tree: the bytes of a file, the target of a link, None for a directory.

        Args:
            books: include run, where managers keep their state.
        """
        return snapshot_tree(self.root.path, skip=() if books else ("run",))


def snapshot_tree(directory: str, *, skip: tuple[str, ...] = ()) -> dict[str, bytes | str | None]:
    """Return every entry below a directory, without the simulation's own files and the top-level names in ``skip``."""
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
