# SPDX-License-Identifier: LGPL-2.1-or-later
"""A write takes effect completely or not at all; a hanging write only costs its deadline."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pyhostdev.errors import (
    ConfigError,
    ConfigUnsupportedError,
    InDoubtError,
    InternalError,
    OperationError,
    SysfsError,
)
from pyhostdev.util import sysfs_writer
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.modprobe import module_error
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.sysfs_writer import ForkedWriter, SysfsWriter

DEVICE = PCIDeviceAddress(1, 9, 0, 0)
OTHER = PCIDeviceAddress(1, 9, 0, 1)
TIMEOUT_S = 0.2
PATIENCE_S = 10.0


@pytest.fixture
def root(tmp_path: Path) -> HostRoot:
    """Make a directory with an attribute that can be written."""
    (tmp_path / "attribute").write_bytes(b"")
    return HostRoot(tmp_path)


@pytest.fixture
def writer(root: HostRoot) -> ForkedWriter:
    """Make a writer with a long deadline, for a loaded machine."""
    return ForkedWriter(root, timeout_s=PATIENCE_S)


@pytest.fixture
def hasty(root: HostRoot) -> ForkedWriter:
    """Make a writer with a short deadline, which shares the locks of the other."""
    return ForkedWriter(root, timeout_s=TIMEOUT_S)


@pytest.fixture
def stuck(root: HostRoot) -> Iterator[Path]:
    """Make an attribute whose writer waits for a reader; a waiting writer is released at the end."""
    path = Path(root.join("stuck"))
    os.mkfifo(path)
    yield path
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def read_fifo(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert select.select([fd], [], [], PATIENCE_S)[0]
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def test_writer_keeps_the_protocol(writer: ForkedWriter) -> None:
    """The live host's writer is a SysfsWriter to a type checker."""
    as_protocol: SysfsWriter = writer
    assert writer is as_protocol


@pytest.mark.parametrize("value", [b"vfio-pci", b"\n", b"a\0b", b"\xff" * 4096])
def test_value_arrives_whole(writer: ForkedWriter, root: HostRoot, value: bytes) -> None:
    """Every byte of the value is written, no byte is added, and no write is in flight afterwards."""
    path = Path(root.join("attribute"))
    path.write_bytes(b"as it was, only longer than what is written".ljust(5000))
    writer.write(str(path), value, device=DEVICE)
    assert value == path.read_bytes()[: len(value)]
    assert 5000 == path.stat().st_size
    assert not writer.is_in_flight(DEVICE)


def test_value_is_one_write(writer: ForkedWriter, root: HostRoot) -> None:
    """The kernel sees one write(2) of the whole value: a pipe in packet mode keeps writes apart."""
    reader, end = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    try:
        writer.write(f"/proc/{os.getpid()}/fd/{end}", b"x" * 3000, device=DEVICE)
        assert b"x" * 3000 == os.read(reader, 4096)
    finally:
        os.close(reader)
        os.close(end)


def test_empty_value_is_a_bug(writer: ForkedWriter, root: HostRoot) -> None:
    """An empty write never reaches a driver, so it is refused instead of being reported as done."""
    with pytest.raises(InternalError):
        writer.write(root.join("attribute"), b"", device=DEVICE)


@pytest.mark.parametrize(
    ("name", "errnum"),
    [
        ("missing", errno.ENOENT),
        ("no/such/directory", errno.ENOENT),
        ("attribute/below", errno.ENOTDIR),
        ("full", errno.ENOSPC),
        ("directory", errno.EISDIR),
    ],
)
def test_refusal_is_passed_on(writer: ForkedWriter, root: HostRoot, name: str, errnum: int) -> None:
    """The errno of the kernel, the path, what was tried and the device are in the error."""
    Path(root.join("full")).symlink_to("/dev/full")
    Path(root.join("directory")).mkdir()
    with pytest.raises(SysfsError) as refusal:
        writer.write(root.join(name), b"vfio-pci\n", device=DEVICE)
    error = refusal.value
    assert (errnum, root.join(name), DEVICE) == (error.errno, error.filename, error.address)
    assert "write 'vfio-pci\\n'" == error.doing
    assert not writer.is_in_flight(DEVICE)


def test_short_count_is_an_error(root: HostRoot) -> None:
    """A kernel that takes only a part of the value has not done what was asked."""
    command = [sys.executable, "-c", SHORT_WRITE, root.path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert f"SysfsError {errno.EIO}" in done.stdout, done.stderr
    assert "only 100 bytes were accepted" in done.stdout


# A file may grow to the limit: the write that would pass it is cut there.
SHORT_WRITE = """
import resource, sys
from pyhostdev.errors import SysfsError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.sysfs_writer import ForkedWriter
writer = ForkedWriter(HostRoot(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    writer.write(sys.argv[1] + "/attribute", b"x" * 150, device=PCIDeviceAddress(0, 0, 1, 0))
except SysfsError as error:
    print("SysfsError", error.errno, error)
"""


def test_hanging_write_costs_its_deadline(writer: ForkedWriter, hasty: ForkedWriter, stuck: Path) -> None:
    """A write that does not return is in doubt after the deadline, by reason and device."""
    begin = time.monotonic()
    with pytest.raises(InDoubtError) as doubt:
        hasty.write(str(stuck), b"0001:09:00.0", device=DEVICE)
    assert TIMEOUT_S <= time.monotonic() - begin < PATIENCE_S
    assert ("in-doubt", DEVICE) == (doubt.value.reason, doubt.value.address)
    wait_until(lambda: writer.is_in_flight(DEVICE))


def test_device_in_doubt_is_left_alone(writer: ForkedWriter, hasty: ForkedWriter, root: HostRoot, stuck: Path) -> None:
    """While a write is in flight, its device accepts no other write; other devices do."""
    with pytest.raises(InDoubtError):
        hasty.write(str(stuck), b"x", device=DEVICE)
    wait_until(lambda: writer.is_in_flight(DEVICE))
    with pytest.raises(InDoubtError) as doubt:
        writer.write(root.join("attribute"), b"y", device=DEVICE)
    assert "in-doubt" == doubt.value.reason
    assert b"" == Path(root.join("attribute")).read_bytes()
    writer.write(root.join("attribute"), b"z", device=OTHER)
    assert b"z" == Path(root.join("attribute")).read_bytes()
    assert not writer.is_in_flight(OTHER)


def test_doubt_ends_with_the_write(writer: ForkedWriter, hasty: ForkedWriter, root: HostRoot, stuck: Path) -> None:
    """When the kernel finishes the write, it takes effect, frees the device and is reaped."""
    with pytest.raises(InDoubtError):
        hasty.write(str(stuck), b"late", device=DEVICE)
    assert 1 == hasty.reap()
    assert b"late" == read_fifo(stuck)
    wait_until(lambda: not writer.is_in_flight(DEVICE))
    wait_until(lambda: hasty.reap() == 0)
    writer.write(root.join("attribute"), b"next", device=DEVICE)


def test_another_writer_knows_of_the_doubt(hasty: ForkedWriter, root: HostRoot, stuck: Path) -> None:
    """A write in flight is known to all users of the same directory of locks."""
    with pytest.raises(InDoubtError):
        hasty.write(str(stuck), b"x", device=DEVICE)
    other = ForkedWriter(root, timeout_s=TIMEOUT_S)
    wait_until(lambda: other.is_in_flight(DEVICE))
    with pytest.raises(InDoubtError):
        other.write(root.join("attribute"), b"y", device=DEVICE)


def test_lock_files_belong_to_the_user(writer: ForkedWriter, root: HostRoot, tmp_path: Path) -> None:
    """Only the owner can open a lock file, and a link in place of the directory is not followed."""
    writer.write(root.join("attribute"), b"x", device=DEVICE)
    lock = Path(writer.inflight_dir, str(DEVICE))
    assert 0o600 == stat.S_IMODE(lock.stat().st_mode)
    (tmp_path / "link").symlink_to(writer.inflight_dir)
    trusting = ForkedWriter(root, inflight_dir=str(tmp_path / "link"))
    with pytest.raises(OperationError, match="is a link") as refusal:
        trusting.write(root.join("attribute"), b"x", device=DEVICE)
    assert "state-directory" == refusal.value.reason


def test_lock_that_cannot_be_made_stops_the_write(writer: ForkedWriter, root: HostRoot) -> None:
    """Without its lock a write does not begin."""
    Path(writer.inflight_dir, str(DEVICE)).mkdir(parents=True)
    with pytest.raises(SysfsError) as refusal:
        writer.write(root.join("attribute"), b"x", device=DEVICE)
    assert (errno.EISDIR, writer.inflight_dir) == (refusal.value.errno, refusal.value.filename)
    assert b"" == Path(root.join("attribute")).read_bytes()


def test_asking_creates_nothing(writer: ForkedWriter) -> None:
    """Asking for writes in flight leaves the host unchanged."""
    assert not writer.is_in_flight(DEVICE)
    assert not Path(writer.inflight_dir).exists()


def test_asking_disturbs_no_write(writer: ForkedWriter, root: HostRoot) -> None:
    """Writes succeed while another process keeps asking whether they are in flight."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            writer.is_in_flight(DEVICE)
            time.sleep(0)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(50):
            writer.write(root.join("attribute"), b"x", device=DEVICE)
    finally:
        stop.set()
        thread.join()


def refuse_to_open(name: str, top: int) -> bool:
    raise PermissionError(errno.EACCES, "not yours", name)


def test_who_may_not_open_the_lock_looks_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's list of locks shows writes in flight to an unprivileged reader."""
    top = Path("/dev/shm")  # on some file systems the list names another device than stat does
    if not os.access(top, os.W_OK):
        pytest.skip("there is no /dev/shm to lock files in")
    monkeypatch.setattr(sysfs_writer, "_is_locked", refuse_to_open)
    with tempfile.TemporaryDirectory(dir=top) as locks:
        held, free, unknown = (PCIDeviceAddress(0, 1, 0, function) for function in range(3))
        Path(locks, str(free)).touch()
        writer = ForkedWriter(HostRoot("/"), inflight_dir=locks)
        with Path(locks, str(held)).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert [True, False, False] == [writer.is_in_flight(device) for device in (held, free, unknown)]


def test_where_nobody_can_tell_what_is_in_flight(
    writer: ForkedWriter, root: HostRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the lock and without the kernel's list the answer is an error, not "no"."""
    Path(writer.inflight_dir).mkdir(parents=True)
    Path(writer.inflight_dir, str(DEVICE)).touch()
    monkeypatch.setattr(sysfs_writer, "_is_locked", refuse_to_open)
    assert not os.path.exists(root.locks)
    with pytest.raises(SysfsError, match="look for the holder of a lock"):
        writer.is_in_flight(DEVICE)


@pytest.mark.parametrize(("name", "what"), [("os.memfd_create", "file"), ("subprocess.Popen", "program")])
def test_module_when_there_is_no_room_to_load_it(monkeypatch: pytest.MonkeyPatch, name: str, what: str) -> None:
    """If modprobe cannot be started, a HostdevError has the errno."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("pyhostdev.util.modprobe.PROGRAMS", ("/bin/sh",))
    with pytest.raises(SysfsError, match=what) as error:
        ForkedWriter(HostRoot("/")).load_module("no_such_module")
    assert errno.EMFILE == error.value.errno


def test_descriptors_are_closed(writer: ForkedWriter, hasty: ForkedWriter, root: HostRoot, stuck: Path) -> None:
    """Writes that work, fail or hang leave no descriptor behind once they have ended."""
    before = sorted(os.listdir("/proc/self/fd"))
    writer.write(root.join("attribute"), b"x", device=DEVICE)
    with pytest.raises(SysfsError):
        writer.write(root.join("missing"), b"x", device=DEVICE)
    with pytest.raises(InDoubtError):
        hasty.write(str(stuck), b"x", device=DEVICE)
    read_fifo(stuck)
    wait_until(lambda: hasty.reap() == 0)
    assert before == sorted(os.listdir("/proc/self/fd"))


def test_helper_is_invisible_to_other_waits(
    writer: ForkedWriter, hasty: ForkedWriter, root: HostRoot, stuck: Path
) -> None:
    """An importing process that waits for any child, or handles SIGCHLD, sees no helper."""
    signals: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, frame: signals.append(number))
    try:
        writer.write(root.join("attribute"), b"x", device=DEVICE)
        with pytest.raises(InDoubtError):
            hasty.write(str(stuck), b"x", device=DEVICE)
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert [] == signals


def test_threads_write_at_once(writer: ForkedWriter, root: HostRoot) -> None:
    """Threads write for their devices at the same time, each its own value."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        path = Path(root.join(f"attribute{number}"))
        path.write_bytes(b"")
        try:
            for _ in range(10):
                value = str(number).encode()
                writer.write(str(path), value, device=DEVICE.with_function(number))
                assert value == path.read_bytes()
        except BaseException as err:  # handed to the test's own thread
            failures.append(err)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == failures


# A manager that is in the middle of a write when the test resumes or kills it; it holds its own lock.
MANAGER = """
import fcntl, sys, time
from pyhostdev.errors import InDoubtError
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.sysfs_writer import ForkedWriter
top, timeout_s = sys.argv[1:]
lock = open(top + "/manager.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("begin", flush=True)
try:
    ForkedWriter(HostRoot(top), timeout_s=float(timeout_s)).write(
        top + "/stuck", b"late", device=PCIDeviceAddress(1, 9, 0, 0))
except InDoubtError:
    print("in doubt", flush=True)
"""


def start_manager(root: HostRoot, timeout_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MANAGER, root.path, str(timeout_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_hung_helper_keeps_no_pipe_open(root: HostRoot, stuck: Path, writer: ForkedWriter) -> None:
    """A reader of the manager's output sees its end when the manager ends, stuck helper or not."""
    with start_manager(root, TIMEOUT_S) as manager:
        output, _ = manager.communicate(timeout=PATIENCE_S)
    assert (0, "begin\nin doubt\n") == (manager.returncode, output)
    wait_until(lambda: writer.is_in_flight(DEVICE))


def test_killed_manager_frees_its_locks_only(root: HostRoot, stuck: Path, writer: ForkedWriter) -> None:
    """A manager killed in a hanging write gives up its own locks; the device stays in doubt until the end."""
    with start_manager(root, PATIENCE_S) as manager:
        wait_until(lambda: writer.is_in_flight(DEVICE))
        manager.kill()
        manager.communicate(timeout=PATIENCE_S)
    with open(root.join("manager.lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert writer.is_in_flight(DEVICE)
    assert b"late" == read_fifo(stuck)
    wait_until(lambda: not writer.is_in_flight(DEVICE))


def test_ended_manager_takes_nothing_from_its_helper(root: HostRoot, stuck: Path, writer: ForkedWriter) -> None:
    """A helper uses its manager's memory, and still writes the value after the manager's end."""
    with start_manager(root, TIMEOUT_S) as manager:
        manager.communicate(timeout=PATIENCE_S)
    assert b"late" == read_fifo(stuck)
    wait_until(lambda: not writer.is_in_flight(DEVICE))


class Lease:
    """A hold on a lock file: an open waits in the kernel until the hold ends, and causes a signal."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.fcntl(self.fd, fcntl.F_SETSIG, signal.SIGURG)  # not fatal by default
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def is_waited_for(self) -> bool:
        return fcntl.fcntl(self.fd, fcntl.F_GETLEASE) == fcntl.F_UNLCK

    def end(self) -> None:
        os.close(self.fd)


@pytest.mark.parametrize(("lives", "written"), [(True, b"late"), (False, b"")])
def test_helper_writes_nothing_for_a_manager_that_died_before_its_lock(
    root: HostRoot, writer: ForkedWriter, lives: bool, written: bytes
) -> None:
    """A helper without a lock at its manager's death was invisible to a recovery: it must not write."""
    attribute = Path(root.join("stuck"))
    attribute.touch()
    try:
        lease = Lease(Path(writer.inflight_dir, str(DEVICE)))
    except OSError as err:
        pytest.skip(f"files here cannot be leased: {err}")
    with start_manager(root, PATIENCE_S) as manager:
        wait_until(lease.is_waited_for)
        helper = os.pidfd_open(children_of(manager.pid).pop())
        if not lives:
            manager.kill()
            manager.wait(PATIENCE_S)
        lease.end()
        assert select.select([helper], [], [], PATIENCE_S)[0]
    os.close(helper)
    assert written == attribute.read_bytes()


def children_of(pid: int) -> set[int]:
    """Return a process' children, those that send no SIGCHLD too."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                found |= {int(entry.name)} if f"\nPPid:\t{pid}\n" in (entry / "status").read_text() else set()
    return found


def test_helper_outlives_its_thread_and_writer(writer: ForkedWriter, root: HostRoot, stuck: Path) -> None:
    """Neither the end of the thread that wrote nor that of its writer takes a helper's memory away."""

    def work() -> None:
        with pytest.raises(InDoubtError):
            ForkedWriter(root, timeout_s=TIMEOUT_S).write(str(stuck), b"late", device=DEVICE)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    gc.collect()
    assert b"late" == read_fifo(stuck)
    wait_until(lambda: not writer.is_in_flight(DEVICE))


def test_helper_leaves_signals_to_the_importer(
    hasty: ForkedWriter, writer: ForkedWriter, root: HostRoot, stuck: Path
) -> None:
    """No signal handler of the importer runs in a helper, which shares its memory."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(os.getpid()))
    try:
        with pytest.raises(InDoubtError) as doubt:
            hasty.write(str(stuck), b"late", device=DEVICE)
        wait_until(lambda: writer.is_in_flight(DEVICE))
        os.kill(helper_of(doubt.value), signal.SIGUSR1)
        assert b"late" == read_fifo(stuck)
        wait_until(lambda: hasty.reap() == 0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [] == seen


def test_helpers_leave_no_memory_behind(writer: ForkedWriter, root: HostRoot) -> None:
    """A helper's memory is freed after its end."""
    path = root.join("attribute")
    writer.write(path, b"x", device=DEVICE)
    before = len(Path("/proc/self/maps").read_text().splitlines())
    for _ in range(20):
        writer.write(path, b"x", device=DEVICE)
    assert len(Path("/proc/self/maps").read_text().splitlines()) - before < 20


def helper_of(error: InDoubtError) -> int:
    return int(str(error).rpartition("process ")[2].rstrip(")"))


def test_helper_owns_nothing(writer: ForkedWriter, hasty: ForkedWriter, stuck: Path) -> None:
    """A hung helper has a session of its own and holds the device's lock and two directories."""
    with pytest.raises(InDoubtError) as doubt:
        hasty.write(str(stuck), b"x", device=DEVICE)
    wait_until(lambda: writer.is_in_flight(DEVICE))
    pid = helper_of(doubt.value)
    lock = Path(writer.inflight_dir, str(DEVICE))
    held = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert {str(lock), str(lock.parent), str(stuck.parent)} == held
    assert pid == os.getsid(pid)


def test_helper_that_was_killed_is_an_error(root: HostRoot, stuck: Path) -> None:
    """A helper that ends without having written is neither a success nor in doubt."""
    writer = ForkedWriter(root, timeout_s=PATIENCE_S)

    def kill() -> None:
        wait_until(lambda: writer.is_in_flight(DEVICE))
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and entry.name != str(os.getpid()):
                try:
                    held = [os.readlink(fd) for fd in (entry / "fd").iterdir()]
                except OSError:
                    continue
                if str(Path(writer.inflight_dir, str(DEVICE))) in held:
                    os.kill(int(entry.name), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(SysfsError) as failure:
        writer.write(str(stuck), b"x", device=DEVICE)
    thread.join()
    assert errno.EINTR == failure.value.errno


def test_module_of_another_host(writer: ForkedWriter) -> None:
    """Modules are loaded into the live host only."""
    with pytest.raises(ConfigUnsupportedError):
        writer.load_module("vfio-pci")


@pytest.mark.parametrize("name", ["../x", "-r", "a b", ""])
def test_module_name_is_checked(tmp_path: Path, name: str) -> None:
    """What cannot be a module's name never reaches modprobe as something else."""
    live = ForkedWriter(HostRoot("/"), inflight_dir=str(tmp_path))
    with pytest.raises((ConfigError, OperationError)):
        live.load_module(name)


@pytest.fixture
def modprobe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ForkedWriter]:
    """Put a modprobe that runs a script in front of the host's own, for a writer of the live host."""

    def make(script: str, timeout_s: float = PATIENCE_S) -> ForkedWriter:
        path = tmp_path / "modprobe"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr("pyhostdev.util.modprobe.PROGRAMS", (str(path),))
        return ForkedWriter(HostRoot("/"), timeout_s=timeout_s, inflight_dir=str(tmp_path))

    return make


LOADED = "kernel"  # every Linux has /sys/module/kernel


def test_module_is_loaded_with_blacklist(modprobe: Callable[..., ForkedWriter], tmp_path: Path) -> None:
    """The administrator's blacklist is obeyed, and no name can be read as an option."""
    modprobe(f'echo "$@" > {tmp_path}/words').load_module(LOADED)
    assert f"-b -- {LOADED}\n" == (tmp_path / "words").read_text()


def test_modprobe_inherits_nothing(
    modprobe: Callable[..., ForkedWriter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither our environment, nor our directory, descriptors or umask reach what loads a module."""
    monkeypatch.setenv("MODPROBE_OPTIONS", "--dirname /evil")
    monkeypatch.setenv("LD_PRELOAD", "")
    script = f"{{ echo $PATH; pwd; umask; ls /proc/self/fd | wc -l; env | cut -d= -f1 | sort; }} > {tmp_path}/words"
    writer = modprobe(script)
    with open(tmp_path / "inherited", "w") as inherited:
        os.set_inheritable(inherited.fileno(), True)
        before = os.umask(0)
        try:
            writer.load_module(LOADED)
        finally:
            os.umask(before)
    path, place, umask, descriptors, *names = (tmp_path / "words").read_text().split()
    assert ("/usr/sbin:/usr/bin:/sbin:/bin", "/", "0022", "4") == (path, place, umask, descriptors)
    assert {"LC_ALL", "PATH"} == {*names} - {"PWD", "OLDPWD", "SHLVL", "_"}


def test_modprobe_is_not_looked_up_in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name in front of PATH is not run, nor one that another user can change."""
    path = tmp_path / "modprobe"
    path.write_text(f"#!/bin/sh\ntouch {tmp_path}/run\n")
    path.chmod(0o777)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for programs, what in (((), "no_such_module|modprobe"), ((str(path),), "cannot be trusted")):
        monkeypatch.setattr("pyhostdev.util.modprobe.PROGRAMS", programs)
        with pytest.raises(OperationError, match=what):
            ForkedWriter(HostRoot("/"), inflight_dir=str(tmp_path)).load_module("no_such_module")
    assert not (tmp_path / "run").exists()


def test_module_that_does_not_exist(modprobe: Callable[..., ForkedWriter]) -> None:
    """A module that is in no index of the kernel is reported as absent, whatever modprobe prints."""
    with pytest.raises(OperationError, match="'no_such_module'.*has no such module") as failure:
        modprobe("exit 0").load_module("no_such_module")
    assert "driver-missing" == failure.value.reason


def test_vfio_module_that_does_not_load(modprobe: Callable[..., ForkedWriter]) -> None:
    """Without its module there is no vfio, and the reason is vfio-missing."""
    if Path("/sys/module/vfio_pci").exists():
        pytest.skip("vfio-pci is loaded on this host")
    with pytest.raises(OperationError) as failure:
        modprobe("exit 1").load_module("vfio-pci")
    assert "vfio-missing" == failure.value.reason


def test_module_that_never_loads(modprobe: Callable[..., ForkedWriter]) -> None:
    """Loading that hangs is in doubt after the deadline, and the loader is left alone and reaped later."""
    writer = modprobe("exec sleep 2", TIMEOUT_S)
    with pytest.raises(InDoubtError) as doubt:
        writer.load_module(LOADED)
    assert "in-doubt" == doubt.value.reason
    assert 1 == writer.reap()
    wait_until(lambda: writer.reap() == 0)


@pytest.mark.parametrize(
    ("code", "installed", "why"),
    [
        (0, True, "prohibits"),
        (1, True, "no permission"),
        (0, False, "has no such module"),
        (1, False, "has no such module"),
    ],
)
def test_why_a_module_does_not_load(tmp_path: Path, code: int, installed: bool, why: str) -> None:
    """Absent, prohibited and broken modules are distinguished by the kernel's index and modprobe's exit code."""
    root = HostRoot(tmp_path)
    index = Path(root.modules_dep(os.uname().release))
    index.parent.mkdir(parents=True)
    line = "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n"
    index.write_text(line if installed else "")
    assert why in str(module_error(root, "vfio_pci", code, "modprobe:\nno permission"))
