# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Random number generators.

Mirrors: virDomainRNGDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.chr_conf import ChrSource
from pyhostdev.conf.device_conf import WORD_NUMBERS, DeviceInfo
from pyhostdev.conf.virtio_conf import VIRTIO_MODELS, VirtioOptions
from pyhostdev.conf.xml.xmlcodec import enum, number
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, content, inline, optional_element
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, VIR_ERR_XML_ERROR, XMLError

if TYPE_CHECKING:
    from collections.abc import Collection

    from pyhostdev.util.virxml import Element


class RNGBackend(ElementDef):
    """Where random bytes come from; an egd backend is a character device."""

    tag = "backend"

    model = attribute(
        "model",
        enum("random", "egd", "builtin"),
        code=VIR_ERR_CONFIG_UNSUPPORTED,
        missing=VIR_ERR_XML_ERROR,
        required=True,
        renumbered=WORD_NUMBERS,
    )
    path = content("")
    chardev = inline(ChrSource)

    @classmethod
    def unread(cls, element: Element) -> Collection[str]:
        """Return the parts of a character device, which only an egd backend has."""
        return () if element.get("model") == "egd" else ("@type", "source", "protocol", "log")

    def parsed(self, element: Element) -> None:
        """Refuse an egd backend without a character device of the host."""
        if self.model == "egd" and self.chardev.type is None:
            raise XMLError("A <backend> with model='egd' needs a type", line=self.line)


class DomainRNGDef(ElementDef):
    """A random number generator."""

    tag = "rng"

    model = attribute(
        "model",
        enum(*VIRTIO_MODELS),
        code=VIR_ERR_CONFIG_UNSUPPORTED,
        missing=VIR_ERR_XML_ERROR,
        required=True,
        renumbered=WORD_NUMBERS,
    )
    rate_bytes = attribute("rate/@bytes", number)
    rate_period = attribute("rate/@period", number)
    backend = optional_element("backend", RNGBackend)
    virtio = inline(VirtioOptions)
    info = inline(DeviceInfo)
