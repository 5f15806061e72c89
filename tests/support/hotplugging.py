# SPDX-License-Identifier: LGPL-2.1-or-later
"""Running guests of simulated QEMUs on simulated hosts, and the units that they get."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from pyhostdev import DomainDef, DomainHostdevDef, Host, HostdevManager
from pyhostdev.qemu import define
from pyhostdev.qemu.qemu_command import stored_capabilities
from pyhostdev.qemu.qemu_hotplug import Guest
from pyhostdev.testing import FakeHost, SimulatedConnection, SimulatedQEMU

T = TypeVar("T")
CARD = [f"0001:09:00.{function}" for function in range(4)]
UNIT = "0001:09:00"
ROLES = ("yes", "no", "no", "yes")

DOMAIN = """<domain type='qemu'>
  <name>vm1</name>
  <uuid>6c2f5a1e-7f0e-4f0b-9f5e-0d8a3a6f7b11</uuid>
  <memory unit='KiB'>131072</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>{devices}
    <memballoon model='none'/>
  </devices>
</domain>
"""
PORTS = "".join(f"\n    <controller type='pci' index='{n}' model='pcie-root-port'/>" for n in range(1, 5))


def run(action: Coroutine[Any, Any, T]) -> T:
    """Run one coroutine to its end."""
    return asyncio.run(action)


def live_domain(fake: FakeHost, machine: str = "pc", devices: str = "") -> DomainDef:
    """Return a complete definition of a running domain without host devices."""
    ports = PORTS if machine == "q35" else ""
    dom = DomainDef.parse(DOMAIN.format(machine=machine, devices=ports + devices))
    return define(dom, stored_capabilities(dom), Host(fake.root))


def card(roles: tuple[str, ...] = ROLES, *, managed: bool = True) -> list[DomainHostdevDef]:
    """Return the four functions of the card: "yes" and "no" are values of assigned=, "-" leaves a function out."""
    return [
        DomainHostdevDef.for_pci(address, managed=managed, assigned=role == "yes")
        for address, role in zip(CARD, roles, strict=True)
        if role != "-"
    ]


class Stage:
    """A simulated host, a QEMU on it that runs a guest, and the guest as a program that plugs sees it."""

    def __init__(
        self,
        fake: FakeHost,
        machine: str = "pc",
        *,
        on_command: Callable[[str], None] | None = None,
        manager: HostdevManager | None = None,
        definition: DomainDef | None = None,
        has_run: bool = True,
        **options: Any,
    ) -> None:
        self.fake = fake
        self.qemu = SimulatedQEMU(machine=machine, kernel=fake.kernel, **options)
        if has_run:
            self.qemu.cont()
            self.qemu.machine.advance(1)
            self.qemu.machine.outbox.clear()
        self.connection = SimulatedConnection(self.qemu.machine, on_command)
        self.manager = manager or HostdevManager(Host(fake.root, writer=fake.kernel))
        definition = definition or live_domain(fake, machine.partition("-")[0])
        self.guest = Guest(self.connection, self.manager, definition, pid=self.qemu.pid)

    def plan(self, hostdevs: list[DomainHostdevDef] | None = None, **options: Any) -> Any:
        """Plan a unit, by default the seed's card."""
        return self.manager.host.plan_attach(self.guest.definition, hostdevs or card(), **options)

    def attach(self, hostdevs: list[DomainHostdevDef] | None = None, **options: Any) -> str:
        """Attach a unit, by default the seed's card."""
        return run(self.guest.attach(self.plan(hostdevs), **options))

    def detach(self, unit: str = UNIT, timeout_s: float = 0.3) -> list[str]:
        """Detach a unit."""
        return [str(address) for address in run(self.guest.detach(unit, timeout_s=timeout_s))]

    def finish(self, timeout_s: float = 0.3) -> list[tuple[str, str]]:
        """Finish what is pending."""
        return [(done.unit, done.outcome) for done in run(self.guest.finish(timeout_s=timeout_s))]

    def drivers(self) -> list[str | None]:
        """The drivers of the card."""
        found = [self.manager.host.pci_device(address) for address in CARD]
        return [None if dev is None else dev.driver for dev in found]

    def phases(self) -> set[str | None]:
        """The phases of all records of the host."""
        records = self.manager.journal.read()[0].values()
        return {record.plug and record.plug.phase for record in records}

    @property
    def commands(self) -> list[str]:
        """What changed QEMU, with the device."""
        told = [(c, a) for c, a in self.connection.commands if c.startswith("device_")]
        return [f"{'+' if c == 'device_add' else '-'}{a['id']}@{a.get('addr', '')}".rstrip("@") for c, a in told]
