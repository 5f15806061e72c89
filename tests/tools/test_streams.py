# SPDX-License-Identifier: LGPL-2.1-or-later
"""A closed terminal, a full disk, missing libraries, wrong values: one sentence and a suitable exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.tools import main, output
from pyhostdev.tools.demo import GUEST

PYHOSTDEV = f"{sys.executable} -m pyhostdev"
CARD = "0001:09:00.0"
READING = {
    "list": "list",
    "list --json": "list --json",
    "show": f"show {CARD}",
    "plan": f"plan {GUEST}",
    "xml": f"xml {GUEST}",
    "argv": f"argv {GUEST}",
    "status": "status",
}
Shell = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def shell(bcm5719: FakeHost) -> Shell:
    """A function that runs a shell line, in which HOST is the seed's host and pyhostdev is this checkout's."""

    def run(line: str) -> subprocess.CompletedProcess[str]:
        line = line.replace("pyhostdev ", f"{PYHOSTDEV} ", 1).replace("HOST", bcm5719.root.path)
        return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)

    return run


def one_sentence(err: str) -> bool:
    """Tell whether the output is one sentence, after notes."""
    *notes, last = err.splitlines() or [""]
    return all(note.startswith("pyhostdev: note: ") for note in notes) and last.startswith("pyhostdev: ")


@pytest.mark.parametrize("verb", READING)
@pytest.mark.parametrize(("where", "why"), [("> /dev/full", "No space left"), (">&-", "Bad file descriptor")])
def test_reading_verb_that_cannot_be_heard(shell: Shell, verb: str, where: str, why: str) -> None:
    """Exit code 3 and one sentence, without a traceback or a message of the interpreter."""
    done = shell(f"pyhostdev {READING[verb]} --root HOST {where}")
    assert (3, True, True) == (done.returncode, one_sentence(done.stderr), why in done.stderr), done.stderr


@pytest.mark.parametrize("words", ["--help", "--version", "list --help"])
def test_help_that_cannot_be_heard(shell: Shell, words: str) -> None:
    """Lost help output is a failure."""
    done = shell(f"pyhostdev {words} > /dev/full")
    assert (3, True) == (done.returncode, one_sentence(done.stderr)), done.stderr


@pytest.mark.parametrize("verb", READING)
def test_reader_that_has_seen_enough(shell: Shell, verb: str) -> None:
    """A pipe that is closed early, as by `head`: exit code 0, and no message."""
    done = shell(f"{{ pyhostdev {READING[verb]} --root HOST; echo $? >&2; }} | true")
    *notes, code = done.stderr.splitlines()
    assert "0" == code
    assert all(note.startswith("pyhostdev: note: ") for note in notes), done.stderr


@pytest.mark.parametrize("where", ["", "> /dev/full", ">&-", "2>&-", "2> /dev/full", ">&- 2>&- <&-", "<&-"])
def test_change_is_made_once_whoever_hears_of_it(shell: Shell, bcm5719: FakeHost, where: str) -> None:
    """Prepare and release print nothing, so a closed stream has no effect; no file gets its number."""
    before = bcm5719.snapshot()
    assert 0 == shell(f"pyhostdev prepare {GUEST} --root HOST --simulate {where}").returncode
    active = json.loads(shell("pyhostdev status --json --root HOST").stdout)["active"]
    assert 4 == len(active)
    assert 0 == shell(f"pyhostdev release {GUEST} --root HOST --simulate {where}").returncode
    assert before == bcm5719.snapshot()


@pytest.mark.parametrize("more", ["", "--json"])
@pytest.mark.parametrize("where", ["> /dev/full", ">&-"])
def test_recover_reports_what_it_did_where_it_can(shell: Shell, bcm5719: FakeHost, where: str, more: str) -> None:
    """A recovery runs once: if its table cannot be printed, it goes to standard error, with exit code 3."""
    before = bcm5719.snapshot()
    assert 0 == shell(f"pyhostdev prepare {GUEST} --root HOST --simulate").returncode
    done = shell(f"pyhostdev recover --all {more} --root HOST --simulate {where}")
    assert (3, 4) == (done.returncode, done.stderr.count("0001:09:00.")), done.stderr
    assert "Traceback" not in done.stderr
    assert before == bcm5719.snapshot()


def test_refusal_is_reported_by_its_code_as_a_last_resort(shell: Shell) -> None:
    """A closed standard error changes no exit code, and its messages do not end up on standard output."""
    for where in ("2>&-", "2> /dev/full"):
        done = shell(f"pyhostdev show 0001:0a:00.0 --root HOST {where}")
        assert (1, "") == (done.returncode, done.stdout)


def test_without_a_verb_the_verbs_are_told(shell: Shell) -> None:
    """Exit code 2, and the list of verbs on standard error."""
    done = shell("pyhostdev  ")
    assert (2, "") == (done.returncode, done.stdout)
    assert all(f"  {verb} " in done.stderr and summary in done.stderr for verb, summary in main.VERBS.items())


@pytest.mark.parametrize(
    "words",
    [
        ["show", "nonsense"],
        ["show", "../../../etc"],
        ["show", "0000:01:00.9"],
        ["nodedev-detach", "1:2"],
        ["nodedev-reattach", ""],
        ["nodedev-reset", "x"],
        ["nodedev-detach", CARD, "--driver", "../x"],
        ["nodedev-detach", CARD, "--driver", ""],
        ["prepare", GUEST, "--accept", "mounted"],
        ["prepare", GUEST, "--accept", f"in-use:{CARD}"],
        ["plan", GUEST, "--accept", "mounted:x"],
        ["plan", GUEST, "--policy", "none"],
        *(["release", GUEST, "--timeout", text] for text in ("nan", "inf", "-1", "1e300", "86401", "x", "")),
        ["recover", "--timeout=-0.1"],
        *(["prepare", GUEST, "--user", text] for text in ("no-such-user", "root:no-such-group", "4294967295", ":", "")),
        ["xml", GUEST, "--spelling", "none"],
        ["nonsense"],
        ["--nonsense"],
        ["prepare", GUEST, "--root", "/nonexistent"],
    ],
    ids=" ".join,
)
def test_wrong_value_is_an_error_of_usage(
    words: list[str], bcm5719: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, the argument is named, and nothing is touched."""
    before = bcm5719.snapshot(books=True)
    if "--root" not in words and len(words) > 1:
        words = [*words, "--root", bcm5719.root.path]
        words += ["--simulate"] * (words[0] in ("prepare", "release", "recover") or words[0].startswith("nodedev"))
    with pytest.raises(SystemExit) as end:
        main.main(words)
    assert (2, "") == (end.value.code, capsys.readouterr().out)
    assert before == bcm5719.snapshot(books=True)


def test_timeouts_that_are_right(bcm5719: FakeHost) -> None:
    """Zero, a fraction of a second, and a day are valid timeouts."""
    for text in ("0", "0.5", "86400"):
        assert 0 == main.main(["recover", "--timeout", text, "--root", bcm5719.root.path, "--simulate"])


def without(*libraries: str) -> str:
    """Return a program that is pyhostdev where some libraries are not installed."""
    return f"import sys; sys.modules.update(dict.fromkeys({libraries!r})); from pyhostdev.tools.main import main; "


def call(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    code = f"{program}sys.exit(main({list(words)!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("verb", READING)
def test_everything_but_start_works_without_extras(bcm5719: FakeHost, verb: str) -> None:
    """The same text in the same order, without formatting."""
    words = [*READING[verb].split(), "--root", bcm5719.root.path]
    bare, full = (call(without(*names), *words) for names in (("qemu",), ()))
    assert (0, True) == (bare.returncode, "Traceback" not in bare.stderr), bare.stderr
    assert full.stdout == bare.stdout


def test_plain_tables_and_trees(bcm5719: FakeHost) -> None:
    """A table has columns, and a tree has guides; in a pipe no line is broken."""
    table = call(without(), "list", "--root", bcm5719.root.path).stdout.splitlines()
    assert table[0] == "ADDRESS       ID         CLASS   GROUP  DRIVER    MULTIFUNCTION  PF  VFIO"
    assert table[-1].startswith("0001:09:00.3  14e4:1657  020000  14     tg3       yes            -")
    tree = call(without(), "plan", GUEST, "--root", bcm5719.root.path).stdout.splitlines()
    assert ("└── IOMMU group 14", 6) == (tree[1], len(tree))
    assert tree[2].startswith(f"    ├── {CARD}  given to the guest")
    assert tree[5].startswith("    └── ")


@pytest.mark.parametrize("width", [1, 12, 24, None])
def test_trees_continue_below(width: int | None) -> None:
    """A text that is too wide continues under itself, with the guides of what follows; an address is never broken."""
    tree = output.Branch("two functions")
    first = tree.add("0000:01:00.0  given to the guest")
    first.add("below")
    tree.add("0000:01:00.1")
    lines = list(tree.lines(width))
    expected = {
        None: [
            "two functions",
            "├── 0000:01:00.0  given to the guest",
            "│   └── below",
            "└── 0000:01:00.1",
        ],
        24: [
            "two functions",
            "├── 0000:01:00.0  given",
            "│   to the guest",
            "│   └── below",
            "└── 0000:01:00.1",
        ],
    }
    assert expected.get(width, lines) == lines
    text = "".join(line.translate(dict.fromkeys(map(ord, "│├└─ "))) for line in lines)
    assert "twofunctions0000:01:00.0giventotheguestbelow0000:01:00.1" == text
    assert ["0000:01:00.0" in "".join(lines), "0000:01:00.1" in lines[-1]] == [True, True]


def test_plan_knows_what_start_needs(tmp_path: Path) -> None:
    """Without its extra, start would not run a guest here; a guest of another root is not started here."""
    guest = tmp_path / "guest.xml"
    guest.write_text("<domain type='qemu'><name>vm</name><memory>65536</memory><os><type>hvm</type></os></domain>")
    done = call(without("qemu"), "plan", str(guest), "--for-start")
    assert (1, True) == (done.returncode, "note: extra-missing: start needs the extra 'start'" in done.stdout)
    assert "extra-missing" not in call(without("qemu"), "plan", str(guest), "--root", str(tmp_path)).stdout


def test_start_names_its_extra() -> None:
    """One sentence before anything is read or touched."""
    done = call(without("qemu"), "start", str(Path("nowhere.xml")))
    assert (1, True, True) == (done.returncode, one_sentence(done.stderr), "extra 'start'" in done.stderr), done.stderr
