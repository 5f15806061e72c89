# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line is refused or built completely, and no user text can break out of its value."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pyhostdev import ConfigError, ConfigUnsupportedError, DomainDef
from pyhostdev.conf.libvirt_release import RELEASES
from pyhostdev.qemu import build_command_line

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
WIDE = ["wide-q35", "wide-pc", "wide-pseries", "wide-virt"]
HOSTDEV = """<hostdev mode='subsystem' type='pci'{attributes}>
  <source><address domain='0x0001' bus='0x01' slot='0x00' function='0x0'/></source>{more}</hostdev>"""


def domain(devices: str = "", *, name: str = "vm", head: str = "", os_more: str = "") -> DomainDef:
    return DomainDef.parse(
        f"<domain type='qemu'><name>{name}</name><uuid>7d4cf5a0-31b0-4c8e-9d5d-3f7d0d5c1c01</uuid>"
        f"<memory unit='MiB'>128</memory>{head}"
        f"<os><type arch='x86_64' machine='pc'>hvm</type>{os_more}</os><devices>{devices}</devices></domain>"
    )


def devices(argv: list[str], driver: str) -> list[dict[str, Any]]:
    values = [json.loads(value) for option, value in pairwise(argv) if option == "-device"]
    return [value for value in values if value["driver"] == driver]


def value_of(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


def hostdev(more: str = "", attributes: str = "") -> str:
    return HOSTDEV.format(more=more, attributes=attributes)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", {}),
        ("<boot order='3'/>", {"bootindex": 3}),
        ("<teaming type='transient' persistent='ua-net'/>", {"failover_pair_id": "ua-net"}),
        ("<rom bar='off'/>", {"rombar": 0}),
        ("<rom bar='on' file='/r,om'/>", {"rombar": 1, "romfile": "/r,om"}),
        ("<rom enabled='no'/>", {"romfile": ""}),
        ("<acpi index='7'/>", {"acpi-index": 7}),
        ("<alias name='ua-nic'/>", {"id": "ua-nic"}),
        ("<driver name='vfio'/>", {}),
        ("<address type='pci' slot='9' multifunction='off'/>", {"addr": "0x9", "multifunction": False}),
    ],
)
def test_each_hostdev_option_is_one_property(more: str, expected: dict[str, Any]) -> None:
    """An attribute of a host device becomes one property, and nothing else changes."""
    plain = {"driver": "vfio-pci", "host": "0001:01:00.0", "id": "hostdev0", "bus": "pci.0", "addr": "0x2"}
    assert [plain | expected] == devices(build_command_line(domain(hostdev(more))), "vfio-pci")


def test_properties_of_a_hostdev_are_in_libvirts_order() -> None:
    """The comparison with libvirt includes the order."""
    more = (
        "<driver name='vfio'/><teaming type='transient' persistent='ua-net'/><boot order='1'/><alias name='ua-a'/>"
        "<rom bar='on' file='/r'/><acpi index='2'/>"
        "<address type='pci' slot='9' function='1'/>"
    )
    (found,) = devices(build_command_line(domain(hostdev(more))), "vfio-pci")
    order = "driver host id bootindex failover_pair_id bus addr acpi-index rombar romfile"
    assert order.split() == list(found)


@pytest.mark.parametrize("name", ["a,b", "a,,b", 'a"b', "a=b", "ä\N{PILE OF POO}", "a{b}", "-S"])
def test_a_name_stays_within_its_value(name: str) -> None:
    """Commas are doubled, all other characters are literal, and the next option is unaffected."""
    argv = build_command_line(domain(name=name.replace('"', "&quot;")))
    doubled = name.replace(",", ",,")
    assert ["-name", f"guest={doubled},debug-threads=on", "-S"] == argv[1:4]
    assert f"/domain--1-{name[:20]}/master-key.aes" in json.loads(argv[5])["file"]


@pytest.mark.parametrize("path", ["/a,b", '/a"b', "/a\\b", "/ä"])
def test_a_path_stays_within_its_value(path: str) -> None:
    """In JSON a path is quoted, in QEMU's own grammar its commas are doubled."""
    xml = path.replace("&", "&amp;").replace('"', "&quot;")
    disk = f'<disk type="file"><source file="{xml}"/><target dev="vda" bus="virtio"/></disk>'
    serial = f'<serial type="file"><source path="{xml}"/></serial>'
    argv = build_command_line(domain(disk + serial))
    assert path == json.loads(value_of(argv, "-blockdev"))["filename"]
    assert f"file,id=charserial0,path={path.replace(',', ',,')}" in argv


def test_kernel_command_line_is_one_argument() -> None:
    """The guest kernel's command line needs no escaping, and gets none."""
    more = '<kernel>/boot/vmlinuz</kernel><initrd>/boot/initrd</initrd><cmdline>a=b,c "d e"</cmdline>'
    argv = build_command_line(domain(os_more=more))
    expected = ["/boot/vmlinuz", "/boot/initrd", 'a=b,c "d e"']
    assert expected == [value_of(argv, option) for option in ("-kernel", "-initrd", "-append")]


@pytest.mark.parametrize(
    ("xml", "named"),
    [
        ("<frobnicate/>", "frobnicate"),
        (
            "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/>"
            "<address bus='0' target='0' unit='0'/></source></hostdev>",
            "SCSI",
        ),
        (
            "<disk type='file'><source file='/a'/><target dev='vda' bus='virtio'/><encryption format='luks'/></disk>",
            "encryption",
        ),
        ("<interface type='null'/>", "null"),
        (
            "<interface type='udp'><source address='::1' port='1'><local address='::1'/></source></interface>",
            "local port",
        ),
        ("<disk type='file' rawio='yes'><source file='/a'/><target dev='vda' bus='virtio'/></disk>", "rawio"),
        ("<channel type='pty'><target type='xen' name='x'/></channel>", "xen"),
    ],
)
def test_what_is_not_built_is_refused_by_name(xml: str, named: str) -> None:
    """A device, or a part of one, that we do not know how to build is an error that names it."""
    with pytest.raises(ConfigUnsupportedError, match=named):
        build_command_line(domain(xml))


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ("<numatune><memory mode='strict' placement='auto'/></numatune>", "NUMA placement"),
        ("<launchSecurity type='sev'><policy>3</policy></launchSecurity>", "[Ll]aunch security"),
    ],
)
def test_what_the_machine_cannot_be_told_is_refused_by_name(head: str, named: str) -> None:
    """Attributes of the whole domain that cannot be built are refused by name."""
    with pytest.raises(ConfigUnsupportedError, match=named):
        build_command_line(domain(head=head))


def test_building_does_not_change_the_definition() -> None:
    """Defaults, addresses and aliases are filled into a copy."""
    dom = domain(hostdev())
    before = dom.format()
    build_command_line(dom)
    assert before == dom.format()
    assert dom.hostdevs[0].info.alias is None


def test_run_decides_paths_and_descriptors() -> None:
    """State directory, id and monitor are the caller's."""
    argv = build_command_line(domain(), state_dir="/s", domain_id=7, monitor_fd=5)
    assert "/s/lib/qemu/domain-7-vm/master-key.aes" == json.loads(argv[5])["file"]
    assert "socket,id=charmonitor,fd=5,server=on,wait=off" in argv


def test_tap_is_opened_by_the_caller() -> None:
    """An interface on a bridge gets the descriptor that the caller opened for it."""
    xml = "<interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>"
    opened: list[str] = []

    def open_tap(net: Any) -> int:
        opened.append(net.source.bridge)
        return 9

    argv = build_command_line(domain(xml), tap_fd=open_tap)
    assert {"type": "tap", "fd": "9", "id": "hostnet0"} == json.loads(value_of(argv, "-netdev"))
    assert ["br0"] == opened


def test_emulator_without_a_device_refuses_it() -> None:
    """A device that this binary does not have is refused before QEMU would."""
    with pytest.raises(ConfigUnsupportedError, match="vt82c686b-usb-uhci"):
        build_command_line(domain("<controller type='usb' model='vt82c686b-uhci'/>"))


def wide(name: str, directory: str) -> DomainDef:
    text = (TESTDATA / "qemu" / f"{name}.xml").read_text()
    return DomainDef.parse(text.replace("@DIR@", directory))


@pytest.mark.parametrize("name", WIDE)
def test_wide_domains_are_built_as_reviewed(name: str, check_golden: Callable[[Path, str], None]) -> None:
    """Domains with nearly every kind of device keep the reviewed command line, which QEMU accepts."""
    argv = build_command_line(wide(name, "/dir"), release=RELEASES[0])
    check_golden(TESTDATA / "qemu" / f"{name}.args", "".join(f"{word}\n" for word in argv))


@pytest.mark.parametrize("name", WIDE)
def test_qemu_takes_wide_domains(name: str, tmp_path: Path) -> None:
    """The real emulator accepts every option and property that we write."""
    dom = wide(name, str(tmp_path))
    if shutil.which(str(dom.emulator or f"qemu-system-{dom.os.arch}")) is None:
        pytest.skip(f"no QEMU for {dom.os.arch} is installed")
    dom.vsock = None  # its node is opened by who starts the guest
    for image in "abcd":
        (tmp_path / f"{image}.img").write_bytes(bytes(1 << 20))
    argv = build_command_line(dom, state_dir=str(tmp_path), release=RELEASES[0])
    key = Path(json.loads(argv[5])["file"])
    key.parent.mkdir(parents=True)
    key.write_bytes(bytes(32))
    argv[argv.index("-chardev") + 1] = "stdio,id=charmonitor"
    commands = '{"execute":"qmp_capabilities"}\n{"execute":"quit"}\n'
    done = subprocess.run(argv, input=commands, text=True, capture_output=True, timeout=60)
    assert (0, "host-qmp-quit") == (done.returncode, "host-qmp-quit" if "host-qmp-quit" in done.stdout else done.stderr)


def test_error_of_a_build_says_the_line() -> None:
    """The error has the line in the definition."""
    with pytest.raises(ConfigError) as refusal:
        build_command_line(domain("\n\n<frobnicate/>"))
    assert 3 == refusal.value.line
