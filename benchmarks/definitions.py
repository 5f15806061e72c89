# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What definitions cost: beside lxml, and beside libvirt's own code in the same process, where python3-libvirt is.

As a program it measures and prints ratios as JSON: ``waits.py`` starts it in a mount namespace of its own, as libvirt's
driver wants a user that only its daemon's package makes.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_qemu
from lxml import etree
from measure import Goal, in_turns

from pyhostdev import DomainDef
from pyhostdev.qemu.qemu_capabilities import load

SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"  # where a distribution puts python3-libvirt
USER = "libvirt-qemu"
MANY = 160
LINEAR = (40, 160)  # of a q35 guest, which has at most 255 ports
PARSED = (40, 640)
ROUNDS = 15
CONFIG = 'user = "root"\ngroup = "root"\n'
IN_NAMESPACE = 'mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/group" /etc/group && shift && exec "$@"'


def parse_and_read(text: str) -> None:
    """Parse with lxml, and read every attribute and text."""
    for element in etree.fromstring(text).iter():
        _ = element.items(), element.text


def libvirt_driver(top: str) -> Any | None:
    """Return libvirt's QEMU driver in this process; None where it is not installed or does not start."""
    sys.path.append(SYSTEM_PACKAGES)
    try:
        libvirt = importlib.import_module("libvirt")
    except ImportError:
        return None
    Path(top, "etc").mkdir()
    Path(top, "etc/qemu.conf").write_text(CONFIG, encoding="ascii")
    libvirt.virEventRegisterDefaultImpl()
    libvirt.registerErrorHandler(lambda *_: None, None)
    try:
        return libvirt.open(f"qemu:///embed?root={top}")
    except libvirt.libvirtError:
        return None


def measured() -> dict[str, float]:
    """Return the ratios by their names."""
    capabilities = load("x86_64")
    text = bench_qemu.xml("q35", MANY)
    parsed, tree = DomainDef.parse(text), etree.fromstring(text)
    works: dict[str, Any] = {
        "argv": lambda: bench_qemu.argv_of(text, capabilities) and None,
        "parse": lambda: DomainDef.parse(text) and None,
        "lxml": lambda: parse_and_read(text),
        "format": lambda: parsed.format() and None,
        "copy": lambda: etree.tostring(copy.deepcopy(tree)) and None,
    }
    few = bench_qemu.xml("q35", LINEAR[0])
    works["few"] = lambda: bench_qemu.argv_of(few, capabilities) and None
    for count in PARSED:
        read = bench_qemu.xml("q35", count)
        works[str(count)] = lambda read=read: DomainDef.parse(read) and None
    with tempfile.TemporaryDirectory() as top:
        driver = libvirt_driver(top)
        if driver is not None:
            assert driver.domainXMLToNative("qemu-argv", text, 0).count("vfio-pci") == MANY
            works["libvirt"] = lambda: driver.domainXMLToNative("qemu-argv", text, 0) and None  # type: ignore[union-attr]
        t = in_turns(ROUNDS, works)
    found = {"parse": t["parse"] / t["lxml"], "format": t["format"] / t["copy"]}
    found["linear"] = t["argv"] / LINEAR[1] / (t["few"] / LINEAR[0])
    found["parse linear"] = t[str(PARSED[1])] / PARSED[1] / (t[str(PARSED[0])] / PARSED[0])
    if "libvirt" in t:
        found["libvirt"] = t["argv"] / t["libvirt"]
    return found


def in_namespace(top: Path) -> list[str]:
    """Return the command that measures, where libvirt's user exists for it alone; as it is for another than root."""
    command = [sys.executable, __file__]
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return command
    for name, line in (
        ("passwd", f"{USER}:x:64055:64055::/:/usr/sbin/nologin\n"),
        ("group", f"{USER}:x:64055:\nkvm:x:64056:\n"),
    ):
        kept = Path("/etc", name).read_text(encoding="utf-8")
        new = [row for row in line.splitlines(keepends=True) if f"\n{row.partition(':')[0]}:" not in f"\n{kept}"]
        (top / name).write_text(kept + "".join(new), encoding="utf-8")
    return ["unshare", "-m", "sh", "-c", IN_NAMESPACE, "sh", str(top), *command]


def goals_of_definitions(top: Path) -> Iterator[Goal]:
    """Compare parsing, printing and building a command line with lxml and with libvirt."""
    env = {**os.environ, "LIBVIRT_LOG_OUTPUTS": "3:file:/dev/null", "PYTHONPATH": str(Path(__file__).parent)}
    for command in (in_namespace(top), [sys.executable, __file__]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
        if done.returncode == 0:
            break
    done.check_returncode()
    found = json.loads(done.stdout)
    yield Goal(f"{MANY} hostdevs from XML to argv / libvirt's domxml-to-native in process", found.get("libvirt"), 1.0)
    yield Goal(f"cost of a hostdev from XML to argv, {LINEAR[1]} / {LINEAR[0]}", found["linear"], 1.2)
    yield Goal(f"cost of a hostdev parsed, {PARSED[1]} / {PARSED[0]}", found["parse linear"], 1.2)
    yield Goal(f"parse {MANY} hostdevs / lxml's parse and read", found["parse"], 4)
    yield Goal(f"format {MANY} hostdevs / lxml's copy and serialise", found["format"], 6)


if __name__ == "__main__":
    print(json.dumps(measured()))
