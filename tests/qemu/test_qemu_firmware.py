# SPDX-License-Identifier: LGPL-2.1-or-later
"""Firmware chosen by the descriptors of the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyhostdev import ConfigUnsupportedError, DomainDef, Host
from pyhostdev.conf.libvirt_release import RELEASES
from pyhostdev.errors import VIR_ERR_OPERATION_FAILED, VIR_ERR_XML_DETAIL, ConfigError
from pyhostdev.qemu import build_command_line, define
from pyhostdev.qemu.qemu_capabilities import load
from pyhostdev.qemu.qemu_firmware import read_firmwares

R9_0, R11_3, R12_8 = RELEASES
DOMAIN = """
<domain type='qemu'><name>d</name><memory unit='MiB'>1024</memory>
  <os{firmware}><type arch='x86_64' machine='{machine}'>hvm</type>{os}</os>
  <features><acpi/>{features}</features><devices/></domain>
"""
SECURE = ["requires-smm", "secure-boot", "enrolled-keys"]


def descriptor(code: str, variables: str, features: list[str], machines: list[str], **more: Any) -> str:
    flash = {
        "device": "flash",
        "executable": {"filename": code, "format": "raw"},
        "nvram-template": {"filename": variables, "format": "raw"},
        **more,
    }
    targets = [{"architecture": "x86_64", "machines": machines}]
    return json.dumps(
        {"interface-types": ["uefi"], "mapping": flash, "targets": targets, "features": features, "tags": []}
    )


@pytest.fixture
def vendor(tmp_path: Path) -> Path:
    """The vendor's directory of a host with firmware for secure boot before another."""
    directory = tmp_path / "usr/share/qemu/firmware"
    directory.mkdir(parents=True)
    (directory / "40-secure.json").write_text(descriptor("/fw/secure", "/fw/keys", SECURE, ["pc-q35-*"]))
    (directory / "60-plain.json").write_text(descriptor("/fw/plain", "/fw/vars", [], ["pc-q35-*", "pc-i440fx-*"]))
    return directory


def domain(os: str = "", features: str = "", machine: str = "q35", firmware: str = " firmware='efi'") -> DomainDef:
    return DomainDef.parse(DOMAIN.format(os=os, features=features, machine=machine, firmware=firmware))


def defined(dom: DomainDef, tmp_path: Path) -> DomainDef:
    return define(dom, load("x86_64", R12_8.qemu), Host(tmp_path), release=R12_8)


def feature(name: str, enabled: str) -> str:
    return f"<firmware><feature name='{name}' enabled='{enabled}'/></firmware>"


@pytest.mark.parametrize(
    ("dom", "expected"),
    [
        (domain(), ("/fw/secure", "/fw/keys", True)),
        (domain(feature("secure-boot", "no")), ("/fw/plain", "/fw/vars", None)),
        (domain(feature("enrolled-keys", "yes")), ("/fw/secure", "/fw/keys", True)),
        (domain(machine="pc"), ("/fw/plain", "/fw/vars", None)),
        (domain(features="<smm state='off'/>"), ("/fw/plain", "/fw/vars", None)),
        (domain("<loader secure='no'/>"), ("/fw/plain", "/fw/vars", False)),
        (
            domain("<loader readonly='yes' type='pflash'>/fw/plain</loader>", firmware=""),
            ("/fw/plain", "/fw/vars", None),
        ),
    ],
)
def test_the_first_that_suits_is_chosen(
    dom: DomainDef, expected: tuple[str, str, bool | None], vendor: Path, tmp_path: Path
) -> None:
    """Machine, features, SMM and paths decide; the file names give the order."""
    os = defined(dom, tmp_path).os
    assert expected == (os.loader, os.nvram_template, os.loader_secure)
    assert ("efi", "pflash", True, "/var/lib/libvirt/qemu/nvram/d_VARS.fd") == (
        os.firmware,
        os.loader_type,
        os.loader_readonly,
        os.nvram,
    )


def test_secure_boot_brings_smm_and_protects_the_variables(vendor: Path, tmp_path: Path) -> None:
    """Firmware that requires SMM gets it, and only code in SMM writes the variables; defining again changes nothing."""
    once = defined(domain(), tmp_path)
    assert True is once.features.smm_state
    assert once.format() == defined(once, tmp_path).format()
    argv = build_command_line(once, host=Host(tmp_path), release=R12_8)
    assert "driver=cfi.pflash01,property=secure,value=on" in argv


def test_what_does_not_match_is_kept(vendor: Path, tmp_path: Path) -> None:
    """A loader without a matching descriptor is kept unchanged."""
    for words in (
        "<loader readonly='yes' type='pflash'>/fw/other</loader>",
        "<loader readonly='yes' type='pflash'>/fw/plain</loader><nvram template='/fw/mine'>/n</nvram>",
        "<loader readonly='yes' type='pflash' stateless='yes'>/fw/plain</loader>",
    ):
        os = defined(domain(words, firmware=""), tmp_path).os
        assert (None, [], "raw") == (os.firmware, os.firmware_features, os.loader_format)
        assert (os.nvram is None) == bool(os.loader_stateless)


def test_no_firmware_that_suits(vendor: Path, tmp_path: Path) -> None:
    """Without suitable firmware, the error has libvirt's number for an unsupported configuration."""
    with pytest.raises(ConfigUnsupportedError, match="No 'efi' firmware") as refusal:
        defined(domain(feature("secure-boot", "yes"), machine="pc"), tmp_path)
    assert VIR_ERR_OPERATION_FAILED == refusal.value.libvirt_code


def test_the_administrator_has_the_last_word(vendor: Path, tmp_path: Path) -> None:
    """A file in /etc replaces or, when it is empty, hides the vendor's of the same name."""
    own = tmp_path / "etc/qemu/firmware"
    own.mkdir(parents=True)
    (own / "40-secure.json").write_text("")
    (own / "50-mine.json").write_text(descriptor("/fw/mine", "/fw/vars", [], ["pc-q35-*"]))
    found = [firmware.executable.path for firmware in read_firmwares(Host(tmp_path).root)]
    assert ["/fw/mine", "/fw/plain"] == found


@pytest.mark.parametrize("text", ["{", "[]", '{"mapping": 1}', '{"mapping": {"device": "flash"}}'])
def test_a_damaged_descriptor_is_named(text: str, vendor: Path, tmp_path: Path) -> None:
    """An incomplete descriptor is refused."""
    (vendor / "10-bad.json").write_text(text)
    with pytest.raises(ConfigUnsupportedError, match=r"10-bad\.json"):
        defined(domain(), tmp_path)


def test_9_0_chooses_at_start(vendor: Path, tmp_path: Path) -> None:
    """Its definition leaves the choice open, its command line has the firmware; a loader besides is refused."""
    host, capabilities = Host(tmp_path), load("x86_64", R9_0.qemu)
    os = define(domain(), capabilities, host, release=R9_0).os
    assert ("efi", None, None) == (os.firmware, os.loader, os.nvram)
    argv = build_command_line(domain(), host=host, release=R9_0)
    assert any("/fw/secure" in word for word in argv)
    assert any("smm=on" in word for word in argv)
    with pytest.raises(ConfigError) as refusal:
        define(domain("<loader readonly='yes'>/fw/plain</loader>"), capabilities, host, release=R9_0)
    assert VIR_ERR_XML_DETAIL == refusal.value.libvirt_code


@pytest.mark.parametrize(("loader", "formats"), [("/fw/plain", ["raw", "raw"]), ("/other", [None, "raw"])])
def test_format_of_a_template(loader: str, formats: list[str | None], vendor: Path, tmp_path: Path) -> None:
    """11.3 prints the format of firmware with a descriptor; 12.8 always prints it."""
    os = f"<loader readonly='yes' type='pflash'>{loader}</loader><nvram template='/fw/vars'>/v</nvram>"
    dom, host = domain(os, firmware=""), Host(tmp_path)
    found = [define(dom, load("x86_64"), host, release=release).os.nvram_template_format for release in (R11_3, R12_8)]
    assert formats == found
