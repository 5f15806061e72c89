# SPDX-License-Identifier: LGPL-2.1-or-later
"""``prepare`` executes the plan, with the drivers that the same release of libvirt chooses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev.testing import FakeHost
from pyhostdev.tools import main

HOST = (
    "driver pcieport class:0604 builtin\ndriver vfio-pci\ndriver xe-vfio-pci 8086:e20b\n"
    "0000:00:01.0 8086:6f04 060400 driver=pcieport bridge=01-01 express=root-port\n"
    "0000:01:00.0 8086:e20b 030000 nodriver group=1 express=endpoint\n"
)
GUEST = """
<domain type='qemu'><name>vm1</name><memory>9000</memory><os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
  <hostdev mode='subsystem' type='pci' managed='yes'>
    <source><address domain='0' bus='1' slot='0' function='0'/></source>
  </hostdev>
</devices></domain>
"""


@pytest.mark.parametrize(("words", "driver"), [(["--libvirt", "9.0"], "vfio-pci"), ([], "xe-vfio-pci")])
def test_prepare_binds_what_the_plan_names(
    words: list[str],
    driver: str,
    fakehost: Callable[[str], FakeHost],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A variant of vfio-pci is chosen by both verbs or by none of them."""
    fake = fakehost(HOST)
    (guest := tmp_path / "guest.xml").write_text(GUEST)
    given = [str(guest), "--root", fake.root.path, *words]
    main.main(["plan", *given, "--json"])
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [driver] == [step["to"] for step in steps if step["action"] == "detach"]
    assert 0 == main.main(["prepare", *given, "--simulate"])
    assert driver == os.path.basename(os.readlink(f"{fake.root.pci_devices}/0000:01:00.0/driver"))
