# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A card that a running guest gets and lets go of, by a second process; row S9 on a real kernel.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from domains import RUN, hostdev, watched_devices, write_domain
from labhost import (
    NIC,
    NIC_DRIVER,
    PCI,
    UNSET,
    VFIO,
    all_drivers,
    check,
    command,
    drivers,
    pyhostdev,
    pyhostdev_json,
    run_all,
    say,
    show,
    wait_for,
)
from onegroup import check_home, clean_up, ended, serial, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CARD = "".join(hostdev(address, assigned="yes" if number in (0, 3) else "no") for number, address in enumerate(NIC))
BOOT_S = 900
KILLS = 12


def unit_file() -> Path:
    """Write the file of the card, and return it."""
    RUN.mkdir(exist_ok=True)
    path = RUN / "card.xml"
    path.write_text(f"<devices>{CARD}\n</devices>\n")
    return path


def nics() -> set[str]:
    """Return the guest's network devices, as it lists them now."""
    return watched_devices(serial())


@contextmanager
def watched_guest(name: str, **options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a guest without host devices that lists its devices every second."""
    domain = write_domain(name, "", watch=True, **options)  # type: ignore[arg-type]
    with started(domain) as verb:
        wait_for(lambda: ended(verb) or "GUEST-NOW" in serial(), "the guest lists its devices", BOOT_S)
        check(False, ended(verb), "the guest runs")
        check(set(), nics(), "it has no network device")
        yield verb


def plug_and_unplug(name: str, slot: str, **options: str) -> None:
    """Plug the card and unplug it, and look at the guest and at the host before, during and after."""
    with watched_guest(name, **options):
        before = all_drivers()
        pyhostdev("attach-device", name, unit_file())
        check(dict.fromkeys(NIC, (VFIO, VFIO)), drivers(NIC), "all four functions are on vfio-pci")
        wait_for(lambda: len(nics()) == 2, "the guest sees two more devices", 120)
        check({f"{slot}.0", f"{slot}.3"}, nics(), "they are functions 0 and 3 of one slot")
        phases = {device["phase"] for device in pyhostdev_json("status")["active"]}
        check({"plugged"}, phases, "status says plugged")
        pyhostdev("detach-device", name, unit_file(), "--timeout", "120")
        check(before, all_drivers(), "all drivers are as before")
        wait_for(lambda: not nics(), "the guest's list is as before", 60)
    check_home()


def plugged_and_unplugged() -> None:
    """A second process plugs the card into an i440fx guest, and unplugs it."""
    plug_and_unplug("plugged", "00:02")


def q35_port() -> None:
    """The same below a PCI Express root port."""
    plug_and_unplug("port", "01:00", machine="q35")


def deaf_guest() -> None:
    """A guest without a driver for hot-plug is pending; its end gives the card back."""
    with watched_guest("deaf", more="acpiphp.disable=1"):
        pyhostdev("attach-device", "deaf", unit_file())
        for _ in range(2):
            pyhostdev("detach-device", "deaf", unit_file(), "--timeout", "3", expect=5)
            check(dict.fromkeys(NIC, (VFIO, VFIO)), drivers(NIC), "nothing was given back")
        phases = {device["phase"] for device in pyhostdev_json("status")["active"]}
        check({"unplugging"}, phases, "status says unplugging")
    check_home()


def attacher_killed() -> None:
    """Killed at a random moment, an attach leaves the card whole in the guest, or home, after a recover."""
    chance = random.Random(14)
    with watched_guest("killed"):
        for _ in range(KILLS):
            attacher = subprocess.Popen(command("attach-device", "killed", unit_file()), stderr=subprocess.DEVNULL)
            time.sleep(chance.uniform(0.2, 6))
            attacher.send_signal(signal.SIGKILL)
            attacher.wait()
            pyhostdev("recover")
            bound = {name for name, _ in drivers(NIC).values()}
            check(1, len(bound), "the card is whole")
            if bound == {VFIO}:
                pyhostdev("detach-device", "killed", unit_file(), "--timeout", "120")
            check(dict.fromkeys(NIC, (NIC_DRIVER, UNSET)), drivers(NIC), "the card is home")
    check_home()


def owner_killed() -> None:
    """Without its owner, a guest gets nothing more, and lets go of what it has."""
    with watched_guest("orphan") as verb:
        pyhostdev("attach-device", "orphan", unit_file())
        wait_for(lambda: len(nics()) == 2, "the guest sees two more devices", 120)
        verb.kill()
        verb.wait()
        pyhostdev("detach-device", "orphan", unit_file(), "--timeout", "120")
        check(dict.fromkeys(NIC, (NIC_DRIVER, UNSET)), drivers(NIC), "the card is home")
        pyhostdev("attach-device", "orphan", unit_file(), expect=1)
        subprocess.run(["pkill", "-f", "guest=orphan"], check=False)  # the lab's own guest, in its own machine
    check_home()


def pulled_by_the_host() -> None:
    """Unbound on the host, one function takes the whole card out of the guest; the owner gives it back."""
    with watched_guest("pulled"):
        pyhostdev("attach-device", "pulled", unit_file())
        wait_for(lambda: len(nics()) == 2, "the guest sees two more devices", 120)
        show("before the unbind", NIC)
        (PCI / "drivers" / VFIO / "unbind").write_text(NIC[3])
        home = dict.fromkeys(NIC, (NIC_DRIVER, UNSET))
        wait_for(lambda: drivers(NIC) == home, "the owner gives all four back", 120)
        say("  the card is home without another command")
    check_home()


STEPS = [plugged_and_unplugged, q35_port, deaf_guest, attacher_killed, owner_killed, pulled_by_the_host]


if __name__ == "__main__":
    sys.exit(run_all(STEPS, clean_up))
