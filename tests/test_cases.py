# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cases from the field: small definitions and hosts that were answered wrongly once."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyhostdev
from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.errors import RefusedError
from pyhostdev.hypervisor.hostdev_plan import Plan
from pyhostdev.qemu import qemu_driver
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools.main import main

CASES = Path(__file__).parent.parent / "testdata/cases"


def host_of(tree: str, tmp_path: Path) -> pyhostdev.Host:
    fake = FakeHost.from_tree(CASES / f"{tree}.tree", tmp_path)
    return pyhostdev.Host(fake.root, writer=fake.kernel)


TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
UNBUILT = "<channel type='pty'><target type='xen' name='x'/></channel>"


def plan_of(case: str, tree: str, tmp_path: Path, **options: object) -> Plan:
    dom = DomainDef.parse((CASES / f"{case}.xml").read_text().replace(TPM, UNBUILT))
    return qemu_driver.plan(host_of(tree, tmp_path), dom, **options)  # type: ignore[arg-type]


def test_plan_says_what_start_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The devices can be prepared and start would not run the guest; the exit code can follow either."""
    plan = plan_of("plan-can-start", "vf", tmp_path)
    assert (True, False) == (plan.ok, plan.can_start)
    assert ("unsupported", "note", 13) == next(
        (f.reason, f.severity, f.line) for f in plan.findings if "xen" in f.message
    )
    file = tmp_path / "guest.xml"
    file.write_text((CASES / "plan-can-start.xml").read_text().replace(TPM, UNBUILT))
    words = ["plan", str(file), "--root", str(tmp_path)]
    assert (0, 1) == (main(words), main([*words, "--for-start"]))
    assert "can be prepared (policy auto); pyhostdev start would not run it" in capsys.readouterr().out
    assert False is plan.to_json()["can_start"]


def test_all_refusals_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """argv names everything that it cannot build, each with its line."""
    FakeHost.from_tree(CASES / "vf.tree", tmp_path)
    text = (CASES / "plan-can-start.xml").read_text().replace(TPM, UNBUILT)
    two_more = (
        "<sound model='es1370' colour='red'/>\n<channel type='pty'><target type='xen' name='y'/></channel>\n</devices>"
    )
    file = tmp_path / "guest.xml"
    file.write_text(text.replace("</devices>", two_more))
    assert 1 == main(["argv", str(file), "--root", str(tmp_path)])
    said = [line for line in capsys.readouterr().err.splitlines() if "note: " not in line]
    assert 3 <= len(said)
    assert all(line.startswith("pyhostdev: line ") for line in said)


ABSENT = "<hostdev mode='subsystem' type='pci'><source><address bus='0xfe' slot='0' function='0'/></source></hostdev>"


def test_an_absent_device_hides_no_other_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """argv names the line of the device, and what it cannot build."""
    FakeHost.from_tree(CASES / "vf.tree", tmp_path)
    text = (CASES / "plan-can-start.xml").read_text().replace(TPM, UNBUILT)
    file = tmp_path / "guest.xml"
    file.write_text(text.replace("</devices>", f"{ABSENT}\n</devices>"))
    assert 1 == main(["argv", str(file), "--root", str(tmp_path)])
    said = capsys.readouterr().err
    assert "line 14: device-missing: Device 0000:fe:00.0 is not on this host" in said
    assert "line 13: unsupported: A <channel> of type xen is not supported" in said


@pytest.mark.parametrize("verb", ["plan", "start"])
def test_an_unknown_emulator_hides_no_other_refusal(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without capabilities nothing can be built; devices and networks are still checked."""
    file = tmp_path / "guest.xml"
    net = "<interface type='network'><source network='no-such-network'/></interface>"
    text = (CASES / "plan-can-start.xml").read_text().replace(TPM, f"{ABSENT}{net}")
    file.write_text(text.replace("arch='x86_64' machine='q35'", "arch='s390x'").replace("/usr/bin/qemu", "/no/qemu"))
    main([verb, str(file), "--state-dir", str(tmp_path / "state")])
    said = "".join(capsys.readouterr())
    for part in ("architecture 's390x' are stored", "0000:fe:00.0 is not on this host", "no network 'no-such-network'"):
        assert part in said


@pytest.mark.parametrize(("case", "tree", "functions"), [("gpu4-all", "gpu4", 2), ("navi-both", "navi", 2)])
def test_a_bus_reset_is_reported_for_every_function(case: str, tree: str, functions: int, tmp_path: Path) -> None:
    """The reset of a bus reaches all its functions, so all of them get the same sentence."""
    texts = [fate.text for fate in plan_of(case, tree, tmp_path).fates if fate.role]
    assert functions == sum("reset with its bus by vfio-pci" in text for text in texts)
    assert not any("not reset" in text for text in texts)


def test_a_bus_reset_that_reaches_others_is_reported_for_both(tmp_path: Path) -> None:
    """Both declared functions are not reset, for the same reason."""
    texts = [fate.text for fate in plan_of("gpu4-two", "gpu4", tmp_path).fates if fate.role]
    assert [True, True] == ["its bus reset would reach 0000:01:00.2, 0000:01:00.3" in text for text in texts]


def test_one_group_in_two_slots_of_a_guest_with_an_iommu(tmp_path: Path) -> None:
    """QEMU would fail, so the plan has a finding and start refuses."""
    plan = plan_of("gpu4-viommu", "gpu4", tmp_path, accept=["boot-vga:0000:01:00.0"])
    assert ["viommu-group"] == [f.reason for f in plan.findings if f.severity == "note"]
    assert (True, False) == (plan.ok, plan.can_start)


def test_the_network_of_a_vf_is_not_dropped(tmp_path: Path) -> None:
    """Unsupported MAC and VLAN settings refuse prepare until the user consents, after setting them otherwise."""
    host = host_of("vf", tmp_path)
    dom = DomainDef.parse((CASES / "vf-vlan.xml").read_bytes())
    (finding,) = [f for f in host.plan(dom).findings if f.reason == "vf-network"]
    assert "mac, vlan" in finding.message
    with pytest.raises(RefusedError):
        pyhostdev.HostdevManager(host).prepare(host.plan(dom))
    assert host.plan(dom, accept=[f"vf-network:{finding.address}"]).ok
    assert not host.plan(dom, "off").ok


def test_no_setting_of_a_vf_is_dropped(tmp_path: Path) -> None:
    """A link that is down and trust are asked for like a VLAN; an MTU cannot be set, and is named."""
    host = host_of("vf", tmp_path)
    text = (CASES / "vf-vlan.xml").read_text()
    plain = "".join(line for line in text.splitlines(True) if "<mac" not in line and "<vlan" not in line)
    more = "<link state='down'/><mtu size='9000'/></interface>"
    dom = DomainDef.parse(
        plain.replace("</interface>", more).replace("<interface ", "<interface trustGuestRxFilters='yes' ")
    )
    plan = qemu_driver.plan(host, dom)
    (finding,) = [f for f in host.plan(dom).obstacles if f.reason == "vf-network"]
    assert "requests link down, trustGuestRxFilters, which" in finding.message
    assert any("<mtu>" in finding.message for finding in plan.findings)
    plan = host.plan(DomainDef.parse(plain.replace("</interface>", "<link state='up'/></interface>")))
    assert "vf-network" not in [finding.reason for finding in plan.findings]


def test_a_made_mac_is_not_asked_for(tmp_path: Path) -> None:
    """An interface without a MAC gets one in its definition, and its function keeps its own."""
    host = host_of("vf", tmp_path)
    text = (CASES / "vf-vlan.xml").read_text()
    plain = "".join(line for line in text.splitlines(True) if "<mac" not in line and "<vlan" not in line)
    defined = qemu_driver.define(DomainDef.parse(plain), host)
    assert "<mac address=" in defined.format()
    assert host.plan(defined).ok


def test_assigned_yes_on_a_lone_function_is_a_note(tmp_path: Path) -> None:
    """It says what holds anyway; 'no' is refused."""
    tree = (CASES / "lone-function.tree").read_text().replace("group=1 multifunction", "group=1")
    host = pyhostdev.Host(FakeHost.from_tree(tree, tmp_path).root)
    dom = DomainDef.parse((CASES / "lone-function-assigned.xml").read_bytes())
    plan = host.plan(dom)
    assert [("not-multifunction", "note")] == [(f.reason, f.severity) for f in plan.findings if "assigned" in f.message]
    assert plan.ok
    dom.hostdevs[0].assigned = False
    assert "not-multifunction" in [finding.reason for finding in host.plan(dom).obstacles]


def test_an_event_device_has_no_bus() -> None:
    """libvirt's grammar has no bus there."""
    defined = qemu_driver.define(DomainDef.parse((CASES / "evdev.xml").read_bytes()))
    assert "<input type='evdev'>" in defined.format()


def test_what_a_vmd_made_vanishes_with_it(tmp_path: Path) -> None:
    """The functions of its PCI domain do not block the group, are named, and their mounts are asked about."""
    host = host_of("vmd", tmp_path)
    dom = DomainDef.parse((CASES / "vmd-controller.xml").read_bytes())
    plan = host.plan(dom)
    assert {"vanishes", "mounted"} == {finding.reason for finding in plan.findings}
    (note,) = [finding for finding in plan.findings if finding.reason == "vanishes"]
    assert "10000:00:02.0, 10000:01:00.0" in note.message
    assert ["mounted"] == [finding.reason for finding in plan.obstacles]
    assert 2 == sum("vanishes while 0000:2a:00.5 is detached" in fate.text for fate in plan.fates)


def test_a_vmd_is_given_back_with_its_domain(tmp_path: Path) -> None:
    """Prepared, the domain is gone; released, everything is as it was."""
    fake = FakeHost.from_tree(CASES / "vmd.tree", tmp_path)
    before = fake.snapshot()
    host = pyhostdev.Host(fake.root, writer=fake.kernel)
    dom = DomainDef.parse((CASES / "vmd-controller.xml").read_bytes())
    plan = host.plan(dom, accept=["mounted:0000:2a:00.5"])
    manager = pyhostdev.HostdevManager(host)
    with manager.prepared(plan):
        assert ["0000:2a:00.5"] == [str(dev.address) for dev in host.scan()]
    assert ["0000:2a:00.5", "10000:00:02.0", "10000:01:00.0"] == [str(dev.address) for dev in host.scan()]
    assert before == fake.snapshot()
