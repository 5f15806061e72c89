#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compare a host with a snapshot of it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pci_diff
short_description: Compare a host with a snapshot, or two snapshots
description:
  - Returns what differs, as C(pyhostdev diff --json) prints it. It never changes anything.
  - Fails if a difference is of a kind in O(fail_on), or if the plan of a domain differs and O(fail_on) has V(plan).
options:
  before:
    description: A snapshot, or a directory that takes the place of C(/).
    type: path
    required: true
  after:
    description: The same, for the second host; by default O(root).
    type: path
  domains:
    description: Files on the managed host with the XML of domains whose plans are compared too.
    type: list
    elements: path
    default: []
  fail_on:
    description: Kinds of differences that fail the task.
    type: list
    elements: str
    choices:
      - added
      - gone
      - moved
      - group-split
      - group-merged
      - group-changed
      - driver
      - override
      - reset-methods
      - virtual-functions
      - numa-node
      - revision
      - plan
    default: []
attributes:
  check_mode:
    support: full
    description: The module never changes anything.
extends_documentation_fragment:
  - pyhostdev.pci.pyhostdev
"""

EXAMPLES = r"""
- name: Stop when the upgrade has changed a group
  pyhostdev.pci.pci_diff:
    before: /var/tmp/before.tar.gz
    fail_on: [added, gone, moved, group-split, group-merged, group-changed]
"""

RETURN = r"""
differs:
  description: Whether something differs.
  returned: always
  type: bool
changes:
  description: The differences, by address.
  returned: always
  type: list
  elements: dict
plans:
  description: The plans of the domains on both hosts.
  returned: always
  type: list
  elements: dict
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pyhostdev.pci.plugins.module_utils import pyhostdev

DIFFER = 6
GROUPS = ["group-split", "group-merged", "group-changed"]
FACTS = ["driver", "override", "reset-methods", "virtual-functions", "numa-node", "revision"]
KINDS = ["added", "gone", "moved", *GROUPS, *FACTS, "plan"]


def sentence(change):
    """Return one difference as a sentence of a message."""
    where = change["address"] or change["now"]
    return f"{where}: {change['change']} ({change['before'] or 'nothing'} -> {change['after'] or 'nothing'})"


def main():
    """Run the module."""
    arguments = {
        **pyhostdev.COMMON,
        "before": {"type": "path", "required": True},
        "after": {"type": "path"},
        "domains": {"type": "list", "elements": "path", "default": []},
        "fail_on": {"type": "list", "elements": "str", "choices": KINDS, "default": []},
    }
    module = AnsibleModule(argument_spec=arguments, supports_check_mode=True)
    command = pyhostdev.Pyhostdev(module)
    params = module.params
    domains = [word for path in params["domains"] for word in ("--domain", path)]
    words = [params["before"], params["after"] or params["root"], "--json", *domains]
    code, out, sentences = command.run("diff", *words, other_root=False)
    if code not in (pyhostdev.DONE, DIFFER):
        command.fail("diff", code, sentences)
    found = json.loads(out)
    facts = {"differs": code == DIFFER, "changes": found["changes"], "plans": found["plans"]}
    wrong = [sentence(change) for change in found["changes"] if change["change"] in params["fail_on"]]
    wrong += [f"the plan of '{plan['domain']}' differs" for plan in found["plans"] if plan["differs"]] * (
        "plan" in params["fail_on"]
    )
    if wrong:
        module.fail_json(msg=f"The host has changed: {'; '.join(wrong)}", **facts)
    module.exit_json(changed=False, **facts)


if __name__ == "__main__":
    main()
