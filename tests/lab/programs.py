# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a whole guest takes besides QEMU: UEFI firmware, a TPM emulator, the guest's agent, virtiofsd, and ``ip``.

They are installed on this machine. A virtiofsd that does without root came with Debian 13: on an older machine that
one is unpacked beside it.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path

import suites

FIRMWARE = Path("/usr/share/qemu/firmware/40-edk2-x86_64-secure-enrolled.json")
PACKAGES = {"swtpm": "swtpm", "qemu-ga": "qemu-guest-agent", "ip": "iproute2"}  # program: Debian package
SUITE = "trixie"
VIRTIOFSD = Path("usr/libexec/virtiofsd")  # where the one that does without root is, of any distribution
_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")


def fetch(cache: Path) -> Path:
    """
    See to it that all is there, and return the path of virtiofsd.

    Raises:
        UnavailableError: naming what cannot be had.
    """
    missing = {package for program, package in PACKAGES.items() if shutil.which(program) is None}
    missing |= set() if FIRMWARE.exists() else {"ovmf"}
    if missing:
        suites.install(sorted(missing))
    installed = Path("/") / VIRTIOFSD
    return installed if installed.exists() else _unpacked(cache)


def _unpacked(cache: Path) -> Path:
    """Return a script that runs virtiofsd with its own loader and libraries; it appears whole or not at all."""
    directory = cache / "virtiofsd"
    script = directory / "virtiofsd"
    if not script.exists():
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as scratch:
            tree = Path(scratch) / "tree"
            suites.Suite(SUITE, Path(scratch) / "apt").unpack(["virtiofsd"], tree)
            libraries = directory / _LIBRARIES
            words = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
            words.append(str(directory / VIRTIOFSD))
            (tree / script.name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            (tree / script.name).chmod(0o755)
            shutil.move(tree, directory)
    return script
