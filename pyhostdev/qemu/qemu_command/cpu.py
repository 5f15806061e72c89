# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Processors and I/O threads on the command line.

Mirrors: qemuBuildCpuCommandLine, qemuBuildSmpCommandLine, qemuBuildIOThreadCommandLine (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.tuning_postparse import iothread_numbers
from pyhostdev.qemu.qemu_command.builder import on_off, plain_value, unsupported
from pyhostdev.util.virxml import shown

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

_RETRIES_MAX = 0xFFFFFFFF  # of spinlocks without a number, which never give up
# <hyperv> elements that only have a state
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
    "emsr_bitmap",
    "xmm_input",
)
# policy -> state of the flag; with "optional" the model decides
_POLICIES = {"force": "on", "require": "on", "optional": None, "disable": "off", "forbid": "off"}


# recorded answers of libvirt 9.0 to 12.8 for EPYC; the other two models are the same processor
_LOST_FEATURES = dict.fromkeys(("EPYC", "EPYC-IBPB", "Dhyana"), ("monitor",))


def build_cpu(build: CommandBuilder) -> None:
    """
    Add the CPU model and its flags.

    Raises:
        ConfigUnsupportedError: the mode needs facts about the host's processor.
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
        return _host_model(build, cpu)
    return _plain_name(str(cpu.model), "CPU model", cpu)


def _host_model(build: CommandBuilder, cpu: Any) -> str:
    """
    Return the model for mode host-model: the host's processor without the flags that prevent migration.

    libvirt instead names the closest model of its own list, and the flags in which the host differs.
    """
    vendor = "" if cpu.vendor_id is None else f",vendor={plain_value(cpu.vendor_id, 'CPU vendor', cpu)}"
    return f"host,migratable=on{vendor}" if build.dom.type == "kvm" else f"max{vendor}"


def _cpu_features(build: CommandBuilder) -> list[str]:
    cpu, features = build.dom.cpu, build.dom.features
    options = [*_timer_features(build)]
    if cpu is not None:
        if cpu.vendor_id is not None and cpu.mode == "custom":
            options.insert(0, f"vendor={plain_value(cpu.vendor_id, 'CPU vendor', cpu)}")
        named = [_feature(f) for f in cpu.features if _POLICIES[f.policy or "require"]]
        options = [*named, *_lost_features(cpu), *options]
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
    return options + _cpu_cache(build) + _address_bits(build)


def _plain_name(name: str, what: str, device: Any) -> str:
    """
    Return the name of a model or a flag.

    Raises:
        ConfigUnsupportedError: the name would set another option, too.
    """
    if "=" in plain_value(name, what, device):
        raise unsupported(f"{what} '{shown(name)}'", device)
    return name


def _feature(feature: Any) -> str:
    """
    Return the option for one CPU flag.

    Raises:
        ConfigUnsupportedError: the name would set another option, too.
    """
    name = _plain_name(str(feature.name), "CPU feature", feature)
    return f"{name}={_POLICIES[feature.policy or 'require']}"


def _lost_features(cpu: Any) -> list[str]:
    """Return the flags of libvirt's model that QEMU's model no longer has; libvirt disables them by name."""
    lost = _LOST_FEATURES.get(cpu.model, ()) if cpu.mode in (None, "custom") else ()
    named = {feature.name for feature in cpu.features}
    return [f"{name}=off" for name in lost if name not in named]


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
            options.append(f"hv-{name.replace('_', '-')}=on")
        if name == "vapic" and hyperv.spinlocks:
            retries = _RETRIES_MAX if hyperv.spinlocks_retries is None else hyperv.spinlocks_retries
            options.append(f"hv-spinlocks={retries:#x}")
        if name == "stimer" and hyperv.stimer_direct:
            options.append("hv-stimer-direct=on")
        if name == "tlbflush" and hyperv.tlbflush:
            options += ["hv-tlbflush-direct=on"] if hyperv.tlbflush_direct else []
            options += ["hv-tlbflush-ext=on"] if hyperv.tlbflush_extended else []
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


def _address_bits(build: CommandBuilder) -> list[str]:
    """Return the options for the bits of a physical address: the host's, with an optional limit, or a number."""
    cpu = build.dom.cpu
    if cpu is None or cpu.maxphysaddr_mode is None:
        return []
    if cpu.maxphysaddr_mode == "emulate":
        return ["host-phys-bits=off" if cpu.maxphysaddr_bits is None else f"phys-bits={cpu.maxphysaddr_bits}"]
    limit = cpu.maxphysaddr_limit
    return ["host-phys-bits=on", *([] if limit is None else [f"host-phys-bits-limit={limit}"])]


def build_smp(build: CommandBuilder) -> None:
    """Add the number of virtual CPUs and their topology."""
    dom = build.dom
    plugged = sum(1 for vcpu in dom.vcpu_list if vcpu.enabled and vcpu.hotpluggable)
    online = (dom.vcpu_current or dom.vcpus) - plugged  # hotpluggable CPUs are added later, to the paused QEMU
    options = [str(online)]
    if online != dom.vcpus:
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
    """Add the I/O threads."""
    dom = build.dom
    threads: dict[int, Any] = {thread.id: thread for thread in dom.iothread_ids}
    for number in iothread_numbers(dom):
        thread = threads.get(number)
        build.add_object("iothread", f"iothread{number}", **({} if thread is None else _thread_options(thread)))
    loop = dom.default_iothread
    if loop is not None:
        build.add_object("main-loop", "main-loop", **_pool_options(loop))


def thread_mapping(device: Any) -> list[Properties] | None:
    """
    Return which I/O threads serve which queues of a device; None if the definition does not name them.

    Mirrors: qemuBuildIothreadMapping (src/qemu/qemu_command.c)
    """
    found: list[Properties] = []
    for thread in device.iothread_mapping:
        queues = {"vqs": [queue.id for queue in thread.queues]} if thread.queues else {}
        found.append({"iothread": f"iothread{thread.id}", **queues})
    return found or None


def _pool_options(pool: Any) -> Properties:
    """Return how many workers an event loop has."""
    return {"thread-pool-min": pool.thread_pool_min, "thread-pool-max": pool.thread_pool_max}


def _thread_options(thread: Any) -> Properties:
    """Return the properties of an I/O thread: the size of its worker pool and its polling times."""
    return {
        **_pool_options(thread),
        "poll-max-ns": thread.poll_max,
        "poll-grow": thread.poll_grow,
        "poll-shrink": thread.poll_shrink,
        "poll-weight": thread.poll_weight,
    }
