# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changed definitions are read or refused; ``make fuzz`` reads many more."""

from __future__ import annotations

import os

import pytest
from hostile_xml import corpus, failures, read_hostile, too_costly

from pyhostdev import ConfigError, DomainDef
from pyhostdev.errors import InternalError
from pyhostdev.qemu.qemu_capabilities import load

SEEDS = range(1_000_000, 1_000_100)
DOMAIN = (
    "<domain type='kvm'><name>n</name><memory>1048576</memory><os><type arch='x86_64' machine='{}'>hvm</type></os>"
    "<devices>{}</devices></domain>"
)


def test_no_definition_does_harm() -> None:
    """A hundred definitions, each changed in up to four places."""
    assert [] == list(failures(SEEDS, corpus()))


def test_a_long_word_is_shortened_in_a_sentence() -> None:
    """The type of a serial port may be any text: a refusal that names it stays short."""
    serial = f"<serial type='pty'><target type='{'a' * 5000}'><model name='isa-serial'/></target></serial>"
    read_hostile(DOMAIN.format("q35", serial).encode())


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
    """A tenth of a document's possible elements costs a tenth of its time; ``make fuzz`` fills whole documents."""
    start = "".join(f"<{tag}>" for tag in around.split("/"))
    end = "".join(f"</{tag}>" for tag in reversed(around.split("/")))
    inner = element * min(90_000 // len(element), 9_000 // (element.count("=") + element.count("<")))
    text = f"<domain type='qemu'><name>vm</name><memory>9</memory><os><type>hvm</type></os>{start}{inner}{end}</domain>"
    assert [] == too_costly(text.encode(), share=0.1)


def test_an_element_that_counts_once_may_be_repeated_often() -> None:
    """Noting the repetitions takes a time that grows with their number, not with its square."""
    assert [] == too_costly(
        DOMAIN.replace("<devices>", f"<features>{'<apic/>' * 80_000}</features><devices>").encode(), 0.2
    )


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


@pytest.mark.parametrize(
    "devices",
    [
        "<disk type='file'><driver name='q\u202eemu'/><source file='/a'/><target dev='vda'/></disk>",
        "<disk type='file'><source/><target dev='vd\u202ea'/></disk>",
        "<hostdev type='pci' managed='yes'><driver name='vfio' odd='1'/>\n<driver name='vfio' odd='2'/>"
        "<source><address bus='1'/></source></hostdev>",
        "<disk type='file'><driver type='qcow2'/><source file='/a'/><backingStore type='nvme'><format type='raw'/>"
        "<source type='pci' namespace='1'/><backingStore/></backingStore><target dev='vda'/></disk>",
        "<disk type='file'><driver type='qcow2'/><source file='/a'><dataStore type='nvme'><format type='raw'/>"
        "<source type='pci' namespace='1'/></dataStore></source><target dev='vda'/></disk>",
        f"<interface type='user'><model type='{'a' * 2000}'/></interface>",
        "<interface type='bridge'><source bridge='b'/><vlan><tag id='" + "9" * 5000 + "'/></vlan></interface>",
    ],
    ids=["driver", "target", "twice", "backing", "store", "long", "vlan"],
)
def test_what_the_long_run_has_found(devices: str) -> None:
    """Refused in a printable sentence, or printed as it is read: a repeated element has each attribute once."""
    read_hostile(DOMAIN.format("pc", devices).encode())


def test_a_hostile_machine_type() -> None:
    """A name with control characters is escaped in the sentence about it."""
    assert load("x86_64").unknown_machine("\x85pc").isprintable()


@pytest.mark.parametrize("nodes", ["evil=on", " ", "3-1"])
def test_nodes_of_a_memory_module(nodes: str) -> None:
    """A text that is not a set of nodes is refused when it is read, with libvirt's number."""
    source = f"<source><nodemask>{nodes}</nodemask></source>"
    module = f"<memory model='dimm'>{source}<target><size>1024</size></target></memory>"
    with pytest.raises(ConfigError, match="nodemask") as error:
        DomainDef.parse(DOMAIN.format("pc", module))
    assert error.value.libvirt_code == 8
