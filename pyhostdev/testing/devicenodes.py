# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The functions' own VFIO nodes on a simulated host, their open files, and the iommufds that these are bound to.

An open node has a shared flock, and a bound one a lock of its second byte whose length stands for the iommufd. Both
belong to the open file: they pass to a child that inherits the descriptor, and end with the last copy.

Source: drivers/vfio/device_cdev.c, drivers/vfio/iommufd.c (Linux 6.6); the errnos were measured on 7.2.13
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from pyhostdev.testing.answers import Refusal
from pyhostdev.testing.simdevice import find_device, numbered
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhostdev.testing.simdevice import SimDevice
    from pyhostdev.testing.tree import Tree

WITHDRAWN = "fakehost.withdrawn"  # nodes that an unbind has removed and that are still open

_LOCK = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, length, pid
_BOUND = 1  # the byte where the lock of a bound node begins


def withdrawn_nodes(device: SimDevice) -> list[str]:
    """Return the files of a function's nodes that are gone from ``dev`` while its unbind waits."""
    tree, top = device.tree, device.tree.root.join(WITHDRAWN)
    names = [name for name in tree.list_dir(top) if name.startswith(f"{device.address}.")]
    return [os.path.join(top, name) for name in names]


def nodes_of(device: SimDevice) -> list[str]:
    """Return the files of a function's nodes: one while it is bound to a VFIO driver, on a host with iommufd."""
    tree, top = device.tree, device.tree.root.dev_vfio_devices
    names = numbered(tree.list_dir(device.join("vfio-dev")), "vfio").values()
    shown = [os.path.join(top, name) for name in names]
    return [path for path in shown if tree.has_entry(path)] + withdrawn_nodes(device)


def node_device(tree: Tree, fd: int) -> SimDevice:
    """Return the function whose node a descriptor is."""
    mine = os.fstat(fd)
    for name in tree.list_dir(tree.root.pci_devices):
        device = find_device(tree, name)
        if device is None:
            continue
        for path in nodes_of(device):
            status = tree.status(path)
            if status is not None and os.path.samestat(status, mine):
                return device
    raise LookupError(f"descriptor {fd} is not the node of a function")


def withdraw(device: SimDevice, name: str) -> None:
    """Remove a node from ``dev``; its file stays open for its holders, which see that it was deleted."""
    tree, root = device.tree, device.tree.root
    path = os.path.join(root.dev_vfio_devices, name)
    if not tree.has_entry(path):
        return
    tree.make_dirs(root.join(WITHDRAWN))
    tree.move(path, root.join(WITHDRAWN, f"{device.address}.{name}"))
    _show_deleted(tree, os.path.join("/", os.path.relpath(path, root.path)))


def _show_deleted(tree: Tree, shown: str) -> None:
    """Show the open files of a removed node as the kernel does."""
    for process in filter(str.isdecimal, tree.list_dir(tree.root.proc)):
        top = os.path.join(tree.root.proc, process, "fd")
        for number in tree.list_dir(top):
            if tree.read_link(os.path.join(top, number)) == shown:
                tree.drop_file(os.path.join(top, number))
                tree.put_text_link(os.path.join(top, number), f"{shown} (deleted)")


def is_open(device: SimDevice) -> bool:
    """True while a process has the function's node open, bound to an iommufd or not."""
    return any(_is_locked(device.tree, path) for path in nodes_of(device))


def _is_locked(tree: Tree, path: str) -> bool:
    fd = tree.open_file(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def bound_iommufd(device: SimDevice) -> int | None:
    """Return the iommufd that an open file of the function's node is bound to."""
    for path in nodes_of(device):
        fd = device.tree.open_file(path, os.O_RDWR)
        try:
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _BOUND, 0, 0))
        finally:
            os.close(fd)
        kind, _, _, length, _ = _LOCK.unpack(answer)
        if kind != fcntl.F_UNLCK:
            return int(length)
    return None


def open_node(tree: Tree, path: str) -> int:
    """
    Open a function's node; it can be open several times.

    Raises:
        Refusal: ENOENT without the node.
    """
    try:
        fd = tree.open_file(path, os.O_RDWR)
    except FileNotFoundError:
        raise Refusal(errno.ENOENT) from None
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def open_iommufd(tree: Tree) -> int:
    """
    Open ``dev/iommu``; the position in the file identifies the open file, and its copies share it.

    Raises:
        Refusal: ENOENT without iommufd: opening loads no module.
    """
    try:
        fd = tree.open_file(tree.root.dev_iommu, os.O_RDWR)
    except FileNotFoundError:
        raise Refusal(errno.ENOENT) from None
    os.lseek(fd, 1 + int.from_bytes(os.urandom(4), "little"), os.SEEK_SET)
    return fd


def iommufd_number(fd: int) -> int:
    """Return the number that identifies an open ``dev/iommu``."""
    return os.lseek(fd, 0, os.SEEK_CUR)


def bind_node(fd: int, iommufd: int) -> None:
    """Bind an open node to an iommufd; the caller has checked that the group allows it."""
    request = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _BOUND, iommufd_number(iommufd), 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
