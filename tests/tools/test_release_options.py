# SPDX-License-Identifier: LGPL-2.1-or-later
"""--libvirt and --qemu: whose answers the verbs give."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools.main import main

DOMAIN = """<domain type='qemu'><name>d</name><memory>1048576</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/nonexistent/qemu</emulator></devices></domain>"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The arguments that name a domain and a host."""
    (tmp_path / "d.xml").write_text(DOMAIN)
    FakeHost.named("bcm5719", tmp_path / "host")
    return [str(tmp_path / "d.xml"), "--root", str(tmp_path / "host")]


@pytest.mark.parametrize(
    ("options", "machine", "size"),
    [
        ([], "pc-q35-7.2", "-m 1024"),
        (["--libvirt", "11.3"], "pc-q35-10.0", "-m size=1048576k"),
        (["--libvirt", "12.8.0"], "pc-q35-11.1", "-m size=1048576k"),
        (["--libvirt", "12.8", "--qemu", "7.2"], "pc-q35-7.2", "-m size=1048576k"),
        (["--qemu", "10.0"], "pc-q35-10.0", "-m 1024"),
        (["--capabilities", "10.0"], "pc-q35-10.0", "-m 1024"),
    ],
    ids=" ".join,
)
def test_the_two_axes_are_apart(
    options: list[str], machine: str, size: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The libvirt says how it is printed, the QEMU what there is; alone, a libvirt comes with its QEMU."""
    assert 0 == main(["argv", *words, *options])
    printed, said = capsys.readouterr()
    assert machine in printed
    assert size in printed
    assert f", as libvirt {'.'.join(options[1].split('.')[:2]) if '--libvirt' in options else '9.0'}" in said


@pytest.mark.parametrize("verb", ["xml", "argv", "validate", "plan"])
def test_every_verb_has_the_options(verb: str, words: list[str]) -> None:
    """All verbs that look at a whole domain take a release of both."""
    assert 0 == main([verb, *words, "--libvirt", "12.8", "--qemu", "11.1"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--libvirt", "9.1"], "releases: 9.0, 11.3, 12.8"),
        (["--qemu", "probe"], "releases: 7.2, 10.0, 11.1"),
        (["--qemu", "7.2", "--capabilities", "7.2"], "not allowed with"),
    ],
    ids=" ".join,
)
def test_what_is_not_recorded_is_an_error_of_usage(
    options: list[str], said: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A release that nothing is known about is named with those that are."""
    with pytest.raises(SystemExit) as ended:
        main(["xml", *words, *options])
    assert 2 == ended.value.code
    assert said in capsys.readouterr().err
