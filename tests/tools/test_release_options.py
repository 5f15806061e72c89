# SPDX-License-Identifier: LGPL-2.1-or-later
"""--libvirt and --qemu: the release and the emulator that the verbs follow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools.main import main

DOMAIN = """<domain type='qemu'><name>d</name><memory>1048576</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/nonexistent/qemu</emulator></devices></domain>"""
VARIANT = """\
driver mlx5_core 15b3:101e
driver vfio-pci
driver mlx5_vfio_pci 15b3:101e
0000:03:00.0 15b3:101e 020000 driver=mlx5_core group=1 express=endpoint flr
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The arguments that name a domain and a host."""
    (tmp_path / "d.xml").write_text(DOMAIN)
    FakeHost.named("bcm5719", tmp_path / "host")
    return [str(tmp_path / "d.xml"), "--root", str(tmp_path / "host")]


@pytest.mark.parametrize(
    ("options", "machine", "size"),
    [
        ([], "pc-q35-11.1", "-m size=1048576k"),
        (["--libvirt", "9.0"], "pc-q35-7.2", "-m 1024"),
        (["--libvirt", "11.3"], "pc-q35-10.0", "-m size=1048576k"),
        (["--libvirt", "12.8.0"], "pc-q35-11.1", "-m size=1048576k"),
        (["--libvirt", "12.8", "--qemu", "7.2"], "pc-q35-7.2", "-m size=1048576k"),
        (["--qemu", "10.0"], "pc-q35-10.0", "-m size=1048576k"),
        (["--capabilities", "10.0"], "pc-q35-10.0", "-m size=1048576k"),
    ],
    ids=" ".join,
)
def test_the_two_axes_are_apart(
    options: list[str], machine: str, size: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The libvirt decides the form, the QEMU the capabilities; the default QEMU is the libvirt's."""
    assert 0 == main(["argv", *words, *options])
    printed, said = capsys.readouterr()
    assert machine in printed
    assert size in printed
    assert f", as libvirt {'.'.join(options[1].split('.')[:2]) if '--libvirt' in options else '12.8'}" in said


@pytest.mark.parametrize("verb", ["xml", "argv", "validate", "plan"])
def test_every_verb_has_the_options(verb: str, words: list[str]) -> None:
    """All verbs that process a whole domain have both options."""
    assert 0 == main([verb, *words, "--libvirt", "12.8", "--qemu", "11.1"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--libvirt", "9.1"], "expected one of 9.0, 11.3, 12.8"),
        (["--qemu", "probe"], "releases: 7.2, 10.0, 11.1"),
        (["--qemu", "7.2", "--capabilities", "7.2"], "not allowed with"),
    ],
    ids=" ".join,
)
def test_what_is_not_recorded_is_an_error_of_usage(
    options: list[str], said: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The error for an unknown release names the known ones."""
    with pytest.raises(SystemExit) as ended:
        main(["xml", *words, *options])
    assert 2 == ended.value.code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("library", "release", "said"),
    [
        (None, "12.8", "libvirt 12.8, the newest known release: this host has no libvirt"),
        ("libvirt.so.0.9000.0", "9.0", "libvirt 9.0, which the host has"),
        ("libvirt.so.0.10000.0", "9.0", "libvirt 9.0, for the host's libvirt 10.0.0"),
        ("libvirt.so.0.11003.1", "11.3", "libvirt 11.3, for the host's libvirt 11.3.1"),
        ("libvirt.so.0.13001.0", "12.8", "libvirt 12.8, for the host's libvirt 13.1.0"),
    ],
)
def test_the_host_s_libvirt_is_the_default(
    library: str | None, release: str, said: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --libvirt, a verb follows the host's libvirt; a note names it and the reason."""
    if library is not None:
        (Path(words[2]) / "usr/lib64").mkdir(parents=True)
        (Path(words[2]) / "usr/lib64/libvirt.so.0").symlink_to(library)
    assert 0 == main(["plan", *words, "--json"])
    printed, told = capsys.readouterr()
    assert release == json.loads(printed)["libvirt"]
    assert f"as {said}\n" in told


def test_all_verbs_choose_drivers_as_the_host_s_libvirt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """list, show, plan and nodedev-detach agree on a variant driver, whichever libvirt the host has."""
    fake = FakeHost.from_tree(VARIANT, tmp_path)
    (tmp_path / "usr/lib64").mkdir(parents=True)
    link = tmp_path / "usr/lib64/libvirt.so.0"
    for library, driver in (("libvirt.so.0.9000.0", "vfio-pci"), ("libvirt.so.0.12008.0", "mlx5_vfio_pci")):
        link.unlink(missing_ok=True)
        link.symlink_to(library)
        root = ["--root", fake.root.path]
        assert 0 == main(["list", "--json", *root])
        assert [driver] == [row["vfio_driver"] for row in json.loads(capsys.readouterr().out)]
        assert 0 == main(["show", "0000:03:00.0", "--json", *root])
        assert driver == json.loads(capsys.readouterr().out)["vfio_driver"]
        assert 0 == main(["plan", "--device", "0000:03:00.0", "--owner", "vm", "--json", *root])
        assert f"to {driver}" in capsys.readouterr().out
        assert 0 == main(["nodedev-detach", "0000:03:00.0", "--simulate", *root])
        assert f"answered as libvirt {'9.0' if driver == 'vfio-pci' else '12.8'}" in capsys.readouterr().err
        assert 0 == main(["show", "0000:03:00.0", "--json", *root])
        assert driver == json.loads(capsys.readouterr().out)["driver"]
        assert 0 == main(["nodedev-reattach", "0000:03:00.0", "--simulate", *root])
        capsys.readouterr()
