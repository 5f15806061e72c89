# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The two trees: the working tree as it lies there, and a commit of the same repository in a temporary directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).parent.parent.parent
BUILD_TIMEOUT_S = 600


class TreeError(Exception):
    """A tree cannot be asked; the message is one sentence."""


class Tree(NamedTuple):
    """A checkout whose server can be started."""

    name: str
    path: Path

    def environment(self) -> dict[str, str]:
        """Return an environment in which ``import pyhostdev`` means this tree's."""
        return {**os.environ, "PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1"}

    def server(self, release: str, host: Path) -> list[str]:
        """Return the command that answers questions about a host as a libvirt release."""
        script = self.path / "tests" / "oracle_server.py"
        return [sys.executable, str(script), "--libvirt", release, str(host / "sys"), str(host / "dev")]


def base_tree(top: Path, revision: str, directory: Path) -> Tree:
    """
    Unpack a commit below a directory, and give it its C extensions.

    Raises:
        TreeError: the commit does not exist, cannot be built, or has no server.
    """
    commit = _git(top, "rev-parse", "--verify", "--quiet", "--short", f"{revision}^{{commit}}").decode().strip()
    subprocess.run(["tar", "-x", "-C", str(directory)], input=_git(top, "archive", commit), check=True)
    tree = Tree(f"{revision} ({commit})" if revision != commit else commit, directory)
    if not reuse_extensions(top, directory):
        build_extensions(tree)
    check(tree)
    return tree


def reuse_extensions(top: Path, directory: Path) -> bool:
    """Copy the working tree's C extensions if their source is the same; tell whether it is."""
    built = sorted(top.glob("pyhostdev/util/*.so"))
    if not built or sources(top) != sources(directory):
        return False
    for path in built:
        shutil.copy2(path, directory / path.relative_to(top))
    return True


def sources(top: Path) -> dict[str, bytes]:
    """Return the files from which the C extensions are built, by name."""
    wanted = [top / "setup.py", *(path for path in top.glob("csrc/*") if path.suffix in (".c", ".h", ".py"))]
    return {path.name: path.read_bytes() for path in wanted}


def build_extensions(tree: Tree) -> None:
    """
    Build the C extensions of a tree in place.

    Raises:
        TreeError: the build fails.
    """
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree.path, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    if done.returncode:
        raise TreeError(f"The C extensions of {tree.name} cannot be built: {_last_line(done.stderr)}")


def check(tree: Tree) -> None:
    """
    Check that a tree's own package is the one that its server would import.

    Raises:
        TreeError: it is not, or cannot be imported.
    """
    if not (tree.path / "tests" / "oracle_server.py").exists():
        raise TreeError(f"{tree.name} has no tests/oracle_server.py, and cannot be asked")
    code = "import pyhostdev.util.pciscan as module; print(module.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree.path, env=tree.environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise TreeError(f"The package of {tree.name} cannot be imported: {_last_line(done.stderr)}")
    found = Path(done.stdout.strip())
    if not found.is_relative_to(tree.path):
        raise TreeError(f"{found} would be asked instead of the package of {tree.name}")


def _git(top: Path, *words: str) -> bytes:
    """Return what git prints."""
    done = subprocess.run(["git", "-C", str(top), *words], capture_output=True)
    if done.returncode:
        why = _last_line(done.stderr.decode(errors="replace")) or "there is no such commit"
        raise TreeError(f"'git {' '.join(words)}' fails: {why}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
