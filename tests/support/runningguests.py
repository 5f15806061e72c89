# SPDX-License-Identifier: LGPL-2.1-or-later
"""A running guest as a second process finds it: a simulated QEMU behind the control socket of a runtime directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hotplugging import live_domain

from pyhostdev import DomainDef
from pyhostdev.hypervisor.guest_facts import GUEST_FILE, GuestFacts
from pyhostdev.qemu.qemu_alias import assign_aliases
from pyhostdev.qemu.qemu_hotplug.runtime import GuestDirectory
from pyhostdev.testing import FakeHost, SimulatedQEMU


class RunningGuest:
    """A guest that ``start`` has started, with or without its owner."""

    def __init__(self, fake: FakeHost, qemu: SimulatedQEMU, directory: GuestDirectory) -> None:
        self.fake = fake
        self.qemu = qemu
        self.directory = directory


@contextlib.contextmanager
def running_guest(
    fake: FakeHost,
    *,
    machine: str = "pc",
    has_owner: bool = True,
    definition: DomainDef | None = None,
    speed: float = 50.0,
    **options: Any,
) -> Iterator[RunningGuest]:
    """Run a guest of domain vm1 on a simulated host while the block runs."""
    path = Path(fake.root.state_dir, "lib/qemu/domain-77-vm1")
    path.mkdir(parents=True, mode=0o711)
    os.chmod(fake.root.state_dir, 0o700)
    os.chmod(path, 0o700)
    dom = (definition or live_domain(fake, machine.partition("-")[0])).copy()
    assign_aliases(dom)
    sockets = [path / "control.sock", path / "monitor.sock"]
    qemu = SimulatedQEMU(sockets, machine=machine, kernel=fake.kernel, speed=speed, **options)
    assert qemu.pid is not None
    directory = GuestDirectory(str(path), GuestFacts("vm1", qemu.pid, "9.0", None))
    directory.state.save(dom)
    directory.files.replace(GUEST_FILE, directory.facts.to_bytes())
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with qemu, directory.owning() if has_owner else contextlib.nullcontext():
            qemu.cont()
            qemu.machine.clock_ms += 1000
            yield RunningGuest(fake, qemu, directory)
    finally:
        os.close(fd)
