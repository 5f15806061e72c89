# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Memory that is a device: modules, persistent memory, and memory that grows while the guest runs.

Mirrors: qemuBuildMemoryDeviceProps (src/qemu/qemu_command.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.conf.xml.xmlcodec import unit_factor
from pyhostdev.qemu.qemu_command.builder import unsupported, virtio_options
from pyhostdev.qemu.qemu_command.memory import MemoryRequest, add_memory
from pyhostdev.qemu.qemu_domain import PPC64

if TYPE_CHECKING:
    from pyhostdev.qemu.qemu_command.builder import CommandBuilder, Properties

_STEP_KIB = 2048  # of a module that is plugged in
_PSERIES_STEP_KIB = 256 * 1024


def build_modules(build: CommandBuilder) -> None:
    """Add the memory modules in slots of the machine: what backs each, and the device."""
    _build(build, [module for module in build.dom.memories if not str(module.model).startswith("virtio")])


def build_virtio_memories(build: CommandBuilder) -> None:
    """Add the memory devices on PCI, whose controllers come first."""
    _build(build, [module for module in build.dom.memories if str(module.model).startswith("virtio")])


def _build(build: CommandBuilder, modules: list[Any]) -> None:
    for module in modules:
        with build.collecting():
            rule = _RULES.get(str(module.model))
            if rule is None:
                raise unsupported(f"<memory model='{module.model}'>", module)
            backend = f"mem{module.info.alias}"
            kib = _aligned_kib(build, module)
            request = MemoryRequest(
                backend, kib, module.access, module.target_node, discard=module.discard, module=module
            )
            add_memory(build, request)
            device = rule(build, module, backend)
            build.add_device({**device, "id": module.info.alias, **build.address(module)})


def _aligned_kib(build: CommandBuilder, module: Any) -> int:
    """
    Return a module's size, rounded up to what the machine can plug in.

    Mirrors: qemuDomainGetMemoryModuleSizeAlignment (src/qemu/qemu_domain.c)
    """
    step = _PSERIES_STEP_KIB if build.dom.os.arch in PPC64 else _STEP_KIB
    return int(-(-module.size_kib // step) * step)


def _dimm(_build: CommandBuilder, module: Any, backend: str) -> Properties:
    return {"driver": "pc-dimm", "node": module.target_node, "memdev": backend}


def _nvdimm(_build: CommandBuilder, module: Any, backend: str) -> Properties:
    return {
        "driver": "nvdimm",
        "node": module.target_node,
        "label-size": _bytes(module.target_label_size, module.target_label_size_unit),
        "uuid": module.uuid,
        "unarmed": True if module.target_readonly else None,
        "memdev": backend,
    }


def _virtio_mem(build: CommandBuilder, module: Any, backend: str) -> Properties:
    # pages that must be there when the guest uses them: huge ones, and those that are asked for at once
    immediate = build.dom.memory_backing.allocation_mode == "immediate"
    prealloc = True if module.source_pagesize is not None or build.dom.memory_backing.hugepages or immediate else None
    return {
        "driver": "virtio-mem-pci",
        **virtio_options(module),
        "node": module.target_node,
        "block-size": _bytes(module.target_block, module.target_block_unit),
        "requested-size": _bytes(module.target_requested, module.target_requested_unit) or None,
        "memdev": backend,
        "prealloc": prealloc,
        "memaddr": module.target_base,
        "dynamic-memslots": module.dynamic_memslots,
    }


def _virtio_pmem(_build: CommandBuilder, module: Any, backend: str) -> Properties:
    return {
        "driver": "virtio-pmem-pci",
        **virtio_options(module),
        "memdev": backend,
        "memaddr": module.target_base,
    }


def _bytes(size: int | None, unit: str | None) -> int | None:
    return None if size is None else size * unit_factor(unit)


_RULES = {"dimm": _dimm, "nvdimm": _nvdimm, "virtio-mem": _virtio_mem, "virtio-pmem": _virtio_pmem}
