# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a crash leaves of a guest's files: recover removes them when the guest has ended, and not before."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from pyhostdev import Host
from pyhostdev.hypervisor.guest_journal import GuestJournal
from pyhostdev.qemu.qemu_process.launch import RuntimeDir
from pyhostdev.qemu.qemu_process.sockets import GuestFiles, ListeningSockets
from pyhostdev.util.journal import PREPARED, Journal, Record, read_boot_id
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.record import PLUGGED, Binding, Plug


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host("/", state_dir=str(tmp_path / "state"))


def start(host: Host) -> tuple[GuestFiles, ListeningSockets, RuntimeDir]:
    """Enter all that makes files for a guest, as a start does: a channel, a serial port, the runtime directory."""
    top = f"{host.state_dir}/lib/qemu"
    runtime, channels = f"{top}/domain-7-vm", f"{top}/channel/target/domain-7-vm"
    sockets = [f"{channels}/agent", f"{os.path.dirname(host.state_dir)}/serial"]
    files = GuestFiles(host, "vm", sockets, [runtime, channels])
    made = files, ListeningSockets(sockets, channels), RuntimeDir(runtime)
    for part in made:
        part.__enter__()
    return made


def killed_start(host: Host, *, holder: int | None = None) -> None:
    """Start in a process that dies by SIGKILL; ``holder`` is a pipe whose reader keeps the lock, as QEMU does."""
    pid = os.fork()
    if pid == 0:
        start(host)
        if holder is not None and os.fork() == 0:
            os.read(holder, 1)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def files(tmp_path: Path) -> list[str]:
    """Return the files and sockets of the test, but no directories."""
    return sorted(path.name for path in tmp_path.rglob("*") if not path.is_dir())


def test_files_of_a_dead_guest_are_removed(host: Host, tmp_path: Path) -> None:
    """Sockets, master key and record are gone, the directories of this guest too; a second recover finds nothing."""
    killed_start(host)
    assert {"agent", "serial", "master-key.aes"} <= set(files(tmp_path))
    (found,) = GuestJournal(host).recover()
    assert ("vm", "restored", "its files are removed") == (found.owner, found.outcome, found.message)
    assert ([], []) == (files(tmp_path), list(tmp_path.rglob("domain-7-vm")))
    assert [] == list(GuestJournal(host).recover())


def test_files_of_a_living_guest_are_kept(host: Host, tmp_path: Path) -> None:
    """While QEMU runs it has the record's lock: its monitors and its agent stay reachable."""
    reader, writer = os.pipe()
    killed_start(host, holder=reader)
    before = files(tmp_path)
    assert ["kept"] == [found.outcome for found in GuestJournal(host).recover()]
    assert before == files(tmp_path)
    os.write(writer, b".")
    os.close(writer)
    os.close(reader)


def test_a_guest_that_ends_leaves_no_record(host: Host, tmp_path: Path) -> None:
    """Record and lock are removed with the files; a start after a thousand others finds the directory as empty."""
    for part in reversed(start(host)):
        part.__exit__(None, None, None)
    assert [] == files(tmp_path)


def test_files_stay_while_a_plugged_device_is_recorded(host: Host, tmp_path: Path) -> None:
    """Recovery needs these files to finish an interrupted plug."""
    killed_start(host)
    address, binding = PCIDeviceAddress.parse("0000:01:00.0"), Binding("e1000e", None, 1, "fingerprint")
    record = Record(address, PREPARED, "vm", True, True, "vfio-pci", binding, read_boot_id(host.root))
    journal = Journal(host.state())
    journal.write(record._replace(plug=Plug("0000:01:00", PLUGGED, "hostdev0", "0000:00:04.0")))
    assert ["kept"] == [found.outcome for found in GuestJournal(host).recover()]
    assert "master-key.aes" in files(tmp_path)
    journal.remove(address)
    assert ["restored"] == [found.outcome for found in GuestJournal(host).recover()]


def test_a_socket_in_use_stays(host: Host, tmp_path: Path) -> None:
    """Another program listens where the dead guest's serial port was."""
    killed_start(host)
    (tmp_path / "serial").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "serial"))
        listener.listen()
        assert ["restored"] == [found.outcome for found in GuestJournal(host).recover()]
        assert ["serial"] == files(tmp_path)


@pytest.mark.parametrize("directory", ["{}/elsewhere", "{}/state/../elsewhere", "{}/state"])
def test_a_directory_of_another_is_never_emptied(host: Host, tmp_path: Path, directory: str) -> None:
    """A record whose directory is not below the state directory is set aside."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").touch()
    journal = GuestJournal(host)
    _, lock = journal.start("vm", [], [directory.format(tmp_path)])
    os.close(lock)
    assert ["set-aside"] == [found.outcome for found in journal.recover()]
    assert "file" in files(tmp_path)
