# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Trees that a stranger made for --root, and the rule for every reading verb on them.

It ends in time, with 0 or 1, in bounded memory, without a traceback, prints nothing that acts upon a terminal, and
nothing of what is outside of the tree.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from questions import QUESTIONS
from reads import reads_of

import pyhostdev.tools
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools import main

SECRET = "TOPSECRET"  # noqa: S105  what must never be printed
SEED = os.path.join(os.path.dirname(pyhostdev.tools.__file__), "guests", "seed.xml")
DEVICE = "sys/bus/pci/devices/0001:09:00.0"
SECONDS_MAX = 5  # of a processor; others may use it as well
WALL_MAX = 60.0  # seconds until a verb counts as waiting for ever
MEMORY_MAX = 512 << 20  # bytes above what the tests themselves have
NAMES = ("a\x1b[31mred", "two\nlines", "\x9b31m", "left\u202eright", "\udcff", "a b", "0000:00:00.0")

VERBS = {
    "list": ("list",),
    "list-json": ("list", "--json"),
    "show": ("show", "0001:09:00.0"),
    "show-xml": ("show", "0001:09:00.0", "--xml"),
    "show-json": ("show", "0001:09:00.0", "--json"),
    "plan": ("plan", SEED),
    "plan-json": ("plan", SEED, "--json"),
    "status": ("status",),
    "topology": ("topology",),
    "argv": ("argv", SEED),
    "addresses": ("addresses", SEED),
    "validate": ("validate", SEED),
}

BY_THE_SCANNER = ("modalias", "vendor", "driver", "iommu_group", "physfn")

Kind = Callable[[Path, Path, random.Random], None]


class Answer(NamedTuple):
    """The output of a verb, its end, and its CPU time."""

    code: int
    text: str
    seconds: float


class Tree(NamedTuple):
    """A good tree, all that is in it, and what of it the verbs read."""

    top: Path
    everything: list[str]
    read: list[str]


def make_tree(top: Path) -> Tree:
    """Make a host that uses its devices in every way."""
    question = next(question for question in QUESTIONS if question.name == "plan-busy")
    top.mkdir()
    fake = question.build(top)
    place = Path(fake.root.path)
    return Tree(place, _everything(place), _what_is_read(fake))


def _everything(top: Path) -> list[str]:
    found: list[str] = []
    for directory, names, files in os.walk(top):
        found += [os.path.relpath(os.path.join(directory, name), top) for name in (*names, *files)]
    return sorted(found)


def _what_is_read(fake: FakeHost) -> list[str]:
    """Return what the verbs read, and the directories on the way to it."""

    def run() -> None:
        for words in VERBS.values():
            main.main([*words, "--root", fake.root.path])

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        # A reader that follows a link upwards asks for "dev/mapper/..", which no test can replace by another file.
        paths = {os.path.normpath(read.path) for read in reads_of(fake, run)}
    paths |= {f"{DEVICE}/{name}" for name in BY_THE_SCANNER} | {"sys/bus/pci/devices", "sys/bus/pci/drivers"}
    above = {str(directory) for path in paths for directory in Path(path).parents}
    return sorted((paths | above) - {".", ""})


def make_secret(top: Path) -> Path:
    """Make a directory outside of every tree, in which everything that could be printed is secret."""
    top.mkdir()
    for name in ("file", "modalias", "vendor", "driver_override", "comm", "boot_vga", "state.xml"):
        (top / name).write_text(f"{SECRET}\n")
    for name in ("driver", "iommu_group", "physfn", "virtfn0", "slaves"):
        (top / name).symlink_to(f"somewhere/{SECRET}")
    (top / "devices").mkdir()
    (top / "devices" / SECRET).mkdir()
    return top


def remove(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        for below in path.iterdir():
            remove(below)
        path.rmdir()
    elif os.path.lexists(path):
        path.unlink()


def _fifo(path: Path, secret: Path, chance: random.Random) -> None:
    os.mkfifo(path)


def _socket(path: Path, secret: Path, chance: random.Random) -> None:
    here = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


def _device(path: Path, secret: Path, chance: random.Random) -> None:
    """A device that gives zeros without end; a FIFO where we may not make one."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        os.mkfifo(path)


def _zero(path: Path, secret: Path, chance: random.Random) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path, secret: Path, chance: random.Random) -> None:
    path.symlink_to(path.name)


def _secret_file(path: Path, secret: Path, chance: random.Random) -> None:
    path.symlink_to(secret / "file")


def _secret_directory(path: Path, secret: Path, chance: random.Random) -> None:
    path.symlink_to(secret)


def _climb(path: Path, secret: Path, chance: random.Random) -> None:
    path.symlink_to("../" * 40 + str(secret / "file").lstrip("/"))


def _climb_to_directory(path: Path, secret: Path, chance: random.Random) -> None:
    path.symlink_to("../" * 40 + str(secret).lstrip("/"))


def _upwards(path: Path, secret: Path, chance: random.Random) -> None:
    path.symlink_to(chance.choice(("..", ".", "/", "../..")))


def _sibling(path: Path, secret: Path, chance: random.Random) -> None:
    """A link from one function to another, as to a PF, or to a driver that is a function."""
    path.symlink_to(f"../0001:09:00.{chance.randrange(4)}")


def _deep_json(path: Path, secret: Path, chance: random.Random) -> None:
    path.write_bytes(b"[" * 60_000)


def _giant(path: Path, secret: Path, chance: random.Random) -> None:
    """A file of holes, larger than any memory."""
    path.touch()
    os.truncate(path, 1 << 40)


def _many_lines(path: Path, secret: Path, chance: random.Random) -> None:
    path.write_bytes(b"/dev/a /b c 0 0\n" * (1 << 17))


def _noise(path: Path, secret: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(chance.choice((0, 1, 64, 4096, 70_000))))


def _escapes(path: Path, secret: Path, chance: random.Random) -> None:
    path.write_bytes(os.fsencode(f"{chance.choice(NAMES)}\n"))


def _link_to_escapes(path: Path, secret: Path, chance: random.Random) -> None:
    os.symlink(os.fsencode(f"../{chance.choice(NAMES)}"), path)


def _directory(path: Path, secret: Path, chance: random.Random) -> None:
    path.mkdir()


def _names(path: Path, secret: Path, chance: random.Random) -> None:
    """A directory of unexpected names."""
    path.mkdir()
    for name in NAMES:
        with contextlib.suppress(FileExistsError):
            Path(os.fsdecode(os.fsencode(path)), name).mkdir()


def _nothing(path: Path, secret: Path, chance: random.Random) -> None:
    """It is gone."""


KINDS: dict[str, Kind] = {
    function.__name__.strip("_"): function
    for function in (
        _fifo, _socket, _device, _zero, _loop, _secret_file, _secret_directory, _climb, _climb_to_directory, _upwards,
        _sibling, _deep_json, _giant, _many_lines, _noise, _escapes, _link_to_escapes, _directory, _names, _nothing,
    )
}  # fmt: skip


def place(top: Path, where: str, kind: str, secret: Path, chance: random.Random) -> None:
    """Replace an entry of a tree by one of another kind; links of its path are followed inside the tree."""
    path = (top / where).parent.resolve() / (top / where).name
    if not path.is_relative_to(top):
        return
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    KINDS[kind](path, secret, chance)


def ask(top: Path, verb: str) -> Answer:
    """Run a verb on a tree, in a process that is ended when it takes too long."""
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            _run_and_exit([*VERBS[verb], "--root", str(top)], said.fileno())
        status, seconds = _wait(pid, time.monotonic() + WALL_MAX)
        said.seek(0)
        return Answer(status, said.read().decode("utf-8", "surrogateescape"), seconds)


def _wait(pid: int, deadline: float) -> tuple[int, float]:
    """Return how the process ended, as the negative signal when not by itself, and its CPU time in seconds."""
    while True:
        found, status, used = os.wait4(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _run_and_exit(words: list[str], said: int) -> None:
    """Be the process: never come back to the tests."""
    code: Any = 99
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_MAX
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS_MAX, SECONDS_MAX + 1))
        code = main.main(words)
    except SystemExit as err:
        code = err.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 98)


def faults_of(answer: Answer) -> list[str]:
    """Return which parts of the rule an answer breaks."""
    acting = sorted({c for c in answer.text if not c.isprintable() and c != "\n"})
    found = {
        f"ended with {answer.code}": answer.code not in (0, 1),
        f"took {answer.seconds:.1f} s": answer.seconds > SECONDS_MAX,
        "a traceback": "Traceback" in answer.text,
        "tells what is outside": SECRET in answer.text,
        f"prints {acting!a}": bool(acting),
    }
    return [fault for fault, is_so in found.items() if is_so]


def check(top: Path, verb: str, what: object) -> None:
    """Ask a tree, and fail when the answer breaks the rule."""
    answer = ask(top, verb)
    assert [] == faults_of(answer), (verb, what, answer.text[-2000:])


def mutate(tree: Tree, top: Path, secret: Path, chance: random.Random) -> list[tuple[str, str]]:
    """Change a copy of a tree in some places at random, mostly where it is read, and return what was done."""
    done = []
    for _ in range(chance.randint(1, 4)):
        where = chance.choice(tree.everything if chance.random() < 0.2 else tree.read)
        kind = chance.choice(sorted(KINDS))
        with contextlib.suppress(OSError, RuntimeError):  # an earlier change may prevent it
            place(top, where, kind, secret, chance)
            done.append((where, kind))
    return done


@contextlib.contextmanager
def place_in_copy(tree: Tree, where: str, kind: str, secret: Path) -> Iterator[Path]:
    """Make a copy of a tree with one entry replaced."""
    top = tree.top.parent / f"{tree.top.name}-changed"
    shutil.copytree(tree.top, top, symlinks=True)
    try:
        place(top, where, kind, secret, random.Random(f"{where} {kind}"))
        yield top
    finally:
        shutil.rmtree(top)


def check_at_random(tree: Tree, top: Path, secret: Path, seed: int) -> int:
    """Change a copy of a tree at random and ask it everything; the number of questions."""
    shutil.copytree(tree.top, top, symlinks=True)
    done = mutate(tree, top, secret, random.Random(seed))
    for verb in VERBS:
        check(top, verb, (seed, done))
    shutil.rmtree(top)
    return len(VERBS)
