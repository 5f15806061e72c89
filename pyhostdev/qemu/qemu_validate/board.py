# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMU's rules for CPUs, memory and the clock.

Mirrors: qemuValidateDomainDefCpu, qemuValidateDomainDefMemory, qemuValidateDomainDefClockTimers
(src/qemu/qemu_validate.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.cpu_conf import HOST_MODES
from pyhostdev.conf.hypervisor_features_conf import SPINLOCK_RETRIES_MIN
from pyhostdev.conf.os_conf import unit_factor
from pyhostdev.errors import VIR_ERR_CONFIG_UNSUPPORTED, ConfigError, ConfigUnsupportedError, XMLError
from pyhostdev.qemu.qemu_domain import X86, is_arm_virt, is_q35

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.conf.os_conf import MaxMemorySize

    Errors = Iterator[ConfigError]

_SHARES = (2, 262144)  # cpu.shares of a control group, version 1
_CACHE_LEVEL = 3  # the only cache level that QEMU can configure
_APIC_IDS = 255  # with xAPIC, without an IOMMU that remaps interrupts
_START_MAX = 253402300799  # the last second of the year 9999
_NEWER_HYPERV = ("emsr_bitmap", "xmm_input", "tlbflush_direct", "tlbflush_extended")
# timer -> the policies for lost ticks that QEMU supports
_TICK_POLICIES = {
    "rtc": ("delay", "catchup"),
    "pit": ("delay", "discard", "catchup"),
    "armvtimer": ("delay", "discard"),
}


def _unsupported(message: str, where: Any) -> ConfigError:
    return ConfigUnsupportedError(message, line=where.line, libvirt_code=VIR_ERR_CONFIG_UNSUPPORTED)


def board_errors(dom: DomainDef, release: LibvirtRelease) -> Errors:
    """Yield the errors of CPUs, memory, clock and security."""
    yield from _cpu_errors(dom, release)
    yield from _vcpu_errors(dom)
    yield from _memory_errors(dom)
    if dom.max_memory is not None and not release.has("memory-slots"):
        yield from _slot_errors(dom, dom.max_memory)
    yield from _clock_errors(dom)
    yield from _hyperv_errors(dom, release)
    yield from _feature_errors(dom, release)
    yield from _number_errors(dom, release)
    yield from _policy_errors(dom)


def _policy_errors(dom: DomainDef) -> Errors:
    """Yield an error for each setting of the whole domain that QEMU does not have."""
    if dom.on_reboot == "preserve":
        yield _unsupported("on_reboot cannot be 'preserve'", dom)
    if dom.min_guarantee is not None:
        yield _unsupported("QEMU does not support a guaranteed minimum of memory", dom)
    if dom.bootloader or dom.bootloader_args:
        yield _unsupported("QEMU does not support a boot loader on the host", dom)
    if dom.launch_security is not None:
        kind = dom.launch_security.type
        yield _unsupported(f"Launch security of type {kind} is not supported", dom.launch_security)
    tune = dom.cputune
    if tune is not None and dom.type != "kvm" and (tune.cachetune is not None or tune.memorytune is not None):
        yield _unsupported("<cachetune> and <memorytune> are for KVM", tune)


def _cpu_errors(dom: DomainDef, release: LibvirtRelease) -> Errors:
    cpu = dom.cpu
    if cpu is None:
        return
    if cpu.maxphysaddr_mode is not None and dom.os.arch not in X86:
        yield _unsupported(f"The architecture {dom.os.arch} does not support <maxphysaddr>", cpu)
    if cpu.maxphysaddr_mode == "emulate" and cpu.maxphysaddr_limit is not None:
        yield _unsupported("<maxphysaddr mode='emulate'> has no limit", cpu)
    if cpu.maxphysaddr_mode == "emulate" and cpu.maxphysaddr_bits is None and not release.has("cpu-address-limit"):
        yield _unsupported("<maxphysaddr mode='emulate'> needs bits", cpu)
    if cpu.maxphysaddr_mode == "passthrough" and cpu.maxphysaddr_bits is not None:
        yield _unsupported("<maxphysaddr mode='passthrough'> has no bits of its own", cpu)
    if cpu.cache_mode is not None:
        yield from _cache_errors(dom, cpu)


def _cache_errors(dom: DomainDef, cpu: Any) -> Errors:
    if dom.os.arch not in X86:
        yield _unsupported(f"The architecture {dom.os.arch} does not support <cache> of <cpu>", cpu)
    if cpu.cache_mode == "emulate" and cpu.cache_level != _CACHE_LEVEL:
        yield _unsupported(f"<cache mode='emulate'> is of level {_CACHE_LEVEL}", cpu)
    if cpu.cache_mode == "passthrough" and cpu.mode not in HOST_MODES:
        yield _unsupported("<cache mode='passthrough'> is for the host's processor", cpu)
    if cpu.cache_mode != "emulate" and cpu.cache_level is not None:
        yield _unsupported(f"<cache mode='{cpu.cache_mode}'> has no level", cpu)


def _vcpu_errors(dom: DomainDef) -> Errors:
    """Mirrors: qemuValidateDomainVCpuTopology"""
    if dom.os.arch not in X86 or dom.vcpus <= _APIC_IDS:
        return
    if not is_q35(dom):
        yield _unsupported(f"Only a q35 machine supports more than {_APIC_IDS} processors", dom)
    elif not any(iommu.eim or iommu.xtsup for iommu in dom.iommus):
        yield _unsupported(f"More than {_APIC_IDS} processors need an IOMMU with extended interrupt mode", dom)


def _slot_errors(dom: DomainDef, most: MaxMemorySize) -> Errors:
    """Mirrors: virDomainDefPostParseMemory, qemuDomainDefNumaCPUsPostParse, as they were in libvirt 9.0"""
    if not most.slots:
        yield XMLError("<maxMemory> needs slots", line=most.line)
    elif dom.cpu is None or not dom.cpu.cells:
        yield _unsupported("<maxMemory> needs NUMA cells", most)


def _memory_errors(dom: DomainDef) -> Errors:
    backing = dom.memory_backing
    if not backing.hugepages:
        return
    if backing.allocation_mode == "ondemand":
        yield _unsupported("Huge pages cannot be allocated on demand", backing)
    if backing.source_type == "anonymous":
        yield _unsupported("Anonymous memory cannot have huge pages", backing)


def _clock_errors(dom: DomainDef) -> Errors:
    clock = dom.clock
    for timer in clock.timers if clock is not None else ():
        policies = _TICK_POLICIES.get(timer.name)
        if policies is not None and timer.tickpolicy not in (None, *policies):
            yield _unsupported(f"Timer {timer.name} cannot have tickpolicy='{timer.tickpolicy}'", timer)
        if timer.name == "rtc" and timer.track == "boot":
            yield _unsupported("Timer rtc cannot follow the boot time", timer)
        if timer.name == "armvtimer" and is_arm_virt(dom) and (dom.type != "kvm" or timer.present is False):
            yield _unsupported("Timer armvtimer cannot be disabled, and only KVM has it", timer)
    if clock is not None and clock.offset == "absolute" and (clock.start or 0) > _START_MAX:
        yield _unsupported("<clock> starts after the year 9999", clock)


def _number_errors(dom: DomainDef, release: LibvirtRelease) -> Errors:
    """Yield an error for shares of 9.0's limits, and for a memory node that is restrictive alone."""
    least, most = _SHARES
    shares = dom.cputune.shares if dom.cputune is not None else None
    if shares and not least <= shares <= most and not release.has("shares-unbounded"):
        yield _unsupported(f"<shares> of <cputune> is not within {least} and {most}", dom.cputune)
    tune = dom.numatune
    if tune.mode not in (None, "restrictive") and release.has("restrictive-memnode"):
        for node in (part for part in tune.memnodes if part.mode == "restrictive"):
            yield XMLError("A <memnode> can be restrictive only if <memory> is", line=node.line)


def _feature_errors(dom: DomainDef, release: LibvirtRelease) -> Errors:
    """Mirrors: virDomainFeaturesDefParse (src/conf/domain_conf.c), qemuValidateDomainDefFeatures"""
    features = dom.features
    newer = (
        ("ras", release.has("feature-ras")),
        ("ps2", release.has("feature-ps2")),
        ("async_teardown", release.has("feature-async-teardown")),
    )
    for name in (name for name, is_known in newer if not is_known and getattr(features, name) is not None):
        yield _unsupported(f"libvirt {release} has no feature {name}", features)
    if features.ras is not None and not is_arm_virt(dom):
        yield _unsupported("Only ARM virt machines have <ras>", features)
    if features.ps2 is False and features.vmport and features.vmport_state is not False:
        yield _unsupported("<vmport> needs <ps2>, which is off", features)
    if features.tcg_tb_cache is not None and dom.type == "kvm":
        yield _unsupported("A domain of type kvm cannot have <tcg>", features)
    if (features.tcg_tb_cache or 0) % 1024:
        yield _unsupported("The size of <tb-cache> must be a multiple of 1 MiB", features)
    if features.tseg is not None and features.tseg * unit_factor(features.tseg_unit or "MiB") % (1 << 20):
        yield _unsupported("The size of <tseg> must be a multiple of 1 MiB", features)
    if features.hyperv is not None and release.has("hyperv-dependencies"):
        yield from _hyperv_need_errors(dom, features.hyperv)


def _hyperv_need_errors(dom: DomainDef, hyperv: Any) -> Errors:
    """Mirrors: qemuValidateDomainDefHypervFeatures"""
    for name, need in (("tlbflush", "vpindex"), ("ipi", "vpindex"), ("evmcs", "vapic")):
        if getattr(hyperv, name) and not getattr(hyperv, need):
            yield _unsupported(f"<{name}> needs <{need}>", hyperv)
    if hyperv.stimer:
        yield from _stimer_errors(dom, hyperv)


def _stimer_errors(dom: DomainDef, hyperv: Any) -> Errors:
    timers = dom.clock.timers if dom.clock is not None else []
    if not any(timer.name == "hypervclock" and timer.present for timer in timers):
        yield _unsupported("<stimer> needs the timer hypervclock", hyperv)
    if not hyperv.synic:
        yield _unsupported("<stimer> needs <synic>", hyperv)


def _hyperv_errors(dom: DomainDef, release: LibvirtRelease) -> Errors:
    hyperv = dom.features.hyperv
    has_no_retries = hyperv is not None and hyperv.spinlocks and hyperv.spinlocks_retries is None
    if hyperv is not None and has_no_retries and not release.has("default-spinlocks"):
        yield XMLError(f"<spinlocks> needs at least {SPINLOCK_RETRIES_MIN} retries", line=hyperv.line)
    for name in _NEWER_HYPERV if hyperv is not None and not release.has("hyperv-newer") else ():
        if getattr(hyperv, name) is not None:
            yield _unsupported(f"libvirt {release} has no Hyper-V feature {name}", hyperv)
