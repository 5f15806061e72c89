# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One machine, booted with two kernels: a snapshot of each, and what ``diff`` says about them and a domain's plan.

The first host leaves its snapshot and the domain in LAB_OUT; the second finds them in LAB_BEFORE.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from domains import RUN, write_domain
from labhost import check, run_all, say
from onegroup import SPLIT
from verbs import verb

SNAPSHOT, DOMAIN = "before.tar.gz", "kernels.xml"
FOUND_ON_BOTH = {"added", "gone", "moved"}  # what only another machine gives


def snapshot_of_the_first() -> None:
    """The first kernel's snapshot leaves the host."""
    RUN.mkdir(exist_ok=True)
    out = Path(os.environ["LAB_OUT"])
    verb("snapshot", RUN / SNAPSHOT)  # written where links and owners are as on any disk
    shutil.copy(RUN / SNAPSHOT, out)
    shutil.copy(write_domain("kernels", SPLIT, kind="firmware"), out / DOMAIN)


def differences() -> None:
    """The other kernel finds the same functions in the same groups, and the domain's plan does not change."""
    before = Path(os.environ["LAB_BEFORE"])
    after = RUN / "after.tar.gz"
    RUN.mkdir(exist_ok=True)
    verb("snapshot", after)
    for now in (after, Path("/")):
        same = json.loads(verb("diff", after, now, "--json"))
        check([], same["changes"], f"this host does not differ from its snapshot, read at {now}")
    text = verb("diff", before / SNAPSHOT, after, "--domain", before / DOMAIN, "--json", expect=6)
    found = json.loads(text)
    for item in found["changes"]:
        say(f"    {item['change']} {item['address'] or item['now']}: {item['before']} -> {item['after']}")
    check(set(), {item["change"] for item in found["changes"]} & FOUND_ON_BOTH, "both kernels have the same functions")
    (plan,) = found["plans"]
    check((True, True), (plan["before"]["ok"], plan["after"]["ok"]), "the card can be given on both")
    say(f"    the plans {'differ' if plan['differs'] else 'are alike'}: {plan['after']['steps']}")


STEPS = [differences] if os.environ.get("LAB_BEFORE") else [snapshot_of_the_first]

if __name__ == "__main__":
    sys.exit(run_all(STEPS))
