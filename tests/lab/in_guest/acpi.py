# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Guests without a host device, with and without ACPI, under the emulator in LAB_QEMU.

It needs no device and no IOMMU, so it also runs on the machine that has the lab.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from domains import RUN, write_domain
from guestmonitor import ask
from labhost import check, run_all, say, wait_for
from onegroup import ended, listed, serial, started


def guest(machine: str, *, has_acpi: bool) -> Path:
    """Write a guest that stays."""
    domain = write_domain(f"{machine}-acpi-{'on' if has_acpi else 'off'}", "", kind="stay", machine=machine)
    if not has_acpi:
        domain.write_text(domain.read_text().replace("<features><acpi/></features>", ""))
    return domain


def check_guest(machine: str, *, has_acpi: bool) -> None:
    """Start a guest, and compare what QEMU and the guest say about ACPI with its definition."""
    domain = guest(machine, has_acpi=has_acpi)
    with started(domain) as start:
        wait_for(lambda: listed(start), "the guest lists its devices", 900)
        check(False, ended(start), "the guest runs")
        version = ask(domain.stem, "query-version")["qemu"]
        say(f"  {machine} under QEMU {version['major']}.{version['minor']}.{version['micro']}")
        said = ask(domain.stem, "qom-get", path="/machine", property="acpi")
        check(has_acpi, said != "off", f"the machine's ACPI is '{said}'")
        if machine == "pc":  # the firmware of a q35 machine makes tables of its own
            check(has_acpi, "GUEST-ACPI yes" in serial(), f"the guest has {'' if has_acpi else 'no '}ACPI tables")
        start.terminate()
        wait_for(lambda: ended(start), "start ends", 60)
    check(0, start.returncode, "exit code of 'start'")


def with_acpi() -> None:
    """With <acpi/>, the machine has it, and the guest finds its tables."""
    for machine in ("pc", "q35"):
        check_guest(machine, has_acpi=True)


def without_acpi() -> None:
    """Without <acpi/>, the machine has none, whatever the QEMU calls that."""
    for machine in ("pc", "q35"):
        check_guest(machine, has_acpi=False)


if __name__ == "__main__":
    try:
        sys.exit(run_all([with_acpi, without_acpi]))
    finally:
        shutil.rmtree(RUN)  # this machine keeps its /run
