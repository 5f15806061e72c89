# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A card that a running guest gets and lets go of, by a second process; row S9 on a real kernel.

A guest takes minutes to boot here, so a step looks at everything that its kind of guest can show.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import workers
from crash import end, qemu_of
from domains import RUN, hostdev, make_run, watched_devices, write_domain
from guestmonitor import ask, is_running
from labhost import (
    NIC,
    PCI,
    VFIO,
    all_drivers,
    check,
    drivers,
    pyhostdev,
    pyhostdev_json,
    run_all,
    say,
    show,
    traces,
    wait_for,
)
from onegroup import STORED, check_home, clean_up, ended, serial, started
from verbs import verb
from workers import HOME, TAKEN, Child

from pyhostdev.qemu.qemu_hotplug.connection import Monitor
from pyhostdev.tools.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOOT_S = 900
BY_IOMMUFD = os.environ.get("LAB_IOMMUFD") == "1"
NATIVE = ("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off")
AS_LIBVIRT = ("--libvirt", "12.8") if BY_IOMMUFD else ()  # an older one knows no iommufd
USER = "nobody"  # QEMU's; root may lock any amount of memory


def unit_file(name: str, *functions: int) -> Path:
    """Write the file of the card, or of some of its functions, and return it."""
    make_run()
    wanted = functions or range(len(NIC))
    card = "".join(hostdev(NIC[number], assigned="yes" if number in (0, 3) else "no") for number in wanted)
    if BY_IOMMUFD:
        card = card.replace("<driver name='vfio'/>", "<driver name='vfio' iommufd='yes'/>")
    path = RUN / f"{name}.xml"
    path.write_text(f"<devices>{card}\n</devices>\n")
    return path


def nics() -> set[str]:
    """Return the guest's network devices, as it lists them now."""
    return watched_devices(serial())


def phases() -> set[str]:
    """Return how far the functions are, as status tells it."""
    return {device["phase"] for device in pyhostdev_json("status")["active"]}


@contextmanager
def running_guest(
    name: str, kind: str = "watch", *, machine: str = "pc", arguments: tuple[str, ...] = ()
) -> Iterator[Any]:
    """Run a guest without host devices; one that boots Linux lists its devices every few seconds."""
    domain = write_domain(name, "", kind=kind, machine=machine, arguments=arguments)
    if not STORED:
        ask_the_emulator(domain)
    begin = time.monotonic()
    with started(domain, "--user", USER, *AS_LIBVIRT) as start:
        wait_for(lambda: ended(start) or is_running(name), "the guest runs", BOOT_S)
        say(f"  the guest runs after {time.monotonic() - begin:.0f} s")
        if kind == "watch":
            wait_for(lambda: ended(start) or "GUEST-NOW" in serial(), "the guest lists its devices", BOOT_S)
            say(f"  it lists its devices after {time.monotonic() - begin:.0f} s")
            check(set(), nics(), "it has no network device")
        check(False, ended(start), "the guest is still there")
        yield start


def ask_the_emulator(domain: Path) -> None:
    """Have the emulator's answers cached: on a busy machine it may need a second or a third deadline."""
    for _ in range(3):
        with suppress(AssertionError):
            verb("argv", domain)
            return


def plug(name: str, expect: int = 0) -> None:
    """Plug the card in."""
    verb("attach-device", name, unit_file("card"), *STORED, expect=expect)


def unplug(name: str, timeout_s: int = 120, expect: int = 0) -> None:
    """Take the card out."""
    verb("detach-device", name, unit_file("card"), "--timeout", str(timeout_s), *STORED, expect=expect)


def wait_for_nics(count: int) -> None:
    """Wait until the guest lists so many network devices."""
    begin = time.monotonic()
    wait_for(lambda: len(nics()) == count, f"the guest lists {count} network devices", 120)
    say(f"  the guest lists {count} network devices {time.monotonic() - begin:.1f} s later")


def wait_for_home() -> None:
    """Wait until the owner has given all four functions back."""
    begin = time.monotonic()
    wait_for(lambda: drivers(NIC) == HOME, "the owner gives all four back", 120)
    wait_for(lambda: workers.books() == ([], [], []), "no record is left", 60)
    say(f"  all four functions are on their driver {time.monotonic() - begin:.1f} s later, and no record is left")


# What a guest that boots Linux shows


def plugged_and_unplugged(name: str, slot: str) -> None:
    """A verb plugs functions 0 and 3 in and takes them out; all drivers are as before."""
    before = all_drivers()
    show("before", NIC)
    plug(name)
    show("plugged", NIC)
    check(TAKEN, drivers(NIC), "all four functions are on vfio-pci")
    wait_for_nics(2)
    check({f"{slot}.0", f"{slot}.3"}, nics(), "they are functions 0 and 3 of one slot")
    records, _ = workers.new_manager().journal.read()
    check({"plugged"}, {record.plug and record.plug.phase for record in records.values()}, "the records say plugged")
    unplug(name)
    show("unplugged", NIC)
    check(before, all_drivers(), "all drivers are as before")
    wait_for_nics(0)
    check(([], [], []), workers.books(), "no record is left")


def limits(name: str, slot: str) -> None:
    """QEMU's limit of locked memory is below the guest's size; it is raised for the card, and lowered after it."""
    pid = qemu_of(name)
    first = _limit(pid)
    check(True, first < (256 << 20), f"the limit of {first} bytes is too low for the guest's memory")
    plug(name)
    check(True, _limit(pid) >= 256 << 20, f"it was raised to {_limit(pid)}")
    check(True, _locked_kib(pid) >= 256 << 10, f"QEMU has locked {_locked_kib(pid)} KiB")
    wait_for_nics(2)
    unplug(name)
    check(first, _limit(pid), "the first limit is back")
    wait_for_nics(0)


def _limit(pid: int | None) -> int:
    line = next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "locked memory" in line)
    return sys.maxsize if line.split()[3] == "unlimited" else int(line.split()[3])


def _locked_kib(pid: int | None) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmLck:"))


def sibling_on_its_driver(name: str, slot: str) -> None:
    """Without functions 1 and 2, which stay on the host's driver, attach is refused, and nothing is written."""
    before = traces()
    verb("attach-device", name, unit_file("part", 0, 3), *STORED, expect=1)
    check(before, traces(), "no function of the host was touched")


def sibling_comes_back(name: str, slot: str) -> None:
    """A function whose host driver is bound again before QEMU opens the group: refused by QEMU, rolled back."""

    def meddle(number: int) -> None:
        if number == 0:
            device = PCI / "devices" / NIC[1]
            (device / "driver/unbind").write_text(NIC[1])
            (device / "driver_override").write_text("\n")
            (PCI / "drivers/e1000e/bind").write_text(NIC[1])

    outcome = Child(lambda: attach_with(name, meddle)).result(180)
    say(f"  attach: {outcome.value if outcome.error is None else outcome}")
    check((None, 3), (outcome.error, outcome.value), "attach was rolled back")
    check(HOME, drivers(NIC), "all four functions are on their driver")
    check([], workers.books()[0], "nothing is recorded")


def paused(name: str, slot: str) -> None:
    """A paused guest takes the card and cannot let go; once it runs, its owner gives the card back."""
    ask(name, "stop")
    plug(name)
    unplug(name, timeout_s=3, expect=5)
    check(TAKEN, drivers(NIC), "nothing was given back")
    ask(name, "cont")
    wait_for_home()
    wait_for_nics(0)


def attach_with(name: str, before_add: Callable[[int], None]) -> int:
    """Attach, and call something before each ``device_add``, with its number."""
    real, count = Monitor.device_add, iter(range(9))

    async def device_add(self: Monitor, properties: Any) -> None:
        before_add(next(count))
        await real(self, properties)
        before_add(next(count))

    Monitor.device_add = device_add  # type: ignore[method-assign]
    return main(["attach-device", name, str(unit_file("card")), *STORED])


def attacher_killed(name: str, slot: str) -> None:
    """SIGKILL before, between and after the two device_adds: recover finishes what can be, and takes back the rest."""
    for moment, where in enumerate(("before function 3", "after function 3", "before function 0", "after function 0")):

        def strike(number: int, moment: int = moment) -> None:
            if number == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        outcome = Child(lambda strike=strike: attach_with(name, strike)).result(180)  # type: ignore[misc]
        check(True, outcome.was_killed, f"attach-device was killed {where}")
        verb("recover")
        if moment == 3:
            check(TAKEN, drivers(NIC), "the card is in the guest")
            wait_for_nics(2)
            unplug(name)
        check(HOME, drivers(NIC), "the card is back on its host drivers")
        check(([], [], []), workers.books(), "no record is left")
        wait_for_nics(0)


def detacher_killed(name: str, slot: str) -> None:
    """SIGKILL after the guest was asked: the owner gives back."""
    plug(name)
    wait_for_nics(2)
    real = Monitor.device_del

    async def device_del(self: Monitor, device_id: str) -> None:
        await real(self, device_id)
        os.kill(os.getpid(), signal.SIGKILL)

    def detach() -> int:
        Monitor.device_del = device_del  # type: ignore[method-assign]
        return main(["detach-device", name, str(unit_file("card")), *STORED])

    check(True, Child(detach).result(180).was_killed, "detach-device was killed")
    wait_for_home()
    wait_for_nics(0)


def pulled_by_the_host(name: str, slot: str) -> None:
    """Unbound on the host, one function takes the whole card out of the guest; the owner gives it back."""
    plug(name)
    wait_for_nics(2)
    show("before the unbind", NIC)
    (PCI / "drivers" / VFIO / "unbind").write_text(NIC[3])
    wait_for_home()
    wait_for_nics(0)


def run_rules(name: str, slot: str, *rules: Callable[[str, str], None]) -> None:
    """
    Run some rules in one guest, one after the other; a failed one is reported, and the others still run.

    Rules that our arguments name beside their step are the only ones that run.

    Raises:
        AssertionError: with the names of the failed ones.
    """
    failed = []
    named = [rule for rule in rules if rule.__name__ in sys.argv]
    for rule in named or rules:
        begin = time.monotonic()
        say(f"-- {(rule.__doc__ or '').strip()}")
        try:
            rule(name, slot)
        except AssertionError as err:
            failed.append(rule.__name__)
            say(f"  FAILED {rule.__name__}: {err}")
            go_home(name)
        say(f"  [{time.monotonic() - begin:.1f} s]")
    assert not failed, f"failed: {', '.join(failed)}"


def go_home(name: str) -> None:
    """Take the card out of the guest after a rule that failed, as far as that is possible."""
    with suppress(AssertionError, OSError, ValueError):
        ask(name, "cont")
    with suppress(AssertionError):
        verb("recover")
    if drivers(NIC) != HOME:
        with suppress(AssertionError):
            unplug(name)


def i440fx() -> None:
    """A second process plugs the card into an i440fx guest; everything that may go wrong there."""
    with running_guest("pc") as start:
        run_rules(
            "pc", "00:02", plugged_and_unplugged, pulled_by_the_host, attacher_killed, paused, limits,
            sibling_on_its_driver, sibling_comes_back, detacher_killed,
        )  # fmt: skip
        owner_killed("pc", start)
    check_home()


def owner_killed(name: str, start: subprocess.Popen[str]) -> None:
    """Without its owner, a guest gets nothing more, and lets go of what it has."""
    say(f"-- {(owner_killed.__doc__ or '').strip()}")
    plug(name)
    wait_for_nics(2)
    start.kill()
    start.wait()
    unplug(name)
    check(HOME, drivers(NIC), "the card is back on its host drivers")
    plug(name, expect=1)
    pid = qemu_of(name)
    assert pid is not None
    end(pid)


def q35_acpi() -> None:
    """The same below a PCI Express root port, by ACPI; then QEMU is killed with the card in it."""
    with running_guest("port", machine="q35") as start:
        run_rules("port", "01:00", plugged_and_unplugged)
        plug("port")
        pid = qemu_of("port")
        assert pid is not None
        end(pid)
        wait_for(lambda: ended(start), "start notices the end of QEMU", 60)
    check(1, start.returncode, "exit code of 'start'")
    check_home()


def q35_native() -> None:
    """The same below a PCI Express root port whose slot the guest's own driver serves."""
    with running_guest("native", machine="q35", arguments=NATIVE):
        run_rules("native", "01:00", plugged_and_unplugged, attacher_killed, pulled_by_the_host)
    check_home()


def deaf_guest() -> None:
    """A guest without a driver for hot-plug is pending; its reset gives the card back, and so does its end."""
    with running_guest("deaf", "firmware"):
        for is_reset in (True, False):
            pyhostdev("attach-device", "deaf", unit_file("card"), *STORED)
            for _ in range(2):
                pyhostdev("detach-device", "deaf", unit_file("card"), "--timeout", "3", *STORED, expect=5)
                check(TAKEN, drivers(NIC), "nothing was given back")
            check({"unplugging"}, phases(), "status says unplugging")
            if is_reset:
                ask("deaf", "system_reset")
                wait_for_home()
    check_home()


def staged_in_a_deaf_guest() -> None:
    """Killed between both device_adds, with a deaf guest: recover leaves it pending, the guest's end gives it back."""
    with running_guest("staged", "firmware"):

        def strike(number: int) -> None:
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        check(True, Child(lambda: attach_with("staged", strike)).result(180).was_killed, "attach-device was killed")
        verb("recover")
        check(TAKEN, drivers(NIC), "nothing was given back")
        check({"stuck-staged"}, phases(), "status says stuck-staged")
    check_home()


def refused_and_repeated() -> None:
    """QEMU refuses the card, because a sibling is on its host driver; the same command succeeds afterwards."""
    with running_guest("again", "firmware"):
        sibling_comes_back("again", "")
        plug("again")
        check(TAKEN, drivers(NIC), "all four functions are on vfio-pci")
        check(True, is_running("again"), "the guest runs")
    check_home()


STEPS = [deaf_guest, staged_in_a_deaf_guest, refused_and_repeated, i440fx, q35_acpi, q35_native]


if __name__ == "__main__":
    sys.exit(run_all(STEPS, clean_up))
