# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Random number generators.

Mirrors: virDomainRNGDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

from pyhostdev.conf.chr_conf import ChrSource
from pyhostdev.conf.device_conf import WORD_NUMBERS, DeviceInfo
from pyhostdev.conf.virtio_conf import VIRTIO_MODELS, VirtioOptions
from pyhostdev.conf.xml.xmlcodec import enum, number
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, content, inline, optional_element
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, VIR_ERR_XML_ERROR


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
