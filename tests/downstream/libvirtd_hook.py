# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Runs libvirtd with the hook of pyhostdev, and prints what happened as JSON; downstream_libvirtd.py runs it as root, in
namespaces of its own.

The hook first reads this machine, on which no PCI function is touched: the refused guest names one that is absent. Then
it reads and changes a simulated host, whose functions libvirt does not find: libvirt gives up after the hook has
prepared them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyhostdev import Host
from pyhostdev.testing import FakeHost
from pyhostdev.tools.hook import NAME

PRIVATE = (
    "/etc/libvirt",
    "/var/lib/libvirt",
    "/var/cache/libvirt",
    "/var/log/libvirt",
    "/run/libvirt",
    "/run/pyhostdev",
)
HOOKS = Path("/etc/libvirt/hooks/qemu.d")
LOG = Path("/var/log/libvirt/libvirtd.log")
SOCKET = Path("/run/libvirt/libvirt-sock")
SETTINGS = {
    "qemu.conf": 'user="root"\ngroup="root"\ndynamic_ownership=0\nremember_owner=0\nsecurity_driver="none"\nnamespaces=[]\n'
    'cgroup_controllers=[]\nstdio_handler="file"\n',
    "libvirtd.conf": f'auth_unix_rw="none"\nlog_filters="3:*"\nlog_outputs="1:file:{LOG}"\n',
}
WITNESS = """#!/bin/sh
test "$2 $3" = "prepare begin" || exit 0
touch {top}/seen
while test -e {top}/hold; do sleep 0.1; done
"""
PATIENCE_S = 600


class Libvirtd:
    """The daemon, started and killed as often as wanted."""

    def __init__(self) -> None:
        for directory in PRIVATE:
            os.makedirs(directory, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", directory], check=True)
        HOOKS.mkdir(parents=True)
        for name, text in SETTINGS.items():
            Path("/etc/libvirt", name).write_text(text)
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        SOCKET.unlink(missing_ok=True)
        process = subprocess.Popen(["libvirtd"], stdin=subprocess.DEVNULL)
        until(SOCKET.exists, "libvirtd listens")
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


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; fail with its name."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.1)


def virsh(*words: object) -> dict[str, Any]:
    """Return the exit code and the output of virsh."""
    line = ["virsh", "-c", "qemu:///system", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def hook(*words: str) -> None:
    """Run pyhostdev hook."""
    subprocess.run([sys.executable, "-m", "pyhostdev", "hook", *words], check=True, stderr=subprocess.DEVNULL)


def guest(top: Path, name: str, *addresses: str, managed: str) -> Path:
    """Write a guest without a disk, with these host devices."""
    devices = []
    for address in addresses:
        domain, bus, rest = address.split(":")
        source = f"<address domain='0x{domain}' bus='0x{bus}' slot='0x{rest[:2]}' function='0x{rest[3]}'/>"
        devices.append(f"<hostdev mode='subsystem' type='pci' managed='{managed}'><source>{source}</source></hostdev>")
    path = top / f"{name}.xml"
    path.write_text(
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>"
        "<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>"
        f"<emulator>/usr/bin/qemu-system-x86_64</emulator>{''.join(devices)}</devices></domain>"
    )
    return path


def on_this_machine(daemon: Libvirtd, top: Path) -> dict[str, Any]:
    """A guest without host devices starts and outlives the daemon; one with an absent device is refused."""
    hook("--install")
    found: dict[str, Any] = {"installed": (HOOKS / NAME).exists()}
    found["plain"] = virsh("create", guest(top, "plain", managed="yes"))
    found["refused"] = virsh("create", guest(top, "refused", "0000:7f:1f.7", managed="yes"))
    found["unmanaged"] = virsh("create", guest(top, "unmanaged", "0000:7f:1f.7", managed="no"))
    daemon.kill()
    daemon.start()
    found["after kill"] = virsh("domstate", "plain")
    found["destroyed"] = virsh("destroy", "plain")
    found["left"] = virsh("list", "--all", "--name")["out"].split()
    found["records"] = [str(path) for path in Path("/run/pyhostdev").rglob("*.json")]
    hook("--uninstall")
    found["uninstalled"] = not (HOOKS / NAME).exists()
    found["logged"] = "device-missing" in LOG.read_text()
    return found


def on_a_simulated_host(daemon: Libvirtd, top: Path) -> dict[str, Any]:
    """The hook prepares; libvirt fails and calls its release; so after a kill in the middle of the start."""
    fake = FakeHost.named("bcm5719", top / "host")
    hook("--install", "--root", fake.root.path, "--simulate")
    installed = shutil.copy2(fake.root.libvirt_hook(NAME), HOOKS / NAME)
    os.unlink(fake.root.libvirt_hook(NAME))
    (HOOKS / "60-witness").write_text(WITNESS.format(top=top))
    (HOOKS / "60-witness").chmod(0o755)
    path = guest(top, "four", *(f"0001:09:00.{function}" for function in range(4)), managed="no")
    before, seen, hold = fake.snapshot(), top / "seen", top / "hold"
    found: dict[str, Any] = {"failed": virsh("create", path), "called": seen.exists()}
    found["given back"] = before == fake.snapshot()

    seen.unlink(missing_ok=True)
    hold.touch()
    with subprocess.Popen(["virsh", "-c", "qemu:///system", "create", path], stderr=subprocess.PIPE) as start:
        until(seen.exists, "the hook has prepared")
        daemon.kill()
        found["owners in the middle"] = sorted({str(device.owner) for device in Host(fake.root).status().active})
        found["active in the middle"] = len(Host(fake.root).status().active)
        hold.unlink()
        start.communicate()
    daemon.start()
    found["again"] = virsh("create", path)
    found["given back again"] = before == fake.snapshot()
    release = [str(installed), "four", "release", "end", "-"]
    found["releases"] = [subprocess.run(release, stdin=subprocess.DEVNULL).returncode for _ in range(2)]
    found["as before"] = before == fake.snapshot()
    return found


def node_devices() -> dict[str, Any]:
    """Return the XML of each PCI function that libvirt's node device driver knows, theirs and ours."""
    names = virsh("nodedev-list", "--cap", "pci")["out"].split()
    found = {}
    for name in names:
        ours = subprocess.run(
            [sys.executable, "-m", "pyhostdev", "show", name, "--xml"], capture_output=True, text=True
        )
        found[name] = {"libvirt": virsh("nodedev-dumpxml", name)["out"], "pyhostdev": ours.stdout}
    return found


def main(top: Path) -> None:
    """Run everything and print it."""
    daemon = Libvirtd()
    found = {"machine": on_this_machine(daemon, top), "simulated": on_a_simulated_host(daemon, top)}
    found["nodedev"] = node_devices()
    daemon.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
