# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Tell setuptools about the C extensions, which cffi builders describe; the rest is in pyproject.toml.
"""

from __future__ import annotations

import sysconfig
from typing import Any

from setuptools import setup

BUILDERS = [f"csrc/build_pciscan.py:{name}_builder" for name in ("scan", "write", "spawn")]


def wheel_options() -> dict[str, Any]:
    """Return the options that tag the wheel for Python 3.10 and later, where the limited API exists."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return {}
    return {"bdist_wheel": {"py_limited_api": "cp310"}}


setup(cffi_modules=BUILDERS, options=wheel_options())
