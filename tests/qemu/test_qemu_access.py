# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files that QEMU opens for a domain, and the findings about those that it could not open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.hypervisor.host import Host
from pyhostdev.qemu import qemu_driver
from pyhostdev.qemu.qemu_capabilities.reading import load
from pyhostdev.qemu.qemu_driver.refusals import unknown_cpu_model
from pyhostdev.qemu.qemu_process.access import READ, RUN, WRITE, image_obstacles, needed_files
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.ownership import Ownership

STRANGER = Ownership(4_000_000_123, 4_000_000_124, "4000000123")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask what another user may open")

EVERYTHING = """
<domain type='kvm'><name>vm</name><memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type><loader type='pflash' readonly='yes'>/fw/code</loader>
    <nvram>/fw/vars</nvram><kernel>/boot/kernel</kernel><initrd>/boot/initrd</initrd><dtb>/boot/dtb</dtb>
    <acpi><table type='slic'>/fw/slic</table></acpi></os>
  <devices><emulator>/usr/bin/qemu</emulator>
    <disk type='file'><source file='/disk/rw'/><target dev='vda'/></disk>
    <disk type='block'><source dev='/disk/ro'/><target dev='vdb'/><readonly/></disk>
    <disk type='file' device='cdrom'><source file='/disk/cd'/><target dev='sda' bus='sata'/></disk>
    <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/></disk>
    <disk type='network'><source protocol='nbd' name='x'><host transport='unix' socket='/nbd/socket'/></source>
      <target dev='vdc'/></disk>
    <filesystem><source dir='/share/rw'/><target dir='a'/></filesystem>
    <filesystem><source dir='/share/ro'/><target dir='b'/><readonly/></filesystem>
    <interface type='user'><rom file='/rom/net'/></interface>
    <serial type='file'><source path='/chr/file'/><log file='/chr/log'/></serial>
    <serial type='dev'><source path='/chr/dev'/></serial>
    <channel type='unix'><source mode='bind' path='/chr/bound/a'/><target type='virtio' name='a'/></channel>
    <channel type='unix'><source mode='connect' path='/chr/peer'/><target type='virtio' name='b'/></channel>
    <channel type='unix'><target type='virtio' name='c'/></channel>
    <graphics type='vnc'><listen type='socket' socket='/view/vnc'/></graphics>
    <rng model='virtio'><backend model='random'>/rng/random</backend></rng>
    <vsock model='virtio'><cid address='3'/></vsock>
    <hostdev mode='subsystem' type='usb'><source><address bus='1' device='2'/></source></hostdev>
  </devices>
</domain>
"""


def domain(devices: str = "", kind: str = "qemu", emulator: str = "/bin/true") -> DomainDef:
    return DomainDef.parse(
        f"<domain type='{kind}'><name>vm</name><memory unit='MiB'>64</memory>"
        "<os><type arch='x86_64' machine='pc'>hvm</type></os>"
        f"<devices><emulator>{emulator}</emulator>{devices}</devices></domain>"
    )


def disk(path: object, target: str = "vda") -> str:
    return f"<disk type='file'><source file='{path}'/><target dev='{target}'/></disk>"


def test_every_file_is_known_with_what_is_done_to_it() -> None:
    """Every file that QEMU opens is checked, for the access that QEMU needs."""
    found = {(file.path, file.mode, file.making) for file in needed_files(DomainDef.parse(EVERYTHING), HostRoot("/"))}
    read = {"/fw/code", "/boot/kernel", "/boot/initrd", "/boot/dtb", "/fw/slic", "/disk/ro", "/disk/cd"}
    write = {"/dev/kvm", "/fw/vars", "/disk/rw", "/share/rw", "/chr/dev", "/dev/vhost-vsock", "/dev/bus/usb/001/002"}
    expected: set[tuple[str, int, str | None]] = {
        (path, READ, None) for path in read | {"/share/ro", "/rom/net", "/rng/random"}
    }
    expected |= {(path, WRITE, None) for path in write}
    expected |= {(path, os.W_OK, None) for path in ("/nbd/socket", "/chr/peer")}
    expected |= {(path, os.W_OK, "absent") for path in ("/chr/file", "/chr/log")}
    expected |= {("/usr/bin/qemu", RUN, None), ("/chr/bound", os.F_OK, None), ("/view/vnc", os.W_OK, "always")}
    assert expected == found


def test_missing_and_relative_paths_are_refused_at_once(tmp_path: Path) -> None:
    """Every missing file and every relative path is a finding with its line."""
    (tmp_path / "there").touch()
    disks = disk(tmp_path / "gone") + "\n" + disk(tmp_path / "there/in", "vdb") + disk("here", "vdc")
    dom = domain(disks, emulator="qemu")
    found = image_obstacles(dom, Host(HostRoot("/"), state_dir=str(tmp_path)), None)
    reasons = ["relative-path", "relative-path", "image-missing", "image-missing"]
    assert reasons == [finding.reason for finding in found]
    assert [1, 2, 1, 2] == [finding.line for finding in found]


def test_what_is_there_is_no_finding(tmp_path: Path) -> None:
    """A domain whose files can be opened has no obstacle; files that QEMU creates need not exist."""
    (tmp_path / "disk").touch()
    serial = f"<serial type='file'><source path='{tmp_path}/new'/></serial>"
    dom = domain(disk(tmp_path / "disk") + serial)
    assert [] == image_obstacles(dom, Host(HostRoot("/"), state_dir=str(tmp_path)), None)


def test_what_qemu_would_refuse_is_a_finding(tmp_path: Path) -> None:
    """An image must be a regular file, a block disk a device, and the path of a new socket free."""
    (tmp_path / "file").touch()
    block = f"<disk type='block'><source dev='{tmp_path}/file'/><target dev='vdc'/></disk>"
    serial = "<serial type='unix'><source mode='bind' path='{}'/></serial>"
    sockets = serial.format(tmp_path / "file") + serial.format(tmp_path / ("n" * 100))
    dom = domain(disk(tmp_path) + disk("/dev/null", "vdb") + block + sockets)
    found = image_obstacles(dom, Host(HostRoot("/"), state_dir=str(tmp_path)), None)
    assert [
        f"'{tmp_path}' of disk 'vda' is not a regular file",
        "'/dev/null' of disk 'vdb' is not a regular file",
        f"'{tmp_path}/file' of disk 'vdc' is not a device",
        f"'{tmp_path}/file' of a <serial> exists and is not a socket",
    ] == [finding.message for finding in found[:-1]]
    assert "has more than 88 bytes" in found[-1].message
    assert {("image-unusable", "error")} == {(finding.reason, finding.severity) for finding in found}


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ("", "", True),
        ("<readonly/>", "", True),
        ("<readonly/>", "<readonly/>", False),
        ("<shareable/>", "<shareable/>", False),
        ("<shareable/>", "", True),
    ],
)
def test_one_image_of_two_disks(first: str, second: str, refused: bool, tmp_path: Path) -> None:
    """QEMU locks an image that a disk writes, by whatever name, unless both disks share it."""
    (tmp_path / "image").touch()
    (tmp_path / "link").symlink_to("image")
    one, other = (disk(tmp_path / name, target) for name, target in (("image", "vda"), ("link", "vdb")))
    dom = domain(one.replace("</disk>", f"{first}</disk>") + other.replace("</disk>", f"{second}</disk>"))
    found = image_obstacles(dom, Host(HostRoot("/"), state_dir=str(tmp_path)), None)
    assert refused == any("Disks 'vda' and 'vdb' have the same image" in finding.message for finding in found)


def test_a_screen_with_opengl_needs_a_render_node() -> None:
    """On a machine without render nodes, the first one is reported as missing; a directory may lack nodes."""
    dom = domain("<graphics type='egl-headless'/>")
    _, needed = needed_files(dom, HostRoot("/"))
    assert needed.path.startswith("/dev/dri/renderD")
    assert 1 == len(list(needed_files(dom, HostRoot("/nowhere"))))


def test_oss_needs_its_node() -> None:
    """Without a name, it is QEMU's default for both directions."""
    audio = "<sound model='ich9'/><audio id='1' type='oss'><output dev='/dev/dsp1'/></audio>"
    _, *needed = needed_files(domain(audio), HostRoot("/nowhere"))
    assert ["/dev/dsp", "/dev/dsp1"] == [file.path for file in needed]


def test_a_model_that_the_emulator_lacks_is_a_finding(tmp_path: Path) -> None:
    """QEMU would not start; the nearest models are named."""
    text = "<cpu mode='custom'><model>Broadwel</model></cpu>"
    dom = DomainDef.parse(domain().format().replace("<devices>", f"{text}<devices>"))
    (finding,) = unknown_cpu_model(dom, load("x86_64", "11.1"))
    assert "no CPU model 'Broadwel'; the nearest are Broadwell" in finding.message
    assert "Broadwel'" in str(qemu_driver.plan(Host(tmp_path), dom).start_obstacles)


def test_a_foreign_root_need_not_have_files(tmp_path: Path) -> None:
    """A root other than / only has the host's devices, and the owners of its files prove nothing."""
    block = "<disk type='block'><source dev='/dev/gone'/><target dev='vdb'/></disk>"
    dom = domain(disk("/gone") + block, "kvm", "qemu")
    found = image_obstacles(dom, Host(HostRoot(str(tmp_path))), STRANGER)
    assert ["'/dev/gone' of disk 'vdb' does not exist"] == [finding.message for finding in found]


@needs_root
def test_findings_are_the_users(tmp_path: Path) -> None:
    """A file that only root may open is a finding with the remedy if QEMU has another user."""
    for name in ("closed", "open"):
        (tmp_path / name).touch(mode=0o600)
    top = tmp_path
    while top != top.parent:
        top.chmod(top.stat().st_mode | 0o011)
        top = top.parent
    os.chown(tmp_path / "open", STRANGER.uid, -1)
    dom = domain(disk(tmp_path / "closed") + disk(tmp_path / "open", "vdb"))
    host = Host(HostRoot("/"), state_dir=str(tmp_path / "state"))
    (finding,) = image_obstacles(dom, host, STRANGER)
    assert ("image-unreadable", True) == (finding.reason, finding.message.endswith("with --user root"))
    assert "/closed')" in finding.message
    assert [] == image_obstacles(dom, host, None)


@needs_root
def test_way_to_the_state_directory_is_looked_at(tmp_path: Path) -> None:
    """QEMU's key is below the state directory, so a directory above it that its user cannot pass is a finding."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    found = image_obstacles(domain(), Host(HostRoot("/"), state_dir=str(closed / "state")), STRANGER)
    assert [f"pass through the state directory ('{closed}')"] == [
        finding.message.partition("cannot ")[2].partition(":")[0] for finding in found if "/bin" not in finding.message
    ]
    assert not (closed / "state").exists()


@needs_root
@pytest.mark.parametrize(
    ("mode", "owner", "expected"),
    [
        ("chroot", STRANGER, ["virtiofsd of 't' runs as user '4000000123', and <sandbox mode='chroot'> needs root"]),
        ("namespace", STRANGER, []),
        ("chroot", Ownership(0, 0, "root"), []),
        ("chroot", None, []),
    ],
)
def test_a_sandbox_that_needs_root_is_refused(
    tmp_path: Path, mode: str, owner: Ownership | None, expected: list[str]
) -> None:
    """virtiofsd would end when QEMU connects, after the devices have left the host."""
    binary = f"<binary path='/bin/true'><sandbox mode='{mode}'/></binary>"
    text = f"<filesystem><driver type='virtiofs'/>{binary}<source dir='/'/><target dir='t'/></filesystem>"
    found = image_obstacles(domain(text), Host("/", state_dir=str(tmp_path)), owner)
    assert expected == [finding.message for finding in found if finding.reason == "unsupported"]
