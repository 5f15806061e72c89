# SPDX-License-Identifier: LGPL-2.1-or-later
"""A snapshot takes the place of its host in every reading verb, alone or among others."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest
from reads import reads_of

from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.tools.demo import GUEST
from pyhostdev.tools.main import main
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.hostsnapshot import take_snapshot
from pyhostdev.util.virfile import read_bytes

CARD = "0001:09:00.0"
PF, VF, DISK = "0000:03:00.0", "0000:03:10.2", "0000:02:00.0"
MDEV = "11111111-2222-4333-8444-555555555555"
EVERYTHING = f"""<domain type='kvm'><name>all</name><memory>1048576</memory><vcpu cpuset='0-1'>1</vcpu>
<memoryBacking><hugepages/></memoryBacking><os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os>
<features><acpi/></features><devices><emulator>/nonexistent/qemu</emulator>
<graphics type='spice'><gl enable='yes'/></graphics><video><model type='virtio'/></video>
<interface type='network'><source network='pool'/></interface>
<hostdev mode='subsystem' type='usb'><source><vendor id='0x1d6b'/><product id='0x0002'/></source></hostdev>
<hostdev mode='subsystem' type='mdev' model='vfio-pci'>
<source><address uuid='{MDEV}'/></source></hostdev>
<hostdev mode='subsystem' type='pci' managed='yes'>
<source><address domain='0' bus='3' slot='0x10' function='2'/></source></hostdev></devices></domain>"""
FIRMWARE = {
    "interface-types": ["uefi"],
    "mapping": {
        "device": "flash",
        "executable": {"filename": "/own/CODE.fd", "format": "raw"},
        "nvram-template": {"filename": "/own/VARS.fd", "format": "raw"},
    },
    "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
    "features": ["acpi-s3"],
    "tags": [],
    "description": "",
}


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a verb and return its exit code and output."""
    code = main([*words])
    return code, capsys.readouterr().out


def put(top: Path, files: dict[str, str | bytes | None]) -> None:
    """Write files of a host: text, bytes, a link if the text starts with ->, or a directory."""
    for name, content in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif content.startswith("->"):
            path.symlink_to(content[2:])
        else:
            path.write_text(content)


def vpd() -> bytes:
    """Return the Vital Product Data of a card, with its checksum."""
    data = b"\x82\x04\0Card\x90\x11\0PN\x01PSN\x06SECRETRV\x01"
    return data + bytes([-sum(data) & 0xFF, 0x78])


@pytest.fixture
def rich(tmp_path: Path) -> FakeHost:
    """A host that has something for every reader: libvirt with a network, firmware, other devices, names."""
    fake = FakeHost.named("sriov", tmp_path / "host")
    card, libvirt = f"sys/bus/pci/devices/{PF}", "usr/lib/x86_64-linux-gnu/libvirt.so.0"
    pool = "<network><name>pool</name><forward mode='hostdev' managed='yes'><pf dev='enp3s0'/></forward></network>"
    port = "<networkport><plug type='hostdev-pci'><address bus='3' slot='0x10' function='{}'/></plug></networkport>"
    mdev = f"sys/devices/virtual/mdev/{MDEV}"
    cpu, usb = "sys/devices/system/cpu", "sys/devices/pci0000:00/usb1"
    names = "144d  Own name\n\ta808  Own disk\n8086  Intel\n\t1563  X550\nffff  Not here\n\t0001  Nor this\n"
    put(
        tmp_path / "host",
        {
            f"{card}/vpd": vpd(),
            f"{card}/consumer:pci:{DISK}": "->../../../virtual/devlink/a--b",
            f"{card}/mdev_supported_types/nvidia-1/name": "GRID\n",
            f"{card}/mdev_supported_types/nvidia-1/device_api": "vfio-pci\n",
            f"{card}/mdev_supported_types/nvidia-1/available_instances": "4\n",
            libvirt: "->libvirt.so.0.9000.0",
            "run/libvirt/network/pool.xml": f"<networkstatus>{pool}</networkstatus>",
            f"run/libvirt/network/pool.ports/{MDEV}.xml": port.format(0),
            "etc/libvirt/qemu/networks/other.xml": pool.replace("pool", "other"),
            "usr/share/qemu/firmware/50-own.json": json.dumps(FIRMWARE),
            "usr/share/misc/pci.ids": names,
            "dev/dri/renderD129": "",
            f"{cpu}/online": "0-3\n",
            "sys/devices/system/node/online": "0\n",
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "1\n",
            f"{usb}/idVendor": "1d6b\n",
            f"{usb}/idProduct": "0002\n",
            f"{usb}/busnum": "7\n",
            f"{usb}/devnum": "9\n",
            "sys/bus/usb/devices/usb1": "->../../../devices/pci0000:00/usb1",
            f"{mdev}/iommu_group": "->../../../../kernel/iommu_groups/5",
            f"sys/bus/mdev/devices/{MDEV}": f"->../../../../{mdev}",
            "proc/net/if_inet6": f"{'0' * 31}1 02 40 00 80 enp3s0v1\n",
        },
    )
    (tmp_path / "all.xml").write_text(EVERYTHING)
    return fake


def questions(domain: Path) -> list[list[str]]:
    """Return what a user can ask about a host and a domain."""
    file = str(domain)
    asked = [["plan", file], ["plan", file, "--json"], ["argv", file], ["xml", file], ["addresses", file]]
    asked += [["show", address] for address in (PF, VF, DISK)] + [["show", address, "--xml"] for address in (PF, DISK)]
    return [*asked, ["list", "--names"], ["list", "--assignable"], ["topology"], ["status"], ["show", "pf:enp3s0/vf1"]]


def test_every_reader_finds_what_the_host_has(
    rich: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each verb gives the host's answer and its notes, from libvirt's release to the names of devices."""
    file, root = str(tmp_path / "s.tar.gz"), rich.root.path
    assert 0 == main(["snapshot", file, "--root", root])
    capsys.readouterr()
    for words in questions(tmp_path / "all.xml"):
        code = main([*words, "--root", root])
        out, err = (text.replace(root, "") for text in capsys.readouterr())
        expected = (code, sorted(out.splitlines()), err)  # the kernel's order of a group's members has no meaning
        code = main([*words, "--root", file])
        out, err = (text.replace(file, "") for text in capsys.readouterr())
        assert expected == (code, sorted(out.splitlines()), err), words


def test_a_snapshot_has_every_file_that_a_verb_reads(rich: FakeHost, tmp_path: Path) -> None:
    """What exists and is read for an answer is in the snapshot: a new reader has to tell it."""
    top = rich.root.path

    def ask() -> None:
        for words in questions(tmp_path / "all.xml"):
            main([*words, "--root", top])

    read = {entry.path for entry in reads_of(rich, ask)}
    taken = {os.path.normpath(path) for path in take_snapshot(rich.root).entries}
    places = {parent for path in taken for parent in [path, *(str(p) for p in Path(path).parents)]}
    resolved = {os.path.relpath(_parent_resolved(os.path.join(top, path)), top) for path in read}
    existing = {path for path in resolved if os.path.lexists(os.path.join(top, path))}
    assert set() == existing - places
    assert {"usr/share/qemu/firmware/50-own.json", "dev/dri", "run/libvirt/network/pool.xml"} <= existing


def _parent_resolved(path: str) -> str:
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


@pytest.mark.parametrize("name", named_hosts())
def test_every_answer_is_the_hosts(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """list, show of each function, and status: byte for byte."""
    fake = FakeHost.named(name, tmp_path / "host")
    file = str(tmp_path / "s.tar.gz")
    assert 0 == main(["snapshot", file, "--root", fake.root.path])
    questions = [["list"], ["list", "--json", "--verify"], ["status", "--json"]]
    questions += [["show", line] for line in sorted(os.listdir(fake.root.pci_devices))[-2:]]
    for words in questions:
        assert ask(capsys, *words, "--root", fake.root.path) == ask(capsys, *words, "--root", file)


def test_plans_and_command_lines_are_the_hosts(
    bcm5719: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A snapshot gives the host's answers, before and after prepare."""
    file, root = str(tmp_path / "s.tar.gz"), bcm5719.root.path
    for _ in range(2):
        assert 0 == main(["snapshot", file, "--root", root])
        for words in (["plan", GUEST], ["plan", GUEST, "--json"], ["argv", GUEST], ["xml", GUEST], ["status"]):
            code, text = ask(capsys, *words, "--root", root)
            assert (code, text.replace(root, "")) == ask(capsys, *words, "--root", file)
        assert 0 == main(["prepare", GUEST, "--root", root, "--simulate"])


def test_records_of_another_directory(bcm5719: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--state-dir names the records that the snapshot has."""
    file, root, state = str(tmp_path / "s.tar.gz"), bcm5719.root.path, str(tmp_path / "records")
    words = ["--root", root, "--state-dir", state]
    assert 0 == main(["prepare", GUEST, *words, "--simulate"])
    (tmp_path / "records" / "0001:07:00.0.json").symlink_to("/etc/hostname")
    assert 0 == main(["snapshot", file, *words])
    assert "cannot read 1 file;" in capsys.readouterr().err
    os.unlink(tmp_path / "records" / "0001:07:00.0.json")
    code, text = ask(capsys, "status", *words)
    assert (0, 4) == (code, text.count(" seed "))
    assert (code, text) == ask(capsys, "status", "--root", file)


def test_absolute_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link that starts at the root of the host is relative in the archive, which answers as the host."""
    fake = FakeHost.named("sriov", tmp_path / "host")
    files: dict[str, str | bytes | None] = {
        "dev/mapper/root": "->/dev/nvme0n1",
        "usr/lib/libvirt.so.0": "->/opt/libvirt/libvirt.so.0.9000.0",
    }
    put(tmp_path / "host", files)
    Path(fake.root.mounts).write_text("/dev/mapper/root / ext4 rw 0 0\n")
    file, root = str(tmp_path / "s.tar.gz"), fake.root.path
    assert 0 == main(["snapshot", file, "--root", root])
    for words in (["list", "--names"], ["plan", "--device", DISK, "--owner", "x"]):
        answers = []
        for place in (root, file):
            code = main([*words, "--root", place])
            answers.append((code, *capsys.readouterr()))
        assert answers[0] == answers[1]
    assert (1, True) == (answers[0][0], "as libvirt 9.0" in answers[0][2])


def test_the_kernel_of_this_machine_is_read() -> None:
    """The kernel refuses a large read below /proc/sys: a file is read in smaller pieces."""
    root = HostRoot("/")
    assert os.uname().release.encode() == (read_bytes(root, root.kernel_release, 16 << 20) or b"").strip()


def test_what_could_not_be_read_is_told(
    bcm5719: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user can read 64 bytes of configuration space: the snapshot has only these, and lists the file."""
    config = Path(bcm5719.root.pci_device(CARD), "config")
    sizes = {4096: config.stat().st_size}
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, n: real(fd, 64)[:0] if n < 4096 and n != 65537 else real(fd, min(n, 64)))
    file = str(tmp_path / "s.tar.gz")
    assert 0 == main(["snapshot", file, "--root", bcm5719.root.path])
    monkeypatch.undo()
    assert "cannot read" in capsys.readouterr().err
    code, text = ask(capsys, "show", CARD, "--json", "--root", file)
    assert (0, True, {4096: 4096}) == (code, json.loads(text)["pci_express"], sizes)
    for words in (["list", "--root", file], ["plan", GUEST, "--json", "--root", file, "--root", bcm5719.root.path]):
        main(words)
        assert f"snapshot '{file}' lacks" in capsys.readouterr().err
    main(["plan", GUEST, "--root", file, "--root", bcm5719.root.path])
    assert "(the snapshot lacks " in capsys.readouterr().out


def test_a_snapshot_is_private_and_not_changed(bcm5719: FakeHost, tmp_path: Path) -> None:
    """Only the owner can read a snapshot; changing verbs refuse it; unpacked files are removed."""
    file = tmp_path / "s.tar.gz"
    assert 0 == main(["snapshot", str(file), "--root", bcm5719.root.path])
    before = file.read_bytes()
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert 1 == main(["prepare", GUEST, "--simulate", "--root", str(file)])
    assert before == file.read_bytes()
    assert 0 == main(["snapshot", str(file), "--root", str(file)])
    assert before == file.read_bytes()
    assert ["s.tar.gz"] == [path.name for path in tmp_path.iterdir() if path.name.startswith("s.")]
    assert 1 == main(["snapshot", str(tmp_path / "none" / "s.tar.gz"), "--root", bcm5719.root.path])


def test_a_tree_is_a_host(bcm5719: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--tree writes what FakeHost reads, also of a snapshot."""
    file, tree = str(tmp_path / "s.tar.gz"), str(tmp_path / "h.tree")
    assert 0 == main(["snapshot", file, "--root", bcm5719.root.path])
    assert 0 == main(["snapshot", tree, "--tree", "--root", file])
    other = FakeHost.from_tree(tree, tmp_path / "other")
    assert ask(capsys, "list", "--root", bcm5719.root.path) == ask(capsys, "list", "--root", other.root.path)


@pytest.fixture
def hosts(tmp_path: Path) -> list[str]:
    """Three candidates for a guest: a suitable snapshot, an unsuitable one, and a file that is not a snapshot."""
    roots = []
    for name in ("bcm5719", "sriov"):
        fake = FakeHost.named(name, tmp_path / name)
        roots.append(str(tmp_path / f"{name}.tar.gz"))
        assert 0 == main(["snapshot", roots[-1], "--root", fake.root.path])
    (tmp_path / "broken.tar.gz").write_bytes(b"no snapshot")
    return [*roots, str(tmp_path / "broken.tar.gz"), str(tmp_path / "bcm5719")]


def test_which_host_can_take_the_guest(hosts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A table has one line per host, in order; exit code 0 if one is suitable, else 1; nothing is written."""
    roots = [word for root in hosts for word in ("--root", root)]
    code, text = ask(capsys, "plan", GUEST, *roots)
    lines = [line.split()[:2] for line in text.splitlines()[1:]]
    assert (0, [*zip(hosts, ("yes", "no", "no", "yes"), strict=True)]) == (code, [tuple(line) for line in lines])
    assert "device-missing" in text and "host-unreadable" in text
    assert 1 == ask(capsys, "plan", GUEST, *roots[2:6])[0]
    assert 1 == ask(capsys, "plan", GUEST, *roots, "--state-dir", "/nonexistent")[0]


def test_one_object_for_each_host(hosts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints a plan a line; the plan of one host is the one that is printed alone."""
    roots = [word for root in hosts for word in ("--root", root)]
    _, text = ask(capsys, "plan", GUEST, *roots, "--json")
    plans = [json.loads(line) for line in text.splitlines()]
    assert hosts == [plan["root"] for plan in plans]
    assert [True, False, False, True] == [plan["ok"] for plan in plans]
    alone = json.loads(ask(capsys, "plan", GUEST, "--json", "--root", hosts[0])[1])
    assert {**alone, "root": hosts[0]} == plans[0]


def test_which_host_has_the_named_device(hosts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A selector is looked up on each host; one that has no such device says so, with its reason."""
    roots = [word for root in hosts for word in ("--root", root)]
    words = ["plan", "--device", "net:enp3s0v0", "--owner", "vm1"]
    code, text = ask(capsys, *words, *roots)
    assert (0, ["no", "yes", "no", "no"]) == (code, [line.split()[1] for line in text.splitlines()[1:]])
    plans = [json.loads(line) for line in ask(capsys, *words, *roots, "--json")[1].splitlines()]
    assert [["device-missing"], [], ["host-unreadable"], ["device-missing"]] == [
        [finding["reason"] for finding in plan["findings"]] for plan in plans
    ]
    assert {"vm1"} == {plan["owner"] for plan in plans}
    assert ["0000:03:10.0"] == [group["functions"][0]["name"] for group in plans[1]["groups"]]


def test_progress_is_shown_on_a_terminal(hosts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of hosts that have answered, on standard error; the last line is erased."""
    terminal = Terminal()
    roots = [word for root in hosts for word in ("--root", root)]
    monkeypatch.setattr(sys, "stderr", terminal)
    assert 0 == main(["plan", GUEST, *roots])
    assert "".join(f"\r{number} of 4 hosts" for number in range(1, 5)) + "\r\x1b[K" == terminal.getvalue()


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.mark.parametrize("verb", [["list"], ["show", CARD], ["argv", GUEST], ["snapshot", "-"], ["status"]])
def test_only_plan_takes_several_hosts(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With another verb, a second --root is an error of usage: the last one would win silently."""
    with pytest.raises(SystemExit) as end:
        main([*verb, "--root", "/a", "--root", "/b"])
    assert (2, True) == (end.value.code, "only 'plan' compares several hosts" in capsys.readouterr().err)
