# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Shared directories of the host.

Mirrors: virDomainFSDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.device_conf import DeviceInfo
from pyhostdev.conf.os_conf import SizeDef
from pyhostdev.conf.storage_source_conf import IMAGE_FORMATS
from pyhostdev.conf.virtio_conf import VIRTIO_MODELS, VirtioOptions
from pyhostdev.conf.xml.xmlcodec import Codec, enum, number, on_off
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, elements, flag, inline, optional_element
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED
from pyhostdev.util.virxml import parse_unsigned

if TYPE_CHECKING:
    from collections.abc import Collection

    from pyhostdev.util.virxml import Element


class IdMapEntry(ElementDef):
    """A range of ids of the guest, and its start on the host."""

    start = attribute("start", number, required=True)
    target = attribute("target", number, required=True)
    count = attribute("count", number, required=True)


file_mode: Codec[int] = Codec(lambda text: parse_unsigned(text, 8, 0o777), lambda mode: f"{mode:04o}", "an octal mode")


class DomainFSDef(ElementDef):
    """A directory of the host in the guest."""

    tag = "filesystem"

    type = attribute("type", enum("mount", "block", "file", "template", "ram", "bind", "volume"), default="mount")
    accessmode = attribute("accessmode", enum("passthrough", "mapped", "squash"))
    model = attribute("model", enum(*VIRTIO_MODELS))
    multidevs = attribute("multidevs", enum("default", "remap", "forbid", "warn"))
    fmode = attribute("fmode", file_mode)
    dmode = attribute("dmode", file_mode)
    driver_type = attribute(
        "driver/@type", enum("path", "handle", "loop", "nbd", "ploop", "virtiofs", since={"mtp": "fs-mtp"})
    )
    driver_format = attribute("driver/@format", enum(*IMAGE_FORMATS[1:]), code=VIR_ERR_CONFIG_UNSUPPORTED)
    driver_name = attribute("driver/@name")
    wrpolicy = attribute("driver/@wrpolicy", enum("immediate"))
    queue = attribute("driver/@queue", number)
    virtio = inline(VirtioOptions)
    binary_path = attribute("binary/@path")
    binary_xattr = attribute("binary/@xattr", on_off)
    binary_cache = attribute("binary/cache/@mode", enum("none", "always", since={"metadata": "virtiofs-idmap"}))
    binary_sandbox = attribute("binary/sandbox/@mode", enum("namespace", "chroot", "none"))
    binary_posix_lock = attribute("binary/lock/@posix", on_off)
    binary_flock = attribute("binary/lock/@flock", on_off)
    binary_threads = attribute("binary/thread_pool/@size", number)
    binary_openfiles = attribute("binary/openfiles/@max", number, since="virtiofs-idmap")
    uid_map = elements("idmap/uid", IdMapEntry, since="virtiofs-idmap")
    gid_map = elements("idmap/gid", IdMapEntry, since="virtiofs-idmap")
    source_dir = attribute("source/@dir")
    source_file = attribute("source/@file")
    source_dev = attribute("source/@dev")
    source_socket = attribute("source/@socket")
    source_name = attribute("source/@name")
    target = attribute("target/@dir")
    readonly = flag("readonly")
    info = inline(DeviceInfo)
    space_hard_limit = optional_element("space_hard_limit", SizeDef)
    space_soft_limit = optional_element("space_soft_limit", SizeDef)

    @classmethod
    def unread(cls, element: Element) -> Collection[str]:
        """
        Return what only virtiofs has, if the driver is another one.

        Mirrors: virDomainFSDefParseXML (src/conf/domain_conf.c)
        """
        is_virtiofs = element.find("driver[@type='virtiofs']") is not None
        return () if is_virtiofs else ("driver/@queue", "binary", "idmap")

    @property
    def is_mtp(self) -> bool:
        """True if the guest sees a USB device that speaks the Media Transfer Protocol."""
        return self.driver_type == "mtp"

    @property
    def is_virtiofs(self) -> bool:
        """True if a virtiofsd serves the directory."""
        return self.driver_type == "virtiofs"
