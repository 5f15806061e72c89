# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest whose QEMU ends in its stages while its devices are released, at random moments."""

from __future__ import annotations

import random
import threading
import time

from crash import process

from pyhostdev import DeviceInUseError, DomainDef, PCIDeviceAddress
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.guest import SimulatedGuest
from pyhostdev.testing.kernel import SimulatedKernel

CARD = [PCIDeviceAddress(1, 9, 0, function) for function in range(4)]
GROUP = 14
LONGEST_S = 0.03  # between two stages of the end


def release_at_random(fake: FakeHost, definition: DomainDef, chance: random.Random) -> str:
    """
    Release at a random moment around the end of QEMU; return "waited" or "refused".

    It succeeds when the group has no holder any more, or refuses while QEMU runs; no write ever waits for a holder.
    """
    before = fake.snapshot()
    victim = process(fake)
    victim.manager.prepare(victim.manager.host.plan(definition))
    guest = SimulatedGuest(SimulatedKernel(fake.root), GROUP)
    ending = threading.Thread(target=_end, args=(guest, random.Random(chance.random())))
    knows = chance.random() < 0.5
    ending.start()
    time.sleep(chance.uniform(0, 3 * LONGEST_S))
    outcome = "waited"
    try:
        found = victim.manager.release("vm1", guest_ended=knows)
    except DeviceInUseError:
        assert not knows, "who knows that the guest has ended is not refused"
        outcome = "refused"
        found = victim.manager.release("vm1", guest_ended=True)
    ending.join()
    assert CARD == found
    assert {"ok"} == {entry.result for entry in victim.kernel.trace}
    assert (before, ([], [], [])) == (fake.snapshot(), victim.manager.status())
    return outcome


def _end(guest: SimulatedGuest, chance: random.Random) -> None:
    """End as a process does: memory first, then descriptors, then the kernel's last reference; /proc may be earlier."""
    last = [guest.vanish, guest.let_go]
    chance.shuffle(last)
    for stage in (guest.begin_exit, guest.close_all, *last):
        time.sleep(chance.uniform(0, LONGEST_S))
        stage()
