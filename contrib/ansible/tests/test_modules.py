# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each module on simulated hosts: check mode changes nothing, a second run changes nothing, a refusal has findings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyhostdev.tools.demo import GUEST

CARD = [f"0001:09:00.{function}" for function in range(4)]
TWO = [{"address": CARD[0]}, {"address": CARD[3]}]
Build = Callable[..., Any]


def drivers(lines: list[str]) -> list[str]:
    """Return the lines of a diff that name a driver."""
    return [line for line in lines if line[1:8] == CARD[0][:7]]


def test_info(fleet: Build) -> None:
    """Functions, groups and findings of each host are facts, and nothing is written."""
    some = fleet(web="bcm5719", db="sriov")
    before = some.trees()
    found = some.module("pci_info")
    assert CARD == found["web"]["groups"]["14"]
    assert found["web"]["functions"] == found["web"]["ansible_facts"]["pyhostdev"]["functions"]
    reasons = {(finding["reason"], finding["address"]) for finding in found["db"]["findings"]}
    assert {("mounted", "0000:02:00.0"), ("default-route", "0000:03:00.0")} <= reasons
    assert before == some.trees()
    assert not any(result["changed"] for result in found.values())


def test_plan(fleet: Build) -> None:
    """A host that can take the devices says how; one that cannot fails, and does not stop the other."""
    some = fleet(web="bcm5719", db="sriov")
    before = some.trees()
    found = some.module("pci_plan", devices=TWO, complete=True)
    assert found["web"]["plan"]["ok"]
    assert {CARD[1], CARD[2]} == {s["address"] for s in found["web"]["plan"]["steps"] if s["role"] == "unassigned"}
    assert found["db"]["failed"]
    assert "0 functions match" in found["db"]["msg"]
    assert before == some.trees()


def test_plan_refuses_with_findings(fleet: Build) -> None:
    """Two of four functions: both missing ones are findings of the failure."""
    found = fleet(web="bcm5719").module("pci_plan", devices=TWO)["web"]
    assert found["failed"]
    assert {("incomplete-device", CARD[1]), ("incomplete-device", CARD[2])} == {
        (finding["reason"], finding["address"]) for finding in found["findings"]
    }


def test_plan_of_a_domain(fleet: Build) -> None:
    """A domain's XML is planned as it is, from its text or from a file of the host; invalid XML is a failure."""
    some = fleet(web="bcm5719")
    with open(GUEST, encoding="utf-8") as stream:
        text = stream.read()
    assert some.module("pci_plan", domain=text)["web"]["plan"] == some.module("pci_plan", src=GUEST)["web"]["plan"]
    assert "XML is not well-formed" in some.module("pci_plan", domain="<domain")["web"]["msg"]


def test_selectors(fleet: Build) -> None:
    """Ids with or without their prefix, classes by their beginning, a count, and what does not match."""
    some = fleet(web="bcm5719")
    plan = some.module("pci_plan", devices=[{"vendor": "0x14e4", "device": "1657", "class": "02"}])["web"]["plan"]
    assert CARD == sorted({step["address"] for step in plan["steps"]})
    few = some.module("pci_plan", devices=[{"driver": "tg3", "count": 5}])["web"]
    assert "4 functions match" in few["msg"]


def test_prepare_and_release(fleet: Build) -> None:
    """Check mode changes nothing; prepare detaches and is idempotent; release restores every byte and is idempotent."""
    some = fleet(web="bcm5719")
    before = some.trees()
    devices = {"owner": "vm1", "devices": TWO, "complete": True}

    checked = some.module("pci_prepare", "-C", "-D", **devices)["web"]
    assert checked["changed"]
    assert before == some.trees()

    done = some.module("pci_prepare", "-D", **devices)["web"]
    assert done["changed"]
    change = [f"-{address} tg3" for address in CARD] + [f"+{address} vfio-pci" for address in CARD]
    assert change == drivers(checked["shown"]) == drivers(done["shown"])
    assert ["assigned", "kept", "kept", "assigned"] == [done["devices"][address]["role"] for address in CARD]
    prepared = some.trees()
    assert before != prepared

    again = some.module("pci_prepare", **devices)["web"]
    assert not again["changed"]
    assert done["devices"] == again["devices"]
    assert not some.module("pci_prepare", "-C", **devices)["web"]["changed"]
    assert prepared == some.trees()

    assert some.module("pci_release", "-C", owner="vm1")["web"]["changed"]
    assert prepared == some.trees()
    released = some.module("pci_release", "-D", owner="vm1")["web"]
    assert released["changed"]
    assert [f"-{a} vfio-pci" for a in CARD] + [f"+{a} tg3" for a in CARD] == drivers(released["shown"])
    assert before == some.trees()
    assert not some.module("pci_release", owner="vm1")["web"]["changed"]


def test_states(fleet: Build) -> None:
    """One module for both states: it releases the devices of an owner, which is named directly or by its domain."""
    some = fleet(web="bcm5719")
    before = some.trees()
    assert some.module("pci_prepare", src=GUEST)["web"]["changed"]
    prepared = some.trees()
    assert some.module("pci_prepare", "-C", src=GUEST, state="released")["web"]["changed"]
    assert prepared == some.trees()
    released = some.module("pci_prepare", src=GUEST, state="released")["web"]
    assert (True, "seed", dict.fromkeys(CARD, "tg3")) == (released["changed"], released["owner"], released["devices"])
    assert before == some.trees()
    assert not some.module("pci_prepare", owner="seed", state="released")["web"]["changed"]
    missing = some.module("pci_prepare")["web"]["msg"]
    assert "domain, src, devices" in missing
    assert "not well-formed" in some.module("pci_prepare", domain="<a", state="released")["web"]["msg"]


def test_names_of_functions(fleet: Build) -> None:
    """An address may be given by any name that the command takes; an unknown one is a failure with its reason."""
    some = fleet(db="sriov")
    names = ("net:enp3s0v1", "pf:enp3s0/vf2", "03:10.0")
    plan = some.module("pci_plan", devices=[{"address": name} for name in names])["db"]["plan"]
    assert {"0000:03:10.0", "0000:03:10.2", "0000:03:10.4"} == {step["address"] for step in plan["steps"]}
    assert "device-missing" in some.module("pci_plan", devices=[{"address": "net:none"}])["db"]["msg"]


def test_prepare_refuses_what_another_owner_has(fleet: Build) -> None:
    """A device in use is a failure with its owner, in check mode too, and nothing is changed."""
    some = fleet(web="bcm5719")
    some.module("pci_prepare", owner="vm1", devices=TWO, complete=True)
    before = some.trees()
    for flags in ((), ("-C",)):
        found = some.module("pci_prepare", *flags, owner="vm2", devices=TWO, complete=True)["web"]
        assert found["failed"]
        assert {"in-use"} == {finding["reason"] for finding in found["findings"]}
        assert "vm1" in found["msg"]
    assert before == some.trees()


def test_consent(fleet: Build) -> None:
    """A loss of the host needs consent, by reason and address."""
    some = fleet(db="sriov")
    disk = {"devices": [{"address": "0000:02:00.0"}]}
    assert "mounted: " in some.module("pci_prepare", **disk)["db"]["msg"]
    assert some.module("pci_prepare", accept=["mounted:0000:02:00.0"], **disk)["db"]["changed"]


def test_failing_host_is_named(fleet: Build) -> None:
    """A host that cannot be read fails with its sentence, and the others answer."""
    found = fleet(web="bcm5719", gone=None).module("pci_info")
    assert found["gone"]["failed"]
    assert "is not a directory" in found["gone"]["msg"]
    assert CARD == found["web"]["groups"]["14"]


def test_snapshot_is_fetched(fleet: Build, tmp_path: Path) -> None:
    """Each copy on the control node has the name of its host; check mode fetches none, a second run changes none."""
    some = fleet(web="bcm5719", db="sriov", gone=None)
    place = tmp_path / "fetched"
    words = {"dest": "{{ pyhostdev_root }}.tar.gz", "fetch": f"{place}/"}
    checked = some.module("pci_snapshot", "-C", **words)
    assert [True, False] == [checked["web"]["changed"], place.exists()]
    found = some.module("pci_snapshot", **words)
    assert found.pop("gone")["failed"]
    assert {name: str(place / f"{name}.tar.gz") for name in found} == {
        n: result["fetched"] for n, result in found.items()
    }
    for name in found:
        assert (tmp_path / f"{name}.tar.gz").read_bytes() == (place / f"{name}.tar.gz").read_bytes()
        assert 0o600 == (place / f"{name}.tar.gz").stat().st_mode & 0o777
    (place / "db.tar.gz").unlink()
    again = some.module("pci_snapshot", **words)
    assert [False, True] == [again["web"]["changed"], again["db"]["changed"]]


def test_snapshot_and_diff(fleet: Build, tmp_path: Path) -> None:
    """A snapshot is written once, differs in nothing from its host, and from the host with a new driver in that."""
    some = fleet(web="bcm5719")
    dest = tmp_path / "before.tar.gz"
    assert some.module("pci_snapshot", "-C", dest=str(dest))["web"]["changed"]
    assert not dest.exists()
    assert some.module("pci_snapshot", dest=str(dest))["web"]["changed"]
    assert not some.module("pci_snapshot", dest=str(dest))["web"]["changed"]
    same = some.module("pci_diff", before=str(dest), domains=[str(GUEST)], fail_on=["driver", "gone", "plan"])["web"]
    assert (False, False, []) == (same["failed"], same["differs"], same["changes"])

    some.module("pci_prepare", owner="vm1", devices=TWO, complete=True)
    other = some.module("pci_diff", before=str(dest))["web"]
    assert (False, True) == (other["failed"], other["differs"])
    assert set(CARD) == {change["address"] for change in other["changes"] if change["change"] == "driver"}
    failed = some.module("pci_diff", before=str(dest), fail_on=["driver"])["web"]
    assert failed["failed"]
    assert f"{CARD[0]}: driver (tg3 -> vfio-pci)" in failed["msg"]
