# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest's CPU and its NUMA cells.

Mirrors: virCPUDef (src/conf/cpu_conf.h), virDomainNuma (src/conf/numa_conf.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.xml.xmlcodec import (
    big_number,
    cpuset,
    enum,
    name_text,
    nodes_of,
    number,
    on_off,
    positive,
    size_unit,
    unit_factor,
    unsigned,
    yes_no,
)
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import Elements, attribute, content, elements
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, ConfigError, ConfigUnsupportedError, XMLError, raise_all
from pyhostdev.util.virxml import shown, source_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.hmat_conf import NumaBandwidth, NumaCache, NumaLatency
    from pyhostdev.util.virxml import Element

HOST_MODES = ("host-passthrough", "maximum")  # modes with the host's model and vendor
_TOPOLOGY = ("sockets", "cores", "threads")
VENDOR_LENGTH = 12  # CPUID leaf 0: EBX, EDX and ECX


class CPUFeature(ElementDef):
    """A CPU flag and its policy."""

    tag = "feature"

    policy = attribute(
        "policy", enum("force", "require", "optional", "disable", "forbid"), code=VIR_ERR_CONFIG_UNSUPPORTED
    )
    name = attribute("name", name_text, required=True)


class NumaSibling(ElementDef):
    """The distance to another node in ACPI's unit: 10 is the node itself."""

    tag = "sibling"

    id = attribute("id", number, required=True)
    value = attribute("value", number, required=True)


class NumaCell(ElementDef):
    """A node of the guest's NUMA topology; memory in KiB once normalised."""

    tag = "cell"

    id = attribute("id", number)
    cpus = attribute("cpus", cpuset)
    memory = attribute("memory", big_number, required=True)
    unit = attribute("unit", size_unit)
    mem_access = attribute("memAccess", enum("shared", "private"))
    discard = attribute("discard", yes_no)
    distances = elements("distances/sibling", NumaSibling)
    caches: Elements[NumaCache] = elements("cache", "hmat_conf.NumaCache")

    @property
    def memory_kib(self) -> int:
        """The cell's memory in KiB, rounded up."""
        return -(-(self.memory or 0) * unit_factor(self.unit) // 1024)

    @property
    def cpu_numbers(self) -> set[int]:
        """The numbers of the cell's virtual CPUs."""
        return set(nodes_of(self.cpus or ""))


class CPUDef(ElementDef):
    """
    The CPU that the guest sees.

    Mirrors: virCPUDef (src/conf/cpu_conf.h)
    """

    tag = "cpu"

    mode = attribute(
        "mode", enum("custom", "host-model", "host-passthrough", "maximum"), code=VIR_ERR_CONFIG_UNSUPPORTED
    )
    match = attribute("match", enum("minimum", "exact", "strict"))
    check = attribute("check", enum("none", "partial", "full"))
    migratable = attribute("migratable", on_off)
    deprecated_features = attribute("deprecated_features", on_off, since="cpu-deprecated-features")
    model = content("model")
    fallback = attribute("model/@fallback", enum("allow", "forbid"), code=VIR_ERR_CONFIG_UNSUPPORTED)
    vendor_id = attribute("model/@vendor_id")
    vendor = content("vendor")
    sockets = attribute("topology/@sockets", positive)
    dies = attribute("topology/@dies", positive)
    clusters = attribute("topology/@clusters", positive, since="cpu-clusters")
    cores = attribute("topology/@cores", positive)
    threads = attribute("topology/@threads", positive)
    cache_level = attribute("cache/@level", unsigned(minimum=1, maximum=3))
    cache_mode = attribute("cache/@mode", enum("emulate", "passthrough", "disable"))
    maxphysaddr_mode = attribute("maxphysaddr/@mode", enum("emulate", "passthrough"))
    maxphysaddr_bits = attribute("maxphysaddr/@bits", positive)
    maxphysaddr_limit = attribute("maxphysaddr/@limit", positive, since="cpu-address-limit")
    features = elements("feature", CPUFeature)
    cells = elements("numa/cell", NumaCell)
    latencies: Elements[NumaLatency] = elements("numa/interconnects/latency", "hmat_conf.NumaLatency")
    bandwidths: Elements[NumaBandwidth] = elements("numa/interconnects/bandwidth", "hmat_conf.NumaBandwidth")

    @property
    def has_hmat(self) -> bool:
        """True if the guest gets an HMAT, with the speed of its nodes' memory."""
        return bool(self.latencies or self.bandwidths or any(cell.caches for cell in self.cells))

    def parsed(self, element: Element) -> None:
        """
        Refuse a part that is incomplete, given twice, or without the part that it describes.

        Mirrors: virCPUDefParseXML (src/conf/cpu_conf.c)
        """
        raise_all([*self._incomplete(element), *self._misplaced()])

    def _incomplete(self, element: Element) -> Iterator[ConfigError]:
        needed = {
            "topology": ("sockets", "cores", "threads"),
            "cache": ("cache_mode",),
            "maxphysaddr": ("maxphysaddr_mode",),
        }
        for tag, names in needed.items():
            found = element.findall(tag)
            line = source_line(found[0]) if found else None
            missing = [name.rpartition("_")[2] for name in names if found and getattr(self, name) is None]
            if missing:
                yield XMLError(f"<{tag}> of <cpu> lacks '{missing[0]}'", line=line)
            if tag == "cache" and len(found) > 1:
                yield XMLError("A <cpu> can have only one <cache>", line=source_line(found[1]))
        numa = element.find("numa")
        if numa is not None and not self.cells:
            yield XMLError("<numa> has no <cell>", line=source_line(numa))

    def _misplaced(self) -> Iterator[ConfigError]:
        line = self.line
        if self.migratable is not None and self.mode not in HOST_MODES:
            yield ConfigUnsupportedError("Only the modes host-passthrough and maximum can have migratable", line=line)
        if self.vendor_id is not None and self.mode not in HOST_MODES:
            yield from self._vendor_errors()
        if self.vendor is not None and self.model is None:
            yield XMLError("<vendor> of <cpu> needs a <model>", line=line)
        if self.features and self.model is None and self.mode in (None, "custom"):
            yield XMLError("<feature> of <cpu> needs a <model>", line=line)
        names = [feature.name for feature in self.features]
        for place, feature in enumerate(self.features):
            if feature.name in names[:place]:
                yield XMLError(f"CPU feature '{shown(feature.name)}' is named twice", line=feature.line)

    def _vendor_errors(self) -> Iterator[ConfigError]:
        vendor = self.vendor_id or ""
        if len(vendor.encode()) != VENDOR_LENGTH or "," in vendor:
            yield XMLError(f"The vendor_id of a CPU must have {VENDOR_LENGTH} characters and no comma", line=self.line)
