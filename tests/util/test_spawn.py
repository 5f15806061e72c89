# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that run as another user, and the files that a user may open."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhostdev.errors import OperationError
from pyhostdev.util.ownership import Ownership
from pyhostdev.util.spawn import SpawnError, access_errors, spawn, standard_descriptors

C_LIBRARY_SIGNALS = 1 << 31 | 1 << 32  # 32 and 33, which glibc keeps for itself and lets no program reset
STRANGER = Ownership(4_000_000_123, 4_000_000_124, "4000000123")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


class Program:
    """Runs shell commands through spawn, and keeps what they write."""

    def __init__(self, directory: Path) -> None:
        self.out = directory / "out"

    def run(self, command: str, **options: object) -> str:
        with self.out.open("wb") as out:
            pid = spawn(["/bin/sh", "-c", command], env={"A": "b"}, output_fd=out.fileno(), **options)  # type: ignore[arg-type]
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return self.out.read_text()


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def status_of(text: str) -> dict[str, str]:
    """Return the lines of a process's status by name."""
    return {name: value.strip() for line in text.splitlines() for name, _, value in [line.partition(":")]}


@needs_root
def test_another_user_has_no_privilege_and_no_way_to_one(program: Program) -> None:
    """All four IDs change, the groups are the user's, every capability set is empty, and no file grants a privilege."""
    status = status_of(program.run("cat /proc/self/status", ownership=STRANGER))
    assert [str(STRANGER.uid)] * 4 == status["Uid"].split()
    assert [str(STRANGER.gid)] * 4 == status["Gid"].split()
    assert [str(STRANGER.gid)] == status["Groups"].split()
    assert {"0000000000000000"} == {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    assert "1" == status["NoNewPrivs"]


def test_descriptors_are_those_that_are_named(program: Program) -> None:
    """Our inheritable descriptors are closed in the program; a kept one has the same number."""
    kept, other = os.pipe()
    os.set_inheritable(other, True)
    try:
        numbers = program.run("ls /proc/$$/fd", keep_fds=[kept]).split()
    finally:
        os.close(kept)
        os.close(other)
    assert {0, 1, 2, kept} == {int(number) for number in numbers}


def test_nothing_else_of_the_caller_is_inherited(program: Program) -> None:
    """The program has its own environment, directory, umask and session, and ignores no signal."""
    command = "tr '\\0' '\\n' < /proc/$$/environ; pwd; umask; grep SigIgn /proc/$$/status; echo $$"
    command += "; cut -d' ' -f6 /proc/$$/stat"
    *words, ignored, pid, session = program.run(command).split()
    assert ["A=b", "/", "0077", "SigIgn:"] == words
    assert int(ignored, 16) & ~C_LIBRARY_SIGNALS == 0
    assert pid == session


def test_signals_of_the_caller_are_not_the_programs(program: Program) -> None:
    """A signal that the caller blocks reaches the program, and the caller's mask is unchanged."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        assert "got it\n" == program.run("trap 'echo got it; exit 0' TERM; kill -TERM $$; sleep 5")
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_memory_limit_is_set_on_the_program_only(program: Program) -> None:
    """The limits of locked memory apply to the program only."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert "48 48" == " ".join(program.run("ulimit -S -l; ulimit -H -l", memlock=(48 << 10, 48 << 10)).split())
    assert before == resource.getrlimit(resource.RLIMIT_MEMLOCK)


def children() -> set[str]:
    """Return the process ids of the children, also of those that have ended."""
    lists = Path("/proc/self/task").glob("*/children")
    return {pid for path in lists for pid in path.read_text().split()}


def test_failure_is_reported_with_its_stage(tmp_path: Path) -> None:
    """A missing program is an error with errno, and leaves no child."""
    before = children()
    with (tmp_path / "out").open("wb") as out, pytest.raises(SpawnError, match="Cannot run '/no/such'") as error:
        spawn(["/no/such"], env={}, output_fd=out.fileno())
    assert errno.ENOENT == error.value.errno
    assert children() <= before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may become any user")
def test_becoming_another_user_needs_root(tmp_path: Path) -> None:
    """Without root it fails, and nothing runs."""
    with (tmp_path / "out").open("wb") as out, pytest.raises(SpawnError, match="cannot become the user"):
        spawn(["/bin/sh"], env={}, output_fd=out.fileno(), ownership=STRANGER)


def test_descriptor_of_a_standard_stream_is_refused(tmp_path: Path) -> None:
    """A kept descriptor cannot have the number of a standard stream."""
    with (tmp_path / "out").open("wb") as out, pytest.raises(SpawnError, match="passed on"):
        spawn(["/bin/sh"], env={}, output_fd=out.fileno(), keep_fds=[1])


def test_nul_byte_is_refused(tmp_path: Path) -> None:
    """An argument that would be truncated in C is an error."""
    with (tmp_path / "out").open("wb") as out, pytest.raises(OperationError, match="NUL"):
        spawn(["/bin/sh", "a\0b"], env={}, output_fd=out.fileno())


def test_programs_start_beside_busy_threads(program: Program) -> None:
    """A program starts although other threads allocate and import."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            _ = [object() for _ in range(1000)]

    threads = [threading.Thread(target=busy) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert ["1\n"] * 50 == [program.run("echo 1") for _ in range(50)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def open_to_all(tmp_path: Path) -> Iterator[Path]:
    """A directory that every user can reach, whatever the modes of its parents."""
    top = tmp_path
    changed = []
    while top != top.parent:
        mode = top.stat().st_mode
        if not mode & 0o001 and top.stat().st_uid == os.geteuid():
            top.chmod(mode | 0o011)
            changed.append((top, mode))
        top = top.parent
    yield tmp_path
    for path, mode in changed:
        path.chmod(mode)


class TestAccess:
    @needs_root
    def test_answers_are_the_users(self, open_to_all: Path) -> None:
        """Files that only root may open are refused; the user's own, its group's and public files are not."""
        files = [("roots", 0, 0, 0o600), ("own", STRANGER.uid, 0, 0o400), ("groups", 0, STRANGER.gid, 0o060)]
        for name, uid, gid, mode in [*files, ("alls", 0, 0, 0o644)]:
            (open_to_all / name).touch()
            (open_to_all / name).chmod(mode)
            os.chown(open_to_all / name, uid, gid)
        closed = open_to_all / "closed"
        closed.mkdir(mode=0o700)
        (closed / "alls").touch(mode=0o666)
        names = ["roots", "own", "own", "groups", "alls", "alls", "closed/alls", "absent"]
        modes = [os.R_OK, os.R_OK, os.W_OK, os.W_OK, os.R_OK, os.W_OK, os.R_OK, os.F_OK]
        asked = [(str(open_to_all / name), mode) for name, mode in zip(names, modes, strict=True)]
        no, yes = errno.EACCES, 0
        assert [no, yes, no, yes, yes, no, no, errno.ENOENT] == access_errors(asked, STRANGER)

    def test_nothing_is_opened(self, tmp_path: Path) -> None:
        """A FIFO without a writer is tested like any file."""
        os.mkfifo(tmp_path / "fifo")
        assert [0] == access_errors([(str(tmp_path / "fifo"), os.R_OK | os.W_OK)], None, timeout_s=5)

    def test_no_question_no_answer(self) -> None:
        """An empty list has an empty answer."""
        assert [] == access_errors([], None)

    def test_many_questions_have_one_process(self, tmp_path: Path) -> None:
        """A thousand files are tested by one process, even if the answers exceed a pipe's buffer."""
        asked = [(str(tmp_path), os.R_OK), (str(tmp_path / "absent"), os.R_OK)] * 10_000
        assert [0, errno.ENOENT] * 10_000 == access_errors(asked, None)


def test_standard_descriptors_are_not_given_away() -> None:
    """If the caller has closed its streams, no file opened meanwhile gets one of their numbers."""
    script = (
        "import os\nfrom pyhostdev.util.spawn import standard_descriptors\n"
        "out = os.dup(1)\n[os.close(fd) for fd in (0, 1, 2)]\n"
        "with standard_descriptors():\n    fd = os.open('/dev/null', 0)\nos.write(out, str(fd > 2).encode())"
    )
    read, write = os.pipe()
    pid = os.posix_spawn(
        sys.executable, [sys.executable, "-c", script], dict(os.environ), file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)]
    )
    os.close(write)
    with os.fdopen(read) as out:
        assert "True" == out.read()
    assert 0 == os.waitpid(pid, 0)[1]
    with standard_descriptors():
        pass
