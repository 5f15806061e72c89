#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Build the lab's kernel of 2026 from Debian's source package: IOMMUFD, device nodes of VFIO, variant drivers, igb.

It takes 7 to 25 minutes and is done once: the directory names the recipe, and the same recipe is not built again.
LAB_KEEP_BUILD=1 keeps source and objects (1.7 GB) for the next build; LAB_JOBS is the number of compilers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import suites
from boot import CACHE

HERE = Path(__file__).resolve().parent
FRAGMENT = HERE / "kernel_2026.config"
SUITE = "sid"
PACKAGE = "linux-source-7.2"
KERNEL_2026 = CACHE / "kernel-2026"
RECIPE = "recipe"  # file of the result that says what it was made from
TOOLS = {"gcc": "gcc", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "xz": "xz-utils", "perl": "perl"}
HEADERS = {"gelf.h": "libelf-dev", "openssl/ssl.h": "libssl-dev"}
LEFT_OUT = ["*.rst", "*.dts", "*.dtsi", "*/drivers/gpu/drm/amd/include", "*/tools/testing/selftests"]
TIMEOUT_S = 5400


def recipe() -> str:
    """Return what identifies a build: its configuration, and the package it is made from."""
    return hashlib.sha256(f"{FRAGMENT.read_text()}{SUITE} {PACKAGE}".encode()).hexdigest()[:16]


def is_built(directory: Path) -> bool:
    """Tell whether a directory holds the kernel of today's recipe."""
    made = directory / RECIPE
    return made.exists() and made.read_text() == recipe()


def missing_packages() -> list[str]:
    """Return the packages of compilers and headers that are not installed."""
    packages = {package for program, package in TOOLS.items() if shutil.which(program) is None}
    if shutil.which("gcc"):
        packages |= {package for header, package in HEADERS.items() if not _has_header(header)}
    else:
        packages |= set(HEADERS.values())
    return sorted(packages)


def _has_header(name: str) -> bool:
    words = ["gcc", "-E", "-x", "c", "-"]
    return subprocess.run(words, input=f"#include <{name}>\n", capture_output=True, text=True).returncode == 0


class Build:
    """Source and objects of one kernel, in a directory of their own."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.source = work / PACKAGE
        self.objects = work / "objects"
        self.begin = time.monotonic()

    def say(self, text: str) -> None:
        """Print how far we are."""
        sys.stdout.write(f"lab: kernel of 2026, {time.monotonic() - self.begin:.0f} s: {text}\n")
        sys.stdout.flush()

    def unpack(self) -> None:
        """
        Have the source: the archive in Debian's package, without what is not compiled here.

        Raises:
            UnavailableError: the package cannot be had.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        package = suites.Suite(SUITE, self.work / "apt").download(PACKAGE, self.work)
        self.say(f"have {package.name}")
        done = self.source / ".unpacked"
        if not done.exists():
            shutil.rmtree(self.source, ignore_errors=True)
            self.source.mkdir()
            left_out = " ".join(f"--exclude='{name}'" for name in LEFT_OUT)
            script = (
                f"dpkg-deb --fsys-tarfile {package.name} | tar -xO --wildcards '*.tar.xz' | xz -dc -T2 |"
                f" tar -x -C {PACKAGE} --strip-components=1 {left_out}"
            )
            self._run("bash", "-o", "pipefail", "-c", script)
            done.touch()
            self.say("unpacked")

    def _run(self, *words: str) -> None:
        try:
            done = subprocess.run(words, cwd=self.work, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as err:
            raise suites.UnavailableError(f"'{' '.join(words)}' took more than {TIMEOUT_S} s") from err
        if done.returncode != 0:
            last = "; ".join((done.stderr.strip() or "no output").splitlines()[-3:])
            raise suites.UnavailableError(f"'{' '.join(words)}' failed: {last}")

    def _make(self, *words: str) -> None:
        self._run("nice", "-n", "10", "make", "-s", "-C", str(self.source), f"O={self.objects}", *words)

    def configure(self) -> None:
        """
        Write the configuration: nothing but the fragment and what it selects.

        Raises:
            UnavailableError: a line of the fragment is not honoured; with all of them.
        """
        self.objects.mkdir(exist_ok=True)
        self._make(f"KCONFIG_ALLCONFIG={FRAGMENT}", "allnoconfig")
        made = set((self.objects / ".config").read_text().splitlines())
        wanted = [line for line in FRAGMENT.read_text().splitlines() if line.startswith("CONFIG_")]
        lost = [line for line in wanted if not _honoured(line, made)]
        if lost:
            raise suites.UnavailableError(f"{PACKAGE} does not take {', '.join(lost)}")
        self.say("configured")

    def compile(self) -> str:
        """Compile kernel and modules, and return the release's name."""
        self._make(f"-j{os.environ.get('LAB_JOBS', os.cpu_count() or 1)}", "bzImage", "modules")
        release = (self.objects / "include/config/kernel.release").read_text().strip()
        self.say(f"compiled {release}")
        return release

    def install(self, release: str, directory: Path) -> None:
        """Put kernel and modules where boot.py looks for them; the directory appears whole or not at all."""
        partial = self.work / "result"
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "boot").mkdir(parents=True)
        self._make(f"INSTALL_MOD_PATH={partial}", "INSTALL_MOD_STRIP=1", "modules_install")
        for link in ("build", "source"):
            (partial / "lib/modules" / release / link).unlink(missing_ok=True)
        self._run("depmod", "-b", str(partial), release)
        shutil.copy(self.objects / "arch/x86/boot/bzImage", partial / f"boot/vmlinuz-{release}")
        (partial / RECIPE).write_text(recipe())
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)


def _honoured(line: str, made: set[str]) -> bool:
    name, _, value = line.partition("=")
    if value == "n":
        return not any(other.startswith(f"{name}=") for other in made)
    return line in made


def build(directory: Path = KERNEL_2026) -> None:
    """
    See to it that the kernel is there.

    Raises:
        UnavailableError: naming what cannot be had or made.
    """
    if is_built(directory):
        return
    packages = missing_packages()
    if packages:
        suites.install(packages)
    directory.parent.mkdir(parents=True, exist_ok=True)
    (directory.parent / ".gitignore").write_text("*\n")
    work = Build(directory.parent / "build-2026")
    work.unpack()
    work.configure()
    work.install(work.compile(), directory)
    if not os.environ.get("LAB_KEEP_BUILD"):
        shutil.rmtree(work.work)


if __name__ == "__main__":
    try:
        build()
    except suites.UnavailableError as err:
        sys.exit(f"kernel_2026: {err}")
    sys.stdout.write(f"{KERNEL_2026}\n")
