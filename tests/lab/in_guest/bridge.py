# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Obstacles: the driver of a bridge in a card's group, and what the host has on a disk.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from domains import hostdev, write_domain
from labhost import NIC, PCI, check, driver, iommu_group, pyhostdev, pyhostdev_json, run_all, show, traces


def bridge_in_the_way() -> None:
    """A start is refused while the group's bridge is on shpchp, naming bridge and driver."""
    group = iommu_group(NIC[0])
    members = sorted(path.name for path in (PCI.parents[1] / f"kernel/iommu_groups/{group}/devices").iterdir())
    (bridge,) = set(members) - set(NIC)
    show("before", members)
    check("shpchp", driver(bridge), "the bridge is on shpchp")
    every = "".join(
        hostdev(address, assigned="yes" if number in (0, 3) else "no", function=number if number in (0, 3) else None)
        for number, address in enumerate(NIC)
    )
    domain = write_domain("bridged", every)
    findings = pyhostdev_json("plan", domain, expect=1)["findings"]
    errors = [item for item in findings if item["severity"] == "error"]
    check([("group-not-viable", bridge)], [(item["reason"], item["address"]) for item in errors], "one finding")
    check(True, "shpchp" in errors[0]["message"], "its sentence names the driver")
    before = traces()
    refusal = pyhostdev("start", domain, expect=1)
    check([True, True], [word in refusal.stderr for word in (bridge, "shpchp")], "start names bridge and driver")
    check(before, traces(), "'start' has touched no function of the host")


def disk_in_use() -> None:
    """A disk that is swapped to keeps its controller, though its sysfs path does not lead there, as long as it is."""
    (block,) = Path("/sys/class/block").glob("nvme[0-9]n1")
    check(True, "/virtual/nvme-subsystem/" in str(block.resolve()), "the disk lies below no controller")
    (controller,) = Path("/sys/class/nvme").iterdir()
    address = controller.resolve().parents[1].name
    domain = write_domain("swapper", hostdev(address, assigned=None))
    check([], _reasons(domain, 0), "an unused disk is free")
    for words in (["mkswap"], ["swapon"]):
        subprocess.run(["busybox", *words, f"/dev/{block.name}"], check=True, stdout=subprocess.DEVNULL)
    check([("mounted", address)], _reasons(domain, 1), "swap keeps it")
    before = traces()
    refusal = pyhostdev("prepare", domain, expect=1)
    check(True, f"'{block.name}'" in refusal.stderr, "prepare names the disk")
    check(before, traces(), "'prepare' has touched no function of the host")
    subprocess.run(["busybox", "swapoff", f"/dev/{block.name}"], check=True)
    check([], _reasons(domain, 0), "and no longer")


def _reasons(domain: Path, status: int) -> list[tuple[str, str]]:
    findings = pyhostdev_json("plan", domain, expect=status)["findings"]
    return [(item["reason"], item["address"]) for item in findings if item["severity"] != "note"]


if __name__ == "__main__":
    sys.exit(run_all([bridge_in_the_way, disk_in_use]))
