# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a plan asks of a host: each thing once, and nothing of a function that cannot have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pyhostdev import DomainDef, Host, HostdevManager
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util import confined

Domain = Callable[..., DomainDef]
_VFS = ("0000:03:10.0", "0000:03:10.2")
_DISK = "0000:02:00.0"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the paths of all questions that are asked together."""
    paths: list[str] = []
    ask = confined.ask

    def noting(root: Any, kind: str, wanted: Sequence[str], **bounds: int) -> Any:
        paths.extend(wanted)
        return ask(root, kind, wanted, **bounds)

    monkeypatch.setattr(confined, "ask", noting)
    return paths


def test_plan_asks_each_thing_once(fakehost: Callable[[str], FakeHost], domain: Domain, asked: list[str]) -> None:
    """Nothing is asked twice, and no virtual function is asked whether it shows the console."""
    fake = fakehost("sriov")
    Host(fake.root).plan(domain("vm1", *_VFS, _DISK))
    assert sorted(set(asked)) == sorted(asked)
    assert [f"{_DISK}/boot_vga"] == [path[-21:] for path in asked if path.endswith("boot_vga")]


def test_plan_looks_for_nodes_of_bound_functions_only(
    fakehost: Callable[[str], FakeHost], domain: Domain, asked: list[str]
) -> None:
    """A group has a node while a member is bound to a VFIO driver; others are not looked for."""
    fake = fakehost("sriov")
    host = fake.host()
    HostdevManager(host).prepare(host.plan(domain("vm1", _VFS[0])))
    group = host.iommu_group(_VFS[0])
    asked.clear()
    host.plan(domain("vm2", *_VFS))
    top = f"{fake.root.dev_vfio}/"
    assert [f"{top}{group}"] == [path for path in asked if path.startswith(top) and "devices" not in path]
