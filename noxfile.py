# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Run the tests on every Python that this machine has, built with gcc and with clang: ``make test-all``.

A Python counts as found when ``pythonX.Y -c ''`` succeeds, in PATH or below the directory of a version manager, whose
commands in PATH fail while their version is not selected. A missing Python is named and skipped. Each combination has
its own copy of the sources, because an editable install builds the C extensions there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nox

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
COMPILERS = ("gcc", "clang")
PACKAGES = ("setuptools", "wheel", "build")
JOBS = str((os.cpu_count() or 1) + 1)  # as in make test

nox.options.default_venv_backend = "venv"


def managed() -> Iterator[Path]:
    """Yield the directories where version managers (pyenv, uv, mise, asdf) keep one directory for each Python."""
    data = Path(os.environ.get("XDG_DATA_HOME", "~/.local/share"))
    yield Path(os.environ.get("PYENV_ROOT", "~/.pyenv"), "versions").expanduser()
    yield Path(os.environ.get("UV_PYTHON_INSTALL_DIR", data / "uv/python")).expanduser()
    yield Path(os.environ.get("MISE_DATA_DIR", data / "mise"), "installs/python").expanduser()
    yield Path(os.environ.get("ASDF_DATA_DIR", "~/.asdf"), "installs/python").expanduser()


def candidates(version: str) -> Iterator[str]:
    """Yield the commands that may start a Python: the one in PATH first, then those of version managers."""
    yield f"python{version}"
    for directory in managed():
        yield from map(str, sorted(directory.glob(f"*/bin/python{version}")))


def runs(command: str) -> bool:
    """Tell whether a command starts a Python."""
    try:
        return subprocess.run([command, "-c", ""], capture_output=True).returncode == 0
    except OSError:
        return False


def found(version: str) -> str | None:
    """Return the command of an interpreter that runs, None when this machine has none."""
    return next(filter(runs, candidates(version)), None)


def copied(place: Path) -> Path:
    """Copy the files that git knows, as they are in the working tree, and return the directory of the copy."""
    tree = place / "tree"
    names = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    for name in filter(os.path.lexists, names.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, tree / name, follow_symlinks=False)
    return tree


@nox.session(venv_backend="none")
@nox.parametrize("compiler", COMPILERS)
@nox.parametrize("version", PYTHONS)
def tests(session: nox.Session, version: str, compiler: str) -> None:
    """Build a copy of the sources with one compiler and run the suite on one Python."""
    interpreter = found(version)
    if interpreter is None:
        session.skip(f"python{version} is not on this machine")
    if shutil.which(compiler) is None:
        session.skip(f"{compiler} is not on this machine")
    place = Path(f".nox/python{version}-{compiler}").absolute()
    shutil.rmtree(place, ignore_errors=True)
    session.run(interpreter, "-m", "venv", str(place / "venv"), external=True)
    python = str(place / "venv/bin/python")
    with session.chdir(copied(place)):
        build = {"CC": compiler, "LDSHARED": f"{compiler} -shared"}
        session.run(python, "-m", "pip", "install", "-q", *PACKAGES, "-e", ".[tools,test]", env=build, external=True)
        session.run(python, "-m", "pytest", "-q", "-n", JOBS, *session.posargs, external=True)
