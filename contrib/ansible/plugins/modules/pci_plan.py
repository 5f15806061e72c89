#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plan a guest's devices."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pci_plan
short_description: Plan whether a host can give PCI devices to a guest
description:
  - Returns the plan, or fails with all obstacles. It never changes anything.
options:
  for_start:
    description: Also fail if C(pyhostdev start) would not run the domain, for example if an image is missing.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: The module never changes anything.
  diff_mode:
    support: full
    description: Shows the drivers that C(pci_prepare) would change.
extends_documentation_fragment:
  - pyhostdev.pci.pyhostdev
  - pyhostdev.pci.pyhostdev.devices
"""

EXAMPLES = r"""
- name: Can this host take the guest
  pyhostdev.pci.pci_plan:
    domain: "{{ lookup('file', 'guest.xml') }}"

- name: Are two GPUs free
  pyhostdev.pci.pci_plan:
    devices:
      - vendor: 10de
        class: '0300'
        count: 2
    complete: true
"""

RETURN = r"""
plan:
  description: The plan, as C(pyhostdev plan --json) prints it.
  returned: always, if the domain is valid
  type: dict
findings:
  description: The findings; on failure only the obstacles.
  returned: always, if the domain is valid
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pyhostdev.pci.plugins.module_utils import pyhostdev


def main():
    """Run the module."""
    arguments = {**pyhostdev.COMMON, **pyhostdev.DEVICES, "for_start": {"type": "bool", "default": False}}
    module = AnsibleModule(
        argument_spec=arguments,
        mutually_exclusive=[pyhostdev.ONE_OF],
        required_one_of=[pyhostdev.ONE_OF],
        supports_check_mode=True,
    )
    command = pyhostdev.Pyhostdev(module)
    _domain, plan = command.plan(command.domain())
    if not plan["ok"]:
        command.refuse(plan)
    if module.params["for_start"] and not plan["can_start"]:
        said = "; ".join(f"{finding['reason']}: {finding['message']}" for finding in plan["findings"])
        module.fail_json(msg=f"The host cannot start '{plan['owner']}': {said}", plan=plan, findings=plan["findings"])
    shown = pyhostdev.diff(pyhostdev.drivers_before(plan), pyhostdev.drivers_prepared(plan))
    module.exit_json(changed=False, plan=plan, findings=plan["findings"], diff=shown)


if __name__ == "__main__":
    main()
