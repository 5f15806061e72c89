# SPDX-License-Identifier: LGPL-2.1-or-later
"""The floor of a scan: bare system calls replayed in C, built on first use."""

from __future__ import annotations

import os
import subprocess
from array import array
from pathlib import Path
from typing import Any

from cffi import FFI

_HERE = Path(__file__).parent


def _open(library: Path) -> Any:
    ffi = FFI()
    ffi.cdef("long floor_f4(const char *bus_path); long floor_fpm(const char *bus_path);")
    ffi.cdef("long floor_f5(const char *bus_path, const uint64_t *vfs, size_t count);")
    return ffi, ffi.dlopen(str(library))


class Floor:
    """The replays of floor.c."""

    def __init__(self, build_dir: Path) -> None:
        self._ffi, self._lib = _open(self.build(build_dir))

    @staticmethod
    def build(build_dir: Path) -> Path:
        """Compile the replays into a directory of the caller; return the path of the library."""
        library = build_dir / "floor.so"
        command = [os.environ.get("CC", "cc"), "-std=gnu11", "-O3", "-shared", "-fPIC"]
        command += ["-I", str(_HERE.parent / "csrc"), str(_HERE / "floor.c"), "-o", str(library)]
        subprocess.run(command, check=True)
        return library

    @classmethod
    def load(cls, library: Path) -> Floor:
        """Load an earlier build if there is no compiler."""
        made = cls.__new__(cls)
        made._ffi, made._lib = _open(library)
        return made

    def f4(self, bus_path: str) -> int:
        """Replay the listing and one link per function; return the number of functions."""
        return int(self._lib.floor_f4(os.fsencode(bus_path)))

    def f5(self, bus_path: str, vfs: array[int]) -> int:
        """Replay f4, the listings of drivers, and one identity a function but VFs; the number of functions."""
        keys = self._ffi.from_buffer("uint64_t[]", vfs)
        return int(self._lib.floor_f5(os.fsencode(bus_path), keys, len(vfs)))

    def fpm(self, bus_path: str) -> int:
        """Replay the identity of every function and the search for VFs, too."""
        return int(self._lib.floor_fpm(os.fsencode(bus_path)))
