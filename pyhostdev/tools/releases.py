# SPDX-License-Identifier: LGPL-2.1-or-later
"""The libvirt release and the QEMU capabilities that a verb uses: options, defaults, and the note that names them."""

from __future__ import annotations

import argparse

from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.errors import ConfigError
from pyhostdev.tools.arguments import checked
from pyhostdev.util.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.hypervisor.host import Host
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities

ASSIGNED_WARNING = (
    "note: libvirt ignores 'assigned=' and would give such a function to the guest; "
    "print the definition for libvirt with 'xml --spelling unassigned'"
)
_KNOWN = ", ".join(map(str, RELEASES))


class Answering(NamedTuple):
    """The release that a verb answers as, and why if the user did not name it."""

    release: LibvirtRelease
    why: str = ""

    def __str__(self) -> str:
        return f"libvirt {self.release}{self.why}"


def add_libvirt(parser: argparse.ArgumentParser) -> None:
    """--libvirt, a LibvirtRelease, or None for the host's."""
    parser.add_argument(
        "--libvirt",
        type=checked(LibvirtRelease.parse),
        metavar="VERSION",
        help=f"the libvirt release whose defaults, order and rules apply: {_KNOWN} "
        "(default: the release of the host's libvirt or the nearest older one, else the newest)",
    )


def add_release(parser: argparse.ArgumentParser) -> None:
    """--libvirt, and what the emulator can do."""
    add_libvirt(parser)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--qemu",
        dest="capabilities",
        type=checked(_stored_version),
        metavar="VERSION",
        help="use the stored capabilities of this QEMU release, such as 10.0",
    )
    _add_capabilities(chosen)


def _stored_version(text: str) -> str:
    from pyhostdev.qemu.qemu_capabilities import stored_versions

    if text not in stored_versions():
        raise ConfigError(f"{text!a} is not a stored release of QEMU (releases: {', '.join(stored_versions())})")
    return text


def _capabilities(text: str) -> str:
    from pyhostdev.qemu.qemu_capabilities.choice import VERSION

    return _stored_version(text) if VERSION.fullmatch(text) else text


def _add_capabilities(parser: argparse._MutuallyExclusiveGroup) -> None:
    parser.add_argument(
        "--capabilities",
        type=checked(_capabilities),
        metavar="FILE|VERSION|probe",
        help="the emulator's capabilities: a file written by a probe, a stored release of QEMU such as 7.2, or 'probe' "
        "for an untrusted emulator (default: probe a trusted emulator, else use the stored release that goes with the "
        "libvirt release)",
    )


def add_against(parser: argparse.ArgumentParser) -> None:
    """--against-libvirt, a LibvirtRelease."""
    parser.add_argument(
        "--against-libvirt",
        type=checked(LibvirtRelease.parse),
        metavar="VERSION",
        help=f"show what moves with this libvirt release and its QEMU release: {_KNOWN}",
    )


def answering(args: argparse.Namespace, host: Host) -> Answering:
    """
    Return the release of --libvirt, else that of the host's libvirt, else the newest.

    Raises:
        SysfsError: the host's libraries cannot be read.
    """
    return installed_release(host) if args.libvirt is None else Answering(args.libvirt)


def installed_release(host: Host) -> Answering:
    """
    Return the release of the host's libvirt, else the newest.

    Raises:
        SysfsError: the host's libraries cannot be read.
    """
    from pyhostdev.util.libvirtlib import read_installed_libvirt

    installed = read_installed_libvirt(host.root)
    if installed is None:
        return Answering(RELEASES[-1], ", the newest known release: this host has no libvirt")
    nearest = LibvirtRelease.nearest(installed[:2])
    name = ".".join(map(str, installed))
    is_exact = name in (f"{nearest}.0", str(nearest))
    return Answering(nearest, ", which the host has" if is_exact else f", for the host's libvirt {name}")


def release_of(args: argparse.Namespace, host: Host) -> LibvirtRelease:
    """Return only the release of ``answering``."""
    return answering(args, host).release


def report_release(args: argparse.Namespace, host: Host) -> LibvirtRelease:
    """Return the release of a verb that asks no emulator, and report it on stderr if the user did not name it."""
    found = answering(args, host)
    tell_release(args, found)
    return found.release


def tell_release(args: argparse.Namespace, found: Answering) -> None:
    """Report the release on stderr if the user did not name it."""
    from pyhostdev.tools.main import complain

    if args.libvirt is None:
        complain(f"note: answered as {found}")


def capabilities_of(args: argparse.Namespace, dom: DomainDef, host: Host) -> QEMUCapabilities:
    """
    Return the capabilities used for a domain, and report their origin on stderr.

    Raises:
        ConfigError, ConfigUnsupportedError, OperationError: as ``qemu_driver.capabilities_of``.
    """
    return chosen_capabilities(dom, host, args.capabilities, answering(args, host))


def chosen_capabilities(
    dom: DomainDef, host: Host, choice: str | None, found: Answering, reported: set[str] | None = None
) -> QEMUCapabilities:
    """
    Return the capabilities of a choice, as ``capabilities_of`` does for the choice on the command line.

    Args:
        reported: origins that were reported before; one among them is not reported again.

    Raises:
        ConfigError, ConfigUnsupportedError, OperationError: as ``qemu_driver.capabilities_of``.
    """
    from pyhostdev.qemu import qemu_driver
    from pyhostdev.tools.main import complain

    capabilities = qemu_driver.capabilities_of(dom, host, choice, found.release)
    origin = f"{capabilities.origin}{capabilities.why_not_probed}, as {found}"
    if reported is None or origin not in reported:
        complain(f"note: answered with {origin}")
    if reported is not None:
        reported.add(origin)
    return capabilities
