# SPDX-License-Identifier: LGPL-2.1-or-later
"""The built collection, and fleets of simulated hosts with a local connection; run by make ansible."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyhostdev.testing import FakeHost

PYHOSTDEV = Path(sys.executable).parent / "pyhostdev"


class Ansible:
    """Ansible's commands with the built collection installed, in directories of their own."""

    def __init__(self, top: Path, binaries: Path) -> None:
        self.top = top
        self.binaries = binaries

    def run(self, command: str, *words: object, forks: int = 2, timeout: int = 600) -> subprocess.CompletedProcess[str]:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
            "ANSIBLE_COLLECTIONS_PATH": str(self.top / "collections"),
            "ANSIBLE_HOME": str(self.top / "home"),
            "ANSIBLE_FORKS": str(forks),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_DEPRECATION_WARNINGS": "0",
            "PATH": f"{self.binaries}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
        }
        line = [str(self.binaries / command), *map(str, words)]
        return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=timeout, cwd=self.top)


class Fleet(NamedTuple):
    """Simulated hosts in one inventory."""

    ansible: Ansible
    inventory: Path
    hosts: dict[str, FakeHost]

    def module(self, name: str, *flags: str, **arguments: Any) -> dict[str, dict[str, Any]]:
        """Run one module on all hosts and return each host's result."""
        results = self.inventory.parent / "results"
        shutil.rmtree(results, ignore_errors=True)
        common = {
            "executable": "{{ pyhostdev_executable }}",
            "root": "{{ pyhostdev_root }}",
            "simulate": True,
        }
        words = json.dumps({**common, **arguments})
        done = self.ansible.run(
            "ansible", "all", "-i", self.inventory, "-m", f"pyhostdev.pci.{name}", "-a", words, "-t", results, *flags
        )
        assert results.is_dir(), done.stdout + done.stderr
        found = {path.name: json.loads(path.read_text()) for path in results.iterdir()}
        extra = {"shown": done.stdout.splitlines()}
        return {name: {**result, **extra, "failed": "msg" in result} for name, result in found.items()}

    def playbook(self, name: str, *flags: object, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run one playbook of the collection."""
        extra = json.dumps(variables)
        return self.ansible.run("ansible-playbook", "-i", self.inventory, f"pyhostdev.pci.{name}", "-e", extra, *flags)

    def trees(self) -> dict[str, Any]:
        """Return everything below each host's root."""
        return {name: host.snapshot() for name, host in self.hosts.items()}


@pytest.fixture(scope="session")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Ansible:
    """Ansible with the collection that make collection built."""
    if "ANSIBLE_BIN" not in os.environ:
        pytest.skip("make ansible runs these tests")
    found = Ansible(tmp_path_factory.mktemp("ansible"), Path(os.environ["ANSIBLE_BIN"]))
    (tarball,) = Path(os.environ["COLLECTION"]).glob("pyhostdev-pci-*.tar.gz")
    done = found.run("ansible-galaxy", "collection", "install", tarball, "-p", found.top / "collections")
    assert 0 == done.returncode, done.stdout + done.stderr
    return found


@pytest.fixture
def fleet(ansible: Ansible, tmp_path: Path) -> Any:
    """A function that builds a fleet: fleet(web="bcm5719", db="sriov"); None is a host without a directory."""

    def make(**trees: str | None) -> Fleet:
        hosts, lines = {}, []
        for name, tree in trees.items():
            place = tmp_path / name
            if tree is not None:
                hosts[name] = FakeHost.named(tree, place) if "\n" not in tree else FakeHost.from_tree(tree, place)
            lines.append(f"{name} pyhostdev_root={place}")
        common = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "pyhostdev_executable": PYHOSTDEV,
            "pyhostdev_simulate": "true",
        }
        inventory = tmp_path / "inventory"
        lines += ["[all:vars]", *(f"{key}={value}" for key, value in common.items())]
        inventory.write_text("\n".join(lines) + "\n")
        return Fleet(ansible, inventory, hosts)

    return make
