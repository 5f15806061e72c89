# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Defaults of PCI controllers: QEMU's device, chassis and port.

Mirrors: qemuDomainPCIControllerSetDefaultModelName and the end of qemuDomainAssignPCIAddresses
(src/qemu/qemu_domain_address.c)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhostdev.errors import VIR_ERR_INTERNAL_ERROR, ConfigError, ConfigUnsupportedError
from pyhostdev.qemu.qemu_domain import is_pseries

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyhostdev.conf.domain_conf import DomainDef

MODEL_NAMES = {
    "pci-bridge": "pci-bridge",
    "dmi-to-pci-bridge": "i82801b11-bridge",
    "pcie-to-pci-bridge": "pcie-pci-bridge",
    "pcie-root-port": "pcie-root-port",
    "pcie-switch-upstream-port": "x3130-upstream",
    "pcie-switch-downstream-port": "xio3130-downstream",
    "pci-expander-bus": "pxb",
    "pcie-expander-bus": "pxb-pcie",
}
PHB_MODEL_NAME = "spapr-pci-host-bridge"

_LAST_TARGET_INDEX = 31


def fill_controller_defaults(dom: DomainDef) -> None:
    """
    Fill in the defaults of all PCI controllers, which must have their addresses.

    Raises:
        ConfigError: no number is free, or a controller is plugged into its own bus or a later one.
    """
    for controller in dom.controllers:
        if controller.is_pci:
            _fill(dom, controller)


def _fill(dom: DomainDef, controller: Any) -> None:
    if controller.model_name is None:
        controller.model_name = MODEL_NAMES.get(controller.model)
    rule = _RULES.get(controller.model)
    if rule is not None:
        rule(dom, controller)
    address = controller.info.pci
    if address is not None and address.bus >= controller.index:
        raise ConfigUnsupportedError(
            f"PCI controller {controller.index} is plugged into bus {address.bus}: the bus must have a lower index",
            line=controller.line,
        )


def _fill_root_port(_dom: DomainDef, controller: Any) -> None:
    address = controller.info.pci
    if controller.chassis is None:
        controller.chassis = controller.index
    if controller.port is None and address is not None:
        controller.port = address.slot << 3 | address.function


def _fill_downstream_port(_dom: DomainDef, controller: Any) -> None:
    address = controller.info.pci
    if controller.chassis is None:
        controller.chassis = controller.index
    if controller.port is None and address is not None:
        controller.port = address.slot


def _fill_bridge(_dom: DomainDef, controller: Any) -> None:
    if controller.chassis_nr is None:
        controller.chassis_nr = controller.index


def _fill_expander(dom: DomainDef, controller: Any) -> None:
    """
    Number an expander's bus from the top down; leave one number for a bus behind it.

    Mirrors: qemuDomainAddressFindNewBusNr
    """
    if controller.bus_nr is not None:
        return
    lowest = min((c.bus_nr for c in dom.controllers if c.is_pci and c.bus_nr is not None), default=256)
    if lowest <= 2:
        raise ConfigError(
            f"No bus number is left for PCI controller {controller.index}",
            libvirt_code=VIR_ERR_INTERNAL_ERROR,
            line=controller.line,
        )
    controller.bus_nr = lowest - 2


def _fill_phb(dom: DomainDef, controller: Any) -> None:
    """
    Number a pseries host bridge; the machine's own has number 0.

    Mirrors: qemuDomainAddressFindNewTargetIndex
    """
    if not is_pseries(dom):
        return
    if controller.model_name is None:
        controller.model_name = PHB_MODEL_NAME
    if controller.target_index is not None:
        return
    if controller.index == 0:
        controller.target_index = 0
        return
    controller.target_index = _free_target_index(dom, controller)


def _free_target_index(dom: DomainDef, controller: Any) -> int:
    taken = {c.target_index for c in dom.controllers if c.is_pci}
    for number in range(1, _LAST_TARGET_INDEX + 1):
        if number not in taken:
            return number
    text = f"No target index is left for PCI controller {controller.index}"
    raise ConfigUnsupportedError(text, line=controller.line)


_RULES: dict[str, Callable[[DomainDef, Any], None]] = {
    "pcie-root-port": _fill_root_port,
    "pcie-switch-downstream-port": _fill_downstream_port,
    "pci-bridge": _fill_bridge,
    "pci-expander-bus": _fill_expander,
    "pcie-expander-bus": _fill_expander,
    "pci-root": _fill_phb,
}
