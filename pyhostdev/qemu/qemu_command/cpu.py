# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Processors, memory, NUMA and time on the command line.

Mirrors: qemuBuildCpuCommandLine, qemuBuildMemCommandLine, qemuBuildSmpCommandLine,
qemuBuildNumaCommandLine, qemuBuildClockCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pyhostdev.conf.os_conf import unit_factor
from pyhostdev.qemu.qemu_command.builder import on_off, plain_value, unsupported, uses_machine_option
from pyhostdev.qemu.qemu_domain import PPC64
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder

_KIB = 1024
_PSERIES_STEP_KIB = 256 * _KIB  # the firmware hands out memory in blocks of 256 MiB

# <hyperv> elements that are a plain switch
_HYPERV_SWITCHES = (
    "relaxed",
    "vapic",
    "vpindex",
    "runtime",
    "synic",
    "stimer",
    "reset",
    "frequencies",
    "reenlightenment",
    "tlbflush",
    "ipi",
    "evmcs",
    "avic",
)
_ENABLED_POLICIES = {"force": True, "require": True, "optional": True, "disable": False, "forbid": False}


def build_cpu(build: CommandBuilder) -> None:
    """
    Choose the processor model and its flags.

    Raises:
        ConfigUnsupportedError: a mode that would need the host's processor to be known.
    """
    options = [_cpu_model(build), *_cpu_features(build)]
    if options != [""]:
        build.add("-cpu", ",".join(options))


def _cpu_model(build: CommandBuilder) -> str:
    cpu = build.dom.cpu
    arch_default = build.capabilities.default_cpu(str(build.dom.os.machine)) or ""
    if cpu is None or (cpu.mode in (None, "custom") and cpu.model is None):
        return arch_default
    if cpu.mode == "host-passthrough":
        if build.dom.type != "kvm":
            raise unsupported("A processor of mode host-passthrough without KVM", cpu)
        migratable = "" if cpu.migratable is None else f",migratable={on_off(cpu.migratable)}"
        return f"host{migratable}"
    if cpu.mode == "maximum":
        migratable = "" if cpu.migratable is None else f",migratable={on_off(cpu.migratable)}"
        return f"max{migratable}"
    if cpu.mode == "host-model":
        raise unsupported("A processor of mode host-model", cpu)
    return plain_value(str(cpu.model), "CPU model", cpu)


def _cpu_features(build: CommandBuilder) -> list[str]:
    cpu, features = build.dom.cpu, build.dom.features
    options = [*_timer_features(build)]
    if cpu is not None:
        if cpu.vendor_id is not None:
            options.insert(0, f"vendor={plain_value(cpu.vendor_id, 'CPU vendor', cpu)}")
        named = [_feature(f) for f in cpu.features]
        options = [*named, *options]
    if features is None:
        return options
    if features.apic and features.apic_eoi is not None:
        options.append(f"kvm-pv-eoi={on_off(features.apic_eoi)}")
    if features.pvspinlock:
        options.append(f"kvm-pv-unhalt={on_off(features.pvspinlock_state is not False)}")
    if features.hyperv is not None:
        options += _hyperv(features.hyperv)
    if any(panic.model == "hyperv" for panic in build.dom.panics):
        options.append("hv-crash=on" if build.release.has("hv-crash-on") else "hv-crash")
    if features.kvm is not None:
        options += _kvm(features.kvm)
    if features.pmu:
        options.append(f"pmu={on_off(features.pmu_state is not False)}")
    return options + _cpu_cache(build)


def _feature(feature: Any) -> str:
    """
    Return one flag of the processor.

    Raises:
        ConfigUnsupportedError: its name would say more than one flag.
    """
    name = plain_value(str(feature.name), "CPU feature", feature)
    if "=" in name:
        raise unsupported(f"CPU feature '{name}'", feature)
    return f"{name}={on_off(_ENABLED_POLICIES[feature.policy or 'require'])}"


def _timer_features(build: CommandBuilder) -> list[str]:
    clock = build.dom.clock
    options = []
    for timer in clock.timers if clock is not None else ():
        if timer.name == "kvmclock" and timer.present is not None:
            options.append(f"kvmclock={on_off(timer.present)}")
        elif timer.name == "hypervclock" and timer.present:
            options.append("hv-time=on")
        elif timer.name == "tsc" and timer.frequency:
            options.append(f"tsc-frequency={timer.frequency}")
    return options


def _hyperv(hyperv: Any) -> list[str]:
    if hyperv.mode == "passthrough":
        return ["hv-passthrough=on"]
    options = []
    for name in _HYPERV_SWITCHES:
        if getattr(hyperv, name):
            options.append(f"hv-{name}=on")
        if name == "vapic" and hyperv.spinlocks:
            options.append(f"hv-spinlocks={hyperv.spinlocks_retries:#x}")
        if name == "stimer" and hyperv.stimer_direct:
            options.append("hv-stimer-direct=on")
        if name == "reset" and hyperv.vendor_id:
            options.append(f"hv-vendor-id={plain_value(hyperv.vendor_id_value or '', 'Hyper-V vendor', hyperv)}")
    return options


def _kvm(kvm: Any) -> list[str]:
    options = []
    if kvm.hidden:
        options.append("kvm=off")
    if kvm.hint_dedicated:
        options.append("kvm-hint-dedicated=on")
    if kvm.poll_control:
        options.append("kvm-poll-control=on")
    if kvm.pv_ipi is False:
        options.append("kvm-pv-ipi=off")
    return options


def _cpu_cache(build: CommandBuilder) -> list[str]:
    cpu = build.dom.cpu
    if cpu is None or cpu.cache_mode is None:
        return []
    options = {"emulate": ["l3-cache=on"], "passthrough": ["host-cache-info=on"], "disable": []}[cpu.cache_mode]
    if cpu.cache_mode != "passthrough" and cpu.mode in ("host-passthrough", "maximum"):
        options.append("host-cache-info=off")
    if cpu.cache_mode != "emulate":
        options.append("l3-cache=off")
    return options


def build_memory(build: CommandBuilder) -> None:
    """Size the guest's memory and say what backs it."""
    dom = build.dom
    size = f"size={_initial_kib(build)}k"
    if dom.max_memory is not None and dom.max_memory.slots:
        build.add("-m", f"{size},slots={dom.max_memory.slots},maxmem={dom.max_memory.kib}k")
    elif build.release.has("memory-size-in-kib"):
        build.add("-m", size)
    else:
        build.add("-m", str(_initial_kib(build) // 1024))
    ram = build.capabilities.machine(str(dom.os.machine)).ram_id
    if ram is not None and not (dom.cpu is not None and dom.cpu.cells):
        kind, properties = memory_backend(build, _initial_kib(build), named=True)
        build.add_object(kind, ram, **properties)
    locked = dom.memory_backing is not None and dom.memory_backing.locked
    build.add("-overcommit", f"mem-lock={on_off(locked)}")


def _initial_kib(build: CommandBuilder) -> int:
    """Return the memory at start: the whole of it without what comes as devices."""
    cells = build.dom.cpu.cells if build.dom.cpu is not None else []
    if cells:
        return sum(_aligned(build, cell.memory_kib) for cell in cells)
    return _aligned(build, build.dom.memory_kib - sum(module.size_kib for module in build.dom.memories))


def _aligned(build: CommandBuilder, kib: int) -> int:
    """
    Return an amount of memory rounded up to what the machine can have.

    Mirrors: qemuDomainAlignMemorySizes (src/qemu/qemu_domain.c)
    """
    step = _PSERIES_STEP_KIB if build.dom.os.arch in PPC64 else _KIB
    return -(-kib // step) * step


def memory_backend(
    build: CommandBuilder, kib: int, access: str | None = None, *, named: bool = False
) -> tuple[str, dict[str, Any]]:
    """
    Return type and properties of the object that provides memory.

    Args:
        access: shared or private, where the NUMA node or the module says so itself.
        named: the machine's own memory, whose id must not change between QEMU versions.

    Raises:
        ConfigUnsupportedError: a backing that we do not build.

    Mirrors: qemuBuildMemoryBackendProps
    """
    backing = build.dom.memory_backing
    access = access or backing.access_mode
    share = None if access is None else access == "shared"
    prealloc = True if backing.hugepages or backing.allocation_mode == "immediate" else None
    if backing.source_type in (None, "anonymous") and not backing.hugepages:
        return "memory-backend-ram", {"share": share, "prealloc": prealloc, "size": kib * _KIB}
    if backing.source_type == "file":
        raise unsupported("Memory backed by a file", backing)
    if backing.discard:
        raise unsupported("<discard> of memory that is backed by a file", backing)
    canonical = False if named else None
    if backing.source_type == "memfd":
        properties: dict[str, Any] = {}
        if backing.hugepages:
            properties = {"hugetlb": True, "hugetlbsize": _page_kib(backing) * _KIB}
        kind = "memory-backend-memfd"
    else:
        kind, properties = "memory-backend-file", {"mem-path": _hugepage_path(build, backing)}
    return kind, {
        **properties,
        "share": share,
        "x-use-canonical-path-for-ramblock-id": canonical,
        "prealloc": prealloc,
        "size": kib * _KIB,
    }


def _page_kib(backing: Any) -> int:
    """
    Return the page size; without one said, that of the host's default huge page on x86.

    Raises:
        ConfigUnsupportedError: different sizes for different nodes.
    """
    if len(backing.pages) > 1 or (backing.pages and backing.pages[0].nodeset):
        raise unsupported("<page nodeset=>", backing)
    if not backing.pages:
        return 2048
    page = backing.pages[0]
    return int(page.size * unit_factor(page.unit)) // _KIB


def _hugepage_path(build: CommandBuilder, backing: Any) -> str:
    kib = _page_kib(backing)
    directory = "/dev/hugepages" if kib == 2048 else f"/dev/hugepages{kib >> 20}G"
    return f"{directory}/libvirt/qemu/{build.paths.short_name}"


def build_smp(build: CommandBuilder) -> None:
    """Say how many processors there are and how they are arranged."""
    dom = build.dom
    options = [str(dom.vcpu_current or dom.vcpus)]
    if dom.vcpu_current is not None and dom.vcpu_current != dom.vcpus:
        options.append(f"maxcpus={dom.vcpus}")
    cpu = dom.cpu
    if cpu is not None and cpu.sockets:
        dies = cpu.dies or 1
        clusters = f"clusters={cpu.clusters}," if cpu.clusters else ""
        options.append(f"sockets={cpu.sockets},dies={dies},{clusters}cores={cpu.cores},threads={cpu.threads}")
    else:
        options.append(f"sockets={dom.vcpus},cores=1,threads=1")
    build.add("-smp", ",".join(options))


def build_iothreads(build: CommandBuilder) -> None:
    """Create the I/O threads."""
    dom = build.dom
    if dom.iothread_ids is not None or dom.default_iothread is not None:
        raise unsupported("<iothreadids>", dom)
    for number in range(1, (dom.iothreads or 0) + 1):
        build.add_object("iothread", f"iothread{number}")


def build_numa(build: CommandBuilder) -> None:
    """Divide memory and processors into the guest's NUMA nodes."""
    cpu = build.dom.cpu
    if cpu is None or not cpu.cells:
        return
    if cpu.interconnects is not None:
        raise unsupported("<interconnects>", cpu)
    for cell in cpu.cells:
        _build_cell(build, cell)


def _build_cell(build: CommandBuilder, cell: Any) -> None:
    if cell.distances is not None or cell.cache is not None:
        raise unsupported("<distances> or <cache> of a NUMA cell", cell)
    memory = []
    if cell.memory_kib or not build.release.has("numa-cells-without-memory"):
        memory = [f"memdev=ram-node{cell.id}"]
        kind, properties = memory_backend(build, _aligned(build, cell.memory_kib), cell.mem_access)
        build.add_object(kind, f"ram-node{cell.id}", **properties)
    parts = [part for part in (cell.cpus or "").split(",") if part]
    if not all(re.fullmatch(r"[0-9]+(-[0-9]+)?", part, re.ASCII) for part in parts):
        raise unsupported(f"The processors '{shown(cell.cpus)}' of a NUMA cell", cell)
    cpus = [f"cpus={part}" for part in parts]
    build.add("-numa", ",".join(["node", f"nodeid={cell.id}", *cpus, *memory]))


def build_clock(build: CommandBuilder) -> None:
    """
    Set the guest's clock and its timers.

    Raises:
        ConfigUnsupportedError: a clock that would need to know the time now.
    """
    clock = build.dom.clock
    offset = clock.offset if clock is not None else "utc"
    if offset not in ("utc", "localtime") or (clock is not None and clock.adjustment not in (None, "reset")):
        raise unsupported(f"<clock offset='{offset}'> with an adjustment or a date", clock)
    timers = {timer.name: timer for timer in clock.timers} if clock is not None else {}
    build.add("-rtc", f"base={offset}{_rtc_options(timers.get('rtc'))}")
    for timer in timers.values():
        _build_timer(build, timer)


def _rtc_options(timer: Any | None) -> str:
    """Return what <timer name='rtc'> adds: which clock it follows, and what happens to lost ticks."""
    if timer is None:
        return ""
    clock = {"guest": ",clock=vm", "wall": ",clock=host"}.get(timer.track, "")
    return clock + (",driftfix=slew" if timer.tickpolicy == "catchup" else "")


def _build_timer(build: CommandBuilder, timer: Any) -> None:
    if timer.name == "pit":
        if timer.tickpolicy in ("delay", "discard"):
            build.add("-global", f"kvm-pit.lost_tick_policy={timer.tickpolicy}")
        elif timer.tickpolicy is not None:
            raise unsupported(f"<timer name='pit' tickpolicy='{timer.tickpolicy}'>", timer)
    elif timer.name == "hpet":
        if timer.present is False and not uses_machine_option(build, "hpet"):
            build.add("-no-hpet")
    elif timer.name == "rtc":
        if timer.tickpolicy not in (None, "catchup", "delay") or timer.track not in (None, "guest", "wall"):
            raise unsupported("<timer name='rtc'> with this track or tickpolicy", timer)
    elif timer.name not in ("kvmclock", "hypervclock", "tsc"):
        raise unsupported(f"<timer name='{timer.name}'>", timer)
