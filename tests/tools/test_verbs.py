# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contracts of the command line: output, exit codes, and no change after a refusal."""

from __future__ import annotations

import gc
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import pyhostdev
from pyhostdev.testing.fakehost import FakeHost
from pyhostdev.testing.faults import Fail
from pyhostdev.tools import arguments, main
from pyhostdev.tools.demo import GUEST

PROJECT = str(Path(__file__).parents[2])
CARD = [f"0001:09:00.{function}" for function in range(4)]
ANSWERED = "pyhostdev: note: answered as libvirt 12.8, the newest known release: this host has no libvirt\n"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(bcm5719: FakeHost, capsys: Capture) -> Callable[..., tuple[int, str, str]]:
    """A function that runs a verb on the seed's host and returns exit code, stdout, stderr."""

    def run_verb(*words: str) -> tuple[int, str, str]:
        code = main.main([*words, "--root", bcm5719.root.path])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run_verb


@pytest.fixture
def incomplete(tmp_path: Path) -> str:
    """The seed's guest without functions 1 and 2."""
    text = Path(GUEST).read_text()
    for function in ("0x1", "0x2"):
        start = text.index("    <hostdev", text.index(f"function='{function}'") - 260)
        text = text[:start] + text[text.index("</hostdev>", start) + len("</hostdev>\n") :]
    path = tmp_path / "incomplete.xml"
    path.write_text(text)
    return str(path)


def test_list_json_is_a_list_with_the_contracts_keys(run: Callable[..., Any]) -> None:
    """Addresses in order; ids as lower-case hex strings; None for values that the host does not have."""
    code, out, _ = run("list", "--json")
    functions = {function["address"]: function for function in json.loads(out)}
    assert 0 == code
    assert {
        "address": CARD[0],
        "vendor_id": "0x14e4",
        "device_id": "0x1657",
        "class": "0x020000",
        "driver": "tg3",
        "iommu_group": 14,
        "multifunction": True,
        "physfn": None,
        "vfio_driver": "vfio-pci",
        "vfio_driver_why": None,
    } == functions[CARD[0]]
    assert sorted(functions) == list(functions)
    assert functions["0001:00:00.0"]["driver"] is None


def test_plan_json_and_exit_code(run: Callable[..., Any], incomplete: str) -> None:
    """0 and no findings when it could start, 1 and all findings when it is refused."""
    code, out, _ = run("plan", GUEST, "--json")
    assert (0, True, []) == (code, json.loads(out)["ok"], json.loads(out)["findings"])
    code, out, _ = run("plan", incomplete, "--json")
    found = [(f["reason"], f["severity"], f["address"]) for f in json.loads(out)["findings"]]
    assert (1, [("incomplete-device", "error", a) for a in CARD[1:3]]) == (code, found)


def test_s4_refused_prepare_is_one_sentence_a_finding(
    run: Callable[..., Any], bcm5719: FakeHost, incomplete: str
) -> None:
    """S4: each missing function is one line on stderr with its reason, exit code 1, no byte changed."""
    before = bcm5719.snapshot()
    code, out, err = run("prepare", incomplete, "--simulate")
    lines = err.splitlines()
    assert (1, "", 2) == (code, out, len(lines))
    assert all(f"incomplete-device: Function {a}" in line for a, line in zip(CARD[1:3], lines, strict=True))
    assert before == bcm5719.snapshot()


def test_release_by_name(run: Callable[..., Any], bcm5719: FakeHost) -> None:
    """Without the domain's XML its name is enough; one of the two is required."""
    assert 0 == run("prepare", GUEST, "--simulate")[0]
    owner = json.loads(run("status", "--json")[1])["active"][0]["owner"]
    assert 0 == run("release", "--owner", owner, "--simulate")[0]
    assert [] == json.loads(run("status", "--json")[1])["active"]
    for words in ((), (GUEST, "--owner", owner)):
        with pytest.raises(SystemExit, match="2"):
            run("release", *words, "--simulate")


def test_prepare_status_release(run: Callable[..., Any], bcm5719: FakeHost) -> None:
    """Each verb is a process of its own: the lists are seen from all of them."""
    before = bcm5719.snapshot()
    assert 0 == run("prepare", GUEST, "--simulate")[0]
    status = json.loads(run("status", "--json")[1])
    assert [(a, "seed") for a in CARD] == [(dev["address"], dev["owner"]) for dev in status["active"]]
    assert 0 == run("release", GUEST, "--simulate")[0]
    assert {"version": 1, "active": [], "inactive": []} == json.loads(run("status", "--json")[1])
    assert before == bcm5719.snapshot()


@pytest.mark.parametrize("words", [("list",), ("show", CARD[0]), ("plan", GUEST), ("status",), ("xml", GUEST)])
def test_reading_verbs_change_no_byte(run: Callable[..., Any], bcm5719: FakeHost, words: tuple[str, ...]) -> None:
    """Reading creates no state directory and touches nothing."""
    before = bcm5719.snapshot(books=True)
    assert 0 == run(*words)[0]
    assert before == bcm5719.snapshot(books=True)


def test_changing_verb_under_root_needs_simulate(run: Callable[..., Any], bcm5719: FakeHost) -> None:
    """Without --simulate a directory is never written to: usage, 2."""
    before = bcm5719.snapshot(books=True)
    with pytest.raises(SystemExit) as end:
        run("prepare", GUEST)
    assert 2 == end.value.code
    assert before == bcm5719.snapshot(books=True)


WRONG_VALUES = (
    *("--policy sometimes", "--user nosuch", "--user :x", "--user root:nosuch", "--capabilities 99.9", "--qemu 99.9"),
    *("--libvirt 1.0", "--accept mounted:../x", "--root / --device ../x --owner x"),
)
WRONG = [
    *([], ["nonsense"], ["plan"]),
    *(["plan", GUEST, *value.split()] for value in WRONG_VALUES),
    *(["prepare", "--device", CARD[0], "--owner", "a/b"], ["show", "0001:09:00.8"], ["nodedev-reset", "net:../x"]),
    *(["fakehost", name, "nowhere"] for name in ("no-such-host", "generate:x", "generate:0", "generate:99999")),
]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_usage_is_2(words: list[str], capsys: Capture) -> None:
    """A wrong call gives exit code 2 and names the mistake."""
    try:
        code: object = main.main(words)
    except SystemExit as end:
        code = end.code
    assert 2 == code
    assert capsys.readouterr().err


def test_rolled_back_is_3_and_not_restored_is_4(
    run: Callable[..., Any], bcm5719: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails and is undone is 3; one that cannot be undone is 4 and keeps its record."""
    monkeypatch.setattr(arguments, "_writer_of", lambda *_: bcm5719.kernel)
    before = bcm5719.snapshot()
    bcm5719.kernel.inject(5, Fail(5))
    assert 3 == run("prepare", GUEST, "--simulate")[0]
    assert before == bcm5719.snapshot()
    assert 0 == run("prepare", GUEST, "--simulate")[0]
    bcm5719.kernel.inject(5, Fail(5))  # behind the four resets
    assert 4 == run("release", GUEST, "--simulate")[0]
    assert 1 == len(json.loads(run("status", "--json")[1])["active"])


@pytest.mark.parametrize("data", [b"", b"<domain", b"<!DOCTYPE a [<!ENTITY b 'c'>]><domain/>", b"\xff\xfe", b"<a/>"])
@pytest.mark.parametrize("verb", ["plan", "validate", "argv", "xml"])
def test_bad_xml_is_one_sentence_and_1(run: Callable[..., Any], tmp_path: Path, verb: str, data: bytes) -> None:
    """Whatever the bytes, one line on stderr and 1; no traceback."""
    path = tmp_path / "bad.xml"
    path.write_bytes(data)
    code, out, err = run(verb, str(path))
    assert (1, "") == (code, out)
    assert 1 <= len(err.splitlines()) <= 3
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", ["plan", "xml", "argv", "validate"])
def test_errors_stand_in_the_order_of_the_lines(run: Callable[..., Any], tmp_path: Path, verb: str) -> None:
    """Each verb reports all errors of a definition from the top to the bottom, whatever rule found them."""
    path = tmp_path / "guest.xml"
    hostdev = "<hostdev type='pci' asigned='no'><source><address bus='1'/></source></hostdev>"
    path.write_text(f"<domain type='kvm'>\n<name>n</name><devices>\n{hostdev}\n<tpm model='odd'/></devices></domain>")
    code, _, err = run(verb, str(path))
    assert (1, ["line 3", "line 4"]) == (code, re.findall("line [0-9]+", err))


def test_file_from_standard_input(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """FILE may be -."""
    text = Path(GUEST).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert 0 == run("plan", "-")[0]


def test_missing_file_is_a_sentence(run: Callable[..., Any], tmp_path: Path) -> None:
    """The error names a missing file."""
    code, _, err = run("plan", str(tmp_path / "nothing.xml"))
    assert (1, True) == (code, "nothing.xml" in err)


def test_argv_gives_the_guest_two_functions(run: Callable[..., Any]) -> None:
    """S3 and S8: functions 0 and 3 of one slot, nothing of 1 and 2."""
    argv = json.loads(run("argv", GUEST, "--json")[1])
    devices = [json.loads(v) for o, v in pairwise(argv) if o == "-device" and v[0] == "{"]
    hostdevs = [d for d in devices if d["driver"] == "vfio-pci"]
    assert [(CARD[0], "0x4"), (CARD[3], "0x4.0x3")] == [(d["host"], d["addr"]) for d in hostdevs]


@pytest.mark.parametrize("verb", ["argv", "plan", "start"])
def test_s1_missing_device_is_refused(run: Callable[..., Any], tmp_path: Path, verb: str) -> None:
    """S1: a device that is missing is refused with device-missing by plan, argv and start; validate accepts it."""
    path = tmp_path / "missing.xml"
    path.write_text(Path(GUEST).read_text().replace("bus='0x09'", "bus='0x0a'"))
    words = ["--simulate"] if verb == "start" else []
    code, out, err = run(verb, str(path), *words)
    assert 1 == code
    assert "device-missing" in out + err
    assert 0 == run("validate", str(path))[0]


def test_validate_names_the_line(run: Callable[..., Any], tmp_path: Path) -> None:
    """An error has the line of the element that is wrong."""
    path = tmp_path / "wrong.xml"
    text = Path(GUEST).read_text().replace("assigned='no'", "assigned='maybe'", 1)
    path.write_text(text)
    line = 1 + text[: text.index("maybe")].count("\n")
    code, _, err = run("validate", str(path))
    assert (1, True) == (code, f"line {line}:" in err)


def test_xml_complete_declares_what_is_missing(run: Callable[..., Any], incomplete: str, tmp_path: Path) -> None:
    """--complete adds functions 1 and 2 as not assigned; the result can start."""
    code, out, _ = run("xml", incomplete, "--complete")
    assert (0, 2) == (code, out.count("assigned='no'"))
    path = tmp_path / "complete.xml"
    path.write_text(out)
    assert 0 == run("plan", str(path))[0]


def test_xml_spelling_unassigned_has_no_attribute_libvirt_ignores(run: Callable[..., Any]) -> None:
    """For stock libvirt assigned= is never emitted."""
    code, out, _ = run("xml", GUEST, "--spelling", "unassigned")
    assert (0, 0, 2) == (code, out.count("assigned="), out.count("type='unassigned'"))


def test_help_and_version(capsys: Capture) -> None:
    """--version and --help end with 0."""
    assert 0 == main.main(["--version"])
    for words in (["--help"], *([verb, "--help"] for verb in main.VERBS)):
        with pytest.raises(SystemExit) as end:
            main.main(words)
        assert not end.value.code
    assert "pyhostdev 0." in capsys.readouterr().out


@pytest.mark.parametrize("words", [["status", "--json"], ["prepare", GUEST, "--simulate", "--libvirt", "12.8"]])
def test_changing_verbs_load_little(bcm5719: FakeHost, words: list[str]) -> None:
    """prepare and status import little: their start costs little more than that of argparse and lxml."""
    heavy = {"rich", "pyudev", "asyncio", "subprocess", "dataclasses", "cffi", "qemu", "logging"}
    code = (
        # the help of argparse in Python 3.14 needs dataclasses itself
        "import argparse, sys; argparse.ArgumentParser().format_usage(); before = set(sys.modules);"
        "from pyhostdev.tools.main import main;"
        f"code = main({[*words, '--root', bcm5719.root.path]!r});"
        f"print(sorted({heavy!r} & (set(sys.modules) - before)), code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[] 0" == done.stderr.strip()


# modules that the domain of GUEST does not need, by their room
UNUSED = {
    "conf": (
        *("boot_conf", "bus_address_conf", "clock_conf", "cpu_conf", "hmat_conf", "hypervisor_features_conf"),
        *("launch_security_conf", "small_device_conf", "vcpu_conf", "disk_validate", "xml.xmlprint"),
    ),
    "hypervisor": ("hostdev_release",),
    "testing": ("driverfiles", "faults", "guest", "procfiles", "topology"),
    "tools": ("table",),
    "util": ("groupindex", "pcilink", "selector"),
}


def test_prepare_loads_what_its_domain_uses(bcm5719: FakeHost) -> None:
    """prepare loads neither definitions of elements that the domain lacks, nor the release, nor what prints."""
    unused = {"string", *(f"pyhostdev.{room}.{name}" for room, names in UNUSED.items() for name in names)}
    assert all(find_spec(name) for name in unused)
    words = ["prepare", GUEST, "--simulate", "--root", bcm5719.root.path]
    code = f"from pyhostdev.tools.main import main; main({words!r})"
    program = f"{code}; import sys; print(*sorted({unused!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "" == done.stdout.strip()


@pytest.mark.parametrize("words", [["list"], ["show", CARD[0]], ["status"]])
def test_verbs_that_look_load_less(bcm5719: FakeHost, words: list[str]) -> None:
    """Reading verbs load no module for XML, plans or writes."""
    dear = {"lxml.etree", "rich", "pyhostdev.hypervisor.hostdev_planner", "pyhostdev.util.sysfs_writer", "subprocess"}
    code = f"from pyhostdev.tools.main import main; main({[*words, '--root', bcm5719.root.path]!r})"
    program = f"{code}; import sys; print(*sorted({dear!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "" == done.stderr.strip()


def test_a_caller_keeps_its_collector(capsys: Capture) -> None:
    """Only the command line's own process collects garbage rarely, and not at its end."""
    before = gc.get_threshold(), gc.get_freeze_count()
    assert 0 == main.main(["--version"])
    assert before == (gc.get_threshold(), gc.get_freeze_count())
    code = (
        "import gc; from pyhostdev.tools.main import main; main(); print(gc.get_threshold()[0], gc.get_freeze_count())"
    )
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True)
    threshold, frozen = map(int, done.stdout.split()[-2:])
    assert (main.COLLECT_AFTER, True) == (threshold, frozen > 1000)


def test_demo_runs(capsys: Capture) -> None:
    """The demo shows plan, prepare, argv, status and release, and ends with the host as it was."""
    assert 0 == main.main(["demo"])
    printed = capsys.readouterr().out
    assert all(f"$ pyhostdev {verb}" in printed for verb in ("plan", "prepare", "argv", "status", "release"))
    assert "byte for byte" in printed


def test_release_of_an_unknown_owner_is_reported(run: Callable[..., Any]) -> None:
    """A typo is refused; the release of a domain's file that a hook repeats is not."""
    assert (1, "", "pyhostdev: Domain 'TYPO' has no devices on this host\n") == run(
        "release", "--owner", "TYPO", "--simulate"
    )
    code, _, err = run("release", GUEST, "--simulate")
    assert (0, True) == (code, "has no devices on this host" in err)


def test_prepare_twice_is_success_with_a_note(run: Callable[..., Any], bcm5719: FakeHost) -> None:
    """The second call reports that there was nothing to do, and the release reattaches everything."""
    before = bcm5719.snapshot()
    assert (0, "", ANSWERED) == run("prepare", GUEST, "--simulate")
    code, out, err = run("prepare", GUEST, "--simulate")
    assert (0, "", True) == (code, out, "note: domain" in err and "already" in err)
    assert (0, "", "") == run("release", GUEST, "--simulate")
    assert before == bcm5719.snapshot()


def test_prepare_gives_nodes_to_a_user(run: Callable[..., Any], bcm5719: FakeHost) -> None:
    """--user is a name or a number."""
    before = bcm5719.snapshot()
    assert (0, "", ANSWERED) == run("prepare", GUEST, "--simulate", "--user", "107:36")
    node = bcm5719.kernel.read_node(bcm5719.root.vfio_group(14))
    assert node is not None
    assert (107, 36) == (node.uid, node.gid)
    assert (0, "", "") == run("release", GUEST, "--simulate")
    assert before == bcm5719.snapshot()


def loaded_by(code: str) -> set[str]:
    """Return the modules that code loads, with those of the interpreter's own start left out."""
    program = f"before = set(sys.modules); {code}; print(*sorted(set(sys.modules) - before), file=sys.stderr)"
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {PROJECT!r}); {program}"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())


def test_the_version_and_the_package_load_next_to_nothing() -> None:
    """--version and the package import no typing, no argparse and no metadata."""
    dear = {"typing", "re", "enum", "contextlib", "functools", "argparse", "json", "importlib.metadata"}
    assert set() == dear & loaded_by("import pyhostdev")
    assert set() == dear & loaded_by("from pyhostdev.tools.main import main; main(['--version'])")


def test_version_is_the_distributions(capsys: Capture) -> None:
    """The version in the code equals that of the distribution."""
    assert 0 == main.main(["--version"])
    assert f"pyhostdev {version('pyhostdev')}\n" == capsys.readouterr().out
    assert version("pyhostdev") == pyhostdev.__version__
    assert f'version = "{pyhostdev.__version__}"' in Path(PROJECT, "pyproject.toml").read_text()


@pytest.mark.parametrize(
    "words", [["\x1b[2J"], ["list", "--x\x1b[2J"], ["show", "0001:\x1b[2J"], ["list", "--group", "\x9b2J"]]
)
def test_usage_errors_are_escaped(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An argument in an error message cannot control the terminal."""
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    assert 2 == ended.value.code
    said = capsys.readouterr().err
    assert all(character.isprintable() for character in said.replace("\n", ""))
    assert "\\x1b[2J" in said or "\\x9b2J" in said
