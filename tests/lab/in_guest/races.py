# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Others at work on the same functions: a second manager, and a shell that writes whatever it likes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import errnos
import truth
import workers
from labhost import NIC, NIC_DRIVER, PCI, UNSET, VFIO, check, driver, drivers, say
from workers import Child, done, recovered, rounds

from pyhostdev import DeviceInUseError, PCIDeviceAddress, RefusedError
from pyhostdev.errors import HostdevError

if TYPE_CHECKING:
    from collections.abc import Callable

RIVALS = ("anna", "bert")


def _one_try(owner: str, rival: str, domain: Any, witness: int) -> str:
    """
    Prepare and release once; return what happened.

    Raises:
        AssertionError: both have the card, or the loser's error does not name the owner.
    """
    try:
        workers.prepare(domain)
    except (RefusedError, DeviceInUseError) as err:
        words = str(err)
        assert err.reason == "in-use", f"{err.reason}: {words}"
        # a holder that could not write its name within 50 ms is reported by its number
        assert rival in words or "is held by process " in words, f"{owner} gets the message: {words}"
        return "refused"
    fcntl.flock(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: the rival believes to have the card, too
    assert drivers(NIC) == workers.TAKEN, f"{owner} has {drivers(NIC)}"
    assert workers.owners() == dict.fromkeys(NIC, owner), f"{owner} has {workers.owners()}"
    fcntl.flock(witness, fcntl.LOCK_UN)
    workers.release(owner)
    return "had the card"


def _rivalry(owner: str, rival: str, total: int, path: str, rng: random.Random) -> dict[str, Any]:
    """Try so many times; return what happened how often, and how long a refusal took."""
    witness = os.open(path, os.O_RDWR)
    domain = workers.definition(owner)
    happened: Counter[str] = Counter()
    refusals: list[float] = []
    for number in range(total):
        began = time.monotonic()
        try:
            what = _one_try(owner, rival, domain, witness)
        except Exception as err:
            raise AssertionError(f"round {number}: {type(err).__name__}: {err}") from err
        happened[what] += 1
        if what == "refused":
            refusals.append(time.monotonic() - began)
        time.sleep(rng.uniform(0, 0.3))
    return {"happened": happened, "refusals": refusals}


def two_managers() -> None:
    """Two managers compete for the same four functions: never both own them, and the loser's error names the owner."""
    total = rounds(10, 200)
    rng = workers.dice("races")
    with tempfile.NamedTemporaryFile() as witness:
        children = []
        for owner, rival in (RIVALS, RIVALS[::-1]):
            own = random.Random(rng.random())
            children.append(Child(lambda o=owner, r=rival, d=own: _rivalry(o, r, total, witness.name, d)))  # type: ignore[misc]
        outcomes = [child.result(60 + 5 * total) for child in children]
    for owner, outcome in zip(RIVALS, outcomes, strict=True):
        assert outcome.error is None, f"{owner}: {outcome.text}"
        happened = ", ".join(f"{times} x {what}" for what, times in sorted(outcome.value["happened"].items()))
        say(f"  {owner}: {happened}; refusal {workers.spread(outcome.value['refusals'])}")
    check([], recovered(), "nothing is left behind")
    workers.assert_home()
    check([total] * 2, [sum(o.value["happened"].values()) for o in outcomes], f"2 x {total} rounds, never two owners")


class Foreign(NamedTuple):
    """One foreign write, with the time of the kernel's answer; None until then."""

    address: str
    path: str
    value: str
    ended: float | None = None
    answer: str = "ok"

    def is_after(self, moment: float) -> bool:
        """Tell whether the write may have changed something after a moment."""
        return self.answer == "ok" and (self.ended is None or self.ended > moment)


def _foreign_wish(rng: random.Random, address: str) -> Foreign:
    device, bound = f"devices/{address}", driver(address)
    path, value = rng.choice([
        (f"{device}/driver_override", rng.choice(["\n", NIC_DRIVER, "pci-stub", VFIO])),
        (f"drivers/{bound}/unbind" if bound else "drivers_probe", address),
        (f"drivers/{rng.choice([NIC_DRIVER, VFIO])}/bind", address),
        ("drivers_probe", address),
    ])  # fmt: skip
    return Foreign(address, path, value)


def _raw_write(path: str, value: str) -> str:
    try:
        fd = os.open(PCI / path, os.O_WRONLY)
    except OSError as err:
        return errno.errorcode[err.errno or 0]
    try:
        os.write(fd, value.encode())
    except OSError as err:
        return errno.errorcode[err.errno or 0]
    finally:
        os.close(fd)
    return "ok"


class Vandal:
    """A process that writes to the card's functions at random until it is stopped, and keeps a log."""

    def __init__(self, rng: random.Random, diary: Path, pause_s: float) -> None:
        self.diary = diary
        self._own = random.Random(rng.random())
        self._pause_s = pause_s
        self.pid = 0

    def __enter__(self) -> Vandal:
        self.diary.write_text("")
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                self._live()
            finally:
                os._exit(1)
        return self

    def _live(self) -> None:
        with self.diary.open("a") as diary:
            while True:
                time.sleep(self._own.uniform(0, 2 * self._pause_s))
                deed = _foreign_wish(self._own, self._own.choice(NIC))
                _enter(diary, deed)
                answer = _raw_write(deed.path, deed.value)
                _enter(diary, deed._replace(answer=answer, ended=time.monotonic()))

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def deeds(self) -> list[Foreign]:
        """Return what it did, and what it is doing."""
        entries = [Foreign(*json.loads(line)) for line in self.diary.read_text().splitlines() if line.endswith("]")]
        return [entry for entry in entries if entry.ended is not None] + entries[-1:]


def _enter(diary: TextIO, deed: Foreign) -> None:
    diary.write(json.dumps(deed) + "\n")
    diary.flush()


def _watched(action: Callable[[Any], object]) -> dict[str, Any]:
    """Do something with a manager; return its error if it had one, and when it last wrote to what."""
    last: dict[str, float] = {}

    def note(_path: str, _value: bytes, device: PCIDeviceAddress) -> None:
        last[str(device)] = time.monotonic()

    manager = workers.new_manager(written=note)
    try:
        action(manager)
        error = None
    except HostdevError as err:
        error = f"{err.reason or type(err).__name__}: {err}"
    return {"error": error, "last": last, "drivers": drivers(NIC), "ended": time.monotonic()}


def _records() -> dict[str, Any]:
    return {str(address): record for address, record in workers.new_manager().journal.read()[0].items()}


def _kept() -> dict[str, bool]:
    """Return the prepared functions that were on vfio-pci before: the vandal may have bound them there."""
    return {address: not record.moved for address, record in _records().items()}


def _originals() -> dict[str, Any]:
    """Return where the functions were when prepare began, which is where release promises to bring them."""
    found = {}
    for address, record in _records().items():
        override = record.original.override or UNSET
        found[address] = (record.original.driver, override) if record.moved else None
    return found


def _differing(expected: dict[str, Any], said: dict[str, Any], deeds: list[Foreign], since: str) -> list[str]:
    """
    Return the promises of a success (driver and override) that do not hold, without a later foreign write.

    A prepared device must be right until ``prepare`` returns, so the last of all our writes counts; a released device
    belongs to the host, so the last write to that device counts.
    """
    wrong = []
    for address in NIC:
        times = said["last"].values() if since == "all" else [said["last"].get(address, 0.0)]
        ours = max(times, default=0.0)
        later = any(deed.address == address and deed.is_after(ours) for deed in deeds)
        if not _is_kept_promise(expected[address], said["drivers"][address]) and not later:
            wrong.append(f"{address} is {said['drivers'][address]}")
    return wrong


def _is_kept_promise(promised: tuple[Any, Any] | None, found: tuple[Any, Any]) -> bool:
    """Compare; the override of a function that stays, or is not given back, is not promised."""
    if promised is None:
        return True
    return promised[0] == found[0] and promised[1] in (None, found[1])


class _Fight:
    """Rounds of prepare and release with a vandal at work."""

    def __init__(self) -> None:
        self.rng = workers.dice("vandal")
        self.domain = workers.definition("victim")
        self.happened: Counter[str] = Counter()
        self.deeds = 0

    def one(self, directory: Path) -> None:
        """
        Prepare and release while the vandal works, then tidy up.

        Raises:
            AssertionError: a success was wrong, or the records are.
        """
        pause_s = self.rng.choice([0.02, 0.1, 0.4])
        with Vandal(self.rng, directory / "diary", pause_s) as vandal:
            said = self._judged("prepare", vandal, "all")
        if said["error"] is None:
            assert workers.owners() == dict.fromkeys(NIC, "victim"), workers.owners()
            with Vandal(self.rng, directory / "diary", pause_s) as vandal:
                self._judged("release", vandal, "own")
        self._tidy()

    def _judged(self, verb: str, vandal: Vandal, since: str) -> dict[str, Any]:
        action: Callable[[Any], object] = {
            "prepare": lambda manager: manager.prepare(manager.host.plan(self.domain)),
            "release": lambda manager: manager.release("victim"),
        }[verb]
        promised = _originals() if verb == "release" else {}
        said: dict[str, Any] = done(lambda: _watched(action)).value
        said["drivers"] = {address: tuple(pair) for address, pair in said["drivers"].items()}
        deeds = vandal.deeds()
        self.deeds += len(deeds)
        if said["error"] is None:
            promised = promised or {address: (VFIO, None if is_kept else VFIO) for address, is_kept in _kept().items()}
            wrong = _differing(promised, said, deeds, since)
            assert not wrong, f"{verb} said success, and {wrong}; deeds {deeds[-8:]}, ours {said['last']}"
        self.happened[f"{verb}: {'success' if said['error'] is None else said['error'].partition(':')[0]}"] += 1
        return said

    def _tidy(self) -> None:
        """The vandal's changes are not ours to undo: restore the recorded state by hand, to close the records."""
        for address, record in _records().items():
            truth.move(address, record.original.driver, override=record.original.override or "\n")
        recovered(include_prepared=True)
        errnos.go_home(errnos.RealKernel())
        workers.assert_home()


def hostile_writer() -> None:
    """Another process writes overrides, binds and unbinds at random: every reported success is real."""
    total = rounds(5, 50)
    fight = _Fight()
    with tempfile.TemporaryDirectory() as directory:
        for number in range(1, total + 1):
            try:
                fight.one(Path(directory))
            except AssertionError as err:
                raise AssertionError(f"round {number}: {err}") from err
    for what, times in sorted(fight.happened.items()):
        say(f"    {times:4} x {what}")
    check(True, fight.deeds > 0, f"{total} rounds, {fight.deeds} foreign writes, no wrong success")
