# SPDX-License-Identifier: LGPL-2.1-or-later
"""Uses by the host and by other programs: checked before the first write, reported by reason and address."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev import (
    ConfigError,
    DeviceInUseError,
    DomainDef,
    Host,
    HostdevManager,
    InvalidAddressError,
    OperationError,
    PCIDeviceAddress,
    RefusedError,
    SysfsError,
)
from pyhostdev.testing.fakehost import HOSTS, FakeHost
from pyhostdev.testing.procfiles import holding_process
from pyhostdev.util.journal import Journal
from pyhostdev.util.pcidriver import read_binding

NVME = "0001:07:00.0"
PORT = "0001:09:00.2"
Domain = Callable[..., DomainDef]


def bcm5719_with(fakehost: Callable[[str], FakeHost], *lines: str) -> FakeHost:
    text = Path(HOSTS, "bcm5719.tree").read_text()
    return fakehost(text + "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("line", "address", "reason"),
    [
        ("mount nvme0n1 / ext4", NVME, "mounted"),
        ("swap nvme0n1", NVME, "mounted"),
        ("route enp9s0f2", PORT, "default-route"),
    ],
)
def test_what_the_host_needs_wants_a_consent(
    fakehost: Callable[[str], FakeHost], domain: Domain, line: str, address: str, reason: str
) -> None:
    """A mounted disk or the default route is refused until it is accepted by reason and address."""
    fake = bcm5719_with(fakehost, line)
    words = [NVME] if address == NVME else [f"0001:09:00.{function} yes" for function in range(4)]
    definition = domain("vm1", *words)
    plan = Host(fake.root).plan(definition)
    assert [(reason, "consent", address)] == [(f.reason, f.severity, str(f.address)) for f in plan.findings]
    assert not plan.ok
    assert not Host(fake.root).plan(definition, accept=[f"{reason}:0001:00:00.0"]).ok
    assert Host(fake.root).plan(definition, accept=[f"{reason}:{address}"]).ok


def test_boot_vga_wants_a_consent(fakehost: Callable[[str], FakeHost], domain: Domain) -> None:
    """The boot display needs a consent."""
    card = "0001:07:01.0 10de:1b80 030000 driver=nouveau group=40 boot-vga"
    fake = bcm5719_with(fakehost, "driver nouveau 10de:1b80", card)
    plan = Host(fake.root).plan(domain("vm1", "0001:07:01.0"))
    assert [("boot-vga", "consent")] == [(f.reason, f.severity) for f in plan.findings]


def test_framebuffer_wants_a_consent(fakehost: Callable[[str], FakeHost], domain: Domain) -> None:
    """A display other than the boot display may still show one of the host's consoles."""
    fake = bcm5719_with(fakehost)
    screen = Path(os.path.realpath(fake.root.pci_device(PCIDeviceAddress.parse(NVME))), "graphics/fb0")
    screen.mkdir(parents=True)
    os.mkdir(fake.root.class_graphics)
    os.symlink(os.path.relpath(screen, fake.root.class_graphics), f"{fake.root.class_graphics}/fb0")
    Path(fake.root.class_graphics, "fbcon").mkdir()
    plan = Host(fake.root).plan(domain("vm1", NVME))
    assert [("boot-vga", "consent")] == [(f.reason, f.severity) for f in plan.findings]
    assert "'fb0'" in plan.findings[0].message


IOMEM = """\
00000000-00000fff : Reserved
c0000000-eebfffff : PCI Bus 0001:00
  c0000000-c00fffff : PCI Bus 0001:07
    c0000000-c00fffff : {owner}
      c0000000-c002ffff : {name}
  c0100000-c010ffff : 0001:07:00.0
"""


@pytest.mark.parametrize(
    ("owner", "name", "reasons"),
    [(NVME, "BOOTFB", ["boot-vga"]), (NVME, "nvme", []), ("0001:07:00.7", "simpledrm", [])],
)
def test_firmwares_screen_wants_a_consent(
    fakehost: Callable[[str], FakeHost], domain: Domain, owner: str, name: str, reasons: list[str]
) -> None:
    """If no driver has taken over the firmware's screen, the kernel's memory table names its device."""
    fake = bcm5719_with(fakehost)
    Path(fake.root.iomem).write_text(IOMEM.format(owner=owner, name=name))
    assert reasons == [f.reason for f in Host(fake.root).plan(domain("vm1", NVME)).findings]


@pytest.mark.parametrize("text", ["mounted", "nonsense:0001:07:00.0", "mounted:somewhere"])
def test_invalid_consent_is_an_error(bcm5719: FakeHost, seed_domain: DomainDef, text: str) -> None:
    """A consent is REASON:ADDRESS with a reason that can be accepted; a typing error accepts nothing."""
    with pytest.raises(ConfigError):
        Host(bcm5719.root).plan(seed_domain, accept=[text])


@pytest.mark.parametrize("name", ["block:nvme0n1", "pci_0001_07_00_0", NVME])
def test_consent_names_a_disk(fakehost: Callable[[str], FakeHost], domain: Domain, name: str) -> None:
    """A consent takes the selectors that other arguments take; one that names no function consents to nothing."""
    host = Host(bcm5719_with(fakehost, "mount nvme0n1 / ext4").root)
    wanted = domain("vm1", NVME)
    assert not host.plan(wanted, accept=["mounted:block:nvme9n1"]).ok
    plan = host.plan(wanted, accept=[f"mounted:{name}"])
    assert (True, {("mounted", NVME)}) == (plan.ok, set(plan.accepted))


def test_consent_that_names_several_functions_is_refused(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A bond of two ports names two functions."""
    bond = Path(bcm5719.root.path, "sys/devices/virtual/net/bond0")
    bond.mkdir(parents=True)
    for name in ("enp9s0f0", "enp9s0f1"):
        (bond / f"lower_{name}").symlink_to(Path(bcm5719.root.class_net, name).resolve())
    Path(bcm5719.root.class_net, "bond0").symlink_to("../../devices/virtual/net/bond0")
    with pytest.raises(InvalidAddressError, match="several functions"):
        Host(bcm5719.root).plan(seed_domain, accept=["default-route:net:bond0"])


def test_held_group_is_in_use(bcm5719: FakeHost, domain: Domain, seed_domain: DomainDef) -> None:
    """A process that has the group's node open is named before anything is touched."""
    host = Host(bcm5719.root, writer=bcm5719.kernel)
    manager = HostdevManager(host)
    for function in range(4):
        manager.nodedev_detach(host.scan().groups[14][function].address)
    with bcm5719.kernel.open_group(14):
        plan = host.plan(seed_domain)
        assert {"in-use"} == {finding.reason for finding in plan.findings}
        assert "held open by" in plan.findings[0].message
    assert host.plan(seed_domain).ok


def put_status(fake: FakeHost, name: str, device: str) -> None:
    """Write libvirtd's status file of a running domain with one device."""
    directory = Path(fake.root.libvirt_status)
    directory.mkdir(parents=True, exist_ok=True)
    text = f"<domstatus state='running'><domain type='kvm'><devices>{device}</devices></domain></domstatus>"
    (directory / f"{name}.xml").write_text(text)


SOURCE = "<source{words}><address type='pci' domain='0x0001' bus='0x09' slot='0x00' function='0x1'/></source>"
LIBVIRTS_DEVICES = {
    "hostdev": f"<hostdev mode='subsystem' type='pci' managed='yes'>{SOURCE.format(words='')}</hostdev>",
    "interface": f"<interface type='hostdev' managed='yes'>{SOURCE.format(words='')}</interface>",
    "network": "<interface type='network'><source network='vfs'/><actual type='hostdev' managed='yes'>"
    f"{SOURCE.format(words='')}</actual></interface>",
    "nvme": f"<disk type='nvme' device='disk'>{SOURCE.format(words=' type=' + repr('pci'))}</disk>",
}


@pytest.mark.parametrize("kind", LIBVIRTS_DEVICES)
def test_running_domain_of_libvirtd_is_in_use(bcm5719: FakeHost, seed_domain: DomainDef, kind: str) -> None:
    """libvirtd's status files name the devices of its running domains, in every form of use."""
    put_status(bcm5719, "web", LIBVIRTS_DEVICES[kind])
    plan = Host(bcm5719.root).plan(seed_domain)
    assert [("in-use", "0001:09:00.1")] == [(f.reason, str(f.address)) for f in plan.findings]
    assert "'web'" in plan.findings[0].message


def test_libvirts_domain_has_the_group_for_itself(bcm5719: FakeHost, domain: Domain) -> None:
    """A function in use by libvirt's guest keeps the undeclared functions of its group from other guests."""
    put_status(bcm5719, "web", LIBVIRTS_DEVICES["hostdev"])
    plan = Host(bcm5719.root).plan(domain("vm1", "0001:09:00.0"), "off")
    assert [("in-use", "0001:09:00.1")] == [(f.reason, str(f.address)) for f in plan.findings]


_WIDE_BUS = "<hostdev type='pci'><source><address bus='0x1ff'/></source></hostdev>"


@pytest.mark.parametrize("text", ["<domstatus", " " * (1 << 20) + "<d/>", f"<d>{_WIDE_BUS}</d>"])
def test_invalid_status_file_is_reported(bcm5719: FakeHost, seed_domain: DomainDef, text: str) -> None:
    """An invalid or oversized status file is a note with its domain: the domain's devices are unknown."""
    put_status(bcm5719, "web", "")
    Path(bcm5719.root.libvirt_status, "broken.xml").write_text(text)
    plan = Host(bcm5719.root).plan(seed_domain)
    assert [("libvirt-status", "note", None)] == [(f.reason, f.severity, f.address) for f in plan.findings]
    assert "'broken'" in plan.findings[0].message
    assert plan.ok


@pytest.mark.parametrize("verb", ["nodedev_detach", "nodedev_reset"])
def test_nodedev_leaves_libvirts_device_alone(bcm5719: FakeHost, verb: str) -> None:
    """A device of a libvirtd guest is neither listed as detached nor reset."""
    put_status(bcm5719, "web", LIBVIRTS_DEVICES["hostdev"])
    manager = HostdevManager(Host(bcm5719.root, writer=bcm5719.kernel))
    with pytest.raises(RefusedError, match="libvirt's domain 'web'"):
        getattr(manager, verb)(PCIDeviceAddress(1, 9, 0, 1))
    assert ([], [], [], 0) == (*manager.status(), bcm5719.kernel.writes)


@pytest.mark.parametrize("action", [lambda m, a: m.nodedev_detach(a, "pci-stub"), lambda m, a: m.nodedev_reset(a)])
def test_nodedev_leaves_a_held_device_alone(
    bcm5719: FakeHost, seed_domain: DomainDef, action: Callable[[HostdevManager, PCIDeviceAddress], None]
) -> None:
    """A device in use by a running QEMU is neither unbound, which would wait for ever, nor reset."""
    first = HostdevManager(Host(bcm5719.root, writer=bcm5719.kernel))
    first.prepare(first.host.plan(seed_domain))
    other = HostdevManager(Host(bcm5719.root, writer=bcm5719.kernel, state_dir=bcm5719.root.join("run/other")))
    before = bcm5719.kernel.writes
    with bcm5719.kernel.open_group(14), pytest.raises(RefusedError, match="held open by"):
        action(other, PCIDeviceAddress(1, 9, 0, 0))
    assert before == bcm5719.kernel.writes


def save_override(fake: FakeHost, address: str, text: str) -> None:
    """Write driverctl's file of one device."""
    path = Path(fake.root.driverctl_override(PCIDeviceAddress.parse(address)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_saved_override_of_driverctl_is_reported(bcm5719: FakeHost, domain: Domain) -> None:
    """The plan reports the override saved by driverctl, whether that driver is bound, and that it will be restored."""
    words = [f"0001:09:00.{function} yes" for function in range(4)]
    save_override(bcm5719, "0001:09:00.0", "tg3\n")
    save_override(bcm5719, "0001:09:00.1", "igb_uio\n")
    plan = Host(bcm5719.root).plan(domain("vm1", *words))
    assert [("driverctl", "note", "0001:09:00.0"), ("driverctl", "note", "0001:09:00.1")] == [
        (f.reason, f.severity, str(f.address)) for f in plan.findings
    ]
    first, second = (f.message for f in plan.findings)
    assert ("'tg3'" in first, "though" in first, "it has driver 'tg3' again" in first) == (True, False, True)
    assert ("'igb_uio'" in second, "although it has driver 'tg3' now" in second) == (True, True)
    assert plan.ok


def test_device_that_driverctl_keeps_with_vfio_stays_there(fakehost: Callable[[str], FakeHost], domain: Domain) -> None:
    """A device that driverctl bound to vfio-pci keeps driver and override, before and after the guest."""
    fake = bcm5719_with(fakehost)
    address = PCIDeviceAddress.parse(NVME)
    for path, value in ((f"devices/{NVME}/driver_override", "vfio-pci"), ("drivers/nvme/unbind", NVME),
                        ("drivers/vfio-pci/bind", NVME)):  # fmt: skip
        fake.kernel.foreign().write(f"{fake.root.pci_bus}/{path}", value.encode(), device=address)
    save_override(fake, NVME, "vfio-pci\n")
    manager = HostdevManager(Host(fake.root, writer=fake.kernel))
    before = read_binding(fake.root, address)
    plan = manager.host.plan(domain("vm1", NVME))
    assert [f"driverctl binds device {NVME} to 'vfio-pci' whenever it appears"] == [f.message for f in plan.findings]
    with manager.prepared(plan):
        assert before == read_binding(fake.root, address)
    assert before == read_binding(fake.root, address)
    with pytest.raises(OperationError, match="driverctl binds it to 'vfio-pci'"):
        manager.nodedev_reattach(address)


def test_recover_names_the_owners_of_unrecorded_devices(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """recover names driverctl or libvirt as the owner of their devices; only the remaining ones are unrecorded."""
    first = HostdevManager(Host(bcm5719.root, writer=bcm5719.kernel))
    first.prepare(first.host.plan(seed_domain))
    put_status(bcm5719, "web", LIBVIRTS_DEVICES["hostdev"])
    save_override(bcm5719, "0001:09:00.0", "vfio-pci\n")
    save_override(bcm5719, "0001:09:00.2", "tg3\n")
    other = HostdevManager(Host(bcm5719.root, writer=bcm5719.kernel, state_dir=bcm5719.root.join("run/other")))
    found = {item.what[-1]: (item.outcome, item.message) for item in other.recover()}
    assert ["kept", "kept", "unrecorded", "unrecorded"] == [found[name][0] for name in "0123"]
    assert ("driverctl" in found["0"][1], "'web'" in found["1"][1]) == (True, True)


def link(fake: FakeHost, path: str, target: str) -> None:
    """Make a link as in sysfs: relative, to a directory that is created if missing."""
    place, there = Path(fake.root.path, path), Path(fake.root.path, target)
    place.parent.mkdir(parents=True, exist_ok=True)
    there.mkdir(parents=True, exist_ok=True)
    os.symlink(os.path.relpath(os.path.realpath(there), os.path.realpath(place.parent)), place)


def mapping(fake: FakeHost) -> str:
    """A volume of the device mapper, by udev's name."""
    link(fake, "sys/class/block/dm-0", "sys/devices/virtual/block/dm-0")
    link(fake, "sys/devices/virtual/block/dm-0/slaves/nvme0n1", "sys/class/block/nvme0n1")
    Path(fake.root.path, "dev/mapper").mkdir(parents=True)
    os.symlink("../dm-0", Path(fake.root.path, "dev/mapper/vg-root"))
    return "/dev/mapper/vg-root"


def array(fake: FakeHost) -> str:
    """A partition of an array, with the members of the array."""
    link(fake, "sys/class/block/md0p1", "sys/devices/virtual/block/md0/md0p1")
    link(fake, "sys/devices/virtual/block/md0/slaves/nvme0n1", "sys/class/block/nvme0n1")
    return "/dev/md0p1"


def shared_namespace(fake: FakeHost) -> str:
    """A partition of a namespace that several controllers of its subsystem share."""
    subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    link(fake, "sys/class/block/nvme9n1p2", f"{subsystem}/nvme9n1/nvme9n1p2")
    controller = os.path.relpath(os.path.realpath(f"{fake.root.pci_devices}/{NVME}/nvme"), fake.root.path)
    link(fake, f"{subsystem}/nvme9", f"{controller}/nvme9")
    return "/dev/nvme9n1p2"


def second_of_two(fake: FakeHost) -> str:
    """A file system on two disks, of which the other is mounted."""
    link(fake, "sys/class/block/sda", "sys/devices/virtual/block/sda")
    for name in ("sda", "nvme0n1"):
        link(fake, f"sys/fs/btrfs/5e3e1d5a/devices/{name}", f"sys/class/block/{name}")
    return "/dev/sda"


def root_without_name(fake: FakeHost) -> str:
    """A root file system mounted by a kernel without initramfs: only its device number identifies the disk."""
    link(fake, "sys/dev/block/259:7", "sys/class/block/nvme0n1")
    table = Path(fake.root.mountinfo)
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("21 1 259:7 / / rw - some /dev/root rw\n22 21 0:5 / /dev rw - devtmpfs devtmpfs rw\n")
    return "/dev/root"


@pytest.mark.parametrize("stack", [root_without_name, mapping, array, shared_namespace, second_of_two])
def test_file_system_is_followed_to_its_disks(
    fakehost: Callable[[str], FakeHost], domain: Domain, stack: Callable[[FakeHost], str]
) -> None:
    """All devices below a file system are in use, through any number of layers."""
    fake = bcm5719_with(fakehost)
    with open(fake.root.mounts, "a") as stream:
        stream.write(f"{stack(fake)} / some rw 0 0\n")
    plan = Host(fake.root).plan(domain("vm1", NVME))
    assert [("mounted", NVME)] == [(f.reason, str(f.address)) for f in plan.findings]


def test_default_route_is_followed_to_its_ports(fakehost: Callable[[str], FakeHost], domain: Domain) -> None:
    """A default route through a VLAN on a bridge uses the port of the bridge."""
    fake = bcm5719_with(fakehost, "route enp9s0f2")
    text = Path(fake.root.route).read_text()
    Path(fake.root.route).write_text(text.replace("enp9s0f2", "br0.5"))
    link(fake, "sys/class/net/br0.5", "sys/devices/virtual/net/br0.5")
    link(fake, "sys/devices/virtual/net/br0.5/lower_br0", "sys/devices/virtual/net/br0")
    link(fake, "sys/devices/virtual/net/br0/lower_enp9s0f2", "sys/class/net/enp9s0f2")
    plan = Host(fake.root).plan(domain("vm1", *[f"0001:09:00.{function} yes" for function in range(4)]))
    assert [("default-route", PORT)] == [(f.reason, str(f.address)) for f in plan.findings]


def test_function_held_through_its_own_node_is_in_use(bcm5719: FakeHost, seed_domain: DomainDef) -> None:
    """A process that has a function's iommufd node open holds the whole group."""
    manager = HostdevManager(Host(bcm5719.root, writer=bcm5719.kernel))
    manager.prepare(manager.host.plan(seed_domain))
    (name,) = os.listdir(os.path.join(bcm5719.root.pci_device(PCIDeviceAddress.parse(PORT)), "vfio-dev"))
    os.mkdir(bcm5719.root.dev_vfio_devices)
    node = Path(bcm5719.root.dev_vfio_devices, name)
    node.touch()
    with holding_process(bcm5719.root, str(node)), pytest.raises(DeviceInUseError, match="group 14 .* is held open by"):
        manager.release("vm1")
    assert 4 == len(manager.release("vm1"))


def test_plan_needs_no_right_to_the_records(
    bcm5719: FakeHost, seed_domain: DomainDef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without access to root's state directory, a plan has a note instead of the records."""
    HostdevManager(Host(bcm5719.root, writer=bcm5719.kernel)).nodedev_detach(PCIDeviceAddress(1, 9, 0, 0))
    host = Host(bcm5719.root)

    def refuse(journal: Journal) -> None:
        raise SysfsError(errno.EACCES, journal.state.path, "open the state directory")

    monkeypatch.setattr(Journal, "read", refuse)
    monkeypatch.setattr(Host, "is_in_flight", None)
    plan = host.plan(seed_domain)
    assert [("records", "note", None)] == [(f.reason, f.severity, f.address) for f in plan.findings]
    monkeypatch.setattr(Journal, "read", lambda _: (_ for _ in ()).throw(SysfsError(errno.EIO, "there", "look")))
    with pytest.raises(SysfsError):
        host.plan(seed_domain)
