# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each program in examples/ does what its docstring says."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyhostdev
from pyhostdev.testing.fakehost import HOSTS, FakeHost
from pyhostdev.tools.demo import GUEST

EXAMPLES = Path(__file__).parent.parent / "examples"
LONGEST = 60
CARD = [f"0001:09:00.{function}" for function in range(4)]


def run(name: str, *words: object, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env={**os.environ, **env}, timeout=60)


def test_inventory(bcm5719: FakeHost) -> None:
    """One JSON line per function, each port naming the three that share its group."""
    lines = [json.loads(line) for line in run("inventory.py", bcm5719.root.path).stdout.splitlines()]
    port = next(line for line in lines if line["address"] == "0001:09:00.0")
    assert ["0001:09:00.1", "0001:09:00.2", "0001:09:00.3"] == port["shares_group_with"]
    assert "tg3" == port["driver"]


def test_plan_and_prepare(bcm5719: FakeHost) -> None:
    """All four functions are prepared while the program waits, and given back afterwards."""
    before = bcm5719.snapshot()
    done = run("plan_and_prepare.py", GUEST, bcm5719.root.path, stdin="\n")
    assert (0, "given back") == (done.returncode, done.stdout.splitlines()[-1]), done.stderr
    assert "prepared: 0001:09:00.0, 0001:09:00.1, 0001:09:00.2, 0001:09:00.3" in done.stdout
    assert before == bcm5719.snapshot()


def test_own_tool() -> None:
    """The foreign test suite passes with the plugin."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "test_own_tool.py")]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=120)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_check_snapshots(tmp_path: Path) -> None:
    """The seed's host can take the seed's guest; a host without the card is refused by name."""
    other = tmp_path / "other.tree"
    seed = Path(HOSTS, "bcm5719.tree")
    other.write_text(seed.read_text().replace("0001:09:00", "0001:0a:00"))
    done = run("check_snapshots.py", GUEST, seed, other)
    assert 1 == done.returncode, done.stderr
    assert [f"{seed}: can take it", f"{other}: refused"] == [s for s in done.stdout.splitlines() if s[0] != " "]


def loaded(name: str) -> Any:
    """Import an example as a module, without a process of its own."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nova_pci_tracker(bcm5719: FakeHost) -> None:
    """A claim takes the whole group and empties the pool; freeing restores every byte."""
    before = bcm5719.snapshot()
    tracker = loaded("nova_pci_tracker").PciTracker(pyhostdev.Host(bcm5719.root, writer=bcm5719.kernel))
    assert CARD == tracker.pools()["14e4:1657"]
    with pytest.raises(LookupError, match="4 devices 14e4:1657 are free, 5 are wanted"):
        tracker.claim("i1", "14e4:1657", 5)
    assert CARD[:2] == tracker.claim("i1", "14e4:1657", 2)
    assert {("i1", str(dev.address)) for dev in tracker.manager.status().active} == {("i1", a) for a in CARD}
    assert "14e4:1657" not in tracker.pools()
    assert [True, False] == [tracker.free("i1"), tracker.free("i1")]
    assert before == bcm5719.snapshot()


def test_vdsm_hostdev_listing(fakehost: Callable[[str], FakeHost]) -> None:
    """Names, parents and PFs refer to each other, and bridges are not assignable."""
    found = loaded("vdsm_hostdev_listing").list_devices(pyhostdev.Host(fakehost("sriov").root))
    vf = found["pci_0000_03_10_0"]["params"]
    assert ("pci_0000_03_00_0", "5", "true") == (vf["physfn"], vf["iommu_group"], vf["is_assignable"])
    assert {params["params"]["parent"] for params in found.values()} <= {*found, "computer"}
    assert "false" == found["pci_0000_00_02_0"]["params"]["is_assignable"]
    assert 8 == found["pci_0000_03_00_0"]["params"]["totalvfs"]


def test_kubernetes_park(bcm5719: FakeHost) -> None:
    """The functions stay parked when a pod ends, the next pod finds them, and a release restores every byte."""
    before = bcm5719.snapshot()
    for release in ("no", "yes"):
        environment = {**os.environ, "PYHOSTDEV_ROOT": bcm5719.root.path, "PYHOSTDEV_RELEASE": release}
        command = [sys.executable, str(EXAMPLES / "kubernetes_park.py"), "14e4:1657", "10de:1eb8"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe) as pod:
            assert pod.stdout is not None and pod.stderr is not None
            assert f"parked: {' '.join(CARD)}\n" == pod.stdout.readline()
            pod.terminate()
            assert "note: no function of this node matches 10de:1eb8\n" == pod.stderr.read()
        assert 0 == pod.returncode
        assert (release == "yes") == (before == bcm5719.snapshot())


def test_kubevirt_check(bcm5719: FakeHost, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A list that matches the host is accepted; an absent device and a foreign driver are named."""
    path, check = tmp_path / "kubevirt.json", loaded("kubevirt_check")

    def answer(*selectors: str) -> tuple[int, list[str]]:
        devices = [{"pciVendorSelector": selector, "resourceName": "x/y"} for selector in selectors]
        path.write_text(json.dumps({"spec": {"configuration": {"permittedHostDevices": {"pciHostDevices": devices}}}}))
        return check.main(str(path), bcm5719.root.path), capsys.readouterr().out.splitlines()

    code, lines = answer("14E4:1657", "10DE:1EB8")
    assert (1, 4 + 4 * 3 + 1) == (code, len(lines))
    assert "x/y: the host has no device 10de:1eb8" in lines
    with pyhostdev.HostdevManager(host := pyhostdev.Host(bcm5719.root, writer=bcm5719.kernel)).prepared(
        host.plan(pyhostdev.DomainDef.parse(Path(GUEST).read_text()))
    ):
        assert (0, ["the list matches the host"]) == answer("14E4:1657")
        assert (0, ["note: 14e4:1657 is bound to vfio-pci, but not permitted"]) == answer()
        path.write_text('{"spec": {}}')  # what a new KubeVirt has
        assert 0 == check.main(str(path), bcm5719.root.path)


@pytest.mark.parametrize("name", ["nova_pci_tracker", "vdsm_hostdev_listing", "kubevirt_check"])
def test_peers_use_public_names_only(name: str) -> None:
    """What stands for other projects' code imports the package, and takes only public names from it."""
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not any(isinstance(n, ast.ImportFrom) and (n.module or "").startswith("pyhostdev") for n in ast.walk(tree))
    assert {"pyhostdev"} == {word for word in imported if word.startswith("pyhostdev")}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    assert {node.attr for node in nodes if getattr(node.value, "id", "") == "pyhostdev"} <= set(pyhostdev.__all__)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    """An example fits on one screen."""
    assert LONGEST + 10 >= len(path.read_text().splitlines())
