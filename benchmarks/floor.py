# SPDX-License-Identifier: LGPL-2.1-or-later
"""The floor of a scan: bare system calls replayed in C, built when it is first asked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from cffi import FFI

_HERE = Path(__file__).parent


class Floor:
    """The replays of floor.c, compiled into a directory of the caller's."""

    def __init__(self, build_dir: Path) -> None:
        library = build_dir / "floor.so"
        command = [os.environ.get("CC", "cc"), "-std=gnu11", "-O2", "-shared", "-fPIC"]
        command += ["-I", str(_HERE.parent / "csrc"), str(_HERE / "floor.c"), "-o", str(library)]
        subprocess.run(command, check=True)
        ffi = FFI()
        ffi.cdef("long floor_f4(const char *bus_path); long floor_fpm(const char *bus_path);")
        self._lib: Any = ffi.dlopen(str(library))

    def f4(self, bus_path: str) -> int:
        """Replay the listing and one link a function; the number of functions."""
        return int(self._lib.floor_f4(os.fsencode(bus_path)))

    def fpm(self, bus_path: str) -> int:
        """Replay the identity of every function and the search for VFs, too."""
        return int(self._lib.floor_fpm(os.fsencode(bus_path)))
