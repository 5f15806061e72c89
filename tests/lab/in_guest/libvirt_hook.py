# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The hook beside a real libvirtd: starts that it refuses, starts that run, a daemon that is killed, and node devices.

LAB_LIBVIRT names a Debian root with libvirt, QEMU and this machine's version of Python; without it, libvirtd is the
machine's own. What is written to either stays in the host's memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onegroup
from labhost import (
    NIC,
    NIC_DRIVER,
    NVME,
    UNSET,
    VFIO,
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
from verbs import verb

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from libvirtd import LOG, Answer, Libvirtd, canonical, enter, guest, hostdev, virsh

GUEST = "split"
RUN = Path("/run/lab-libvirt")
GIVEN, KEPT = (NIC[0], NIC[3]), (NIC[1], NIC[2])
HOME = dict.fromkeys(NIC, (NIC_DRIVER, UNSET))
AWAY = dict.fromkeys(NIC, (VFIO, VFIO))


def enter_root(root: str) -> None:
    """Go into the root of libvirt, with the modules of the running kernel."""
    modules = f"/lib/modules/{os.uname().release}"
    os.makedirs(f"{root}/lib/modules", exist_ok=True)
    os.symlink(os.environ["LAB_KERNEL"] + modules, root + modules)
    enter(root, "/run", "/lab-job", os.environ["LAB_KERNEL"])


def start_udev() -> None:
    """Run udev of libvirt's root: libvirt knows node devices from its database."""
    os.environ["SYSTEMD_IGNORE_CHROOT"] = "1"
    for words in ("/lib/systemd/systemd-udevd --daemon", "udevadm trigger", "udevadm settle -t 300"):
        subprocess.run(words.split(), check=True)


def four(given: str, kept: str) -> Path:
    """Write the guest that gets functions 0 and 3 and keeps 1 and 2; return its path."""
    devices = [hostdev(address, managed=given) for address in GIVEN]
    devices += [hostdev(address, managed=kept, kept=True) for address in KEPT]
    path = RUN / f"{given}-{kept}.xml"
    path.write_text(guest(*devices, name=GUEST))
    return path


def asked(*words: object, expect: int = 0) -> Answer:
    """Ask virsh, print its answer and check its exit code."""
    answer = virsh(*words)
    say(f"  $ virsh {' '.join(map(str, words))}  [{answer.code}]")
    for line in answer.err.splitlines():
        say(f"    {line}")
    check(expect, answer.code, f"exit code of 'virsh {words[0]}'")
    return answer


@contextmanager
def running(path: Path) -> Iterator[None]:
    """A guest of libvirt, from its start to its end."""
    asked("create", path)
    show("during", NIC)
    try:
        yield
    finally:
        asked("destroy", GUEST)
        try:
            wait_for(lambda: drivers(NIC) == HOME, "all four functions are on their host driver")
        except AssertionError:
            say(f"    {drivers(NIC)}")
            say(LOG.read_text())
            raise


def forget() -> None:
    """
    Let libvirtd forget what it once gave to a guest as managed='no': it takes that for detached by its user.

    It would not give such a function back after a guest with managed='yes', although the hook had done so before.
    """
    DAEMON.stop()
    DAEMON.start()


def owned() -> dict[str, str]:
    """Return what the hook has prepared, with its owners."""
    return {record["address"]: record["owner"] for record in pyhostdev_json("status")["active"]}


def devices_of_qemu() -> list[str]:
    """Return the host addresses in the command line of the guest's QEMU."""
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        words = line.read_bytes().decode().split("\0")
        if f"guest={GUEST}" in " ".join(words) and "qemu" in words[0]:
            return [address for address in NIC if any("vfio-pci" in word and address in word for word in words)]
    return []


def refused() -> None:
    """Functions 1 and 2 are not declared: virsh and the log have the words of the plan, no function is touched."""
    path = RUN / "refused.xml"
    path.write_text(guest(*(hostdev(address, managed="no") for address in GIVEN), name=GUEST))
    before = traces()
    answer = asked("create", path, expect=1)
    for address in KEPT:
        check(True, address in answer.err, f"the error names {address}")
    check(True, "group-not-viable" in LOG.read_text() or "incomplete-device" in LOG.read_text(), "libvirt's log, too")
    check(before, traces(), "no function of the host was touched")
    check({}, owned(), "nothing is recorded")


def unmanaged() -> None:
    """managed='no': the hook detaches all four, QEMU gets 0 and 3, and the hook gives all four back."""
    with running(four("no", "no")):
        check(AWAY, drivers(NIC), "all four are on vfio-pci")
        check(dict.fromkeys(NIC, GUEST), owned(), "they have the guest's name")
        check(list(GIVEN), devices_of_qemu(), "QEMU has functions 0 and 3")
    check({}, owned(), "nothing is recorded at the end")


def managed() -> None:
    """managed='yes': libvirt detaches all four, and the hook only plans."""
    forget()
    with running(four("yes", "yes")):
        check(VFIO, drivers(NIC)[NIC[0]][0], "the first function is on vfio-pci")
        check({}, owned(), "the hook has recorded nothing")
        check(list(GIVEN), devices_of_qemu(), "QEMU has functions 0 and 3")


def mixed() -> None:
    """Given functions are libvirt's, kept ones the hook's."""
    forget()
    with running(four("yes", "no")):
        check(dict.fromkeys(KEPT, GUEST), owned(), "the hook has the kept ones")
        check(list(GIVEN), devices_of_qemu(), "QEMU has functions 0 and 3")
    check({}, owned(), "nothing is recorded at the end")


def killed_beside_its_guest() -> None:
    """SIGKILL to libvirtd while the guest runs: a new one finds the guest, and its end gives everything back."""
    with running(four("no", "no")):
        DAEMON.kill()
        DAEMON.start()
        check("running", asked("domstate", GUEST).out.strip(), "state of the guest for the new daemon")
        check(dict.fromkeys(NIC, GUEST), owned(), "the functions are still the guest's")
    check({}, owned(), "nothing is recorded at the end")


def killed_in_the_middle() -> None:
    """SIGKILL to libvirtd after the hook: the functions stay the guest's, its next start uses them."""
    path = four("no", "no")

    def look() -> None:
        check(AWAY, drivers(NIC), "all four are on vfio-pci without a guest")
        check(dict.fromkeys(NIC, GUEST), owned(), "they have the guest's name")

    DAEMON.killed_in_a_start(path, look)
    with running(path):
        check(list(GIVEN), devices_of_qemu(), "QEMU has functions 0 and 3")
    DAEMON.killed_in_a_start(path, look)
    pyhostdev("release", "--owner", GUEST)
    check(HOME, drivers(NIC), "release gives them back without a start")


def node_devices() -> None:
    """show --xml prints what libvirt prints, for each function that both know."""
    names = asked("nodedev-list", "--cap", "pci").out.split()
    check(True, {f"pci_{name.translate(str.maketrans(':.', '__'))}" for name in (*NIC, *NVME)} <= set(names), "known")
    for name in names:
        ours = verb("show", name, "--xml").decode()
        check(canonical(virsh("nodedev-dumpxml", name).out), canonical(ours), name)


STEPS = [refused, unmanaged, managed, mixed, killed_beside_its_guest, killed_in_the_middle, node_devices]


def destroy() -> None:
    """Leave no guest of a failed step, and restore the functions."""
    DAEMON.hold.unlink(missing_ok=True)
    virsh("destroy", GUEST)
    onegroup.clean_up()


if __name__ == "__main__":
    if os.environ.get("LAB_LIBVIRT"):
        enter_root(os.environ["LAB_LIBVIRT"])
    start_udev()
    RUN.mkdir()
    DAEMON = Libvirtd(RUN)
    pyhostdev("hook", "--install")
    DAEMON.stop()
    DAEMON.start()
    sys.exit(run_all(STEPS, destroy))
