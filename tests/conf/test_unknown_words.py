# SPDX-License-Identifier: LGPL-2.1-or-later
"""A typing error on a host device never gives it away."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyhostdev
from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.conf.domain_validate import validate_all
from pyhostdev.conf.unknown_words import kept_words, repeated_words, with_unknown_words
from pyhostdev.errors import ConfigError, RefusedError, XMLError
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools.demo import GUEST
from pyhostdev.tools.main import main

MODE = "Invalid value 'zz' of 'mode' in <hyperv>"


def domain(device: str) -> DomainDef:
    return DomainDef.parse(
        "<domain type='qemu'><name>vm</name><memory>524288</memory><os><type>hvm</type></os>"
        f"<devices>\n{device}\n</devices></domain>"
    )


def hostdev(attributes: str = "", inner: str = "", address: str = "") -> str:
    return (
        f"<hostdev mode='subsystem' type='pci' managed='yes' {attributes}>"
        f"<source><address domain='0' bus='1' slot='0' function='0' {address}/></source>{inner}</hostdev>"
    )


INTERFACE = "<interface type='hostdev'><source><address type='pci' bus='1'/></source>{}</interface>"
UNKNOWN = [
    (hostdev("asigned='no'"), "attribute 'asigned' of <hostdev>; did you mean 'assigned'?"),
    (hostdev("Assigned='no'"), "attribute 'Assigned' of <hostdev>; did you mean 'assigned'?"),
    (hostdev(inner="<adress type='unassigned'/>"), "element <adress> in <hostdev>; did you mean 'address'?"),
    (hostdev(inner="<driver nam='vfio'/>"), "attribute 'nam' of <hostdev/driver>; did you mean 'name'?"),
    (hostdev(address="buss='2'"), "attribute 'buss' of <hostdev/source/address>; did you mean 'bus'?"),
    (hostdev(inner="<wings/>"), "element <wings> in <hostdev>"),
    (
        "<interface type='hostdev' manged='yes'><source><address type='pci' bus='1'/></source></interface>",
        "attribute 'manged' of <interface>; did you mean 'managed'?",
    ),
]
CURRENT = "<mac address='52:54:00:00:00:01' currentAddress='52:54:00:00:00:01'/>"


@pytest.mark.parametrize(("device", "what"), UNKNOWN)
def test_an_unknown_word_is_an_error(device: str, what: str) -> None:
    """validate and the plan name the attribute or element, its line and the nearest known name."""
    dom = domain(device)
    with pytest.raises(XMLError, match="Unknown") as error:
        dom.validate()
    assert (f"Unknown {what}", "unknown-word", 2) == (str(error.value), error.value.reason, error.value.line)
    assert ["unknown-word"] == [found.reason for found in validate_all(dom)]


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (hostdev(address="type='pci'"), "ignored"),
        (INTERFACE.format(CURRENT), "unsupported"),
    ],
)
def test_a_known_word_that_is_not_built_is_a_note(device: str, reason: str) -> None:
    """An attribute of a later libvirt, or one without effect, is reported and does not refuse."""
    dom = domain(device)
    dom.validate()
    assert [(reason, "note", 2)] == [(f.reason, f.severity, f.line) for f in dom.unknown_words()]


@pytest.mark.parametrize(
    "device",
    [
        hostdev("xmlns:x='urn:x' x:note='mine'"),
        hostdev(inner="<wings xmlns='x'/>"),
        hostdev(inner="<driver model='vfio-pci'/><acpi index='1'/>").replace("</source>", "<origstates/></source>"),
        INTERFACE.format("<driver model='mlx5_vfio_pci'/><vlan><tag id='4'/></vlan><filterref filter='f'/>"),
        "<disk type='file' colour='red'/>",
    ],
)
def test_other_words_are_kept(device: str) -> None:
    """Other namespaces are ignored, and unknown names outside host devices do not concern them."""
    dom = domain(device)
    assert [] == dom.unknown_words()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (hostdev("xmlns:q='x' q:assigned='no'"), "attribute 'q:assigned' of <hostdev>; did you mean 'assigned'?"),
        (hostdev("xmlns:q='x' q:asigned='no'"), "attribute 'q:asigned' of <hostdev>; did you mean 'assigned'?"),
        (INTERFACE.replace("><source", " xmlns:q='x' q:managed='no'><source").format(""), "did you mean 'managed'?"),
        (hostdev(address="xmlns:q='x' q:slot='1'"), "<hostdev/source/address>; did you mean 'slot'?"),
        (hostdev(inner="<driver xmlns:q='x' q:model='vfio-pci'/>"), "<hostdev/driver>; did you mean 'model'?"),
        (
            hostdev(inner="<q:driver xmlns:q='x' model='a'/>"),
            "element <{x}driver> in <hostdev>; did you mean 'driver'?",
        ),
    ],
)
def test_a_prefix_does_not_hide_a_word(device: str, message: str) -> None:
    """libvirt reads the attribute, we do not: the plan refuses it, with prepare, start and validate."""
    (finding,) = domain(device).unknown_words()
    assert ("unknown-word", "error") == (finding.reason, finding.severity)
    assert message in finding.message


def test_an_interface_names_its_driver() -> None:
    """<driver model= iommufd=> of an interface is that of the host device."""
    (found,) = domain(INTERFACE.format("<driver model='mlx5_vfio_pci' iommufd='yes'/>")).all_hostdevs()
    assert ("mlx5_vfio_pci", True) == (found.host_driver.model, found.host_driver.iommufd)


def test_words_elsewhere_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """validate names each unknown name with its line, outside host devices as a note, and accepts the domain."""
    dom = domain(
        "<disk type='file' colour='red'><source file='/x' hue='1'/><target dev='vda'/></disk>\n"
        "<memballoon model='none'><wings/></memballoon>" + INTERFACE.format(CURRENT)
    )
    kept = [
        (2, "Unknown attribute 'colour' of <domain/devices/disk> is kept unchanged"),
        (2, "Unknown attribute 'hue' of <domain/devices/disk/source> is kept unchanged"),
        (3, "Unknown element <wings> in <domain/devices/memballoon> is kept unchanged"),
    ]
    assert kept == [(finding.line, finding.message) for finding in kept_words(dom)]
    file = tmp_path / "guest.xml"
    file.write_text(dom.format())
    assert 0 == main(["validate", str(file), "--capabilities", "7.2"])
    said = capsys.readouterr().err
    assert all(text in said for _, text in kept)
    assert "The attribute 'currentAddress' of <interface/mac> (libvirt 11.3) is not supported yet" in said


def test_a_word_without_effect_is_dropped_and_told() -> None:
    """What only a source of another type has is dropped unread, and a note names it with its line."""
    dom = domain("<disk><source file='/x' dev='/y'>\n<host port='x'/></source><target dev='vda'/></disk>")
    told = [
        (2, "The attribute 'dev' of <source> has no effect here and is ignored"),
        (3, "The element <host> in <source> has no effect here and is ignored"),
    ]
    assert told == [(note.line, note.message) for note in repeated_words(dom)]
    assert "<source file='/x'/>" in dom.format()


def test_the_plan_refuses_a_typing_error(bcm5719: FakeHost, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file with asigned='no' is refused by plan, prepare and validate, and nothing is touched."""
    before = bcm5719.snapshot()
    text = Path(GUEST).read_text().replace("assigned='no'", "asigned='no'", 1)
    host = pyhostdev.Host(bcm5719.root, writer=bcm5719.kernel)
    plan = host.plan(DomainDef.parse(text))
    assert "unknown-word" in [finding.reason for finding in plan.obstacles]
    with pytest.raises(RefusedError):
        pyhostdev.HostdevManager(host).prepare(plan)
    file = tmp_path / "guest.xml"
    file.write_text(text)
    for words in (["plan"], ["validate"], ["xml"], ["prepare", "--simulate"]):
        assert 1 == main([*words, str(file), "--root", bcm5719.root.path])
    assert "did you mean 'assigned'?" in capsys.readouterr().err
    assert before == bcm5719.snapshot()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("<name>web<!-- second -->2</name>", "web2"),
        ("<name>web<?note x?>2</name>", "web2"),
        ("<name>we<![CDATA[b&]]>2</name>", "web&2"),
        ("<name>web<b>2</b></name>", "web2"),
    ],
)
def test_text_is_read_whole(text: str, name: str) -> None:
    """A comment does not end a text: the owner's name is the same for libvirt and for us."""
    dom = DomainDef.parse(
        f"<domain type='qemu'>{text}<memory unit='MiB'>10<!-- -->24</memory><os><type>hvm</type></os></domain>"
    )
    assert (name, 1 << 20) == (dom.name, dom.memory_kib)
    assert name == DomainDef.parse(dom.format()).name


def test_wrong_values_do_not_hide_unknown_names() -> None:
    """All errors of a domain come at once, also those of devices whose values cannot be read."""
    xml = """<domain type='kvm'>
      <name>d</name><memry/><vcpu>q</vcpu>
      <features><hyperv mode='zz'><vapicc state='on'/></hyperv></features>
      <devices>
        <disk type='file'><driver name='qemu' cach='none'/><target dev='vda' bus='virtoi'/></disk>
        <hostdev mode='subsystem' type='pci' asigned='no' managed='maybe'>
          <source><address bus='0x1' slot='q'/></source><rom bar='x' unlike='1'/></hostdev>
      </devices></domain>"""
    with pytest.raises(ConfigError) as caught:
        DomainDef.parse(xml)
    said = sorted((error.line or 0, str(error).partition(";")[0]) for error in with_unknown_words(caught.value))
    assert [
        (2, "Invalid value 'q' of <vcpu>: expected a number from 1 on"),
        (2, "Unknown element <memry> in <domain>"),
        (3, f"{MODE}: expected one of custom, passthrough, or of newer releases host-model"),
        (3, "Unknown element <vapicc> in <domain/features/hyperv>"),
        (5, "Unknown attribute 'cach' of <domain/devices/disk/driver>"),
    ] == [part for part in said if part[0] < 6 and "virtoi" not in part[1]]
    assert ["Unknown attribute 'asigned' of <hostdev>"] == [text for line, text in said if line == 6]
    assert "Unknown attribute 'unlike' of <hostdev/rom>" in [text for line, text in said if line == 7]


def test_what_is_said_twice_is_not_dropped_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """libvirt takes the first of two such elements; every verb names the further one."""
    top, file = tmp_path / "host", tmp_path / "guest.xml"
    FakeHost.named("bcm5719", top)
    source = "<source><address domain='1' bus='7' slot='0' function='0'/></source>"
    xml = (
        "<domain type='qemu'><name>vm</name><memory>65536</memory><os><type machine='q35'>hvm</type></os>\n"
        f"<vcpu>1</vcpu><vcpu>2</vcpu><devices>\n<hostdev type='pci' managed='yes'>{source}{source}</hostdev>\n"
        "<input type='tablet' bus='usb'><alias name='ua-a'/><alias name='ua-b'/></input></devices></domain>"
    )
    file.write_text(xml)
    for verb in ("plan", "argv", "xml", "validate"):
        main([verb, str(file), "--root", str(top)])
        said = [line for line in "".join(capsys.readouterr()).splitlines() if "has more than one" in line]
        assert [(2, "<vcpu>"), (3, "<source>"), (4, "<alias>")] == sorted(
            (number, word)
            for number in range(9)
            for word in ("<vcpu>", "<source>", "<alias>")
            for line in said
            if f"line {number}:" in line and f"more than one {word}" in line
        ), verb


def test_a_value_that_no_release_knows_is_an_error_of_the_plan(tmp_path: Path) -> None:
    """Releases without iommufd= ignore it; a plan refuses the value and does not guess another."""
    host = pyhostdev.Host(FakeHost.named("bcm5719", tmp_path).root)
    plan = host.plan(domain(hostdev(inner="<driver name='vfio' iommufd='maybe'/>")), "off")
    (finding,) = [finding for finding in plan.obstacles if finding.reason == "unknown-word"]
    assert finding.message.startswith("Invalid value 'maybe' of 'iommufd'")


def test_argv_and_xml_name_what_an_older_release_drops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An attribute of a newer libvirt is not printed, and the note says so."""
    file = tmp_path / "guest.xml"
    image = (
        "<source file='/a'><dataStore type='file'><format type='raw'/><source file='/the-store'/></dataStore></source>"
    )
    disk = f"<disk type='file'><driver type='qcow2'/>{image}<target dev='vda'/></disk>"
    file.write_text(domain(disk).format())
    for verb in ("argv", "xml", "validate"):
        assert 0 == main([verb, str(file), "--root", str(tmp_path), "--libvirt", "9.0"])
        out, err = capsys.readouterr()
        assert ("/the-store" not in out, True) == (True, "<dataStore> is ignored, as in libvirt 9.0" in err), verb
