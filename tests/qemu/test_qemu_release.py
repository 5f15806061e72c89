# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each libvirt release makes of a domain; what its emulator cannot do is not printed."""

from __future__ import annotations

import pytest

from pyhostdev import DomainDef
from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.qemu import build_command_line
from pyhostdev.qemu.qemu_capabilities import load

R9_0, R11_3, R12_8 = RELEASES
DOMAIN = """
<domain type='qemu'><name>d</name><memory unit='MiB'>1024</memory>{head}
  <os><type arch='{arch}' machine='{machine}'>hvm</type></os><devices>{devices}</devices></domain>
"""


def domain(devices: str = "", head: str = "", arch: str = "x86_64", machine: str = "q35") -> DomainDef:
    return DomainDef.parse(DOMAIN.format(devices=devices, head=head, arch=arch, machine=machine))


def argv(dom: DomainDef, release: LibvirtRelease, qemu: str | None = None) -> list[str]:
    """The command line as a release with its QEMU, or with another one, has it."""
    return build_command_line(dom, load(str(dom.os.arch), qemu or release.qemu), release=release)


def value(args: list[str], option: str) -> str:
    return args[args.index(option) + 1]


@pytest.mark.parametrize(
    ("release", "machine"),
    [(R9_0, "pc-q35-7.2"), (R11_3, "pc-q35-10.0"), (R12_8, "pc-q35-11.1")],
    ids=str,
)
def test_each_release_comes_with_its_qemu(release: LibvirtRelease, machine: str) -> None:
    """An alias means the newest machine of the QEMU beside the release, where no capabilities are given."""
    assert value(build_command_line(domain(), release=release), "-machine").startswith(f"{machine},")


@pytest.mark.parametrize(("release", "size"), [(R9_0, "1024"), (R11_3, "size=1048576k"), (R12_8, "size=1048576k")])
def test_memory_size(release: LibvirtRelease, size: str) -> None:
    """9.0 says MiB, later releases KiB with a unit."""
    assert size == value(argv(domain(), release), "-m")


@pytest.mark.parametrize(
    ("release", "qemu", "option", "where"),
    [
        (R9_0, "7.2", True, ""),
        (R11_3, "10.0", False, ",acpi=off"),
        (R12_8, "11.1", False, ",acpi=off"),
        (R11_3, "7.2", False, ",acpi=off"),
        (R9_0, "10.0", False, ",acpi=off"),
        (R9_0, "11.1", False, ",acpi=off"),
    ],
)
def test_acpi_is_switched_where_the_emulator_can(release: LibvirtRelease, qemu: str, option: bool, where: str) -> None:
    """QEMU since 9.0 has no -no-acpi, whatever the libvirt; later libvirts name the state in -machine always."""
    args = argv(domain(), release, qemu)
    assert (option, where) == ("-no-acpi" in args, value(args, "-machine").partition("pc.ram")[2])
    assert "-no-acpi" not in argv(domain(head="<features><acpi/></features>"), release, qemu)


def test_pseries_has_no_acpi_to_switch() -> None:
    """A machine without the option is not told about ACPI."""
    for release in RELEASES:
        args = argv(domain(arch="ppc64", machine="pseries"), release)
        assert "acpi" not in value(args, "-machine")
        assert "-no-acpi" not in args


@pytest.mark.parametrize(
    ("release", "machine"), [(R9_0, ""), (R11_3, ",hpet=off,acpi=on"), (R12_8, ",hpet=off,acpi=on")]
)
def test_hpet_is_switched_before_acpi(release: LibvirtRelease, machine: str) -> None:
    """9.0 has an option of its own for the absent timer."""
    head = "<features><acpi/></features><clock offset='utc'><timer name='hpet' present='no'/></clock>"
    args = argv(domain(head=head), release)
    assert (not machine, machine) == ("-no-hpet" in args, value(args, "-machine").partition("pc.ram")[2])


@pytest.mark.parametrize(
    ("release", "qemu", "is_object"),
    [(R9_0, "7.2", False), (R11_3, "11.1", False), (R12_8, "11.1", True), (R12_8, "10.0", False)],
)
def test_monitor_is_an_object_where_both_know_it(release: LibvirtRelease, qemu: str, is_object: bool) -> None:
    """The object is of libvirt 12.8 and of QEMU 11.1; without one of them the option stays."""
    args = argv(domain(), release, qemu)
    assert (is_object, not is_object) == ('"qom-type":"monitor-qmp"' in "".join(args), "-mon" in args)
