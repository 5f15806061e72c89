# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Truthful reports: cases where the plain sequence of writes reports success but leaves a wrong state, and devices with
an unusual original state.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import workers
from domains import hostdev
from errnos import RealKernel
from labhost import NIC, NIC_DRIVER, NVME, PCI, UNSET, VFIO, all_drivers, check, driver, drivers, say, traces
from workers import CARD, Child, done, recovered

from pyhostdev import PCIDeviceAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

STUB = "pci-stub"  # takes any function with an override for it; not a host driver here
EDU = "0000:00:06.0"
KERNEL = RealKernel()
DRIVERCTL = Path(__file__).parents[3] / ".lab/driverctl/usr/sbin/driverctl"


def write(path: str, value: str) -> None:
    """
    Write as a shell does.

    Raises:
        AssertionError: the kernel refused.
    """
    answer = KERNEL.write(path, value.encode())
    assert answer == "ok", f"'{value}' to {path}: {answer}"


def move(address: str, name: str | None, *, override: str = "\n") -> None:
    """Bind a function to a driver by hand, and leave an override behind."""
    now = driver(address)
    if now != name:
        write(f"devices/{address}/driver_override", name or "\n")
        if now is not None:
            write(f"drivers/{now}/unbind", address)
        if name is not None:
            write(f"drivers/{name}/bind", address)
    write(f"devices/{address}/driver_override", override)


def _modprobe(*words: str) -> None:
    subprocess.run(["modprobe", *words], check=True)


def functions_with_vfs() -> None:
    """A PF with VFs is refused before its driver is touched, with and without a domain."""
    domain = workers.definition("pf", hostdev(NVME[0], assigned=None))
    before = traces()
    outcome = Child(lambda: workers.prepare(domain)).result()
    check("RefusedError", outcome.error, "prepare is refused")
    say(f"    {outcome.text}")
    check(True, NVME[0] in outcome.text, "it names the PF")
    reasons = {finding.reason for finding in workers.new_manager().host.plan(domain).findings}
    check(True, "pf-with-vfs" in reasons, "the reason is pf-with-vfs")
    outcome = Child(lambda: workers.new_manager().nodedev_detach(PCIDeviceAddress.parse(NVME[0]))).result()
    check(True, outcome.error is not None, "nodedev-detach is refused, too")
    say(f"    {outcome.text}")
    check(before, traces(), "no function of the host was touched")


@contextmanager
def _dynamic_id() -> Iterator[None]:
    """Have the card's id on vfio-pci, which is asked before the host's driver: the usual trap."""
    card = PCI / "devices" / NIC[0]
    ids = " ".join((card / name).read_text().strip().removeprefix("0x") for name in ("vendor", "device"))
    _modprobe("-r", NIC_DRIVER)  # what is registered later is asked later
    _modprobe(NIC_DRIVER)
    write(f"drivers/{VFIO}/new_id", ids)
    try:
        yield
    finally:
        write(f"drivers/{VFIO}/remove_id", ids)


def dynamic_id() -> None:
    """With a dynamic id on vfio-pci every function is bound to its driver, where a plain probe would bind vfio-pci."""
    with _dynamic_id():
        check(workers.HOME, drivers(NIC), "all four are on their driver")
        write(f"drivers/{NIC_DRIVER}/unbind", NIC[0])
        write("drivers_probe", NIC[0])
        check(VFIO, driver(NIC[0]), "the trap is set: a probe gives the function to vfio-pci")
        move(NIC[0], NIC_DRIVER)
        done(lambda: workers.prepare(workers.definition("dynamic")))
        check(workers.TAKEN, drivers(NIC), "all four are on vfio-pci")
        done(lambda: workers.release("dynamic"))
        workers.assert_home()
        check(workers.HOME, drivers(NIC), "release brought them to their driver")


@contextmanager
def _without_vfio(*, blacklisted: bool) -> Iterator[None]:
    """Unload vfio-pci; forbid it to modprobe, or take it out of the list of modules there are."""
    (release,) = (path for path in Path("/lib/modules").iterdir() if (path / "modules.dep").exists())
    listing, config = release / "modules.dep", Path("/etc/modprobe.d/lab.conf")
    whole = listing.read_text()
    _modprobe("-r", VFIO)
    if blacklisted:
        config.parent.mkdir(exist_ok=True)
        config.write_text("blacklist vfio-pci\n")
    else:
        listing.write_text("".join(f"{line}\n" for line in whole.splitlines() if "/vfio-pci.ko" not in line))
    try:
        yield
    finally:
        config.unlink(missing_ok=True)
        listing.write_text(whole)
        _modprobe(VFIO)


def missing_module() -> None:
    """If vfio-pci is missing or prohibited, prepare reports it and has touched nothing."""
    domain = workers.definition("moduleless")
    before = traces()
    for blacklisted in (False, True):
        with _without_vfio(blacklisted=blacklisted):
            outcome = Child(lambda: workers.prepare(domain)).result()
            words = "prohibited" if blacklisted else "absent"
            check(True, outcome.error is not None, f"prepare fails with vfio-pci {words}")
            say(f"    {outcome.error}: {outcome.text}")
            check(True, VFIO in outcome.text, "its sentence names the module")
            check(before, traces(), "no function of the host was touched")
            check(([], [], []), workers.books(), "no record is left")
    done(lambda: workers.prepare(domain))
    done(lambda: workers.release("moduleless"))
    _modprobe("-r", VFIO)
    done(lambda: workers.prepare(domain))
    check(workers.TAKEN, drivers(NIC), "a module that is only unloaded is loaded")
    done(lambda: workers.release("moduleless"))
    workers.assert_home()


def _meddled(moment: int, name: str) -> None:
    """Prepare, while another tool takes the first function away after the n-th write."""
    writes = 0

    def meddle(_path: str, _value: bytes, _device: PCIDeviceAddress) -> None:
        nonlocal writes
        writes += 1
        if writes == moment:
            move(NIC[0], name)

    manager = workers.new_manager(written=meddle)
    manager.prepare(manager.host.plan(workers.definition("meddled")))


def rebound_in_the_middle() -> None:
    """A driver that another tool binds in the middle makes prepare fail or release report it; no report is wrong."""
    for moment in (3, 4, 12):  # after the first function's bind, in the middle, after the last bind
        outcome = Child(lambda m=moment: _meddled(m, NIC_DRIVER)).result()  # type: ignore[misc]
        check(True, outcome.error is not None, f"prepare fails when function 0 is taken after write {moment}")
        say(f"    {outcome.error}: {outcome.text}")
        recovered()
        workers.assert_home()
    done(lambda: workers.prepare(workers.definition("meddled")))
    _modprobe(STUB)
    move(NIC[2], STUB)
    outcome = Child(lambda: workers.release("meddled")).result()
    check("OperationError", outcome.error, "release reports the function that another tool has taken")
    say(f"    {outcome.text}")
    check([True, True], [word in outcome.text for word in (NIC[2], STUB)], "it names function and driver")
    check((STUB, UNSET), drivers(NIC)[NIC[2]], "the foreign driver is not fought")
    check({NIC[2]: "meddled"}, workers.owners(), "the others are back, and the records have this one")
    move(NIC[2], VFIO, override=VFIO)
    done(lambda: workers.release("meddled"))
    workers.assert_home()


def overrides_of_driverctl() -> None:
    """A driver saved by driverctl is reported by the plan, restored after a guest, and only driverctl undoes it."""
    if not DRIVERCTL.exists():
        say("  driverctl could not be fetched: left out")
        return
    _modprobe(STUB)
    _modprobe(VFIO)
    for address, name in ((NIC[1], VFIO), (NIC[2], STUB)):
        subprocess.run(["bash", DRIVERCTL, "set-override", address, name], check=True)
    before = all_drivers()
    kept = {NIC[1]: (VFIO, VFIO), NIC[2]: (STUB, STUB)}
    check(kept, {address: before[address] for address in kept}, "driverctl has given two functions to two stubs")
    plan = workers.new_manager().host.plan(workers.definition("kept"))
    told = [(finding.reason, str(finding.address)) for finding in plan.findings]
    check([("driverctl", address) for address in kept], told, "the plan names both")
    done(lambda: workers.prepare(workers.definition("kept")))
    check(workers.TAKEN, drivers(NIC), "all four are on vfio-pci")
    done(lambda: workers.release("kept"))
    check(before, all_drivers(), "release brought each to where driverctl keeps it")
    check([(NIC[1], "kept")], [(what, outcome) for what, _, outcome, *_ in recovered()], "recover knows whose it is")
    outcome = Child(lambda: workers.new_manager().nodedev_reattach(CARD[1])).result()
    check(True, "driverctl" in outcome.text, "reattach names driverctl")
    for address in kept:
        subprocess.run(["bash", DRIVERCTL, "unset-override", address], check=True)
    workers.assert_home()


def _round_trip(addresses: list[str]) -> None:
    """
    Prepare and release some functions, each for a domain, and detach and reattach each without a domain.

    Raises:
        AssertionError: a function of the host is not as it was.
    """
    before = all_drivers()
    hostdevs = "".join(hostdev(address, assigned=None) for address in addresses)
    domain = workers.definition("odd", hostdevs)
    done(lambda: workers.prepare(domain))
    assert {VFIO} == {driver(address) for address in addresses}
    done(lambda: workers.release("odd"))
    check(before, all_drivers(), f"{len(addresses)} functions are as they were after prepare and release")
    device = PCIDeviceAddress.parse(addresses[0])
    done(lambda: workers.new_manager().nodedev_detach(device))
    assert driver(addresses[0]) == VFIO
    done(lambda: workers.new_manager().nodedev_reattach(device))
    check(before, all_drivers(), "one is after detach and reattach, too")


def odd_originals() -> None:
    """VFs that nothing probes by itself, and a driver other than the override: all come back as they were."""
    _modprobe(STUB)
    check("0", (PCI / "devices" / NVME[0] / "sriov_drivers_autoprobe").read_text().strip(), "VFs are not probed")
    vfs = sorted(path.readlink().name for path in (PCI / "devices" / NVME[0]).glob("virtfn*"))
    try:
        move(vfs[0], STUB)
        check({vfs[0]: (STUB, UNSET), vfs[1]: (None, UNSET)}, drivers(vfs[:2]), "a VF with a driver and one without")
        _round_trip(vfs[:1])
        _round_trip(vfs[1:2])
        move(NIC[1], NIC_DRIVER, override=VFIO)
        move(NIC[2], NIC_DRIVER, override="nobody")
        move(NIC[3], None, override=VFIO)
        say("  " + " ".join(f"{a}={name or '-'}/{override}" for a, (name, override) in drivers(NIC).items()))
        _round_trip([str(address) for address in CARD])
    finally:
        move(vfs[0], None)
        for address in NIC[1:]:
            move(address, NIC_DRIVER)
