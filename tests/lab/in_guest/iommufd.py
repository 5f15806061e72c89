# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The seed's guest by iommufd: QEMU has open nodes and no access to them, and a start that fails hangs nothing.

Needs a kernel with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV, and QEMU 10.0 or later (``LAB_QEMU``). On another kernel
the refusal alone is looked at.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import errnos
import refresh
from domains import guest_devices, write_domain
from guestmonitor import is_running
from labhost import (
    NIC,
    NIC_DRIVER,
    PCI,
    UNSET,
    check,
    children,
    drivers,
    iommu_group,
    link_name,
    pyhostdev,
    pyhostdev_json,
    run_all,
    say,
    traces,
    wait_for,  # fmt: skip
)
from onegroup import (
    SPLIT,
    check_detached,
    check_home,
    clean_up,
    ended,
    listed,
    seed_scenario,
    serial,
    started,
    undeclared_functions,
)
from verbs import said, verb

NODES = Path("/dev/vfio/devices")
AS_LIBVIRT = ("--libvirt", "12.8")


def by_iommufd(name: str, *, emulator: str | None = None, stay: bool = False) -> Path:
    """Write the seed's domain with ``<iommufd enabled='yes'/>``."""
    path = write_domain(name, SPLIT, kind="stay" if stay else "list")
    text = path.read_text().replace("<vcpu>", "<iommufd enabled='yes'/><vcpu>")
    path.write_text(re.sub("<emulator>.*</emulator>", f"<emulator>{emulator}</emulator>", text) if emulator else text)
    return path


def has_iommufd() -> bool:
    """Tell whether the kernel has iommufd, as a module or loaded."""
    return subprocess.run(["modprobe", "iommufd"], capture_output=True).returncode == 0 and Path("/dev/iommu").exists()


def open_nodes(pid: int | str) -> list[str]:
    """Return the nodes of functions that a process has open."""
    links = (link_name(fd) for fd in Path(f"/proc/{pid}/fd").iterdir())
    return [link for link in links if link is not None and link.startswith("vfio")]


def qemu_of(start: subprocess.Popen[str]) -> int | None:
    """Return the process id of the QEMU of a ``start`` once it has pinned the guest's memory."""
    try:
        for pid in children(start.pid):
            if len(open_nodes(pid)) == 2 and pinned_kib(pid) > 0:
                return pid
    except (FileNotFoundError, ProcessLookupError):
        pass  # a child has ended meanwhile
    return None


def pinned_kib(pid: int | str) -> int:
    """Return the memory that a process has pinned; a privileged QEMU is not charged for it, so VmLck stays 0."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmPin:"))


def wait_for_qemu(start: subprocess.Popen[str]) -> int:
    """Wait until the guest has its functions, and return QEMU's process id."""
    wait_for(lambda: ended(start) or qemu_of(start), "QEMU binds the guest's functions")
    pid = qemu_of(start)
    assert pid is not None, "start ended before the guest ran"
    return pid


def seed_by_iommufd() -> None:
    """The guest gets functions 0 and 3; QEMU has two nodes open, the starter none, and their owner is still root."""
    domain = by_iommufd("byiommufd")
    with started(domain, *AS_LIBVIRT) as start:
        pid = wait_for_qemu(start)
        check_detached("byiommufd")
        check_nodes()
        check([], open_nodes(start.pid), "the starter has no node open")
        owners = {(path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) for path in NODES.iterdir()}
        check({(0, 0o600)}, owners, "the nodes are root's with mode 0600")
        say(f"  QEMU has pinned {pinned_kib(pid)} KiB")
        wait_for(lambda: listed(start), "the guest lists its devices", 900)
        wait_for(lambda: ended(start), "the guest powers off and its devices are given back")
    check(0, start.returncode, "exit code of 'start'")
    nics = [address for address, (class_, _) in guest_devices(serial()).items() if class_.startswith("02")]
    check(["00:04.0", "00:04.3"], nics, "the guest has functions 0 and 3 of one slot and no other NIC")
    check_home()


def check_nodes() -> None:
    """What show says about each function's nodes is what the kernel has."""
    for address in NIC:
        node = next((PCI / "devices" / address / "vfio-dev").iterdir()).name
        expected = {f"/dev/vfio/{iommu_group(address)}", f"/dev/vfio/devices/{node}"}
        check(expected, set(said("show", address)["vfio_nodes"]), f"nodes of {address}")


def beside_a_starter_that_was_killed() -> None:
    """SIGKILL to start: recover leaves the running guest its functions, and names the holder; then all are restored."""
    with started(by_iommufd("orphan", stay=True), *AS_LIBVIRT) as start:
        pid = wait_for_qemu(start)
        start.kill()
        wait_for(lambda: ended(start), "start is dead")
        before = traces()
        functions = [record for record in said("recover", "--all")["records"] if record["what"] in NIC]
        check([(address, "kept") for address in NIC], [(r["what"], r["outcome"]) for r in functions], "all are kept")
        check([True] * 4, [f"process {pid}" in record["message"] for record in functions], "recover names QEMU")
        check(before, traces(), "no function was touched")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{pid}/exe").exists(), "QEMU is dead")
    verb("recover", "--all")
    check_home()


def killed_guest() -> None:
    """A guest whose QEMU is killed releases all four functions."""
    with started(by_iommufd("killed", stay=True), *AS_LIBVIRT) as start:
        pid = wait_for_qemu(start)
        wait_for(lambda: ended(start) or is_running("killed"), "the guest runs")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: ended(start), "start notices the end of QEMU", 30)
    check(1, start.returncode, "exit code of 'start'")
    check_home()


def start_that_fails() -> None:
    """An emulator that ends at once: all is rolled back within seconds, and no unbind waits for our own nodes."""
    begin = time.monotonic()
    pyhostdev("start", by_iommufd("fails", emulator="/bin/false"), *AS_LIBVIRT, "--qemu", "11.1", expect=3)
    say(f"  rolled back after {time.monotonic() - begin:.1f} s")
    check(dict.fromkeys(NIC, (NIC_DRIVER, UNSET)), drivers(NIC), "all four functions are back, overrides cleared")
    check_home()


def kernel_without_it() -> None:
    """plan and start name the kernel as the reason, and nothing is written."""
    domain = by_iommufd("without")
    before = traces()
    found = pyhostdev_json("plan", domain, *AS_LIBVIRT, "--qemu", "11.1")["findings"]
    check(True, "iommufd-missing" in [item["reason"] for item in found], "the plan says iommufd-missing")
    pyhostdev("start", domain, *AS_LIBVIRT, "--qemu", "11.1", expect=1)
    check(before, traces(), "no function was touched")


WITH_IT = [
    errnos.same_answers,
    undeclared_functions,
    start_that_fails,
    killed_guest,
    beside_a_starter_that_was_killed,
    seed_by_iommufd,
    seed_scenario,
    refresh.refresh_equals_a_scan,  # last, as in onegroup.py
]
STEPS = WITH_IT if has_iommufd() else [kernel_without_it]

if __name__ == "__main__":
    sys.exit(run_all(STEPS, clean_up))
