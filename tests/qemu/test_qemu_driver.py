# SPDX-License-Identifier: LGPL-2.1-or-later
"""Definition, command line and run of a guest: refused before a device is touched, released after any end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyhostdev import DomainDef, Host, HostdevManager, OperationError, RefusedError
from pyhostdev.qemu import qemu_driver
from pyhostdev.testing import FakeHost

NO_QEMU = "/nonexistent/qemu-system-x86_64"
Domain = Callable[..., DomainDef]


@pytest.fixture
def host(bcm5719: FakeHost) -> Host:
    return Host(bcm5719.root, writer=bcm5719.kernel)


def test_stored_capabilities_serve_where_the_emulator_is_absent(host: Host, seed_domain: DomainDef) -> None:
    """A definition can be examined on a machine without QEMU."""
    seed_domain.emulator = NO_QEMU
    defined = qemu_driver.define(seed_domain, host)
    assert "pc-i440fx-11.1" == defined.os.machine
    assert NO_QEMU == qemu_driver.domain_to_native(seed_domain, host)[0]


def test_define_changes_nothing_of_its_argument(host: Host, seed_domain: DomainDef) -> None:
    """define does not change its argument."""
    before = seed_domain.format()
    qemu_driver.define(seed_domain, host)
    assert before == seed_domain.format()


def test_missing_devices_are_refused_all_at_once(host: Host, domain: Domain) -> None:
    """Every missing device is a finding, with libvirt's number for it."""
    with pytest.raises(RefusedError) as refusal:
        qemu_driver.domain_to_native(domain("vm1", "0001:0a:00.0", "0001:0a:00.1"), host)
    assert (99, 2) == (refusal.value.libvirt_code, len(refusal.value.findings))


def test_missing_storage_is_refused_before_a_device_is_touched(
    bcm5719: FakeHost, host: Host, seed_domain: DomainDef
) -> None:
    """A disk whose volume is missing is refused, with libvirt's number."""
    text = seed_domain.format().replace(
        "<devices>", "<devices><disk type='block'><source dev='/dev/vg/a'/><target dev='vda' bus='virtio'/></disk>"
    )
    before = bcm5719.snapshot()
    guest = qemu_driver.Guest(DomainDef.parse(text), host)
    with pytest.raises(RefusedError, match="vda") as error:
        guest.run(HostdevManager(host), host.plan(guest.definition))
    assert (38, "image-missing") == (error.value.libvirt_code, error.value.reason)
    assert before == bcm5719.snapshot()


def test_devices_come_back_when_qemu_does_not_start(bcm5719: FakeHost, host: Host, seed_domain: DomainDef) -> None:
    """An emulator that cannot be run is an error, and the host is restored."""
    seed_domain.emulator = NO_QEMU
    before = bcm5719.snapshot()
    manager = HostdevManager(host)
    guest = qemu_driver.Guest(seed_domain, host)
    with pytest.raises(OperationError):  # there is no such program, or its memory cannot be locked
        guest.run(manager, host.plan(guest.definition))
    assert before == bcm5719.snapshot()
    assert ([], [], []) == manager.status()
    assert len(bcm5719.kernel.trace) > 12, "the devices had been detached"
