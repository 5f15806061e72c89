# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Killed anywhere: SIGKILL at a random moment of prepare, release, recover and start; recover restores all.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import workers
from domains import write_domain
from labhost import NIC, VFIO, check, driver, drivers, link_name, pyhostdev_json, say, wait_for
from workers import Child, Outcome, done, recovered, rounds

from pyhostdev.tools import start  # noqa: F401
from pyhostdev.tools.main import main

if TYPE_CHECKING:
    from collections.abc import Callable

OWNER = "crash"
SECOND_KILL = 0.25  # how often recover is killed, too
REPORT_EVERY = 50


def killed(action: Callable[[], Any], longest_s: float, rng: random.Random) -> Outcome:
    """Run something in a child and kill it at a random moment; it may have ended by then."""
    child = Child(action)
    time.sleep(rng.uniform(0, longest_s))
    child.kill()
    return child.result()


def _durations(domain: Any) -> dict[str, float]:
    """Return how long the verbs take here."""
    took: dict[str, list[float]] = {"prepare": [], "release": [], "recover": []}
    for _ in range(rounds(1, 5)):
        took["prepare"].append(done(lambda: workers.prepare(domain)).seconds)
        took["release"].append(done(lambda: workers.release(OWNER)).seconds)
        done(lambda: workers.prepare(domain))
        took["recover"].append(done(lambda: workers.recover(include_prepared=True)).seconds)
    for verb, figures in took.items():
        say(f"  {verb} takes {workers.spread(figures)}")
    return {verb: max(figures) for verb, figures in took.items()}


class _Rounds:
    """Kills and recoveries, and a count of where the kills struck."""

    def __init__(self) -> None:
        self.rng = workers.dice("crash")
        self.domain = workers.definition(OWNER)
        self.durations = _durations(self.domain)
        self.struck: Counter[str] = Counter()
        self.recoveries: list[float] = []

    def one(self, verb: str) -> bool:
        """
        Kill one verb, recover, and check that all are restored or, untouched, still the owner's.

        Returns:
            False when the verb had ended before it was killed: it was faster than we thought.

        Raises:
            AssertionError: not everything is where it belongs.
        """
        if verb == "release":
            done(lambda: workers.prepare(self.domain))
        action = {
            "prepare": lambda: workers.prepare(self.domain),
            "release": lambda: workers.release(OWNER),
        }[verb]
        outcome = killed(action, self.durations[verb], self.rng)
        assert outcome.was_killed or outcome.error is None, f"{verb}: {outcome.text}"
        if not outcome.was_killed:
            self.durations[verb] = (self.durations[verb] + outcome.seconds) / 2
        self._note(verb, outcome)
        if self.rng.random() < SECOND_KILL:
            second = killed(workers.recover, self.durations["recover"], self.rng)
            self.struck["recover killed, too"] += second.was_killed
        with workers.stopwatch(self.recoveries):
            recovered()
        self._finish()
        return outcome.was_killed

    def _note(self, verb: str, outcome: Outcome) -> None:
        moved = workers.on_vfio()
        where = {0: "none on vfio-pci", len(NIC): "all on vfio-pci"}.get(moved, "some on vfio-pci")
        self.struck[f"{verb} {'killed' if outcome.was_killed else 'ended before'}, {where}"] += 1

    def _finish(self) -> None:
        owners = workers.owners()
        if owners:
            assert owners == dict.fromkeys(NIC, OWNER), f"a part is prepared: {owners}"
            assert drivers(NIC) == workers.TAKEN, f"prepared and not detached: {drivers(NIC)}"
            done(lambda: workers.release(OWNER))
        workers.assert_home()
        assert recovered() == [], "a second recover finds nothing"


def killed_anywhere() -> None:
    """SIGKILL at a random moment of prepare or release, sometimes of recover too: recover restores all."""
    total = rounds(12, 300)
    state = _Rounds()
    struck = 0
    for number in itertools.count(1):
        verb = ("prepare", "release")[number % 2]
        try:
            struck += state.one(verb)
        except AssertionError as err:
            raise AssertionError(f"round {number} ({verb}): {err}") from err
        if struck == total:
            break
        if number % REPORT_EVERY == 0:
            say(f"  {struck} of {total}")
    for where, times in sorted(state.struck.items()):
        say(f"    {times:4} x {where}")
    say(f"  recover took {workers.spread(state.recoveries)}")
    check(total, struck, f"{struck} of {struck} kills in the middle restored, and {number - struck} after the end")


def qemu_of(name: str) -> int | None:
    """Return the process of a guest's QEMU."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and f"guest={name}".encode() in _cmdline(entry):
            return int(entry.name)
    return None


def _cmdline(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def has_group_open(pid: int) -> bool:
    """Tell whether a process has a function's group open."""
    fds = (link_name(fd) for fd in Path(f"/proc/{pid}/fd").iterdir())
    return "anon_inode:[vfio-device]" in list(fds)


def end(pid: int) -> None:
    """Kill a process that is not our child, and wait for its end."""
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "a killed QEMU ends", 30)
    os.close(pidfd)


def start_killed_beside_its_guest() -> None:
    """SIGKILL of start leaves the guest running and its devices to it; after its end recover --all restores."""
    domain = write_domain("survivor", workers.SPLIT, kind="stay")
    child = Child(lambda: main(["start", str(domain)]))
    wait_for(lambda: (pid := qemu_of("survivor")) and has_group_open(pid), "QEMU opens the guest's functions", 120)
    child.kill()
    check(True, child.result().was_killed, "start is dead")
    pid = qemu_of("survivor")
    assert pid is not None
    for words in (["recover"], ["recover", "--all"]):
        records = pyhostdev_json(*words)["records"]
        functions = [r for r in records if not r["what"].startswith("guest-")]  # and what a user of QEMU's own got
        check([(address, "kept") for address in NIC], [(r["what"], r["outcome"]) for r in functions], "all are kept")
    check([True] * 4, [f"process {pid}" in r["message"] for r in functions], "recover --all says that QEMU holds them")
    say(f"    {functions[0]['message']}")
    check(True, has_group_open(pid), "the guest still has its functions")
    check(dict.fromkeys(NIC, VFIO), {address: driver(address) for address in NIC}, "all four stay on vfio-pci")
    end(pid)
    found = recovered(include_prepared=True)
    restored = [(item[0], item[2]) for item in found if not item[0].startswith("guest-")]
    check([(address, "restored") for address in NIC], restored, "all are restored")
    workers.assert_home()


def _after_start(name: str) -> str:
    """
    Recover after the death of a start, end its guest if there is one, recover all; return where it struck.

    Raises:
        AssertionError: not everything was restored.
    """
    time.sleep(0.5)  # a QEMU that was forked is executed now
    pid = qemu_of(name)
    where = "beside its guest" if pid else f"before, {workers.on_vfio()} functions on vfio-pci"
    recovered()
    if pid is not None:
        assert workers.owners() == dict.fromkeys(NIC, name), f"not kept: {workers.owners()}"
        end(pid)
    recovered(include_prepared=True)
    workers.assert_home()
    return where


def _time_of_start(domain: Path) -> float:
    """Return how long a start takes until QEMU has its functions open."""
    began = time.monotonic()
    child = Child(lambda: main(["start", str(domain)]))
    wait_for(lambda: (pid := qemu_of(domain.stem)) and has_group_open(pid), "QEMU opens the guest's functions", 120)
    took = time.monotonic() - began
    child.kill()
    child.result()
    _after_start(domain.stem)
    return took


def start_killed_anywhere() -> None:
    """SIGKILL at a random moment of start: with its guest gone, recover --all restores."""
    rng = workers.dice("start")
    struck: Counter[str] = Counter()
    total = rounds(2, 60)
    domain = write_domain("unlucky", workers.SPLIT, kind="stay")
    longest_s = _time_of_start(domain)
    for _ in range(total):
        killed(lambda: main(["start", str(domain)]), longest_s, rng)
        struck[_after_start("unlucky")] += 1
    for where, times in sorted(struck.items()):
        say(f"    {times:4} x killed {where}")
    check(total, sum(struck.values()), f"{total} of {total} rounds restored, functions open after {longest_s:.1f} s")
