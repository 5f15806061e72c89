# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page of what is supported is made from the tables of conf and qemu."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).parent.parent
PAGE = TOP / "docs/supported.md"


@pytest.fixture(scope="module")
def supported() -> ModuleType:
    """Return the script that writes the page."""
    spec = importlib.util.spec_from_file_location("supported", TOP / "docs/supported.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_tables_say(supported: ModuleType, request: pytest.FixtureRequest) -> None:
    """A word that becomes supported changes the page; --regenerate writes it anew."""
    if request.config.getoption("--regenerate", default=False):
        PAGE.write_text(supported.page())
    assert supported.page() == PAGE.read_text()


def test_each_state_has_its_words(supported: ModuleType) -> None:
    """The tables decide: built, ignored, refused, verbatim and unknown words are distinguished."""
    states = supported.states()
    assert {
        "domain/devices/hostdev/source/address/@slot": "done",
        "domain/devices/disk/driver/iothreads/iothread/queue/@id": "done",
        "domain/devices/interface/address/@bus": "done",
        "domain/qemu:commandline/arg/@value": "done",
        "domain/blkiotune/weight": "noted",
        "domain/devices/interface/bandwidth": "noted",
        "domain/seclabel/label": "done",
        "domain/devices/disk/source/encryption": "refused",
        "domain/launchSecurity/policy": "refused",
        "domain/throttlegroups": "done",
        "domain/features/virtualization": "kept",
    } == {
        word: states[word]
        for word in (
            "domain/devices/hostdev/source/address/@slot",
            "domain/devices/disk/driver/iothreads/iothread/queue/@id",
            "domain/devices/interface/address/@bus",
            "domain/qemu:commandline/arg/@value",
            "domain/blkiotune/weight",
            "domain/devices/interface/bandwidth",
            "domain/seclabel/label",
            "domain/devices/disk/source/encryption",
            "domain/launchSecurity/policy",
            "domain/throttlegroups",
            "domain/features/virtualization",
        )
    }


def test_most_words_are_done(supported: ModuleType) -> None:
    """Two of three words of the whole grammar, other hypervisors' included, are done."""
    states = list(supported.states().values())
    assert states.count("done") > len(states) * 2 / 3
