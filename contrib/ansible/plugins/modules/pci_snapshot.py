#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Store what a host has."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pci_snapshot
short_description: Store what can be read of a host's PCI functions in a file
description:
  - Writes a snapshot on the managed host, and brings it to the control node with O(fetch).
  - A snapshot takes the place of a host in every reading verb of pyhostdev.
  - A file that already is this snapshot is not changed.
options:
  dest:
    description: The file to write, such as V(/var/tmp/before.tar.gz).
    type: path
    required: true
  fetch:
    description:
      - Where the control node keeps a copy. A name that ends with a slash is a directory; the file in it has the name
        of the host in the inventory and the ending of O(dest).
      - In check mode nothing is fetched.
    type: str
  redact:
    description: Replace MAC and IP addresses, serial numbers, UUIDs and names of guests, mounts and virtual interfaces.
    type: bool
    default: false
  tree:
    description: Write a description as text, from which a simulated host can be built.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Reads the host, and reports whether the file would change.
extends_documentation_fragment:
  - pyhostdev.pci.pyhostdev
"""

EXAMPLES = r"""
- name: Take a snapshot and fetch it
  pyhostdev.pci.pci_snapshot:
    dest: /var/tmp/pyhostdev.tar.gz
    fetch: snapshots/
"""

RETURN = r"""
dest:
  description: The file.
  returned: success
  type: str
fetched:
  description: The file on the control node.
  returned: if O(fetch) is given, and not in check mode
  type: str
checksum:
  description: The SHA-1 of the snapshot.
  returned: success
  type: str
notes:
  description: What this user could not read.
  returned: success
  type: list
  elements: str
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pyhostdev.pci.plugins.module_utils import pyhostdev


def main():
    """Run the module."""
    arguments = {
        **pyhostdev.COMMON,
        "dest": {"type": "path", "required": True},
        "fetch": {"type": "str"},  # done by the action of the same name, on the control node
        "redact": {"type": "bool", "default": False},
        "tree": {"type": "bool", "default": False},
    }
    module = AnsibleModule(argument_spec=arguments, supports_check_mode=True)
    command = pyhostdev.Pyhostdev(module)
    dest = module.params["dest"]
    flags = [f"--{name}" for name in ("redact", "tree") if module.params[name]]
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as directory:
        taken = os.path.join(directory, "snapshot")
        code, _out, sentences = command.run("snapshot", taken, *flags)
        if code != pyhostdev.DONE:
            command.fail("snapshot", code, sentences)
        checksum = module.sha1(taken)
        changed = not os.path.exists(dest) or module.sha1(dest) != checksum
        if changed and not module.check_mode:
            module.atomic_move(taken, dest)
    module.exit_json(changed=changed, dest=dest, checksum=checksum, notes=sentences)


if __name__ == "__main__":
    main()
