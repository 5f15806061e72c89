# SPDX-License-Identifier: LGPL-2.1-or-later
"""A redacted snapshot names neither machine nor owner nor guests, and answers the same questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyhostdev import Host, HostdevManager
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostsnapshot import HostSnapshot, take_snapshot
from pyhostdev.util.redaction import redacted
from pyhostdev.util.virpcivpd import parse_vpd, without_identity

BOOT_ID = "1bd2d2c6-3fd5-4b5e-9e0c-5f3a3c9e1d00"
MDEV = "4b20d080-1b54-4048-85b3-a6a62d165c01"
SECRETS = ("52:54:00:12:34:56", "52-54-00-ff-ff-00-12-34", "secret", BOOT_ID, "010200C0", "0002A8C0", MDEV, "20010db8")
PF, DISK = "0000:03:00.0", "0000:02:00.0"


def vpd() -> bytes:
    """Return Vital Product Data with a serial number of its system and of its vendor."""
    data = b"\x82\x04\0Card\x90\x1f\0PN\x04PartSN\x06secretV0\x08secret-2RV\x01"
    return data + bytes([-sum(data) & 0xFF]) + b"\x91\x0a\0YA\x07secret!\x78"


def put(root: Path, path: str, text: str) -> None:
    """Write a file of the host."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def secretive(directory: Path) -> FakeHost:
    """Return a host with all kinds of secrets."""
    fake = FakeHost.named("sriov", directory)
    top = f"sys/bus/pci/devices/{PF}"
    put(directory, f"{top}/net/enp3s0/address", "52:54:00:12:34:56\n")
    put(directory, f"{top}/serial_number", "52-54-00-ff-ff-00-12-34\n")
    put(directory, "proc/mounts", "/dev/mapper/secret-root /srv/secret ext4 rw 0 0\n/dev/nvme0n1 / ext4 rw 0 0\n")
    put(directory, "proc/net/route", "Iface\tDestination\tGateway\nenp3s0\t00000000\t010200C0\nx\t0002A8C0\t0\n")
    put(directory, "proc/net/if_inet6", f"20010db8{'0' * 23}1 02 40 00 80 br-secret\n")
    (directory / top / "vpd").write_bytes(vpd())
    put(directory, "sys/devices/virtual/net/br-secret/mtu", "1500\n")
    (directory / "sys/class/net/br-secret").symlink_to("../../devices/virtual/net/br-secret")
    (directory / top / "net/enp3s0/master").symlink_to("../../../../virtual/net/br-secret")
    put(directory, f"sys/devices/virtual/mdev/{MDEV}/x", "")
    (directory / "sys/bus/mdev/devices").mkdir(parents=True)
    (directory / "sys/bus/mdev/devices" / MDEV).symlink_to(f"../../../devices/virtual/mdev/{MDEV}")
    network = "<network><name>pool</name><uuid>{}</uuid><bridge name='br-secret'/><ip address='10.0.0.1'/><dns>{}</dns>"
    put(directory, "etc/libvirt/qemu/networks/pool.xml", network.format(MDEV, "secret") + "</network>")
    port = "<networkport><owner><name>secret</name></owner><plug type='hostdev-pci'><address bus='3'/></plug>"
    put(directory, f"run/libvirt/network/pool.ports/{MDEV}.xml", port + "</networkport>")
    (directory / "dev/mapper").mkdir(parents=True)
    (directory / "dev/mapper/secret-root").symlink_to("../nvme0n1")
    status = "<domstatus><domain><name>secret</name><devices><hostdev type='pci'><source>{}</source></hostdev>"
    address = "<address domain='0' bus='2' slot='0' function='0'/>"
    put(directory, "run/libvirt/qemu/secret.xml", status.format(address) + "</devices></domain></domstatus>")
    HostdevManager(Host(fake.root, writer=fake.kernel)).nodedev_detach("0000:03:10.0")
    return fake


def texts(snapshot: HostSnapshot) -> str:
    """Return all texts of a snapshot."""
    parts = [*snapshot.entries]
    for content in snapshot.entries.values():
        parts.append(content if isinstance(content, str) else (content or b"").decode("latin-1"))
    return "\n".join(parts)


def test_secrets_are_replaced_consistently(tmp_path: Path) -> None:
    """No secret remains, equal values stay equal, and other values are unchanged."""
    fake = secretive(tmp_path)
    taken = take_snapshot(fake.root)
    clean = redacted(taken, fake.root)
    assert [] == [secret for secret in SECRETS if secret in texts(clean)]
    assert [True] * len(SECRETS) == [secret in texts(taken) for secret in SECRETS]
    assert clean == redacted(taken, fake.root)
    assert b"/dev/mapper/mapping-1 /mount-1 ext4 rw 0 0\n/dev/nvme0n1 / ext4 rw 0 0\n" == clean.entries["proc/mounts"]
    assert "../nvme0n1" == clean.entries["dev/mapper/mapping-1"]
    assert b"Iface\tDestination\tGateway\nenp3s0\t00000000\t0\nx\tFFFFFFFF\t0\n" == clean.entries["proc/net/route"]
    assert f"{'0' * 32} 02 40 00 80 virtual1\n".encode() == clean.entries["proc/net/if_inet6"]
    assert "../../devices/virtual/net/virtual1" == clean.entries["sys/class/net/virtual1"]
    devices = [
        {p for p in found.entries if p.startswith(("sys/bus/pci", "sys/devices/pci"))} for found in (taken, clean)
    ]
    assert devices[0] == devices[1]


def test_vital_product_data_keeps_the_kind_of_card(tmp_path: Path) -> None:
    """Name and part number stay, serial numbers do not, equal ones are replaced alike, and the checksum is right."""
    data = without_identity(vpd(), _count())
    found = parse_vpd(data)
    assert found is not None and len(data) == len(vpd())
    assert ("Card", {"PN": "Part", "SN": "000001", "V0": "00000002"}) == (found.name, found.readonly)
    assert {"YA": "0000003"} == found.readwrite
    assert b"" == without_identity(vpd()[:-1], _count())


def _count() -> Callable[[str], str]:
    known: dict[str, str] = {}
    return lambda value: known.setdefault(value, str(len(known) + 1))


def test_networks_keep_what_decides_about_devices(tmp_path: Path) -> None:
    """The name of a network, its bridge and its pool stay; the owner of a port does not."""
    clean = redacted(take_snapshot(secretive(tmp_path).root), HostRoot(tmp_path))
    network = clean.entries["etc/libvirt/qemu/networks/pool.xml"]
    assert b'<network><name>pool</name><bridge name="virtual1"/></network>\n' == network
    (port,) = (data for path, data in clean.entries.items() if ".ports/" in path)
    assert b"<networkport><plug type='hostdev-pci'><address bus=\"3\"/></plug></networkport>\n" == port
    broken = HostSnapshot({"etc/libvirt/qemu/networks/x.xml": b"<a"}, [], [])
    assert [b"<network/>\n"] == list(redacted(broken, HostRoot(tmp_path)).entries.values())


def test_libvirts_devices_stay_in_use(tmp_path: Path) -> None:
    """A domain's status keeps its devices; the rest is removed."""
    clean = redacted(take_snapshot(secretive(tmp_path).root), secretive(tmp_path / "again").root)
    (name,) = (path for path in clean.entries if path.startswith("run/libvirt/qemu/"))
    status = clean.entries[name]
    assert isinstance(status, bytes)
    assert ("run/libvirt/qemu/domain-1.xml", True) == (name, b"bus='2'" in status)
