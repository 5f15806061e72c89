# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Guests that run: a real QEMU with firmware of a few instructions, and programs that are not QEMU.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyhostdev.errors import ConfigUnsupportedError, OperationError
from pyhostdev.qemu.qemu_process import launch as qemu_launch
from pyhostdev.qemu.qemu_process.monitor import lifecycle_event
from pyhostdev.qemu.qemu_process.process import GuestOutcome, run_guest
from pyhostdev.util.spawn import spawn

QEMU = "qemu-system-x86_64"
needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")

ROM_SIZE = 0x10000
RESET_VECTOR = 0xFFF0
CODE = 0x0000

# 16-bit code of the firmware; PIIX4 keeps its power management registers where configuration
# space says (registers 0x40 and 0x80 of 00:01.3), and sleeping in state 5 is powering off.
POWEROFF = bytes.fromhex(
    "66b8400b0080" "baf80c" "66ef" "66b801060000" "bafc0c" "66ef"  # PMBASE := 0x600
    "66b8800b0080" "baf80c" "66ef" "66b801000000" "bafc0c" "66ef"  # PMREGMISC := enabled
    "ba0406" "b80020" "ef"  # PMCNTRL := sleep enable, type 0
    "f4ebfd"
)  # fmt: skip
RESET = bytes.fromhex("baf90cb006eef4ebfd")  # 0xcf9 := full reset
PANIC = bytes.fromhex("ba0505b001eef4ebfd")  # pvpanic's port
IDLE = bytes.fromhex("f4ebfd")


class Dom(NamedTuple):
    """A domain as run_guest sees it."""

    name: str = "vm1"
    on_poweroff: str | None = None
    on_reboot: str | None = None
    on_crash: str | None = None


def at_boot(number: int, then: bytes, before: bytes) -> bytes:
    """
    Firmware that says "." on the debug port at each boot, and acts at that one differently.

    It counts its boots in the battery-backed memory of the clock, which a reset leaves alone.
    """
    hello = bytes.fromhex("b02ee6e9")
    register = bytes.fromhex("b060e670")
    count = register + bytes.fromhex("e471fec088c4") + register + bytes.fromhex("88e0e671")
    skip = bytes([0x80, 0xFC, number, 0x73, len(before)])  # from that boot on: pass over
    return hello + count + skip + before + then


class Lab:
    """A runtime directory and firmware of one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runtime = directory / "lib/qemu/domain-1-vm1"
        self.pid = 0

    def argv(self, code: bytes, *more: str) -> list[str]:
        rom = bytearray(ROM_SIZE)
        rom[CODE : CODE + len(code)] = code
        rom[RESET_VECTOR : RESET_VECTOR + 5] = bytes.fromhex("ea000000f0")  # jmp f000:0000
        path = self.directory / "rom.bin"
        path.write_bytes(rom)
        return [
            QEMU, "-S", "-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown",
            "-machine", "pc,accel=tcg", "-m", "4", "-bios", str(path), "-device", "pvpanic",
            "-debugcon", f"file:{self.directory / 'boots'}", *more,
        ]  # fmt: skip

    @property
    def boots(self) -> int:
        return len((self.directory / "boots").read_bytes())

    def run(self, argv: list[str], dom: Dom = Dom(), **options: object) -> GuestOutcome:  # noqa: B008
        def with_monitor(fd: int) -> list[str]:
            chardev = f"socket,id=charmonitor,fd={fd},server=on,wait=off"
            return [*argv, "-chardev", chardev, "-mon", "chardev=charmonitor,mode=control"]

        def started(pid: int) -> None:
            self.pid = pid

        options.setdefault("on_started", started)
        return run_guest(with_monitor, dom=dom, runtime_dir=str(self.runtime), **options)  # type: ignore[arg-type]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def fake_qemu(directory: Path, script: str) -> list[str]:
    """A program in Python that takes QEMU's place."""
    path = directory / "qemu"
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(script)}")
    path.chmod(0o755)
    return [str(path)]


class Background:
    """run_guest in a program of its own, so that it has a main thread and signals to take."""

    def __init__(self, lab: Lab, argv: list[str], **options: object) -> None:
        script = f"""
            import sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from pathlib import Path
            from test_qemu_process import Dom, Lab
            lab = Lab(Path({str(lab.directory)!r}))
            try:
                outcome = lab.run({argv!r}, on_started=lambda pid: print(pid, flush=True), **{options!r})
                print(*outcome[:3], flush=True)
            except BaseException as err:
                print(type(err).__name__, err, flush=True)
            signal_handlers = __import__("signal").getsignal(15)
            print(signal_handlers == __import__("signal").SIG_DFL)
        """
        self.child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
        )
        assert self.child.stdout is not None
        self.out = self.child.stdout
        self.guest = int(self.out.readline())

    def finish(self) -> list[str]:
        self.child.wait(20)
        return self.out.read().splitlines()


@needs_qemu
class TestLifecycle:
    def test_guest_that_powers_off_takes_its_qemu_along(self, lab: Lab) -> None:
        """
        Powering off ends QEMU despite -no-shutdown, and the process has ended on return.
        """
        outcome = lab.run(lab.argv(at_boot(1, POWEROFF, IDLE)))
        assert GuestOutcome("shutdown", 0, False, "") == outcome
        assert not is_running(lab.pid)

    def test_reboot_restarts_the_guest(self, lab: Lab) -> None:
        """
        A guest can reboot any number of times in the same QEMU.
        """
        assert "shutdown" == lab.run(lab.argv(at_boot(3, POWEROFF, RESET))).reason
        assert 3 == lab.boots

    def test_on_reboot_destroy_runs_nothing_after_the_reset(self, lab: Lab) -> None:
        """
        With on_reboot=destroy the guest's reset is its end; it does not boot a second time.
        """
        outcome = lab.run(lab.argv(at_boot(1, RESET, IDLE)), Dom(on_reboot="destroy"))
        assert ("shutdown", False) == (outcome.reason, outcome.failed)
        assert 1 == lab.boots

    def test_on_poweroff_restart_boots_again(self, lab: Lab) -> None:
        """
        With on_poweroff=restart a guest that powers off boots again, its devices still its own.
        """
        code = at_boot(3, PANIC, POWEROFF)
        assert "crashed" == lab.run(lab.argv(code), Dom(on_poweroff="restart")).reason
        assert 3 == lab.boots

    def test_on_crash_restart_boots_again(self, lab: Lab) -> None:
        """
        With on_crash=restart a guest that panics boots again.
        """
        code = at_boot(2, POWEROFF, PANIC)
        assert "shutdown" == lab.run(lab.argv(code), Dom(on_crash="restart")).reason
        assert 2 == lab.boots

    def test_on_poweroff_preserve_keeps_the_guest(self, lab: Lab) -> None:
        """
        With on_poweroff=preserve a guest that powers off stays, stopped, until it is ended from outside.
        """

        def end_later(pid: int) -> None:
            threading.Timer(0.3, os.kill, (pid, signal.SIGTERM)).start()

        code = at_boot(1, POWEROFF, IDLE)
        outcome = lab.run(lab.argv(code), Dom(on_poweroff="preserve"), on_started=end_later)
        assert ("destroyed", 0, False) == outcome[:3]
        assert 1 == lab.boots

    def test_panic_is_a_crash_of_the_guest_only(self, lab: Lab) -> None:
        """
        A panic ends the guest as crashed, while QEMU has done nothing wrong.
        """
        outcome = lab.run(lab.argv(at_boot(1, PANIC, IDLE)))
        assert ("crashed", 0, False) == outcome[:3]

    def test_unknown_action_is_refused_before_anything_runs(self, lab: Lab) -> None:
        """
        An unsupported action is refused by name, and no directory is created.
        """
        with pytest.raises(ConfigUnsupportedError, match="'coredump-destroy' of 'on_crash'"):
            lab.run(lab.argv(IDLE), Dom(on_crash="coredump-destroy"))
        assert not lab.runtime.exists()


@needs_qemu
class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
    def test_signal_ends_the_guest(self, lab: Lab, number: signal.Signals) -> None:
        """
        A signal to end us ends the guest first, and the caller's signal handlers are restored.
        """
        background = Background(lab, lab.argv(IDLE))
        background.child.send_signal(number)
        assert ["destroyed 0 False", "True"] == background.finish()
        assert not is_running(background.guest)

    def test_signal_that_was_held_back_ends_the_guest(self, lab: Lab) -> None:
        """
        A signal before the guest runs ends it; one after its end is delivered at the end of the block.
        """
        script = f"""
            import os, signal, sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from pathlib import Path
            from pyhostdev.qemu.qemu_process.process import held_signals
            from test_qemu_process import IDLE, Lab
            lab = Lab(Path({str(lab.directory)!r}))
            with held_signals():
                os.kill(os.getpid(), signal.SIGQUIT)
                print(lab.run(lab.argv(IDLE)).reason, flush=True)
                os.kill(os.getpid(), signal.SIGHUP)
                print("given back", flush=True)
            print("never")
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=lab.directory
        )
        assert (-signal.SIGHUP, ["destroyed", "given back"]) == (done.returncode, done.stdout.splitlines())

    def test_terminal_signal_does_not_reach_qemu(self, lab: Lab) -> None:
        """
        QEMU has its own session, so only we receive Ctrl-C of a terminal.
        """
        background = Background(lab, lab.argv(IDLE))
        assert background.guest == os.getsid(background.guest)
        background.child.terminate()
        background.finish()

    def test_killed_qemu_is_a_failure(self, lab: Lab) -> None:
        """
        A QEMU that was killed is reported as killed, at once.
        """
        outcome = lab.run(lab.argv(IDLE), on_started=lambda pid: os.kill(pid, signal.SIGKILL))
        assert ("crashed", -signal.SIGKILL, True) == outcome[:3]
        assert "QEMU was ended by SIGKILL" == str(outcome)

    def test_qemu_that_was_asked_to_end_has_not_failed(self, lab: Lab) -> None:
        """
        SIGTERM is the usual way to end a guest: QEMU exits in order, and that is not a failure.
        """
        outcome = lab.run(lab.argv(IDLE), on_started=lambda pid: os.kill(pid, signal.SIGTERM))
        assert ("destroyed", 0, False) == outcome[:3]

    def test_deaf_qemu_is_killed(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        A QEMU that neither answers nor reacts to SIGTERM is killed when its deadlines have passed.
        """
        monkeypatch.setattr("pyhostdev.qemu.qemu_process.process.ANSWER_TIMEOUT_S", 0.2)
        monkeypatch.setattr("pyhostdev.qemu.qemu_process.process.TERM_TIMEOUT_S", 0.2)

        def stop_and_fail(pid: int) -> None:
            lab.pid = pid
            os.kill(pid, signal.SIGSTOP)
            raise KeyError("the caller's own")

        with pytest.raises(KeyError):
            lab.run(lab.argv(IDLE), on_started=stop_and_fail)
        assert not is_running(lab.pid)

    def test_guest_outlives_a_killed_starter_and_keeps_its_directory(self, lab: Lab) -> None:
        """
        If its starter is killed, the guest continues; until its end the runtime directory is in use.
        """
        background = Background(lab, lab.argv(IDLE))
        background.child.kill()
        background.finish()
        with pytest.raises(OperationError, match="A guest is running in"):
            lab.run(["/no/qemu"])
        pidfd = os.pidfd_open(background.guest)
        os.kill(background.guest, signal.SIGKILL)
        select.select([pidfd], [], [], 5)
        os.close(pidfd)
        with pytest.raises(OperationError, match="Cannot run '/no/qemu'"):
            lab.run(["/no/qemu"])

    def test_exception_of_the_caller_ends_the_guest(self, lab: Lab) -> None:
        """
        An exception of the caller while the guest runs is raised after QEMU's end.
        """

        def fail(pid: int) -> None:
            lab.pid = pid
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            lab.run(lab.argv(IDLE), on_started=fail)
        assert not is_running(lab.pid)
        assert not lab.runtime.exists()

    def test_guest_runs_from_any_thread(self, lab: Lab) -> None:
        """
        run_guest does not need the main thread, but only handles signals there.
        """
        outcomes: list[GuestOutcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(lab.run(lab.argv(at_boot(1, POWEROFF, IDLE)))))
        thread.start()
        thread.join(10)
        assert ["shutdown"] == [outcome.reason for outcome in outcomes]


@pytest.mark.parametrize(
    ("event", "data", "expected"),
    [
        ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}, ("on_poweroff", True)),
        ("SHUTDOWN", {"guest": True, "reason": "guest-reset"}, ("on_reboot", True)),
        ("SHUTDOWN", {"guest": True, "reason": "guest-panic"}, ("on_crash", True)),
        ("SHUTDOWN", {"guest": False, "reason": "host-signal"}, None),
        ("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"}, None),
        ("RESET", {"guest": True, "reason": "guest-reset"}, ("on_reboot", False)),
        ("RESET", {"guest": False, "reason": "host-qmp-system-reset"}, None),
        ("GUEST_PANICKED", {"action": "pause"}, ("on_crash", True)),
        ("GUEST_PANICKED", {"action": "poweroff"}, None),
        ("GUEST_PANICKED", {"action": "run"}, None),
        ("STOP", {}, None),
    ],
)
def test_event_asks_for_one_action_at_most(
    event: str, data: dict[str, object], expected: tuple[str, bool] | None
) -> None:
    """
    Exactly one of QEMU's events shows how a guest ended, and QEMU's own end is not one of them.
    """
    assert expected == lifecycle_event(event, data)


class TestStart:
    def test_early_end_quotes_qemu(self, lab: Lab) -> None:
        """
        A QEMU that ends before its greeting is an error with its exit status and its own message.
        """
        argv = fake_qemu(lab.directory, "import sys; sys.exit('vfio 0000:01:00.0: no group')")
        with pytest.raises(OperationError) as error:
            lab.run(argv)
        words = "QEMU ended with exit status 1 before the guest could run: "
        assert words + "'vfio 0000:01:00.0: no group'" == str(error.value)

    def test_words_of_who_ends_at_once_are_kept(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        The output of a QEMU that ended before it was examined is quoted, too.
        """

        def spawn_and_end(*args: Any, **options: Any) -> int:
            pid = spawn(*args, **options)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            return pid

        monkeypatch.setattr(qemu_launch, "spawn", spawn_and_end)
        argv = fake_qemu(lab.directory, "import sys; sys.exit('no memory')")
        with pytest.raises(OperationError, match="'no memory'"):
            lab.run(argv)

    @needs_qemu
    def test_refused_argument_quotes_qemu(self, lab: Lab) -> None:
        """
        QEMU's message about an unknown argument reaches the user.
        """
        with pytest.raises(OperationError, match="'nonsense' is not a valid device model name"):
            lab.run(lab.argv(IDLE, "-device", "nonsense"))

    def test_missing_binary_is_named(self, lab: Lab) -> None:
        """
        A missing QEMU is an error that names it, and nothing is left behind.
        """
        with pytest.raises(OperationError, match="Cannot run '/no/qemu': No such file"):
            lab.run(["/no/qemu"])
        assert not lab.runtime.exists()

    def test_silent_qemu_runs_into_the_deadline(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        A program that never greets is ended when the deadline for it has passed.
        """
        monkeypatch.setattr("pyhostdev.qemu.qemu_process.process.GREETING_TIMEOUT_S", 0.3)
        argv = fake_qemu(lab.directory, "import time; time.sleep(60)")
        with pytest.raises(OperationError, match=r"did not answer within 0\.3 s"):
            lab.run(argv)

    def test_runtime_directory_is_private_and_has_the_key(self, lab: Lab) -> None:
        """
        QEMU finds a key of 32 random bytes, 0600, in a private directory.
        """
        script = f"""
            import os, sys
            key = os.stat("{lab.runtime}/master-key.aes")
            top = os.stat("{lab.runtime}")
            sys.exit(f"{{key.st_size}} {{key.st_mode & 0o777:o}} {{top.st_mode & 0o777:o}}")
        """
        with pytest.raises(OperationError, match="'32 600 700'"):
            lab.run(fake_qemu(lab.directory, script))
        assert not lab.runtime.exists()

    def test_runtime_directory_of_a_running_guest_is_refused(self, lab: Lab) -> None:
        """
        Two guests never share a runtime directory: the second is refused, the first untouched.
        """
        seen: list[str] = []

        def start_another(pid: int) -> None:
            with pytest.raises(OperationError) as error:
                lab.run(["/no/qemu"])
            seen.append(str(error.value))
            os.kill(pid, signal.SIGTERM)

        argv = lab.argv(IDLE) if shutil.which(QEMU) else pytest.skip(f"{QEMU} is not installed")
        outcome = threading.Thread(target=lambda: lab.run(argv, on_started=start_another))
        outcome.start()
        outcome.join(10)
        assert [f"A guest is running in '{lab.runtime}'"] == seen

    def test_open_runtime_directory_is_refused(self, lab: Lab) -> None:
        """
        A directory that other users may enter is refused.
        """
        lab.runtime.mkdir(parents=True, mode=0o755)
        lab.runtime.chmod(0o755)
        with pytest.raises(OperationError, match="is open to other users"):
            lab.run(["/no/qemu"])
        assert [] == list(lab.runtime.iterdir())

    def test_log_is_appended_to(self, lab: Lab) -> None:
        """
        With a log path, QEMU's output is appended to the file, and only the new output is quoted.
        """
        log = lab.directory / "vm1.log"
        log.write_text("earlier\n")
        argv = fake_qemu(lab.directory, "import sys; sys.exit('later')")
        with pytest.raises(OperationError, match="run: 'later'"):
            lab.run(argv, log_path=str(log))
        assert "earlier\nlater\n" == log.read_text()


class TestOldQEMU:
    OLD = """
        import json, socket, sys
        fd = int(sys.argv[sys.argv.index("-chardev") + 1].split("fd=")[1].split(",")[0])
        client, _ = socket.socket(fileno=fd).accept()
        def say(**message):
            client.sendall(json.dumps(message).encode() + b"\\n")
        say(QMP={"version": {"qemu": {"major": 5, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []})
        while True:
            request = json.loads(client.recv(65536))
            of = {"id": request["id"]} if "id" in request else {}
            if request["execute"] == "set-action":
                say(error={"class": "CommandNotFound", "desc": "not known"}, **of)
                continue
            say(**{"return": {}}, **of)
            if request["execute"] == "cont":
                say(event="RESET", data={"guest": True}, timestamp={"seconds": 1, "microseconds": 2})
            if request["execute"] == "quit":
                break
    """

    def test_reset_that_cannot_be_held_back_still_counts(self, lab: Lab) -> None:
        """
        A QEMU without set-action reports a reset afterwards; on_reboot=destroy ends it then.
        """
        outcome = lab.run(fake_qemu(lab.directory, self.OLD), Dom(on_reboot="destroy"))
        assert GuestOutcome("shutdown", 0, False, "") == outcome


class TestMemlock:
    SHOW = """
        import resource, sys, time
        time.sleep(0.2)
        sys.exit(str(resource.getrlimit(resource.RLIMIT_MEMLOCK)))
    """

    def test_limit_is_the_childs_alone(self, lab: Lab) -> None:
        """
        QEMU may lock the memory that the domain's devices need; our own limit is unchanged.
        """
        before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        with pytest.raises(OperationError, match=r"'\(49152, 49152\)'"):
            lab.run(fake_qemu(lab.directory, self.SHOW), memlock_limit=48 << 10)
        assert before == resource.getrlimit(resource.RLIMIT_MEMLOCK)

    def test_refusal_comes_before_qemu(self, lab: Lab) -> None:
        """
        A limit that cannot be raised is an error before QEMU starts; it names both figures.
        """
        script = """
            import os, resource, sys, tempfile, types
            from pyhostdev.errors import OperationError
            from pyhostdev.qemu.qemu_process.process import run_guest
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            dom = types.SimpleNamespace(name="vm", on_poweroff=None, on_reboot=None, on_crash=None)
            try:
                run_guest(lambda fd: ["/bin/echo", "started"], dom=dom, runtime_dir=tempfile.mkdtemp() + "/run",
                          memlock_limit=1 << 30)
            except OperationError as err:
                print(err)
        """
        shown = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
        assert "1073741824 bytes" in shown.stdout
        assert "limit of 65536 bytes cannot be raised" in shown.stdout
        assert "started" not in shown.stdout
