#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Check that the tree can be released: make release-check.

Each check ends with "ok", "failed" or "missing"; a missing tool is named, and its check skipped. The exit code is 1 if
a check failed. With --final, a missing tool and an unreleased changelog are failures too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
OUT = TOP / "dist" / "release"
SHARED = ("share/man/man1/pyhostdev.1", "share/bash-completion/completions/pyhostdev")
NOT_SHIPPED = (".ci/", "debian/", ".")
EXTENSIONS = 3
# Licences that a distribution may combine with LGPL-2.1-or-later, as packages name them
ALLOWED = re.compile(
    r"\b(MIT|BSD|Apache|LGPL|Lesser General Public|PSF|Python Software Foundation|MPL|ISC)\b", re.IGNORECASE
)
VERSIONED = {
    "pyhostdev/__init__.py": r'^__version__ = "([^"]+)"',
    "debian/changelog": r"^pyhostdev \(([^)-]+)",
    "contrib/pyhostdev.spec": r"^Version:\s*(\S+)",
    "contrib/ansible/galaxy.yml": r"^version: (\S+)",
    "CHANGELOG.md": r"^## (\S+)",
}


class MissingError(Exception):
    """A tool that a check needs is not installed."""


class FailedError(Exception):
    """The tree cannot be released as it is."""


def run(*command: object, cwd: Path = TOP) -> str:
    """Return the output of a command; a command that is not installed is missing."""
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        raise MissingError(f"{Path(words[0]).name} is not installed")
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise FailedError((done.stdout + done.stderr).strip()[-2000:])
    return done.stdout


def tool(name: str) -> str:
    """Return the path of a tool, next to this Python or on the system."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def needs_module(name: str) -> None:
    """Raise MissingError if this Python does not have a module."""
    if subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode:
        raise MissingError(f"the Python module {name} is not installed")


def version() -> str:
    """Return the version in pyproject.toml."""
    found = re.search(r'^version = "([^"]+)"', (TOP / "pyproject.toml").read_text(), re.MULTILINE)
    if found is None:
        raise FailedError("pyproject.toml has no version")
    return found[1]


def check_version() -> str:
    """Every file that names the version names the same one."""
    wanted, others = version(), []
    for path, pattern in VERSIONED.items():
        found = re.search(pattern, (TOP / path).read_text(), re.MULTILINE)
        if found is None or found[1] != wanted:
            others.append(f"{path}: {found[1] if found else 'no version'}")
    if others:
        raise FailedError(f"the version is {wanted}, but {'; '.join(others)}")
    return f"{wanted} in {len(VERSIONED) + 1} files"


def check_changelog(*, final: bool) -> str:
    """The newest entry has text, and a date in place of "unreleased" for a release."""
    entry = re.split(r"^## ", (TOP / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1]
    title, _newline, body = entry.partition("\n")
    if not body.strip():
        raise FailedError(f"the entry '{title}' is empty")
    if final and re.search(r"\(\d{4}-\d{2}-\d{2}\)", title) is None:
        raise FailedError(f"the entry '{title}' has no date")
    return title


def check_build() -> str:
    """Build the sdist, and the wheel from the sdist, with the man page and the completions."""
    needs_module("build")
    absent = [path for path in SHARED if not (TOP / path).exists()]
    if absent:
        raise MissingError(f"{absent[0]}: make share writes it, and needs Sphinx and shtab")
    shutil.rmtree(OUT, ignore_errors=True)
    run(sys.executable, "-m", "build", "-q", "-o", OUT)
    return ", ".join(sorted(path.name for path in OUT.iterdir()))


def built(pattern: str) -> Path:
    """Return a built file."""
    found = sorted(OUT.glob(pattern))
    if not found:
        raise MissingError(f"{pattern} was not built")
    return found[0]


def check_sdist() -> str:
    """The sdist has every file that git has, except those of the repository and of one distribution."""
    tracked = {path for path in run("git", "ls-files").splitlines() if not path.startswith(NOT_SHIPPED)}
    with tarfile.open(built("*.tar.gz")) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    absent = sorted((tracked | set(SHARED)) - held)
    if absent:
        raise FailedError(f"{len(absent)} files are absent: {' '.join(absent[:10])}")
    return f"{len(held)} files"


def check_wheel() -> str:
    """One wheel serves all Pythons, and has the schemas, the man page and nothing of the tests."""
    wheel = built("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    stray = [name for name in names if name.startswith(("tests/", "benchmarks/", "csrc/", "contrib/"))]
    extensions = [name for name in names if name.endswith(".abi3.so")]
    if "cp310-abi3" not in wheel.name or stray or len(extensions) != EXTENSIONS:
        raise FailedError(f"{wheel.name}: {len(extensions)} extensions, foreign files {stray[:5]}")
    if not any(name.endswith("share/man/man1/pyhostdev.1") for name in names):
        raise FailedError(f"{wheel.name} has no man page")
    return f"{wheel.name}, {wheel.stat().st_size >> 10} KiB"


def check_twine() -> str:
    """The metadata renders on a package index."""
    return (
        run(tool("twine"), "--no-color", "check", "--strict", *OUT.iterdir())
        .strip()
        .splitlines()[-1]
        .rpartition(": ")[2]
    )


def check_abi3() -> str:
    """The extensions use no symbol beyond the limited API of Python 3.10."""
    run(tool("abi3audit"), "--strict", built("*.whl"))
    return "no violation"


def check_auditwheel() -> str:
    """Tell which manylinux tag the wheel reaches; a release builds it on that tag's base system."""
    text = " ".join(run(tool("auditwheel"), "show", built("*.whl")).split())
    found = re.search(r'constrains the platform tag to "([^"]+)"', text) or re.search(r'tag: "([^"]+)"', text)
    if found is None:
        raise FailedError(text)
    return found[1]


def check_docs() -> str:
    """The documentation builds without a warning, and its links are valid."""
    needs_module("sphinx")
    run(sys.executable, "docs/check_links.py")
    run(sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", TOP / "dist/docs")
    return f"{sum(1 for _ in (TOP / 'dist/docs').rglob('*.html'))} pages"


def normalised(name: str) -> str:
    """Return the spelling of a package's name that package indexes compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(name: str, extras: Iterable[str] = ()) -> set[str]:
    """Return the names of all packages that one needs at run time, itself left out."""
    found: set[str] = set()
    todo = [(name, frozenset(extras))]
    while todo:
        package, wanted = todo.pop()
        for line in metadata.requires(package) or ():
            match = re.match(r"([A-Za-z0-9._-]+)(?:\[([^]]*)\])?", line)
            condition = re.search(r"extra == ['\"]([^'\"]+)['\"]", line)
            if match is None or (condition and condition[1] not in wanted):
                continue
            other = normalised(match[1])
            if other not in found | {name} or (other == name and match[2]):
                found |= {other} - {name}
                try:
                    metadata.distribution(other)
                except metadata.PackageNotFoundError:
                    continue
                todo.append((other, frozenset((match[2] or "").split(","))))
    return {other for other in found if _installed(other)}


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False  # another platform's
    return True


def licence(name: str) -> str:
    """Return what a package says about its licence."""
    facts = metadata.metadata(name)
    classifiers = [
        line.rpartition(" :: ")[2] for line in facts.get_all("Classifier") or () if line.startswith("License")
    ]
    told = facts.get("License-Expression") or "; ".join(classifiers) or (facts.get("License") or "").strip()
    return told.splitlines()[0] if told else "unknown"


def check_licences() -> str:
    """Every package that is installed with pyhostdev has a licence that may be combined with ours."""
    if not _installed("pyhostdev"):
        raise MissingError("pyhostdev is not installed in this environment")
    found = {name: licence(name) for name in sorted(requirements("pyhostdev", ["tools", "start"]))}
    other = {name: text for name, text in found.items() if ALLOWED.search(text) is None}
    if other:
        raise FailedError(f"unknown licences: {other}")
    return ", ".join(f"{name} ({text})" for name, text in found.items())


def check_sbom() -> str:
    """Write the bill of materials of pyhostdev and what is installed with it; the tools of a release are left out."""
    if not _installed("pyhostdev"):
        raise MissingError("pyhostdev is not installed in this environment")
    target = TOP / "dist" / "sbom.json"
    target.parent.mkdir(exist_ok=True)
    bill = json.loads(run(tool("cyclonedx-py"), "environment", sys.executable, "--pyproject", "pyproject.toml"))
    wanted = requirements("pyhostdev", ["tools", "start"])
    bill["components"] = [part for part in bill["components"] if normalised(part["name"]) in wanted]
    kept = {bill["metadata"]["component"]["bom-ref"], *(part["bom-ref"] for part in bill["components"])}
    bill["dependencies"] = [
        {**entry, "dependsOn": [ref for ref in entry.get("dependsOn", ()) if ref in kept]}
        for entry in bill["dependencies"]
        if entry["ref"] in kept
    ]
    absent = wanted - {normalised(part["name"]) for part in bill["components"]}
    target.write_text(json.dumps(bill, indent=2) + "\n")
    if absent:
        raise FailedError(f"the bill of materials lacks {sorted(absent)}")
    return f"{target.relative_to(TOP)}, {len(bill['components'])} components"


def check_debian() -> str:
    """The Debian package builds with its man page and completions."""
    for name in ("dpkg-buildpackage", "dpkg-deb"):
        if shutil.which(name) is None:
            raise MissingError(f"{name} is not installed")
    lacks = subprocess.run(["dpkg-checkbuilddeps"], cwd=TOP, capture_output=True, text=True)
    if lacks.returncode:
        raise MissingError(lacks.stderr.strip().rpartition("error: ")[2])
    run("make", "-s", "deb")
    package = sorted((TOP / "dist/deb").glob("python3-pyhostdev_*.deb"))[0]
    contents = run("dpkg-deb", "-c", package)
    absent = [name for name in ("man1/pyhostdev.1", "completions/pyhostdev", "zsh", "fish") if name not in contents]
    if absent:
        raise FailedError(f"{package.name} lacks {absent}")
    return package.name


def check_rpm() -> str:
    """The RPM spec is readable."""
    return run("rpmspec", "-q", "--srpm", "contrib/pyhostdev.spec").strip()


def checks(*, final: bool) -> dict[str, Callable[[], str]]:
    """Return the checks in the order in which they run."""
    return {
        "version": check_version,
        "changelog": lambda: check_changelog(final=final),
        "build": check_build,
        "sdist": check_sdist,
        "wheel": check_wheel,
        "twine": check_twine,
        "abi3audit": check_abi3,
        "auditwheel": check_auditwheel,
        "docs": check_docs,
        "licences": check_licences,
        "sbom": check_sbom,
        "debian": check_debian,
        "rpm": check_rpm,
    }


def main() -> int:
    """Run the checks and print one line for each."""
    parser = argparse.ArgumentParser(description="check that the tree can be released")
    parser.add_argument("--final", action="store_true", help="also require every tool, and a date in the changelog")
    parser.add_argument("only", nargs="*", metavar="CHECK", help="run only these checks")
    args = parser.parse_args()
    known = checks(final=args.final)
    for name in set(args.only) - set(known):
        parser.error(f"unknown check '{name}' (checks: {', '.join(known)})")
    failed = 0
    for name in args.only or known:
        try:
            status, detail = "ok", known[name]()
        except MissingError as err:
            status, detail = "missing", str(err)
        except FailedError as err:
            status, detail = "failed", str(err)
        failed += status == "failed" or (args.final and status == "missing")
        print(f"{name:12}{status:9}{detail}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
