# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Small definitions, each with one unusual part: accepted or refused as libvirt does, with the same error number.

The answers in testdata/conf/numbers.json are those of libvirt 9.0, 11.3 and 12.8; 0 stands for an accepted definition.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyhostdev import ConfigError, DomainDef
from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.qemu import define
from pyhostdev.qemu.qemu_capabilities import load

TESTDATA = Path(__file__).parents[2] / "testdata"
CASES: list[tuple[dict[str, str], list[int]]] = json.loads((TESTDATA / "conf/numbers.json").read_text())
# part of a case -> why the answer is another one
DIFFERENT = {
    "<redirfilter>": "a second set of rules extends the first",
    "<keywrap>": "QEMU on these architectures wraps no keys, so a second cipher of one name has no effect",
    "<genid/><genid/>": "the second <genid> is ignored",
    "model='none'/><interface": "the missing USB bus is found before the missing PCI address, in 9.0",
    "type='mdev'><source/>": "the missing uuid is found before the missing model",
    "<capabilities": "only containers have <capabilities>, which is dropped unread",
    "<nvram></nvram>": "an empty <nvram> counts as absent",
    "autoport='foo'": "an invalid value is ignored in all releases",
    "'^0'": "a set that excludes a number which it does not contain is an invalid set",
    "<cachetune": "QEMU without KVM has none, also no empty one",
    "controller='1' unit='1'/></disk>": "the IDE controller that q35 lacks is found before the second one",
    "<disk model='usb-": "the wrong model is found before the missing PCI address",
    "protocol='vxhs'": "QEMU no longer supports vxhs, also where libvirt still defines it",
    "<source pool='p'/>": "half a name of a volume is an absent source",
    "type='vds'": "only another hypervisor has such interfaces, with or without source",
    "type='hostdev'><source><address type='usb'": "an interface is a PCI function",
    "<virtualport type='foo'/>": "libvirt changed this number in 12.8 only",
    "<frames max='x'/>": "start refuses <coalesce> unread",
    "<ip address='": "an interface of type bridge has no <ip>, also no valid one",
    "<memorytune": "QEMU without KVM has none, also no empty one",
}


class NoDevices:
    """A host without devices."""

    def is_pci_express(self, address: object) -> None:
        return None

    def iommu_group(self, address: object) -> None:
        return None


def document(case: dict[str, str]) -> str:
    root = case.get("domain", "<domain type='qemu'>")
    boot = case.get("os", "<os><type arch='x86_64' machine='q35'>hvm</type></os>")
    return (
        f"{root}<name>a</name><memory>1048576</memory><vcpu>2</vcpu>{boot}{case.get('top', '')}"
        f"<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{case.get('devices', '')}</devices></domain>"
    )


def number(case: dict[str, str], release: LibvirtRelease, host: Any) -> int:
    """Return the number of the refusal, 0 without one."""
    try:
        define(DomainDef.parse(document(case)), load("x86_64", release.qemu), host, release=release)
    except ConfigError as err:
        return err.code_in(release)
    return 0


@pytest.mark.parametrize("place", range(len(RELEASES)), ids=map(str, RELEASES))
def test_answers_are_libvirts(place: int) -> None:
    """Every case that is not excused has libvirt's answer, in each release."""
    host = NoDevices()
    wrong = {}
    for case, answers in CASES:
        text = " ".join(case.values())
        answer = number(case, RELEASES[place], host)
        if answer != answers[place] and not any(part in text for part in DIFFERENT):
            wrong[text] = (answers[place], answer)
    assert {} == wrong


def test_every_excuse_is_needed() -> None:
    """Each excused part has another answer in at least one release."""
    host = NoDevices()
    for part in DIFFERENT:
        cases = [(case, answers) for case, answers in CASES if part in " ".join(case.values())]
        assert any([number(case, release, host) for release in RELEASES] != answers for case, answers in cases), part


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("<cpu mode='host-passthrough' match='exact'><model>EPYC</model></cpu>", {"match": None, "model": None}),
        ("<cpu mode='host-model' match='strict'/>", {"match": None}),
        ("<cpu mode='custom'><model>EPYC</model></cpu>", {"match": "exact", "model": "EPYC"}),
    ],
)
def test_a_mode_of_the_processor_has_its_own_parts(written: str, expected: dict[str, str | None]) -> None:
    """libvirt prints ``match`` of a custom processor only, and no model where the guest gets the host's."""
    parsed = DomainDef.parse(document({"top": written, "domain": "<domain type='kvm'>"}))
    dom = define(parsed, load("x86_64", RELEASES[0].qemu), NoDevices())  # type: ignore[arg-type]
    assert dom.cpu is not None
    assert expected == {name: getattr(dom.cpu, name) for name in expected}
