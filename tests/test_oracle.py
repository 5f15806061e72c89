# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Answers equal to libvirt's for the domains in testdata/oracle: defined XML, command line, refusals.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lxml import etree

from pyhostdev import ConfigError, DomainDef, PCIDeviceAddress
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_capabilities import load
from pyhostdev.testing.treefile import read_host

ORACLE = Path(__file__).parent.parent / "testdata" / "oracle"
CASES = sorted(path.stem for path in ORACLE.glob("*.xml") if not path.name.endswith(".out.xml"))
DEFINED = [name for name in CASES if (ORACLE / f"{name}.out.xml").exists()]
STARTED = [name for name in CASES if (ORACLE / f"{name}.args").exists()]
REFUSED = [name for name in CASES if (ORACLE / f"{name}.code").exists()]


class DescribedHost:
    """A host that is a description only: what address assignment asks, without files."""

    def __init__(self, path: Path) -> None:
        self.functions = read_host(path).functions

    def is_pci_express(self, address: PCIDeviceAddress) -> bool | None:
        spec = self.functions.get(address)
        return None if spec is None else spec.express is not None

    def iommu_group(self, address: PCIDeviceAddress) -> int | None:
        spec = self.functions.get(address)
        return None if spec is None else spec.group


@pytest.fixture(scope="module")
def host() -> DescribedHost:
    """The host of the oracle; nothing here writes to it."""
    return DescribedHost(ORACLE / "host.tree")


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
def test_definition_is_completed_as_libvirt_does(name: str, host: DescribedHost) -> None:
    """Defaults, controllers and addresses are libvirt's."""
    dom = parse(name)
    assert dom.os is not None
    expected = (ORACLE / f"{name}.out.xml").read_text()
    assert canonical(expected) == canonical(define(dom, load(str(dom.os.arch)), host).format())


@pytest.mark.parametrize("name", DEFINED)
def test_defining_again_changes_nothing(name: str, host: DescribedHost) -> None:
    """A stored definition keeps its addresses; only controllers that were added move to their indices."""
    dom = parse(name)
    assert dom.os is not None
    capabilities = load(str(dom.os.arch))
    once = define(dom, capabilities, host).format()
    twice = define(DomainDef.parse(once), capabilities, host).format()
    assert sorted(canonical(once)) == sorted(canonical(twice))
    assert twice == define(DomainDef.parse(twice), capabilities, host).format()


@pytest.mark.parametrize("name", STARTED)
def test_command_line_is_libvirts(name: str, host: DescribedHost) -> None:
    """Every argument, in order."""
    lines = (ORACLE / f"{name}.args").read_text().splitlines()
    expected = [re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), line) for line in lines]
    assert neutral(expected) == neutral(build_command_line(parse(name), host=host, state_dir="@ROOT@"))


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_has_libvirts_number(name: str, host: DescribedHost) -> None:
    """What libvirt refuses to define is refused, with the same error number."""
    expected = int((ORACLE / f"{name}.code").read_text())
    with pytest.raises(ConfigError) as refusal:
        dom = parse(name)
        define(dom, load(str(dom.os.arch) if dom.os is not None else "x86_64"), host)
    assert expected == refusal.value.libvirt_code
