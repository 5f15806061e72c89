# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev xml``: a domain with its defaults and guest addresses."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pyhostdev.errors import ConfigError, raise_all
from pyhostdev.tools import arguments, output, releases, streams
from pyhostdev.tools.main import complain, tell_notes
from pyhostdev.tools.releases import ASSIGNED_WARNING

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_file(parser)
    arguments.add_root(parser)
    arguments.add_keep_together(parser)
    releases.add_release(parser)
    parser.add_argument(
        "--spelling",
        choices=("assigned", "unassigned"),
        help="the spelling of a function that is not assigned; libvirt only supports 'unassigned': it ignores "
        "'assigned' and gives the function to the guest",
    )
    parser.add_argument(
        "--pin",
        action="store_true",
        help="add all guest addresses, and devices that need one; leave the rest unchanged",
    )
    parser.add_argument(
        "--pin-devices",
        action="store_true",
        help="write the identity of each PCI host device into <metadata>; a plan then refuses another device there",
    )
    parser.add_argument(
        "--repoint", action="store_true", help="declare pinned host devices at the addresses where they are now"
    )
    parser.add_argument("--complete", action="store_true", help="declare missing functions as not assigned")
    parser.add_argument(
        "--numa",
        action="store_true",
        help="put each assigned host device behind an expander bus of the guest's NUMA cell for its host node, "
        "the functions of a card together",
    )


def run(args: argparse.Namespace) -> int:
    """Complete, respell and define the domain, and print it."""
    from pyhostdev.conf.domain_validate import word_errors
    from pyhostdev.conf.newer_words import dropped_word_notes

    host = arguments.host_of(args)
    definition = arguments.definition_of(args)
    raise_all(list(word_errors(definition)))
    tell_notes(dropped_word_notes(definition, releases.release_of(args, host)))
    definition = _changed(args, host, definition)
    defined = _defined(args, host, definition)
    if args.numa:
        definition = _placed(host, definition, defined)
        defined = _defined(args, host, definition)
    definition = definition.with_addresses_of(defined) if args.pin else defined
    if args.spelling != "assigned" and any(hostdev.assigned is not None for hostdev in definition.hostdevs):
        complain(ASSIGNED_WARNING)
    streams.write(output.printable_xml(definition.format()))
    return 0


def _changed(args: argparse.Namespace, host: Host, definition: DomainDef) -> DomainDef:
    """Return the definition with other host devices, pins and spelling, as far as the arguments ask for it."""
    if args.repoint:
        definition = _repointed(host, definition)
    if args.complete:
        definition = definition.completed(host.plan(definition))
    if args.pin_devices:
        definition = _with_pins(host, definition)
    if args.spelling:
        definition = definition.with_spelling(args.spelling)
    return definition


def _defined(args: argparse.Namespace, host: Host, definition: DomainDef) -> DomainDef:
    from pyhostdev.qemu import qemu_driver

    return qemu_driver.define(
        definition,
        host,
        keep_together=args.keep_together,
        capabilities=releases.capabilities_of(args, definition, host),
        release=releases.release_of(args, host),
    )


def _placed(host: Host, definition: DomainDef, defined: DomainDef) -> DomainDef:
    from pyhostdev.qemu.qemu_domain_address.numa import placed_by_node

    placed, others = placed_by_node(definition, defined, host)
    for address in others:
        complain(f"note: the host reports no NUMA node for device {address}, which is placed as usual")
    return placed


def _repointed(host: Host, definition: DomainDef) -> DomainDef:
    from pyhostdev.hypervisor.hostdev_pins import repointed

    found = host.find_pinned(definition)
    if not found:
        raise ConfigError("The domain has no pinned host devices: 'xml --pin-devices' pins them")
    return repointed(definition, found)


def _with_pins(host: Host, definition: DomainDef) -> DomainDef:
    pins = host.read_pins(definition)
    for pin in pins:
        if "serial" in pin.identity.unseen:
            complain(f"note: only root can read the serial number of device {pin.address}, so it is not pinned")
    return definition.with_hostdev_pins(pins)
