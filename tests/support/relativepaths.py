# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Every path in a definition, made relative: QEMU, or a program beside it, must not be started with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from pyhostdev import Host
from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.errors import HostdevError
from pyhostdev.qemu import define
from pyhostdev.qemu.qemu_command import build_command_line, stored_capabilities
from pyhostdev.qemu.qemu_command.paths import DomainPaths
from pyhostdev.qemu.qemu_process.access import image_obstacles
from pyhostdev.qemu.qemu_process.daemons import daemon_specs

RELATIVE = "not/absolute"
NAMES = ("audio/@serverName",)  # of a server, in any form


def changed(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield a definition with one path made relative, and which; a path at a server is the server's."""
    root = etree.fromstring(path.read_bytes())
    for element in root.iter(etree.Element):
        where = str(element.tag)
        if "}" in where or (element.tag == "source" and "protocol" in element.attrib):
            continue
        for name, value in [(str(name), str(value)) for name, value in element.attrib.items()]:
            if value.startswith("/") and f"{where}/@{name}" not in NAMES:
                element.set(name, RELATIVE)
                yield f"{where}/@{name}", etree.tostring(root)
                element.set(name, value)
        if (element.text or "").strip().startswith("/"):
            text, element.text = element.text, RELATIVE
            yield where, etree.tostring(root)
            element.text = text


def accepted(text: bytes) -> list[str]:
    """Return the words with a relative path that a start would use; none if it is refused."""
    try:
        dom = DomainDef.parse(text)
        defined = define(dom, stored_capabilities(dom))
        argv = build_command_line(dom)
        specs = list(daemon_specs(defined, DomainPaths.of("/run/x", "d", 1)))
    except HostdevError:
        return []
    words = [word for word in argv if RELATIVE in word]
    words += [word for spec in specs for word in (*spec.argv(0), spec.state or "") if RELATIVE in word]
    if any(finding.reason == "relative-path" for finding in image_obstacles(defined, Host("/"), None)):
        return []
    return words
