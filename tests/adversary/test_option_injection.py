# SPDX-License-Identifier: LGPL-2.1-or-later
"""No text of a definition adds options to QEMU's command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from injection import argv_of, definitions, injections, keys_of

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.errors import ConfigError
from pyhostdev.qemu.qemu_command import build_command_line

STEP = 120  # one of so many changes is tried here, all of them in tests/fuzz/fuzz_options.py
PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_no_value_adds_a_key(part: int) -> None:
    """For any attribute or text value, QEMU reads the same keys as before."""
    assert [] == [found for path in definitions()[part::PARTS] for found in injections(path, STEP, len(path.stem))]


def test_an_added_key_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: a value that ends its option is reported."""
    path = next(path for path in definitions() if argv_of(path.read_bytes()) is not None)
    monkeypatch.setattr("injection.argv_of", lambda text: ["qemu", "-name", f"guest=a{',evil=on' * (b'evil' in text)}"])
    assert list(injections(path, STEP))


def test_the_keys_are_read_as_qemu_reads_them() -> None:
    """Two commas are one, a key ends at the first equals sign, and JSON has its own grammar."""
    assert [("-name", ("debug-threads", "guest"))] == keys_of(["qemu", "-name", "guest=a,,b=c,debug-threads=on"])
    assert [("-cpu", ("", "evil"))] == keys_of(["qemu", "-cpu", "qemu64,evil=on"])
    assert [("-device", ("driver", "id"))] == keys_of(["qemu", "-device", '{"driver":"a,evil=on","id":"b"}'])


DOMAIN = (
    "<domain type='kvm'><name>vm</name><memory>1024</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>"
    "{}<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{}</devices></domain>"
)
CPU = "<cpu mode='custom'><model>{}</model><feature name='{}' policy='require'/></cpu>"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (DOMAIN.format(CPU.format("qemu64,evil=on", "pae"), ""), "CPU model"),
        (DOMAIN.format(CPU.format("qemu64", "pae=on,evil"), ""), "CPU feature"),
        (DOMAIN.format(CPU.format("qemu64", "evil=on"), ""), "CPU feature"),
        (
            DOMAIN.format(
                "<cpu><numa><cell id='0' cpus='0' memory='1024'/><cell id='1' cpus='1:e=1' memory='1'/></numa></cpu>",
                "",
            ),
            "numbers and ranges",
        ),
        (DOMAIN.format("", "<graphics type='vnc' port='5900' listen='evil=on'/>"), "address"),
    ],
)
def test_what_cannot_be_written_is_refused(text: str, what: str) -> None:
    """Where the option's grammar has no way to write a character, the definition is refused by name."""
    with pytest.raises(ConfigError, match=what):
        build_command_line(DomainDef.parse(text))
    assert None is argv_of(text.encode())


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("loader-secure", ["-global", "driver=cfi.pflash01,property=secure,value=on"]),
        ("cpu-cache-passthrough", ["-cpu", "host,migratable=on,host-cache-info=on,l3-cache=off"]),
        ("rtc-track-guest", ["-rtc", "base=localtime,clock=vm,driftfix=slew"]),
    ],
)
def test_nothing_is_dropped_silently(case: str, wanted: list[str]) -> None:
    """Attributes and elements that were silently left out of the command line."""
    path = Path(__file__).parent.parent.parent / "testdata/cases" / f"{case}.xml"
    argv = build_command_line(DomainDef.parse(path.read_bytes()))
    assert wanted in [argv[place : place + 2] for place in range(len(argv))]
