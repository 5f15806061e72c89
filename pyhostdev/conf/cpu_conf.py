# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest's CPU, its NUMA cells, and the features of the machine.

Mirrors: virCPUDef (src/conf/cpu_conf.h), virDomainNuma (src/conf/numa_conf.c), virDomainFeature
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
    number_any_base,
    on_off,
    positive,
    size_unit,
    unit_factor,
    unsigned,
    yes_no,
)
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import Elements, attribute, content, elements, flag, ignored, opaque, optional_element
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, ConfigError, ConfigUnsupportedError, XMLError, raise_all
from pyhostdev.util.virxml import shown, source_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.hmat_conf import NumaBandwidth, NumaCache, NumaLatency
    from pyhostdev.util.virxml import Element

HOST_MODES = ("host-passthrough", "maximum")  # modes with the host's model and vendor
_TOPOLOGY = ("sockets", "cores", "threads")
VENDOR_LENGTH = 12  # CPUID leaf 0: EBX, EDX and ECX
SPINLOCK_RETRIES_MIN = 0xFFF
HYPERV_VENDOR_MAX = 12
DIRTY_RING_SIZES = (1024, 65536)


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


class FeaturesDef(ElementDef):
    """
    Features of the machine.

    Mirrors: virDomainFeature (src/conf/domain_conf.h)
    """

    tag = "features"

    acpi = flag("acpi")
    apic = flag("apic")
    apic_eoi = attribute("apic/@eoi", on_off)
    pae = flag("pae")
    hap = flag("hap")
    hap_state = attribute("hap/@state", on_off)
    viridian = flag("viridian")
    privnet = flag("privnet")
    hyperv = optional_element("hyperv", HypervFeatures)
    kvm = optional_element("kvm", KVMFeatures)
    pvspinlock = flag("pvspinlock")
    pvspinlock_state = attribute("pvspinlock/@state", on_off)
    capabilities = ignored("capabilities")  # of containers
    pmu = flag("pmu")
    pmu_state = attribute("pmu/@state", on_off)
    vmport = flag("vmport")
    vmport_state = attribute("vmport/@state", on_off)
    gic = flag("gic")
    gic_version = attribute("gic/@version", enum("host", "2", "3"))
    smm = flag("smm")
    smm_state = attribute("smm/@state", on_off)
    tseg = content("smm/tseg", big_number)
    tseg_unit = attribute("smm/tseg/@unit", size_unit)
    ioapic_driver = attribute("ioapic/@driver", enum("qemu", "kvm"))
    hpt_resizing = attribute("hpt/@resizing", enum("enabled", "disabled", "required"))
    hpt_maxpagesize = content("hpt/maxpagesize", big_number)
    hpt_maxpagesize_unit = attribute("hpt/maxpagesize/@unit", size_unit)
    vmcoreinfo = flag("vmcoreinfo")
    vmcoreinfo_state = attribute("vmcoreinfo/@state", on_off)
    htm = attribute("htm/@state", on_off)
    nested_hv = attribute("nested-hv/@state", on_off)
    msrs_unknown = attribute("msrs/@unknown", enum("ignore", "fault"))
    ccf_assist = attribute("ccf-assist/@state", on_off)
    xen = opaque("xen", for_host=True)
    cfpc = attribute("cfpc/@value", enum("broken", "workaround", "fixed"))
    sbbc = attribute("sbbc/@value", enum("broken", "workaround", "fixed"))
    ibs = attribute("ibs/@value", enum("broken", "workaround", "fixed-ibs", "fixed-ccd", "fixed-na"))
    tcg_tb_cache = content("tcg/tb-cache", big_number)
    tcg_tb_cache_unit = attribute("tcg/tb-cache/@unit", size_unit)
    ras = attribute("ras/@state", on_off)
    ps2 = attribute("ps2/@state", on_off)
    async_teardown = attribute("async-teardown/@enabled", yes_no)
