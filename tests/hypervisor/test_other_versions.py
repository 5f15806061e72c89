# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records of other versions, invalid records and links: the other devices are handled."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash import process
from scenarios import card

from pyhostdev import DeviceInUseError, DomainDef, PCIDeviceAddress, RefusedError, SysfsError
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util.record import VERSION

CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]
Domain = Callable[..., DomainDef]


def rewrite(fake: FakeHost, address: PCIDeviceAddress, change: Callable[[dict[str, Any]], None], version: int) -> None:
    """Change a record's fields, and correct the checksum."""
    path = Path(fake.root.state_dir, f"{address}.json")
    fields = json.loads(path.read_bytes())["record"]
    change(fields)
    crc32 = zlib.crc32(json.dumps(fields, sort_keys=True).encode())
    path.write_text(json.dumps({"version": version, "crc32": crc32, "record": fields}))


def as_first_release(fields: dict[str, Any]) -> None:
    for key in ("nodes", "asked"):
        del fields[key]


@pytest.mark.fault("F24")
def test_guest_of_the_first_release_is_released(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """Devices that 0.1.0 prepared are in use, and release returns them to their original drivers."""
    before = bcm5719.snapshot()
    manager = process(bcm5719).manager
    manager.prepare(manager.host.plan(seed_domain))
    for address in CARD:
        rewrite(bcm5719, address, as_first_release, 1)
    assert {"in-use"} == {finding.reason for finding in manager.host.plan(seed_domain).findings}
    with pytest.raises(RefusedError):
        manager.prepare(manager.host.plan(seed_domain))
    assert CARD == manager.release("vm1")
    assert (before, ([], [], [])) == (bcm5719.snapshot(), manager.status())


@pytest.mark.fault("F24")
def test_device_of_a_newer_version_is_left_alone(bcm5719: FakeHost, seed_domain: DomainDef, domain: Domain) -> None:
    """A device with a record of a newer version is in use and is left alone."""
    victim = process(bcm5719)
    manager = victim.manager
    manager.prepare(manager.host.plan(seed_domain))
    rewrite(bcm5719, CARD[1], lambda fields: fields.update(phase="running"), VERSION + 1)
    before, records, writes = bcm5719.snapshot(), manager.journal.read(), victim.kernel.writes
    for wanted in (seed_domain, domain("vm2", *(f"{a} {'no' if a.function else 'yes'}" for a in CARD))):
        with pytest.raises(RefusedError, match="in use by domain 'vm1'"):
            manager.prepare(manager.host.plan(wanted))
    for action in (
        lambda: manager.release("vm1"),
        lambda: manager.nodedev_detach(CARD[1]),
        lambda: manager.nodedev_reattach(CARD[1]),
        lambda: manager.nodedev_reset(CARD[1]),
        lambda: manager.update_active_pci_devices("qemu", "vm1", seed_domain.pci_hostdevs()),
    ):
        with pytest.raises(DeviceInUseError, match="written by a newer pyhostdev"):
            action()
    found = {item.what: item.outcome for item in manager.recover(timeout_s=0)}
    assert {f"{CARD[1]}.json": "failed", **{str(CARD[n]): "kept" for n in (0, 2, 3)}} == found
    assert (before, records, writes) == (bcm5719.snapshot(), manager.journal.read(), victim.kernel.writes)


@pytest.mark.fault("F24")
@pytest.mark.parametrize(
    "wrong",
    [{"owner": 5}, {"owner": "\ud800"}, {"target": ["x"]}, {"target": "a\0"}, {"original": {}}, {"position": "first"}],
)
def test_odd_record_stops_no_other_recovery(
    bcm5719: FakeHost, seed_domain: DomainDef, wrong: dict[str, object]
) -> None:
    """A record with a valid checksum and wrong types is set aside; the others are restored."""
    manager = process(bcm5719).manager
    manager.prepare(manager.host.plan(seed_domain))
    rewrite(bcm5719, CARD[1], lambda fields: fields.update(wrong), VERSION)
    found = {item.what: item.outcome for item in manager.recover(include_prepared=True, timeout_s=0)}
    assert "set-aside" == found.pop(f"{CARD[1]}.json")
    assert {str(CARD[1]): "unrecorded", **{str(CARD[n]): "restored" for n in (0, 2, 3)}} == found


@pytest.mark.parametrize("name", ["noiommu", "..", "14x", "99999999999999999999"])
def test_group_link_without_a_number_is_reported(bcm5719: FakeHost, seed_domain: DomainDef, name: str) -> None:
    """A group's link to something else is an error with its path, and other devices are released."""
    manager = process(bcm5719).manager
    manager.prepare(manager.host.plan(seed_domain))
    link = Path(os.path.realpath(bcm5719.root.pci_device(CARD[1])), "iommu_group")
    link.unlink()
    link.symlink_to(f"../../../{name}")
    for action in (lambda: manager.host.plan(seed_domain), lambda: manager.release("vm1")):
        with pytest.raises(SysfsError, match="iommu_group") as error:
            action()
        assert errno.EBADMSG == error.value.errno
    found = {item.what: item.outcome for item in manager.recover(include_prepared=True, timeout_s=0)}
    assert {"failed": 1, "restored": 3} == {word: list(found.values()).count(word) for word in ("failed", "restored")}


@pytest.mark.fault("F5")
def test_orphans_of_variant_drivers_are_reported(fakehost: Callable[[str], FakeHost], domain: Domain) -> None:
    """An unrecorded function with an override for a variant of vfio-pci is reported like the others."""
    fake = fakehost(card(2))
    manager = process(fake).manager
    words = [f"0000:01:00.{n}" for n in range(2)]
    text = domain("vm1", *words).format().replace("<source>", "<driver name='vfio' model='mlx5_vfio_pci'/><source>")
    manager.prepare(manager.host.plan(DomainDef.parse(text)))
    for path in Path(fake.root.state_dir).iterdir():
        path.unlink()
    found = manager.recover(timeout_s=0)
    assert [(word, "unrecorded") for word in words] == [(item.what, item.outcome) for item in found]
    assert all("'mlx5_vfio_pci'" in item.message for item in found)


@pytest.mark.fault("F6")
def test_device_that_is_prepared_during_recover_is_not_an_orphan(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A record written after recover's first listing is handled, too."""
    looking = process(bcm5719).manager
    read, answers = looking.journal.read, [looking.journal.read()]
    looking.journal.read = lambda: answers.pop() if answers else read()  # type: ignore[method-assign]
    other = process(bcm5719).manager
    other.prepare(other.host.plan(seed_domain))
    assert [] == looking.recover(timeout_s=0)


@pytest.mark.fault("F5")
def test_record_that_took_an_expired_ones_place_stays(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A record that recover read before it had the locks may be outdated: the present record counts."""
    looking = process(bcm5719).manager
    looking.prepare(looking.host.plan(seed_domain))
    read = looking.journal.read
    old = {address: record._replace(boot_id="another") for address, record in read()[0].items()}
    answers: list[Any] = [(old, [])]
    looking.journal.read = lambda: answers.pop() if answers else read()  # type: ignore[method-assign]
    assert ["kept"] * 4 == [item.outcome for item in looking.recover(timeout_s=0)]
    assert 4 == len(looking.status().active)
