# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A QEMU under the guest's control, and a domain that requests too much: memory and time are bounded.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pyhostdev.errors import OperationError
from pyhostdev.qemu.qemu_process import log as qemu_log
from pyhostdev.qemu.qemu_process import monitor as qemu_monitor
from pyhostdev.qemu.qemu_process import process as qemu_process
from pyhostdev.qemu.qemu_process.log import RollingLog
from pyhostdev.qemu.qemu_process.process import GuestOutcome, run_guest

QEMU = shutil.which("qemu-system-x86_64")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run QEMU as another user")

MEMORY_MAX = 160 << 20  # that our process may grow by, whatever a peer sends; lines are bounded at 1 MiB

PEER = """
import json, os, socket, sys, time
client, _ = socket.socket(fileno=int(sys.argv[1])).accept()
def say(**message):
    client.sendall((json.dumps(message) + "\\r\\n").encode())
def event(name, **data):
    stamp = {"seconds": 1, "microseconds": 1}
    return (json.dumps({"event": name, "data": data, "timestamp": stamp}) + "\\r\\n").encode()
def flood(data, seconds=1.0):
    end = time.time() + seconds
    while time.time() < end:
        client.sendall(data)
def greet():
    say(QMP={"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []})
def serve(on_cont):
    greet()
    buffer = ""
    while True:
        try:
            message, end = json.JSONDecoder().raw_decode(buffer)
            buffer = buffer[end:].lstrip()
        except ValueError:
            more = client.recv(65536).decode()
            if not more:
                sys.exit(0)
            buffer = (buffer + more).lstrip()
            continue
        say(**{"return": {}, "id": message.get("id")} if "id" in message else {"return": {}})
        if message["execute"] == "quit":
            sys.exit(0)
        if message["execute"] == "cont":
            on_cont()
def power_off():
    client.sendall(event("SHUTDOWN", guest=True, reason="guest-shutdown"))
"""


class Dom(NamedTuple):
    """A domain as run_guest sees it."""

    name: str = "vm"
    on_poweroff: str | None = None
    on_reboot: str | None = None
    on_crash: str | None = None


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short deadlines, for tests."""
    for name in ("GREETING_TIMEOUT_S", "ANSWER_TIMEOUT_S", "QUIT_TIMEOUT_S", "TERM_TIMEOUT_S"):
        monkeypatch.setattr(qemu_process, name, 2.0)
    monkeypatch.setattr(qemu_process, "HANGUP_TIMEOUT_S", 0.5)
    monkeypatch.setattr(qemu_monitor, "HANGUP_TIMEOUT_S", 0.5)


def run(directory: Path, script: str, dom: Dom = Dom(), log: Path | None = None) -> GuestOutcome:  # noqa: B008
    """Run a peer program instead of QEMU."""
    program = directory / "peer.py"
    program.write_text(PEER + textwrap.dedent(script))
    log_path = None if log is None else str(log)
    argv = [sys.executable, str(program)]
    return run_guest(lambda fd: [*argv, str(fd)], dom=dom, runtime_dir=str(directory / "run/g"), log_path=log_path)


def fails(directory: Path, script: str, dom: Dom = Dom()) -> bool:  # noqa: B008
    """Run a peer that misbehaves; tell whether the result was an error or a failed guest."""
    try:
        outcome = run(directory, script, dom)
    except OperationError as err:
        assert len(str(err)) < 700
        return True
    return outcome.failed or outcome.reason == "destroyed"  # it has ended by itself when its peer hung up


def peak_memory() -> int:
    """Return the peak memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class TestEvents:
    def test_events_without_a_reader_are_not_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The library's own listener stores nothing, for any number of events."""
        clients = []
        make = qemu_monitor._client

        def spy(name: str | None) -> object:
            clients.append(make(name))
            return clients[-1]

        monkeypatch.setattr(qemu_monitor, "_client", spy)
        before = peak_memory()
        many = "event('RTC_CHANGE', offset=1, **{'qom-path': 'x' * 200}) * 500"
        outcome = run(tmp_path, f"serve(lambda: (flood({many}), power_off()))")
        assert ("shutdown", False) == (outcome.reason, outcome.failed)
        assert ([], ()) == (clients[0].events.clear(), clients[0].events.history)
        assert peak_memory() - before < MEMORY_MAX

    def test_events_of_one_kind_are_one(self, tmp_path: Path) -> None:
        """A guest that is reset endlessly is followed to its end, and the end is seen behind the flood of events."""
        flooded = "serve(lambda: (flood(event('RESET', guest=True, reason='guest-reset') * 500), power_off()))"
        assert "shutdown" == run(tmp_path, flooded).reason

    def test_too_many_kinds_break_the_connection(self, tmp_path: Path) -> None:
        """More different events than a guest makes, while we wait for an answer, are the end of the connection."""
        script = """
            def storm():
                power_off()
                time.sleep(0.2)
                flood((event("RESET", guest=True) + event("RESET", guest=False)) * 500, 5)
            serve(storm)
        """
        assert fails(tmp_path, script, Dom(on_poweroff="preserve", on_reboot="preserve"))


GARBAGE = {
    "nothing that ends": "client.sendall(b'[' * (64 << 20)); time.sleep(30)",
    "a deep value": "client.sendall(b'[' * 100_000 + b'\\r\\n'); time.sleep(30)",
    "a deep object": "client.sendall(b'{\"event\":' * 100_000 + b'1' + b'}' * 100_000 + b'\\r\\n'); time.sleep(30)",
    "many small values": "client.sendall(b'{\"event\": [' + b'[],' * 300_000 + b'[]]}\\r\\n'); time.sleep(30)",
    "a list": "client.sendall(b'[1, 2]\\r\\n'); time.sleep(30)",
    "not UTF-8": "client.sendall(b'\\xff\\xfe\\x00\\r\\n'); time.sleep(30)",
    "a long number": "client.sendall(b'{\"event\": ' + b'9' * 100_000 + b'}\\r\\n'); time.sleep(30)",
    "no number": "client.sendall(b'{\"event\": NaN}\\r\\n'); time.sleep(30)",
    "an event that is a list": "say(event=[]); time.sleep(30)",
    "an answer to a list": "say(**{'return': {}, 'id': []}); time.sleep(30)",
    "an error without a command": "say(error={'class': 'GenericError', 'desc': 'x' * 900_000}); time.sleep(30)",
    "another protocol": "client.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n'); time.sleep(30)",
    "silence": "time.sleep(30)",
    "the end": "client.close(); time.sleep(30)",
    "a drip": "[(client.sendall(b' '), time.sleep(0.1)) for _ in range(300)]",
    "a half greeting": "say(QMP=1); time.sleep(30)",
}


HARMLESS = ("no number", "silence", "a drip", "a half greeting")


class TestGarbage:
    @pytest.mark.parametrize("what", GARBAGE)
    def test_garbage_for_a_greeting_is_one_error(self, tmp_path: Path, what: str) -> None:
        """Any input instead of a greeting is one OperationError, in bounded time and memory."""
        before, begin = peak_memory(), time.monotonic()
        with pytest.raises(OperationError) as error:
            run(tmp_path, GARBAGE[what])
        assert len(str(error.value)) < 700
        assert str(error.value).isprintable()
        assert peak_memory() - before < MEMORY_MAX
        assert time.monotonic() - begin < 20

    @pytest.mark.parametrize("what", GARBAGE)
    def test_garbage_while_the_guest_runs_ends_it(self, tmp_path: Path, what: str) -> None:
        """Any input during a guest's life is one OperationError, or the guest continues until it powers off."""
        before, begin = peak_memory(), time.monotonic()
        script = f"""
            def garbage():
                {GARBAGE[what].replace("time.sleep(30)", "time.sleep(0.2)").replace("range(300)", "range(10)")}
                power_off()
            serve(garbage)
        """
        assert fails(tmp_path, script) or what in HARMLESS
        assert peak_memory() - before < MEMORY_MAX
        assert time.monotonic() - begin < 20
        assert not (tmp_path / "run/g").exists()

    @pytest.mark.parametrize("data", ["[]", "null", '"x"', '{"reason": []}', '{"reason": {}}', '{"action": 5}'])
    def test_event_without_the_right_data_is_passed_over(self, tmp_path: Path, data: str) -> None:
        """An invalid event about the guest's life changes nothing."""
        script = f"""
            import json
            def odd():
                for name in ("SHUTDOWN", "RESET", "GUEST_PANICKED"):
                    say(event=name, data=json.loads({data!r}))
                power_off()
            serve(odd)
        """
        assert "shutdown" == run(tmp_path, script).reason

    def test_two_answers_to_one_question_do_not_hang(self, tmp_path: Path) -> None:
        """An unexpected answer does not block anything for ever."""
        script = """
            def twice():
                for number in range(100):
                    say(**{"return": {}, "id": f"__qmp#{number:05d}"})
                power_off()
            serve(twice)
        """
        begin = time.monotonic()
        assert "shutdown" == run(tmp_path, script).reason
        assert time.monotonic() - begin < 20


class TestLog:
    def test_log_rolls_and_has_a_limit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Endless output of QEMU takes limited space beside the caller's file; the end of it is kept."""
        monkeypatch.setattr(qemu_log.RollingLog.__init__, "__kwdefaults__", {"max_bytes": 100_000, "backups": 3})
        log = tmp_path / "guest.log"
        log.write_text("earlier\n")
        log.chmod(0o640)
        script = """
            os.write(2, b"a line of some length that comes again and again\\n" * 100_000)
            sys.exit("the last word")
        """
        with pytest.raises(OperationError, match="the last word"):
            run(tmp_path, script, log=log)
        sizes = {path.name: path.stat().st_size for path in tmp_path.glob("guest.log*")}
        assert {"guest.log", "guest.log.0", "guest.log.1", "guest.log.2"} == sizes.keys()
        assert all(size <= 100_000 for size in sizes.values())
        assert log.read_bytes().endswith(b"the last word\n")
        assert {0o640} == {path.stat().st_mode & 0o777 for path in tmp_path.glob("guest.log*")}

    def test_flood_of_words_holds_nothing_up(self, tmp_path: Path) -> None:
        """A QEMU that writes endlessly still ends with its guest."""
        script = """
            def shout():
                if os.fork() == 0:
                    while True:
                        os.write(2, b"x" * 65536)
                time.sleep(0.5)
                power_off()
            serve(shout)
        """
        begin = time.monotonic()
        try:
            assert "shutdown" == run(tmp_path, script).reason
        finally:
            end_children_of_the_guest(tmp_path)
        assert time.monotonic() - begin < 20

    def test_last_words_are_bounded(self, tmp_path: Path) -> None:
        """A line without an end is cut in the error."""
        with pytest.raises(OperationError) as error:
            run(tmp_path, "sys.exit('x' * 10_000_000)")
        assert len(str(error.value)) < 5000

    def test_relative_log_is_the_callers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relative path of a log starts from the caller's working directory."""
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(OperationError):
            run(tmp_path, "sys.exit('said')", log=Path("guest.log"))
        assert "said\n" == (tmp_path / "here/guest.log").read_text()

    @needs_root
    def test_log_is_no_link_of_another_user(self, tmp_path: Path) -> None:
        """In a directory of QEMU's user, a link in the place of the log would let its guest write to any file."""
        victim, log = tmp_path / "victim", tmp_path / "own/guest.log"
        victim.write_text("precious")
        log.parent.mkdir()
        log.symlink_to(victim)
        RollingLog(str(log)).close()
        os.lchown(log, 65534, 65534)
        with pytest.raises(OperationError, match="is a link that another user"):
            RollingLog(str(log))
        os.lchown(log, 0, 0)
        os.chown(log.parent, 65534, 65534)
        with pytest.raises(OperationError, match="is a link that another user"):
            RollingLog(str(log))

    def test_full_log_does_not_stop_the_guest(self, tmp_path: Path) -> None:
        """A full disk loses output, not the guest."""
        script = "os.write(2, b'x' * 100); serve(power_off)"
        assert "shutdown" == run(tmp_path, script, log=Path("/dev/full")).reason


def end_children_of_the_guest(directory: Path) -> None:
    """End what a peer has left behind; it has the test's own directory in its command line."""
    wanted = str(directory / "peer.py").encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if wanted in (entry / "cmdline").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


DOMAIN = """
<domain type='qemu'><name>vm</name><memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><emulator>{emulator}</emulator>{devices}</devices>
</domain>
"""
CHANNEL = "<channel type='unix'><target type='virtio' name='{name}'/></channel>"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach; pytest closes its own ones, also those of a run beside this one."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")) as top:
        os.chmod(top, stat.S_IRWXU | stat.S_IXGRP | stat.S_IXOTH)
        yield Path(top)


class Started:
    """``pyhostdev start`` in a separate process."""

    def __init__(self, place: Path, devices: str, *options: str) -> None:
        (place / "vm.xml").write_text(DOMAIN.format(emulator=QEMU, devices=devices))
        self.state = place / "state"
        command = [sys.executable, "-m", "pyhostdev", "start", "vm.xml", "--state-dir", str(self.state), *options]
        self.process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(self, pattern: str) -> Path:
        """Wait until the guest has made a file, and return it."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            found = list(self.state.glob(pattern))
            if found:
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"no {pattern}: {self.end()}")

    def guest(self) -> int:
        """Wait until QEMU listens to its monitor, and return its process."""
        self.wait_for("lib/qemu/domain-*/monitor.sock")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            if children and b"qemu" in Path(f"/proc/{children[0]}/cmdline").read_bytes().split(b"\0")[0]:
                return int(children[0])
            time.sleep(0.05)
        raise AssertionError(f"no QEMU: {self.end()}")

    def refusal(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and its messages, without the note on capabilities."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, "".join(s for s in said.splitlines(True) if "note: answered with" not in s)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Ask it to end; return its exit code and its messages."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.refusal()


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Yield a path that fits the address of a socket, which has 107 bytes."""
    directory_fd = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{directory_fd}/{path.name}"
    finally:
        os.close(directory_fd)


def connects(path: Path) -> bool:
    with address_of(path) as address, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        return client.connect_ex(address) == 0


def written_by(pid: int) -> list[Path]:
    """Return the regular files of which a process has a descriptor that it can write to."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the process closed it meanwhile
            flags = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split("flags:")[1].split()[0]
            if int(flags, 8) & os.O_ACCMODE and link.is_file():
                found.append(link.readlink())
    return found


@needs_qemu
class TestChannel:
    def test_channel_without_a_path_starts(self, place: Path) -> None:
        """The usual channel of a guest agent has a socket of its own, 0600, which goes with the guest."""
        started = Started(place, CHANNEL.format(name="org.qemu.guest_agent.0"))
        started.guest()
        agent = started.wait_for("lib/qemu/channel/target/domain-*/org.qemu.guest_agent.0")
        assert connects(agent)
        assert 0o600 == agent.stat().st_mode & 0o777
        assert 0 == started.end()[0]
        assert [] == [path for path in started.state.rglob("*") if path.is_socket() or path.name.startswith("domain-")]

    def test_named_socket_is_made_with_the_guest(self, place: Path) -> None:
        """A socket that a dead guest left is replaced; what else is there stays, and the guest does not start."""
        port = place / "port.sock"
        serial = f"<serial type='unix'><source mode='bind' path='{port}'/></serial>"
        with address_of(port) as address, socket.socket(socket.AF_UNIX) as dead:
            dead.bind(address)
        started = Started(place, serial)
        started.guest()
        assert connects(port)
        code, said = Started(place, serial).refusal()
        assert (1, True) == (code, "image-unusable: Another program listens at" in said)
        assert 0 == started.end()[0]
        assert not port.exists()
        port.write_text("precious")
        code, said = Started(place, serial).refusal()
        assert (1, "precious") == (code, port.read_text())
        assert "is not a socket" in said

    @pytest.mark.parametrize("name", ["../../../../etc/agent", "a/b", "..", ".", "x" * 200])
    def test_name_that_leaves_the_directory_is_refused(self, place: Path, name: str) -> None:
        """A channel's name is a file's name in the run's own directory, or the guest does not start."""
        code, said = Started(place, CHANNEL.format(name=name)).refusal()
        assert 1 == code
        assert "which cannot name a socket" in said
        assert not (place / "state").exists()


@needs_qemu
@needs_root
class TestUser:
    def test_qemu_is_another_user_and_reaches_its_own_things_only(self, place: Path) -> None:
        """QEMU has the user's numbers and no capability; it may read its key, but list none of our directories."""
        started = Started(place, CHANNEL.format(name="agent"), "--user", "nobody")
        pid = started.guest()
        nobody = pwd.getpwnam("nobody")
        status = Path(f"/proc/{pid}/status").read_text()
        lines = dict(line.partition(":")[::2] for line in status.splitlines())
        runtime = started.wait_for("lib/qemu/domain-*")
        key, top = (runtime / "master-key.aes").stat(), runtime.stat()
        assert {str(nobody.pw_uid)} == set(lines["Uid"].split())
        assert {"0" * 16} == {lines[f"Cap{kind}"].strip() for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
        assert "1" == lines["NoNewPrivs"].strip()
        assert (0, nobody.pw_gid, 0o640) == (key.st_uid, key.st_gid, key.st_mode & 0o777)
        assert (0, nobody.pw_gid, 0o710) == (top.st_uid, top.st_gid, top.st_mode & 0o777)
        assert connects(next(started.state.glob("lib/qemu/channel/target/*/agent")))
        assert (0, "") == started.end()

    def test_umask_does_not_keep_qemu_from_its_key(self, place: Path) -> None:
        """Whatever the umask, the state directory and all below it are 0711, and QEMU can write to no file there."""
        before = os.umask(0o077)
        try:
            started = Started(place, CHANNEL.format(name="agent"), "--user", "nobody")
        finally:
            os.umask(before)
        pid = started.guest()
        tops = [started.state, *(path for path in started.state.rglob("*") if path.is_dir())]
        shut = {str(path): oct(path.stat().st_mode & 0o7777) for path in tops if path.stat().st_mode & 0o7777 != 0o711}
        assert ["0o710"] == list(shut.values()), shut
        assert [] == [path for path in written_by(pid) if path.is_relative_to(started.state)]
        assert (0, "") == started.end()

    def test_images_are_found_before_anything_is_made(self, place: Path) -> None:
        """All files that the user cannot open are reported at once, with the remedy, and nothing was written."""
        for name, mode in (("disk.img", 0o600), ("cd.iso", 0o644), ("kernel", 0o600)):
            (place / name).write_bytes(bytes(1 << 16))
            (place / name).chmod(mode)
        disks = (
            f"<disk type='file'><source file='{place}/disk.img'/><target dev='vda'/></disk>"
            f"<disk type='file' device='cdrom'><source file='{place}/cd.iso'/><target dev='sda' bus='sata'/></disk>"
            f"<disk type='file'><source file='{place}/gone.img'/><target dev='vdb'/></disk>"
            f"<graphics type='vnc'><listen type='socket' socket='{place}/vnc.sock'/></graphics>"
        )
        code, said = Started(place, disks, "--user", "nobody").refusal()
        reasons = [line.split(": ")[1:2] for line in said.splitlines()]
        assert 1 == code
        assert 2 == said.count("image-unreadable") == said.count("--user root")
        assert 1 == said.count("image-missing"), reasons
        assert ["cd.iso"] == [name for name in ("disk.img", "cd.iso", "gone.img", "vnc") if name not in said]
        assert not (place / "state").exists()

    def test_root_is_as_before(self, place: Path) -> None:
        """With --user root QEMU is root, and the runtime directory is closed to all others."""
        started = Started(place, "", "--user", "root")
        pid = started.guest()
        runtime = started.wait_for("lib/qemu/domain-*")
        assert 0 == os.stat(f"/proc/{pid}").st_uid
        assert 0o700 == runtime.stat().st_mode & 0o777
        assert (0, "") == started.end()

    def test_unknown_user_is_refused(self, place: Path) -> None:
        """A user that this machine does not have is an error, and nothing is created."""
        code, said = Started(place, "", "--user", "no-such-user").refusal()
        assert (2, True) == (code, said.endswith("error: argument --user: Unknown user 'no-such-user'\n"))
        assert not (place / "state").exists()

    def test_log_that_cannot_be_opened_is_refused(self, place: Path) -> None:
        """A wrong path is refused before anything is created, and nothing has to be rolled back."""
        code, said = Started(place, "", "--log", str(place / "none/log")).refusal()
        assert (1, True) == (code, "Cannot open the log" in said)
        assert not (place / "state").exists()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
    def test_every_signal_ends_the_guest_and_cleans_up(self, place: Path, number: signal.Signals) -> None:
        """Each signal that asks a program to end is the guest's end, in order."""
        started = Started(place, CHANNEL.format(name="agent"), "--user", "nobody")
        pid = started.guest()
        assert (0, "") == started.end(number)
        assert not Path(f"/proc/{pid}").exists()
        assert [] == list(started.state.glob("lib/qemu/domain-*"))


@needs_qemu
class TestPaths:
    def test_relative_paths_of_a_definition_are_refused(self, place: Path) -> None:
        """A definition has no directory that a relative path could start from: emulator, disk, log and socket alike."""
        (place / "disk.img").write_bytes(bytes(512))
        devices = (
            "<disk type='file'><source file='disk.img'/><target dev='vda'/></disk>"
            "<serial type='file'><source path='serial.log'/></serial>"
        )
        code, said = Started(place, devices).refusal()
        assert (1, 2) == (code, said.count("relative-path"))
