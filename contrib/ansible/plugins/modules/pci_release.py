#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Give a guest's devices back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pci_release
short_description: Give a guest's PCI devices back to the host
description:
  - Resets the devices that an owner has and binds each to its original driver. An owner without devices is not changed.
  - Devices that were detached before, or that are not managed, stay detached.
options:
  owner:
    description: The name that owns the devices, usually the domain's.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: Reads the records; the drivers shown are the recorded original ones.
  diff_mode:
    support: full
    description: Shows the drivers before and after.
extends_documentation_fragment:
  - pyhostdev.pci.pyhostdev
"""

EXAMPLES = r"""
- name: Give the devices back
  pyhostdev.pci.pci_release:
    owner: vm1
"""

RETURN = r"""
owner:
  description: The name that owned the devices.
  returned: success
  type: str
devices:
  description: The driver of each device that was released.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pyhostdev.pci.plugins.module_utils import pyhostdev


def main():
    """Run the module."""
    arguments = {**pyhostdev.COMMON, "owner": {"type": "str", "required": True}}
    module = AnsibleModule(argument_spec=arguments, supports_check_mode=True)
    pyhostdev.Pyhostdev(module).release(module.params["owner"])


if __name__ == "__main__":
    main()
