#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Fetch the parts of the lab: programs, with apt, and a Debian kernel, unpacked and not installed.

Nothing is fetched twice. Without apt, root or a network the lab is not available: UnavailableError names what
is missing.
"""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import suites
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

# Source: Documentation/arch/x86/boot.rst (kernel)
SETUP_SECTS = 0x1F1
PAYLOAD_OFFSET = 0x248
SECTOR = 512
XZ_MAGIC = b"\xfd7zXZ\0"


def missing_packages() -> list[str]:
    """Return the packages of the programs that are not installed."""
    return sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})


def kernel_package() -> str:
    """Return the name of the package that Debian's newest kernel is in."""
    for line in suites.run("apt-cache", "depends", KERNEL_METAPACKAGE).splitlines():
        relation, _, package = line.strip().partition(" ")
        if relation == "Depends:" and package.startswith("linux-image-"):
            return package
    raise suites.UnavailableError(f"apt knows no {KERNEL_METAPACKAGE}")


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
    except suites.UnavailableError:
        suites.run("apt-get", "update")
        package = kernel_package()
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="fetch-") as scratch:
        suites.run("apt-get", "download", package, cwd=Path(scratch))
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
        suites.run("apt-get", "download", "driverctl", cwd=Path(scratch))
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
        suites.install(packages)
    if not KERNEL.exists():
        fetch_kernel(KERNEL)
    if not DRIVERCTL.exists():
        try:
            fetch_driverctl(DRIVERCTL)
        except suites.UnavailableError as err:
            sys.stdout.write(f"lab: without driverctl: {err}\n")


if __name__ == "__main__":
    try:
        fetch()
    except suites.UnavailableError as err:
        sys.exit(f"fetch: {err}")
    sys.stdout.write(f"{KERNEL}\n")
