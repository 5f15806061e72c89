#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Print all PCI functions of a host as JSON lines: inventory.py [DIR], where DIR takes the place of /.
"""

from __future__ import annotations

import json
import sys

import pyhostdev


def main(root: str = "/") -> None:
    """Print one line per function, in address order."""
    scan = pyhostdev.Host(root).scan()
    for dev in scan:
        group = dev.iommu_group
        print(
            json.dumps(
                {
                    "address": str(dev.address),
                    "id": f"{dev.vendor:04x}:{dev.device:04x}",
                    "driver": dev.driver,
                    "group": group,
                    "shares_group_with": [
                        str(other.address)
                        for other in (scan.groups[group] if group is not None else ())
                        if other.address != dev.address
                    ],
                    "multifunction": scan.is_multifunction(dev),
                    "assignable": scan.is_assignable(dev),
                }
            )
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
