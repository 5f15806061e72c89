# SPDX-License-Identifier: LGPL-2.1-or-later
"""A redacted snapshot names neither machine nor owner nor guests, and answers the same questions."""

from __future__ import annotations

from pathlib import Path

from pyhostdev import Host, HostdevManager
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util.hostsnapshot import HostSnapshot, take_snapshot
from pyhostdev.util.redaction import redacted

BOOT_ID = "1bd2d2c6-3fd5-4b5e-9e0c-5f3a3c9e1d00"
SECRETS = ("52:54:00:12:34:56", "52-54-00-ff-ff-00-12-34", "secret", BOOT_ID, "010200C0")
PF, DISK = "0000:03:00.0", "0000:02:00.0"


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
    assert [True] * 5 == [secret in texts(taken) for secret in SECRETS]
    assert clean == redacted(taken, fake.root)
    assert b"/dev/mapper/mapping-1 /mount-1 ext4 rw 0 0\n/dev/nvme0n1 / ext4 rw 0 0\n" == clean.entries["proc/mounts"]
    assert "../nvme0n1" == clean.entries["dev/mapper/mapping-1"]
    assert b"Iface\tDestination\tGateway\nenp3s0\t00000000\t0\n" == clean.entries["proc/net/route"]
    assert {p for p in taken.entries if p.startswith("sys/")} == {p for p in clean.entries if p.startswith("sys/")}


def test_libvirts_devices_stay_in_use(tmp_path: Path) -> None:
    """A domain's status keeps its devices; the rest is removed."""
    clean = redacted(take_snapshot(secretive(tmp_path).root), secretive(tmp_path / "again").root)
    (name,) = (path for path in clean.entries if path.startswith("run/libvirt/qemu/"))
    status = clean.entries[name]
    assert isinstance(status, bytes)
    assert ("run/libvirt/qemu/domain-1.xml", True) == (name, b"bus='2'" in status)
