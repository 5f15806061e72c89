# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is asked of a host and changes nothing, and what a host refuses: the answers stay, whatever cannot be read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from crash import process
from reads import Reads
from scenarios import Scenario, card

from pyhostdev import ConfigError, Host, HostdevManager, PCIDeviceAddress
from pyhostdev.errors import HostdevError
from pyhostdev.testing.fakehost import HOSTS, FakeHost
from pyhostdev.util.sysfs_writer import ForkedWriter

_CARD = "0001:09:00"
_DISK = "0001:07:00.0"
_VGA = "0001:07:01.0"
_LONER = "0001:07:02.0 14e4:1657 020000 driver=tg3 express=endpoint flr"
_SRIOV_DISK = PCIDeviceAddress.parse("0000:02:00.0")
_STATUS = """<domstatus state='running'><domain type='kvm'><devices><hostdev mode='subsystem' type='pci'><source>
<address domain='0x0001' bus='0x09' slot='0x00' function='0x3'/></source></hostdev></devices></domain></domstatus>"""


class Question(NamedTuple):
    """
    One question to one host, asked once; a HostdevError is an answer, too.

    If the answer is that nothing was done, an error does not change it.
    """

    name: str
    build: Callable[[Path], FakeHost]
    ask: Callable[[FakeHost], object]

    def answer(self, fake: FakeHost) -> object:
        """Return the host's answer, or the kind of error."""
        try:
            return self.ask(fake)
        except HostdevError as err:
            return type(err)

    def check(self, fake: FakeHost, answer: object, number: int, errnum: int) -> None:
        """Refuse one read: the same answer, an answer that notes the unreadable records, or a HostdevError."""
        with Reads(fake, number, errnum) as reads:
            try:
                found = self.ask(fake)
            except HostdevError:
                return
        says_so = errnum in (errno.EACCES, errno.EPERM) and "'reason': 'records'" in str(found)
        assert says_so or answer == found, reads.what


def _plan(policy: str, *hostdevs: str) -> Callable[[FakeHost], object]:
    definition = Scenario("asked", "", hostdevs).definition()

    def ask(fake: FakeHost) -> object:
        plan = process(fake).manager.host.plan(definition, policy)
        return plan.to_json(), plan.fates, plan.proposals

    return ask


def _plan_in_flight(fake: FakeHost) -> object:
    """Ask for a plan of a device to which a write is in flight, with the live host's own writer."""
    writer = ForkedWriter(fake.root)
    place = Path(writer.inflight_dir, f"{_CARD}.0")
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        facts = os.fstat(stream.fileno())
        where = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
        _put(fake, "proc/locks", f"1: FLOCK  ADVISORY  WRITE 4000 {where} 0 EOF\n")
        definition = Scenario("asked", "", (f"{_CARD}.0",)).definition()
        return Host(fake.root, writer=writer).plan(definition, "off").findings


def _validate(*hostdevs: str) -> Callable[[FakeHost], object]:
    """Ask for a validation, which accepts what it cannot read: a stored definition must not vanish."""
    definition = Scenario("asked", "", hostdevs).definition()

    def ask(fake: FakeHost) -> object:
        with contextlib.suppress(ConfigError):
            definition.validate(process(fake).manager.host)
        return None

    return ask


def _writes_of(action: Callable[[HostdevManager], object]) -> Callable[[FakeHost], object]:
    """Count the writes of a refused request: none, even if the reason for the refusal cannot be read."""

    def ask(fake: FakeHost) -> object:
        victim = process(fake)
        with contextlib.suppress(HostdevError):
            action(victim.manager)
        return victim.kernel.writes

    return ask


def _status(fake: FakeHost) -> object:
    return process(fake).manager.status()


def _named(name: str, *lines: str) -> Callable[[Path], FakeHost]:
    text = Path(HOSTS, f"{name}.tree").read_text()
    return lambda directory: FakeHost.from_tree(text + "".join(f"{line}\n" for line in lines), directory)


def _card(module: str) -> Callable[[Path], FakeHost]:
    return lambda directory: FakeHost.from_tree(card(2, module=module), directory)


def _busy(directory: Path) -> FakeHost:
    """
    Make a host where every device is in use, in every way that can be found.

    Another domain of pyhostdev and one of libvirtd use functions of the card, one is detached without an owner, and
    a process holds its group. The disk is below a mapping, the default route below a bridge, a card shows the console.
    """
    vga = "0001:07:01.0 10de:1b80 030000 driver=nouveau group=40 boot-vga"
    fake = _named("bcm5719", "driver nouveau 10de:1b80", vga)(directory)
    process(fake).manager.nodedev_detach(PCIDeviceAddress.parse(f"{_CARD}.2"))
    Scenario("other", "", (f"{_CARD}.1",), policy="off").prepare(process(fake).manager)
    _link(fake, "sys/devices/virtual/block/dm-0/slaves/nvme0n1", _device(fake, "sys/class/block/nvme0n1"))
    _link(fake, "sys/class/block/dm-0", "../../devices/virtual/block/dm-0")
    _link(fake, "dev/mapper/vg-root", "../dm-0")
    _put(fake, "proc/mounts", "/dev/mapper/vg-root / ext4 rw 0 0\n")
    _link(fake, "sys/devices/virtual/net/br0/lower_enp9s0f3", _device(fake, "sys/class/net/enp9s0f3"))
    _link(fake, "sys/class/net/br0", "../../devices/virtual/net/br0")
    _put(fake, "proc/net/ipv6_route", f"{'0' * 32} 00 {'0' * 32} 00 fe80 00000400 00000001 00000000 00000003 br0\n")
    _put(fake, "run/libvirt/qemu/web.xml", _STATUS)
    _put(fake, f"etc/driverctl.d/pci-{_CARD}.0", "vfio-pci\n")
    return _held(fake)


def _looked_at(directory: Path) -> FakeHost:
    """Make a host with a screen of the kernel's, one of the firmware's, and a file system of two disks."""
    vga = "0001:07:01.0 10de:1b80 030000 driver=nouveau group=40"
    fake = _named("bcm5719", "driver nouveau 10de:1b80", vga)(directory)
    _link(fake, "sys/class/graphics/fb0", os.path.join(_device(fake, f"sys/bus/pci/devices/{_VGA}"), "graphics/fb0"))
    _put(fake, "proc/iomem", f"80000000-80ffffff : {_CARD}.0\n  80000000-800fffff : efifb\n")
    _put(fake, "proc/mounts", "/dev/sda / btrfs rw 0 0\n")
    for name in ("sda", "nvme0n1"):
        _put(fake, f"sys/fs/btrfs/6c2f5a1e/devices/{name}", "")
    return fake


def _device(fake: FakeHost, path: str) -> str:
    return os.path.realpath(fake.root.join(path))


def _prepared(directory: Path) -> FakeHost:
    """Make a host whose guest has its devices and is still running."""
    fake = _named("bcm5719")(directory)
    Scenario("guest", "", tuple(f"{_CARD}.{n} yes" for n in range(4))).prepare(process(fake).manager)
    return _held(fake)


def _held(fake: FakeHost) -> FakeHost:
    _put(fake, "proc/4000/comm", "qemu-system-x86\n")
    _link(fake, "proc/4000/fd/20", "/dev/vfio/14")
    return fake


def _put(fake: FakeHost, path: str, text: str) -> None:
    place = Path(fake.root.join(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def _link(fake: FakeHost, path: str, target: str) -> None:
    place = Path(fake.root.join(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


_EVERYTHING = (f"{_CARD}.0 yes", f"{_CARD}.1 no", f"{_CARD}.2 no", f"{_CARD}.3 no", _DISK, _VGA)
_NO_SUCH_DRIVER = ("0000:01:00.0 model=x_vfio_pci", "0000:01:00.1")
_WITH_VFS = ("0000:06:12.0 yes", "0000:06:12.1 no")

QUESTIONS = (
    Question("plan-busy", _busy, _plan("auto", *_EVERYTHING)),
    Question("plan-looked-at", _looked_at, _plan("off", f"{_CARD}.0", _DISK, _VGA)),
    Question("plan-complete", _named("bcm5719"), _plan("auto", *(f"{_CARD}.{n} yes" for n in range(4)))),
    Question("plan-incomplete", _named("bcm5719"), _plan("device", f"{_CARD}.0", f"{_CARD}.3")),
    Question("plan-group", _named("bcm5719"), _plan("group", f"{_CARD}.0")),
    Question("plan-off", _named("bcm5719"), _plan("off", f"{_CARD}.0")),
    Question("plan-physical", _named("sriov"), _plan("auto", "0000:03:00.0", str(_SRIOV_DISK))),
    Question("plan-virtual", _named("sriov"), _plan("auto", "0000:03:10.2")),
    Question("plan-functions-with-vfs", _named("pf-multifunction"), _plan("auto", *_WITH_VFS)),
    Question("plan-ari", _named("ari"), _plan("device", "0000:05:02.1", "0000:05:00.1")),
    Question("plan-own-groups", _named("nic-own-groups"), _plan("device", "0000:04:00.1")),
    Question("plan-conventional", _named("libvirt"), _plan("auto", "0000:0a:01.0", "0000:0a:02.0")),
    Question("plan-with-bridges", _named("bridge-group"), _plan("auto", "0000:02:01.0")),
    Question("plan-with-others", _named("non-pci-member"), _plan("auto", "0000:7d:00.0")),
    Question("plan-module-to-load", _card(" available"), _plan("auto", "0000:01:00.0", "0000:01:00.1")),
    Question("plan-module-missing", _card(" available"), _plan("auto", *_NO_SUCH_DRIVER)),
    Question("plan-variant", _card(""), _plan("auto", "0000:01:00.0 model=mlx5_vfio_pci", "0000:01:00.1")),
    Question("plan-swap", _named("bcm5719", "swap nvme0n1", "route enp9s0f2"), _plan("off", _DISK, f"{_CARD}.2")),
    Question("plan-without-group", _named("bcm5719", _LONER), _plan("auto", "0001:07:02.0")),
    Question("plan-in-flight", _named("bcm5719"), _plan_in_flight),
    Question("status", _busy, _status),
    Question("validate", _named("libvirt"), _validate("0000:0a:01.0 yes")),
    Question("writes-of-reset", _named("sriov"), _writes_of(lambda manager: manager.nodedev_reset(_SRIOV_DISK))),
    Question("writes-of-detach", _named("sriov"), _writes_of(lambda manager: manager.nodedev_detach(_SRIOV_DISK))),
    Question("writes-of-release", _prepared, _writes_of(lambda manager: manager.release("vm1"))),
    Question(
        "writes-of-recover",
        _prepared,
        _writes_of(lambda manager: manager.recover(include_prepared=True, timeout_s=0)),
    ),
)
