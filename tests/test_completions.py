# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shells complete verbs, options, policies, addresses and consents: the scripts, and bash's own answers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from pyhostdev.hypervisor.hostdev_checks import CONSENT_REASONS
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools.contract import VERBS
from pyhostdev.tools.parsers import verb_parser

pytest.importorskip("shtab")

CARD = [f"0001:09:00.{function}" for function in range(4)]
ASK = r"""
source "$1"
shift
COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_pyhostdev
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def completions() -> ModuleType:
    """The program that writes the scripts."""
    spec = spec_from_file_location("completions", Path(__file__).parent.parent / "docs/completions.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ask(completions: ModuleType, tmp_path: Path, bcm5719: FakeHost) -> Callable[..., list[str]]:
    """A function that asks bash to complete the last of some words, as bash itself splits them."""
    completions.write(tmp_path / "share")
    file = tmp_path / "share" / completions.PLACES["bash"]

    def ask_bash(verb: str, *words: str) -> list[str]:
        root = ("--root", bcm5719.root.path) if words else ()
        command = ["bash", "-c", ASK, "bash", str(file), "pyhostdev", verb, *root, *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()

    return ask_bash


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_have_every_verb_and_option(completions: ModuleType, shell: str) -> None:
    """Nothing of the command line is missing, and no placeholder is left."""
    script = completions.script(shell)
    dash = "" if shell == "fish" else "--"
    for verb in VERBS:
        assert verb in script
        for action in verb_parser(verb)._actions:
            assert all(f"{dash}{o[2:]}" in script for o in action.option_strings if o.startswith("--")), verb
    assert all(reason in script for reason in CONSENT_REASONS)
    assert None is re.search(r"@[A-Z]+@", script)


def test_bash_completes_verbs_and_policies(ask: Callable[..., list[str]]) -> None:
    """The closed lists."""
    assert {"plan", "prepare"} == set(ask("p"))
    assert ["auto", "device", "group", "off"] == ask("plan", "--policy", "")
    assert ["--policy"] == ask("plan", "--pol")


def test_bash_completes_addresses(ask: Callable[..., list[str]]) -> None:
    """The host's functions, of the root that was given; bash splits an address at its colons and gets its last part."""
    assert set(CARD) < set(ask("show", ""))
    assert [address.rpartition(":")[2] for address in CARD] == ask("show", "0001", ":", "09", ":", "00")
    assert [] == ask("show", "0001", ":", "77", ":")


def test_bash_completes_consents(ask: Callable[..., list[str]]) -> None:
    """Reason and address; the words behind them are completed as before."""
    assert {f"{reason}:{address}" for reason in CONSENT_REASONS for address in CARD} < set(ask("plan", "--accept", ""))
    assert CARD == [a for a in ask("plan", "--accept", "mounted", ":", "0001") if a.startswith("0001:09")]
    words = ("--accept", "mounted", ":", "0001", ":", "09", ":", "00.0")
    assert ["group"] == ask("plan", *words, "--policy", "g")


def test_bash_completes_drivers_and_capabilities(ask: Callable[..., list[str]]) -> None:
    """The host's drivers; stored releases of QEMU, and files."""
    assert {"tg3", "vfio-pci"} < set(ask("nodedev-detach", "--driver", ""))
    assert {"probe", "7.2", "share"} <= set(ask("plan", "--capabilities", ""))
