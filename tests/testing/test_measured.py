# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real kernel's answers, line by line: the simulated one gives the same."""

from __future__ import annotations

import os
from pathlib import Path

from bench import Bench, Benches

TESTDATA = Path(__file__).parents[2] / "testdata"


def value_of(text: str) -> bytes:
    """Read a value: backslash escapes, and N*x for N times x."""
    count, star, unit = text.partition("*")
    return unit.encode() * int(count) if star else text.encode().decode("unicode_escape").encode("latin-1")


def answer(host: Bench, line: str) -> str:
    """Perform a line on the simulated host, and return the line with the actual result."""
    words = line.split()
    if words[0] == "write":
        value, _, rest = line.removeprefix("write ").partition(" -> ")
        path = rest.split(" : ")[0]
        return f"write {value} -> {path} : {host.write(path, value_of(value), kernel=host.kernel.foreign())}"
    if words[0] == "vfio":
        return " ".join(["vfio", *sorted(os.listdir(host.root.dev_vfio))])
    override = host.read(words[0], "driver_override").decode().strip().replace("(null)", "-")
    return f"{words[0]} {host.driver(words[0]) or '-'} {override} {host.read(words[0], 'enable').decode().strip()}"


def test_simulated_kernel_answers_as_linux_did(bench: Benches) -> None:
    """Forty-six writes and what followed from them: results, drivers, overrides, enable, group nodes."""
    lines = (TESTDATA / "kernel" / "sysfs-facts.txt").read_text().splitlines()
    said = [line for line in lines if line and not line.startswith("#")]
    host = bench((TESTDATA / "hosts" / "lab-onegroup.tree").read_text())
    assert said == [answer(host, line) for line in said]
    assert 46 == sum(line.startswith("write") for line in said)
