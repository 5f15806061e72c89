# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A domain: its fields, validation, guest addresses, pins and the spelling of its host devices.

Mirrors: src/conf/domain_conf.c
"""

from __future__ import annotations

from pyhostdev.conf.domain_fields import DomainFields
from pyhostdev.conf.hostdev_conf import DomainHostdevDef, refuse_misplaced
from pyhostdev.errors import raise_all
from pyhostdev.util.deprecation import deprecated_names
from pyhostdev.util.pciaddress import PCIDeviceAddress
from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Self

    from pyhostdev.conf.guest_addresses import GuestAddress
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.pin_conf import HostdevPin
    from pyhostdev.util.finding import Finding
    from pyhostdev.util.virxml import Element


class ProposedHostdev(NamedTuple):
    """A function that a domain should declare too; ``is_multifunction`` is the host's answer (row S1)."""

    address: PCIDeviceAddress
    managed: bool
    is_multifunction: bool


class Proposing(Protocol):
    """The part of a plan that ``completed`` needs."""

    @property
    def proposals(self) -> tuple[ProposedHostdev, ...]:
        """Return the functions that the domain should also declare."""


class DomainDef(DomainFields):
    """
    A domain.

    ``parse`` is pure: it knows neither the host nor the emulator, and fills in no defaults.

    Mirrors: virDomainDef (src/conf/domain_conf.h)
    """

    @classmethod
    def check_document(cls, root: Element, source: str | bytes) -> None:
        """Refuse ``assigned`` where it has no effect."""
        refuse_misplaced(root, source)

    def validate(self, host: HostFacts | None = None) -> None:
        """
        Refuse an invalid definition; with a host, also check it against the host.

        Raises:
            XMLError, ConfigUnsupportedError: the first error; ``others`` has the rest.
        """
        from pyhostdev.conf.domain_validate import domain_errors, pin_errors, word_errors

        raise_all([*word_errors(self), *pin_errors(self), *domain_errors(self, host)])

    def unknown_words(self) -> list[Finding]:
        """Return findings about unknown attributes and elements of host devices; a note if it has no effect."""
        from pyhostdev.conf.unknown_words import unknown_words

        return unknown_words(self)

    def addresses(self) -> list[GuestAddress]:
        """
        Return the guest address of each device, and why it has this address.

        Only ``qemu.define`` chooses addresses; before, only those in the definition are returned.
        """
        from pyhostdev.conf.guest_addresses import addresses

        return addresses(self)

    def with_addresses_of(self, defined: DomainDef) -> Self:
        """
        Return a copy with explicit guest addresses, so that a later ``define`` keeps them.

        Args:
            defined: this domain as ``qemu.define`` returned it.
        """
        from pyhostdev.conf.guest_addresses import pinned

        return pinned(self, defined)

    def hostdev_pins(self) -> list[HostdevPin]:
        """
        Return the identities of host devices that the metadata contains.

        Raises:
            XMLError: a pin is not valid.
        """
        if self.metadata is None:
            return []
        from pyhostdev.conf.pin_conf import read_pins

        return read_pins(self)

    def with_hostdev_pins(self, pins: Iterable[HostdevPin]) -> Self:
        """Return a copy whose metadata contains these pins, and no others."""
        from pyhostdev.conf.pin_conf import with_pins

        clone = self.copy()
        clone.metadata = with_pins(self, pins)
        return clone

    def with_host_addresses(self, moves: Mapping[PCIDeviceAddress, PCIDeviceAddress] | Mapping[str, str]) -> Self:
        """
        Return a copy with new host addresses for host devices, NVMe disks and their pins.

        Raises:
            InvalidAddressError: a text is not a PCI address.
        """
        moves = {PCIDeviceAddress.of(old): PCIDeviceAddress.of(new) for old, new in moves.items()}
        pins = [pin._replace(address=moves.get(pin.address, pin.address)) for pin in self.hostdev_pins()]
        clone = self.with_hostdev_pins(pins) if pins else self.copy()
        for hostdev in clone.pci_hostdevs():
            target = moves.get(hostdev.pci_address)
            for name, value in target._asdict().items() if target is not None else ():
                setattr(hostdev.source_def, name, value)
        for source in (source for disk in clone.disks for source in disk.nvme_sources()):
            assert source.address is not None
            source.address.move(moves.get(source.address.pci, source.address.pci))
        return clone

    def with_spelling(self, spelling: str, host: HostFacts | None = None) -> Self:
        """
        Return a copy in which all host devices use one spelling of "not assigned".

        Args:
            spelling: ``unassigned`` (libvirt's) or ``assigned``.
            host: with it, a device that cannot have ``assigned`` is refused here.

        Raises:
            XMLError: the definition cannot be expressed with ``assigned``.
        """
        from pyhostdev.conf.hostdev_spelling import with_spelling

        return with_spelling(self, spelling, host)

    def with_hostdevs_added(self, hostdevs: list[DomainHostdevDef]) -> Self:
        """Return a copy with additional host devices."""
        clone = self.copy()
        clone.hostdevs.extend(hostdev.copy() for hostdev in hostdevs)
        return clone

    def completed(self, plan: Proposing) -> Self:
        """Return a proposal: a copy that also declares, as not assigned, the functions that a plan proposes."""
        return self.with_hostdevs_added(proposed_hostdevs(plan))


def proposed_hostdevs(plan: Proposing) -> list[DomainHostdevDef]:
    """Return the host devices that a plan proposes, as not assigned."""
    return [
        DomainHostdevDef.for_pci(
            proposal.address,
            managed=proposal.managed,
            assigned=False if proposal.is_multifunction else None,
            unassigned=not proposal.is_multifunction,
        )
        for proposal in plan.proposals
    ]


__getattr__ = deprecated_names(__name__, {"Proposal": ProposedHostdev})
