# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Small initramfs archives: busybox, an init script, and the kernel modules it needs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


def module_order(modules: Path, names: list[str]) -> list[str]:
    """
    Return the files to insert, in order, for some modules and what they need.

    Host: lib/modules/RELEASE/modules.dep, modules.builtin
    """
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, rest = line.split(":", 1)
        needs[_module_name(file)] = [file, *rest.split()]
    builtin = {_module_name(line) for line in (modules / "modules.builtin").read_text().splitlines()}
    wanted = [name.replace("-", "_") for name in names]
    files = (reversed(needs[name]) for name in wanted if name not in builtin)
    return list(dict.fromkeys(file for group in files for file in group))


def _module_name(file: str) -> str:
    return Path(file).name.split(".ko")[0].replace("-", "_")


def tool(name: str) -> Path:
    """
    Return a program's path.

    Raises:
        FileNotFoundError: naming it.
    """
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed")
    return Path(found)


class Initramfs:
    """A directory that becomes an archive: ``/bin/busybox``, ``/init`` and what is added."""

    def __init__(self, top: Path, init: str) -> None:
        self.top = top
        for directory in ("bin", "modules", "dev", "proc", "sys"):
            (top / directory).mkdir()
        self.add_file(tool("busybox"), "bin/busybox")
        (top / "init").write_text(init)
        (top / "init").chmod(0o755)

    def add_file(self, source: Path, name: str) -> None:
        """Copy one file, links followed."""
        target = self.top / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)

    def add_program(self, source: Path) -> None:
        """Copy a program and the shared libraries it is linked with."""
        self.add_file(source, f"bin/{source.name}")
        listed = subprocess.run(["ldd", str(source)], capture_output=True, text=True, check=True)
        for word in listed.stdout.split():
            if word.startswith("/"):
                self.add_file(Path(word), word.lstrip("/"))

    def add_modules(self, modules: Path, names: list[str]) -> None:
        """Copy kernel modules with what they need; ``/modules/order`` lists them."""
        files = module_order(modules, names)
        for file in files:
            self._add_module(modules / file)
        order = (Path(file).name.removesuffix(".xz") for file in files)
        (self.top / "modules/order").write_text("".join(f"{name}\n" for name in order))

    def _add_module(self, file: Path) -> None:
        target = self.top / "modules" / file.name.removesuffix(".xz")
        if file.suffix != ".xz":
            shutil.copy(file, target)
            return
        with target.open("wb") as out:
            subprocess.run(["xz", "-dc", str(file)], stdout=out, check=True)

    def write(self, archive: Path) -> None:
        """Pack the directory; the archive appears whole or not at all."""
        names = sorted(str(path.relative_to(self.top)) for path in self.top.rglob("*"))
        partial = archive.with_name(f"{archive.name}.{os.getpid()}")
        with partial.open("wb") as out:
            subprocess.run(
                ["cpio", "-o", "-H", "newc", "--quiet"],
                cwd=self.top, input="\n".join([".", *names, ""]).encode(), stdout=out, check=True,
            )  # fmt: skip
        partial.rename(archive)


def cached(cache: Path, init: str, modules: Path, names: list[str]) -> Path:
    """Return an archive of busybox, init and modules, built once for these contents."""
    identity = "\n".join([init, str(modules), *module_order(modules, names), str(tool("busybox"))])
    archive = cache / f"initramfs-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.cpio"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="initramfs-") as directory:
            content = Initramfs(Path(directory), init)
            content.add_modules(modules, names)
            content.write(archive)
    return archive
