# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The same device tomorrow: a card that is pinned, on a host where another card has its bus number since; and snapshots.

The first host leaves the pinned definition in LAB_OUT; the second finds it in LAB_PINNED.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

from domains import RUN, hostdev, make_run, write_domain
from labhost import NIC, NIC_DRIVER, NVME, UNSET, VFIO, check, drivers, run_all, say, show, traces, wait_for
from onegroup import SPLIT, check_home, ended, started, wait_for_qemu
from verbs import verb

QEMU = ("--qemu", "7.2")  # both sides answer with the same capabilities; without a live host no emulator is asked
PINNED = "pinned.xml"


def pinned() -> None:
    """The card's identity is written into the definition, and the plan accepts it."""
    domain = write_domain("pinned", SPLIT, kind="firmware")
    (RUN / PINNED).write_bytes(verb("xml", domain, "--pin-devices", *QEMU))
    findings = json.loads(verb("plan", RUN / PINNED, "--json", *QEMU))["findings"]
    check([], [item for item in findings if item["severity"] == "error"], "the plan has no error")
    shutil.copy(RUN / PINNED, os.environ["LAB_OUT"])


def snapshot_is_the_host() -> None:
    """A snapshot answers byte for byte as the host that it was taken of."""
    domain = write_domain("whole", SPLIT + hostdev(NVME[0], assigned=None), kind="firmware")
    taken, again = RUN / "host.tar.gz", RUN / "again.tar.gz"
    for path in (taken, again):
        verb("snapshot", path)
    check(True, taken.read_bytes() == again.read_bytes(), "two snapshots of one state are the same file")
    say(f"  a snapshot has {taken.stat().st_size} bytes")
    with tarfile.open(taken) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
    check((os.uname().release, []), (manifest["kernel"], manifest["unreadable"]), "root could read everything")
    questions: list[tuple[str | Path, ...]] = [
        ("list",), ("list", "--names"), ("list", "--json"), ("show", NIC[0]), ("show", NVME[0], "--json"),
        ("plan", domain, *QEMU), ("plan", domain, "--json", *QEMU), ("argv", domain, *QEMU), ("xml", domain, *QEMU),
    ]  # fmt: skip
    for name, *words in questions:
        code = 1 if name == "plan" else 0  # the controller has VFs
        answers = [verb(name, *words, *root, expect=code) for root in ((), ("--root", taken))]
        check(True, answers[0] == answers[1] and bool(answers[0]), f"both '{name}' print {len(answers[0])} equal bytes")


def renumbered() -> None:
    """Another card has the addresses of the pinned one: refused, found, repointed and started."""
    definition = Path(os.environ["LAB_PINNED"], PINNED)
    other, card = NIC[:4], NIC[4:]
    show("now", NIC)
    before = traces()
    findings = json.loads(verb("plan", definition, "--json", *QEMU, expect=1))["findings"]
    errors = [item for item in findings if item["severity"] == "error"]
    for item in errors:
        say(f"    {item['reason']}: {item['message']}")
    changed = {item["address"] for item in errors if item["reason"] == "changed-identity"}
    check(set(other), changed, "the plan refuses all four functions of the other card")
    verb("prepare", definition, expect=1)
    check(before, traces(), "no function of the host was touched")
    found = json.loads(verb("plan", definition, "--find", "--json", *QEMU, expect=1))["found"]
    check(
        [[address] for address in card],
        [item["now"] for item in found],
        "all four functions are found where they are now",
    )
    make_run()
    repointed = RUN / "repointed.xml"
    repointed.write_bytes(verb("xml", definition, "--repoint", *QEMU))
    with started(repointed, *QEMU) as start:
        wait_for_qemu(start)
        show("during", NIC)
        check(dict.fromkeys(card, (VFIO, VFIO)), drivers(card), "the card is on vfio-pci")
        check(dict.fromkeys(other, (NIC_DRIVER, UNSET)), drivers(other), "the other card was not touched")
        start.terminate()
        wait_for(lambda: ended(start), "the guest ends", 60)
    check(0, start.returncode, "exit code of 'start'")
    check_home()


STEPS = [renumbered] if os.environ.get("LAB_PINNED") else [pinned, snapshot_is_the_host]

if __name__ == "__main__":
    sys.exit(run_all(STEPS))
