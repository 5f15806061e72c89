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
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from libvirtd import HOOKS, LOG, PATIENCE_S, Libvirtd, enter, guest, hostdev, node_device, virsh

from pyhostdev import Host
from pyhostdev.testing import FakeHost
from pyhostdev.tools.hook import NAME

ABSENT = "0000:7f:1f.7"
CARD = [f"0001:09:00.{function}" for function in range(4)]


def hook(*words: str) -> None:
    """Run pyhostdev hook."""
    line = [sys.executable, "-m", "pyhostdev", "hook", *words]
    subprocess.run(line, check=True, stderr=subprocess.DEVNULL, timeout=PATIENCE_S)


def released(installed: str, name: str) -> int:
    """Call the installed hook as libvirt does after a guest has ended."""
    line = [installed, name, "release", "end", "-"]
    return subprocess.run(line, stdin=subprocess.DEVNULL, timeout=PATIENCE_S).returncode


def written(top: Path, name: str, *hostdevs: str) -> Path:
    """Write a guest's definition and return its path."""
    path = top / f"{name}.xml"
    path.write_text(guest(*hostdevs, name=name))
    return path


def on_this_machine(daemon: Libvirtd, top: Path) -> dict[str, Any]:
    """A guest without host devices starts and outlives the daemon; one with an absent device is refused."""
    hook("--install")
    found: dict[str, Any] = {"installed": (HOOKS / NAME).exists()}
    found["plain"] = virsh("create", written(top, "plain"))
    found["refused"] = virsh("create", written(top, "refused", hostdev(ABSENT, managed="yes")))
    found["unmanaged"] = virsh("create", written(top, "unmanaged", hostdev(ABSENT, managed="no")))
    daemon.kill()
    daemon.start()
    found["after kill"] = virsh("domstate", "plain")
    found["destroyed"] = virsh("destroy", "plain")
    found["left"] = virsh("list", "--all", "--name").out.split()
    found["records"] = [str(path) for path in Path("/run/pyhostdev").rglob("*.json")]
    hook("--uninstall")
    found["uninstalled"] = not (HOOKS / NAME).exists()
    found["logged"] = "device-missing" in LOG.read_text()
    return found


def on_a_simulated_host(daemon: Libvirtd, top: Path) -> dict[str, Any]:
    """The hook prepares; libvirt fails and calls its release; so after a kill in the middle of the start."""
    fake = FakeHost.named("bcm5719", top / "host")
    before = fake.snapshot()
    hook("--install", "--root", fake.root.path, "--simulate")
    installed = str(shutil.move(fake.root.libvirt_hook(NAME), HOOKS / NAME))
    shutil.rmtree(os.path.join(fake.root.path, "etc"))
    path = written(top, "four", *(hostdev(address, managed="no") for address in CARD))
    daemon.seen.unlink(missing_ok=True)
    found: dict[str, Any] = {"failed": virsh("create", path), "called": daemon.seen.exists()}
    found["given back"] = before == fake.snapshot()

    def look() -> None:
        active = Host(fake.root).status().active
        found["in the middle"] = {str(device.address): device.owner for device in active}

    daemon.killed_in_a_start(path, look)
    found["again"] = virsh("create", path)
    found["given back again"] = before == fake.snapshot()
    found["releases"] = [released(installed, "four") for _ in range(2)]
    found["as before"] = before == fake.snapshot()
    return found


def main() -> None:
    """Run everything and print it."""
    if os.environ.get("LIBVIRT_ROOT"):
        enter(os.environ["LIBVIRT_ROOT"])
    top = Path(tempfile.mkdtemp())
    daemon = Libvirtd(top)
    found = {"machine": on_this_machine(daemon, top), "simulated": on_a_simulated_host(daemon, top)}
    found["nodedev"] = {name: node_device(name) for name in virsh("nodedev-list", "--cap", "pci").out.split()}
    daemon.stop()
    shutil.rmtree(top)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
