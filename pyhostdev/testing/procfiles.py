# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The /proc of a fake host: the boot, mounted block devices, the default route, holders of groups.

Source: proc(5)
"""

from __future__ import annotations

import contextlib
import os
import re

from pyhostdev.testing.release import has_change
from pyhostdev.testing.tree import Tree
from pyhostdev.util.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pyhostdev.testing.hostspec import HostSpec
    from pyhostdev.util.hostroot import HostRoot

_FIRST_PID = 4000
_FIRST_FD = 20
_PF_EXITING, _PF_RANDOMIZE = 0x4, 0x400000  # include/linux/sched.h
_ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
_SWAPS = "Filename\tType\tSize\tUsed\tPriority\n"
_DEFAULT_ROUTE = "\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"


def _mountinfo(host: HostSpec) -> str:
    numbered = enumerate(host.mounts, 20)
    return "".join(f"{n} 1 259:{n - 20} / {where} rw - {fs} /dev/{d} rw\n" for n, (d, where, fs) in numbered)


def put_proc(tree: Tree, host: HostSpec) -> None:
    """
    Write the files that show the host's use of its devices.

    Host: writes below ``proc``
    """
    texts = {
        "sys/kernel/random/boot_id": f"{host.boot_id}\n",
        "sys/kernel/osrelease": f"{host.release}\n",
        "mounts": "".join(f"/dev/{d} {where} {fs} rw 0 0\n" for d, where, fs in host.mounts),
        "self/mountinfo": _mountinfo(host),
        "swaps": _SWAPS + "".join(f"/dev/{name}\tpartition\t1048572\t0\t-2\n" for name in host.swaps),
        "net/route": _ROUTES + "".join(f"{name}{_DEFAULT_ROUTE}" for name in host.routes),
    }
    for name, text in texts.items():
        path = os.path.join(tree.root.proc, name)
        tree.make_dirs(os.path.dirname(path))
        tree.put_file(path, text.encode())


class SimulatedProcess:
    """
    A process of a simulated host that has VFIO nodes open, as the kernel shows it; a host without proc shows nothing.

    Its descriptors are the container, the given nodes, and one per function in ``functions``. From Linux 6.18 on,
    fdinfo names the function.

    Host: writes ``proc/PID``
    """

    def __init__(self, root: HostRoot, nodes: Sequence[str], functions: Sequence[str] = ()) -> None:
        self.root = root
        self.tree = Tree(root)
        self.is_shown = self.tree.is_directory(root.proc)
        self.pid = next(n for n in range(_FIRST_PID, 1 << 22) if not self.tree.has_entry(f"{root.proc}/{n}"))
        self.directory = os.path.join(root.proc, str(self.pid))
        if not self.is_shown:
            return
        for name in ("fd", "fdinfo"):
            self.tree.make_dirs(os.path.join(self.directory, name))
        self.tree.put_file(os.path.join(self.directory, "comm"), b"qemu-system-x86\n")
        self._put_state("S", _PF_RANDOMIZE)
        self.add_descriptor("/dev/vfio/vfio", {})
        for node in nodes:
            self.add_node(node)
        for function in functions:
            self.add_descriptor("anon_inode:[vfio-device]", self._syspath(function))

    def add_node(self, node: str, *, inode: int | None = None, function: str | None = None) -> None:
        """Open a node; with another inode, it is another file of the same name, such as a mount."""
        shown = os.path.join("/", os.path.relpath(node, self.root.path))
        status = self.tree.status(node)
        info = {"ino": str(status.st_ino if inode is None and status is not None else inode)}
        self.add_descriptor(shown, info if function is None else {**info, **self._syspath(function)})

    def add_descriptor(self, text: str, info: Mapping[str, str]) -> None:
        """Add an open descriptor: the text of its link, and the fields of its fdinfo."""
        taken = self.tree.list_dir(os.path.join(self.directory, "fd"))
        number = next(str(n) for n in range(_FIRST_FD, _FIRST_FD + len(taken) + 1) if str(n) not in taken)
        self.tree.put_text_link(os.path.join(self.directory, "fd", number), text)
        lines = {"pos": "0", "flags": "02100002", "mnt_id": "24", **info}
        content = "".join(f"{key}:{' ' if key.startswith('vfio') else chr(9)}{value}\n" for key, value in lines.items())
        self.tree.put_file(os.path.join(self.directory, "fdinfo", number), content.encode())

    def _syspath(self, function: str) -> dict[str, str]:
        if not has_change(self.tree, "fdinfo-names-function"):
            return {}
        place = self.tree.place(os.path.join(self.root.pci_devices, function))
        return {"vfio-device-syspath": os.path.join("/", os.path.relpath(place, self.root.path))}

    def drop_node(self, node: str) -> None:
        """Close a node."""
        top, shown = os.path.join(self.directory, "fd"), os.path.join("/", os.path.relpath(node, self.root.path))
        for number in self.tree.list_dir(top):
            if self.tree.read_link(os.path.join(top, number)) == shown:
                for name in ("fd", "fdinfo"):
                    self.tree.drop_file(os.path.join(self.directory, name, number))

    def put_limit(self, soft: int, hard: int) -> None:
        """
        Write how much memory the process may lock; -1 means unlimited.

        Source: proc_pid_limits (fs/proc/base.c)
        """
        if self.is_shown:
            put_memory_limit(self.tree, self.pid, soft, hard)

    def read_limit(self) -> int:
        """Return the soft limit; -1 means unlimited."""
        text = (self.tree.read_file(os.path.join(self.directory, "limits")) or b"").decode()
        found = re.search(r"^Max locked memory +(\d+)", text, re.MULTILINE)
        return -1 if found is None else int(found[1])

    def delete_nodes(self) -> None:
        """Show the open nodes as the kernel shows deleted files."""
        top = os.path.join(self.directory, "fd")
        for number in self.tree.list_dir(top):
            text = self.tree.read_link(os.path.join(top, number)) or ""
            if text.startswith("/dev/vfio/") and text != "/dev/vfio/vfio":
                self.tree.drop_file(os.path.join(top, number))
                self.tree.put_text_link(os.path.join(top, number), f"{text} (deleted)")

    def begin_exit(self) -> None:
        """Start to exit with everything still open: memory is released first, which takes time."""
        if self.is_shown:
            self._put_state("R", _PF_RANDOMIZE | _PF_EXITING)

    def close_all(self) -> None:
        """Become a zombie: /proc shows no open files any more."""
        if self.is_shown:
            for name in ("fd", "fdinfo"):
                for number in self.tree.list_dir(os.path.join(self.directory, name)):
                    self.tree.drop_file(os.path.join(self.directory, name, number))
            self._put_state("Z", _PF_RANDOMIZE | _PF_EXITING)

    def vanish(self) -> None:
        """Disappear from /proc."""
        if self.is_shown:
            self.tree.drop_tree(self.directory)

    def _put_state(self, state: str, flags: int) -> None:
        """
        Write the process's ``stat`` line, by a rename: a reader sees the old or the new line.

        Source: proc_pid_stat(5)
        """
        line = f"{self.pid} (qemu-system-x86) {state} 1 {self.pid} {self.pid} 0 -1 {flags} 0 0 0 0\n"
        self.tree.replace_file(os.path.join(self.directory, "stat"), line.encode())


def put_memory_limit(tree: Tree, pid: int, soft: int, hard: int) -> None:
    """
    Write the file that shows a process's limits.

    Host: writes ``proc/PID/limits``
    """
    words = [str(value) if value >= 0 else "unlimited" for value in (soft, hard)]
    header = f"{'Limit':25} {'Soft Limit':20} {'Hard Limit':20} Units\n"
    line = f"{'Max locked memory':25} {words[0]:20} {words[1]:20} bytes\n"
    tree.put_file(os.path.join(tree.root.proc, str(pid), "limits"), (header + line).encode())


@contextlib.contextmanager
def holding_process(root: HostRoot, node: str) -> Iterator[None]:
    """
    Show a process that has a VFIO node open while the block runs; a host without proc shows nothing.

    Host: writes ``proc/PID``
    """
    process = SimulatedProcess(root, [node])
    try:
        yield
    finally:
        process.vanish()
