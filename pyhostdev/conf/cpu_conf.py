# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The guest's processor, its NUMA cells, and the features of the machine around it.

Mirrors: virCPUDef (src/conf/cpu_conf.h), virDomainNuma (src/conf/numa_conf.c), virDomainFeature
"""

from __future__ import annotations

from pyhostdev.conf.xml.xmlcodec import (
    big_number,
    enum,
    number,
    number_any_base,
    on_off,
    size_unit,
    unit_factor,
    yes_no,
)
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, child, children, content, flag, opaque


class CPUFeature(ElementDef):
    """A flag of the processor and what is done about it."""

    tag = "feature"

    policy = attribute("policy", enum("force", "require", "optional", "disable", "forbid"))
    name = attribute("name", required=True)


class NumaCell(ElementDef):
    """A node of the guest's NUMA topology; memory in KiB once normalised."""

    tag = "cell"

    id = attribute("id", number)
    cpus = attribute("cpus")
    memory = attribute("memory", big_number)
    unit = attribute("unit", size_unit)
    mem_access = attribute("memAccess", enum("shared", "private"))
    discard = attribute("discard", yes_no)
    distances = opaque("distances")
    cache = opaque("cache")

    @property
    def memory_kib(self) -> int:
        """The cell's memory in KiB, rounded up."""
        return -(-(self.memory or 0) * unit_factor(self.unit) // 1024)


class CPUDef(ElementDef):
    """
    The processor the guest sees.

    Mirrors: virCPUDef (src/conf/cpu_conf.h)
    """

    tag = "cpu"

    mode = attribute("mode", enum("custom", "host-model", "host-passthrough", "maximum"))
    match = attribute("match", enum("minimum", "exact", "strict"))
    check = attribute("check", enum("none", "partial", "full"))
    migratable = attribute("migratable", on_off)
    model = content("model")
    fallback = attribute("model/@fallback", enum("allow", "forbid"))
    vendor_id = attribute("model/@vendor_id")
    vendor = content("vendor")
    sockets = attribute("topology/@sockets", number)
    dies = attribute("topology/@dies", number)
    cores = attribute("topology/@cores", number)
    threads = attribute("topology/@threads", number)
    cache_level = attribute("cache/@level", number)
    cache_mode = attribute("cache/@mode", enum("emulate", "passthrough", "disable"))
    maxphysaddr_mode = attribute("maxphysaddr/@mode", enum("emulate", "passthrough"))
    maxphysaddr_bits = attribute("maxphysaddr/@bits", number)
    features = children("feature", CPUFeature)
    cells = children("numa/cell", NumaCell)
    interconnects = opaque("numa/interconnects")


class HypervFeatures(ElementDef):
    """Enlightenments for Windows guests."""

    tag = "hyperv"

    mode = attribute("mode", enum("custom", "passthrough"))
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
    ipi = attribute("ipi/@state", on_off)
    evmcs = attribute("evmcs/@state", on_off)
    avic = attribute("avic/@state", on_off)


class KVMFeatures(ElementDef):
    """What KVM shows of itself."""

    tag = "kvm"

    hidden = attribute("hidden/@state", on_off)
    hint_dedicated = attribute("hint-dedicated/@state", on_off)
    poll_control = attribute("poll-control/@state", on_off)
    pv_ipi = attribute("pv-ipi/@state", on_off)
    dirty_ring = attribute("dirty-ring/@state", on_off)
    dirty_ring_size = attribute("dirty-ring/@size", number)


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
    hyperv = child("hyperv", HypervFeatures)
    kvm = child("kvm", KVMFeatures)
    pvspinlock = flag("pvspinlock")
    pvspinlock_state = attribute("pvspinlock/@state", on_off)
    capabilities = opaque("capabilities")
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
    xen = opaque("xen")
    cfpc = attribute("cfpc/@value", enum("broken", "workaround", "fixed"))
    sbbc = attribute("sbbc/@value", enum("broken", "workaround", "fixed"))
    ibs = attribute("ibs/@value", enum("broken", "workaround", "fixed-ibs", "fixed-ccd", "fixed-na"))
    tcg_tb_cache = content("tcg/tb-cache", big_number)
    tcg_tb_cache_unit = attribute("tcg/tb-cache/@unit", size_unit)
    async_teardown = attribute("async-teardown/@enabled", yes_no)
