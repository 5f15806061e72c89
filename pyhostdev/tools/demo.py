# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pyhostdev demo``: the seed's scenario on a simulated host, verb by verb."""

from __future__ import annotations

import argparse
import os
import tempfile

from pyhostdev.errors import InternalError
from pyhostdev.tools import main, streams

GUEST = os.path.join(os.path.dirname(__file__), "guests", "seed.xml")
HOST = "bcm5719"
DETACHED_VERBS = (
    ("A four-port card in one IOMMU group, each port with its host driver.", ["list"]),
    ("The guest needs ports 0 and 3. What would happen to each function, and why:", ["plan", GUEST]),
    ("Detach all four.", ["prepare", GUEST, "--simulate"]),
    ("The command line for QEMU: two vfio-pci devices, without ports 1 and 2.", ["argv", GUEST]),
    ("The devices in use now:", ["status"]),
    ("The guest has ended: bind every port back to its original driver.", ["release", GUEST, "--simulate"]),
    ("The same as before:", ["list"]),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Build the host in a temporary directory and run the verbs on it."""
    from pyhostdev.testing.fakehost import FakeHost

    with tempfile.TemporaryDirectory(prefix="pyhostdev-demo-") as directory:
        fake = FakeHost.named(HOST, directory)
        before = fake.snapshot()
        for heading, words in DETACHED_VERBS:
            _show(heading, words, directory)
        if before != fake.snapshot():
            raise InternalError("The simulated host differs from its state before the demo")
    streams.write("\nThe host is byte for byte as it was.\n")
    return 0


def _show(heading: str, words: list[str], directory: str) -> None:
    shown = " ".join(os.path.basename(word) if word == GUEST else word for word in words)
    streams.write(f"\n# {heading}\n$ pyhostdev {shown} --root HOST\n")
    code = main.main([*words, "--root", directory])
    if code != 0:
        raise InternalError(f"'{shown}' ended with {code}")
