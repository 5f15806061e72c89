# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The features of the machine.

Mirrors: virDomainFeature (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.xml.xmlcodec import big_number, enum, on_off, size_unit, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import OptionalElement, attribute, content, flag, ignored, opaque, optional_element

if TYPE_CHECKING:
    from pyhostdev.conf.hypervisor_features_conf import HypervFeatures, KVMFeatures


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
    hyperv: OptionalElement[HypervFeatures] = optional_element("hyperv", "hypervisor_features_conf.HypervFeatures")
    kvm: OptionalElement[KVMFeatures] = optional_element("kvm", "hypervisor_features_conf.KVMFeatures")
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
