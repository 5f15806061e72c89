# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev list``: all PCI functions of a host."""

from __future__ import annotations

import argparse
from typing import Any

from pyhostdev.tools import arguments, output
from pyhostdev.util.hostscan import Scan
from pyhostdev.util.virpci import PCIDevice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_root(parser)
    arguments.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Scan the host and print the functions."""
    scan = arguments.host_of(args).scan()
    functions = [describe(scan, dev) for dev in scan]
    if args.json:
        output.print_json(functions)
    else:
        output.print_table(
            ("ADDRESS", "ID", "CLASS", "GROUP", "DRIVER", "MULTIFUNCTION", "PF"),
            (_row(function) for function in functions),
        )
    return 0


def describe(scan: Scan, dev: PCIDevice) -> dict[str, Any]:
    """Return the JSON object of one function."""
    return {
        "address": str(dev.address),
        "vendor_id": output.hexadecimal(dev.vendor),
        "device_id": output.hexadecimal(dev.device),
        "class": output.hexadecimal(dev.class_, 6),
        "driver": dev.driver,
        "iommu_group": dev.iommu_group,
        "multifunction": scan.is_multifunction(dev),
        "physfn": None if dev.physfn is None else str(dev.physfn),
    }


def _row(function: dict[str, Any]) -> tuple[object | None, ...]:
    ids = (function["vendor_id"], function["device_id"])
    return (
        function["address"],
        ":".join("?" if number is None else number[2:] for number in ids),
        function["class"] and function["class"][2:],
        function["iommu_group"],
        function["driver"],
        {True: "yes", False: "no", None: "unknown"}[function["multifunction"]],
        function["physfn"],
    )
