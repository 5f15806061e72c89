# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Answers equal to libvirt's for the domains in testdata/oracle: defined XML, command line, refusals.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from pyhostdev import ConfigError, DomainDef, PCIDeviceAddress
from pyhostdev.conf.libvirt_release import RELEASES
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities, load
from pyhostdev.testing.fakehost import FakeHost, snapshot_tree
from pyhostdev.testing.treefile import read_host

R9_0 = RELEASES[0]  # whose answers lie there
ORACLE = Path(__file__).parent.parent / "testdata" / "oracle"
CASES = sorted(path.stem for path in ORACLE.glob("*.xml") if not path.name.endswith(".out.xml"))
DEFINED = [name for name in CASES if (ORACLE / f"{name}.out.xml").exists()]
STARTED = [name for name in CASES if (ORACLE / f"{name}.args").exists()]
REFUSED = [name for name in CASES if (ORACLE / f"{name}.code").exists()]


class DescribedHost:
    """A host without files, from a description: the facts that address assignment needs."""

    def __init__(self, path: Path) -> None:
        self.functions = read_host(path).functions

    def is_pci_express(self, address: PCIDeviceAddress) -> bool | None:
        spec = self.functions.get(address)
        return None if spec is None else spec.express is not None

    def iommu_group(self, address: PCIDeviceAddress) -> int | None:
        spec = self.functions.get(address)
        return None if spec is None else spec.group


@pytest.fixture(scope="module")
def host() -> Any:
    """The host of the oracle; nothing here writes to it."""
    return DescribedHost(ORACLE / "host.tree")


def defined(dom: DomainDef, capabilities: QEMUCapabilities, host: Any) -> DomainDef:
    return define(dom, capabilities, host, release=R9_0)


def parse(name: str) -> DomainDef:
    return DomainDef.parse((ORACLE / f"{name}.xml").read_bytes())


def canonical(xml: str) -> list[str]:
    """Return the elements in order, with attributes sorted: order of attributes and blanks mean nothing."""
    lines = []
    for element in etree.fromstring(xml.encode()).iter(etree.Element):
        depth = len(list(element.iterancestors()))
        lines.append(f"{'  ' * depth}{element.tag} {sorted(element.attrib.items())} {(element.text or '').strip()}")
    return lines


def neutral(argv: list[str]) -> list[str]:
    """Return arguments without what depends on the run: domain id, monitor socket, what the image says."""
    words = (re.sub(r"/domain--?\d+-", "/domain--1-", word) for word in argv)
    words = (re.sub(r"^(socket,id=charmonitor),.*", r"\1,@MONITOR@", word) for word in words)
    return [word.replace(',"backing":null', "") for word in words]


@pytest.mark.parametrize("name", DEFINED)
def test_definition_is_completed_as_libvirt_does(name: str, host: Any) -> None:
    """Defaults, controllers and addresses are libvirt's."""
    dom = parse(name)
    assert dom.os is not None
    expected = (ORACLE / f"{name}.out.xml").read_text()
    assert canonical(expected) == canonical(defined(dom, load(str(dom.os.arch), R9_0.qemu), host).format())


@pytest.mark.parametrize("name", DEFINED)
def test_defining_again_changes_nothing(name: str, host: Any) -> None:
    """A stored definition keeps its addresses; only controllers that were added move to their indices."""
    dom = parse(name)
    assert dom.os is not None
    capabilities = load(str(dom.os.arch), R9_0.qemu)
    once = defined(dom, capabilities, host).format()
    twice = defined(DomainDef.parse(once), capabilities, host).format()
    assert sorted(canonical(once)) == sorted(canonical(twice))
    assert twice == defined(DomainDef.parse(twice), capabilities, host).format()


@pytest.mark.parametrize("name", STARTED)
def test_command_line_is_libvirts(name: str, host: Any) -> None:
    """Every argument, in order."""
    lines = (ORACLE / f"{name}.args").read_text().splitlines()
    expected = [re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), line) for line in lines]
    argv = build_command_line(parse(name), host=host, state_dir="@ROOT@", release=R9_0)
    assert neutral(expected) == neutral(argv)


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_has_libvirts_number(name: str, host: Any) -> None:
    """What libvirt refuses to define is refused, with the same error number."""
    expected = int((ORACLE / f"{name}.code").read_text())
    with pytest.raises(ConfigError) as refusal:
        dom = parse(name)
        defined(dom, load(str(dom.os.arch) if dom.os is not None else "x86_64", R9_0.qemu), host)
    assert expected == refusal.value.libvirt_code


@pytest.fixture(scope="module")
def host_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oracle's host as a directory; a simulated start restores it."""
    directory = tmp_path_factory.mktemp("oracle")
    FakeHost.from_tree(ORACLE / "host.tree", directory)
    return directory


def ask(directory: Path, *questions: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Return the server's answers; it runs elsewhere, and gets nothing from the environment."""
    server = [sys.executable, str(Path(__file__).parent / "oracle_server.py"), f"{directory}/sys", f"{directory}/dev"]
    lines = "".join("\t".join(question) + "\n" for question in questions)
    done = subprocess.run(server, input=lines, text=True, capture_output=True, cwd=directory, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_server_answers_in_compares_protocol(host_directory: Path) -> None:
    """One line of JSON for each question, with libvirt's number where there is no answer."""
    path, broken = str(ORACLE / "q35-auto-012.xml"), str(ORACLE / f"{REFUSED[0]}.xml")
    kinds = [(kind, path, "") for kind in ("xml", "argv", "start", "plan")]
    xml, argv, start, explained, refused = ask(host_directory, *kinds, ("xml", broken, ""))
    assert canonical((ORACLE / "q35-auto-012.out.xml").read_text()) == canonical(xml["ok"])
    assert "-device" in argv["ok"]
    assert {"error", "code", "ops", "writes"} == set(start["ok"])
    assert explained["ok"].startswith("Domain '")
    assert int((ORACLE / f"{REFUSED[0]}.code").read_text()) == refused["code"]


def test_start_leaves_the_host_as_it_was(host_directory: Path, tmp_path: Path) -> None:
    """What a simulated start does is undone before the answer is given; the order is that of the definition."""
    before = snapshot_tree(str(host_directory))
    dom = tmp_path / "dom.xml"
    hostdev = (
        "<hostdev mode='subsystem' type='pci' managed='yes'><source>"
        "<address domain='0' bus='3' slot='0' function='{}'/></source></hostdev>"
    )
    dom.write_text(
        "<domain type='qemu'><name>vm</name><memory unit='MiB'>128</memory><os><type arch='x86_64' machine='pc'>hvm"
        f"</type></os><devices>{hostdev.format(1)}{hostdev.format(0)}</devices></domain>"
    )
    (answer,) = ask(host_directory, ("start", str(dom), ""))
    devices = ["0000:03:00.1", "0000:03:00.0"]
    paths = [f"/sys/bus/pci/devices/{device}/driver_override" for device in devices * 2]
    values = ["vfio-pci", "vfio-pci", "", ""]
    expected = [list(row) for row in zip(paths, values, ["ok"] * 4, strict=True)]
    assert expected == answer["ok"]["ops"]
    assert (None, None) == (answer["ok"]["error"], answer["ok"]["code"])
    assert {"/driver_override", "/unbind", "/bind"} <= {
        path[path.rindex("/") :] for path, _, _ in answer["ok"]["writes"]
    }
    assert before == snapshot_tree(str(host_directory))


def test_controllers_are_in_the_order_of_the_definition(host_directory: Path, tmp_path: Path) -> None:
    """9.0 adds controllers at the end, with and without a start; completing a definition twice would sort them."""
    head = "<name>vm</name><memory unit='MiB'>128</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>"
    port = "<controller type='pci' index='2' model='pcie-root-port'/>"
    address = "<address domain='0' bus='3' slot='0' function='0'/>"
    hostdev = f"<hostdev type='pci' managed='yes'><source>{address}</source></hostdev>"
    for name, devices in (("shown", port), ("started", port + hostdev)):
        (tmp_path / name).write_text(f"<domain type='qemu'>{head}<devices>{devices}</devices></domain>")
    answers = ask(host_directory, *(("argv", str(tmp_path / name), "") for name in ("shown", "started")))
    found = [re.findall(r'"id":"(pci\.[12])"', " ".join(answer["ok"])) for answer in answers]
    assert [["pci.2", "pci.1"], ["pci.2", "pci.1"]] == found
