# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The command line before the first device: name, machine, identity, monitor, power, boot.

Mirrors: src/qemu/qemu_command.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.os_conf import unit_factor
from pyhostdev.qemu.qemu_command.audio import audio_id
from pyhostdev.qemu.qemu_command.builder import on_off, option_value, unsupported, uses_machine_option
from pyhostdev.qemu.qemu_command.firmware import flash_options
from pyhostdev.qemu.qemu_command.iommu import is_machine_option
from pyhostdev.qemu.qemu_command.smbios import build_fw_cfg, build_smbios
from pyhostdev.qemu.qemu_domain import ARM, X86, is_i440fx, is_q35

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder

_DEPRECATED_INPUT = {"omit": None, "reject": "reject", "crash": "crash"}
_ACCELERATORS = {"qemu": "tcg", "kvm": "kvm"}

# QEMU's seccomp filter: it never needs to start programs, or to change its user or scheduling
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def build_name(build: CommandBuilder) -> None:
    """Name the process."""
    build.add("-name", f"guest={option_value(build.dom.name)},debug-threads=on")


def build_deprecation(build: CommandBuilder) -> None:
    """
    Set how QEMU treats deprecated names, and start it paused: devices are checked before the guest runs.

    Mirrors: qemuBuildCompatDeprecatedCommandLine
    """
    behaviour = build.namespace.deprecation
    if behaviour in _DEPRECATED_INPUT:
        build.add_json("-compat", {"deprecated-output": "hide", "deprecated-input": _DEPRECATED_INPUT[behaviour]})
    build.add("-S")


def build_master_key(build: CommandBuilder) -> None:
    """Give QEMU the key that decrypts secrets."""
    build.add_object("secret", "masterKey0", format="raw", file=build.paths.master_key)


def build_machine(build: CommandBuilder) -> None:
    """
    Add the machine and the accelerator.

    Mirrors: qemuBuildMachineCommandLine, qemuBuildAccelCommandLine
    """
    dom = build.dom
    options = [str(dom.os.machine), "usb=off", *_machine_features(build)]
    smmu = ["iommu=smmuv3"] if any(is_machine_option(iommu) for iommu in dom.iommus) else []
    if build.release.has("machine-iommu-first"):
        options += smmu
    options += _memory_options(dom)
    if not build.release.has("machine-iommu-first"):
        options += smmu
    options += _memory_backend(build)
    if dom.os.bios_useserial:
        options.append("graphics=off")
    options += _firmware_switches(build)
    build.add("-machine", ",".join(options), "-accel", _accelerator(build))


def _memory_options(dom: DomainDef) -> list[str]:
    """Return the machine options about the guest's memory."""
    options = [f"dump-guest-core={on_off(dom.memory is not None and dom.memory.dump_core is True)}"]
    if dom.memory_backing is not None and dom.memory_backing.nosharepages:
        options.append("mem-merge=off")
    if any(module.model == "nvdimm" for module in dom.memories):
        options.append("nvdimm=on")
    return options


def _machine_features(build: CommandBuilder) -> list[str]:
    """Return the machine options for the <features> of the domain."""
    features = build.dom.features
    if features is None:
        return []
    options = []
    if features.vmport and features.vmport_state is not None:
        options.append(f"vmport={on_off(features.vmport_state)}")
    if features.smm:
        options.append(f"smm={on_off(features.smm_state is not False)}")
    if features.ioapic_driver is not None:
        options.append("kernel_irqchip=" + {"qemu": "split", "kvm": "on"}[features.ioapic_driver])
    if features.gic and features.gic_version is not None:
        options.append(f"gic-version={features.gic_version}")
    options += _pseries_features(build)
    if features.ras is not None:
        options.append(f"ras={on_off(features.ras)}")
    if features.ps2 is not None:
        options.append(f"i8042={on_off(features.ps2)}")
    return options


_PSERIES_OPTIONS = (
    ("resize-hpt={}", "hpt_resizing"),
    ("cap-hpt-max-page-size={}k", "hpt_maxpagesize"),
    ("cap-htm={}", "htm"),
    ("cap-nested-hv={}", "nested_hv"),
    ("cap-ccf-assist={}", "ccf_assist"),
    ("cap-cfpc={}", "cfpc"),
    ("cap-sbbc={}", "sbbc"),
    ("cap-ibs={}", "ibs"),
)


def _pseries_features(build: CommandBuilder) -> list[str]:
    features = build.dom.features
    assert features is not None
    values = ((option, getattr(features, name)) for option, name in _PSERIES_OPTIONS)
    return [
        option.format(on_off(value) if isinstance(value, bool) else value)
        for option, value in values
        if value is not None
    ]


def _memory_backend(build: CommandBuilder) -> list[str]:
    return [*_ram(build), *_speaker(build)]


def _speaker(build: CommandBuilder) -> list[str]:
    """Return the option that names the audio backend of the machine's speaker."""
    speaker = next((sound for sound in build.dom.sounds if sound.model == "pcspk"), None)
    return [] if speaker is None else [f"pcspk-audiodev={audio_id(build, speaker)}"]


def _ram(build: CommandBuilder) -> list[str]:
    dom = build.dom
    flash = flash_options(build)
    hmat = ["hmat=on"] if dom.cpu is not None and dom.cpu.has_hmat else []
    ram = build.capabilities.machine(str(dom.os.machine)).ram_id
    if ram is None or (dom.cpu is not None and dom.cpu.cells):
        return [*hmat, *flash]
    return [f"memory-backend={ram}", *hmat, *flash]


def _firmware_switches(build: CommandBuilder) -> list[str]:
    """Return the machine options for HPET and ACPI; empty if other options switch them."""
    options = []
    if uses_machine_option(build, "hpet"):
        timers = build.dom.clock.timers if build.dom.clock is not None else []
        states = [timer.present for timer in timers if timer.name == "hpet" and timer.present is not None]
        options += [f"hpet={on_off(state)}" for state in states]
    if uses_machine_option(build, "acpi"):
        options.append(f"acpi={on_off(_has_acpi(build))}")
    return options


def _has_acpi(build: CommandBuilder) -> bool:
    features = build.dom.features
    return features is not None and bool(features.acpi)


def _accelerator(build: CommandBuilder) -> str:
    dom = build.dom
    if dom.type not in _ACCELERATORS:
        raise unsupported(f"A domain of type {dom.type}", dom)
    features = dom.features
    options = [_ACCELERATORS[dom.type]]
    if features is not None and features.kvm is not None and features.kvm.dirty_ring:
        options.append(f"dirty-ring-size={features.kvm.dirty_ring_size}")
    if features is not None and features.tcg_tb_cache is not None and dom.type == "qemu":
        options.append(f"tb-size={features.tcg_tb_cache * unit_factor(features.tcg_tb_cache_unit or 'KiB') >> 20}")
    return ",".join(options)


def build_tseg(build: CommandBuilder) -> None:
    """Set the size of the memory that only SMM can access."""
    features = build.dom.features
    if features is None or features.tseg is None:
        return
    mib, rest = divmod(features.tseg * unit_factor(features.tseg_unit or "MiB"), 1 << 20)
    if rest or not is_q35(build.dom):
        raise unsupported("<tseg> of this machine, or of this size,", features)
    build.add("-global", f"mch.extended-tseg-mbytes={mib}")


def build_identity(build: CommandBuilder) -> None:
    """Add the guest's identity; keep QEMU from adding default devices and reading user configuration."""
    build.add("-uuid", str(build.dom.hwuuid or build.dom.uuid))
    with build.collecting():
        build_smbios(build)
    build_fw_cfg(build)
    if build.dom.genid is not None:
        build.add_device({"driver": "vmgenid", "guid": build.dom.genid, "id": "vmgenid0"})
    if not build.dom.graphics:
        build.add("-display", "none")
    build.add("-no-user-config", "-nodefaults")


def build_monitor(build: CommandBuilder, monitor_fd: int | None) -> None:
    """Add QEMU's monitor: on an inherited listening socket, or on one in the directory of this run."""
    where = f"path={option_value(build.paths.lib_dir)}/monitor.sock" if monitor_fd is None else f"fd={monitor_fd}"
    build.add("-chardev", f"socket,id=charmonitor,{where},server=on,wait=off")
    if build.release.has("monitor-object") and build.capabilities.has_object("monitor-qmp"):
        build.add_object("monitor-qmp", "monitor", chardev="charmonitor")
    else:
        build.add("-mon", "chardev=charmonitor,id=monitor,mode=control")


def second_monitor(fd: int, *, as_object: bool) -> list[str]:
    """Return the arguments of a second monitor, for programs other than the one that started the guest."""
    chardev = ["-chardev", f"socket,id=charcontrol,fd={fd},server=on,wait=off"]
    if as_object:
        return [*chardev, "-object", '{"qom-type":"monitor-qmp","id":"control","chardev":"charcontrol"}']
    return [*chardev, "-mon", "chardev=charcontrol,id=control,mode=control"]


def build_power(build: CommandBuilder) -> None:
    """
    Keep QEMU running after the guest powers off, so that the reason can be read; set up ACPI and sleep states.

    Mirrors: qemuBuildPMCommandLine
    """
    dom = build.dom
    build.add("-no-shutdown")
    if not _has_acpi(build) and dom.os.arch in (*X86, *ARM) and not uses_machine_option(build, "acpi"):
        build.add("-no-acpi")
    chip = "PIIX4_PM" if is_i440fx(dom) else "ICH9-LPC" if is_q35(dom) else None
    for name, enabled in (("disable_s3", dom.suspend_to_mem), ("disable_s4", dom.suspend_to_disk)):
        if enabled is None:
            continue
        if chip is None:
            raise unsupported(f"<pm> on the machine '{dom.os.machine}'", dom)
        build.add("-global", f"{chip}.{name}={int(not enabled)}")


def build_boot(build: CommandBuilder) -> None:
    """
    Add the boot menu, a kernel to boot directly and ACPI tables; the devices have the boot order.

    Mirrors: qemuBuildBootCommandLine
    """
    os = build.dom.os
    build.add("-boot", ",".join([*_boot_menu(build), "strict=on"]))
    direct = {"-kernel": os.kernel, "-initrd": os.initrd, "-append": os.cmdline, "-dtb": os.dtb, "-shim": os.shim}
    for option, value in direct.items():
        if value is not None:
            build.add(option, value)
    for table in os.acpi_tables:
        kind = "" if table.type == "raw" else f"sig={table.type.upper()},"
        build.add("-acpitable", f"{kind}file={option_value(table.path)}")


def _boot_menu(build: CommandBuilder) -> list[str]:
    os = build.dom.os
    options = []
    if os.bootmenu_enable is not None:
        options.append(f"menu={on_off(os.bootmenu_enable)}")
    if os.bios_reboot_timeout is not None:
        options.append(f"reboot-timeout={os.bios_reboot_timeout}")
    if os.bootmenu_enable and os.bootmenu_timeout is not None:
        options.append(f"splash-time={os.bootmenu_timeout}")
    return options


def build_sandbox(build: CommandBuilder) -> None:
    """Enable QEMU's seccomp filter."""
    build.add("-sandbox", _SANDBOX)


def build_teardown(build: CommandBuilder) -> None:
    """Let the kernel take the guest's memory back after QEMU has ended."""
    if build.dom.features.async_teardown:
        build.add("-run-with", "async-teardown=on")


def build_messages(build: CommandBuilder) -> None:
    """Make QEMU print the time before its messages."""
    build.add("-msg", "timestamp=on")
