# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Packages for the lab: installed on this machine, or of another Debian suite and only unpacked.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 900


class UnavailableError(Exception):
    """Something the lab needs is not here and cannot be fetched."""


def run(*words: str, cwd: Path | None = None) -> str:
    """
    Run a program of apt, and return what it printed.

    Raises:
        UnavailableError: there is none, or it failed; with its last words.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise UnavailableError(f"'{' '.join(words)}' failed: {err}") from err
    if done.returncode != 0:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise UnavailableError(f"'{' '.join(words)}' failed: {last}")
    return done.stdout


def install(packages: list[str]) -> None:
    """
    Install packages.

    Raises:
        UnavailableError: naming them.
    """
    words = ("apt-get", "install", "-y", "--no-install-recommends", *packages)
    try:
        try:
            run(*words)
        except UnavailableError:
            run("apt-get", "update")  # a fresh container has no lists
            run(*words)
    except UnavailableError as err:
        raise UnavailableError(f"cannot install {', '.join(packages)}: {err}") from err


class Suite:
    """
    Another Debian suite, with an apt directory of its own: this machine's sources and packages stay as they are.

    The mirror is the one that this machine's apt uses. No package counts as installed, so a download has everything.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.archives = directory / "archives"

    def _prepare(self) -> None:
        for name in ("lists/partial", "archives/partial"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        (self.directory / "sources.list").write_text(f"deb {mirror()} {self.name} main\n")
        if not list((self.directory / "lists").glob(f"*_dists_{self.name}_*")):
            self._run("update")

    def _run(self, *words: str, cwd: Path | None = None) -> None:
        own = self.directory
        places = {
            "Dir::Etc::sourcelist": own / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": own,
            "Dir::State::lists": own / "lists",
            "Dir::State::status": own / "status",
            "Dir::Cache": own,
            "Dir::Cache::archives": self.archives,
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        run(
            "apt-get",
            "-q",
            *(word for name, value in places.items() for word in ("-o", f"{name}={value}")),
            *words,
            cwd=cwd,
        )

    def download(self, package: str, directory: Path) -> Path:
        """
        Download one package, and return its file.

        Raises:
            UnavailableError: the package cannot be had.
        """
        if not list(directory.glob(f"{package}_*.deb")):
            self._prepare()
            self._run("download", package, cwd=directory)
        return sorted(directory.glob(f"{package}_*.deb"))[-1]

    def unpack(self, packages: list[str], directory: Path) -> None:
        """
        Unpack packages and all that they depend on below a directory.

        Raises:
            UnavailableError: a package cannot be had.
        """
        self._prepare()
        self._run("install", "-y", "--download-only", "--no-install-recommends", *packages)
        for name in ("bin", "sbin", "lib", "lib64"):
            (directory / "usr" / name).mkdir(parents=True, exist_ok=True)
            (directory / name).symlink_to(f"usr/{name}")
        for file in sorted(self.archives.glob("*.deb")):
            unpack(file, directory)
            file.unlink()


def unpack(package: Path, directory: Path) -> None:
    """Unpack a package's files below a directory whose links to directories stay."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as reader:
        words = ["tar", "-x", "-C", str(directory), "--keep-directory-symlink"]
        subprocess.run(words, stdin=reader.stdout, check=True)


def mirror() -> str:
    """
    Return the address of the Debian mirror that this machine's apt uses.

    Raises:
        UnavailableError: it uses none.
    """
    for line in run("apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(CODENAME)").splitlines():
        words = line.split()
        if words[1:2] == ["Debian"] and "-" not in words[-1]:
            return words[0]
    raise UnavailableError("apt knows no mirror of Debian")
