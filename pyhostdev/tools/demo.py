# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev demo``: the seed's scenario on a simulated host, verb by verb."""

from __future__ import annotations

import argparse
import os
import tempfile

from pyhostdev.errors import InternalError
from pyhostdev.tools import main, streams
from pyhostdev.tools.contract import DONE, REFUSED

GUEST = os.path.join(os.path.dirname(__file__), "guests", "seed.xml")
HOST = "bcm5719"
CARD = [f"0001:09:00.{function}" for function in range(4)]
WITHOUT_ONE = ["--device", CARD[0], CARD[3], "--keep", CARD[1], "--owner", "seed"]
VERBS = (
    ("A four-port card in one IOMMU group, each port with its host driver.", ["list"], DONE),
    ("A guest is to get ports 0 and 3. A plan that forgets port 2 is refused:", ["plan", *WITHOUT_ONE], REFUSED),
    ("The definition declares all four. What would happen to each, and why:", ["plan", GUEST], DONE),
    ("Detach all four.", ["prepare", GUEST, "--simulate"], DONE),
    ("Their drivers while the guest has them:", ["list", "--group", "14"], DONE),
    ("Their owner and their roles:", ["status"], DONE),
    ("The command line for QEMU: two vfio-pci devices, without ports 1 and 2.", ["argv", GUEST], DONE),
    ("The guest has ended: bind every port back to its original driver.", ["release", GUEST, "--simulate"], DONE),
    ("The same as before:", ["list"], DONE),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Build the host in a temporary directory and run the verbs on it."""
    from pyhostdev.testing.fakehost import FakeHost

    with tempfile.TemporaryDirectory(prefix="pyhostdev-demo-") as directory:
        fake = FakeHost.named(HOST, directory)
        before = fake.snapshot()
        for heading, words, expected in VERBS:
            _show(heading, words, expected, directory)
        if before != fake.snapshot():
            raise InternalError("The simulated host differs from its state before the demo")
    streams.write("\nThe host is byte for byte as it was.\n")
    return 0


def _show(heading: str, words: list[str], expected: int, directory: str) -> None:
    shown = " ".join(os.path.basename(word) if word == GUEST else word for word in words)
    streams.write(f"\n# {heading}\n$ pyhostdev {shown} --root HOST\n")
    code = main.main([*words, "--root", directory])
    if code != expected:
        raise InternalError(f"'{shown}' ended with {code}")
