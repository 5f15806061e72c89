# SPDX-License-Identifier: LGPL-2.1-or-later
"""make prototype: two trees answer the same questions; the report shows which one is nearer to libvirt."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import prototype
import pytest
from comparison import Change, Comparison, compare, distance, marked
from corpus import Case, CorpusError, Folder, read_folder
from lines import Answer, answer_of, argv_lines, recorded, xml_lines
from page import page_of
from report import text_of
from servers import Question
from trees import TOP, TreeError, base_tree, reuse_extensions

HOSTDEV = (
    "<hostdev type='pci' managed='yes'><source><address domain='0' bus='3' slot='0' function='0'/></source></hostdev>"
)
DOMAIN = (
    "<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory>"
    f"<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{HOSTDEV}</devices></domain>"
)


def git(top: Path, *words: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    subprocess.run(["git", "-C", str(top), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """This tree as a repository of one commit: the package, its extensions beside it, and the server."""
    top = tmp_path / "repository"
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("pyhostdev", "csrc"):
        shutil.copytree(TOP / name, top / name, ignore=skipped)
    (top / "tests").mkdir()
    shutil.copy2(TOP / "tests/oracle_server.py", top / "tests")
    for name in ("setup.py", "pyproject.toml", ".gitignore"):
        shutil.copy2(TOP / name, top)
    git(top, "init", "-q", "-b", "main")
    git(top, "add", ".")
    git(top, "commit", "-q", "-m", "base")
    return top


@pytest.fixture
def cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two domains, one of them recorded by libvirt 12.8, and one release to ask."""
    folder = tmp_path / "oracle-12.8" / "own"
    folder.mkdir(parents=True)
    for name in ("card", "other"):
        (folder / f"{name}.xml").write_text(DOMAIN.format(name=name))
    (folder / "index.json").write_text(json.dumps({"card": {}, "other": {}}))
    monkeypatch.setattr(prototype, "OWN", folder)
    return folder


def test_a_change_is_shown_beside_libvirts_answer(
    repository: Path, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal trees first; then an uncommitted change of one line: exit status 6, nearer where libvirt has the line."""
    assert prototype.EQUAL == prototype.main([], repository)
    out = capsys.readouterr().out
    assert "8 answers about 2 domains, all are equal" in out
    assert "not compared" not in out
    source = repository / "pyhostdev/qemu/qemu_command/hostdev.py"
    text = source.read_text()
    source.write_text(text.replace('"failover_pair_id": hostdev.teaming_persistent', '"failover_pair_id": "<b>"'))
    host = '"host":"0000:03:00.0"'
    line = f'{{"driver":"vfio-pci",{host},"id":"hostdev0","failover_pair_id":"<b>","bus":"pci.0","addr":"0x2"}}'
    (cases / "card.args").write_text(f"/usr/bin/qemu-system-x86_64\n-device\n{line}\n")
    page = tmp_path / "page.html"
    assert prototype.DIFFER == prototype.main(["--html", str(page)], repository)
    out = capsys.readouterr().out
    assert "2 differ" in out
    assert "== argv: 2 answers (1 nearer, 1 not recorded)" in out
    marked_lines = [text.split(None, 1) for text in out.splitlines() if "failover" in text]
    assert [["=", f"+ -device {line}"]] == marked_lines
    assert "&lt;b&gt;" in page.read_text()
    assert "<b>" not in page.read_text()


def test_what_cannot_be_compared(repository: Path, cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1 and one sentence: no such commit, no domains, and a package that ends at once."""
    assert prototype.FAILED == prototype.main(["--base", "nowhere"], repository)
    assert "'git rev-parse" in capsys.readouterr().err
    assert prototype.FAILED == prototype.main([str(repository / "csrc")], repository)
    assert "There is no domain" in capsys.readouterr().err
    (repository / "pyhostdev/util/pciscan.py").write_text("raise SystemExit('broken here')\n")
    assert prototype.FAILED == prototype.main([], repository)
    assert "The package of this tree cannot be imported: broken here" in capsys.readouterr().err


def test_extensions_are_reused_for_the_same_source_only(repository: Path, tmp_path: Path) -> None:
    """A base whose C code differs is built; a base without a server cannot be asked."""
    base = tmp_path / "base"
    base.mkdir()
    assert base_tree(repository, "main", base).name.startswith("main (")
    built = sorted(path.name for path in base.glob("pyhostdev/util/*.so"))
    assert len(built) == len(list(TOP.glob("pyhostdev/util/*.so")))
    (base / "csrc/pciscan.c").write_text("other")
    assert not reuse_extensions(repository, base)
    git(repository, "rm", "-q", "tests/oracle_server.py")
    git(repository, "commit", "-q", "-m", "without a server")
    (tmp_path / "third").mkdir()
    with pytest.raises(TreeError, match=r"has no tests/oracle_server\.py"):
        base_tree(repository, "main", tmp_path / "third")


def test_folders(tmp_path: Path) -> None:
    """Host and release come from the path; without an index a folder is asked as every release."""
    plain = tmp_path / "mine"
    plain.mkdir()
    (plain / "a.xml").write_text("<domain/>")
    (plain / "a.out.xml").write_text("<domain/>")
    found = read_folder(plain)
    assert (None, ("9.0", "11.3", "12.8"), ["a"]) == (
        found.recorded,
        found.releases,
        [case.name for case in found.cases],
    )
    assert TOP / "testdata/oracle/host.tree" == found.host
    assert () == read_folder(plain, re.compile("b")).cases
    full = tmp_path / "oracle-11.3" / "visible" / "generated"
    full.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (full / f"{name}.xml").write_text(f"<domain><name>{name}</name></domain>")
    (full / "index.json").write_text(json.dumps({"a": {}, "b": {"crash": True}, "c": {}}))
    (full.parent.parent / "host.json").write_text("{}")
    (full.parent.parent / "beyond.json").write_text(json.dumps([{"xml": "<name>c", "why": "on purpose"}]))
    found = read_folder(full)
    assert ("11.3", ("11.3",)) == (found.recorded, found.releases)
    assert [("a", True), ("c", False)] == [(case.name, found.is_judged(case)) for case in found.cases]
    with pytest.raises(CorpusError, match=r"There is no fakesys\.py beside"):
        found.build_host(tmp_path / "host")


def case(folder: Path, **files: Any) -> Case:
    """Return a case with files beside it, by suffix: text, or data to write as JSON."""
    for suffix, content in files.items():
        path = folder / f"c.{suffix.replace('_', '.')}"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return Case("c", folder)


OVERRIDE = "/sys/bus/pci/devices/0000:03:00.0/driver_override"
HANDED = [
    [OVERRIDE, "vfio-pci", "ok"],
    ["/sys/bus/pci/drivers/tg3/unbind", "0000:03:00.0", "ok"],
    [OVERRIDE, "\n", "ok"],
]


def test_libvirts_answers_are_read_in_each_form(tmp_path: Path) -> None:
    """XML or number, command line or refusal, start, edit and live; None for what was not recorded."""
    assert [None] * 6 == [
        recorded(case(tmp_path), column) for column in ("xml", "argv", "plan", "start", "edit", "live")
    ]
    refused = case(tmp_path, err={"define": {"code": 67, "message": "no"}, "argv": {"code": 67, "message": "no"}})
    assert (("refused 67",), ("refused",)) == (recorded(refused, "xml"), recorded(refused, "argv"))
    assert ("refused 27",) == recorded(case(tmp_path, code="27\n"), "xml")
    known = case(tmp_path, out_xml="<a y='1' x='2'><b>t</b></a>", args="qemu\n-name\na\\nb\n")
    assert (("<a x='2' y='1'>", "  <b>t"), ("qemu", "-name a\nb")) == (recorded(known, "xml"), recorded(known, "argv"))
    started = case(tmp_path, start_json={"error": None, "ops": HANDED})
    assert ("started", "0000:03:00.0 to vfio-pci", "0000:03:00.0 to the host") == recorded(started, "start")
    failed = case(tmp_path, start_json={"error": {"code": 55, "message": "in use"}, "ops": HANDED})
    assert ("error 55",) == recorded(failed, "start")
    steps = {"steps": [{"error": {"qemu": "device_add"}, "ops": HANDED[:1]}], "hostdevs": ["<hostdev/>"]}
    live = case(tmp_path, live="", live_json=steps)
    assert ("step: QEMU refuses device_add", "0000:03:00.0 to vfio-pci", "<hostdev>") == recorded(live, "live")
    edit = case(tmp_path, edit_json=[None, {"code": 55}], edit_out_xml="<d/>")
    assert ("step: done", "step: error 55", "<d>") == recorded(edit, "edit")


def test_our_answers_have_the_same_form(tmp_path: Path) -> None:
    """What is judged equals what would be recorded; messages and single writes are only shown."""
    value = {"error": None, "code": None, "ops": HANDED[::2], "writes": HANDED}
    start = answer_of("start", {"ok": value}, "/host")
    assert start is not None
    assert recorded(case(tmp_path, start_json={"error": None, "ops": HANDED}), "start") == start.judged
    assert ("/sys/bus/pci/drivers/tg3/unbind <- '0000:03:00.0'",) == start.shown[1:2]
    refused = answer_of("xml", {"error": "Not in /host/x", "code": 67}, "/host")
    assert Answer(("refused: 67 Not in @HOST@/x",), ("refused 67",)) == refused
    step = {"code": {"qemu": "device_add"}, "ops": HANDED[:1], "writes": HANDED[:1]}
    live = answer_of("live", {"ok": {"steps": [step], "hostdevs": ["<hostdev/>"]}}, "/host")
    assert live is not None
    assert ("step: QEMU refuses device_add", "0000:03:00.0 to vfio-pci", "<hostdev>") == live.judged


@pytest.mark.parametrize(
    ("column", "reply"),
    [
        ("plan", {"error": "'plan' is not answered", "code": 67}),
        ("start", {"ok": {"error": None, "code": None, "ops": []}}),
        ("live", {"ok": {"steps": [{"code": None, "ops": []}], "hostdevs": []}}),
    ],
)
def test_a_base_that_answers_less_is_not_compared(column: str, reply: dict[str, Any]) -> None:
    """A difference in what the servers tell is not one of the trees."""
    assert answer_of(column, reply, "/host") is None


def test_what_depends_on_the_run_is_neutral() -> None:
    """Domain ids, sockets, descriptors and times; a backend of an interface only where no start was recorded."""
    words = ["qemu", "-S", "-rtc", "base=2026-11-26T10:00:00", "-netdev", '{"type":"tap","fd":"33","id":"hostnet0"}']
    assert ["qemu", "-S", "-rtc base=@NOW@", '-netdev {"type":"tap","fd":"@FD@","id":"hostnet0"}'] == [
        *argv_lines(words)
    ]
    assert "-netdev id=hostnet0" == list(argv_lines(words, is_native=True))[-1]
    assert ["<a>", "  <b n='1'>"] == list(xml_lines("<a>\n<b n='1'/></a>"))


def change(before: str, now: str, wanted: str | None) -> Change:
    """Return a change of lines that are words."""
    question = Question("12.8", Case("c", Path()), "argv")
    told = None if wanted is None else tuple(wanted.split())
    return Change(question, Answer.same(before.split()), Answer.same(now.split()), told)


@pytest.mark.parametrize(
    ("before", "now", "wanted", "verdict", "distances"),
    [
        ("a b", "a c", "a c", "nearer", (1, 0)),
        ("a c", "a b", "a c", "farther", (0, 1)),
        ("a b", "a d", "a c", "as near", (1, 1)),
        ("a b", "a d", None, "not recorded", None),
        ("a", "a b c", "b c", "nearer", (2, 1)),
    ],
)
def test_verdicts(before: str, now: str, wanted: str | None, verdict: str, distances: tuple[int, int] | None) -> None:
    """A change is judged by the number of lines that differ from libvirt's answer before and after it."""
    found = change(before, now, wanted)
    assert (verdict, distances) == (found.verdict, found.distances)


def test_lines() -> None:
    """Replacing a line counts once; the difference is shown with one line around it."""
    assert (1, 2, 0) == (distance("abc", "axc"), distance("abc", "c"), distance("", ""))
    assert [" b", "-c", "+x", " d"] == marked(list("abcde"), list("abxde"))


class Tags(HTMLParser):
    """Collects the start tags, and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [name for name, _ in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()


def comparison(folder: Path) -> Comparison:
    """Return a comparison with one group, in which all texts are hostile."""
    (folder / "<i>.xml").write_text("<domain/><script>")
    question = Question("12.8", Case("<i>", folder), "xml")
    before, now = Answer.same(["<a>"]), Answer.same(["<script>&"])
    (folder / "<i>.code").write_text("27")
    return compare("<main>", {question: before}, {question: now}, [question])


def test_the_page_is_one_file_and_escaped(tmp_path: Path) -> None:
    """Every text is escaped, every element closed, and nothing is loaded."""
    page = page_of(comparison(tmp_path))
    tags = Tags()
    tags.feed(page)
    assert ([], []) == (tags.open, tags.links)
    assert "<script>" not in page
    assert "&lt;script&gt;&amp;" in page


def test_the_text_names_case_column_and_verdict(tmp_path: Path) -> None:
    """A row of the table for each release and column, then the group with its cases."""
    lines = text_of(comparison(tmp_path)).splitlines()
    assert "This tree against <main>: 1 answers about 1 domains, 1 differ" == lines[0]
    assert ["12.8", "xml", "1", "0", "0", "1", "0"] == lines[3].split()
    assert ["== xml: 1 answer (1 as near)", "   12.8 <i>"] == lines[5:7]


def test_the_corpus_of_the_project_is_one() -> None:
    """testdata/oracle is recorded by 9.0 and asked as every release."""
    found = read_folder(TOP / "testdata/oracle")
    assert isinstance(found, Folder)
    assert ("9.0", 3) == (found.recorded, len(found.releases))
