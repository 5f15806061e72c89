#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Detach a guest's devices."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pci_prepare
short_description: Detach a guest's PCI devices from the host
description:
  - Executes the plan as a whole or undoes it. A guest that has the devices already is not changed.
  - Fails with the findings of the plan, and changes nothing then.
options:
  state:
    description:
      - V(prepared) detaches the devices.
      - V(released) gives all devices of the owner back, as M(pyhostdev.pci.pci_release) does.
      - O(domain), O(src) or O(devices) is required for V(prepared); without O(domain) and O(src), O(owner) is released.
    type: str
    choices: [prepared, released]
    default: prepared
  user:
    description: Give the guest's nodes below C(/dev/vfio) to this user until the release, as V(USER) or V(USER:GROUP).
    type: str
attributes:
  check_mode:
    support: full
    description: Plans, and fails where the plan refuses; for V(released), reads the records.
  diff_mode:
    support: full
    description: Shows the drivers before and after.
extends_documentation_fragment:
  - pyhostdev.pci.pyhostdev
  - pyhostdev.pci.pyhostdev.devices
"""

EXAMPLES = r"""
- name: Detach the guest's devices
  pyhostdev.pci.pci_prepare:
    src: /etc/libvirt/qemu/vm1.xml

- name: Keep a NIC from the host
  pyhostdev.pci.pci_prepare:
    owner: parked
    devices:
      - address: net:eno1
    complete: true

- name: Give it back
  pyhostdev.pci.pci_prepare:
    owner: parked
    state: released
"""

RETURN = r"""
owner:
  description: The name that owns the devices.
  returned: success
  type: str
devices:
  description: The role and the driver of each device, V(assigned) or V(kept); the driver alone for V(released).
  returned: success
  type: dict
plan:
  description: The plan, as C(pyhostdev plan --json) prints it.
  returned: when the devices were not prepared before
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pyhostdev.pci.plugins.module_utils import pyhostdev


def described(wanted, drivers):
    """Return the role and the driver of each device."""
    return {address: {"role": role, "driver": drivers.get(address)} for address, role in wanted.items()}


def has_already(has, wanted, complete):
    """Tell whether an owner has what is wanted; with complete, it may also keep functions that no selector named."""
    others = {role for address, role in has.items() if address not in wanted}
    same = all(has.get(address) == role for address, role in wanted.items())
    return bool(has) and same and (not others or (complete and others == {"kept"}))


def main():
    """Run the module."""
    state = {"type": "str", "choices": ["prepared", "released"], "default": "prepared"}
    arguments = {**pyhostdev.COMMON, **pyhostdev.DEVICES, "user": {"type": "str"}, "state": state}
    module = AnsibleModule(
        argument_spec=arguments,
        mutually_exclusive=[pyhostdev.ONE_OF],
        required_if=[("state", "prepared", pyhostdev.ONE_OF, True)],
        supports_check_mode=True,
    )
    command = pyhostdev.Pyhostdev(module)
    if module.params["state"] == "released":
        command.release(command.owner())
    domain, plan = command.plan(command.domain())
    owner, wanted = plan["owner"], pyhostdev.roles(plan)
    has = {address: record["role"] for address, record in command.owned(owner).items()}
    if has_already(has, wanted, module.params["complete"]):
        module.exit_json(changed=False, owner=owner, devices=described(has, command.drivers(has)))
    if not plan["ok"]:
        command.refuse(plan)
    before, after = pyhostdev.drivers_before(plan), pyhostdev.drivers_prepared(plan)
    if not module.check_mode:
        prepare(command, domain)
        after = command.drivers(wanted)
    module.exit_json(
        changed=bool(wanted),
        owner=owner,
        devices=described(wanted, after),
        plan=plan,
        diff=pyhostdev.diff(before, after),
    )


def prepare(command, domain):
    """Execute the plan; it is made again under the locks."""
    params = command.module.params
    words = ["--policy", params["policy"]]
    words += [word for consent in params["accept"] for word in ("--accept", consent)]
    words += ["--user", params["user"]] if params["user"] else []
    command.checked("prepare", "-", *words, stdin=domain, changes=True)


if __name__ == "__main__":
    main()
