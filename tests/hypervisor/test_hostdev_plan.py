# SPDX-License-Identifier: LGPL-2.1-or-later
"""The plan: every function accounted for, every obstacle named, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev import ConfigError, ConfigUnsupportedError, DomainDef, Host, Plan
from pyhostdev.testing.fakehost import FakeHost

CARD = [f"0001:09:00.{function}" for function in range(4)]
Domain = Callable[..., DomainDef]
Fake = Callable[[str], FakeHost]


def plan_for(fake: FakeHost, definition: DomainDef, policy: str = "auto") -> Plan:
    """Plan, and check that no byte of the host has changed."""
    before = fake.snapshot()
    plan = Host(fake.root).plan(definition, policy)
    assert before == fake.snapshot()
    return plan


def reasons(plan: Plan) -> list[tuple[str, str]]:
    return [(finding.reason, str(finding.address)) for finding in plan.findings]


def test_seed_scenario_detaches_and_gives_back_all_four(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Functions 0 and 3 are assigned, 1 and 2 are kept; all four are detached and reattached."""
    plan = plan_for(bcm5719, seed_domain)
    roles = ["assigned", "unassigned", "unassigned", "assigned"]
    moves = [(a, r, "detach", "tg3", "vfio-pci") for a, r in zip(CARD, roles, strict=True)]
    resets = [(a, r, "reset", "vfio-pci", "vfio-pci") for a, r in zip(CARD, roles, strict=True)]
    returns = [(a, r, "reattach", "vfio-pci", "tg3") for a, r in zip(CARD, roles, strict=True)]
    assert moves + resets + returns == [(str(s.address), *s[1:]) for s in plan.steps]
    assert (plan.ok, reasons(plan)) == (True, [])


def test_s4_missing_functions_are_all_named(bcm5719: FakeHost, domain: Domain) -> None:
    """S4: with functions 0 and 3 declared, 1 and 2 are one finding each."""
    plan = plan_for(bcm5719, domain("vm1", f"{CARD[0]} yes at 04.0", f"{CARD[3]} yes at 04.3"))
    assert [("incomplete-device", CARD[1]), ("incomplete-device", CARD[2])] == reasons(plan)
    assert not plan.ok


@pytest.mark.parametrize("managed", ["", " unmanaged"])
def test_s4_holds_for_managed_and_unmanaged_alike(
    bcm5719: FakeHost, domain: Domain, manager_for: Callable[[FakeHost], object], managed: str
) -> None:
    """S4: with functions detached by hand, all must still be declared."""
    manager = manager_for(bcm5719)
    for dev in Host(bcm5719.root).scan():
        if str(dev.address) in CARD:
            manager.nodedev_detach(dev.address)  # type: ignore[attr-defined]
    plan = plan_for(bcm5719, domain("vm1", f"{CARD[0]} yes{managed}", f"{CARD[3]} yes{managed}"))
    assert [("incomplete-device", CARD[1]), ("incomplete-device", CARD[2])] == reasons(plan)


def test_s4_is_checked_when_planning_not_at_parse(bcm5719: FakeHost, domain: Domain) -> None:
    """S4: an incomplete definition parses and validates: a stored definition must stay valid."""
    definition = domain("vm1", f"{CARD[0]} yes")
    definition.validate(Host(bcm5719.root))
    assert not plan_for(bcm5719, definition).ok


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("auto", [("incomplete-device", CARD[i]) for i in (1, 2)]),
        ("device", [("incomplete-device", CARD[i]) for i in (1, 2)]),
        ("group", [("incomplete-device", CARD[i]) for i in (1, 2)]),
        ("off", []),
    ],
)
def test_policies_on_one_group(bcm5719: FakeHost, domain: Domain, policy: str, expected: list[object]) -> None:
    """In one group, every policy except off names the siblings that are bound to their host drivers."""
    assert expected == reasons(plan_for(bcm5719, domain("vm1", CARD[0], CARD[3]), policy))


@pytest.mark.parametrize(("policy", "ok"), [("auto", True), ("group", True), ("device", False), ("off", True)])
def test_port_with_its_own_group_goes_alone(fakehost: Fake, domain: Domain, policy: str, ok: bool) -> None:
    """One port of a NIC with ports in separate groups works as in libvirt; only policy device objects."""
    fake = fakehost("nic-own-groups")
    first = next(d for d in Host(fake.root).scan() if d.is_multifunction() and not d.is_bridge)
    assert ok == plan_for(fake, domain("vm1", str(first.address)), policy).ok


def test_speaking_assigned_gets_the_device_rule(fakehost: Fake, domain: Domain) -> None:
    """assigned= on one function enables rule S4, even with separate groups."""
    fake = fakehost("nic-own-groups")
    first = next(d for d in Host(fake.root).scan() if d.is_multifunction() and not d.is_bridge)
    plan = plan_for(fake, domain("vm1", f"{first.address} yes"))
    assert [reason for reason, _ in reasons(plan)] == ["incomplete-device"]


def test_driverless_sibling_does_not_block_its_group(bcm5719: FakeHost, domain: Domain) -> None:
    """Policy group: a member without a driver does not keep the DMA."""
    for address in CARD[1:3]:
        bcm5719.kernel.write(
            f"{bcm5719.root.pci_driver('tg3')}/unbind",
            address.encode(),
            device=None,  # type: ignore[arg-type]
        )
    assert plan_for(bcm5719, domain("vm1", CARD[0], CARD[3])).ok


def test_bridge_in_the_group_is_named_with_its_driver(fakehost: Fake, domain: Domain) -> None:
    """A bridge whose driver keeps the group's DMA is group-not-viable; declaring it does not help."""
    fake = fakehost("bridge-group")
    functions = [d for d in Host(fake.root).scan() if d.class_ is not None and d.class_ >> 16 == 2]
    plan = plan_for(fake, domain("vm1", *(f"{d.address} yes" for d in functions)))
    assert [reason for reason, _ in reasons(plan)] == ["group-not-viable"]
    assert "shpchp" in plan.findings[0].message


def test_missing_device_is_refused(bcm5719: FakeHost, domain: Domain) -> None:
    """A device that the host does not have is device-missing."""
    assert reasons(plan_for(bcm5719, domain("vm1", "0001:0a:00.0"))) == [("device-missing", "0001:0a:00.0")]


def test_bridge_is_not_an_endpoint(bcm5719: FakeHost, domain: Domain) -> None:
    """A bridge cannot be given to a guest."""
    bridge = next(d for d in Host(bcm5719.root).scan() if d.is_bridge)
    assert ("not-endpoint", str(bridge.address)) in reasons(plan_for(bcm5719, domain("vm1", str(bridge.address))))


def test_pf_with_vfs_is_refused_before_its_driver_is_gone(fakehost: Fake, domain: Domain) -> None:
    """A PF with enabled VFs is pf-with-vfs; one of its VFs is accepted, and is never multifunction."""
    fake = fakehost("sriov")
    vf = next(d for d in Host(fake.root).scan() if d.is_virtual_function)
    assert "pf-with-vfs" in [r for r, _ in reasons(plan_for(fake, domain("vm1", str(vf.physfn))))]
    assert reasons(plan_for(fake, domain("vm1", str(vf.address)))) == []


def test_policy_off_leaves_the_kernels_refusals_to_the_kernel(fakehost: Fake, domain: Domain) -> None:
    """Under policy off, a fact that libvirt does not check is a note, so that the answers equal libvirt's."""
    fake = fakehost("sriov")
    vf = next(d for d in Host(fake.root).scan() if d.is_virtual_function)
    plan = plan_for(fake, domain("vm1", str(vf.physfn)), "off")
    assert ("pf-with-vfs", "note") in [(f.reason, f.severity) for f in plan.findings]
    assert "pf-with-vfs" not in [f.reason for f in plan.obstacles]


def test_s6_vf_is_not_multifunction_so_assigned_is_refused(fakehost: Fake, domain: Domain) -> None:
    """S6: a VF in the slot of a multifunction PF has no siblings and does not support assigned=."""
    fake = fakehost("pf-multifunction")
    vf = next(d for d in Host(fake.root).scan() if d.is_virtual_function)
    assert vf.is_multifunction() is False
    assert [vf.address] == [d.address for d in vf.read_siblings()]
    assert [("not-multifunction", str(vf.address))] == reasons(plan_for(fake, domain("vm1", f"{vf.address} yes")))


def test_unmanaged_device_on_its_host_driver(bcm5719: FakeHost, domain: Domain) -> None:
    """managed='no' means that the device is already detached: if it is not, the plan refuses it."""
    plan = plan_for(bcm5719, domain("vm1", *(f"{a} unmanaged" for a in CARD)))
    assert [("unmanaged-attached", a) for a in CARD] == reasons(plan)


def test_s8_slot_without_function_0_is_a_note(bcm5719: FakeHost, domain: Domain) -> None:
    """S8: a guest slot used without its function 0 is noted, and does not refuse."""
    words = [f"{CARD[0]} no", f"{CARD[1]} no", f"{CARD[2]} no", f"{CARD[3]} yes at 04.3"]
    plan = plan_for(bcm5719, domain("vm1", *words))
    assert [("no-guest-function-0", CARD[3])] == reasons(plan)
    assert (plan.ok, plan.findings[0].severity) == (True, "note")


def test_device_on_vfio_stays_there(bcm5719: FakeHost, domain: Domain) -> None:
    """A function that is already bound to vfio-pci stays there and is not reattached; the plan reports it."""
    host = Host(bcm5719.root, writer=bcm5719.kernel)
    from pyhostdev.util.pcidriver import DriverMover, read_binding

    address = host.scan().groups[14][1].address
    DriverMover(host.root, bcm5719.kernel).detach(address, read_binding(host.root, address), "vfio-pci")
    words = [f"{CARD[0]} yes", f"{CARD[1]} no", f"{CARD[2]} no", f"{CARD[3]} yes"]
    steps = [s for s in plan_for(bcm5719, domain("vm1", *words)).steps if s.address == address]
    assert [s[2:] for s in steps] == [("keep", "vfio-pci", "vfio-pci")]


def test_no_vfio_at_all_is_vfio_missing(fakehost: Fake, domain: Domain) -> None:
    """Without the driver and its module, the plan is refused; the reason is reported once."""
    fake = fakehost("bcm5719")
    import shutil

    shutil.rmtree(fake.root.pci_driver("vfio-pci"), ignore_errors=True)
    for top in ("lib/modules", "sys/module/vfio_pci"):
        shutil.rmtree(fake.root.join(top), ignore_errors=True)
    plan = plan_for(fake, domain("vm1", *(f"{a} yes" for a in CARD)))
    assert [reason for reason, _ in reasons(plan)] == ["vfio-missing"]


def test_json_has_the_contracts_words(bcm5719: FakeHost, domain: Domain) -> None:
    """The JSON of steps and findings has exactly the documented keys."""
    plan = plan_for(bcm5719, domain("vm1", f"{CARD[0]} yes")).to_json()
    assert {"version", "ok", "can_start", "owner", "policy", "steps", "findings"} <= plan.keys()
    assert {"accepted", "groups", "proposal"} <= plan.keys()
    assert {"address", "role", "action", "from", "to"} == plan["steps"][0].keys()
    assert {"reason", "severity", "address", "message"} == plan["findings"][0].keys()


def test_explain_names_every_member(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """The explanation has a line for each function of the touched group."""
    text = plan_for(bcm5719, seed_domain).explain()
    assert all(address in text for address in CARD)
    assert "kept from the guest" in text


def test_unknown_policy_is_a_config_error(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A policy that does not exist is named."""
    with pytest.raises(ConfigError, match="sometimes"):
        Host(bcm5719.root).plan(seed_domain, "sometimes")


def test_foreign_backend_is_unsupported(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A hostdev for another backend than VFIO is refused by name, with libvirt's number."""
    next(iter(seed_domain.hostdevs)).driver_name = "xen"
    with pytest.raises(ConfigUnsupportedError, match="xen") as error:
        Host(bcm5719.root).plan(seed_domain)
    assert error.value.libvirt_code == 67


ACCELERATOR = "driver c6xx 8086:37c8\ndriver vfio-pci\n0000:01:00.0 8086:37c8 0b4000 driver=c6xx group=1\n"


@pytest.mark.fault("F11")
@pytest.mark.parametrize(("setting", "denied"), [(None, True), ("N\n", True), ("Y\n", False)])
def test_device_that_vfio_pci_denies(fakehost: Fake, domain: Domain, setting: str | None, denied: bool) -> None:
    """A device that vfio-pci would deny is refused by the plan, unless the module's parameter accepts it."""
    fake = fakehost(ACCELERATOR)
    if setting is not None:
        parameters = Path(fake.root.module("vfio-pci"), "parameters")
        parameters.mkdir(parents=True)
        (parameters / "disable_denylist").write_text(setting)
    expected = [("denied-device", "0000:01:00.0")] if denied else []
    assert expected == reasons(plan_for(fake, domain("vm1", "0000:01:00.0")))
    scan = Host(fake.root).scan()
    assert expected == [(o.reason, str(o.address)) for o in scan.obstacles(scan[0]) if o.reason == "denied-device"]


BUS = """\
driver pcieport class:0604 builtin
driver tg3 14e4:1657
driver vfio-pci
0000:00:01.0 8086:1901 060400 driver=pcieport group=1 bridge=01-01 express=root-port
0000:01:00.0 14e4:1657 020000 driver=tg3 group=2 express=endpoint {first}
"""
SECOND = "0000:01:00.1 14e4:1657 020000 group=2 multifunction express=endpoint\n"


@pytest.mark.fault("F19")
@pytest.mark.parametrize(
    ("first", "second", "declared", "words"),
    [
        ("flr", "", 1, "afterwards reset (flr, which reaches nothing else) and"),
        ("pm=noreset", "", 1, "afterwards reset (bus, which reaches nothing else) and"),
        ("multifunction", SECOND, 1, "its bus reset would reach 0000:01:00.1, which the guest does not have and"),
        ("multifunction", SECOND, 2, "reset with its bus by vfio-pci when QEMU closes it, as all of the bus"),
    ],
)
def test_plan_shows_method_and_reach_of_the_reset(
    fakehost: Fake, domain: Domain, first: str, second: str, declared: int, words: str
) -> None:
    """The plan shows a device's reset method and its reach: a bus reset only if the guest gets the whole bus."""
    fake = fakehost(BUS.format(first=first) + second)
    plan = plan_for(fake, domain("vm1", *[f"0000:01:00.{number}" for number in range(declared)]), "off")
    assert [words] == [words for fate in plan.fates if fate.name == "0000:01:00.0" and words in fate.text]
