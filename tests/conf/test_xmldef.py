# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tables: parsing, printing, keeping what they do not know."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import ClassVar

import pytest
from lxml import etree

from pyhostdev import DomainDef
from pyhostdev.conf.xml.xmlcodec import enum, hexadecimal, number, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import (
    attribute,
    content,
    element_or_default,
    elements,
    flag,
    ignored,
    inline,
    opaque,
    optional_element,
)
from pyhostdev.errors import XMLError


class Wheel(ElementDef):
    tag = "wheel"

    size = attribute("size", number, default=16)


class Paint(ElementDef):
    colour = attribute("paint/@colour")
    checked: ClassVar[list[str]] = []  # tags of the elements of which it was a part

    def parsed(self, element: etree._Element) -> None:
        self.checked.append(str(element.tag))


class Engine(ElementDef):
    tag = "engine"

    fuel = attribute("fuel", enum("petrol", "none"))


class Plate(ElementDef):
    tag = "plate"

    number = content("")
    wheels = flag("wheels")


class Car(ElementDef):
    tag = "car"

    id = attribute("id", hexadecimal(4), required=True)
    towed = attribute("towed", yes_no, lenient=True)
    name = content("name")
    doors = content("body/doors", number)
    body_kind = attribute("body/@kind", enum("van", "coupe"), code=67)
    paint = inline(Paint)
    engine = element_or_default("engine", Engine)
    plate = element_or_default("plate", Plate)
    spare = optional_element("spare", Wheel)
    wheels = elements("axles/wheel", Wheel)
    radio = flag("radio")
    notes = opaque("notes", for_host=True)
    foreign = ignored("@sails", "body/@anchor", "rudder")


class Lamp(ElementDef):
    tag = "lamp"

    id = attribute("id", number, default=0)
    volts = attribute("bulb/@volts", number, default=12, quiet=True)
    colour = attribute("bulb/@colour")

    def hides(self, name: str) -> bool:
        return name == "colour" and self.id == 0


@pytest.fixture(scope="module", autouse=True)
def leave_no_definitions() -> Iterator[None]:
    """Take the definitions above back: other tests look at all there are."""
    yield
    for kind in (Car, Engine, Lamp, Paint, Plate, Wheel):
        del globals()[kind.__name__]
    del kind
    gc.collect()


FULL = """<car id='0x00ff' towed='no'>
  <name>a &amp; b</name>
  <body kind='van'>
    <doors>5</doors>
  </body>
  <paint colour='it&apos;s &lt;red&gt;'/>
  <engine fuel='petrol'/>
  <spare size='15'/>
  <axles>
    <wheel size='16'/>
    <wheel size='17'/>
  </axles>
  <radio/>
  <notes><n:x xmlns:n="urn:n">y<!-- z --></n:x></notes>
</car>
"""


def test_what_is_printed_is_what_was_parsed() -> None:
    """Everything a table knows survives, in the table's order."""
    car = Car.parse(FULL)
    assert FULL == car.format()
    assert (255, False, 5, "van", "it's <red>", "petrol", 15, [16, 17], True) == (
        car.id,
        car.towed,
        car.doors,
        car.body_kind,
        car.paint.colour,
        car.engine.fuel,
        car.spare.size,
        [wheel.size for wheel in car.wheels],
        car.radio,
    )


def test_the_order_of_the_source_does_not_matter() -> None:
    """Known elements are printed in the order of the table."""
    mixed = "<car id='255'><radio/><axles><wheel/></axles><name>x</name><!-- gone --></car>"
    lines = ["<car id='0x00ff'>", "  <name>x</name>", "  <axles>", "    <wheel size='16'/>", "  </axles>", "  <radio/>"]
    assert "\n".join([*lines, "</car>\n"]) == Car.parse(mixed).format()


def test_unknown_attributes_and_elements_are_kept_where_they_were() -> None:
    """What a table does not know is printed behind what it knows, at every depth."""
    text = """<car id='0x0001' new='1'>
  <body kind='van' high='yes'>
    <doors>3</doors>
    <roof open="no">text <b/> more</roof>
  </body>
  <wings n="2"/>
</car>
"""
    car = Car.parse(text)
    assert text == car.format() == Car.parse(car.format()).format()
    assert [("car/@new", 1), ("car/wings", 6), ("car/body/@high", 2), ("car/body/roof", 4)] == car.unmodelled()


def test_names_in_other_namespaces_are_foreign() -> None:
    """<x:name> is not <name>; prefixes and their meaning survive."""
    text = "<car xmlns:x='urn:x' id='1' x:id='7'><x:name>n</x:name></car>"
    car = Car.parse(text)
    again = Car.parse(car.format())
    assert None is car.name
    assert car == again
    assert car.format() == again.format()
    assert "xmlns:x='urn:x'" in car.format() and "x:id='7'" in car.format()


def test_what_has_a_meaning_elsewhere_only_is_dropped() -> None:
    """Ignored attributes and elements neither stay nor count as unknown."""
    car = Car.parse("<car id='1' sails='2'><rudder/><body anchor='x'><doors>1</doors></body></car>")
    assert [] == car.unmodelled()
    assert "<car id='0x0001'>\n  <body>\n    <doors>1</doors>\n  </body>\n</car>\n" == car.format()


def test_of_elements_that_can_be_there_once_the_first_counts() -> None:
    """As XPath gives libvirt the first node."""
    assert "a" == Car.parse("<car id='1'><name>a</name><name>b</name></car>").name


@pytest.mark.parametrize(
    ("text", "line", "code", "named"),
    [
        ("<car/>", 1, 27, "'id'"),
        ("<car id='x'/>", 1, 27, "'id'"),
        ("<car id='1'>\n<body kind='bus'/></car>", 2, 67, "'kind'"),
        ("<car id='1'>\n\n<body><doors>no</doors></body></car>", 3, 27, "<doors>"),
        ("<boat/>", 1, 27, "<boat>"),
    ],
)
def test_errors_have_line_number_and_name(text: str, line: int, code: int, named: str) -> None:
    """The error for an invalid value has its line, the value and libvirt's number."""
    with pytest.raises(XMLError) as error:
        Car.parse(text)
    assert (line, code, True) == (error.value.line, error.value.libvirt_code, named in str(error.value))


def test_lenient_values_fall_back() -> None:
    """What libvirt ignores when it cannot read it is the default here, too."""
    assert None is Car.parse("<car id='1' towed='perhaps'/>").towed


def test_a_copy_is_equal_and_independent() -> None:
    """Changing a copy, at any depth, leaves the original alone."""
    car = Car.parse(FULL)
    copy = car.copy()
    assert car == copy
    copy.wheels[0].size = 99
    copy.paint.colour = "blue"
    assert (FULL, False) == (car.format(), car == copy)


def test_definitions_can_be_made_without_xml() -> None:
    """A definition made by hand prints like a parsed one; a wrong name is a mistake at once."""
    assert "<car id='0x0002'>\n  <name>x</name>\n</car>\n" == Car(id=2, name="x").format()
    with pytest.raises(TypeError, match="wings"):
        Car(id=2, wings=1)


def test_instances_do_not_share_their_lists() -> None:
    """A new definition has lists and parts of its own."""
    one, other = Car(id=1), Car(id=1)
    one.wheels.append(Wheel())
    one.paint.colour = "red"
    assert ([], None) == (other.wheels, other.paint.colour)


def test_control_characters_survive_in_attributes() -> None:
    """Line ends in an attribute are printed so that they are read back."""
    car = Car(id=1)
    car.paint.colour = "a\n\t\rb"
    assert "a\n\t\rb" == Car.parse(car.format()).paint.colour


def test_all_errors_are_found() -> None:
    """The parser continues after an invalid value; the first error stays the first."""
    text = "<car id='x'>\n<body kind='boat'/>\n<axles>\n"
    text += "<wheel size='a'/>\n<wheel/>\n<wheel size='b'/>\n</axles>\n</car>"
    with pytest.raises(XMLError) as caught:
        Car.parse(text)
    found = [caught.value, *caught.value.others]
    assert [(1, "'x'"), (2, "'boat'"), (4, "'a'"), (6, "'b'")] == [(e.line, str(e).split()[2]) for e in found]


def test_errors_of_a_list_are_bounded() -> None:
    """Of thousands of errors the first hundred are reported."""
    wheels = "\n<wheel size='a'/>" * 5000
    with pytest.raises(XMLError) as caught:
        Car.parse(f"<car id='1'><axles>{wheels}</axles></car>")
    assert 100 == 1 + len(caught.value.others)


def test_text_beside_elements_is_kept() -> None:
    """A text that an unknown element follows is printed before it, and read as it was; indentation is not a text."""
    text = "<car id='0x0001'>\n  <plate>53<wheels/>\n    <wings/>\n  </plate>\n</car>\n"
    assert text == Car.parse(text).format()
    assert None is Car.parse("<car id='1'><plate>\n<wheels/></plate></car>").plate.number


def test_hidden_and_quiet_values_are_not_printed() -> None:
    """A quiet default and what a hook hides leave no attribute; their element goes with the last one."""
    lamp = Lamp(id=1)
    assert "<lamp id='1'/>\n" == lamp.format()
    lamp.volts, lamp.colour = 24, "red"
    assert "<lamp id='1'>\n  <bulb volts='24' colour='red'/>\n</lamp>\n" == lamp.format()
    lamp.id = 0
    assert "<lamp id='0'>\n  <bulb volts='24'/>\n</lamp>\n" == lamp.format()


def test_errors_come_in_the_order_of_the_table() -> None:
    """Whatever the order in the source is, and texts and elements alike."""
    text = "<car towed='x' id='x'><spare size='a'/><body kind='boat'/><engine fuel='b'/></car>"
    with pytest.raises(XMLError) as caught:
        Car.parse(text)
    found = [caught.value, *caught.value.others]
    assert ["'x'", "'boat'", "'b'", "'a'"] == [str(error).split()[2] for error in found]


def test_a_field_has_the_line_of_the_first_element_at_its_path() -> None:
    """Whether it was set or not, and also in a definition that shares the element; else the line of the definition."""
    car = Car.parse("<car id='1'>\n<body>\n</body>\n<paint/>\n<axles>\n<wheel/>\n</axles><paint colour='red'/></car>")
    assert {"name": 1, "body_kind": 2, "doors": 1, "wheels": 6} == {
        name: car.line_of(name) for name in ("name", "body_kind", "doors", "wheels")
    }
    assert ("red", 4) == (car.paint.colour, car.paint.line_of("colour"))
    assert [True, True, False] == [car.has_child(tag) for tag in ("body", "paint", "engine")]


def test_elements_are_those_of_a_walk() -> None:
    """Both visit the same definitions in the same order."""
    devices = (
        "<devices><disk type='file'><source file='/a'/><target dev='vda'/></disk><memballoon model='none'/></devices>"
    )
    dom = DomainDef.parse(f"<domain type='kvm'><name>a</name><os><type>hvm</type></os>{devices}</domain>")
    walked = [definition for _, definition in dom.walk()]
    assert len(walked) >= 5
    assert list(map(id, walked)) == list(map(id, dom.elements()))


def test_inlined_definition_is_made_on_use_and_has_the_lines_of_its_owner() -> None:
    """A definition that shares an element is there also if the element has nothing of it, for each owner its own."""
    first, second = (Car.parse("<car id='1'>\n<body kind='van'/>\n</car>") for _ in range(2))
    assert "paint" not in vars(first)
    assert first.paint is first.paint
    assert (1, 2) == (first.paint.line, first.paint.lines["body",])
    first.paint.colour = "red"
    assert (None, None, "red") == (second.paint.colour, Car(id=1).paint.colour, first.copy().paint.colour)
    assert first != second


def test_inlined_definition_is_checked_if_the_element_has_a_part_of_it() -> None:
    """Also a part without any value."""
    for part, checked in (("", []), ("<paint/>", ["car"]), ("<paint colour='red'/>", ["car"])):
        Paint.checked.clear()
        Car.parse(f"<car id='1'>{part}</car>")
        assert checked == Paint.checked


def test_unknown_words_of_one_definition_are_not_those_of_another() -> None:
    """A definition without unknown words has the default, which nothing can change."""
    with pytest.raises(TypeError):
        Wheel().unknown[()] = []  # type: ignore[index]  # that is the test
    Wheel.from_element(etree.XML("<wheel colour='red'/>"))
    assert {} == Wheel().unknown
