# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Answers as lines that can be compared: those of a tree's server, and those that libvirt gave.

``shown`` is what a person reads in the difference of the two trees. ``judged`` is the part of it that libvirt's answer
can confirm: its own messages, and single writes to sysfs, are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from corpus import Case
from lxml import etree

COLUMNS = ("xml", "argv", "plan", "start", "edit", "live")

_NEUTRAL = (
    (re.compile(r"/domain--?\d+-"), "/domain--1-"),
    (re.compile(r"^(socket,id=charmonitor),.*"), r"\1,@MONITOR@"),
    (re.compile(r',"backing":null'), ""),
    (re.compile(r'("(?:vhost)?fds?":")[^"]*"'), r'\1@FD@"'),
    (re.compile(r"\bfd=\d+"), "fd=@FD@"),
    (re.compile(r"\bbase=(?:@NOW@|\d{4}-[\d:T-]*)"), "base=@NOW@"),
    (re.compile(r'("qom-type":"acpi-generic-initiator","id":"gi)\d+"'), r'\1@N@"'),
    (re.compile(r"[^\",= ]*/(swtpm|ram|dbus)/-?\d+-"), r"@STATE@/\1/-1-"),
    (re.compile(r"[^\",= ]*/channel/(?:target/)?(?:domain-)?-?\d+-"), "@STATE@/channel/-1-"),
    (re.compile(r"[^\",= ]*/qemu/nvram/"), "@NVRAM@/"),
)
_NO_COMMAND_LINE = re.compile(r"invalid PCI passthrough type 'default'|argument key 'driver' must not have null value")
_MEMORY_LIMIT = "cannot limit locked memory"  # of the machine on which libvirt's answers were recorded
NOT_ANSWERED = re.compile(r"'[a-z]+' is not answered")


class Answer(NamedTuple):
    """One column of one case."""

    shown: tuple[str, ...]
    judged: tuple[str, ...]

    @classmethod
    def same(cls, lines: Iterable[str]) -> Answer:
        """Return an answer of which all lines are judged."""
        found = tuple(lines)
        return cls(found, found)


def answer_of(column: str, reply: dict[str, Any], host: str, *, is_native: bool = False) -> Answer | None:
    """
    Return the lines of a server's reply, None if it does not answer questions of this kind.

    Args:
        host: the directory of the host, which is not shown.
        is_native: libvirt recorded no start, so that the backends of interfaces mean nothing.
    """
    if "ok" not in reply:
        message = reply["error"].replace(host, "@HOST@")
        if NOT_ANSWERED.fullmatch(message):
            return None
        number = "" if column == "argv" else f" {reply['code']}"
        return Answer((f"refused: {reply['code']} {message}",), (f"refused{number}",))
    if column in ("start", "live") and not _tells_writes(column, reply["ok"]):
        return None
    return _READERS[column](json.loads(json.dumps(reply["ok"]).replace(host, "@HOST@")), is_native)


def _tells_writes(column: str, value: dict[str, Any]) -> bool:
    """Tell whether an answer has the single writes; older servers tell only what they amount to."""
    return all("writes" in step for step in (value["steps"] if column == "live" else [value]))


def _xml(value: str, is_native: bool) -> Answer:
    return Answer.same(xml_lines(value))


def _argv(value: list[str], is_native: bool) -> Answer:
    return Answer.same(argv_lines(value, is_native=is_native))


def _plan(value: str, is_native: bool) -> Answer:
    return Answer.same(value.splitlines())


def _start(value: dict[str, Any], is_native: bool) -> Answer:
    shown = [f"error {value['code']}: {value['error']}"] if value["error"] else []
    shown += write_lines(value["writes"])
    return Answer(tuple(shown), _judged_start(value["code"], value["ops"]))


def _edit(value: dict[str, Any], is_native: bool) -> Answer:
    return Answer.same([*_codes(value["codes"]), *xml_lines(value["xml"])])


def _live(value: dict[str, Any], is_native: bool) -> Answer:
    shown = [line for step in value["steps"] for line in (_code(step["code"]), *write_lines(step["writes"]))]
    hostdevs = [line for xml in value["hostdevs"] for line in xml_lines(xml)]
    steps = [line for step in value["steps"] for line in (_code(step["code"]), *handover_lines(step["ops"]))]
    return Answer((*shown, *hostdevs), (*steps, *hostdevs))


_READERS: dict[str, Callable[[Any, bool], Answer]] = {
    "xml": _xml,
    "argv": _argv,
    "plan": _plan,
    "start": _start,
    "edit": _edit,
    "live": _live,
}


def recorded(case: Case, column: str) -> tuple[str, ...] | None:
    """Return libvirt's answer, comparable with ``judged``; None if it was not recorded."""
    reader = _RECORDINGS.get(column)
    return None if reader is None else reader(case)


def is_native(case: Case) -> bool:
    """Tell whether the recorded command line is not that of a start; README.md of the recordings says which is."""
    return not case.file(".start.args").exists() and (case.folder / "index.json").exists()


def _recorded_xml(case: Case) -> tuple[str, ...] | None:
    if case.file(".out.xml").exists():
        return tuple(xml_lines(case.file(".out.xml").read_text()))
    if case.file(".code").exists():
        return (f"refused {int(case.file('.code').read_text())}",)
    error = _errors(case).get("define")
    return None if error is None else (f"refused {error['code']}",)


def _recorded_argv(case: Case) -> tuple[str, ...] | None:
    found = next((case.file(suffix) for suffix in (".start.args", ".args") if case.file(suffix).exists()), None)
    if found is not None:
        words = [
            re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), line) for line in found.read_text().splitlines()
        ]
        return tuple(argv_lines(words, is_native=is_native(case)))
    error = _errors(case).get("argv")
    return None if error is None or _NO_COMMAND_LINE.search(error["message"]) else ("refused",)


def _recorded_start(case: Case) -> tuple[str, ...] | None:
    if not case.file(".start.json").exists() or case.file(".live").exists():  # it has the steps of .live in it
        return None
    value = json.loads(case.file(".start.json").read_text())
    error = value["error"]
    if error is not None and _MEMORY_LIMIT in error["message"]:
        return None
    return _judged_start(None if error is None else error["code"], _handovers(value["ops"]))


def _recorded_edit(case: Case) -> tuple[str, ...] | None:
    if not case.file(".edit.json").exists():
        return None
    codes = [error and error["code"] for error in json.loads(case.file(".edit.json").read_text())]
    return (*_codes(codes), *xml_lines(case.file(".edit.out.xml").read_text()))


def _recorded_live(case: Case) -> tuple[str, ...] | None:
    if not case.file(".live.json").exists():
        return None
    value = json.loads(case.file(".live.json").read_text())
    found: list[str] = []
    for step in value["steps"]:
        error = step["error"]
        found.append(_code(error and (error.get("code") or {"qemu": error["qemu"]})))
        found += handover_lines(_handovers(step["ops"]))
    return (*found, *(line for xml in value["hostdevs"] for line in xml_lines(xml)))


_RECORDINGS = {
    "xml": _recorded_xml,
    "argv": _recorded_argv,
    "start": _recorded_start,
    "edit": _recorded_edit,
    "live": _recorded_live,
}


def _errors(case: Case) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(case.file(".err").read_text()) if case.file(".err").exists() else {}
    return found


def xml_lines(text: str) -> Iterator[str]:
    """Yield one line an element: attributes sorted, without closing tags."""
    root = etree.fromstring(text.encode())
    for element in root.iter(etree.Element):
        depth = sum(1 for _ in element.iterancestors())
        attributes = sorted((str(name), str(value)) for name, value in element.attrib.items())
        words = "".join(f" {name}='{value}'" for name, value in attributes)
        content = (element.text or "").strip()
        line = f"{'  ' * depth}<{element.tag!s}{words}>{content}"
        yield re.sub(r"[^' >]*/qemu/nvram/", "@NVRAM@/", line)


def argv_lines(words: Sequence[str], *, is_native: bool = False) -> Iterator[str]:
    """Yield one line an option with its value, without what depends on the run."""
    line = ""
    for word in words:
        for pattern, replacement in _NEUTRAL:
            word = pattern.sub(replacement, word)
        if not word.startswith("-"):
            line = f"{line} {word}".lstrip()
            continue
        if line:
            yield _without_backend(line, is_native)
        line = word
    yield _without_backend(line, is_native)


def _without_backend(line: str, is_native: bool) -> str:
    """Return an option; domxml-to-native turns the backend of every interface into a tap, so only its id counts."""
    if not is_native or not line.startswith("-netdev "):
        return line
    match = re.search(r'"id":"([^"]*)"|\bid=([^,]*)', line)
    return f"-netdev id={match and (match[1] or match[2])}"


def write_lines(writes: Iterable[Sequence[str]]) -> list[str]:
    """Return one line a write to sysfs, in order."""
    return [f"{path} <- {value!r}{'' if result == 'ok' else f' ({result})'}" for path, value, result in writes]


def handover_lines(ops: Iterable[Sequence[str]]) -> list[str]:
    """Return one line for each device that is handed to a driver or given back, in order."""
    return [f"{path.split('/')[-2]} to {value.strip() or 'the host'}" for path, value, result in ops if result == "ok"]


def _handovers(ops: Iterable[Sequence[str]]) -> list[Sequence[str]]:
    return [op for op in ops if op[0].endswith("/driver_override") and op[2] == "ok"]


def _judged_start(code: int | None, ops: list[Sequence[str]]) -> tuple[str, ...]:
    """Return the verdict of a start; a failed one may have written or not, as the refusal came sooner or later."""
    return (f"error {code}",) if code is not None else ("started", *handover_lines(ops))


def _codes(codes: Iterable[Any]) -> list[str]:
    return [_code(code) for code in codes]


def _code(code: Any) -> str:
    if code is None:
        return "step: done"
    return f"step: QEMU refuses {code['qemu']}" if isinstance(code, dict) else f"step: error {code}"
