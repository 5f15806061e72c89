# SPDX-License-Identifier: LGPL-2.1-or-later
"""The seed's scenario, end to end, on every host there is: whatever its shape, planned, prepared, given back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyhostdev import DomainDef, Host, HostdevManager, PCIDevice, RefusedError, qemu
from pyhostdev.testing.fakehost import HOSTS, FakeHost, named_hosts
from pyhostdev.tools import main

TESTDATA = Path(__file__).parent.parent / "testdata"
TREES = [*(Path(HOSTS, f"{name}.tree") for name in named_hosts()), TESTDATA / "config" / "seed.tree"]
SEED_CASES = ["hostdev-pci-multifunction", "hostdev-pci-multifunction-partial"]


def devices(host: Host) -> Iterator[list[PCIDevice]]:
    """Yield each device of a host that could be assigned: its functions without the bridges."""
    seen = set()
    for dev in host.scan():
        if not dev.is_bridge and dev.address not in seen:
            functions = [sibling for sibling in dev.read_siblings() if not sibling.is_bridge]
            seen |= {function.address for function in functions}
            yield functions


def words_for(functions: list[PCIDevice]) -> list[str]:
    """Return the seed's request for a device: its first and its last function, the others declared."""
    if len(functions) == 1:
        return [str(functions[0].address)]
    ends = (functions[0], functions[-1])
    return [f"{function.address} {'yes' if function in ends else 'no'}" for function in functions]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.stem)
def test_every_device_of_every_host(
    fakehost: Callable[[Path], FakeHost], domain: Callable[..., DomainDef], tree: Path
) -> None:
    """Each device is planned; what can start is prepared, told to QEMU and given back, what cannot changes nothing."""
    fake = fakehost(tree)
    host = Host(fake.root, writer=fake.kernel)
    manager = HostdevManager(host)
    before = fake.snapshot()
    started = 0
    for functions in devices(host):
        definition = domain("vm1", *words_for(functions))
        plan = host.plan(definition)
        if plan.ok:
            started += 1
            with manager.prepared(plan):
                stubs = {host.pci_device(function.address).driver for function in functions}  # type: ignore[union-attr]
                assert {"vfio-pci"} == stubs
                assert len(functions) == len(manager.status().active)
            given = [json.loads(word)["host"] for word in argv_of(definition, host) if '"vfio-pci"' in word]
            assert [str(f.address) for f in dict.fromkeys((functions[0], functions[-1]))] == given
        else:
            with pytest.raises(RefusedError):
                manager.prepare(plan)
        assert before == fake.snapshot()
        assert ([], [], []) == manager.status()
    assert started or tree.stem in ("bridge-group", "non-pci-member")


def argv_of(definition: DomainDef, host: Host) -> list[str]:
    return qemu.build_command_line(definition, host=host)


@pytest.mark.parametrize("case", SEED_CASES)
def test_seed_cases_go_through_the_verbs(
    fakehost: Callable[[Path], FakeHost], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """The seed's own definitions: validate, plan, prepare, status, release on its device."""
    fake = fakehost(TESTDATA / "config" / "seed.tree")
    before = fake.snapshot()
    words = [str(TESTDATA / f"{case}.xml"), "--root", fake.root.path]
    assert 0 == main.main(["validate", *words])
    code = main.main(["plan", *words, "--json"])
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (code == 0) is plan["ok"]
    if plan["ok"]:
        assert 0 == main.main(["prepare", *words, "--simulate"])
        assert 0 == main.main(["release", *words, "--simulate"])
    assert before == fake.snapshot()


def test_s4_seeds_failing_case_is_refused(
    fakehost: Callable[[Path], FakeHost], capsys: pytest.CaptureFixture[str]
) -> None:
    """S4: partial-fail leaves one function out: start is refused by its name, and nothing is written."""
    fake = fakehost(TESTDATA / "config" / "seed.tree")
    before = fake.snapshot()
    path = str(TESTDATA / "hostdev-pci-multifunction-partial-fail.xml")
    assert 1 == main.main(["prepare", path, "--root", fake.root.path, "--simulate"])
    error = capsys.readouterr().err
    assert "incomplete-device" in error
    assert before == fake.snapshot()


def test_s6_seeds_config_spaces_have_the_bit(fakehost: Callable[[Path], FakeHost]) -> None:
    """S6: 0005:90:01.0 to .3 all say multifunction, from their dumps."""
    host = Host(fakehost(TESTDATA / "config" / "seed.tree").root)
    answers = {str(dev.address): dev.is_multifunction() for dev in host.scan() if not dev.is_bridge}
    assert {f"0005:90:01.{function}": True for function in range(4)} == answers
