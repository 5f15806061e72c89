# SPDX-License-Identifier: LGPL-2.1-or-later
"""Row S7: the RelaxNG schema of host devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.conf.domain_schema import validate_schema
from pyhostdev.errors import ConfigError

TESTDATA = Path(__file__).parents[2] / "testdata" / "conf"
UUID = "53764d0e-85a0-42b4-af5c-2046b460b1dc"
SOURCE = "<source><address bus='1' slot='0' function='0'/></source>"


def domain(device: str) -> str:
    return f"<domain type='kvm'>\n<name>d</name>\n<devices>\n{device}\n</devices></domain>"


@pytest.mark.parametrize("path", sorted(TESTDATA.glob("*.xml")), ids=lambda path: path.stem)
def test_s7_whole_domains_are_valid(path: Path) -> None:
    """Any element outside host devices is valid, and so are the host devices of real definitions."""
    assert [] == validate_schema(path.read_bytes())


@pytest.mark.parametrize(
    "device",
    [
        f"<hostdev type='pci'>{SOURCE}</hostdev>",
        f"<hostdev type='pci' assigned='yes'>{SOURCE}<address type='pci' slot='0x04'/></hostdev>",
        f"<hostdev type='pci' assigned='no' managed='yes'><driver name='vfio'/>{SOURCE}</hostdev>",
        f"<hostdev mode='subsystem' type='pci'>{SOURCE}<address type='unassigned'/></hostdev>",
        f"<hostdev type='pci'>{SOURCE}<teaming type='transient' persistent='ua-n'/><rom bar='off'/></hostdev>",
        f"<hostdev type='pci'>{SOURCE}<boot order='2'/><alias name='ua-x'/><acpi index='3'/></hostdev>",
        f"<hostdev type='pci'><driver name='vfio' model='mlx5_vfio_pci'/>{SOURCE}</hostdev>",
        "<hostdev type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>",
        f"<hostdev type='mdev' model='vfio-pci'><source><address uuid='{UUID}'/></source></hostdev>",
        "<thing><deeper unknown='yes'/>text</thing>",
    ],
)
def test_s7_what_we_model_is_valid(device: str) -> None:
    """The schema and the parser agree on the attributes and elements of a host device."""
    assert [] == validate_schema(domain(device))
    DomainDef.parse(domain(device))


@pytest.mark.parametrize(
    "device",
    [
        f"<hostdev type='pci' assigned='maybe'>{SOURCE}</hostdev>",
        f"<hostdev type='pci' assigned='no'>{SOURCE}<address type='pci' slot='4'/></hostdev>",
        f"<hostdev type='pci' assigned='no'>{SOURCE}<address type='unassigned'/></hostdev>",
        f"<hostdev type='pci' assigned='no'>{SOURCE}<alias name='ua-x'/></hostdev>",
        f"<hostdev type='pci' assigned='no'>{SOURCE}<rom bar='on'/></hostdev>",
        f"<hostdev type='pci' assigned='no'>{SOURCE}<boot order='1'/></hostdev>",
        f"<hostdev type='pci' assigned='no'>{SOURCE}<acpi index='1'/></hostdev>",
        "<hostdev type='pci'/>",
        "<hostdev type='usb' assigned='no'><source><address bus='1' device='1'/></source></hostdev>",
        "<disk assigned='no'/>",
    ],
)
def test_s7_what_rows_s1_and_s2_forbid_is_invalid(device: str) -> None:
    """The schema reports it with a line, and the parser refuses it, too."""
    errors = validate_schema(domain(device))
    assert [4] == sorted({line for line, _ in errors})
    with pytest.raises(ConfigError):
        DomainDef.parse(domain(device))


def test_s7_an_invalid_document_is_an_error_with_its_line() -> None:
    """Malformed or hostile input is reported like any other error."""
    assert [2] == [line for line, _ in validate_schema("<domain>\n<a></domain>")]
    assert "DOCTYPE" in validate_schema("<!DOCTYPE d><domain/>")[0][1]
