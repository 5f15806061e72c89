# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records of programs, interfaces and functions with odd content: each is reported, and the others are recovered."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pyhostdev.errors import OperationError
from pyhostdev.hypervisor.guest_facts import GuestFacts
from pyhostdev.hypervisor.guest_journal import GuestJournal
from pyhostdev.hypervisor.host import Host
from pyhostdev.hypervisor.netdev_journal import MacvtapJournal, NetdevJournal
from pyhostdev.hypervisor.program_journal import ProgramJournal
from pyhostdev.hypervisor.usb_journal import USBJournal
from pyhostdev.hypervisor.vf_network import VFJournal
from pyhostdev.qemu.qemu_hotplug.runtime import read_guests
from pyhostdev.testing import FakeHost
from pyhostdev.tools.main import main
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.journal import read_boot_id
from pyhostdev.util.procfs import read_start_time

PROGRAM = {"argv": ["/bin/false"], "pid": None, "started": None, "socket": "/nowhere/socket"}
BEFORE = {"mac": "52:54:00:00:00:01", "vlan": 0, "qos": 0, "trust": None}
PIDS: list[Any] = [-1, 0, 1 << 70, "x", [], {}, True, 1.5]
ARGVS: list[Any] = [5, None, [[]], "text"]
SOCKETS: list[Any] = ["a\0b", "/dev/null/x", "a" * 5000, "\ud800", "", 5, {}, "/" + "a/" * 3000, "/proc/self/mem"]
GUEST: dict[str, Any] = {"sockets": ["/nowhere/socket"], "directories": []}
PATHS: list[Any] = [*ARGVS, *([path] for path in SOCKETS)]
INDEXES: list[Any] = ["x", -1, [], 1 << 70, {}]
USB = {"bus": 900, "device": 1, "drivers": {}}
DRIVERS: list[Any] = [None, [], "x", {"1": "usbhid"}, {"900-1:1.0": 5}, {"../x": "usbhid"}, {"900-1:1.0": "../x"}]
SETTINGS: list[Any] = [None, [], "x", {}, {"mac": "a", "x": 1}]
ONE_SETTING: list[Any] = [("mac", 5), ("mac", None), ("vlan", "1"), ("qos", []), ("trust", {}), ("trust", 1.5)]
FRAMES: list[dict[str, Any]] = [
    {"owner": {}},
    {"owner": None},
    {"owner": "\ud800"},
    {"version": "1"},
    {"boot_id": []},
]


NAMES = {
    VFJournal: ["0000:00:00.0", "0000:00:00.1", "0000:00:00.2"],
    USBJournal: ["900-1", "900-2", "900-3"],
}


def write(journal: NetdevJournal, name: str, content: dict[str, Any] | bytes) -> Path:
    """Write a record as it is, beside the journal."""
    path = Path(journal.state.path, f"{name}{journal.suffix}")
    path.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
    if isinstance(content, dict):
        facts = {"version": 1, "owner": "vm", "boot_id": read_boot_id(journal.host.root), **content}
        content = json.dumps(facts).encode()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "good", "odd"),
    [
        *((ProgramJournal, PROGRAM, {**PROGRAM, "pid": value}) for value in PIDS),
        *((ProgramJournal, PROGRAM, {**PROGRAM, "argv": value}) for value in ARGVS),
        *((ProgramJournal, PROGRAM, {**PROGRAM, "socket": value}) for value in SOCKETS),
        *((GuestJournal, GUEST, {**GUEST, key: value}) for key in GUEST for value in PATHS),
        *((MacvtapJournal, {"index": None}, {"index": value}) for value in INDEXES),
        *((USBJournal, USB, {**USB, "drivers": value}) for value in DRIVERS),
        *((VFJournal, {"before": BEFORE}, {"before": value}) for value in SETTINGS),
        *((VFJournal, {"before": BEFORE}, {"before": {**BEFORE, key: value}}) for key, value in ONE_SETTING),
        *(
            (kind, good, {**good, **odd})
            for kind, good in ((ProgramJournal, PROGRAM), (MacvtapJournal, {"index": None}))
            for odd in FRAMES
        ),
        *((ProgramJournal, PROGRAM, odd) for odd in (b"", b"[" * 60_000, b"NaN", b"\xff", b'{"version": 1}', b"null")),
        (ProgramJournal, PROGRAM, json.dumps({**PROGRAM, "version": 1, "owner": "vm"}).encode() + b" " * 70_000),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_odd_record(tmp_path: Path, kind: Any, good: dict[str, Any], odd: dict[str, Any] | bytes) -> None:
    """The odd one is set aside, or stays with a message; the others before and after it are gone."""
    journal = kind(Host("/", state_dir=str(tmp_path / "records")))
    names = NAMES.get(kind, ["a", "b", "c"])
    for name, content in zip(names, (good, odd, good), strict=True):
        write(journal, name, content)
    found = {result.what: result for result in journal.recover()}
    assert sorted(names) == sorted(map(str, found))
    assert ["restored", "restored"] == [found[name].outcome for name in (names[0], names[2])]
    assert found[names[1]].outcome in ("restored", "set-aside", "failed", "expired")
    assert not [name for name in (names[0], names[2]) if Path(journal.state.path, f"{name}{journal.suffix}").exists()]


@pytest.mark.parametrize("kind", [ProgramJournal, GuestJournal, MacvtapJournal, USBJournal, VFJournal])
def test_record_of_a_newer_version_stays(tmp_path: Path, kind: Any) -> None:
    """Only that version knows what to undo: the record keeps its name, and no change of this version replaces it."""
    journal = kind(Host("/", state_dir=str(tmp_path / "records")))
    name = NAMES.get(kind, ["a"])[0]
    place = write(journal, name, {"version": 2, "unknown": True})
    (found,) = journal.recover()
    assert ("failed", True) == (found.outcome, "newer pyhostdev: recover it with that version" in found.message)
    assert place.exists()
    with pytest.raises(OperationError, match="newer pyhostdev"):
        journal.undo_leftover(name)


@pytest.mark.parametrize("what", ["directory", "pipe", "link", "pipe as its lock", "directory as its lock"])
def test_record_that_is_not_a_file(tmp_path: Path, what: str) -> None:
    """The same for anything else in the place of a record or of its lock."""
    journal = ProgramJournal(Host("/", state_dir=str(tmp_path / "records")))
    write(journal, "a", PROGRAM)
    place = write(journal, "b", PROGRAM)
    write(journal, "c", PROGRAM)
    if what.endswith("lock"):
        place = place.with_name(f"{place.name}.lock")
    else:
        place.unlink()
    if "directory" in what:
        place.mkdir()
    elif "pipe" in what:
        os.mkfifo(place)
    else:
        place.symlink_to("a.program")
    outcomes = {str(result.what): result.outcome for result in journal.recover()}
    assert {"a", "b", "c"} == set(outcomes)
    assert ("restored", "restored") == (outcomes["a"], outcomes["c"])
    assert outcomes["b"] in ("set-aside", "failed")


@pytest.mark.parametrize("verb", ["recover", "status"])
def test_records_of_another_root_reach_no_process_and_no_file(bcm5719: FakeHost, tmp_path: Path, verb: str) -> None:
    """A directory in the place of / names processes and sockets of the live host: they stay."""
    root = bcm5719.root
    with socket.socket(socket.AF_UNIX) as listener, subprocess.Popen(["sleep", "600"]) as victim:
        listener.bind(str(tmp_path / "socket"))
        journal = ProgramJournal(bcm5719.host())
        started = read_start_time(HostRoot("/"), victim.pid)
        stat = Path("/proc", str(victim.pid), "stat").read_text()
        for name, content in (("stat", stat), ("cmdline", "sleep\0600\0"), ("comm", "sleep\n")):
            place = Path(root.join(f"proc/{victim.pid}/{name}"))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
        argv, path = ["sleep", "600"], str(tmp_path / "socket")
        write(journal, "known", {"argv": argv, "pid": victim.pid, "started": started, "socket": path})
        write(journal, "found", {"argv": argv, "pid": None, "started": None, "socket": path})
        assert started == read_start_time(root, victim.pid)
        changes = ["--simulate"] if verb == "recover" else []
        assert 0 == main([verb, "--root", root.path, *changes])
        assert (None, True) == (victim.poll(), (tmp_path / "socket").exists())
        victim.kill()


def test_guests_of_another_root_are_not_those_of_the_live_host(bcm5719: FakeHost, tmp_path: Path) -> None:
    """A link in the place of the runtime directories, or of a control socket, leads to no other guest."""
    facts = GuestFacts("vm", os.getpid(), "12.8", None)
    own = tmp_path / "live/lib/qemu/domain-1-vm"
    own.mkdir(parents=True, mode=0o755)
    (own / "guest.json").write_bytes(facts.to_bytes())
    state = Path(bcm5719.root.state_dir)
    state.mkdir(parents=True, mode=0o755)
    (state / "lib").symlink_to(tmp_path / "live/lib")
    assert ["vm"] == [guest.facts.name for guest in read_guests(str(tmp_path / "live"))]
    with pytest.raises(OperationError, match="is a link"):
        read_guests(str(state), below=bcm5719.root.path)
    (own / "control.sock").symlink_to("/run/other.sock")
    (guest,) = read_guests(str(tmp_path / "live"))
    with pytest.raises(OperationError, match="not a socket"), guest.socket_path():
        pass
