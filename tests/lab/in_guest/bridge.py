# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A card on a conventional bus: its group holds the bridge, and the bridge's driver is in the way.
"""

from __future__ import annotations

import sys

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


if __name__ == "__main__":
    sys.exit(run_all([bridge_in_the_way]))
