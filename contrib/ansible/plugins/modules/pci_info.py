#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read the PCI functions of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pci_info
short_description: Read the PCI functions of a host, their IOMMU groups and their users
description:
  - Returns what C(pyhostdev list) and C(pyhostdev status) print, and sets the fact RV(ansible_facts.pyhostdev).
  - Nothing is changed. Only root can read the records of devices in use.
options:
  findings:
    description:
      - Also plan every function that a guest could get, each declared, to learn what the host would lose with it.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: The module never changes anything.
extends_documentation_fragment:
  - pyhostdev.pci.pyhostdev
"""

EXAMPLES = r"""
- name: Read the host's functions
  pyhostdev.pci.pci_info:

- name: Name the displays
  ansible.builtin.debug:
    msg: "{{ pyhostdev.functions | selectattr('class', 'match', '0x03') | map(attribute='address') }}"
"""

RETURN = r"""
ansible_facts:
  description: The same as the other values, below one key.
  returned: success
  type: dict
  contains:
    pyhostdev:
      description: The facts.
      type: dict
functions:
  description: One entry per function, as C(pyhostdev list --json) prints it.
  returned: success
  type: list
  elements: dict
groups:
  description: The addresses of each IOMMU group, by its number as text.
  returned: success
  type: dict
active:
  description: The devices in use, with their owners.
  returned: success
  type: list
  elements: dict
inactive:
  description: The devices that are detached without an owner.
  returned: success
  type: list
  elements: dict
findings:
  description: What prevents that a guest gets a function, or needs consent.
  returned: success
  type: list
  elements: dict
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pyhostdev.pci.plugins.module_utils import pyhostdev

OWNER = "pci-info"


def read_findings(command, functions):
    """Return the findings about each function that is not a bridge, as if all of them were declared together."""
    wanted = [function["address"] for function in functions if not (function["class"] or "").startswith("0x06")]
    if not wanted:
        return []
    domain = command.domain_of(OWNER, dict.fromkeys(wanted, True))
    code, out, sentences = command.run("plan", "-", "--json", "--policy", "off", stdin=domain)
    if not out.strip():
        command.fail("plan", code, sentences)
    found = json.loads(out)["findings"]
    return [finding for finding in found if finding["address"] is not None and finding["severity"] != "note"]


def main():
    """Run the module."""
    arguments = {**pyhostdev.COMMON, "findings": {"type": "bool", "default": True}}
    module = AnsibleModule(argument_spec=arguments, supports_check_mode=True)
    command = pyhostdev.Pyhostdev(module)
    functions, status, groups = command.functions(), command.status(), {}
    for function in functions:
        if function["iommu_group"] is not None:
            groups.setdefault(str(function["iommu_group"]), []).append(function["address"])
    facts = {
        "functions": functions,
        "groups": groups,
        "active": status["active"],
        "inactive": status["inactive"],
        "findings": read_findings(command, functions) if module.params["findings"] else [],
    }
    module.exit_json(changed=False, ansible_facts={"pyhostdev": facts}, **facts)


if __name__ == "__main__":
    main()
