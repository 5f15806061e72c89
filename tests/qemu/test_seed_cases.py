# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The cases the seed names: definition in, completed definition and command line out, as golden files.

    pytest tests/qemu/test_seed_cases.py --regenerate
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev import DomainDef, Host
from pyhostdev.conf.hostfacts import HostFacts
from pyhostdev.conf.libvirt_release import RELEASES
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_capabilities import load
from pyhostdev.qemu.qemu_command import stored_capabilities
from pyhostdev.testing.fakehost import FakeHost

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
CASES = [
    "hostdev-pci-multifunction",
    "hostdev-pci-multifunction-partial",
    "hostdev-pci-multifunction-partial-fail",
    "pseries-hostdevs-1",
    "pseries-hostdevs-2",
    "pseries-hostdevs-3",
]
R9_0 = RELEASES[0]  # whose answers were reviewed
Check = Callable[[Path, str], None]


def parse(name: str) -> DomainDef:
    return DomainDef.parse((TESTDATA / f"{name}.xml").read_bytes())


def host_devices(dom: DomainDef) -> list[str]:
    """Return host and guest address of each host device; the guest's is "-" if it gets none."""
    rows = ((hostdev.pci_address, hostdev.info.pci) for hostdev in dom.pci_hostdevs())
    return [f"{source} {guest.pci if guest is not None else '-'}" for source, guest in rows]


@pytest.mark.parametrize("name", CASES)
def test_completed_definition(name: str, libvirt_host: HostFacts, check_golden: Check) -> None:
    """Defaults, controllers and guest addresses of the seed's cases stay as they were reviewed."""
    dom = parse(name)
    defined = define(dom, stored_capabilities(dom, R9_0), libvirt_host, release=R9_0)
    check_golden(TESTDATA / f"{name}.out.xml", defined.format())


@pytest.mark.parametrize("name", CASES)
def test_command_line(name: str, libvirt_host: HostFacts, check_golden: Check) -> None:
    """The command lines of the seed's cases stay as they were reviewed; one argument per line."""
    argv = build_command_line(parse(name), host=libvirt_host, release=R9_0)
    check_golden(TESTDATA / f"{name}.args", "".join(f"{word}\n" for word in argv))


def test_s3_unassigned_functions_are_not_in_the_command_line(libvirt_host: HostFacts) -> None:
    """S3: of four declared functions, the two with assigned='no' have no -device."""
    argv = build_command_line(parse("hostdev-pci-multifunction-partial"), host=libvirt_host)
    assert ["0005:90:01.0", "0005:90:01.3"] == [
        word.split('"host":"')[1].split('"')[0] for word in argv if '"host":"' in word
    ]


def test_s3_assigned_no_has_no_guest_address_and_takes_no_slot(libvirt_host: HostFacts) -> None:
    """S3: assigned='no' gets no guest address, and what comes after it no other one."""
    dom = parse("hostdev-pci-multifunction-partial")
    dom.hostdevs[0].info.address = dom.hostdevs[3].info.address = None
    defined = define(dom, load("x86_64"), libvirt_host)
    expected = ["0005:90:01.0 0000:00:02.0", "0005:90:01.1 -", "0005:90:01.2 -", "0005:90:01.3 0000:00:03.0"]
    assert expected == host_devices(defined)


def test_every_function_has_a_slot_of_its_own(libvirt_host: HostFacts) -> None:
    """libvirt spreads the functions of multifunction devices over slots; no slot is multifunction then."""
    defined = define(parse("hostdev-pci-multifunction"), load("x86_64"), libvirt_host)
    guests = [hostdev.info.pci for hostdev in defined.pci_hostdevs()]
    expected = [(0, slot, 0, None) for slot in range(2, 10)]
    assert expected == [(g.bus, g.slot, g.function, g.multifunction) for g in guests if g is not None]


def test_partial_functions_share_the_slot_the_user_chose(libvirt_host: HostFacts) -> None:
    """Functions 0 and 3 keep slot 4, and its function 0 is marked multifunction."""
    defined = define(parse("hostdev-pci-multifunction-partial"), load("x86_64"), libvirt_host)
    guests = [hostdev.info.pci for hostdev in defined.guest_visible_hostdevs()]
    expected = [(4, 0, True), (4, 3, None)]
    assert expected == [(g.slot, g.function, g.multifunction) for g in guests if g is not None]


def test_partial_fail_is_refused_by_the_plan_only(fakehost: Callable[[str], FakeHost]) -> None:
    """A missing function does not make the definition wrong; the plan names it and refuses."""
    dom = parse("hostdev-pci-multifunction-partial-fail")
    host = Host(fakehost("libvirt").root)
    dom.validate(host)
    plan = host.plan(dom)
    found = [(finding.reason, str(finding.address)) for finding in plan.findings if finding.severity == "error"]
    assert (False, [("incomplete-device", "0005:90:01.2")]) == (plan.ok, found)


def test_pseries_gives_each_group_a_host_bridge(libvirt_host: HostFacts) -> None:
    """On pseries an interface and a card of another group are behind two bridges, neither behind bridge 0."""
    defined = define(parse("pseries-hostdevs-1"), load("ppc64"), libvirt_host)
    expected = ["0000:06:12.1 0000:01:01.0", "0001:01:00.0 0000:02:01.0", "0001:01:00.1 0000:02:02.0"]
    assert expected == host_devices(defined)


def test_pseries_gives_another_group_another_bridge(libvirt_host: HostFacts) -> None:
    """On pseries a user's choice of bridge makes that bridge one of its group."""
    defined = define(parse("pseries-hostdevs-2"), load("ppc64"), libvirt_host)
    assert ["0001:01:00.0 0000:01:05.0", "0000:06:12.2 0000:02:01.0"] == host_devices(defined)


def test_pseries_puts_a_second_function_behind_its_group_s_bridge(libvirt_host: HostFacts) -> None:
    """On pseries the second function of a card follows the first one."""
    defined = define(parse("pseries-hostdevs-3"), load("ppc64"), libvirt_host)
    assert ["0001:01:00.0 0000:01:05.0", "0001:01:00.1 0000:01:01.0"] == host_devices(defined)
