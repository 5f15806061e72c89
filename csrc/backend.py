# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The build backend: setuptools' own, told of the C extensions.

It lives in the tree because the C parts are described by cffi builders, which setuptools learns of
by a keyword of ``setup()`` only; a setup.py would do the same with one file more at the top level.
"""

from __future__ import annotations

import functools
import sysconfig
from typing import Any

import setuptools
from setuptools.build_meta import (  # noqa: F401  the hooks a frontend calls
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

_BUILDERS = ["csrc/build_pciscan.py:scan_builder", "csrc/build_pciscan.py:write_builder"]


def _options() -> dict[str, Any]:
    """Tag the wheel for every Python from 3.10 on, where the interpreter has the limited API."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return {}
    return {"bdist_wheel": {"py_limited_api": "cp310"}}


# build_meta runs "from setuptools import setup; setup()" when there is no setup.py
setuptools.setup = functools.partial(
    setuptools.setup, cffi_modules=_BUILDERS, options=_options()
)
