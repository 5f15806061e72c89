#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Fetch the parts of the lab: programs, with apt, and a Debian kernel, unpacked and not installed.

Nothing is fetched twice. Without apt, root or a network the lab is not available: UnavailableError names what
is missing.
"""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from boot import CACHE, KERNEL

PACKAGES = {  # program: Debian package
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "modprobe": "kmod",
    "depmod": "kmod",
    "lspci": "pciutils",
}
KERNEL_METAPACKAGE = "linux-image-amd64"
DRIVERCTL = CACHE / "driverctl"  # unpacked too: installed it would bind drivers of this machine
APT_TIMEOUT_S = 600

# Source: Documentation/arch/x86/boot.rst (kernel)
SETUP_SECTS = 0x1F1
PAYLOAD_OFFSET = 0x248
SECTOR = 512
XZ_MAGIC = b"\xfd7zXZ\0"


class UnavailableError(Exception):
    """Something the lab needs is not here and cannot be fetched."""


def _apt(*words: str, cwd: Path | None = None) -> str:
    """
    Run apt, and return what it printed.

    Raises:
        UnavailableError: there is none, or it failed; with its last words.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=APT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise UnavailableError(f"'{' '.join(words)}' failed: {err}") from err
    if done.returncode != 0:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise UnavailableError(f"'{' '.join(words)}' failed: {last}")
    return done.stdout


def missing_packages() -> list[str]:
    """Return the packages of the programs that are not installed."""
    return sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})


def install(packages: list[str]) -> None:
    """
    Install packages.

    Raises:
        UnavailableError: naming them.
    """
    words = ("apt-get", "install", "-y", "--no-install-recommends", *packages)
    try:
        try:
            _apt(*words)
        except UnavailableError:
            _apt("apt-get", "update")  # a fresh container has no lists
            _apt(*words)
    except UnavailableError as err:
        raise UnavailableError(f"cannot install {', '.join(packages)}: {err}") from err


def kernel_package() -> str:
    """Return the name of the package that Debian's newest kernel is in."""
    for line in _apt("apt-cache", "depends", KERNEL_METAPACKAGE).splitlines():
        relation, _, package = line.strip().partition(" ")
        if relation == "Depends:" and package.startswith("linux-image-"):
            return package
    raise UnavailableError(f"apt knows no {KERNEL_METAPACKAGE}")


def fetch_kernel(directory: Path) -> None:
    """
    Download and unpack a kernel; the directory appears whole or not at all.

    Raises:
        UnavailableError: the package cannot be had.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    (directory.parent / ".gitignore").write_text("*\n")
    try:
        package = kernel_package()
    except UnavailableError:
        _apt("apt-get", "update")
        package = kernel_package()
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="fetch-") as scratch:
        _apt("apt-get", "download", package, cwd=Path(scratch))
        tree = Path(scratch) / "tree"
        (file,) = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(file), str(tree)], check=True)
        for modules in (tree / "lib/modules").iterdir():
            subprocess.run(["depmod", "-b", str(tree), modules.name], check=True)
        _unpack_image(tree)
        tree.rename(directory)


def fetch_driverctl(directory: Path) -> None:
    """
    Download and unpack the tool whose overrides we live with; the directory appears whole or not at all.

    Raises:
        UnavailableError: the package cannot be had.
    """
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="fetch-") as scratch:
        _apt("apt-get", "download", "driverctl", cwd=Path(scratch))
        (file,) = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(file), str(Path(scratch) / "tree")], check=True)
        (Path(scratch) / "tree").rename(directory)


def _unpack_image(tree: Path) -> None:
    """
    Put the kernel beside its compressed image: unpacking it in a guest of a guest takes half a minute.
    """
    for image in (tree / "boot").glob("vmlinuz-*"):
        kernel = unpacked(image.read_bytes())
        if kernel is not None:
            image.with_name(image.name.replace("vmlinuz", "vmlinux")).write_bytes(kernel)


def unpacked(image: bytes) -> bytes | None:
    """Return the ELF kernel in a bzImage when it is compressed with xz, as Debian's are."""
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    start = (image[SETUP_SECTS] + 1) * SECTOR + offset
    payload = image[start : start + length]
    if not payload.startswith(XZ_MAGIC):
        return None
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)  # the size follows the stream


def fetch() -> None:
    """
    See to it that everything is there.

    Raises:
        UnavailableError: naming what cannot be had.
    """
    packages = missing_packages()
    if packages:
        install(packages)
    if not KERNEL.exists():
        fetch_kernel(KERNEL)
    if not DRIVERCTL.exists():
        try:
            fetch_driverctl(DRIVERCTL)
        except UnavailableError as err:
            sys.stdout.write(f"lab: without driverctl: {err}\n")


if __name__ == "__main__":
    try:
        fetch()
    except UnavailableError as err:
        sys.exit(f"fetch: {err}")
    sys.stdout.write(f"{KERNEL}\n")
