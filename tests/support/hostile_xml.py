# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Hostile definitions: domains of the corpus, changed at random, and what must hold for all of them.

A document may be refused by a HostdevError, or give a command line. It must not raise anything else, and must not take
much time or memory. Every document is made from a seed, so that a failure can be reproduced.
"""

from __future__ import annotations

import copy
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from lxml import etree

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.conf.domain_schema import validate_schema
from pyhostdev.conf.domain_validate import validate_all
from pyhostdev.conf.unknown_words import kept_words, unknown_words
from pyhostdev.errors import HostdevError, InternalError
from pyhostdev.qemu import define
from pyhostdev.qemu.qemu_command import build_command_line, stored_capabilities
from pyhostdev.util.xmlstream import NODES_MAX, SIZE_MAX

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
TIME_S = 20  # CPU time of one document: a bound on hanging, far above what a busy machine needs
MEGABYTE_S = 60  # of one as large as can be, which is parsed six times
MEMORY = 256 << 20
CHANGES_MAX = 4
BATCH = 50  # documents that one child reads

NUMBERS = [
    *("0", "-1", "+7", "1", "2", "15", "16", "31", "32", "255", "256", "1023", "65535", "65536", "2147483648"),
    *("4294967295", "4294967296", "18446744073709551615", "18446744073709551616", "0x7fffffff"),
    *("0xffffffffffffffff", "010", "1e9", "1.5", "\u0663", "9" * 65, "9" * 5000, "", " ", "0-4000000", "0-1,^0", "-"),
    *(",", "0," * 5000),
]
WORDS = (
    *("", " ", "..", ".", "/", "../../../etc/passwd", "/etc/passwd", "a" * 5000, "a" * 200_000, "%s%n", "\\"),
    "'\"<&>",
)
CHARACTERS = ("\t", "\n", "\r", "\x7f", "\x85", "\x9b31m", "\u202e", "\ufffd", "\U0001f4a9", "é", "İ", "\u0660")
TEXT_PARTS = ("<!-- c -->", "<?pi x?>", "<![CDATA[]]>", "<![CDATA[1]]>", "<b>1</b>", "&#10;", "&#xD;")
BROKEN = (
    *(b"\0", b"&#0;", b"&#1;", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80"),
    *(b"&none;", b"&lt", b"<", b"]]>", b"<!--", b"\x1b"),
)
DOCTYPES = (
    b"<!DOCTYPE domain [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;'>]>",
    b"<!DOCTYPE domain SYSTEM 'file:///etc/passwd'>",
    b"<!DOCTYPE domain [<!ENTITY % p SYSTEM 'http://127.0.0.1:9/x'>%p;]>",
)
ENCODINGS = ("utf-8", "utf-16", "utf-32", "utf-7", "latin-1", "cp037", "ascii", "utf-8-sig", "shift_jis")

Change = Callable[[random.Random, etree._Element], None]


def corpus() -> list[Path]:
    """Return the well-formed definitions of the corpus, which are changed."""
    paths = (path for path in sorted(TESTDATA.rglob("*.xml")) if not path.name.endswith(".out.xml"))
    return [path for path in paths if _is_well_formed(path)]


def _is_well_formed(path: Path) -> bool:
    try:
        etree.fromstring(path.read_bytes())
    except etree.XMLSyntaxError:
        return False
    return True


def document(seed: int, paths: list[Path]) -> tuple[str, bytes]:
    """Return the name of the definition that a seed changes, and what it makes of it."""
    rng = random.Random(seed)  # the same seed must give the same document
    path = rng.choice(paths)
    root = etree.fromstring(path.read_bytes())
    for _ in range(rng.randint(1, CHANGES_MAX)):
        rng.choice(CHANGES)(rng, root)
    return path.name, _written(rng, root)


def _elements(root: etree._Element) -> list[etree._Element]:
    return list(root.iter(etree.Element))


def _any(rng: random.Random, root: etree._Element) -> etree._Element:
    return rng.choice(_elements(root))


def _change_value(rng: random.Random, element: etree._Element, make: Callable[[str], str]) -> None:
    """Change an attribute, or the text where there is no attribute."""
    names = list(element.attrib)
    if names and rng.random() < 0.8:
        name = rng.choice(names)
        element.set(name, make(str(element.get(name))))
    else:
        element.text = make(element.text or "")


def _number(rng: random.Random, root: etree._Element) -> None:
    numeric = [e for e in _elements(root) if any(v[:1].isdigit() for v in [*e.attrib.values(), (e.text or "").strip()])]
    _change_value(rng, rng.choice(numeric or [root]), lambda _: rng.choice(NUMBERS))


def _word(rng: random.Random, root: etree._Element) -> None:
    _change_value(rng, _any(rng, root), lambda _: rng.choice(WORDS))


def _character(rng: random.Random, root: etree._Element) -> None:
    def insert(value: str) -> str:
        at = rng.randint(0, len(value))
        return value[:at] + rng.choice(CHARACTERS) + value[at:]

    _change_value(rng, _any(rng, root), insert)


def _borrowed_value(rng: random.Random, root: etree._Element) -> None:
    values = [str(value) for element in _elements(root) for value in element.attrib.values()]
    _change_value(rng, _any(rng, root), lambda _: rng.choice(values))


def _borrowed_attribute(rng: random.Random, root: etree._Element) -> None:
    attributes = [(str(name), str(value)) for element in _elements(root) for name, value in element.attrib.items()]
    name, value = rng.choice(attributes)
    _any(rng, root).set(name, value)


def _many(rng: random.Random, root: etree._Element) -> None:
    element = _any(rng, root)
    parent = element.getparent()
    if parent is not None:
        parent.extend(copy.deepcopy(element) for _ in range(rng.choice((1, 2, 30, 300))))


def _nested(rng: random.Random, root: etree._Element) -> None:
    inner = element = _any(rng, root)
    for _ in range(rng.choice((1, 5, 100, 300))):
        inner = etree.SubElement(inner, str(element.tag))


def _removed(rng: random.Random, root: etree._Element) -> None:
    element = _any(rng, root)
    parent = element.getparent()
    if rng.random() < 0.5 and parent is not None:
        parent.remove(element)
    elif element.attrib:
        del element.attrib[rng.choice(list(element.attrib))]


def _moved(rng: random.Random, root: etree._Element) -> None:
    element = _any(rng, root)
    _any(rng, root).append(copy.deepcopy(element))


def _renamed(rng: random.Random, root: etree._Element) -> None:
    element = _any(rng, root)
    if element is not root:
        element.tag = rng.choice([str(_any(rng, root).tag), "{urn:x}y", "wings"])


def _text_part(rng: random.Random, root: etree._Element) -> None:
    element = rng.choice([e for e in _elements(root) if not len(e) and (e.text or "").strip()] or [root])
    if len(element):
        return
    text = element.text or ""
    at = rng.randint(0, len(text))
    element.text = f"{text[:at]}\ue000{rng.randrange(len(TEXT_PARTS))}\ue001{text[at:]}"


CHANGES: tuple[Change, ...] = (
    _number,
    _number,
    _number,
    _word,
    _character,
    _borrowed_value,
    _borrowed_value,
    _borrowed_attribute,
    _many,
    _nested,
    _removed,
    _moved,
    _renamed,
    _text_part,
)


def _written(rng: random.Random, root: etree._Element) -> bytes:
    """Return a tree as bytes; some documents are broken in ways that no tree can hold."""
    text = etree.tostring(root, encoding="unicode")
    for number, part in enumerate(TEXT_PARTS):
        text = text.replace(f"\ue000{number}\ue001", part)
    choice = rng.random()
    if choice < 0.05:
        name = rng.choice(ENCODINGS)
        declared = f"<?xml version='1.0' encoding='{rng.choice((name, *ENCODINGS))}'?>"
        return (declared + text).encode(name, "replace")
    data = text.encode()
    if choice < 0.08:
        return rng.choice(DOCTYPES) + data
    if choice < 0.14:
        at = rng.randint(0, len(data))
        return data[:at] + rng.choice(BROKEN) + data[at + rng.choice((0, 0, 1, 100)) :]
    return data[: rng.randint(0, len(data))] if choice < 0.15 else data


def read_hostile(data: bytes) -> None:
    """Take a document through everything that reads one; only what a user can cause is let through."""
    validate_schema(data)
    try:
        dom = DomainDef.parse(data)
    except HostdevError as err:
        _check_refusal(err)
        return
    printed = dom.format()
    if len(printed) < SIZE_MAX // 2:  # indentation and defaults can make it too large
        assert printed == DomainDef.parse(printed).format(), "what is printed is not read as it was"
    for error in validate_all(dom):
        _check_refusal(error)
    assert all(str(finding.message) for finding in (*unknown_words(dom), *kept_words(dom)))
    for work in (lambda: define(dom, stored_capabilities(dom)).format(), lambda: build_command_line(dom)):
        try:
            work()
        except HostdevError as err:
            _check_refusal(err)


def _check_refusal(err: HostdevError) -> None:
    assert not isinstance(err, InternalError), err
    for part in (err, *getattr(err, "others", ())):
        assert len(str(part)) < 1000, f"a long sentence: {str(part)[:100]}"
        assert str(part).isprintable(), f"a sentence with control characters: {str(part)!r}"


def kinds() -> list[tuple[str, ...]]:
    """Return every element that the corpus has, by the way to it."""
    return sorted(_samples())


def _samples() -> dict[tuple[str, ...], tuple[Path, str]]:
    """Return a definition that has each element, and where it is there."""
    found: dict[tuple[str, ...], tuple[Path, str]] = {}
    for path in corpus():
        root = etree.fromstring(path.read_bytes())
        for element in root.iter(etree.Element):
            way = tuple(str(part.tag) for part in (*reversed(list(element.iterancestors())), element))
            if len(way) > 1 and root.tag == "domain":
                found.setdefault(way, (path, root.getroottree().getelementpath(element)))
    return found


def repeated(kind: tuple[str, ...]) -> bytes:
    """Return a definition in which one element occurs as often as a document can hold it."""
    path, place = _samples()[kind]
    root = etree.fromstring(path.read_bytes())
    element = root.find(place)
    assert element is not None
    size = len(etree.tostring(element))
    nodes = sum(1 + len(part.attrib) for part in element.iter(etree.Element))
    count = min(SIZE_MAX * 9 // 10 // size, NODES_MAX * 9 // 10 // nodes)
    for _ in range(count):
        element.addnext(copy.deepcopy(element))
    return etree.tostring(root)


def too_costly(data: bytes, share: float = 1) -> list[str]:
    """Return how a document breaks its share of a megabyte's bounds, empty where it keeps them; one child reads it."""
    said = _in_child([0], read_hostile, lambda _seed: data, MEGABYTE_S * share)
    return [] if said is None else [said[1]]


def failures(seeds: range, paths: list[Path], read: Callable[[bytes], None] = read_hostile) -> Iterator[str]:
    """Yield each forbidden document, with a description; children with limits read them."""
    for first in range(seeds.start, seeds.stop, BATCH):
        batch = list(range(first, min(first + BATCH, seeds.stop)))
        while batch:
            said = _in_child(batch, read, lambda seed: document(seed, paths)[1], TIME_S)
            if said is None:
                break
            seed, what = said
            yield f"seed {seed}: {what}"
            batch = [later for later in batch if later > seed]


def _in_child(
    batch: list[int], read: Callable[[bytes], None], make: Callable[[int], bytes], time_s: float
) -> tuple[int, str] | None:
    """Return the first failing seed of a batch with its failure; None if all passed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            os._exit(_child(batch, read, make, time_s, writer))
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as stream:
        lines = stream.read().decode(errors="replace").split("\n")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 0:
        return None
    seed, _, what = lines[-1].partition(" ")
    return int(seed), what or f"the child ended with {status}"


def _child(
    batch: list[int], read: Callable[[bytes], None], make: Callable[[int], bytes], time_s: float, writer: int
) -> int:
    """Read a batch within limits and return the exit status; the last line names the current input, and the failure."""
    _bound_memory()
    signal.signal(signal.SIGVTALRM, _too_long)
    for seed in batch:
        os.write(writer, f"\n{seed} ".encode())
        try:
            data = make(seed)
            signal.setitimer(signal.ITIMER_VIRTUAL, time_s)
            read(data)
        except BaseException as err:
            os.write(writer, f"{type(err).__name__}: {str(err)[:300]} at {_place(err)}".replace("\n", " ").encode())
            return 1
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return 0


def _bound_memory() -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("too long")


def _place(err: BaseException) -> str:
    trace = err.__traceback__
    place = ""
    while trace is not None:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
