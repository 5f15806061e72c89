# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verb list: its output for every host, and the files that it never opens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.testing.generator import synthetic_host
from pyhostdev.tools import main
from pyhostdev.tools.output import hexadecimal
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostscan import Scan
from pyhostdev.util.pciscan import scan as read_scan
from pyhostdev.util.vfiodriver import VFIODrivers

CASES = Path(__file__).parents[2] / "testdata" / "cases"
TREES = [*named_hosts(), *sorted(str(path) for path in CASES.glob("*.tree"))]
Capture = pytest.CaptureFixture[str]


def listed(capsys: Capture, root: HostRoot, *words: str) -> str:
    assert 0 == main.main(["list", "--root", root.path, *words])
    return capsys.readouterr().out


def facts(scan: Scan, multifunction: Callable[[Any], bool | None]) -> list[dict[str, Any]]:
    """Return the expected JSON from the objects of a scan."""
    return [
        {
            "address": str(dev.address),
            "vendor_id": hexadecimal(dev.vendor),
            "device_id": hexadecimal(dev.device),
            "class": hexadecimal(dev.class_, 6),
            "driver": dev.driver,
            "iommu_group": dev.iommu_group,
            "multifunction": multifunction(dev),
            "physfn": None if dev.physfn is None else str(dev.physfn),
            "vfio_driver": None if dev.is_bridge else VFIODrivers(scan.root).choose(dev).driver,
            "vfio_driver_why": None,
        }
        for dev in scan
    ]


@pytest.mark.parametrize("name", TREES)
def test_list_says_what_the_devices_say(fakehost: Callable[[str], FakeHost], capsys: Capture, name: str) -> None:
    """list derives multifunction from the slot; the header type gives the same answer."""
    root = fakehost(name).root
    scan = Scan(root, read_scan(root))
    expected = facts(scan, scan.is_multifunction)
    assert expected == json.loads(listed(capsys, root, "--json"))
    lines = ",\n".join(f"  {json.dumps(fact)}" for fact in expected)
    assert f"[\n{lines}\n]\n" == listed(capsys, root, "--json", "--verify")
    assert listed(capsys, root) == listed(capsys, root, "--verify")


def test_variants_are_named_with_the_reason(fakehost: Callable[[str], FakeHost], capsys: Capture) -> None:
    """The driver that a guest's start would bind, and the alias that it comes from; a bridge has none."""
    root = fakehost(
        "driver pcieport class:0604 builtin\ndriver vfio-pci\ndriver xe-vfio-pci 8086:e20b\n"
        "0000:00:01.0 8086:6f04 060400 driver=pcieport bridge=01-01 express=root-port\n"
        "0000:01:00.0 8086:e20b 030000 nodriver\n0000:01:00.1 8086:e2f7 040300 nodriver\n"
    ).root
    functions = json.loads(listed(capsys, root, "--json"))
    why = "the best match of modules.alias, vfio_pci:v00008086d0000E20Bsv*sd*bc*sc*i*"
    expected = [(None, None), ("xe-vfio-pci", why), ("vfio-pci", None)]
    assert expected == [(function["vfio_driver"], function["vfio_driver_why"]) for function in functions]
    assert ["-", "xe-vfio-pci", "vfio-pci"] == [line.split()[-1] for line in listed(capsys, root).splitlines()[1:]]


def test_generated_hosts_have_the_bit(tmp_path: Path, capsys: Capture) -> None:
    """Where synthetic functions share a slot their header types say so, root ports included."""
    root = FakeHost(synthetic_host(170), tmp_path).root
    text = listed(capsys, root, "--json")
    assert text == listed(capsys, root, "--json", "--verify")
    assert {True, False} == {function["multifunction"] for function in json.loads(text)}


def test_list_reads_a_device_only_to_verify(fakehost: Callable[[str], FakeHost], capsys: Capture) -> None:
    """Only --verify detects a header type that contradicts the slot."""
    host = fakehost("bcm5719")
    for config in Path(host.root.pci_devices).glob("0001:09:00.*/config"):
        data = bytearray(config.read_bytes())
        data[14] &= 0x7F
        config.write_bytes(data)
    bits = [
        {function["multifunction"] for function in json.loads(text) if function["address"].startswith("0001:09:00.")}
        for text in (listed(capsys, host.root, "--json"), listed(capsys, host.root, "--json", "--verify"))
    ]
    assert [{True}, {False}] == bits


def test_a_device_that_lacks_everything(tmp_path: Path, capsys: Capture) -> None:
    """An absent fact is null in JSON, and a dash or a question mark in text."""
    (tmp_path / "sys/bus/pci/devices/0000:00:00.0").mkdir(parents=True)
    root = HostRoot(tmp_path)
    (function,) = json.loads(listed(capsys, root, "--json"))
    expected = {"address": "0000:00:00.0", "multifunction": False, "vfio_driver": "vfio-pci"}
    assert expected == {k: v for k, v in function.items() if v is not None}
    assert ["0000:00:00.0", "?:?", "-", "-", "-", "no", "-", "vfio-pci"] == listed(capsys, root).splitlines()[1].split()


def test_empty_bus(tmp_path: Path, capsys: Capture) -> None:
    """Without functions, the JSON is an empty list and the table a header."""
    (tmp_path / "sys/bus/pci/devices").mkdir(parents=True)
    root = HostRoot(tmp_path)
    assert [] == json.loads(listed(capsys, root, "--json"))
    assert 1 == len(listed(capsys, root).splitlines())


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(("words", "opens"), [((), False), (("--json",), False), (("--verify",), True)])
def test_list_opens_no_configuration_space(
    fakehost: Callable[[str], FakeHost], tmp_path: Path, words: tuple[str, ...], opens: bool
) -> None:
    """A read of configuration space costs a bus cycle and wakes a sleeping device; ari_enabled is not read either."""
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-e", "trace=/^open", "-o", str(trace), sys.executable, "-m", "pyhostdev", "list"]
    done = subprocess.run([*command, "--root", fakehost("ari").root.path, *words], capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip("strace cannot trace here")
    assert 0 == done.returncode, done.stderr
    calls = trace.read_text()
    assert "modalias" in calls or "/vendor" in calls
    assert opens == bool(re.search(r"/(config|ari_enabled)\"", calls))


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "é", "a b"])
def test_a_driver_of_any_name(tmp_path: Path, capsys: Capture, name: str) -> None:
    """The name of a driver is a JSON string, whatever its characters."""
    device = tmp_path / "sys/bus/pci/devices/0000:00:00.0"
    device.mkdir(parents=True)
    (tmp_path / "sys/bus/pci/drivers" / name).mkdir(parents=True)
    (device / "driver").symlink_to(f"../../drivers/{name}")
    text = listed(capsys, HostRoot(tmp_path), "--json")
    assert f'"driver": {json.dumps(name)}, ' in text
    assert name == json.loads(text)[0]["driver"]


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_plain_list_loads_little(fakehost: Callable[[str], FakeHost], words: list[str]) -> None:
    """Neither form loads the classes of devices and records or the library for JSON."""
    dear = {"json", "pyhostdev.util.virpci", "pyhostdev.util.statedir", "pyhostdev.util.selector"}
    command = ["list", "--root", fakehost("bcm5719").root.path, *words]
    code = f"from pyhostdev.tools.main import main; before = set(sys.modules); main({command!r})"
    program = f"import sys; {code}; print(*sorted({dear!r} & set(sys.modules) - before), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "" == done.stderr.strip()
