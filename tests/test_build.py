# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sdist contains all sources, builds by itself, and an install from it can scan."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_SHIPPED = ("debian/", ".")  # a distribution keeps its packaging beside the sdist
SHARED = (
    "share/bash-completion/completions/pyhostdev",
    "share/fish/vendor_completions.d/pyhostdev.fish",
    "share/man/man1/pyhostdev.1",
    "share/zsh/site-functions/_pyhostdev",
)
AT_THE_TOP = (".md", ".py", ".toml", ".in", "LICENSE")

SCAN = """
import sys
import pyhostdev
from pyhostdev.util import hostroot, pciscan, spawn, sysfs_writer
from pyhostdev.util.pciaddress import PCIDeviceAddress
root = hostroot.HostRoot(sys.argv[1])
writer = sysfs_writer.ForkedWriter(root)
writer.write(sys.argv[1] + "/attribute", b"ok", device=PCIDeviceAddress(0, 2, 0, 0))
assert spawn.access_errors([(sys.argv[1], 0)], None) == [0]
print(pyhostdev.__file__, *pciscan.scan(root)[0])
"""


def run(*command: str | Path, cwd: Path) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert 0 == done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist with what is installed, from a copy: a build leaves its traces in the source."""
    pytest.importorskip("build")
    pytest.importorskip("wheel")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for path in tracked():
        target = source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / path).read_bytes())
    for path in SHARED:  # as make dist does
        (source / path).parent.mkdir(parents=True)
        (source / path).touch()
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", out, source, cwd=out)
    return next(out.glob("*.tar.gz"))


def tracked() -> Iterator[str]:
    """Give the files of the source, built or temporary ones left out."""
    skipped = {".git", ".venv", ".lab", "build", "_build", "dist", "share", "__pycache__"}
    for top, directories, names in os.walk(ROOT):
        directories[:] = [name for name in directories if name not in skipped and not name.startswith(".")]
        for name in names:
            if not name.endswith((".so", ".pyc")) and ".egg-info" not in top:
                yield str(Path(top, name).relative_to(ROOT))


def test_sdist_holds_all_that_its_tests_need(sdist: Path) -> None:
    """Every file of the source is in the sdist, what its tests read included; nothing else is."""
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {path for path in held if path.startswith("pyhostdev.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert (wanted() | set(SHARED)) - made == held - made
    assert {"README.md", "docs/reasons.md", "csrc/sysfs_write.h", "pyhostdev/py.typed"} <= held


def wanted() -> set[str]:
    """Return what belongs into an sdist; other files at the top are a developer's own."""
    found = {path for path in tracked() if not path.startswith(NOT_SHIPPED)}
    return {path for path in found if "/" in path or path.endswith(AT_THE_TOP) or path.startswith("Makefile")}


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the sdist, as an installation does."""
    out = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "-w", out)
    run(sys.executable, "-m", "pip", "wheel", *options, sdist, cwd=out)
    return next(out.glob("*.whl"))


def test_wheel_serves_every_python(wheel: Path) -> None:
    """One wheel for all Pythons from 3.10 on: all extensions use the limited API only."""
    assert "cp310-abi3" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    extensions = sorted(Path(name).name for name in names if name.endswith(".so"))
    assert ["_pciscan.abi3.so", "_spawn.abi3.so", "_sysfs_write.abi3.so"] == extensions
    assert not any(name.startswith(("tests", "benchmarks", "csrc")) for name in names)


def test_wheel_has_schemas_man_page_and_completions(wheel: Path) -> None:
    """What is made before a release is installed below share/; the schemas are part of the package."""
    names = zipfile.ZipFile(wheel).namelist()
    assert sorted(SHARED) == sorted(name.partition(".data/data/")[2] for name in names if ".data/data/" in name)
    schemas = {f"pyhostdev/schemas/{path.name}" for path in (ROOT / "pyhostdev/schemas").iterdir()}
    assert schemas <= set(names)
    assert len(schemas) > 1


def test_editable_install_has_nothing_below_share(sdist: Path, tmp_path: Path) -> None:
    """A developer's install needs no Sphinx and puts nothing into the system's directories."""
    run("tar", "-xf", sdist, "-C", tmp_path, cwd=tmp_path)
    build = "import sys, setuptools.build_meta as b; print(b.build_editable(sys.argv[1]))"
    run(sys.executable, "-c", build, tmp_path, cwd=next(tmp_path.glob("pyhostdev-*")))
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert [] == [name for name in names if "share/" in name]
    assert any(name.endswith("METADATA") for name in names)


def test_install_from_sdist_scans(wheel: Path, tmp_path: Path) -> None:
    """What was installed from the sdist, and nothing of the source tree, scans and writes."""
    target, host = tmp_path / "site", tmp_path / "host"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel, cwd=tmp_path)
    top = host / "sys/bus/pci/devices/0000:02:00.0"
    top.mkdir(parents=True)
    (top / "vendor").write_text("0x8086\n")
    (host / "attribute").touch()
    done = subprocess.run(
        [sys.executable, "-c", SCAN, host],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    expected = [str(target / "pyhostdev/__init__.py"), "0000:02:00.0", "32902", *["None"] * 7]
    assert expected == done.stdout.split(), done.stderr
    assert b"ok" == (host / "attribute").read_bytes()


def test_sources_compile_without_warnings(tmp_path: Path) -> None:
    """The C sources pass the compiler's warnings, which an ordinary build does not insist on."""
    sources = sorted((ROOT / "csrc").glob("*.c"))
    flags = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only")
    run("cc", *flags, *sources, cwd=tmp_path)
    assert len(sources) > 1
