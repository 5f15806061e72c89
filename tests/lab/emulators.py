# SPDX-License-Identifier: LGPL-2.1-or-later
"""
QEMUs of other Debian suites, unpacked beside this machine's own: nothing is installed.

Without chroot(2) the emulator sees the caller's files, and the same script runs it in a host of the lab.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path

import suites

SYSTEM = "qemu-system-x86_64"
SUITES = {"11.1": "forky", "10.0": "trixie"}  # version of QEMU: suite that has it
NEWEST = "11.1"
_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
_FIRMWARE = ("share/qemu", "share/seabios", "lib/ipxe/qemu")


def fetch(version: str, cache: Path) -> Path:
    """
    Return the root directory of a version, fetched once; it appears whole or not at all.

    Raises:
        UnavailableError: it cannot be had.
    """
    directory = cache / f"qemu-{version}"
    if not directory.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as scratch:
            tree = Path(scratch) / "tree"
            suites.Suite(SUITES[version], Path(scratch) / "apt").unpack(["qemu-system-x86"], tree)
            if not (tree / f"usr/bin/{SYSTEM}").exists():
                raise suites.UnavailableError(f"the packages of {SUITES[version]} have no {SYSTEM}")
            shutil.move(tree, directory)
    return directory


def modules_of(root: Path) -> Path:
    """Return the directory of a QEMU's loadable modules."""
    return root / _LIBRARIES / "qemu"


def with_modules(root: Path, words: list[str]) -> list[str]:
    """Return a command for which the installed modules are hidden: a QEMU loads from there what it misses, and dies."""
    script = f'mkdir -p /{_LIBRARIES}/qemu && mount --bind "$0" /{_LIBRARIES}/qemu && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(modules_of(root)), *words]


def write_script(root: Path, path: Path) -> str:
    """Write a script that runs a root directory's QEMU with its loader, libraries, modules and firmware."""
    libraries = root / _LIBRARIES
    words = [
        str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(root / "usr/bin" / SYSTEM),
        *(word for name in _FIRMWARE for word in ("-L", str(root / "usr" / name))),
    ]  # fmt: skip
    modules = shlex.quote(str(modules_of(root)))
    path.write_text(f'#!/bin/sh\nexport QEMU_MODULE_DIR={modules}\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)
    return str(path)
