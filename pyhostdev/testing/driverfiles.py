# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The sysfs directories of a driver and its module, and the module lists in lib/modules.
"""

from __future__ import annotations

import os

from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyhostdev.testing.driverspec import DriverSpec
    from pyhostdev.testing.hostspec import HostSpec
    from pyhostdev.testing.tree import Tree

IOMMUFD = "iommufd"

_DRIVER_FILES = ("bind", "unbind", "new_id", "remove_id", "uevent")


def _link_module(tree: Tree, module: str, driver: str, directory: str) -> None:
    tree.make_dirs(os.path.join(module, "drivers"))
    tree.put_link(os.path.join(module, "drivers", f"pci:{driver}"), directory)
    tree.put_link(os.path.join(directory, "module"), module)


def put_driver(tree: Tree, spec: DriverSpec) -> None:
    """
    Register a driver: its directory, its module's, and the links between them.

    Host: writes ``sys/bus/pci/drivers/NAME``, ``sys/module/NAME``, ``dev/vfio/vfio``
    """
    root = tree.root
    directory = root.pci_driver(spec.name)
    tree.make_dirs(directory)
    for name in _DRIVER_FILES:
        tree.put_file(os.path.join(directory, name), b"")
    if spec.module is not None:
        _link_module(tree, root.module(spec.module), spec.name, directory)
    if spec.kind == "vfio":
        tree.make_dirs(root.dev_vfio)
        tree.put_file(os.path.join(root.dev_vfio, "vfio"), b"")
        if has_iommufd_module(tree):
            put_iommufd(tree)


def has_iommufd_module(tree: Tree) -> bool:
    """True if iommufd is a module of the host; VFIO then depends on it, and loads it."""
    release = (tree.read_file(tree.root.kernel_release) or b"").decode().strip()
    listed = tree.read_file(tree.root.modules_dep(release)) if release else None
    return listed is not None and _module_file(IOMMUFD).encode() + b":" in listed


def put_iommufd(tree: Tree) -> None:
    """
    Load iommufd, once.

    Host: writes ``dev/iommu``, ``sys/module/iommufd``
    """
    if not tree.has_entry(tree.root.dev_iommu):
        tree.make_dirs(os.path.dirname(tree.root.dev_iommu))
        tree.put_file(tree.root.dev_iommu, b"", mode=0o660)
    tree.make_dirs(tree.root.module(IOMMUFD))


def _module_lists(host: HostSpec, present: Sequence[DriverSpec]) -> dict[str, list[str]]:
    files = {
        "modules.alias": [line for spec in present for line in module_aliases(spec)],
        "modules.dep": [f"{_module_file(spec.module)}:" for spec in present if spec.module],
        "modules.builtin": [_module_file(spec.name) for spec in present if not spec.module],
    }
    if host.iommufd is not None:
        files["modules.dep"].append(f"{_module_file(IOMMUFD)}:")
    return files


def put_modules(tree: Tree, host: HostSpec) -> None:
    """
    Write the lists that modprobe reads, and load iommufd where it is loaded.

    Host: writes ``lib/modules/RELEASE/modules.{alias,dep,builtin}``, ``dev/iommu``
    """
    present = [spec for spec in host.drivers.values() if spec.availability != "missing"]
    directory = os.path.dirname(tree.root.modules_alias(host.release))
    tree.make_dirs(directory, exist_ok=False)
    for name, lines in _module_lists(host, present).items():
        text = "".join(f"{line}\n" for line in dict.fromkeys(lines))
        tree.put_file(os.path.join(directory, name), text.encode())
    has_vfio = any(spec.kind == "vfio" and spec.availability == "loaded" for spec in present)
    if host.iommufd == "loaded" or (host.iommufd is not None and has_vfio):
        put_iommufd(tree)


def _module_file(name: str) -> str:
    return f"kernel/drivers/{name.replace('_', '-')}.ko"


def module_aliases(spec: DriverSpec) -> list[str]:
    """Return a module's lines of modules.alias; vfio drivers use a separate prefix."""
    if spec.module is None:
        return []
    prefix = "vfio_pci" if spec.kind == "vfio" else "pci"
    ids = spec.ids or (("*:*",) if spec.name == "vfio-pci" else ())  # vfio-pci takes any function
    return [f"alias {prefix}:{_alias_fields(pattern)} {spec.module}" for pattern in ids]


def _alias_fields(pattern: str) -> str:
    first, second = pattern.split(":")
    if first == "class":
        parts = [second[at : at + 2].upper() or "*" for at in (0, 2, 4)]
        return f"v*d*sv*sd*bc{parts[0]}sc{parts[1]}i{parts[2]}"
    vendor, device = (text if text == "*" else f"{int(text, 16):08X}" for text in (first, second))
    return f"v{vendor}d{device}sv*sd*bc*sc*i*"
