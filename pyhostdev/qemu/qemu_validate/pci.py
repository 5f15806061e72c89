# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The options of each model of PCI controller, and the machines that have it.

Mirrors: qemuValidateDomainDeviceDefControllerPCI (src/qemu/qemu_validate.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError, ConfigUnsupportedError
from pyhostdev.qemu.qemu_domain import is_arm_virt, is_i440fx, is_pseries, is_q35
from pyhostdev.qemu.qemu_postparse.controller_defaults import MODEL_NAMES, PHB_MODEL_NAME
from pyhostdev.util.typed import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyhostdev.conf.domain_conf import DomainDef


class _Kind(NamedTuple):
    """The options that a model must have (defaults provide them), or may have."""

    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()


_PORT = _Kind(("chassis", "port"), ("hotplug",))
_ROOT_PORT = _Kind(("chassis", "port"), ("hotplug", "mem_reserve"))

_KINDS = {
    "pci-root": _Kind((), ("hotplug", "pcihole64")),
    "pcie-root": _Kind((), ("pcihole64",)),
    "pci-bridge": _Kind(("chassis_nr",), ("mem_reserve",)),
    "dmi-to-pci-bridge": _Kind(),
    "pcie-to-pci-bridge": _Kind(),
    "pcie-root-port": _ROOT_PORT,
    "pcie-switch-upstream-port": _Kind(),
    "pcie-switch-downstream-port": _PORT,
    "pci-expander-bus": _Kind(("bus_nr",), ("numa_node",)),
    "pcie-expander-bus": _Kind(("bus_nr",), ("numa_node",)),
}
_PHB = _Kind(("target_index",), ("numa_node",))
# model -> the machines that have it; the others are in every machine
_HOMES: dict[str, Callable[[DomainDef], bool]] = {
    "pci-expander-bus": is_i440fx,
    "pcie-expander-bus": lambda dom: is_q35(dom) or is_arm_virt(dom),
}

_OPTIONS = (
    "chassis_nr",
    "chassis",
    "port",
    "bus_nr",
    "target_index",
    "numa_node",
    "hotplug",
    "mem_reserve",
    "pcihole64",
)


def pci_controller_errors(dom: DomainDef, device: Any) -> Iterator[ConfigError]:
    """Yield the errors of a PCI controller, after its defaults were filled in."""
    is_phb = device.model == "pci-root" and is_pseries(dom)
    kind = _PHB if is_phb else _KINDS.get(device.model)
    if kind is None:
        return
    yield from _machine_errors(dom, device)
    yield from _model_name_errors(device, is_phb)
    given = {option for option in _OPTIONS if getattr(device, option) is not None}
    if not given.issuperset(kind.needs) or not given.issubset(kind.needs + kind.may):
        yield from _option_errors(device, kind, given)
    cells = dom.cpu.cells if dom.cpu is not None else []
    if device.numa_node is not None and device.numa_node not in [cell.id for cell in cells]:
        yield _error(device, f"names the NUMA node {device.numa_node}, which the guest does not have,")


def _option_errors(device: Any, kind: _Kind, given: set[str]) -> Iterator[ConfigError]:
    for option in _OPTIONS:
        if option in kind.needs and option not in given:
            yield _missing(device, option)
        elif option in given and option not in kind.needs + kind.may:
            yield _error(device, f"has no '{option}'")


def _machine_errors(dom: DomainDef, device: Any) -> Iterator[ConfigError]:
    homes = _HOMES.get(device.model)
    if homes is not None and not homes(dom):
        yield _error(device, f"is not supported by the machine '{dom.os.machine}'")
    if device.hotplug is not None and device.model == "pci-root" and not is_i440fx(dom):
        yield _error(device, "has no 'hotplug' in this machine")


def _model_name_errors(device: Any, is_phb: bool) -> Iterator[ConfigError]:
    wanted = PHB_MODEL_NAME if is_phb else MODEL_NAMES.get(device.model)
    allowed = ("pcie-root-port", "ioh3420") if device.model == "pcie-root-port" else (wanted,)
    if device.model_name is None and wanted is not None:
        yield _missing(device, "model_name")
    elif device.model_name not in allowed:
        yield _error(device, f"cannot have the model name '{device.model_name}'")


def _missing(device: Any, option: str) -> ConfigError:
    """Return the error of a missing option; libvirt reports an internal error, since it has a default."""
    return ConfigError(
        f"PCI controller {device.index} ({device.model}) needs '{option}'",
        line=device.line,
        libvirt_code=VIR_ERR_INTERNAL_ERROR,
    )


def _error(device: Any, message: str) -> ConfigError:
    return ConfigUnsupportedError(f"PCI controller {device.index} ({device.model}) {message}", line=device.line)
