# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the modules share: running the command, choosing functions, and the drivers before and after a change.

A refusal of pyhostdev is a failure of the task with its findings; nothing was changed then.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

DONE, REFUSED = 0, 1
ROLES = {"unassigned": "kept"}  # a plan's role, as the status calls it
NOWHERE = "-"

COMMON = {
    "executable": {"type": "str", "default": "pyhostdev"},
    "root": {"type": "path", "default": "/"},
    "state_dir": {"type": "path"},
    "simulate": {"type": "bool", "default": False},
    "timeout": {"type": "float", "default": 30.0},
}
SELECTOR = {
    "address": {"type": "str"},
    "vendor": {"type": "str"},
    "device": {"type": "str"},
    "class": {"type": "str"},
    "driver": {"type": "str"},
    "count": {"type": "int"},
    "assigned": {"type": "bool", "default": True},
}
DEVICES = {
    "domain": {"type": "str"},
    "src": {"type": "path"},
    "devices": {"type": "list", "elements": "dict", "options": SELECTOR},
    "owner": {"type": "str", "default": "ansible"},
    "complete": {"type": "bool", "default": False},
    "policy": {"type": "str", "choices": ["auto", "device", "group", "off"], "default": "auto"},
    "accept": {"type": "list", "elements": "str", "default": []},
}
ONE_OF = ["domain", "src", "devices"]
ADDRESS = re.compile("[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}[.][0-7]")  # as list prints it


class Pyhostdev:
    """The command on this host, with the options of the task."""

    def __init__(self, module):
        self.module = module
        executable = module.params["executable"]
        self.executable = executable if "/" in executable else module.get_bin_path(executable, required=True)

    def run(self, verb, *words, stdin=None, changes=False, other_root=True):
        """Return the exit code, the output and the sentences of one verb; ``diff`` names its roots itself."""
        params = self.module.params
        command = [self.executable, verb, *words, *(["--root", params["root"]] if other_root else [])]
        if params["state_dir"] and other_root:
            command += ["--state-dir", params["state_dir"]]
        if changes:
            command += ["--timeout", str(params["timeout"]), *(["--simulate"] if params["simulate"] else [])]
        code, out, err = self.module.run_command(command, data=stdin)
        prefix = "pyhostdev: "
        lines = [line[len(prefix) :] if line.startswith(prefix) else line for line in err.splitlines()]
        return code, out, [line for line in lines if line and not line.startswith("note: answered with")]

    def checked(self, verb, *words, **options):
        """Return the output of a verb; fail the task with its sentences if it does not succeed."""
        code, out, sentences = self.run(verb, *words, **options)
        if code != DONE:
            self.fail(verb, code, sentences)
        return out

    def fail(self, verb, code, sentences, **facts):
        """Fail the task with the message of the command."""
        said = "; ".join(line for line in sentences if not line.startswith("note: ")) or "no reason was printed"
        self.module.fail_json(msg=f"pyhostdev {verb}: {said}", exit_code=code, sentences=sentences, **facts)

    def functions(self):
        """Return all PCI functions of the host."""
        return json.loads(self.checked("list", "--json"))

    def status(self):
        """Return the devices in use and those detached without an owner."""
        return json.loads(self.checked("status", "--json"))

    def owned(self, owner):
        """Return what an owner has: records by address."""
        return {record["address"]: record for record in self.status()["active"] if record["owner"] == owner}

    def drivers(self, addresses):
        """Return the driver of each of these functions now; None without a driver."""
        return {found["address"]: found["driver"] for found in self.functions() if found["address"] in addresses}

    def plan(self, domain):
        """Return the plan of a domain's XML, completed if the task asks for it."""
        plan = self._plan(domain)
        if self.module.params["complete"] and plan["proposal"]:
            domain = with_kept(domain, [proposed["address"] for proposed in plan["proposal"]])
            plan = self._plan(domain)
        return domain, plan

    def _plan(self, domain):
        params = self.module.params
        consents = [word for consent in params["accept"] for word in ("--accept", consent)]
        code, out, sentences = self.run("plan", "-", "--json", "--policy", params["policy"], *consents, stdin=domain)
        if not out.strip():
            self.fail("plan", code, sentences)
        return json.loads(out)

    def refuse(self, plan):
        """Fail the task with a plan's obstacles, consents that were not given included."""
        stands = [finding for finding in plan["findings"] if finding["severity"] != "note"]
        said = "; ".join(f"{finding['reason']}: {finding['message']}" for finding in stands)
        self.module.fail_json(msg=f"The host cannot take '{plan['owner']}': {said}", plan=plan, findings=stands)

    def domain(self):
        """Return the XML that the task means: its text, a file of the host, or one made for its selectors."""
        params = self.module.params
        if params["domain"] is not None:
            return params["domain"]
        if params["src"] is None:
            return self.domain_of(params["owner"], self.selected(params["devices"]))
        try:
            with open(params["src"], encoding="utf-8") as stream:
                return stream.read()
        except (OSError, UnicodeDecodeError) as err:
            self.module.fail_json(msg=f"Cannot read '{params['src']}': {err}")

    def selected(self, selectors):
        """Return the chosen functions: for each address, whether the guest gets it."""
        functions, chosen = self.functions(), {}
        for selector in selectors:
            wanted = {key: value for key, value in selector.items() if value is not None}
            if "address" in wanted:
                wanted["address"] = self.address(wanted["address"])
            found = [function["address"] for function in functions if matches(function, wanted)]
            count = wanted.get("count", len(found))
            if not found or count > len(found):
                self.module.fail_json(msg=f"{len(found)} functions match {wanted}, which are too few")
            chosen.update(dict.fromkeys(found[:count], wanted["assigned"]))
        return chosen

    def address(self, name):
        """Return the address of the function that has a name, such as net:eno1."""
        return name if ADDRESS.fullmatch(name) else json.loads(self.checked("show", name, "--json"))["address"]

    def owner(self):
        """Return the name that owns the devices: the domain's own, if the task names a domain."""
        params = self.module.params
        if params["domain"] is None and params["src"] is None:
            return params["owner"]
        try:
            name = ElementTree.fromstring(self.domain()).findtext("name")
        except ElementTree.ParseError as err:
            self.module.fail_json(msg=f"The domain's XML is not well-formed: {err}")
        return (name or "").strip() or self.module.fail_json(msg="The domain has no name")

    def release(self, owner):
        """Give the devices of an owner back, and end the task; an owner without devices is not changed."""
        records = self.owned(owner)
        before = {address: record["driver"] for address, record in records.items()}
        after = {address: record["original_driver"] for address, record in records.items()}
        if records and not self.module.check_mode:
            self.checked("release", "--owner", owner, changes=True)
            after = self.drivers(records)
        self.module.exit_json(changed=bool(records), owner=owner, devices=after, diff=diff(before, after))

    @staticmethod
    def domain_of(owner, chosen):
        """Return the XML of a domain with these devices and nothing else."""
        domain = ElementTree.Element("domain", type="kvm")
        ElementTree.SubElement(domain, "name").text = owner
        ElementTree.SubElement(domain, "memory", unit="MiB").text = "1024"
        system = ElementTree.SubElement(domain, "os")
        ElementTree.SubElement(system, "type", arch="x86_64", machine="q35").text = "hvm"
        devices = ElementTree.SubElement(domain, "devices")
        for address, is_assigned in chosen.items():
            add_hostdev(devices, address, is_assigned)
        return ElementTree.tostring(domain, encoding="unicode")


def matches(function, wanted):
    """Tell whether a function has all that a selector names."""
    tests = {
        "address": lambda value: function["address"] == value,
        "vendor": lambda value: same_number(function["vendor_id"], value),
        "device": lambda value: same_number(function["device_id"], value),
        "class": lambda value: (function["class"] or "")[2:].startswith(without_prefix(value)),
        "driver": lambda value: function["driver"] == value,
    }
    given = [key for key in tests if key in wanted]
    return bool(given) and all(tests[key](wanted[key]) for key in given)


def without_prefix(value):
    """Return hexadecimal digits without 0x."""
    digits = value.lower()
    return digits[2:] if digits.startswith("0x") else digits


def same_number(have, value):
    """Tell whether an id such as 0x8086 is the one that is written with or without its prefix."""
    return have is not None and without_prefix(have) == without_prefix(value).zfill(4)


def add_hostdev(devices, address, is_assigned):
    """Declare one function below <devices>; a kept one has libvirt's spelling, which needs no sibling."""
    hostdev = ElementTree.SubElement(devices, "hostdev", mode="subsystem", type="pci", managed="yes")
    domain, bus, rest = address.split(":")
    slot, function = rest.split(".")
    numbers = {"domain": domain, "bus": bus, "slot": slot, "function": function}
    source = ElementTree.SubElement(hostdev, "source")
    ElementTree.SubElement(source, "address", {name: f"0x{number}" for name, number in numbers.items()})
    if not is_assigned:
        ElementTree.SubElement(hostdev, "address", type="unassigned")


def with_kept(domain, addresses):
    """Return a domain that also declares these functions as not assigned."""
    root = ElementTree.fromstring(domain)
    devices = root.find("devices")
    for address in addresses:
        add_hostdev(devices, address, False)
    return ElementTree.tostring(root, encoding="unicode")


def roles(plan):
    """Return the role of each function that a plan touches, as the status calls it."""
    return {step["address"]: ROLES.get(step["role"], step["role"]) for step in plan["steps"]}


def drivers_before(plan):
    """Return the driver that each function of a plan had before the first step."""
    return {step["address"]: step["from"] for step in reversed(plan["steps"])}


def drivers_prepared(plan):
    """Return the driver of each function of a plan while its owner has the devices."""
    kept = [step for step in plan["steps"] if step["action"] in ("detach", "keep")]
    return {step["address"]: step["to"] for step in kept}


def diff(before, after):
    """Return the drivers before and after, as diff mode prints them."""
    return {
        "before_header": "drivers",
        "after_header": "drivers",
        "before": as_lines(before),
        "after": as_lines(after),
    }


def as_lines(drivers):
    """Return one line per function."""
    return "".join(f"{address} {driver or NOWHERE}\n" for address, driver in sorted(drivers.items()))
