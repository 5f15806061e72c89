# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Describe the three C extensions to cffi (API mode, limited API).

Three modules, because they have three users: a program that scans loads no code for writing or starting programs.
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

_FLAGS = ["-std=gnu11", "-O3", "-fvisibility=hidden"]
_STRICT = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]


def _builder(module: str, name: str, sources: list[str]) -> FFI:
    ffi = FFI()
    ffi.cdef(Path(f"csrc/{name}.cdef.h").read_text(encoding="utf-8"))
    ffi.set_source(
        module,
        f'#include "{name}.h"',
        sources=sources,
        include_dirs=["csrc"],
        depends=sorted(str(path) for path in Path("csrc").glob("*.*")),
        extra_compile_args=_FLAGS + (_STRICT if os.environ.get("PYHOSTDEV_WERROR") == "1" else []),
    )
    return ffi


def scan_builder() -> FFI:
    """Return the builder of ``pyhostdev.util._pciscan``."""
    sources = sorted(str(path) for path in Path("csrc").glob("pci*.c"))
    return _builder("pyhostdev.util._pciscan", "pciscan", sources)


def write_builder() -> FFI:
    """Return the builder of ``pyhostdev.util._sysfs_write``."""
    return _builder("pyhostdev.util._sysfs_write", "sysfs_write", ["csrc/sysfs_write.c"])


def spawn_builder() -> FFI:
    """Return the builder of ``pyhostdev.util._spawn``."""
    return _builder("pyhostdev.util._spawn", "spawn", ["csrc/spawn.c"])
