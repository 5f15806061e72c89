# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line of smaller devices in common domains."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pyhostdev import ConfigError, ConfigUnsupportedError, DomainDef, Host
from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.qemu import build_command_line
from pyhostdev.qemu.qemu_driver.refusals import root_notes

R9_0, R11_3, R12_8 = RELEASES
DOMAIN = """
<domain type='qemu'><name>d</name><memory unit='MiB'>1024</memory>{head}
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os><type arch='x86_64' machine='q35'>hvm</type>{os}</os><devices>{devices}</devices></domain>
"""


def argv(
    devices: str = "", head: str = "", os: str = "", release: LibvirtRelease = R12_8, **options: Any
) -> list[tuple[str, str]]:
    """The command line as pairs of adjacent words."""
    dom = DomainDef.parse(DOMAIN.format(head=head, devices=devices, os=os))
    return list(pairwise(build_command_line(dom, release=release, **options)))


def values(words: list[tuple[str, str]], option: str) -> list[str]:
    return [value for name, value in words if name == option]


def devices_of(words: list[tuple[str, str]], driver: str) -> list[dict[str, Any]]:
    found = [json.loads(value) for value in values(words, "-device")]
    return [device for device in found if device["driver"] == driver]


def test_tpm_of_an_emulator() -> None:
    """The emulator of a TPM listens at a socket in the runtime directory."""
    words = argv("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>", state_dir="/run/x")
    assert "socket,id=chrtpm,path=/run/x/swtpm/-1-d-swtpm.sock" in values(words, "-chardev")
    assert ["emulator,id=tpm-tpm0,chardev=chrtpm"] == values(words, "-tpmdev")
    assert [{"driver": "tpm-crb", "tpmdev": "tpm-tpm0", "id": "tpm0"}] == devices_of(words, "tpm-crb")


@pytest.mark.parametrize("passes", [True, False])
def test_tpm_of_the_host(passes: bool) -> None:
    """QEMU inherits the TPM's node and its cancel file if the caller opens them."""
    tpm = "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm7'/></backend></tpm>"
    words = argv(tpm, file_fd={"/dev/tpm7": 8, "/sys/class/tpm/tpm7/device/cancel": 9}.get if passes else None)
    sets = ["set=0,fd=8,opaque=tpm0-tpm", "set=1,fd=9,opaque=tpm0-cancel"]
    where = (
        "/dev/fdset/0,cancel-path=/dev/fdset/1" if passes else "/dev/tpm7,cancel-path=/sys/class/tpm/tpm7/device/cancel"
    )
    assert (sets if passes else []) == values(words, "-add-fd")
    assert [f"passthrough,id=tpm-tpm0,path={where}"] == values(words, "-tpmdev")


def test_tables_of_firmware_in_the_order_of_their_types() -> None:
    """Commas are doubled; names that a table does not have are dropped, the others sorted."""
    info = (
        "<sysinfo type='smbios'><system><entry name='serial'>1</entry><entry name='nonsense'>x</entry>"
        "<entry name='manufacturer'>A, Inc.</entry></system><bios><entry name='vendor'>B</entry></bios>"
        "<oemStrings><entry>c,d</entry></oemStrings></sysinfo>"
    )
    expected = ["type=0,vendor=B", "type=1,manufacturer=A,, Inc.,serial=1", "type=11,value=c,,d"]
    assert expected == values(argv(head=info, os="<smbios mode='sysinfo'/>"), "-smbios")
    with pytest.raises(ConfigUnsupportedError, match="without a <sysinfo"):
        argv(os="<smbios mode='sysinfo'/>")


def test_tables_of_the_host(tmp_path: Path) -> None:
    """They are the kernel's, without the host's UUID; a root without them is noted, a host without them refused."""
    dom = DomainDef.parse(DOMAIN.format(head="", devices="", os="<smbios mode='host'/>"))
    assert ["root-lacks"] == [note.reason for note in root_notes(dom, Host(tmp_path))]
    assert [] == values(argv(os="<smbios mode='host'/>", host=Host(tmp_path)), "-smbios")
    dmi = tmp_path / "sys/class/dmi/id"
    dmi.mkdir(parents=True)
    with pytest.raises(ConfigUnsupportedError, match="without SMBIOS tables"):
        argv(os="<smbios mode='host'/>", host=Host(tmp_path))
    for name, value in (("sys_vendor", "Maker"), ("product_uuid", "secret"), ("board_name", "Board")):
        (dmi / name).write_text(f"{value}\n")
    words = argv(os="<smbios mode='host'/>", host=Host(tmp_path))
    assert ["type=1,manufacturer=Maker", "type=2,product=Board"] == values(words, "-smbios")


def test_a_fw_cfg_value_stays_one_value() -> None:
    """Commas are doubled: in libvirt a comma ends the value, so a value could name a file of the host."""
    entry = "<sysinfo type='fwcfg'><entry name='opt/x'>a,file=/etc/shadow</entry></sysinfo>"
    assert ["name=opt/x,string=a,,file=/etc/shadow"] == values(argv(head=entry), "-fw_cfg")
    for wrong in ("<entry name='etc/x'>a</entry>", "<entry name='opt/ovmf/x'>a</entry>", "<entry name='opt/x'/>"):
        with pytest.raises(ConfigError, match="fw_cfg"):
            argv(head=f"<sysinfo type='fwcfg'>{wrong}</sysinfo>")


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        ("type='alsa'><input dev='hw:1'/></audio>", {"driver": "alsa", "in": {"dev": "hw:1"}}),
        ("type='file' path='/w'/>", {"driver": "wav", "path": "/w"}),
        ("type='oss' exclusive='no'/>", {"driver": "oss", "exclusive": False}),
        ("type='none'><input dev='hw:1'/></audio>", {"driver": "none"}),
        (
            "type='pulseaudio' serverName='s'><output latency='5' voices='2'/></audio>",
            {"driver": "pa", "server": "s", "out": {"voices": 2, "latency": 5}},
        ),
        (
            "type='jack'><output exactName='yes' mixingEngine='yes' fixedSettings='yes'>"
            "<settings format='f32'/></output></audio>",
            {
                "driver": "jack",
                "out": {"mixing-engine": True, "fixed-settings": True, "format": "f32", "exact-name": True},
            },
        ),
        ("type='pipewire'><input mixingEngine='no'/></audio>", {"driver": "pipewire", "in": {"mixing-engine": False}}),
    ],
)
def test_sound_goes_to_the_named_backend(audio: str, expected: dict[str, Any]) -> None:
    """Each kind of backend has its own options; those of other kinds are not printed."""
    (value,) = values(argv(f"<audio id='1' {audio}"), "-audiodev")
    assert {"id": "audio1", **expected} == json.loads(value)


def test_an_event_device_of_the_host() -> None:
    """An event device is an object without a bus."""
    source = "<source dev='/dev/input/event3' grab='all' repeat='on' grabToggle='scrolllock'/>"
    found = [json.loads(value) for value in values(argv(f"<input type='evdev'>{source}</input>"), "-object")]
    expected = {"evdev": "/dev/input/event3", "repeat": True, "grab_all": True, "grab-toggle": "scrolllock"}
    assert {"qom-type": "input-linux", "id": "input0", **expected} in found


@pytest.mark.parametrize(("socket", "path"), [("", "/run/x/lib/qemu/domain--1-d/fs0-fs.sock"), ("/s", "/s")])
def test_a_directory_by_virtiofs(socket: str, path: str) -> None:
    """QEMU connects to a virtiofsd that start runs, or to the named socket."""
    source = f"<source socket='{socket}'/>" if socket else "<source dir='/srv'/>"
    text = f"<filesystem type='mount'><driver type='virtiofs' queue='8'/>{source}<target dir='t'/></filesystem>"
    words = argv(text, state_dir="/run/x")
    assert f"socket,id=chr-vu-fs0,path={path}" in values(words, "-chardev")
    (device,) = devices_of(words, "vhost-user-fs-pci")
    assert (8, "t", "chr-vu-fs0") == (device["queue-size"], device["tag"], device["chardev"])


def test_virtiofs_reaches_the_guests_memory() -> None:
    """Unshared memory and options of 9p are refused; 9.0 also refuses read-only."""
    text = "<filesystem type='mount'{}><driver type='virtiofs'/><source dir='/s'/><target dir='t'/>{}</filesystem>"
    private = DomainDef.parse(DOMAIN.format(head="", os="", devices=text.format("", "")).replace("shared", "private"))
    with pytest.raises(ConfigUnsupportedError, match="access mode='shared'"):
        build_command_line(private, release=R12_8)
    with pytest.raises(ConfigUnsupportedError, match="accessmode"):
        argv(text.format(" accessmode='mapped'", ""))
    with pytest.raises(ConfigUnsupportedError, match="read-only"):
        argv(text.format("", "<readonly/>"), release=R9_0)
    assert devices_of(argv(text.format("", "<readonly/>"), release=R11_3), "vhost-user-fs-pci")


def test_a_directory_by_9p() -> None:
    """Since 12.8 the option readonly has a value."""
    text = "<filesystem type='mount' multidevs='remap'><source dir='/s'/><target dir='t'/><readonly/></filesystem>"
    for release, last in ((R11_3, "readonly"), (R12_8, "readonly=on")):
        (value,) = values(argv(text, release=release), "-fsdev")
        assert f"local,security_model=passthrough,multidevs=remap,id=fsdev-fs0,path=/s,{last}" == value


def test_a_panic_that_windows_tells() -> None:
    """A Hyper-V panic notifier is a CPU flag, not a device."""
    for release, flag in ((R9_0, "hv-crash"), (R11_3, "hv-crash"), (R12_8, "hv-crash=on")):
        (cpu,) = values(argv("<panic model='hyperv'/>", release=release), "-cpu")
        assert flag == cpu.split(",")[-1]


def test_files_of_ports_are_inherited_or_opened() -> None:
    """QEMU appends to an inherited file; the opener decides whether to truncate it."""
    port = "<serial type='file'><source path='/l' append='off'/></serial>"
    log = "<serial type='pty'><log file='/l' append='off'/></serial>"
    opened: dict[str, Any] = {"file_fd": lambda path: 7}
    assert "file,id=charserial0,path=/dev/fdset/0,append=on" in values(argv(port, **opened), "-chardev")
    assert "pty,id=charserial0,logfile=/dev/fdset/0,logappend=on" in values(argv(log, **opened), "-chardev")
    assert "file,id=charserial0,path=/l,append=off" in values(argv(port), "-chardev")
    assert "pty,id=charserial0,logfile=/l,logappend=off" in values(argv(log), "-chardev")


def test_the_agent_of_qemu_itself() -> None:
    """Clipboard and mouse are set if the XML has them."""
    words = "<source><clipboard copypaste='no'/><mouse mode='server'/></source>"
    text = f"<channel type='qemu-vdagent'>{words}<target type='virtio' name='com.redhat.spice.0'/></channel>"
    assert "qemu-vdagent,id=charchannel0,name=vdagent,clipboard=off,mouse=off" in values(argv(text), "-chardev")


def test_a_console_without_address_is_placed_by_qemu() -> None:
    """Such a console has no port, and the terminal of an earlier run is dropped."""
    text = "<console type='pty' tty='/dev/pts/4'><source path='/dev/pts/4'/><target type='virtio'/></console>"
    assert [{"driver": "virtconsole", "chardev": "charconsole0", "id": "console0"}] == devices_of(
        argv(text), "virtconsole"
    )


def test_shared_memory_with_a_server() -> None:
    """Guests interrupt each other through the server."""
    text = (
        "<shmem name='s'><model type='ivshmem-doorbell'/><server path='/s'/><msi vectors='2' ioeventfd='on'/></shmem>"
    )
    words = argv(text)
    assert "socket,id=charshmem0,path=/s" in values(words, "-chardev")
    (device,) = devices_of(words, "ivshmem-doorbell")
    assert (2, True, "charshmem0") == (device["vectors"], device["ioeventfd"], device["chardev"])


def test_a_generation_id_is_shown() -> None:
    """An empty ID is derived from the domain's UUID: the same file gives the same guest."""
    (said,) = devices_of(argv(head="<genid>1f5e3d2c-0b2b-4f0e-9d7a-0c9c8f6f4a11</genid>"), "vmgenid")
    assert "1f5e3d2c-0b2b-4f0e-9d7a-0c9c8f6f4a11" == said["guid"]
    assert devices_of(argv(head="<genid/>"), "vmgenid") == devices_of(argv(head="<genid/>"), "vmgenid")


@pytest.mark.parametrize(
    ("model", "features", "expected"),
    [
        ("EPYC", "", "EPYC,monitor=off"),
        ("EPYC", "<feature policy='require' name='topoext'/>", "EPYC,topoext=on,monitor=off"),
        ("EPYC", "<feature policy='require' name='monitor'/>", "EPYC,monitor=on"),
        ("EPYC-Rome", "", "EPYC-Rome"),
    ],
)
def test_a_flag_that_qemus_model_has_lost_is_off(model: str, features: str, expected: str) -> None:
    """A flag in the definition is unchanged."""
    cpu = f"<cpu mode='custom' match='exact' check='none'><model>{model}</model>{features}</cpu>"
    assert [expected] == values(argv(head=cpu), "-cpu")


def test_a_drive_without_a_medium_has_a_number() -> None:
    """Nodes are numbered from the last disk to the first, and an empty drive keeps a number for its medium."""
    disk = "<disk type='block'><source dev='/dev/sdb'/><target dev='vda' bus='virtio'/></disk>"
    empty = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>"
    (found,) = devices_of(argv(disk + empty), "virtio-blk-pci")
    assert "libvirt-2-storage" == found["drive"]
