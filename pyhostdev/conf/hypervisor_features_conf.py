# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The features of Hyper-V and KVM that the guest sees.

Mirrors: virDomainFeaturesHyperVDefParse, virDomainFeaturesKVMDefParse (src/conf/domain_conf.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.xml.xmlcodec import enum, number, number_any_base, on_off
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute
from pyhostdev.errors import ConfigError, XMLError, raise_all
from pyhostdev.util.virxml import source_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.util.virxml import Element

SPINLOCK_RETRIES_MIN = 0xFFF
HYPERV_VENDOR_MAX = 12
DIRTY_RING_SIZES = (1024, 65536)


class HypervFeatures(ElementDef):
    """Enlightenments for Windows guests."""

    tag = "hyperv"

    mode = attribute("mode", enum("custom", "passthrough", since={"host-model": "hyperv-host-model"}))
    relaxed = attribute("relaxed/@state", on_off)
    vapic = attribute("vapic/@state", on_off)
    spinlocks = attribute("spinlocks/@state", on_off)
    spinlocks_retries = attribute("spinlocks/@retries", number_any_base)
    vpindex = attribute("vpindex/@state", on_off)
    runtime = attribute("runtime/@state", on_off)
    synic = attribute("synic/@state", on_off)
    stimer = attribute("stimer/@state", on_off)
    stimer_direct = attribute("stimer/direct/@state", on_off)
    reset = attribute("reset/@state", on_off)
    vendor_id = attribute("vendor_id/@state", on_off)
    vendor_id_value = attribute("vendor_id/@value")
    frequencies = attribute("frequencies/@state", on_off)
    reenlightenment = attribute("reenlightenment/@state", on_off)
    tlbflush = attribute("tlbflush/@state", on_off)
    tlbflush_direct = attribute("tlbflush/direct/@state", on_off)
    tlbflush_extended = attribute("tlbflush/extended/@state", on_off)
    ipi = attribute("ipi/@state", on_off)
    evmcs = attribute("evmcs/@state", on_off)
    avic = attribute("avic/@state", on_off)
    emsr_bitmap = attribute("emsr_bitmap/@state", on_off)
    xmm_input = attribute("xmm_input/@state", on_off)

    def parsed(self, element: Element) -> None:
        """
        Refuse features without a state, and values out of range.

        Mirrors: virDomainFeaturesHyperVDefParse (src/conf/domain_conf.c)
        """
        if self.mode == "passthrough":
            return
        known = [*_states_missing(self, element)]
        if self.spinlocks and self.spinlocks_retries is not None and self.spinlocks_retries < SPINLOCK_RETRIES_MIN:
            known.append(XMLError(f"<spinlocks> needs at least {SPINLOCK_RETRIES_MIN} retries", line=self.line))
        vendor = self.vendor_id_value
        if self.vendor_id and (vendor is None or len(vendor.encode()) > HYPERV_VENDOR_MAX or "," in vendor):
            text = f"<vendor_id> of <hyperv> needs a value of at most {HYPERV_VENDOR_MAX} characters without comma"
            known.append(XMLError(text, line=self.line))
        raise_all(known)


def _states_missing(features: ElementDef, element: Element) -> Iterator[ConfigError]:
    """Yield an error for each known feature without a state."""
    for feature in element:
        if isinstance(feature.tag, str) and features.has_child(feature.tag) and feature.get("state") is None:
            yield XMLError(f"<{feature.tag}> of <{element.tag}> lacks 'state'", line=source_line(feature))


class KVMFeatures(ElementDef):
    """Features of KVM that the guest sees."""

    tag = "kvm"

    hidden = attribute("hidden/@state", on_off)
    hint_dedicated = attribute("hint-dedicated/@state", on_off)
    poll_control = attribute("poll-control/@state", on_off)
    pv_ipi = attribute("pv-ipi/@state", on_off)
    dirty_ring = attribute("dirty-ring/@state", on_off)
    dirty_ring_size = attribute("dirty-ring/@size", number)

    def parsed(self, element: Element) -> None:
        """
        Refuse features without a state, and a dirty ring of an invalid size.

        Mirrors: virDomainFeaturesKVMDefParse (src/conf/domain_conf.c)
        """
        raise_all([*_states_missing(self, element)])
        size, (least, most) = self.dirty_ring_size or 0, DIRTY_RING_SIZES
        if self.dirty_ring and (size & (size - 1) or not least <= size <= most):
            raise XMLError(f"The size of a dirty ring must be a power of two from {least} to {most}", line=self.line)
