# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Run the tests of the C code under the compiler's sanitizers, and its analyzer over the sources.

As a program: it works on a copy of the checkout in a temporary directory. Tools that the compiler lacks are skipped
and named; the exit code is 1 if a problem was found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
COPIED = ("csrc", "pyhostdev", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
SCANNER_TESTS = ("tests/util/test_pciscan.py", "tests/util/test_pciscan_equal.py")
WRITER_TESTS = ("tests/util/test_sysfs_writer.py",)
SPAWN_TESTS = ("tests/util/test_spawn.py",)
BUILD = ("setup.py", "-q", "build_ext", "--inplace", "--force")


def _compiler() -> str:
    return os.environ.get("CC", "cc")


def _run(command: list[str], cwd: Path, what: str, **env: str) -> bool:
    print("sanitize:", what, flush=True)
    return subprocess.run(command, cwd=cwd, env={**os.environ, **env}).returncode == 0


def _runtime() -> str | None:
    """Return the library that must be loaded before any other; None if the compiler does not have it."""
    done = subprocess.run([_compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
    path = done.stdout.strip()
    return path if done.returncode == 0 and os.path.isabs(path) else None


def _has_analyzer() -> bool:
    done = subprocess.run(
        [_compiler(), "-fanalyzer", "-x", "c", "-c", "/dev/null", "-o", os.devnull],
        capture_output=True,
    )
    return done.returncode == 0


def _analyze() -> bool:
    """Run the analyzer over every source; its warnings are errors."""
    if not _has_analyzer():
        print("sanitize: skipped -fanalyzer, which the compiler does not have")
        return True
    command = [_compiler(), "-std=gnu11", "-O2", "-fanalyzer", "-Wall", "-Wextra", "-Werror", "-c"]
    good = True
    for path in sorted(HERE.glob("*.c")):
        good = _run([*command, str(path), "-o", os.devnull], HERE, f"analyze {path.name}") and good
    return good


def _build(top: Path, flags: str) -> bool:
    command = [sys.executable, "-W", "ignore", *BUILD]
    built = _run(command, top, f"build with {flags}", CFLAGS=flags, LDFLAGS=SANITIZE)
    made = sorted((top / "pyhostdev/util").glob("*.so"))
    return built and len(made) == 3 and all(b"__asan_" in path.read_bytes() for path in made)


def _test(top: Path, runtime: str, tests: tuple[str, ...]) -> bool:
    """Run tests on the build; memory left at the end belongs to Python, so leaks are not detected."""
    options = "detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    return _run(command, top, "test", LD_PRELOAD=runtime, ASAN_OPTIONS=options)


def _sanitize(top: Path) -> bool:
    runtime = _runtime()
    if runtime is None:
        print("sanitize: skipped the sanitizers, which the compiler does not have")
        return True
    for name in COPIED:
        source = HERE.parent / name
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        if source.is_dir():
            shutil.copytree(source, top / name, ignore=ignore)
        else:
            shutil.copy(source, top / name)
    good = _build(top, SANITIZE) and _test(top, runtime, (*SCANNER_TESTS, *WRITER_TESTS, *SPAWN_TESTS))
    # The helper on machines without bare system calls
    return good and _build(top, f"{SANITIZE} -DPHD_NO_RAWCALL") and _test(top, runtime, WRITER_TESTS)


def main() -> int:
    """Analyze, build and test."""
    version = subprocess.run([_compiler(), "--version"], capture_output=True, text=True).stdout
    print("sanitize:", version.partition("\n")[0])
    good = _analyze()
    with tempfile.TemporaryDirectory() as top:
        good = _sanitize(Path(top)) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
