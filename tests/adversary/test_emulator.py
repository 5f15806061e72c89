# SPDX-License-Identifier: LGPL-2.1-or-later
"""The emulator of a definition is only run if it is trusted, and a probed program cannot harm the caller."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyhostdev.errors import ConfigError, ConfigUnsupportedError, OperationError
from pyhostdev.qemu.qemu_capabilities import STORED, QEMUCapabilities, cache, load, probe, probing, trust
from pyhostdev.qemu.qemu_capabilities.choice import choose
from pyhostdev.qemu.qemu_capabilities.trust import why_untrusted
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools.main import main

pytest.importorskip("qemu.qmp", reason="the library qemu.qmp is not installed")

DOMAIN = """<domain type='qemu'><name>vm</name><memory>1024</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices><emulator>{}</emulator></devices></domain>"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
Script = Callable[[str], str]


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a directory that every user can read, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        yield Path(top)


@pytest.fixture
def script(place: Path) -> Script:
    """Write a program that plays an emulator; ``fd`` is its end of the monitor."""

    def make(body: str) -> str:
        path = place / "qemu"
        head = "import json, os, re, resource, socket, sys, time\n"
        head += "fd = int(re.search(r'fd=([0-9]+)', ' '.join(sys.argv)).group(1))\n"
        head += "monitor = socket.socket(fileno=fd)\n"
        path.write_text(f"#!/usr/bin/python3 -I\n{head}{body}\n")
        path.chmod(0o755)
        return str(path)

    return make


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen where every user can connect: an asked program cannot write a file."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen()
        listener.settimeout(20)
        yield listener


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "directory", lambda: None)


@pytest.mark.parametrize("verb", ["plan", "validate", "xml", "argv"])
@pytest.mark.parametrize("emulator", ["absolute", "./qemu", "../../{}"])
def test_reading_verbs_run_nothing(
    verb: str, emulator: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emulator of someone else is not run: neither on the live host nor for a directory in its place."""
    proof = place / "proof"
    evil = place / "qemu"
    evil.write_text(f"#!/bin/sh\necho ran >> {proof}\n")
    evil.chmod(0o755)
    place.chmod(0o777)
    monkeypatch.chdir(place)
    named = str(evil) if emulator == "absolute" else emulator.format(str(evil).lstrip("/"))
    file = tmp_path / "guest.xml"
    file.write_text(DOMAIN.format(named))
    (tmp_path / "host").mkdir()
    FakeHost.named("bcm5719", tmp_path / "host")
    for root in ("/", str(tmp_path / "host")):
        main([verb, str(file), "--root", root, "--state-dir", str(tmp_path / "state")])
    assert not proof.exists()


def test_what_is_trusted(place: Path) -> None:
    """Every component belongs to root or the caller, and no one else can change it."""
    program = place / "qemu"
    shutil.copy("/bin/true", program)
    assert "other users can write to" in str(why_untrusted(str(program)))  # the temporary directory's parent
    assert None is why_untrusted("/usr/bin/env")
    assert "absolute" in str(why_untrusted("usr/bin/env"))
    assert "absolute" in str(why_untrusted("/usr/bin/../bin/env"))
    assert "regular" in str(why_untrusted("/dev"))
    assert "cannot read its status" in str(why_untrusted("/nonexistent/qemu"))


def test_a_link_is_followed_through_every_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trusted name that leads through a stranger's directory is not trusted."""
    closed, opened = place / "closed", place / "opened"
    closed.mkdir(mode=0o755)
    opened.mkdir()
    opened.chmod(0o777)
    (opened / "link").symlink_to("/usr/bin/env")
    (closed / "qemu").symlink_to(opened / "link")
    assert "other users can write to" in str(why_untrusted(str(closed / "qemu")))


@needs_root
def test_an_asked_program_has_no_rights(script: Script, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs as the user `nobody`, without the caller's capabilities, groups, environment and files, for good."""
    path = script(
        f"status = open('/proc/self/status').read()\n"
        f"opened = sorted(map(int, os.listdir('/proc/self/fd')))\n"
        f"limits = [resource.getrlimit(number) for number in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)]\n"
        f"said = [os.getuid(), os.getgid(), os.getgroups(), dict(os.environ), os.getcwd(), status, opened, limits]\n"
        f"listener = socket.socket(socket.AF_UNIX)\n"
        f"listener.connect({str(place / 'listener')!r})\n"
        f"listener.sendall(json.dumps(said).encode())"
    )
    monkeypatch.setenv("NOTE", "for the caller only")
    monkeypatch.setattr(probing, "DEADLINE_S", 5.0)
    with open("/etc/passwd", "rb") as inherited, listening(place / "listener") as listener:
        os.set_inheritable(inherited.fileno(), True)
        with pytest.raises(OperationError):
            probe(path)
        with listener.accept()[0].makefile("rb") as said:
            report = json.loads(said.read())
    uid, gid, groups, environment, directory, status, opened, limits = report
    assert (65534, 65534, "/", [[0, 0], [0, 0]]) == (uid, gid, directory, limits)
    assert 5 >= len(opened)  # the standard ones, the monitor, and the listing's own
    assert set(groups) <= {65534}
    assert set(environment) <= {"PATH", "LC_ALL", "HOME", "LC_CTYPE"}
    assert "NoNewPrivs:\t1" in status
    assert all(f"{name}:\t0000000000000000" in status for name in ("CapEff", "CapPrm", "CapBnd", "CapInh"))


GREETING = (
    '(json.dumps({"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, '
    '"capabilities": []}}) + "\\r\\n").encode()'
)
EVENT = '(json.dumps({"event": "X", "data": {}, "timestamp": {"seconds": 1, "microseconds": 1}}) + "\\r\\n").encode()'
HOSTILE = {
    "ends at once": "sys.exit(3)",
    "garbage": "monitor.sendall(b'\\x00\\xff garbage\\n' * 100); time.sleep(30)",
    "endless line": "[monitor.sendall(b'x' * 65536) for _ in range(1 << 20)]",
    "endless events": (
        f"monitor.sendall({GREETING})\nmany = {EVENT} * 500\n[monitor.sendall(many) for _ in range(1 << 20)]"
    ),
    "silent": "time.sleep(60)",
    "endless words": "[os.write(1, b'x' * 65536) for _ in range(1 << 20)]",
    "answers of the wrong type": (
        f"monitor.sendall({GREETING})\n"
        "buffer = b''\n"
        "while True:\n"
        "    part = monitor.recv(65536)\n"
        "    if not part: break\n"
        "    for line in part.splitlines():\n"
        "        try: number = json.loads(line).get('id')\n"
        "        except ValueError: continue\n"
        "        monitor.sendall(json.dumps({'return': [[1, {'name': None}]], 'id': number}).encode() + b'\\r\\n')\n"
    ),
    "child that stays": "os.fork() or time.sleep(600)",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_peer_is_one_error(body: str, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any input, or none, is one OperationError within the deadline."""
    monkeypatch.setattr(probing, "DEADLINE_S", 1.5)
    begin = time.monotonic()
    with pytest.raises(OperationError):
        probe(script(body))
    assert time.monotonic() - begin < 20


def slow(delay_s: float) -> str:
    """Return the body of an emulator that needs this time for each answer."""
    return (
        f"monitor.sendall({GREETING})\n"
        f"while request := monitor.recv(65536):\n"
        f"    time.sleep({delay_s})\n"
        f"    answer = {{'return': {{}}, 'id': json.loads(request).get('id')}}\n"
        f"    monitor.sendall(json.dumps(answer).encode() + b'\\r\\n')\n"
    )


@pytest.mark.parametrize(
    ("delay_s", "said"), [(0.02, "it gives invalid answers"), (4.0, "it was silent for 3 s after 0 answers")]
)
def test_each_answer_has_its_time(delay_s: float, said: str, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow emulator that keeps answering has more time in total than for one answer."""
    monkeypatch.setattr(probing, "ANSWER_S", 3.0)
    begin = time.monotonic()
    with pytest.raises(OperationError, match=said):
        probe(script(slow(delay_s)))
    assert time.monotonic() - begin > probing.ANSWER_S


@pytest.mark.parametrize("leave", ["pass", pytest.param("os.setsid()", marks=needs_root)])
def test_its_children_are_ended(leave: str, script: Script, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of a probed program does not outlive the probe; if root probes, not even in another session."""
    monkeypatch.setattr(probing, "DEADLINE_S", 2.0)
    body = (
        f"if os.fork(): time.sleep(600)\n"
        f"{leave}\n"
        f"listener = socket.socket(socket.AF_UNIX)\n"
        f"listener.connect({str(place / 'listener')!r})\n"
        f"time.sleep(600)"
    )
    with listening(place / "listener") as listener:
        with pytest.raises(OperationError):
            probe(script(body))
        connection = listener.accept()[0]
        connection.settimeout(10)
        assert b"" == connection.recv(1)  # its end is closed, as the child is gone
        connection.close()


def test_it_dies_with_its_starter(script: Script, place: Path) -> None:
    """A probed program does not outlive a pyhostdev that is killed during the probe."""
    body = f"listener = socket.socket(socket.AF_UNIX)\nlistener.connect({str(place / 'listener')!r})\ntime.sleep(600)"
    asker = f"from pyhostdev.qemu.qemu_capabilities import probe\nprobe({script(body)!r})"
    with listening(place / "listener") as listener:
        process = subprocess.Popen([sys.executable, "-c", asker])
        connection = listener.accept()[0]
        process.kill()
        process.wait()
        connection.settimeout(10)
        assert b"" == connection.recv(1)
        connection.close()


def test_why_stored_ones_answer() -> None:
    """The output names the origin of the capabilities and why the emulator was not probed."""
    found = choose("/nonexistent/qemu", "x86_64")
    assert ("stored capabilities of QEMU 11.1", "the emulator '/nonexistent/qemu' is not on this machine") == (
        found.origin,
        found.why_stored,
    )
    assert "emulators are not run for another root" == choose("/usr/bin/env", "x86_64", may_run=False).why_stored
    assert None is choose("/nonexistent", "x86_64", choice="7.2").why_stored
    with pytest.raises(ConfigUnsupportedError, match="releases: 7.2"):
        choose(None, "x86_64", choice="1.0")
    with pytest.raises(ConfigError, match="another root"):
        choose("/usr/bin/env", "x86_64", choice="probe", may_run=False)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b"[" * 100000, b'{"arch": 1, "version": "x"}'])
def test_a_file_of_capabilities_is_checked(content: bytes, tmp_path: Path) -> None:
    """A file that no probe has written is refused with one sentence."""
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError):
        choose(None, "x86_64", choice=str(file))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="regular"):
        choose(None, "x86_64", choice=str(tmp_path / "fifo"))


def test_the_cache_is_the_callers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer serves the same file only; an open directory, a link or odd content is not used."""
    top = tmp_path / "cache/pyhostdev"
    monkeypatch.setattr(cache, "directory", lambda: str(top))
    binary = tmp_path / "qemu"
    binary.write_text("x")
    data = {"arch": "x86_64"}
    cache.write(str(binary), cache.identity(str(binary)), data)
    assert (0o700, data) == (stat.S_IMODE(top.stat().st_mode), cache.read(str(binary)))
    (entry,) = top.iterdir()
    entry.write_text("[1, 2")
    assert None is cache.read(str(binary))
    cache.write(str(binary), cache.identity(str(binary)), data)
    top.chmod(0o777)
    assert None is cache.read(str(binary))
    top.chmod(0o700)
    assert data == cache.read(str(binary))
    binary.write_text("another")
    assert None is cache.read(str(binary))


def test_root_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's cache never follows HOME or XDG_CACHE_HOME."""
    monkeypatch.undo()
    monkeypatch.setenv("HOME", "/tmp/evil")
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/evil")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "/var/cache/pyhostdev" == cache.directory()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "/tmp/evil/pyhostdev" == cache.directory()


ANSWERING = """
monitor.sendall({greeting})
names = [{{"name": "device-%06d" % number}} for number in range(20000)]
answers = {{
    "qmp_capabilities": {{}},
    "query-version": {{"qemu": {{"major": 7, "minor": 2, "micro": 0}}}},
    "query-target": {{"arch": "x86_64"}},
    "query-machines": [{{"name": "pc-1", "alias": "pc"}}],
    "query-cpu-definitions": [],
    "device-list-properties": [],
    "qom-list-properties": [],
}}
text = ""
while True:
    text += monitor.recv(65536).decode()
    while text.strip():
        try:
            question, end = json.JSONDecoder().raw_decode(text.lstrip())
        except ValueError:
            break
        text = text.lstrip()[end:]
        if question["execute"] == "quit":
            os._exit(0)
        time.sleep(0.02)
        is_cpus = question.get("arguments", {{}}).get("implements") == "cpu"
        answer = [] if is_cpus else answers.get(question["execute"], names)
        monitor.sendall(json.dumps({{"return": answer, "id": question.get("id")}}).encode() + b"\\r\\n")
"""


def test_a_late_reader_gets_the_whole_answer(script: Script) -> None:
    """An emulator that discards unread input when it quits gets the quit command after its last answer."""
    found = probe(script(ANSWERING.format(greeting=GREETING)))
    assert (20000, "pc-1") == (len(found.devices), found.canonical_machine("pc"))
    assert load("x86_64").origin != found.origin


def test_capabilities_of_the_wrong_type_are_refused() -> None:
    """Data that does not describe an emulator is one ConfigError."""
    with pytest.raises(ConfigError):
        QEMUCapabilities({"arch": "x86_64", "version": ["a"]})


@pytest.mark.parametrize("seed", range(40))
def test_what_a_peer_says_is_used_or_one_error(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong thing in a conversation is one error, of the probe and of a guest's monitor."""
    from qmpquestions import probed, watched

    monkeypatch.setattr(probing, "DEADLINE_S", 0.5)
    assert (None, None) == (probed(seed), watched(seed))


def machine_file(directory: Path, machine: str, **changes: object) -> str:
    """Write the stored answers with one more machine type, as a probe's file."""
    data = json.loads((Path(STORED) / "7.2/x86_64.json").read_text())
    data["machines"].append({"name": machine, "default_cpu": "qemu64", "ram_id": "pc.ram"})
    file = directory / "capabilities.json"
    file.write_text(json.dumps({**data, "version": [9, 2, 0], **changes}))
    return str(file)


@pytest.mark.parametrize("verb", ["validate", "xml", "argv", "plan"])
def test_every_verb_answers_from_the_same_capabilities(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine type of the emulator is accepted by all verbs; without a probe, all name the origin of the answer."""
    domain = tmp_path / "newer.xml"
    domain.write_text(DOMAIN.format("/nonexistent/qemu").replace("machine='pc'", "machine='pc-q35-99.2'"))
    FakeHost.named("bcm5719", tmp_path / "host")
    words = [verb, str(domain), "--root", str(tmp_path / "host")]
    words += ["--for-start"] if verb == "plan" else []
    assert 0 == main([*words, "--capabilities", machine_file(tmp_path, "pc-q35-99.2")])
    assert "answered with capabilities in" in capsys.readouterr().err
    assert 1 == main(words)
    said = "".join(capsys.readouterr())
    assert "stored capabilities of QEMU 11.1 (not probed: emulators are not run for another root)" in said
    assert "Machine type 'pc-q35-99.2' is not in the" in " ".join(said.split())


def test_a_plan_needs_no_capabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The devices of a domain whose emulator has no known capabilities are planned; start would not run it."""
    domain = tmp_path / "s390x.xml"
    domain.write_text(DOMAIN.format("/nonexistent/qemu").replace("x86_64", "s390x").replace(" machine='pc'", ""))
    FakeHost.named("bcm5719", tmp_path / "host")
    words = ["plan", str(domain), "--root", str(tmp_path / "host"), "--json"]
    assert 0 == main(words)
    plan = json.loads(capsys.readouterr().out)
    assert (None, False, ["unsupported"]) == (
        plan["capabilities"],
        plan["can_start"],
        [finding["reason"] for finding in plan["findings"]],
    )
    assert 1 == main([*words, "--capabilities", "7.2"])


@pytest.mark.parametrize(
    "changes",
    [
        {"cpus": "qemu64"},
        {"devices": ["\x1b[31m"]},
        {"devices": [["vfio-pci"]]},
        {"version": "72"},
        {"version": [True, 2]},
        {"arch": "../x86_64"},
        {"properties": {}},
        {"machines": [{"name": "pc", "ram_id": 5}]},
        {"machines": [{"alias": "pc"}]},
        {"machines": [{"name": "pc", "extra": 1}]},
        {"arch": "aarch64"},
    ],
    ids=str,
)
def test_a_file_that_is_nearly_right_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    """Text instead of a list, invalid names, missing properties, another architecture: one error."""
    with pytest.raises(ConfigError):
        choose(None, "x86_64", choice=machine_file(tmp_path, "pc-q35-99.2", **changes))


def test_the_second_question_asks_no_one(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are kept for the same file; hostile content of the cache is asked for again and written anew."""
    monkeypatch.setattr(cache, "directory", lambda: str(tmp_path / "cache"))
    path = script(ANSWERING.format(greeting=GREETING))
    first = choose(path, "x86_64", choice="probe")
    monkeypatch.setattr(probing, "ask", lambda _binary: pytest.fail("it was asked again"))
    assert first.devices == choose(path, "x86_64", choice="probe").devices
    monkeypatch.undo()
    monkeypatch.setattr(cache, "directory", lambda: str(tmp_path / "cache"))
    (entry,) = (tmp_path / "cache").iterdir()
    kept = json.loads(entry.read_text())
    entry.write_text(json.dumps({**kept, "data": {**kept["data"], "devices": "abc"}}))
    assert first.devices == choose(path, "x86_64", choice="probe").devices
    assert kept == json.loads(entry.read_text())


def test_dots_in_a_link_are_the_kernels(place: Path) -> None:
    """'..' behind a link is the parent of where the link leads, so that directory has to be trusted too."""
    opened = place / "opened"
    (opened / "below").mkdir(parents=True)
    opened.chmod(0o777)
    (place / "link").symlink_to(opened / "below")
    (place / "qemu").symlink_to("link/../qemu")
    components = [str(component) for component in trust._components(str(place / "qemu"))]
    assert str(opened / "qemu") == components[-1]
    assert str(opened) in components
