# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changed definitions are read or refused; ``make fuzz`` reads many more."""

from __future__ import annotations

import os

import pytest
from hostile_xml import corpus, failures, too_costly

from pyhostdev.errors import InternalError

SEEDS = range(1_000_000, 1_000_200)


def test_no_definition_does_harm() -> None:
    """Two hundred definitions, each changed in up to four places."""
    assert [] == list(failures(SEEDS, corpus()))


HOSTDEV = "<hostdev type='pci'><source><address bus='1' slot='2' function='0'/></source></hostdev>"


@pytest.mark.parametrize(
    ("element", "around"),
    [
        ("<cell memory='1'/>", "cpu/numa"),
        ("<audio id='1' type='none'/>", "devices"),
        ("<controller type='usb'/>", "devices"),
        (HOSTDEV, "devices"),
        ("<a/>", "devices"),
    ],
    ids=lambda text: text.partition(" ")[0].strip("<>/"),
)
def test_no_element_is_too_many(element: str, around: str) -> None:
    """An element a fifth as often as a document can hold it costs a fifth; ``make fuzz`` fills whole documents."""
    start = "".join(f"<{tag}>" for tag in around.split("/"))
    end = "".join(f"</{tag}>" for tag in reversed(around.split("/")))
    inner = element * min(180_000 // len(element), 18_000 // (element.count("=") + element.count("<")))
    text = f"<domain type='qemu'><name>vm</name><memory>9</memory><os><type>hvm</type></os>{start}{inner}{end}</domain>"
    assert [] == too_costly(text.encode(), share=0.2)


def refuse_wrongly(_data: bytes) -> None:
    raise InternalError("a bug")


def loop(_data: bytes) -> None:
    while True:
        pass


def eat(_data: bytes) -> None:
    bytearray(1 << 30)


def die(_data: bytes) -> None:
    os.abort()


@pytest.mark.parametrize(
    ("read", "said"),
    [(refuse_wrongly, "InternalError: a bug"), (loop, "TimeoutError"), (eat, "MemoryError"), (die, "ended with -6")],
)
def test_harm_is_seen(read: object, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every document that fails, takes long, needs much memory or crashes is reported."""
    monkeypatch.setattr("hostile_xml.TIME_S", 0.2)
    found = list(failures(range(2), corpus(), read))  # type: ignore[arg-type]
    assert ["seed 0", "seed 1"] == [text.partition(":")[0] for text in found]
    assert all(said in text for text in found)
