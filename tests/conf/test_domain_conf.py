# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whole domains survive parsing and printing."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sizes import examples

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.conf.libvirt_release import LibvirtRelease
from pyhostdev.conf.newer_words import drop_newer_words, newer_word_notes
from pyhostdev.conf.xml.definition import Unknown
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import (
    Attribute,
    Content,
    DefaultElement,
    Elements,
    Flag,
    Ignored,
    Inline,
    Opaque,
    OptionalElement,
)
from pyhostdev.errors import ConfigError, XMLError

TESTDATA = Path(__file__).parents[2] / "testdata" / "conf"
DEFINED = sorted(TESTDATA.glob("*.out.xml"))
WRITTEN = sorted(set(TESTDATA.glob("*.xml")) - set(DEFINED))
MAC, UUID = "52:54:00:aa:bb:01", "53764d0e-85a0-42b4-af5c-2046b460b1dc"
# texts of which every codec reads some
TEXTS = ("0", "1", "2", "7", "0x1f", "255", "ua-x", "a&b<c>'\"", "\u00e4 \u20ac", "vda", "-1", "0,2-3", MAC, UUID)


def canonical(text: str) -> list[object]:
    """Return a canonical form of a document, without blanks, comments and the order of attributes."""

    def rows(element: ET.Element, depth: int) -> list[object]:
        own = (depth, element.tag, sorted(element.attrib.items()), (element.text or "").strip())
        return [own, *(row for part in element for row in rows(part, depth + 1))]

    return rows(ET.fromstring(text), 0)  # our own files


@pytest.mark.parametrize("path", DEFINED, ids=lambda path: path.stem)
def test_what_libvirt_printed_is_printed_again(path: Path) -> None:
    """A definition of libvirt is printed in the same order with the same values."""
    text = path.read_text()
    assert canonical(text) == canonical(DomainDef.parse(text).format())


@pytest.mark.parametrize("path", DEFINED + WRITTEN, ids=lambda path: path.stem)
def test_printing_what_was_parsed_is_a_fixed_point(path: Path) -> None:
    """format(parse(x)) parses to the same definition and prints the same text."""
    dom = DomainDef.parse(path.read_bytes())
    once = dom.format()
    again = DomainDef.parse(once)
    assert (dom, once) == (again, again.format())
    assert [] == dom.unmodelled()


def values(field: object) -> st.SearchStrategy[object]:
    """Return values that a field can hold."""
    if isinstance(field, (Attribute, Content)):
        texts = field.codec.words or TEXTS
        return st.sampled_from([value for text in texts for value in readable(field.codec.parse, text)])
    if isinstance(field, Flag):
        return st.booleans()
    if isinstance(field, Opaque):
        tag = field.path[-1]
        return st.sampled_from([f"<{tag}/>", f'<{tag} a="1">text<b/> more</{tag}>'])
    if isinstance(field, Elements):
        return st.lists(definitions(field.definition), max_size=2)
    assert isinstance(field, (OptionalElement, DefaultElement, Inline))
    return definitions(field.definition)


def readable(parse: Callable[[str], object], text: str) -> list[object]:
    try:
        return [parse(text)]
    except ValueError:
        return []


@st.composite
def definitions(draw: st.DrawFn, definition: type[Any]) -> ElementDef:
    """Return a definition with some fields set, and some unknown attributes and elements."""
    made: ElementDef = definition()
    fields = {
        name: field
        for name, field in definition.declared().items()
        if hasattr(field, "path") and not isinstance(field, Ignored)
    }
    required = [name for name, field in fields.items() if getattr(field, "required", False)]
    free = sorted(set(fields) - set(required) - {"foreign"})
    chosen = draw(st.lists(st.sampled_from(free), max_size=4, unique=True)) if free else []
    for name in required + chosen:
        setattr(made, name, draw(values(fields[name])))
    if draw(st.integers(0, 9)) == 0:
        made.unknown = {(): [Unknown("x-new", "a'b", 1, False), Unknown("x-part", "<x-part>t</x-part>", 1, True)]}
    return made


@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(definitions(DomainDef))
def test_made_domains_survive_parsing_and_printing(made: DomainDef) -> None:
    """A printed definition that the parser accepts is read back unchanged."""
    try:
        parsed = DomainDef.parse(made.format())
    except ConfigError:
        assume(False)
    text = parsed.format()
    again = DomainDef.parse(text)
    assert (parsed, text, parsed.unmodelled()) == (again, again.format(), parsed.copy().unmodelled())


@settings(max_examples=examples(100), deadline=None)
@given(st.text(st.sampled_from("<>/='\" \n&;a!-?[]domain"), max_size=60) | st.binary(max_size=60))
def test_noise_is_refused_as_xml(noise: str | bytes) -> None:
    """Bytes and texts that are not a domain give an XMLError, never another exception."""
    with pytest.raises(XMLError):
        DomainDef.parse(noise)


def test_what_is_not_modelled_is_kept_and_named() -> None:
    """Unknown elements and attributes survive and are listed with their lines; metadata is harmless."""
    text = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>d</name>
  <metadata><a:b xmlns:a='urn:a'><!-- kept -->x</a:b></metadata>
  <frob level='9'/>
  <devices>
    <warp speed='9'/>
    <hostdev type='pci'><source mass='1'><address bus='1'/></source></hostdev>
  </devices>
  <qemu:commandline><qemu:arg value='-foo'/></qemu:commandline>
</domain>"""
    dom = DomainDef.parse(text)
    named = dict(dom.unmodelled())
    assert {
        "domain/frob": 4,
        "domain/devices/warp": 6,
        "domain/devices/hostdev/source/@mass": 7,
        "domain/{http://libvirt.org/schemas/domain/qemu/1.0}commandline": 9,
    } == named
    again = DomainDef.parse(dom.format())
    assert (dom, dom.format()) == (again, again.format())
    assert all(kept in dom.format() for kept in ("<!-- kept -->", "speed=", "-foo", "mass='1'"))


def test_scalars_have_their_units() -> None:
    """Memory is in KiB for any unit in the XML, rounded up."""
    text = (
        "<domain type='kvm'><name>d</name><maxMemory slots='2' unit='GiB'>4</maxMemory>"
        "<memory unit='MB'>{}</memory><memtune><hard_limit>9</hard_limit></memtune></domain>"
    )
    dom = DomainDef.parse(text.format(1))
    assert (977, 977, 4 << 20, 9) == (
        dom.memory_kib,
        dom.current_memory_kib,
        dom.max_memory_kib,
        dom.memtune_hard_limit_kib,
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<domain><name>d</name></domain>", 1),
        ("<domain type='kvm'/>", 1),
        ("<domain type='warp'><name>d</name></domain>", 1),
        ("<domain type='kvm'><name>d</name>\n<vcpu>0</vcpu></domain>", 2),
        ("<domain type='kvm'><name>d</name>\n<memory unit='parsec'>1</memory></domain>", 2),
        ("<domain type='kvm'><name>d</name>\n<on_crash>burn</on_crash></domain>", 2),
        ("<network/>", 1),
    ],
)
def test_an_invalid_domain_is_refused_with_its_line(text: str, line: int) -> None:
    """Errors about missing and impossible values name their place."""
    with pytest.raises(XMLError) as error:
        DomainDef.parse(text)
    assert line == error.value.line


def test_guest_pci_addresses_leave_out_host_devices() -> None:
    """The addresses exclude host devices, to check the slot of a host device for function 0."""
    dom = DomainDef.parse((TESTDATA / "ifhostdev-vlan.out.xml").read_bytes())
    hostdevs = {hostdev.info.pci.pci for hostdev in dom.pci_hostdevs()}
    taken = dom.guest_pci_addresses()
    assert (1, set()) == (len(hostdevs), taken & hostdevs)
    assert len(list(dom.device_infos())) > len(taken) > 2


def test_hostdevs_can_be_added_to_a_copy() -> None:
    """The original keeps its devices, the copy has independent new ones."""
    dom = DomainDef.parse((TESTDATA / "unassigned-x-seed-example.out.xml").read_bytes())
    before = len(dom.hostdevs)
    more = dom.with_hostdevs_added([dom.hostdevs[0]])
    more.hostdevs[-1].managed = not more.hostdevs[-1].managed
    assert (before, before + 1) == (len(dom.hostdevs), len(more.hostdevs))
    assert dom.hostdevs[0] == more.hostdevs[0] != more.hostdevs[-1]


RECONNECT = "<reconnect delay='soon'/>"
STORE = "<dataStore type='file'><format type='{}'/><source file='{}'>{}</source></dataStore>"
SLICE = "<slices><slice type='storage' offset='0' size='1'/></slices>"


def _newer(path: str, since: str, device: str) -> tuple[str, str, str]:
    return path, since, f"<domain type='kvm'><name>vm</name><devices>{device}</devices></domain>"


INVALID_NEWER = [
    _newer("pstore", "pstore", "<pstore backend='acpi-erst'><size>much</size><alias name='pstore0'/></pstore>"),
    _newer("crypto", "crypto", "<crypto model='virtio' type='qemu'/><crypto model='none' type='qemu'/>"),
    *(
        _newer("dataStore", "disk-data-store", f"<disk><source file='/a'>{store}</source><target dev='vda'/></disk>")
        for store in (STORE.format("bad", "/b", ""), STORE.format("raw", "/b", SLICE), "<dataStore/>")
    ),
    _newer(
        "@delay",
        "disk-words",
        f"<disk type='network'><source protocol='nbd'>{RECONNECT}</source><target dev='vda'/></disk>",
    ),
]


@pytest.mark.parametrize(("path", "since", "text"), INVALID_NEWER)
def test_newer_word_with_an_invalid_value_is_kept_as_written(path: str, since: str, text: str) -> None:
    """Printed and read again it is the same; an older release drops it with a note, a newer one refuses it."""
    domain = DomainDef.parse(text)
    found = [invalid for _, part in domain.walk() for invalid in part.invalid_words]
    assert [(since, path)] == [(invalid.since, invalid.words[0].label) for invalid in found]
    again = DomainDef.parse(domain.format())
    assert (domain, domain.format()) == (again, again.format())
    older, newest = (LibvirtRelease.parse(version) for version in ("9.0", "12.8"))
    assert any(path.strip("@") in note.message for note in newer_word_notes(domain, older))
    with pytest.raises(ConfigError):
        drop_newer_words(domain.copy(), newest)
    drop_newer_words(again, older)
    assert path.strip("@") not in again.format()


def test_images_of_a_disk() -> None:
    """The images from the top down with their data stores; an NVMe controller below any of them is a host function."""
    source = "<format type='raw'/><source type='pci' namespace='1'><address bus='{}' slot='0' function='0'/></source>"
    store = f"<dataStore type='nvme'>{source.format(1)}</dataStore>"
    below = f"<backingStore type='nvme'>{source.format(2)}</backingStore>"
    disk = (
        f"<disk type='file'><driver type='qcow2'/><source file='/a'>{store}</source>{below}<target dev='vda'/></disk>"
    )
    dom = DomainDef.parse(f"<domain type='kvm'><name>n</name><devices>{disk}</devices></domain>")
    assert ["file", "nvme", "nvme"] == [kind for kind, _ in dom.disks[0].images()]
    assert ["0000:01:00.0", "0000:02:00.0"] == [str(hostdev.pci_address) for hostdev in dom.host_functions()]
