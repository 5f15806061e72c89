# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Tell setuptools what pyproject.toml cannot: the C extensions, which cffi builders describe, and what make dist made.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import setup

BUILDERS = [f"csrc/build_pciscan.py:{name}_builder" for name in ("scan", "write", "spawn")]


def wheel_options() -> dict[str, Any]:
    """Return the options that tag the wheel for Python 3.10 and later, where the limited API exists."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return {}
    return {"bdist_wheel": {"py_limited_api": "cp310"}}


def editable_options() -> dict[str, Any]:
    """Return the option by which an editable install is a path: the import of a finder costs each process 10 ms."""
    return {"editable_wheel": {"mode": "compat"}}


def shared_files() -> list[tuple[str, list[str]]]:
    """Return the man page and the completions, where ``make dist`` has made them; an editable install has none."""
    if {"editable_wheel", "develop"} & set(sys.argv):
        return []
    files = [path for path in sorted(Path("share").rglob("*")) if path.is_file()]
    return [(str(path.parent), [str(path)]) for path in files]


setup(cffi_modules=BUILDERS, data_files=shared_files(), options=wheel_options() | editable_options())
