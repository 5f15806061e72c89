# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where records are kept: never through a stranger's link, never where another user can exchange it, and bounded."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyhostdev.errors import OperationError
from pyhostdev.testing.fakehost import FakeHost, snapshot_tree
from pyhostdev.tools import main
from pyhostdev.tools.demo import GUEST
from pyhostdev.util import statedir
from pyhostdev.util.hostroot import HostRoot
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.securedir import is_trusted_file, make_directory, open_directory
from pyhostdev.util.statedir import StateDir
from pyhostdev.util.sysfs_writer import ForkedWriter

READING = (["status"], ["plan", GUEST])
CHANGING = (["prepare", GUEST], ["release", GUEST], ["recover"])
STRANGER = 65533
ADDRESS = PCIDeviceAddress.parse("0001:09:00.0")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def tree(bcm5719: FakeHost) -> Path:
    return Path(bcm5719.root.path)


@pytest.fixture
def no_umask() -> Iterator[None]:
    """A daemon's umask that forbids nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def run(words: list[str], tree: Path, *more: str) -> int:
    changing = ["--simulate"] if words in CHANGING else []
    return main.main([*words, "--root", str(tree), *changing, *more])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Links


@pytest.mark.parametrize("words", [*READING, *CHANGING], ids=lambda words: words[0])
@pytest.mark.parametrize("link", ["run", "run/pyhostdev"])
def test_link_to_another_hosts_records(
    fakehost: Callable[[str], FakeHost], capsys: pytest.CaptureFixture[str], words: list[str], link: str
) -> None:
    """A tree whose run leads to the live host's changes no record there, shows none, and reports the reason."""
    foreign, live = (Path(fakehost("bcm5719").root.path) for _ in range(2))
    assert 0 == run(["prepare", GUEST], live)
    (foreign / link).parent.mkdir(exist_ok=True)
    (foreign / link).symlink_to(live / link)
    before = [snapshot_tree(str(tree)) for tree in (foreign, live)]
    assert 0 != run(words, foreign)
    out, err = capsys.readouterr()
    assert "state-directory: " in err
    assert "is a link" in err
    assert "active" not in out
    assert before == [snapshot_tree(str(tree)) for tree in (foreign, live)]


@pytest.mark.parametrize("target", ["real", "../{name}/real", "{top}/real", "hop"])
def test_callers_directory_can_be_behind_links_of_his_own(tmp_path: Path, target: str) -> None:
    """--state-dir may lead through links; what it ends at may not be one."""
    (tmp_path / "real").mkdir()
    (tmp_path / "hop").symlink_to("real")
    (tmp_path / "link").symlink_to(target.format(top=tmp_path, name=tmp_path.name))
    StateDir(str(tmp_path / "link/state")).replace("record", b"x")
    assert b"x" == (tmp_path / "real/state/record").read_bytes()
    with pytest.raises(OperationError, match="link' is a link") as refusal:
        StateDir(str(tmp_path / "link")).read("record")
    assert "state-directory" == refusal.value.reason


@needs_root
def test_callers_directory_is_not_behind_a_strangers_link(tmp_path: Path) -> None:
    """A link that belongs to another user leads where that user likes."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    os.lchown(tmp_path / "link", STRANGER, STRANGER)
    with pytest.raises(OperationError, match="a link of another user"):
        StateDir(str(tmp_path / "link/state")).replace("record", b"x")
    assert [] == os.listdir(tmp_path / "real")


def test_loop_of_links_ends(tmp_path: Path) -> None:
    """Two links that lead to each other are an error of the system's."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        StateDir(str(tmp_path / "a/state")).replace("record", b"x")


# Parents


@pytest.mark.usefixtures("no_umask")
def test_parents_are_never_open_to_others(tree: Path, tmp_path: Path) -> None:
    """Whatever the umask: 0755 above, 0711 the directory, which QEMU's user passes through, 0600 the records."""
    state = tmp_path / "new/deep/state"
    assert 0 == run(["prepare", GUEST], tree, "--state-dir", str(state))
    assert [0o755, 0o755, 0o711] == [mode(path) for path in (state.parent.parent, state.parent, state)]
    assert {0o600} == {mode(path) for path in state.iterdir()}
    make_directory(str(state / "lib/qemu"), 0o711)
    assert [0o755, 0o711] == [mode(state / "lib"), mode(state / "lib/qemu")]


@pytest.mark.usefixtures("no_umask")
def test_parents_of_in_flight_locks_are_never_open_to_others(tmp_path: Path) -> None:
    """The directory of in-flight locks is made like the records'."""
    (tmp_path / "attribute").touch()
    locks = tmp_path / "new/deep/in-flight"
    ForkedWriter(HostRoot(tmp_path), inflight_dir=str(locks)).write(f"{tmp_path}/attribute", b"x", device=ADDRESS)
    assert [0o755] * 3 == [mode(path) for path in (locks.parent.parent, locks.parent, locks)]


@pytest.mark.parametrize("depth", ["run", "run/pyhostdev"])
@pytest.mark.parametrize("words", [*READING, *CHANGING], ids=lambda words: words[0])
def test_directory_that_others_can_write_into(
    tree: Path, capsys: pytest.CaptureFixture[str], words: list[str], depth: str
) -> None:
    """Records that another user can rename prove nothing: no verb uses them, and each verb reports it."""
    assert 0 == run(["prepare", GUEST], tree)
    (tree / depth).chmod(0o777)
    before = snapshot_tree(str(tree))
    assert 0 != run(words, tree)
    assert "can be written by others" in capsys.readouterr().err
    assert before == snapshot_tree(str(tree))


def test_sticky_directory_is_accepted(tmp_path: Path) -> None:
    """In a directory like /tmp others cannot rename what is ours."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    StateDir(str(tmp_path / "shared/state")).replace("record", b"x")
    assert b"x" == StateDir(str(tmp_path / "shared/state")).read("record")


def test_parent_that_others_can_write_into_is_made_nothing_in(tmp_path: Path) -> None:
    """A missing state directory has nothing to read, and is not created where others could exchange it."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    state = StateDir(str(tmp_path / "open/new/state"))
    assert [] == state.names()
    with pytest.raises(OperationError, match=r"Directory '.*/open' can be written by others") as refusal:
        state.replace("record", b"x")
    assert ("state-directory", []) == (refusal.value.reason, os.listdir(tmp_path / "open"))


@needs_root
def test_parent_of_another_user(tmp_path: Path) -> None:
    """The owner of the parent directory can exchange ours; below a root, the root's owner is trusted as the host's."""
    os.chown(tmp_path, STRANGER, STRANGER)
    with pytest.raises(OperationError, match=f"belongs to another user \\(uid {STRANGER}\\)"):
        StateDir(str(tmp_path / "state")).replace("record", b"x")
    StateDir(str(tmp_path / "state"), below=str(tmp_path)).replace("record", b"x")
    assert b"x" == StateDir(str(tmp_path / "state"), below=str(tmp_path)).read("record")


def test_path_that_leaves_its_root(tmp_path: Path) -> None:
    """A path must be below the given root."""
    (tmp_path / "root").mkdir()
    with pytest.raises(OperationError, match="is not below"):
        open_directory(str(tmp_path / "beside"), below=str(tmp_path / "root"))


# What lies in it


def test_relative_directory_stays_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that changes its directory keeps its records."""
    monkeypatch.chdir(tmp_path)
    state = StateDir("state")
    monkeypatch.chdir("/")
    state.replace("record", b"x")
    assert ["state"] == os.listdir(tmp_path)


@pytest.mark.parametrize("verb", ["status", "plan"])
@pytest.mark.parametrize("what", ["fifo", "giant", "device", "socket", "directory", "deep"])
def test_what_is_not_a_record_neither_hangs_nor_fills_memory(
    tree: Path, capsys: pytest.CaptureFixture[str], verb: str, what: str
) -> None:
    """A pipe, a device, an endless file: `status` reports each, and waits for none."""
    state = tree / "run/pyhostdev"
    state.mkdir(parents=True, mode=0o700)
    path = state / f"{ADDRESS}.json"
    put(path, what)
    assert 0 == run([verb, GUEST] if verb == "plan" else [verb], tree)
    told = capsys.readouterr().err
    assert verb == "plan" or f"record '{path.name}' cannot be used" in told


def put(path: Path, what: str) -> None:
    if what == "fifo":
        os.mkfifo(path)
    elif what == "giant":
        with open(path, "wb") as stream:
            stream.truncate(1 << 40)
    elif what == "device":
        if os.geteuid() != 0:
            pytest.skip("only root can make a device node")
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # reading it never ends
    elif what == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif what == "directory":
        path.mkdir()
    else:
        path.write_text("[" * 16000)


def test_more_entries_than_any_host_has(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with a million entries is refused after the first hundred thousand."""
    assert 100_000 == statedir.ENTRIES_MAX
    monkeypatch.setattr(statedir, "ENTRIES_MAX", 50)
    state = tree / "run/pyhostdev"
    state.mkdir(parents=True, mode=0o700)
    for number in range(51):
        (state / f"{number}.json").touch()
    with pytest.raises(OperationError, match="more than 50 entries"):
        StateDir(str(state)).names()
    (state / "0.json").unlink()
    assert 50 == len(StateDir(str(state)).names())


@pytest.mark.parametrize("what", ["symlink", "hardlink", "fifo", "device", "directory"])
def test_lock_file_that_is_another_file(tmp_path: Path, what: str) -> None:
    """A lock is only taken on our own file: its holder's name is written into it."""
    victim = tmp_path / "victim"
    victim.write_text("important\n")
    state = StateDir(str(tmp_path / "state"))
    state.replace("record", b"x")
    path = tmp_path / "state/group-14.lock"
    if what == "symlink":
        path.symlink_to(victim)
    elif what == "hardlink":
        path.hardlink_to(victim)
    else:
        put(path, what)
    with pytest.raises(OperationError, match="cannot be a lock: it is not an ordinary file"):
        state.open_lock(path.name)
    assert "important\n" == victim.read_text()


@pytest.mark.parametrize("what", ["fifo", "device", "directory"])
def test_in_flight_lock_that_is_not_a_file(tmp_path: Path, what: str) -> None:
    """Asking whether a write is in flight waits for no pipe and opens no device."""
    put(tmp_path / str(ADDRESS), what)
    with pytest.raises(OSError, match="look for a write in flight"):
        ForkedWriter(HostRoot(tmp_path), inflight_dir=str(tmp_path)).is_in_flight(ADDRESS)


@pytest.mark.parametrize("words", [["list"], *READING], ids=lambda words: words[0])
def test_reading_verbs_make_no_state_directory(tree: Path, tmp_path: Path, words: list[str]) -> None:
    """Neither below the root nor at --state-dir."""
    before = snapshot_tree(str(tree))
    for more in ((), ("--state-dir", str(tmp_path / "new/state"))):
        assert 0 == run(words, tree, *more)
    assert before == snapshot_tree(str(tree))
    assert not (tmp_path / "new").exists()


def test_trusted_files(tmp_path: Path) -> None:
    """A program is root's or ours, and so is every directory on the way to it."""
    program = tmp_path / "bin/program"
    program.parent.mkdir()
    program.touch(0o755)
    assert is_trusted_file(str(program))
    for path in (program, program.parent):
        before = mode(path)
        path.chmod(before | 0o022)
        assert not is_trusted_file(str(path))
        path.chmod(before)
    assert not is_trusted_file(str(program.parent))
    assert not is_trusted_file(str(tmp_path / "missing"))
    (tmp_path / "link").symlink_to(program)
    assert is_trusted_file(str(tmp_path / "link"))
