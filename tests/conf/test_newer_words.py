# SPDX-License-Identifier: LGPL-2.1-or-later
"""How an older release treats later names and values, and the numbers of errors in each release."""

from __future__ import annotations

import pytest

from pyhostdev import ConfigError, DomainDef, XMLError
from pyhostdev.conf.libvirt_release import RELEASES, LibvirtRelease
from pyhostdev.conf.newer_words import drop_newer_words, newer_word_notes

R9_0, R11_3, R12_8 = RELEASES
HOSTDEV = (
    "<hostdev mode='subsystem' type='pci'><driver name='vfio' model='nvme_vfio_pci'/>"
    "<source><address domain='1' bus='2' slot='3' function='0'/></source></hostdev>"
)


def domain(devices: str) -> DomainDef:
    head = "<name>d</name><memory>1024</memory><os><type>hvm</type></os>"
    return DomainDef.parse(f"<domain type='kvm'>{head}<devices>{devices}</devices></domain>")


@pytest.mark.parametrize(("release", "model"), [(R9_0, None), (R11_3, "nvme_vfio_pci"), (R12_8, "nvme_vfio_pci")])
def test_a_later_attribute_is_dropped(release: LibvirtRelease, model: str | None) -> None:
    """An older libvirt does not see an attribute that it does not know; its element keeps the rest."""
    dom = domain(HOSTDEV)
    drop_newer_words(dom, release)
    assert ("vfio", model) == (dom.hostdevs[0].driver_name, dom.hostdevs[0].host_driver.model)


def test_a_later_value_is_refused_with_its_line() -> None:
    """A known attribute with a value that came later is an error of an older libvirt."""
    dom = domain("\n<watchdog model='itco'/>\n<watchdog model='i6300esb'/>")
    with pytest.raises(XMLError, match="Invalid value 'itco' of 'model' in <watchdog>") as caught:
        drop_newer_words(dom, R9_0)
    assert (2, ()) == (caught.value.line, caught.value.others)
    drop_newer_words(dom, R11_3)
    assert ["itco", "i6300esb"] == [watchdog.model for watchdog in dom.watchdogs]


@pytest.mark.parametrize(
    ("release", "xml", "what", "since"),
    [
        (R9_0, "<watchdog model='itco'/>", "'itco' of 'model' in <watchdog>", "11.3"),
        (R11_3, "<controller type='nvme' serial='1'/>", "'nvme' of 'type' in <controller>", "12.8"),
        (R9_0, "<iommu model='amd'/>", "'amd' of 'model' in <iommu>", "12.8"),
    ],
    ids=["itco", "nvme", "amd"],
)
def test_a_later_value_is_refused_with_the_release_that_knows_it(
    release: LibvirtRelease, xml: str, what: str, since: str
) -> None:
    """The message does not offer what it refuses: it says which release does not know the word, and which does."""
    with pytest.raises(XMLError) as caught:
        drop_newer_words(domain(xml), release)
    why = f"libvirt {release} does not know it, libvirt {since} and later do"
    assert f"Invalid value {what}: {why}" == caught.value.message


def test_an_unknown_value_is_refused_with_the_words_of_each_release() -> None:
    """Parsing knows no release, so words that only newer ones know are set apart."""
    with pytest.raises(XMLError, match="expected one of i6300esb, ib700, diag288, or of newer releases itco$"):
        domain("<watchdog model='none'/>")


@pytest.mark.parametrize(
    ("xml", "numbers"),
    [
        ("<hostdev mode='Subsystem' type='pci'/>", [67, 27, 27]),
        ("<hostdev mode='subsystem' type='isa'/>", [67, 27, 27]),
        (HOSTDEV.replace("</source>", "</source><address type='none'/>"), [67, 27, 27]),
        ("<hostdev type='mdev' model='vfio-pci'><source><address/></source></hostdev>", [67, 67, 27]),
        ("<hostdev type='mdev' model='vfio-pci'><source><address uuid='1'/></source></hostdev>", [1, 1, 27]),
        ("<hostdev type='pci' assigned='maybe'/>", [27, 27, 27]),
    ],
    ids=["mode", "type", "address-type", "no-uuid", "uuid", "assigned"],
)
def test_an_error_knows_its_number_in_each_release(xml: str, numbers: list[int]) -> None:
    """Parsing knows no release; the error does, and libvirt_code is the oldest's."""
    with pytest.raises(ConfigError) as caught:
        domain(xml)
    assert numbers == [caught.value.code_in(release) for release in RELEASES]
    assert numbers[0] == caught.value.libvirt_code


def test_note_about_a_word_that_the_release_does_not_know() -> None:
    """A dropped name gets a note with its place; a name that the definition does not contain gets none."""
    text = (
        "<domain type='qemu'><name>vm</name><iommufd enabled='yes'/><devices><hostdev mode='subsystem' type='pci'>"
        "<driver iommufd='yes'/><source><address domain='0' bus='3' slot='0' function='0'/></source></hostdev>"
        "</devices></domain>"
    )
    dom = DomainDef.parse(text)
    old, new = RELEASES[0], RELEASES[-1]
    said = [(finding.reason, finding.severity, finding.message) for finding in newer_word_notes(dom, old)]
    rest = "is ignored, as in libvirt 9.0: libvirt 12.8 knows it"
    assert [("ignored", "note", f"<iommufd> {rest}"), ("ignored", "note", f"'iommufd' of <driver> {rest}")] == said
    assert [] == newer_word_notes(dom, new)
