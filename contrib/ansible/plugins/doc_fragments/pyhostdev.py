# SPDX-License-Identifier: LGPL-2.1-or-later
"""The options that all modules of the collection share."""


class ModuleDocFragment:
    """Read by ansible-doc."""

    DOCUMENTATION = r"""
options:
  executable:
    description: The command to run on the host; a name is looked up in E(PATH).
    type: str
    default: pyhostdev
  root:
    description: A directory of the host that takes the place of C(/).
    type: path
    default: /
  state_dir:
    description: The directory of pyhostdev's records; by default C(run/pyhostdev) below O(root).
    type: path
  simulate:
    description: Let a simulated kernel react in O(root), so that changes are possible there.
    type: bool
    default: false
  timeout:
    description: The deadline of each write to the kernel, in seconds.
    type: float
    default: 30
requirements:
  - pyhostdev on the managed host (Python 3.10 or later)
author:
  - pyhostdev maintainers (@pyhostdev)
"""

    DEVICES = r"""
options:
  domain:
    description: The domain's XML, as libvirt has it; mutually exclusive with O(src) and O(devices).
    type: str
  src:
    description: A file on the managed host with the domain's XML.
    type: path
  devices:
    description:
      - Functions instead of a whole domain. Every function that matches all keys of a selector is declared.
      - A selector that matches no function is an error.
    type: list
    elements: dict
    suboptions:
      address:
        description: The function's address, or another name of it - V(01:00.0), V(net:eno1), V(pf:eno1/vf3).
        type: str
      vendor:
        description: The vendor id, such as V(10de).
        type: str
      device:
        description: The device id.
        type: str
      class:
        description: The beginning of the class, such as V(0300) for displays.
        type: str
      driver:
        description: The driver that the function is bound to now.
        type: str
      count:
        description: Take only this many of the matching functions, by address. Fewer matches are an error.
        type: int
      assigned:
        description: Whether the guest gets the function; V(false) keeps it from the host and the guest.
        type: bool
        default: true
  owner:
    description: The name that owns O(devices); a domain has its own name.
    type: str
    default: ansible
  complete:
    description: Declare the missing functions of a touched device or group as not assigned.
    type: bool
    default: false
  policy:
    description: Which functions must be declared.
    type: str
    choices: [auto, device, group, 'off']
    default: auto
  accept:
    description: Consents, each as V(REASON:ADDRESS); a selector such as V(net:eno1) may take the place of the address.
    type: list
    elements: str
    default: []
"""
