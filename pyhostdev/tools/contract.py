# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The verbs of the command line, and the exit codes of all of them.

Exit codes: 0 done; 1 refused, the host is unchanged; 2 usage; 3 failed and completely rolled back, or done but the
result could not be printed; 4 not restored; 5 the guest was asked but has not released the device; 6 they differ.
"""

from __future__ import annotations

DONE, REFUSED, USAGE, ROLLED_BACK, NOT_RESTORED, PENDING = 0, 1, 2, 3, 4, 5
DIFFER = 6

VERBS = {
    "list": "list the PCI functions of a host",
    "show": "show all known facts about one function",
    "topology": "show how the functions of a host are connected and grouped",
    "plan": "show what happens to each function of each touched group, and why",
    "validate": "check a domain's XML against the schema and the rules, with line numbers",
    "argv": "print the QEMU command line of a domain",
    "xml": "print a domain with its defaults and guest addresses",
    "addresses": "show the guest address of each device and why, and what another definition or libvirt would move",
    "prepare": "detach a domain's host devices",
    "release": "release a domain's host devices, and reattach the managed ones",
    "start": "run a domain in the foreground; prepare its host devices, and release them at the end",
    "attach-device": "plug a host device, or a card as one, into a running guest or into a definition",
    "detach-device": "unplug a host device, or a card as one, from a running guest or from a definition",
    "update-device": "replace a device of a definition by a new version",
    "status": "show which devices are in use, and which are detached without an owner",
    "recover": "finish or undo what a crash interrupted",
    "nodedev-detach": "detach one device without assigning it to a guest",
    "nodedev-reattach": "bind one detached device back to its driver",
    "nodedev-reset": "reset one device that no domain uses, without resetting any other device",
    "hook": "act as libvirt's hook for guests with host devices, or install it",
    "snapshot": "save a host as a file that can be used as --root, or describe the host as text",
    "diff": "show what differs between two hosts, and what it means for domains",
    "fakehost": "build a simulated host in a directory",
    "demo": "run the whole scenario on a simulated host",
}
