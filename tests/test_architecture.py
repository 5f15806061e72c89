# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rooms of the house: imports go one way and in no circles, one room spells the host's paths."""

from __future__ import annotations

import ast
import pickle
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.util.finding import Finding

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


def imports(path: Path) -> set[str]:
    """Dotted names of our own modules that a file imports, inside functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
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


def dotted(path: Path) -> str:
    """The name of a module; a package is named like its directory."""
    parts = ("pyhostdev", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph() -> dict[str, set[str]]:
    """Which module imports which, also inside functions and for types; the top package looks its names up lazily."""
    names = {dotted(path): path for path in modules()}
    found = {}
    for name, path in names.items():
        wanted = imports(path)
        parts = {target for target in wanted if target in names}
        # "from package import module" does not need what the package itself holds
        packages = {target for target in parts if any(other.startswith(f"{target}.") for other in parts)}
        found[name] = (parts - {package for package in packages if holds_only_modules(path, package, names)}) - {name}
    found["pyhostdev"] = set()
    return found


def holds_only_modules(path: Path, package: str, names: dict[str, Path]) -> bool:
    """Tell whether a file imports nothing from a package but modules of it."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return all(f"{package}.{alias.name}" in names for node in nodes if node.module == package for alias in node.names)


def test_there_are_no_circles() -> None:
    """No module reaches itself by imports of any kind, lazy ones and those for types included."""
    edges, state = graph(), dict[str, int]()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        state[name] = 1
        for target in sorted(edges[name]):
            assert state.get(target) != 1, " -> ".join((*trail, name, target))
            if target not in state:
                walk(target, (*trail, name))
        state[name] = 2

    for name in edges:
        if name not in state:
            walk(name, ())


def test_one_module_spells_host_paths() -> None:
    """Only hostroot (and the simulated kernel, which is a host) knows where sysfs and its relatives are."""
    for path in modules():
        if path.name == "hostroot.py" or room(path) == "testing":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                starts = (
                    "/sys/",
                    "/proc/",
                    "/dev/vfio",
                    "/run/pyhostdev",
                    "/lib/modules",
                    "/usr/share/misc",
                    "/usr/share/hwdata",
                )
                ours = node.value.startswith("/proc/self/")  # about our own process, not about a host
                assert ours or not node.value.startswith(starts), f"{path}:{node.lineno} {node.value}"


def test_two_modules_import_the_scanner() -> None:
    """The C module has two importers: the scanner, and what opens files below a root."""
    importers = {path.name for path in modules() if any("._pciscan" in name for name in imports(path))}
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


VERB = """
import sys
sys.path[:] = {path!r}
from pyhostdev.tools.main import main
assert main({words!r}) == 0
print(*sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)
"""

PARSER = "import argparse, sys; argparse.ArgumentParser().parse_args([]); print(*sys.modules)"  # 3.14: dataclasses


@pytest.mark.parametrize("words", [["show", "0001:09:00.0"], ["status"], ["list"]], ids=lambda words: words[0])
def test_small_verbs_load_little(words: list[str], bcm5719: FakeHost) -> None:
    """What people wait for most loads no library that costs a part of the whole verb."""
    own = subprocess.run([sys.executable, "-S", "-c", PARSER], capture_output=True, text=True, check=True)
    costly = {"dataclasses", "inspect", "json", "logging", "lxml", "pathlib", "typing", "zlib"}
    heavy = costly - set(own.stdout.split())
    code = VERB.format(path=sys.path, words=[*words, "--root", bcm5719.root.path], heavy=heavy)
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


def test_named_tuples_are_as_typing_makes_them() -> None:
    """Fields, defaults, methods, pickling, the class's own names; a missing field is an error."""
    finding = Finding("in-use", "error", None, "Text")
    assert ("reason", "severity", "address", "message", "line") == Finding._fields
    assert finding == pickle.loads(pickle.dumps(finding))
    assert ["in-use", "error", None, "Text", None] == list(finding)
    assert ("in-use: Text", "line 7: in-use: Text") == (finding.sentence, finding._replace(line=7).sentence)
    names = (Finding.__module__, Finding.__qualname__, Finding.__annotations__["message"])
    assert ("pyhostdev.util.finding", "Finding", "str") == names
    assert (Finding.__doc__ or "").strip().startswith("An obstacle")
    with pytest.raises(TypeError, match="missing 3 required"):
        Finding("in-use")  # type: ignore[call-arg]


def test_nothing_prints_outside_the_tools() -> None:
    """print and sys.exit exist only in tools/ and in what runs as a program."""
    for path in modules():
        if room(path) in ("tools", "__main__"):
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "exit"), f"{path}:{node.lineno}"


BODIES = ("body", "orelse", "finalbody", "handlers", "cases")  # where a statement holds others


def function_lengths(statements: list[ast.stmt]) -> Iterator[int]:
    """The lines of each function, its signature and its docstring included; walking expressions would take long."""
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or 0) - node.lineno + 1
        for name in BODIES:
            yield from function_lengths(getattr(node, name, []))


def test_functions_keep_the_budget() -> None:
    """Half of the functions have at most 7 lines, nine of ten at most 17, none more than 43."""
    lengths = sorted(size for path in modules() for size in function_lengths(ast.parse(path.read_text()).body))
    median, ninth, longest = statistics.median(lengths), lengths[len(lengths) * 9 // 10], lengths[-1]
    assert median <= 7
    assert ninth <= 17
    assert longest <= 43
