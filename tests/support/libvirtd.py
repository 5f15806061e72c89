# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A real libvirtd with hooks, for a root whose /etc/libvirt belongs to the test: it is started, killed and asked.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HOOKS = Path("/etc/libvirt/hooks/qemu.d")
WITNESS = HOOKS / "60-witness"
LOG = Path("/var/log/libvirt/libvirtd.log")
SOCKET = Path("/run/libvirt/libvirt-sock")
PRIVATE = (
    "/etc/libvirt",
    "/var/lib/libvirt",
    "/var/cache/libvirt",
    "/var/log/libvirt",
    "/run/libvirt",
    "/run/pyhostdev",
)
SETTINGS = {
    "qemu.conf": 'user="root"\ngroup="root"\ndynamic_ownership=0\nremember_owner=0\nsecurity_driver="none"\n'
    'namespaces=[]\ncgroup_controllers=[]\nstdio_handler="file"\n',
    "libvirtd.conf": f'auth_unix_rw="none"\nlog_filters="3:*"\nlog_outputs="1:file:{LOG}"\n',
}
# runs after the hook of pyhostdev, and keeps a start in its middle as long as a file is there
_WITNESS = """#!/bin/sh
test "$2 $3" = "prepare begin" || exit 0
touch {seen}
while test -e {hold}; do sleep 0.1; done
"""
PATIENCE_S = 600


class Answer(NamedTuple):
    """What virsh ended with."""

    code: int
    out: str
    err: str


class Libvirtd:
    """The daemon; ``seen`` and ``hold`` are the files of the witness."""

    def __init__(self, top: Path) -> None:
        self.seen, self.hold = top / "seen", top / "hold"
        for directory in PRIVATE:
            os.makedirs(directory, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", directory], check=True)
        HOOKS.mkdir(parents=True)
        for name, text in SETTINGS.items():
            Path("/etc/libvirt", name).write_text(text)
        WITNESS.write_text(_WITNESS.format(seen=self.seen, hold=self.hold))
        WITNESS.chmod(0o755)
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        SOCKET.unlink(missing_ok=True)
        process = subprocess.Popen(["libvirtd"], stdin=subprocess.DEVNULL)
        until(lambda: SOCKET.exists() or process.poll() is not None, "libvirtd listens")
        if process.returncode is not None:
            said = LOG.read_text() if LOG.exists() else ""
            raise RuntimeError(f"libvirtd ended with {process.returncode}: {said[-1000:]}")
        return process

    def kill(self) -> None:
        """Kill it as a crash would: its guests and a running hook stay."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def start(self) -> None:
        """Start it again."""
        self.process = self._started()

    def stop(self) -> None:
        """End it in order."""
        self.process.terminate()
        self.process.wait(PATIENCE_S)

    def killed_in_a_start(self, path: Path, look: Callable[[], None]) -> None:
        """Start a guest, look at the host after the hook has prepared, and kill the daemon there."""
        self.seen.unlink(missing_ok=True)
        self.hold.touch()
        line = ["virsh", "-c", "qemu:///system", "create", str(path)]
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as start:
            until(self.seen.exists, "the hook has prepared")
            self.kill()
            look()
            self.hold.unlink()
            start.wait(PATIENCE_S)
        self.start()


def enter(root: str, *shared: str) -> None:
    """
    Go into another root: with the kernel's file systems, this directory, this interpreter and more directories in it.

    The process needs a mount namespace of its own; mount points that are missing in the root stay there.
    """
    here = os.getcwd()
    for kind in ("proc", "sysfs"):
        _mount("-t", kind, kind, at=root + {"proc": "/proc", "sysfs": "/sys"}[kind])
    for path in ("/dev", here, sys.base_prefix, *shared):
        if path != "/usr":
            _mount("--rbind", path, at=root + path)
    os.chroot(root)
    os.chdir(here)


def _mount(*words: str, at: str) -> None:
    os.makedirs(at, exist_ok=True)
    subprocess.run(["mount", *words, at], check=True)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; fail with its name."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.1)


def virsh(*words: object) -> Answer:
    """Run virsh to its end."""
    line = ["virsh", "-c", "qemu:///system", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE_S)
    return Answer(done.returncode, done.stdout, done.stderr)


def node_device(name: str) -> dict[str, str]:
    """Return the XML of a PCI function, as libvirt and as pyhostdev print it, in one form."""
    line = [sys.executable, "-m", "pyhostdev", "show", name, "--xml"]
    ours = subprocess.run(line, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout
    return {"libvirt": canonical(virsh("nodedev-dumpxml", name).out), "pyhostdev": canonical(ours)}


def canonical(xml: str) -> str:
    """Return XML in a form in which it can be compared."""
    return ElementTree.canonicalize(xml, strip_text=True)


def guest(*hostdevs: str, name: str) -> str:
    """Return a guest without a disk."""
    return (
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>"
        "<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>"
        "<emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>"
        f"<memballoon model='none'/>{''.join(hostdevs)}</devices></domain>"
    )


def hostdev(address: str, *, managed: str, kept: bool = False) -> str:
    """Return a host device; a kept one in libvirt's spelling."""
    domain, bus, rest = address.split(":")
    source = f"<address domain='0x{domain}' bus='0x{bus}' slot='0x{rest[:2]}' function='0x{rest[3]}'/>"
    place = "<address type='unassigned'/>" if kept else ""
    return (
        f"<hostdev mode='subsystem' type='pci' managed='{managed}'><driver name='vfio'/><source>{source}</source>"
        f"{place}</hostdev>"
    )
