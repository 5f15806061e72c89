# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Character devices: their source on the host and their target in the guest.

Mirrors: virDomainChrSourceDef, virDomainChrDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.device_conf import WORD_NUMBERS, DeviceInfo
from pyhostdev.conf.xml.xmlcodec import Codec, enum, hexadecimal, number, on_off, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, content, elements, ignored, inline, opaque
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, VIR_ERR_INTERNAL_ERROR, XMLError

if TYPE_CHECKING:
    from collections.abc import Collection

    from pyhostdev.util.virxml import Element

CHR_TYPES = (
    "null",
    "vc",
    "pty",
    "dev",
    "file",
    "pipe",
    "stdio",
    "udp",
    "tcp",
    "unix",
    "spicevmc",
    "spiceport",
    "nmdm",
    "qemu-vdagent",
    "dbus",
)


_WITHOUT_SOURCE = ("null", "vc", "pty", "stdio", "spicevmc")


class ChrSourceElement(ElementDef):
    """One <source> of a character device; sockets may have two."""

    tag = "source"

    mode = attribute("mode", enum("connect", "bind"))
    path = attribute("path")
    host = attribute("host")
    service = attribute("service")
    tls = attribute("tls", yes_no)
    append = attribute("append", on_off)
    channel = attribute("channel")
    master = attribute("master")
    slave = attribute("slave")
    clipboard_copypaste = attribute("clipboard/@copypaste", yes_no)
    mouse_mode = attribute("mouse/@mode", enum("server", "client"))
    reconnect_enabled = attribute("reconnect/@enabled", yes_no)
    reconnect_timeout = attribute("reconnect/@timeout", number)
    of_disks = ignored("reconnect/@delay")
    seclabel = opaque("seclabel", for_host=True)

    @classmethod
    def unread(cls, element: Element) -> Collection[str]:
        """Return <reconnect> if the type has no connection, and the timeout of a disabled one."""
        parent, enabled = element.getparent(), element.find("reconnect[@enabled='yes']")
        if parent is not None and parent.get("type") not in ("tcp", "unix"):
            return ("reconnect",)
        return ("reconnect/@timeout",) if enabled is None else ()

    def parsed(self, element: Element) -> None:
        """
        Refuse <reconnect> without a time.

        Mirrors: virDomainChrSourceReconnectDefParseXML (src/conf/domain_conf.c)
        """
        if self.reconnect_enabled and self.reconnect_timeout is None:
            raise XMLError("<reconnect> lacks 'timeout'", line=self.line)


class ChrSource(ElementDef):
    """
    The host side of a character device; its fields are in the device's element.

    Mirrors: virDomainChrSourceDef (src/conf/domain_conf.h)
    """

    type = attribute("type", enum(*CHR_TYPES), code=VIR_ERR_CONFIG_UNSUPPORTED)
    sources = elements("source", ChrSourceElement)
    protocol = attribute(
        "protocol/@type",
        enum("raw", "telnet", "telnets", "tls"),
        code=VIR_ERR_CONFIG_UNSUPPORTED,
        renumbered=WORD_NUMBERS,
    )
    log_file = attribute("log/@file")
    log_append = attribute("log/@append", on_off)

    @property
    def path(self) -> str | None:
        """The path of a file, device, pipe or socket."""
        return self.sources[0].path if self.sources else None

    def normalise(self) -> None:
        """
        Fill in defaults (mode, protocol), and drop what the type does not use.

        Mirrors: virDomainChrSourceDefParseXML (src/conf/domain_conf.c)
        """
        if self.type in _WITHOUT_SOURCE:
            self.sources = []
        if self.type in ("tcp", "udp", "unix"):
            for part in self.sources:
                part.mode = part.mode or "connect"
        self.protocol = self.protocol or "raw" if self.type == "tcp" else None
        if self.type == "udp":
            self.sources.sort(key=lambda part: part.mode != "bind")

    def source(self, mode: str) -> ChrSourceElement | None:
        """Return the <source> with this mode, None without one."""
        return next((part for part in self.sources if part.mode == mode), None)


class DomainChrDef(ElementDef):
    """The fields of all character devices."""

    source = inline(ChrSource)
    target_type = attribute("target/@type")
    target_port = attribute("target/@port", number)
    target_name = attribute("target/@name")
    target_state = attribute("target/@state")
    target_address = attribute("target/@address")
    target_model = attribute("target/model/@name")
    info = inline(DeviceInfo)


class DomainSerialDef(DomainChrDef):
    """A serial port."""

    tag = "serial"

    tty = ignored("@tty")  # libvirt prints it for a running guest


class DomainParallelDef(DomainChrDef):
    """A parallel port."""

    tag = "parallel"

    tty = ignored("@tty")  # libvirt prints it for a running guest


class DomainConsoleDef(DomainChrDef):
    """A console; the first one often stands for the first serial port."""

    tag = "console"

    tty = ignored("@tty")  # libvirt prints it for a running guest
    mirrors_serial = False  # True if it stands for the first serial port


class DomainChannelDef(DomainChrDef):
    """A named channel between host and guest."""

    tag = "channel"

    def parsed(self, element: Element) -> None:
        """
        Refuse a channel without a type of its guest side.

        Mirrors: virDomainChrDefParseTargetXML (src/conf/domain_conf.c)
        """
        if self.target_type is None:
            code = VIR_ERR_CONFIG_UNSUPPORTED if self.has_child("target") else None
            raise XMLError("The <target> of a <channel> needs a type", line=self.line, libvirt_code=code)
        if self.target_type == "guestfwd" and (self.target_address is None or self.target_port is None):
            raise XMLError("A <channel> of type guestfwd needs address and port of its <target>", line=self.line)


class SmartcardCertificate(ElementDef):
    """The name of a certificate."""

    tag = "certificate"

    name = content("", default="")


class DomainSmartcardDef(ElementDef):
    """A smartcard reader."""

    tag = "smartcard"

    mode = attribute("mode", enum("host", "host-certificates", "passthrough"), required=True)
    source = inline(ChrSource)
    certificates = elements("certificate", SmartcardCertificate)
    database = content("database")
    info = inline(DeviceInfo)

    def parsed(self, element: Element) -> None:
        """
        Refuse passthrough without a character device of the host.

        Mirrors: virDomainSmartcardDefParseXML (src/conf/domain_conf.c)
        """
        if self.mode == "passthrough" and self.source.type is None:
            raise XMLError("A <smartcard> with mode='passthrough' has no type", line=self.line)


class DomainRedirdevDef(ElementDef):
    """A device that a viewer redirects."""

    tag = "redirdev"

    bus = attribute("bus", enum("usb"), default="usb", code=VIR_ERR_CONFIG_UNSUPPORTED)
    source = inline(ChrSource)
    info = inline(DeviceInfo)

    def parsed(self, element: Element) -> None:
        """
        Refuse a device without a character device of the host.

        Mirrors: virDomainRedirdevDefParseXML (src/conf/domain_conf.c)
        """
        if self.source.type is None:
            raise XMLError("A <redirdev> has no type", line=self.line, libvirt_code=VIR_ERR_INTERNAL_ERROR)


def _id_or_any(width: int) -> Codec[int]:
    """Return the codec of an id printed with width digits; -1 stands for any."""
    plain = hexadecimal(width)
    return Codec(
        lambda value: -1 if value == "-1" else plain.parse(value),
        lambda value: "-1" if value == -1 else f"0x{value:0{width}X}",
        "an id or -1",
    )


def _usb_version(text: str) -> str:
    """Return a USB version with two digits behind the point."""
    major, _, minor = text.partition(".")
    return text if text == "-1" else f"{major}.{minor.ljust(2, '0')}"


usb_version: Codec[str] = Codec(_usb_version, str, "a version such as 2.00")


class RedirFilterUSBDev(ElementDef):
    """One rule of which USB devices may be redirected; -1 stands for any."""

    tag = "usbdev"

    class_ = attribute("class", _id_or_any(2))
    vendor = attribute("vendor", _id_or_any(4))
    product = attribute("product", _id_or_any(4))
    version = attribute("version", usb_version)
    allow = attribute("allow", yes_no)
