# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files that QEMU opens for a domain, and the findings about those that it could not open."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
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


def image(path: Path, *options: str) -> Path:
    """Make a qcow2 image."""
    if shutil.which("qemu-img") is None:
        pytest.skip("needs qemu-img")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "1M"], check=True)
    return path


def qcow2(path: object, inside: str = "") -> str:
    driver = "<driver name='qemu' type='qcow2'/>"
    return f"<disk type='file'>{driver}<source file='{path}'/>{inside}<target dev='vda'/></disk>"


def obstacles(dom: DomainDef, state_dir: Path) -> list[tuple[str, str]]:
    found = image_obstacles(dom, Host(HostRoot("/"), state_dir=str(state_dir)), None)
    assert {"error"} >= {finding.severity for finding in found}
    return [(finding.reason, finding.message) for finding in found]


def test_an_image_has_the_format_of_its_definition(tmp_path: Path) -> None:
    """QEMU would not find qcow2 in another file; raw fits every file, and a part of a file is not looked at."""
    (tmp_path / "raw").write_bytes(bytes(512))
    good = image(tmp_path / "good")
    bad = [("image-unusable", f"'{tmp_path}/raw' of disk 'vda' is not a qcow2 image")]
    assert bad == obstacles(domain(qcow2(tmp_path / "raw")), tmp_path)
    assert [] == obstacles(domain(qcow2(good)), tmp_path)
    assert [] == obstacles(domain(disk(good)), tmp_path)
    part = "<slices><slice type='storage' offset='512' size='512'/></slices>"
    assert [] == obstacles(
        domain(qcow2(tmp_path / "raw").replace(f"file='{tmp_path}/raw'/>", f"file='{tmp_path}/raw'>{part}</source>")),
        tmp_path,
    )
    flash = domain().format().replace("</os>", f"<loader type='pflash' format='qcow2'>{tmp_path}/raw</loader></os>")
    assert [("image-unusable", f"'{tmp_path}/raw' of the firmware is not a qcow2 image")] == obstacles(
        DomainDef.parse(flash), tmp_path
    )


def test_variables_cannot_be_made_from_another_format(tmp_path: Path) -> None:
    """The store is a copy of its template; one that exists is used as it is."""
    nvram = f"<nvram template='/bin/true' templateFormat='raw' format='qcow2'>{tmp_path}/vars</nvram></os>"
    dom = DomainDef.parse(domain().format().replace("</os>", nvram))
    message = f"'{tmp_path}/vars' of format qcow2 cannot be made from '/bin/true' of format raw"
    assert [("image-unusable", message)] == obstacles(dom, tmp_path)
    image(tmp_path / "vars")
    assert [] == obstacles(dom, tmp_path)


@needs_root
def test_an_image_that_qemu_cannot_open_is_not_read(tmp_path: Path) -> None:
    """Root does not read it in the user's place, so what the image names stays unknown; so does a relative path."""
    top = image(tmp_path / "top", "-F", "qcow2", "-u", "-b", "/nowhere/secret")
    top.chmod(0o600)
    host = Host(HostRoot("/"), state_dir=str(tmp_path / "state"))
    found = image_obstacles(domain(qcow2(top)), host, STRANGER)
    assert "image-unreadable" in [finding.reason for finding in found]
    assert "secret" not in str(found)
    relative = image_obstacles(domain(qcow2("pyproject.toml")), host, None)
    assert ["relative-path"] == [finding.reason for finding in relative]


def test_images_below_an_image_are_looked_at(tmp_path: Path) -> None:
    """QEMU opens the files that the images name, relative to each image; an empty <backingStore/> ends the chain."""
    (tmp_path / "raw").write_bytes(bytes(1 << 20))
    (tmp_path / "in").mkdir()
    below = image(tmp_path / "in/below", "-F", "qcow2", "-u", "-b", "gone")
    above = image(tmp_path / "above", "-F", "qcow2", "-u", "-b", "in/below")
    what = "of the backing store of disk 'vda'"
    missing = [("image-missing", f"'{tmp_path}/in/gone' {what} does not exist")]
    assert missing == obstacles(domain(qcow2(above)), tmp_path) == obstacles(domain(qcow2(below)), tmp_path)
    (tmp_path / "in/gone").symlink_to("../raw")
    unusable = [("image-unusable", f"'{tmp_path}/in/gone' {what} is not a qcow2 image")]
    assert unusable == obstacles(domain(qcow2(above)), tmp_path)
    assert [] == obstacles(domain(qcow2(above, "<backingStore/>")), tmp_path)
    listed = f"<backingStore type='file'><format type='qcow2'/><source file='{tmp_path}/raw'/></backingStore>"
    assert [("image-unusable", f"'{tmp_path}/raw' {what} is not a qcow2 image")] == obstacles(
        domain(qcow2(above, listed)), tmp_path
    )


def test_an_image_that_a_guest_uses(tmp_path: Path) -> None:
    """QEMU locks an image, and a second one would end; a file below an image is locked, too."""
    emulator = shutil.which("qemu-system-x86_64")
    if emulator is None:
        pytest.skip("needs qemu-system-x86_64")
    low, top = image(tmp_path / "low"), image(tmp_path / "top", "-F", "qcow2", "-b", str(tmp_path / "low"))
    options = ["-machine", "none,accel=tcg", "-display", "none", "-nodefaults", "-qmp", "stdio"]
    export = [f"driver=qcow2,node-name=a,file.driver=file,file.filename={low}", "driver=raw,node-name=b,file=a"]
    blockdevs = [word for text in export for word in ("-blockdev", text)]
    with subprocess.Popen([emulator, *options, *blockdevs], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        try:
            assert qemu.stdout is not None
            assert b"QMP" in qemu.stdout.readline()  # it has opened the image
            used = f"'{low}' of {{}} is in use: another program has locked it"
            assert [("image-unusable", used.format("disk 'vda'"))] == obstacles(domain(qcow2(low)), tmp_path)
            below = used.format("the backing store of disk 'vda'")
            assert [("image-unusable", below)] == obstacles(domain(qcow2(top)), tmp_path)
        finally:
            qemu.kill()
    assert [] == obstacles(domain(qcow2(top)), tmp_path)


def test_a_chain_that_is_elsewhere_or_endless(tmp_path: Path) -> None:
    """A server is not asked, a format that the image does not give is detected, and a circle ends."""
    assert [] == obstacles(domain(qcow2(image(tmp_path / "a", "-F", "raw", "-u", "-b", "nbd://h/x"))), tmp_path)
    assert [] == obstacles(domain(qcow2(image(tmp_path / "b", "-F", "qcow2", "-u", "-b", "b"))), tmp_path)
    (tmp_path / "raw").write_bytes(bytes(512))
    top = image(tmp_path / "c", "-F", "raw", "-u", "-b", "raw")
    top.write_bytes(top.read_bytes().replace(b"\xe2\x79\x2a\xca", b"\x01\x79\x2a\xca"))  # the format is not given
    assert [] == obstacles(domain(qcow2(top)), tmp_path)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("<serial type='unix'><source mode='connect' path='{}/f'/></serial>", "the host side of a <serial> {} socket"),
        (
            "<disk type='network'><source protocol='nbd' name='x'><host transport='unix' socket='{}/f'/></source>"
            "<target dev='vda'/></disk>",
            "the server of disk 'vda' {} socket",
        ),
        ("<audio id='1' type='pulseaudio' serverName='{}/f'/>", "the server of an <audio> {} socket"),
        ("<audio id='1' type='pulseaudio' serverName='unix:{}/f'/>", "the server of an <audio> {} socket"),
        ("<filesystem><source dir='{}/f'/><target dir='t'/></filesystem>", "the directory of 't' {} directory"),
        (
            "<smartcard mode='host-certificates'><certificate>a</certificate><certificate>b</certificate>"
            "<certificate>c</certificate><database>{}/f</database></smartcard>",
            "the database of a <smartcard> {} directory",
        ),
    ],
)
def test_a_file_of_another_kind(devices: str, message: str, tmp_path: Path) -> None:
    """QEMU would connect to a socket or list a directory; a missing one is a finding like any file."""
    dom = domain(devices.format(tmp_path))
    ((missing, _),) = obstacles(dom, tmp_path)
    (tmp_path / "f").touch()
    ((reason, found),) = obstacles(dom, tmp_path)
    assert ("image-missing", "image-unusable") == (missing, reason)
    assert f"'{tmp_path}/f' of {message.format('is not a')}" == found


def test_a_peer_that_refuses(tmp_path: Path) -> None:
    """A socket whose program has ended refuses; a program that runs sees no connection."""
    path = str(tmp_path / ("s" * 120))  # longer than an address
    dom = domain(f"<serial type='unix'><source mode='connect' path='{path}'/></serial>")
    with listening(path) as server:
        assert [] == obstacles(dom, tmp_path)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    message = f"No program listens at '{path}' of the host side of a <serial>"
    assert [("image-unusable", message)] == obstacles(dom, tmp_path)


def test_a_socket_that_another_program_has(tmp_path: Path) -> None:
    """pyhostdev replaces a dead socket only, and makes each once."""
    path = str(tmp_path / "s")
    serial = f"<serial type='unix'><source mode='bind' path='{path}'/></serial>"
    with listening(path):
        message = f"Another program listens at '{path}' of a <serial>"
        assert [("image-unusable", message)] == obstacles(domain(serial), tmp_path)
    assert [] == obstacles(domain(serial), tmp_path)
    console = serial.replace("serial", "console")
    assert [] == obstacles(domain(serial + console), tmp_path)
    twice = [("image-unusable", f"A <serial> and a <serial> would listen at the same socket '{path}'")]
    assert twice == obstacles(domain(serial + serial), tmp_path)


@contextmanager
def listening(path: str) -> Iterator[socket.socket]:
    """Listen at a path of any length; the socket's file stays."""
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{fd}/{name[:80]}")
            os.rename(f"{directory}/{name[:80]}", path)
            server.listen()
            yield server
    finally:
        os.close(fd)


def test_content_is_not_a_directory(tmp_path: Path) -> None:
    """QEMU cannot read one, though its user may."""
    text = domain().format().replace("</os>", f"<kernel>{tmp_path}</kernel></os>")
    assert [("image-unusable", f"'{tmp_path}' of the kernel is a directory")] == obstacles(
        DomainDef.parse(text), tmp_path
    )


def test_a_peer_that_qemu_waits_for_may_be_absent(tmp_path: Path) -> None:
    """With a time between its attempts QEMU starts without the peer, and so it does with the two ends of a pipe."""
    reconnect = "<reconnect enabled='yes' timeout='{}'/>"
    serial = "<serial type='unix'><source mode='connect' path='/nowhere/x'>{}</source></serial>"
    assert [] == obstacles(domain(serial.format(reconnect.format(5))), tmp_path)
    assert 1 == len(obstacles(domain(serial.format("<reconnect enabled='no'/>")), tmp_path))
    pipe = domain(f"<serial type='pipe'><source path='{tmp_path}/p'/></serial>")
    assert ["image-missing"] == [reason for reason, _ in obstacles(pipe, tmp_path)]
    for end in ("in", "out"):
        os.mkfifo(tmp_path / f"p.{end}")
    assert [] == obstacles(pipe, tmp_path)


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
