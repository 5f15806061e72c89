# SPDX-License-Identifier: LGPL-2.1-or-later
"""A card near a NUMA node: a nested guest sees its functions on the cell that stands for that node."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from domains import RUN, guest_devices, guest_nodes, hostdev, write_domain
from labhost import NIC, PCI, check, run_all, say, wait_for
from onegroup import check_home, ended, listed, serial, started, wait_for_qemu
from verbs import verb

CELLS = (
    "<numatune><memnode cellid='1' mode='strict' nodeset='0'/></numatune><cpu><numa>"
    "<cell id='0' cpus='0' memory='192' unit='MiB'/><cell id='1' memory='64' unit='MiB'/></numa></cpu>"
)
CARD = hostdev(NIC[0]) + hostdev(NIC[1], assigned="no") + hostdev(NIC[2], assigned="no") + hostdev(NIC[3])


@contextmanager
def near(node: int) -> Iterator[None]:
    """Say that the card is near a node, which the firmware of the lab's host does not say."""
    places = [PCI / "devices" / address / "numa_node" for address in NIC]
    before = [place.read_text() for place in places]
    for place in places:
        place.write_text(str(node))
    try:
        yield
    finally:
        for place, text in zip(places, before, strict=True):
            place.write_text(text)


def near_its_memory() -> None:
    """The cell bound to host node 0 is cell 1: there are functions 0 and 3, in one slot of an expander bus."""
    domain = write_domain("near", CARD, machine="q35")
    domain.write_text(domain.read_text().replace("<devices>", f"{CELLS}<devices>", 1))
    placed = RUN / "placed.xml"
    with near(0):
        placed.write_bytes(verb("xml", domain, "--complete", "--numa"))
        with started(placed) as start:
            wait_for_qemu(start)
            wait_for(lambda: listed(start), "the guest lists its devices", 900)
            wait_for(lambda: ended(start), "the guest powers off and its devices are given back")
    check(0, start.returncode, "exit code of 'start'")
    nics = [address for address, (class_, _) in guest_devices(serial()).items() if class_.startswith("02")]
    nodes = guest_nodes(serial())
    say(f"  nodes in the guest: {nodes}")
    check({1}, {nodes[f"0000:{address}"] for address in nics}, "node of the guest's NICs")
    check(["0", "3"], sorted(address[-1] for address in nics), "functions of the guest's NICs")
    check(1, len({address[:-2] for address in nics}), "slots of the guest's NICs")
    check_home()


STEPS = [near_its_memory]

if __name__ == "__main__":
    sys.exit(run_all(STEPS))
