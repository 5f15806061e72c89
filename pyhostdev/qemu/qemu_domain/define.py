# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Complete a definition: add defaults, firmware and guest addresses, and validate the result.

Mirrors: qemuDomainDefineXMLFlags (src/qemu/qemu_driver.c), virDomainDefPostParse and virDomainDefValidate
as the QEMU driver fills them in
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.domain_validate import validate_domain
from pyhostdev.conf.guest_addresses import mark_chosen
from pyhostdev.conf.libvirt_release import DEFAULT_RELEASE
from pyhostdev.errors import raise_all
from pyhostdev.qemu.qemu_domain_address import assign_addresses
from pyhostdev.qemu.qemu_firmware import fill_firmware
from pyhostdev.qemu.qemu_postparse import post_parse
from pyhostdev.qemu.qemu_validate import QEMURules
from pyhostdev.qemu.qemu_validate.firmware import choice_errors

if TYPE_CHECKING:
    from pyhostdev.conf.domain_conf import DomainDef
    from pyhostdev.conf.hostfacts import HostFacts
    from pyhostdev.conf.libvirt_release import LibvirtRelease
    from pyhostdev.qemu.qemu_capabilities import QEMUCapabilities


def define(
    dom: DomainDef,
    capabilities: QEMUCapabilities,
    host: HostFacts | None = None,
    *,
    keep_together: bool = False,
    release: LibvirtRelease = DEFAULT_RELEASE,
) -> DomainDef:
    """
    Return a copy with all defaults and addresses; the function is idempotent.

    Args:
        host: knows which functions are conventional PCI, and their IOMMU groups; None if not available.
        keep_together: True puts the assigned functions of one host device into one guest slot.
        release: the libvirt release whose defaults, order and rules apply.

    Raises:
        ConfigError: the definition is wrong.
        ConfigUnsupportedError: QEMU does not support a part of it.
    """
    defined = post_parse(dom, capabilities, release)
    raise_all(list(choice_errors(defined, release)))
    fill_firmware(defined, host, release)
    assign_addresses(defined, host, keep_together=keep_together, release=release)
    mark_chosen(defined)
    validate_domain(defined, hypervisor=QEMURules(capabilities, release))
    return defined
