# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rooms of the house: imports go one way, siblings form no cycles, one room spells the host's paths."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pyhostdev"
ALLOWED = {
    "errors": set(),
    "util": {"errors"},
    "testing": {"errors", "util"},
    "conf": {"errors", "util"},
    "hypervisor": {"errors", "util", "conf"},
    "qemu": {"errors", "util", "conf", "hypervisor"},
    "tools": {"errors", "util", "testing", "conf", "hypervisor", "qemu"},
    "__main__": {"tools"},
    "__init__": {"errors", "util", "conf", "hypervisor", "qemu"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Dotted names of our own modules that a file imports, inside functions too unless lazy is False."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazy else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "pyhostdev"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_left(path: Path) -> None:
    """A room imports itself and rooms to its left, and an undeclared room is an error."""
    here = room(path)
    rooms = {name.split(".")[1] for name in imports(path) if name.count(".")} - {here}
    known = {name for name in rooms if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}
    assert set() == known - ALLOWED[here]


def test_siblings_form_no_cycles() -> None:
    """No module imports, through others and at module level, itself."""
    names = {".".join(("pyhostdev", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in modules()}
    graph = {name: imports(path, lazy=False) & names.keys() for name, path in names.items()}

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        for target in graph[name]:
            walk(target, (*trail, name))

    for name in graph:
        walk(name, ())


def test_one_module_spells_host_paths() -> None:
    """Only hostroot (and the simulated kernel, which is a host) knows where sysfs and its relatives are."""
    for path in modules():
        if path.name == "hostroot.py" or room(path) == "testing":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                starts = ("/sys/", "/proc/", "/dev/vfio", "/run/pyhostdev", "/lib/modules")
                ours = node.value.startswith("/proc/self/")  # about our own process, not about a host
                assert ours or not node.value.startswith(starts), f"{path}:{node.lineno} {node.value}"


def test_two_modules_import_the_scanner() -> None:
    """The C module has two importers: the scanner, and what opens files below a root."""
    importers = {
        path.name for path in modules() if any("._pciscan" in name for name in imports(path))
    }
    assert {"confined.py", "pciscan.py"} == importers


def test_rooms_have_empty_inits() -> None:
    """A room's __init__ imports nothing; those that others import from look names up lazily."""
    for path in PACKAGE.glob("*/__init__.py"):
        if path.parent.name not in ("qemu", "testing"):
            assert path.read_text() == ""


def test_importing_the_package_is_light() -> None:
    """import pyhostdev loads none of the libraries that only some users need."""
    heavy = ("lxml", "pyudev", "rich", "qemu", "cffi", "argparse")
    code = f"import sys, pyhostdev; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_prints_outside_the_tools() -> None:
    """print and sys.exit exist only in tools/ and in what runs as a program."""
    for path in modules():
        if room(path) in ("tools", "__main__"):
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "exit"), f"{path}:{node.lineno}"
