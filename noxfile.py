# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Run the tests on every Python that this machine has, built with gcc and with clang: ``make test-all``.

A Python counts as found when ``pythonX.Y -c ''`` succeeds; one that is missing is named and stepped over.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import nox

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
COMPILERS = ("gcc", "clang")
PACKAGES = ("setuptools", "wheel", "build", ".[tools,test]")

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True


def found(version: str) -> str | None:
    """Return the path of an interpreter that really runs, None when this machine has none."""
    command = f"python{version}"
    try:
        done = subprocess.run([command, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@nox.session(venv_backend="none")
@nox.parametrize("compiler", COMPILERS)
@nox.parametrize("version", PYTHONS)
def tests(session: nox.Session, version: str, compiler: str) -> None:
    """Install into an environment of its own and run the suite."""
    interpreter = found(version)
    if interpreter is None:
        session.skip(f"python{version} is not on this machine")
    if shutil.which(compiler) is None:
        session.skip(f"{compiler} is not on this machine")
    place = f".nox/python{version}-{compiler}"
    environment = {"CC": compiler, "LDSHARED": f"{compiler} -shared"}
    session.run(interpreter, "-m", "venv", "--clear", place, external=True)
    python = os.path.abspath(f"{place}/bin/python")
    session.run(python, "-m", "pip", "install", "-q", *PACKAGES, env=environment, external=True)
    session.run(python, "-m", "pytest", "-q", *session.posargs, env=environment, external=True)
