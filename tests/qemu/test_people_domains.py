# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains like published ones get the newest libvirt's command line, or all reasons for a refusal at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyhostdev import DomainDef
from pyhostdev.conf.libvirt_release import LibvirtRelease
from pyhostdev.errors import ConfigError
from pyhostdev.hypervisor.host import Host
from pyhostdev.qemu.qemu_command import build_command_line
from pyhostdev.qemu.qemu_domain.define import define
from pyhostdev.qemu.qemu_driver import capabilities_of

DOMAINS = sorted((Path(__file__).parent.parent.parent / "testdata/people").glob("*.xml"))
NEWEST = LibvirtRelease.parse("12.8")
FIRMWARE = {
    "interface-types": ["uefi"],
    "mapping": {
        "device": "flash",
        "executable": {"filename": "/usr/share/OVMF/OVMF_CODE_4M.fd", "format": "raw"},
        "nvram-template": {"filename": "/usr/share/OVMF/OVMF_VARS_4M.fd", "format": "raw"},
    },
    "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
    "tags": [],
    "features": ["acpi-s3"],
}
SECURE = {
    **FIRMWARE,
    "mapping": {
        "device": "flash",
        "executable": {"filename": "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "format": "raw"},
        "nvram-template": {"filename": "/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "format": "raw"},
    },
    "features": ["acpi-s3", "enrolled-keys", "requires-smm", "secure-boot"],
}
SECRET = "libvirt's secret driver keeps its key, and pyhostdev has no such store"  # noqa: S105 - a sentence
# what cannot be done: each reason with its line
REFUSED = {
    "confidential-sev-snp": {(35, "Launch security of type sev-snp is not supported")},
    "luks-disk": {(26, f"'encryption' of <source> is not supported: {SECRET}")},
    "nova-ceph-rbd": {(47, f"'auth' of <disk> is not supported: {SECRET}")},
    "ovirt-vdsm-tls": {
        (
            117,
            "<listen type='network'> of the network 'vdsm-ovirtmgmt', which has no address here, is not supported: "
            "use <listen type='address'>",
        ),
        (120, "A secure channel of <graphics type='spice'>, which needs TLS, is not supported"),
    },
}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Return a host with UEFI firmware with and without keys, as Debian describes it."""
    directory = tmp_path / "usr/share/qemu/firmware"
    directory.mkdir(parents=True)
    (directory / "40-edk2-x86_64-secure.json").write_text(json.dumps(SECURE))
    (directory / "60-edk2-x86_64.json").write_text(json.dumps(FIRMWARE))
    return Host(tmp_path)


@pytest.mark.parametrize("path", DOMAINS, ids=lambda path: path.stem)
def test_a_domain_as_people_have_it(path: Path, host: Host) -> None:
    """The emulator's command line has each assigned host device, and the printed definition is stable."""
    dom = DomainDef.parse(path.read_bytes())
    capabilities = capabilities_of(dom, host, None, NEWEST)
    if path.stem in REFUSED:
        with pytest.raises(ConfigError) as caught:
            build_command_line(dom, capabilities, host=host, release=NEWEST, usb_may_be_absent=True)
        assert REFUSED[path.stem] == {(err.line, str(err)) for err in (caught.value, *caught.value.others)}
        return
    argv = build_command_line(dom, capabilities, host=host, release=NEWEST, usb_may_be_absent=True)
    devices = [word for word in argv if word.startswith('{"driver":"vfio-pci')]
    assert sum(hostdev.type in ("pci", "mdev") for hostdev in dom.all_hostdevs()) == len(devices)
    full = define(dom, capabilities, host, release=NEWEST)
    again = define(DomainDef.parse(full.format()), capabilities, host, release=NEWEST)
    assert full.format() == again.format()


def test_nine_of_ten_get_a_command_line() -> None:
    """The corpus is large enough to say something, and most of it can be run."""
    assert len(DOMAINS) >= 40
    assert len(REFUSED) <= len(DOMAINS) / 10
    assert {path.stem for path in DOMAINS} >= set(REFUSED)
