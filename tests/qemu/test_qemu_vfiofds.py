# SPDX-License-Identifier: LGPL-2.1-or-later
"""A start by iommufd: QEMU inherits open nodes, and no node is open when a device is given back."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyhostdev import ConfigUnsupportedError, DomainDef, Host, HostdevManager, OperationError, PCIDeviceAddress
from pyhostdev.conf.hostdev_conf import DomainHostdevDef
from pyhostdev.conf.libvirt_release import RELEASES
from pyhostdev.errors import InDoubtError, RefusedError, SysfsError
from pyhostdev.qemu import qemu_driver
from pyhostdev.qemu.qemu_process.access import needed_files
from pyhostdev.qemu.qemu_process.iommufd import functions_by_iommufd, iommufd_obstacles, vfio_nodes
from pyhostdev.qemu.qemu_process.vfiofds import VFIODescriptors
from pyhostdev.testing import FakeHost
from pyhostdev.testing.faults import Fail, Interfere
from pyhostdev.tools.main import main

R9_0, _, R12_8 = RELEASES
CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]
GUEST = (CARD[0], CARD[3])
TREE = Path(__file__).parents[2] / "pyhostdev/testing/hosts/bcm5719.tree"

# What the descriptors of a QEMU are, as it starts: it writes them where its last argument says, and fails
QEMU = """#!/usr/bin/python3 -I
import json, os, sys, time
words = [json.loads(word) for word in sys.argv if word.startswith("{")]
found = {word["id"]: os.readlink("/proc/self/fd/" + word["fd"]) for word in words if "fd" in word}
def nodes_of(pid):
    links = []
    for number in os.listdir("/proc/%d/fd" % pid):
        try:
            links.append(os.readlink("/proc/%d/fd/%s" % (pid, number)))
        except FileNotFoundError:
            pass
    return [link for link in links if "/dev/vfio/devices/" in link]
deadline = time.monotonic() + 20
while nodes_of(os.getppid()) and time.monotonic() < deadline:
    time.sleep(0.01)
with open(REPORT, "w") as file:
    shown = [word for word in words if word["id"] in found or "host" in word]
    json.dump({"links": found, "starter": nodes_of(os.getppid()), "words": shown}, file)
sys.exit(7)
"""


def tree(*lines: str) -> str:
    kept = [line for line in TREE.read_text().splitlines() if not line.startswith(("release", "iommufd"))]
    return "\n".join([*kept, "release 7.2.13", *lines]) + "\n"


@pytest.fixture
def fake(fakehost: Callable[[str], FakeHost]) -> FakeHost:
    """The seed's host with iommufd."""
    return fakehost(tree("iommufd available"))


def host_of(fake: FakeHost) -> Host:
    return Host(fake.root, writer=fake.kernel)


@pytest.fixture
def qemu(tmp_path: Path) -> Path:
    """A program in QEMU's place that reports its descriptors and fails."""
    program = tmp_path / "qemu"
    program.write_text(QEMU.replace("REPORT", repr(str(tmp_path / "report"))))
    program.chmod(0o755)
    return program


def domain(
    seed: DomainDef, qemu: Path | str, *, words: str = "<iommufd enabled='yes'/>", legacy: Any = ()
) -> DomainDef:
    """Return the seed's domain by iommufd, with functions that say no."""
    dom = DomainDef.parse(seed.format().replace("<os>", f"{words}<os>"))
    dom.emulator = str(qemu)
    for hostdev in dom.hostdevs:
        hostdev.host_driver.iommufd = False if hostdev.pci_address in legacy else None
    return dom


def guest_of(dom: DomainDef, host: Host, **more: Any) -> qemu_driver.Guest:
    from pyhostdev.qemu.qemu_capabilities import load

    return qemu_driver.Guest(dom, host, capabilities=load("x86_64", "11.1"), release=R12_8, **more)


def run(guest: qemu_driver.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a guest whose memory need not be locked."""
    monkeypatch.setattr(qemu_driver, "memlock_limit", lambda dom: None)
    guest.run(HostdevManager(guest.host), guest.host.plan(guest.definition))


def opened(fake: FakeHost) -> list[tuple[str, bytes]]:
    """Return the opens of nodes in the kernel's trace, and what else was done to them."""
    return [(entry.path, entry.value) for entry in fake.kernel.trace if entry.path.startswith("dev/")]


def our_nodes(fake: FakeHost) -> list[str]:
    """Return the nodes of a host that this process has open."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue  # that of the listing
    return [link for link in links if link.startswith((fake.root.dev_vfio, fake.root.dev_iommu))]


@pytest.mark.fault("F44")
def test_qemu_gets_nodes_as_descriptors(
    fake: FakeHost, seed_domain: DomainDef, qemu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own node for each assigned function, one iommufd whose mode was set first; then all is as before."""
    before = fake.snapshot()
    with pytest.raises(OperationError, match="exit status 7"):
        run(guest_of(domain(seed_domain, qemu), host_of(fake)), monkeypatch)
    report = json.loads((tmp_path / "report").read_text())
    nodes = [f"{fake.root.dev_vfio_devices}/vfio{number}" for number in (0, 3)]
    assert {"iommufd0": fake.root.dev_iommu, "hostdev0": nodes[0], "hostdev1": nodes[1]} == report["links"]
    assert not any("host" in word for word in report["words"])
    assert [] == report["starter"], "the starter's copies would hold the functions beside QEMU"
    wanted = [("dev/vfio/devices/vfio0", b"open"), ("dev/vfio/devices/vfio3", b"open")]
    assert [*wanted, ("dev/iommu", b"open"), ("dev/iommu", b"rlimit-mode=1")] == opened(fake)
    assert (before, []) == (fake.snapshot(), our_nodes(fake))


@pytest.mark.fault("F44")
def test_roll_back_with_an_open_node_would_hang(fake: FakeHost, seed_domain: DomainDef) -> None:
    """What libvirt 12.8 does to itself: the first unbind waits for the descriptor of the process that unbinds."""
    host = host_of(fake)
    dom = domain(seed_domain, "/usr/bin/qemu-system-x86_64")
    manager = HostdevManager(host)
    manager.prepare(host.plan(dom))
    node = fake.root.join("dev/vfio/devices/vfio0")
    fd = fake.kernel.open_node(node, None, device=CARD[0])
    with pytest.raises((OperationError, InDoubtError)):
        manager.release("vm1")
    assert fake.kernel.is_in_flight(CARD[0])
    os.close(fd)
    assert not fake.kernel.is_in_flight(CARD[0])


@pytest.mark.fault("F44")
@pytest.mark.parametrize("number", range(1, 5))
def test_failure_of_each_open_is_rolled_back(
    fake: FakeHost, seed_domain: DomainDef, qemu: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Nodes that were opened are closed before the first unbind: no unbind waits, and the host is as before."""
    before = fake.snapshot()
    guest = guest_of(domain(seed_domain, qemu), host_of(fake))
    enter = VFIODescriptors.__enter__

    def fail(self: VFIODescriptors) -> VFIODescriptors:
        fake.kernel.inject(number, Fail(errno.EBUSY))
        return enter(self)

    monkeypatch.setattr(VFIODescriptors, "__enter__", fail)
    with pytest.raises(SysfsError) as error:
        run(guest, monkeypatch)
    assert errno.EBUSY == error.value.errno
    assert (before, []) == (fake.snapshot(), our_nodes(fake))
    assert "in-doubt" not in [entry.result for entry in fake.kernel.trace]


def test_node_that_the_kernel_does_not_make_is_said(
    fake: FakeHost, seed_domain: DomainDef, qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """without VFIO device nodes shows only after the bind; then all is rolled back."""
    before = fake.snapshot()
    node = Path(fake.root.dev_vfio_devices) / "vfio0"
    enter = VFIODescriptors.__enter__

    def fail(self: VFIODescriptors) -> VFIODescriptors:
        fake.kernel.inject(1, Interfere(lambda kernel: node.unlink()))
        return enter(self)

    monkeypatch.setattr(VFIODescriptors, "__enter__", fail)
    with pytest.raises(OperationError, match="without VFIO device nodes") as error:
        run(guest_of(domain(seed_domain, qemu), host_of(fake)), monkeypatch)
    assert ("iommufd-missing", before) == (error.value.reason, fake.snapshot())


def test_mode_that_may_not_be_set_is_a_warning(
    fake: FakeHost,
    seed_domain: DomainDef,
    qemu: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without CAP_SYS_RESOURCE the memory of all guests of a user is counted together; the guest still starts."""

    def refuse(fd: int, path: str) -> None:
        raise SysfsError(errno.EPERM, path, "charge locked memory to each process")

    monkeypatch.setattr(fake.kernel, "charge_to_process", refuse)
    with pytest.raises(OperationError, match="exit status 7"):
        run(guest_of(domain(seed_domain, qemu), host_of(fake)), monkeypatch)
    assert "all guests of one user share its limit" in caplog.text


def test_iommufd_of_the_caller_is_used_as_it_is(
    fake: FakeHost, seed_domain: DomainDef, qemu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """<iommufd fdgroup=>: QEMU gets a copy, the mode is the caller's to set, and the descriptor stays the caller's."""
    dom = domain(seed_domain, qemu, words="<iommufd enabled='yes' fdgroup='io'/>")
    fake.kernel.load_module("iommufd")
    fd = fake.kernel.open_iommufd(fake.root.dev_iommu)
    fake.kernel.trace.clear()
    with pytest.raises(OperationError, match="exit status 7"):
        run(guest_of(dom, host_of(fake), fd_groups={"io": [fd]}), monkeypatch)
    assert fake.root.dev_iommu == json.loads((tmp_path / "report").read_text())["links"]["iommufd0"]
    assert ["dev/vfio/devices/vfio0", "dev/vfio/devices/vfio3"] == [path for path, _ in opened(fake)]
    os.close(fd)


def test_descriptors_that_are_named_and_not_handed_over_are_refused(
    fake: FakeHost, seed_domain: DomainDef, qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt finds out after the devices were moved; here nothing is touched, with its number."""
    before = fake.snapshot()
    dom = domain(seed_domain, qemu, words="<iommufd enabled='yes' fdgroup='io'/>")
    with pytest.raises(RefusedError, match="fdgroup='io'") as error:
        run(guest_of(dom, host_of(fake)), monkeypatch)
    assert (8, before) == (error.value.libvirt_code, fake.snapshot())


def test_kernel_without_iommufd_is_refused_before_the_first_write(
    fakehost: Callable[[str], FakeHost], seed_domain: DomainDef, qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither /dev/iommu nor a module for it: a finding of the plan, and an error of start."""
    fake = fakehost(tree())
    host = host_of(fake)
    dom = domain(seed_domain, qemu)
    assert ["iommufd-missing"] == [f.reason for f in iommufd_obstacles(dom, host, R12_8)]
    assert [] == iommufd_obstacles(dom, host, R9_0)
    with pytest.raises(RefusedError, match="kernel lacks iommufd"):
        run(guest_of(dom, host), monkeypatch)
    assert [] == fake.kernel.trace


def test_one_group_is_reached_in_one_way(fake: FakeHost, seed_domain: DomainDef, qemu: Path) -> None:
    """By its group and by iommufd at once is refused; for a function that the guest does not get it does not matter."""
    host = host_of(fake)
    mixed = domain(seed_domain, qemu, legacy=[CARD[3]])
    assert [("iommufd-mixed", CARD[3])] == [(f.reason, f.address) for f in iommufd_obstacles(mixed, host, R12_8)]
    assert [] == iommufd_obstacles(domain(seed_domain, qemu, legacy=CARD[1:3]), host, R12_8)


def test_nodes_of_a_plan(fake: FakeHost, seed_domain: DomainDef, qemu: Path) -> None:
    """The function's own, whose number is known once it is bound; of a function by its group, container and group."""
    host = host_of(fake)
    dom = domain(seed_domain, qemu)
    own = fake.root.dev_vfio_devices
    assert dict.fromkeys(GUEST, (fake.root.dev_iommu, f"{own}/vfioN")) == vfio_nodes(dom, host, R12_8)
    container = (fake.root.vfio_container, fake.root.vfio_group(14))
    assert dict.fromkeys(GUEST, container) == vfio_nodes(dom, host, R9_0)
    HostdevManager(host).prepare(host.plan(dom))
    plan = host.plan(dom).with_nodes(vfio_nodes(dom, host, R12_8))
    assert f"(QEMU's nodes: {fake.root.dev_iommu}, {own}/vfio0)" in plan.explain()
    assert [2, 0, 0, 2] == [len(row["nodes"]) for row in plan.to_json()["groups"][0]["functions"] if row["role"]]


def test_user_of_qemu_gets_no_node(fake: FakeHost, seed_domain: DomainDef, qemu: Path) -> None:
    """Descriptors are enough: nodes and group stay root's with mode 0600."""
    host = host_of(fake)
    manager = HostdevManager(host)
    with manager.prepared(host.plan(domain(seed_domain, qemu)), node_owner=(107, 36), by_descriptor=GUEST):
        paths = [fake.root.vfio_group(14), *(f"{fake.root.dev_vfio_devices}/vfio{n}" for n in range(4))]
        nodes = [fake.kernel.read_node(path) for path in paths]
        assert {(0, 0)} == {(node.uid, node.gid) for node in nodes if node is not None}
        assert {0o600} == {stat.S_IMODE(os.stat(path).st_mode) for path in paths}


def test_user_of_qemu_gets_the_group_of_a_device_that_it_opens_itself(
    fakehost: Callable[[str], FakeHost], seed_domain: DomainDef, qemu: Path
) -> None:
    """Legacy VFIO beside iommufd: the container and the group's node are for the former alone."""
    fake = fakehost("nic-own-groups")
    host = host_of(fake)
    ports = [PCIDeviceAddress(0, 4, 0, function) for function in range(2)]
    seed_domain.hostdevs = [DomainHostdevDef.for_pci(port, managed=True, assigned=True) for port in ports]
    legacy = ports[0]
    dom = domain(seed_domain, qemu, legacy=[legacy])
    by_iommufd = functions_by_iommufd(dom)
    assert ports[1:] == by_iommufd
    manager = HostdevManager(host)
    with manager.prepared(host.plan(dom), node_owner=(107, 36), by_descriptor=by_iommufd):
        groups = {a: host.iommu_group(a) for a in (legacy, *by_iommufd)}
        owners = {a: fake.kernel.read_node(fake.root.vfio_group(int(group or 0))) for a, group in groups.items()}
        assert {legacy: 107, **dict.fromkeys(by_iommufd, 0)} == {a: node and node.uid for a, node in owners.items()}


def test_container_is_for_devices_by_their_group(fake: FakeHost, seed_domain: DomainDef, qemu: Path) -> None:
    """QEMU's user needs access to /dev/vfio/vfio only where QEMU opens it."""
    for words, needs in (("<iommufd enabled='yes'/>", False), ("", True)):
        files = [file.path for file in needed_files(domain(seed_domain, qemu, words=words), fake.root)]
        assert needs == (fake.root.vfio_container in files)


@pytest.mark.parametrize("text", ["io", "io=", "io=x", "io=99999", "io=-1"])
def test_descriptor_on_the_command_line_must_be_open(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--fd-group names a group and an open descriptor, else it is a usage error."""
    with pytest.raises(SystemExit) as end:
        main(["start", "/nonexistent.xml", "--fd-group", text])
    assert 2 == end.value.code
    assert text in capsys.readouterr().err


def test_writer_without_nodes_is_refused(fake: FakeHost) -> None:
    """A writer that opens no node is a limit of the caller's, and said."""
    with pytest.raises(ConfigUnsupportedError, match="cannot open device nodes"), VFIODescriptors(Host(fake.root), []):
        pass
