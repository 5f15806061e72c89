# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The elements in QEMU's XML namespace: printed as libvirt does, and refused if they bypass the plan.

Mirrors: qemuBuildCommandLine for qemu:arg (src/qemu/qemu_command.c), qemuDomainXmlNsDef
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from pyhostdev.qemu.qemu_command.builder import DEVICE_JSON
from pyhostdev.qemu.qemu_domain.namespace import ELEMENTS, namespace_of, namespace_path
from pyhostdev.util.finding import ERROR, NOTE, Finding
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_fields import DomainFields
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder

KNOWN_PATHS = frozenset(map(namespace_path, ELEMENTS))

# the capabilities whose deletion changes the command line that we print
USB_HOSTDEVICE = "usb-host.hostdevice"
FOLLOWED_CAPABILITIES = (DEVICE_JSON, USB_HOSTDEVICE)

_DEVICES = r"vfio-(?:pci|ap|ccw|platform|amd-xgbe|calxeda-xgmac)"
_FUNCTION = r"(?<![0-9a-f:.])(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7](?![0-9a-f])"
_EXCHANGED = r"device\.[^.=]+\.(?:driver|host|fd)="  # by -set, which accepts shorter addresses, too
_BYPASS = rf"(?i:{_DEVICES}|iommufd|sysfsdev|/dev/(?:vfio|iommu)|{_FUNCTION}|{_EXCHANGED})"
_ESCAPE = r"\\(?:u([0-9a-fA-F]{4})|(?s:(.)))"
_FILE_OPTION = "readconfig"  # a file with further options, which the plan cannot see
_HOST_PROPERTIES = ("driver", "host", "sysfsdev", "iommufd", "fd")
_LOADER_PREFIXES = ("LD_", "GLIBC_TUNABLES")


def build_arguments(build: CommandBuilder) -> None:
    """Add the arguments in <qemu:commandline> as the user wrote them."""
    build.add(*(arg.value for arg in build.namespace.args))


def environment_of(dom: DomainFields) -> dict[str, str]:
    """Return the variables that a domain adds to QEMU's environment; of equal names the last counts."""
    return {row.name: row.value for row in namespace_of(dom).env}


def bypass_findings(dom: DomainFields) -> list[Finding]:
    """
    Return an error for each argument or property in QEMU's namespace that could give the guest a host function.

    The plan covers the <hostdev> elements only. A function given in another way would not be checked, recorded or given
    back.
    """
    found = namespace_of(dom)
    said = [(arg.value, "A <qemu:arg>", arg.line) for arg in found.args if _bypasses_plan(arg.value)]
    for row in found.properties:
        if row.name in _HOST_PROPERTIES or _bypasses_plan(f"{row.name}={row.value}"):
            said.append((row.name, "A <qemu:property>", row.line))
    return [
        Finding("around-plan", ERROR, None, f"{what} bypasses the plan: '{shown(text)}'", line)
        for text, what, line in said
    ]


def _bypasses_plan(text: str) -> bool:
    readings = (text, re.sub(_ESCAPE, _unescaped, text))
    return any(plain.lstrip("-") == _FILE_OPTION or re.search(_BYPASS, plain) is not None for plain in readings)


def _unescaped(escape: re.Match[str]) -> str:
    r"""
    Return the character of an escape in JSON: ``\u002d`` is a hyphen.

    The text is not parsed: QEMU's parser accepts more than others, such as single quotes (qobject/json-lexer.c).
    """
    return chr(int(escape[1], 16)) if escape[1] else escape[2]


def namespace_findings(dom: DomainFields) -> Iterator[Finding]:
    """Yield the other findings of ``start`` about QEMU's namespace, besides ``bypass_findings``."""
    found = namespace_of(dom)
    for row in found.env:
        if row.name.startswith(_LOADER_PREFIXES) and os.geteuid() == 0:
            message = f"<qemu:env name='{shown(row.name)}'> would load code into a QEMU that root starts"
            yield Finding("unsupported", ERROR, None, message, row.line)
    for name in (*found.added_capabilities, *found.deleted_capabilities):
        if name not in FOLLOWED_CAPABILITIES:
            message = f"The capability '{shown(name)}' in <qemu:capabilities> is ignored: the emulator itself is probed"
            yield Finding("ignored", NOTE, None, message, dom.line)
