# SPDX-License-Identifier: LGPL-2.1-or-later
"""A filter that reduces each function to what identifies it."""

from __future__ import annotations

DOCUMENTATION = r"""
name: json_identities
short_description: Describe each PCI function by the keys that identify it
description: Returns one text per function, so that two lists can be compared as sets.
options:
  _input:
    description: Functions, as C(pci_info) returns them.
    type: list
    elements: dict
    required: true
  keys:
    description: The keys to keep.
    type: list
    elements: str
    required: true
author:
  - pyhostdev maintainers (@pyhostdev)
"""

EXAMPLES = r"""
changed: "{{ before.functions | pyhostdev.pci.json_identities(['address', 'vendor_id']) }}"
"""

RETURN = r"""
_value:
  description: One text per function, such as V(0000:01:00.0,vendor_id=0x8086).
  type: list
  elements: str
"""


def json_identities(functions, keys):
    """Return one text per function, with the address first."""
    others = [key for key in keys if key != "address"]
    return [",".join([one["address"], *(f"{key}={one[key]}" for key in others)]) for one in functions]


class FilterModule:
    """The filters of this file."""

    def filters(self):
        """Return the filters by name."""
        return {"json_identities": json_identities}
