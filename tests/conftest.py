# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains and hosts that many tests write down in one line."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from hypothesis import settings

from pyhostdev import DomainDef, Host, HostdevManager, PCIDeviceAddress
from pyhostdev.testing.fakehost import FakeHost

CARD = [f"0001:09:00.{function}" for function in range(4)]

HOSTDEV = """
    <hostdev mode='subsystem' type='pci' managed='{managed}'{assigned}>
      <source>
        <address domain='{a.domain:#06x}' bus='{a.bus:#04x}' slot='{a.slot:#04x}' function='{a.function:#x}'/>
      </source>{address}
    </hostdev>"""

DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <uuid>6c2f5a1e-7f0e-4f0b-9f5e-0d8a3a6f7b11</uuid>
  <memory unit='KiB'>131072</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>{hostdevs}
    <memballoon model='none'/>
  </devices>
</domain>
"""


settings.register_profile("pyhostdev", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("pyhostdev")


def pytest_configure() -> None:
    """Let programs under test die by signals even if the runner of the tests ignores them, as nohup does."""
    for number, action in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, action)


def hostdev_xml(words: str) -> str:
    """Return a hostdev from "ADDRESS [yes|no|unassigned] [unmanaged] [at SLOT.FUNCTION]"."""
    address, *rest = words.split()
    guest = ""
    if "unassigned" in rest:
        guest = "\n      <address type='unassigned'/>"
    elif "at" in rest:
        slot, function = rest[rest.index("at") + 1].split(".")
        guest = f"\n      <address type='pci' domain='0' bus='0' slot='0x{slot}' function='{function}'/>"
    return HOSTDEV.format(
        a=PCIDeviceAddress.parse(address),
        managed="no" if "unmanaged" in rest else "yes",
        assigned=next((f" assigned='{word}'" for word in rest if word in ("yes", "no")), ""),
        address=guest,
    )


def domain_xml(name: str, *hostdevs: str) -> str:
    """Return a domain's XML with the hostdevs that the words describe."""
    return DOMAIN.format(name=name, hostdevs="".join(hostdev_xml(words) for words in hostdevs))


def seed_words() -> list[str]:
    """Return the seed's scenario: functions 0 and 3 for the guest, 1 and 2 not."""
    return [f"{CARD[0]} yes at 04.0", f"{CARD[1]} no", f"{CARD[2]} no", f"{CARD[3]} yes at 04.3"]


@pytest.fixture
def domain() -> Callable[..., DomainDef]:
    """A function that makes a domain: domain("vm1", "0001:09:00.0 yes at 04.0", ...)."""
    return lambda name, *hostdevs: DomainDef.parse(domain_xml(name, *hostdevs))


@pytest.fixture
def seed_domain(domain: Callable[..., DomainDef]) -> DomainDef:
    """The seed's domain on the bcm5719 host."""
    return domain("vm1", *seed_words())


@pytest.fixture
def bcm5719(fakehost: Callable[[str], FakeHost]) -> FakeHost:
    """The seed's card."""
    return fakehost("bcm5719")


@pytest.fixture
def manager_for() -> Callable[[FakeHost], HostdevManager]:
    """A function that makes a new manager, as another process would, for a simulated host."""
    return lambda fake: HostdevManager(Host(fake.root, writer=fake.kernel))
