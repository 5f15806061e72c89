# SPDX-License-Identifier: LGPL-2.1-or-later
"""The collection as a package: what it contains, that its documentation renders and describes every option."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import pytest

import pyhostdev
from pyhostdev.hypervisor import hostdiff

TOP = Path(__file__).parent.parent
MODULES = sorted(path.stem for path in (TOP / "plugins/modules").glob("*.py"))


def test_version() -> None:
    """The collection has the version of the package."""
    found = re.search(r"^version: (\S+)$", (TOP / "galaxy.yml").read_text(), re.MULTILINE)
    assert found is not None
    assert pyhostdev.__version__ == found[1]


def test_action_group_has_all_modules() -> None:
    """module_defaults for the group reach every module."""
    lines = (TOP / "meta/runtime.yml").read_text().splitlines()
    assert MODULES == [line.strip()[2:] for line in lines if line.strip().startswith("- pci_")]


def test_tarball(ansible: Any) -> None:
    """The tarball has the modules, the role and the licence, and no tests."""
    (tarball,) = Path(__import__("os").environ["COLLECTION"]).glob("*.tar.gz")
    with tarfile.open(tarball) as archive:
        names = set(archive.getnames())
    wanted = {f"plugins/modules/{name}.py" for name in MODULES}
    others = {"LICENSE", "plugins/action/pci_snapshot.py", "roles/host/tasks/hook.yml", "playbooks/park.yml"}
    assert wanted | others <= names
    assert not [name for name in names if name.startswith("tests") or name.endswith(".pyc")]


def test_kinds_of_differences() -> None:
    """pci_diff knows every kind that pyhostdev diff reports."""
    assert {*hostdiff.KINDS, "plan"} == set(_captured("pci_diff")["fail_on"]["choices"])


@pytest.mark.parametrize("name", MODULES)
def test_documentation(ansible: Any, name: str) -> None:
    """ansible-doc renders each module, and its options are those that the module takes."""
    done = ansible.run("ansible-doc", "--json", f"pyhostdev.pci.{name}")
    assert 0 == done.returncode, done.stderr
    doc = json.loads(done.stdout)[f"pyhostdev.pci.{name}"]["doc"]
    assert shape(doc["options"]) == specification(name)


def shape(options: dict[str, Any]) -> dict[str, Any]:
    """Return what the documentation says about each option, in the form of a specification."""
    return {
        key: {
            "type": option["type"],
            "default": option.get("default"),
            "required": option.get("required", False),
            "choices": option.get("choices"),
            "options": shape(option.get("suboptions") or {}),
        }
        for key, option in options.items()
    }


def specification(name: str) -> dict[str, Any]:
    """Return what a module takes, from the call of AnsibleModule that it makes."""
    return _shape_of(_captured(name))


def _shape_of(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {
            "type": option["type"],
            "default": option.get("default"),
            "required": option.get("required", False),
            "choices": option.get("choices"),
            "options": _shape_of(option.get("options") or {}),
        }
        for key, option in arguments.items()
    }


def _captured(name: str) -> dict[str, Any]:
    """Run a module's main() with an AnsibleModule that only remembers its specification."""

    class StopError(Exception):
        pass

    def remember(argument_spec: dict[str, Any], **_options: Any) -> None:
        raise StopError(argument_spec)

    utils = _load("pyhostdev_utils", TOP / "plugins/module_utils/pyhostdev.py")
    fakes = {
        "ansible.module_utils.basic": {"AnsibleModule": remember},
        "ansible_collections.pyhostdev.pci.plugins.module_utils": {"pyhostdev": utils},
    }
    for path, names in fakes.items():
        module = types.ModuleType(path)
        module.__dict__.update(names)
        sys.modules[path] = module
    with pytest.raises(StopError) as stopped:
        _load(name, TOP / f"plugins/modules/{name}.py").main()
    found: dict[str, Any] = stopped.value.args[0]
    return found


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
