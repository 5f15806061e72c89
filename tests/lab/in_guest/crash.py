# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Killed anywhere: SIGKILL at a random moment of prepare, release, recover and start; recover brings all home.
"""

from __future__ import annotations

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

    def one(self, verb: str) -> None:
        """
        Kill one verb, recover, and look whether all came home or, untouched, is still the owner's.

        Raises:
            AssertionError: it did not.
        """
        if verb == "release":
            done(lambda: workers.prepare(self.domain))
        action = {
            "prepare": lambda: workers.prepare(self.domain),
            "release": lambda: workers.release(OWNER),
        }[verb]
        outcome = killed(action, self.durations[verb] * 1.05, self.rng)
        assert outcome.was_killed or outcome.error is None, f"{verb}: {outcome.text}"
        self._note(verb, outcome)
        if self.rng.random() < SECOND_KILL:
            second = killed(workers.recover, self.durations["recover"], self.rng)
            self.struck["recover killed, too"] += second.was_killed
        with workers.stopwatch(self.recoveries):
            recovered()
        self._finish()

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
    total = rounds(15, 300)
    state = _Rounds()
    for number in range(1, total + 1):
        verb = ("prepare", "release")[number % 2]
        try:
            state.one(verb)
        except AssertionError as err:
            raise AssertionError(f"round {number} ({verb}): {err}") from err
        if number % REPORT_EVERY == 0:
            say(f"  {number} of {total}")
    for where, times in sorted(state.struck.items()):
        say(f"    {times:4} x {where}")
    say(f"  recover took {workers.spread(state.recoveries)}")
    check(True, True, f"{total} of {total} rounds restored")


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
    """Kill a process that is no child of ours, and wait for its end."""
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "a killed QEMU ends", 30)
    os.close(pidfd)


def start_killed_beside_its_guest() -> None:
    """SIGKILL of start leaves the guest running and its devices to it; after its end recover --all restores."""
    domain = write_domain("survivor", workers.SPLIT, stay=True)
    child = Child(lambda: main(["start", str(domain)]))
    wait_for(lambda: (pid := qemu_of("survivor")) and has_group_open(pid), "QEMU opens the guest's functions", 120)
    child.kill()
    check(True, child.result().was_killed, "start is dead")
    pid = qemu_of("survivor")
    assert pid is not None
    for words in (["recover"], ["recover", "--all"]):
        records = pyhostdev_json(*words)["records"]
        check([(address, "kept") for address in NIC], [(r["what"], r["outcome"]) for r in records], "all are kept")
    check([True] * 4, [f"process {pid}" in r["message"] for r in records], "recover --all says that QEMU holds them")
    say(f"    {records[0]['message']}")
    check(True, has_group_open(pid), "the guest still has its functions")
    check(dict.fromkeys(NIC, VFIO), {address: driver(address) for address in NIC}, "all four stay on vfio-pci")
    end(pid)
    found = recovered(include_prepared=True)
    check([(address, "restored") for address in NIC], [(item[0], item[2]) for item in found], "all are restored")
    workers.assert_home()


def start_killed_anywhere() -> None:
    """SIGKILL at a random moment of start: with its guest gone, recover --all restores."""
    rng = workers.dice("start")
    struck: Counter[str] = Counter()
    total = rounds(0, 12)
    domain = write_domain("unlucky", workers.SPLIT, stay=True)
    for number in range(1, total + 1):
        killed(lambda: main(["start", str(domain)]), 6.0, rng)
        time.sleep(0.5)  # a QEMU that was forked is executed now
        pid = qemu_of("unlucky")
        struck["with its guest" if pid else f"without, {workers.on_vfio()} on vfio-pci"] += 1
        recovered()
        if pid is not None:
            assert workers.owners() == dict.fromkeys(NIC, "unlucky"), f"round {number}: not kept"
            end(pid)
        recovered(include_prepared=True)
        workers.assert_home()
    for where, times in sorted(struck.items()):
        say(f"    {times:4} x killed {where}")
    check(True, True, f"{total} of {total} rounds restored")
