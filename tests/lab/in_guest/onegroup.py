# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The seed's scenario and its refusals, on a card whose four functions are one IOMMU group.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import errnos
import refresh
from domains import SERIAL, guest_devices, hostdev, write_domain
from guestmonitor import is_running
from labhost import (
    NIC,
    NIC_DRIVER,
    NVME,
    PCI,
    UNSET,
    VFIO,
    all_drivers,
    check,
    children,
    command,
    driver,
    drivers,
    iommu_group,
    link_name,
    pyhostdev,
    pyhostdev_json,
    run_all,
    say,
    show,
    traces,
    wait_for,
)  # fmt: skip
from verbs import said

if TYPE_CHECKING:
    from collections.abc import Iterator

# In a guest, a QEMU of modules takes longer to answer than a machine that is busy may wait: its answers are stored
STORED = ("--qemu", os.environ["LAB_QEMU_VERSION"]) if os.environ.get("LAB_QEMU_VERSION") else ()
VFIO_DEVICE = "anon_inode:[vfio-device]"  # what a descriptor of an opened function links to

SPLIT = "".join([
    hostdev(NIC[0], function=0), hostdev(NIC[1], assigned="no"),
    hostdev(NIC[2], assigned="no"), hostdev(NIC[3], function=3),
])  # fmt: skip
ONLY_0_AND_3 = hostdev(NIC[0], function=0) + hostdev(NIC[3], function=3)


def serial() -> str:
    """Return what the guest has printed so far."""
    return SERIAL.read_text(errors="replace") if SERIAL.exists() else ""


def say_state(verb: subprocess.Popen[str]) -> None:
    """Print the last lines of a guest that did not do what we waited for, and what the children of ``start`` do."""
    for line in serial().splitlines()[-8:]:
        say(f"    guest: {line}")
    for pid in children(verb.pid):
        with suppress(OSError):
            name, _, words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            state, *_, user, kernel = words.split()[:13]
            links = sorted(filter(None, map(link_name, Path(f"/proc/{pid}/fd").iterdir())))
            say(f"    {name}): state {state}, {user} ticks in itself, {kernel} in the kernel, open: {' '.join(links)}")


@contextmanager
def started(domain: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``start`` beside us; whatever happens, it has ended afterwards."""
    SERIAL.unlink(missing_ok=True)
    options = (*options, *STORED)
    say(f"  $ pyhostdev start {' '.join([str(domain), *options])} &")
    with subprocess.Popen(
        command("start", domain, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as verb:
        try:
            yield verb
        except AssertionError:
            say_state(verb)
            raise
        finally:
            verb.terminate()
            output, _ = verb.communicate()
            for line in output.splitlines():
                say(f"    {line}")


def ended(verb: subprocess.Popen[str]) -> bool:
    """Tell whether ``start`` is over."""
    return verb.poll() is not None


def listed(verb: subprocess.Popen[str]) -> bool:
    """Tell whether the guest has printed its devices; a finished ``start`` never will."""
    return "GUEST-END" in serial() or ended(verb)


def qemu_of(verb: subprocess.Popen[str]) -> int | None:
    """Return the process id of the QEMU of a ``start`` once it has both functions open."""
    try:
        for pid in children(verb.pid):
            links = (link_name(fd) for fd in Path(f"/proc/{pid}/fd").iterdir())
            if list(links).count(VFIO_DEVICE) == 2:
                return pid
    except (FileNotFoundError, ProcessLookupError):
        pass  # a child has ended while we looked: the QEMU that is asked for its capabilities does
    return None


def wait_for_qemu(verb: subprocess.Popen[str]) -> int:
    """Wait until the guest has its functions, and return QEMU's process id."""
    wait_for(lambda: ended(verb) or qemu_of(verb), "QEMU opens the guest's functions")
    pid = qemu_of(verb)
    assert pid is not None, "start ended before the guest ran"
    return pid


def check_detached(owner: str) -> None:
    """All four functions are on vfio-pci, and the records name their owner."""
    show("during", NIC)
    check(dict.fromkeys(NIC, (VFIO, VFIO)), drivers(NIC), "all four functions are on vfio-pci")
    active = {device["address"]: device["owner"] for device in said("status")["active"]}
    check(dict.fromkeys(NIC, owner), active, "status lists all four as the guest's")


def check_home() -> None:
    """All four functions are on their driver, and no record is left."""
    show("after", NIC)
    check(dict.fromkeys(NIC, (NIC_DRIVER, UNSET)), drivers(NIC), "all four functions are back, overrides cleared")
    status = said("status")
    check(([], []), (status["active"], status["inactive"]), "status is empty")


def seed_scenario() -> None:
    """A guest gets functions 0 and 3 of a card of four; 1 and 2 leave the host and never reach it."""
    domain = write_domain("split", SPLIT)
    show("before", NIC)
    check(1, len({iommu_group(address) for address in NIC}), "the four functions are one IOMMU group")
    begin = time.monotonic()
    with started(domain) as verb:
        wait_for_qemu(verb)
        say(f"  the guest runs after {time.monotonic() - begin:.1f} s")
        check_detached("split")
        wait_for(lambda: listed(verb), "the guest lists its devices", 900)
        say(f"  it has listed its devices after {time.monotonic() - begin:.1f} s")
        wait_for(lambda: ended(verb), "the guest powers off and its devices are given back")
        say(f"  start ended after {time.monotonic() - begin:.1f} s")
    check(0, verb.returncode, "exit code of 'start'")
    say("  the guest's own listing:")
    guest = guest_devices(serial())
    for address, (class_, ids) in guest.items():
        say(f"    {address} {class_}: {ids}")
    nics = {address: ids for address, (class_, ids) in guest.items() if class_.startswith("02")}
    card = PCI / "devices" / NIC[0]
    ids = ":".join((card / name).read_text().strip().removeprefix("0x") for name in ("vendor", "device"))
    check({"00:04.0": ids, "00:04.3": ids}, nics, "the guest has functions 0 and 3 of one slot and no other NIC")
    check_home()


def undeclared_functions() -> None:
    """Without functions 1 and 2 in the XML the start is refused, both are named, and nothing is written."""
    domain = write_domain("only03", ONLY_0_AND_3)
    before = traces()
    for verb in ("plan", "start"):
        refusal = pyhostdev(verb, domain, expect=1)
        said = refusal.stdout + refusal.stderr
        check([True, True], [NIC[1] in said, NIC[2] in said], f"'{verb}' names functions 1 and 2")
        check(before, traces(), f"'{verb}' has touched no function of the host")
    findings = pyhostdev_json("plan", domain, expect=1)["findings"]
    missing = sorted(item["address"] for item in findings if item["reason"] == "incomplete-device")
    check(NIC[1:3], missing, "the plan's findings name the missing functions")
    check_home()


def killed_guest() -> None:
    """A guest whose QEMU is killed releases all four functions; start reports QEMU's failure."""
    with started(write_domain("killed", SPLIT, kind="stay")) as verb:
        pid = wait_for_qemu(verb)
        check_detached("killed")
        wait_for(lambda: ended(verb) or is_running("killed"), "the guest runs")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: ended(verb), "start notices the end of QEMU", 30)
    check(1, verb.returncode, "exit code of 'start'")
    check_home()


def interrupted_start() -> None:
    """SIGTERM to a start ends its guest and gives all four functions back."""
    with started(write_domain("interrupted", SPLIT, kind="stay")) as verb:
        wait_for_qemu(verb)
        show("during", NIC)
        verb.send_signal(signal.SIGTERM)
        wait_for(lambda: ended(verb), "start ends", 60)
    check(0, verb.returncode, "exit code of 'start'")
    check_home()


def prepare_and_release() -> None:
    """Prepare without a guest detaches all four, a second owner is refused, release gives them back."""
    domain = write_domain("split", SPLIT)
    pyhostdev("prepare", domain)
    check_detached("split")
    pyhostdev("prepare", write_domain("another", SPLIT), expect=1)
    check_detached("split")
    pyhostdev("release", domain)
    check_home()


def virtual_functions() -> None:
    """A VF is given alone: it is not a multifunction device, and its siblings and PF stay bound."""
    devices = {device["address"]: device for device in pyhostdev_json("list")}
    vfs = sorted(address for address, device in devices.items() if device["physfn"] == NVME[0])
    check(4, len(vfs), "the controller has four VFs")
    check([False] * 4, [devices[vf]["multifunction"] for vf in vfs], "no VF is a multifunction device")
    check(1, len({vf.rpartition(".")[0] for vf in [*vfs, NVME[0]]}), "they share the slot of their PF")
    domain = write_domain("onevf", hostdev(vfs[1], assigned=None))
    plan = pyhostdev_json("plan", domain)
    check(
        [vfs[1]],
        sorted({step["address"] for step in plan["steps"] if step["action"] == "detach"}),
        "the plan detaches that VF alone",
    )
    before = all_drivers()
    pyhostdev("prepare", domain)
    check({**before, vfs[1]: (VFIO, VFIO)}, all_drivers(), "that VF alone changed its driver")
    pyhostdev("release", domain)


def assigned_on_virtual_function() -> None:
    """assigned= on a VF is refused: it belongs to no multifunction device."""
    vf = (PCI / "devices" / NVME[0] / "virtfn0").readlink().name
    domain = write_domain("assignedvf", hostdev(vf, assigned="no"))
    pyhostdev("validate", domain, expect=1)
    refusal = pyhostdev("start", domain, expect=1).stderr
    check([True, True], [word in refusal for word in (vf, "not-multifunction")], "start names the VF and the reason")


def already_on_vfio() -> None:
    """A function that was on vfio-pci before stays there; the others get their drivers again."""
    device = PCI / "devices" / NIC[2]
    (device / "driver_override").write_text(VFIO)
    (device / "driver/unbind").write_text(NIC[2])
    (PCI / "drivers" / VFIO / "bind").write_text(NIC[2])
    before = all_drivers()
    domain = write_domain("split", SPLIT)
    pyhostdev("prepare", domain)
    check(dict.fromkeys(NIC, VFIO), {address: driver(address) for address in NIC}, "all four are on vfio-pci")
    pyhostdev("release", domain)
    check(before, all_drivers(), "function 2 is still on vfio-pci, the others are back")
    (device / "driver/unbind").write_text(NIC[2])
    (device / "driver_override").write_text("\n")
    (PCI / "drivers" / NIC_DRIVER / "bind").write_text(NIC[2])


STEPS = [
    errnos.same_answers,
    undeclared_functions,
    virtual_functions,
    assigned_on_virtual_function,
    already_on_vfio,
    prepare_and_release,
    interrupted_start,
    killed_guest,
    seed_scenario,
    refresh.refresh_equals_a_scan,  # last: a function that is removed and found again gets a group of its own
]


def clean_up() -> None:
    """Restore the host without the library, after a step that failed."""
    errnos.go_home(errnos.RealKernel())
    shutil.rmtree("/run/pyhostdev", ignore_errors=True)


if __name__ == "__main__":
    sys.exit(run_all(STEPS, clean_up))
