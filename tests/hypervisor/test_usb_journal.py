# SPDX-License-Identifier: LGPL-2.1-or-later
"""USB devices of a guest: a QEMU that was killed leaves their interfaces without a driver, and they are bound again."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from pyhostdev import Host
from pyhostdev.errors import OperationError
from pyhostdev.hypervisor.usb_journal import USBJournal

DEVICE = "3-2.1"


class USBHost:
    """A host with one USB device of two interfaces, on one of which a driver is bound."""

    def __init__(self, top: Path) -> None:
        self.devices, self.drivers = top / "sys/bus/usb/devices", top / "sys/bus/usb/drivers"
        device = self.devices / DEVICE
        for name in (DEVICE, "usb3"):
            (self.devices / name).mkdir(parents=True)
        (device / "busnum").write_text("3\n")
        (device / "devnum").write_text("7\n")
        for interface in ("1.0", "1.1"):
            (self.devices / f"{DEVICE}:{interface}").mkdir()
        for driver in ("usbhid", "usbfs"):
            (self.drivers / driver).mkdir(parents=True)
            (self.drivers / driver / "bind").touch()
        self.link = self.devices / f"{DEVICE}:1.0/driver"
        self.move("usbhid")
        self.host = Host(str(top), state_dir=str(top / "state"))
        self.journal = USBJournal(self.host)

    def move(self, driver: str | None) -> None:
        """Bind the first interface to a driver, or to none."""
        self.link.unlink(missing_ok=True)
        if driver is not None:
            self.link.symlink_to(f"../../drivers/{driver}")

    @property
    def bound(self) -> str:
        """The interface that was written into the driver's file; "" without any."""
        return (self.drivers / "usbhid/bind").read_text()

    @property
    def records(self) -> list[str]:
        """The names of the records."""
        return [name for name in os.listdir(self.journal.state.path) if name.endswith(".usb")]


@pytest.fixture
def usb(tmp_path: Path) -> USBHost:
    return USBHost(tmp_path)


@pytest.mark.parametrize(("after", "bound"), [(None, f"{DEVICE}:1.0"), ("usbhid", ""), ("usbfs", "")])
def test_an_interface_without_a_driver_is_bound_at_the_end(usb: USBHost, after: str | None, bound: str) -> None:
    """QEMU that ended by itself has done that, and one that another program took since stays with it."""
    with contextlib.ExitStack() as undo:
        assert None is not usb.journal.give("vm", 3, 7, undo)
        assert [f"{DEVICE}.usb"] == usb.records
        usb.move(after)
    assert (bound, []) == (usb.bound, usb.records)


def crash(usb: USBHost, after: str | None = None) -> None:
    """End a start that has given the device away, without its undo, and its QEMU."""
    left = contextlib.ExitStack()
    lock = usb.journal.give("vm", 3, 7, left)
    left.pop_all()
    assert lock is not None
    os.close(lock)
    usb.move(after)


def test_an_interface_is_bound_by_recover(usb: USBHost) -> None:
    """The starter and QEMU were killed; only the interface that had a driver gets one."""
    crash(usb)
    (found,) = usb.journal.recover()
    assert (DEVICE, "vm", "restored") == (found.what, found.owner, found.outcome)
    assert (f"{DEVICE}:1.0", []) == (usb.bound, usb.records)


def test_the_next_start_knows_the_driver(usb: USBHost) -> None:
    """Without a recover in between: what the dead guest left is undone before the present state is read."""
    crash(usb)
    with contextlib.ExitStack() as undo:
        usb.journal.give("other", 3, 7, undo)
        assert f"{DEVICE}:1.0" == usb.bound
    assert [] == usb.records


def test_another_device_in_the_same_port_is_left_alone(usb: USBHost) -> None:
    """A device that was plugged in since has another number."""
    crash(usb)
    (usb.devices / DEVICE / "devnum").write_text("8\n")
    assert ["the device is gone"] == [found.message for found in usb.journal.recover()]
    assert "" == usb.bound


def test_a_driver_that_is_gone_keeps_the_record(usb: USBHost) -> None:
    """Its module was unloaded: recover says so, and can be repeated."""
    crash(usb)
    (usb.drivers / "usbhid/bind").rename(usb.drivers / "away")
    (found,) = usb.journal.recover()
    assert ("failed", True) == (found.outcome, "usbhid" in found.message)
    (usb.drivers / "away").rename(usb.drivers / "usbhid/bind")
    assert ["restored"] == [found.outcome for found in usb.journal.recover()]


def test_a_device_of_a_running_guest_is_refused(usb: USBHost) -> None:
    """QEMU has inherited the record's lock; a second guest does not get the device, and recover leaves it alone."""
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        usb.journal.give("vm", 3, 7, first)
        with pytest.raises(OperationError, match="belongs to another guest"):
            usb.journal.give("other", 3, 7, second)
        assert ["kept"] == [found.outcome for found in usb.journal.recover()]


def test_a_device_that_is_absent_has_no_record(usb: USBHost) -> None:
    """Opening its node says so."""
    with contextlib.ExitStack() as undo:
        assert None is usb.journal.give("vm", 3, 8, undo)
    assert False is os.path.exists(usb.journal.state.path)
