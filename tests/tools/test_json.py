# SPDX-License-Identifier: LGPL-2.1-or-later
"""The JSON output of the verbs matches their schemas, and the schemas accept nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hotplugging import card
from runningguests import running_guest

from pyhostdev.qemu.qemu_hotplug.livestate import format_hostdevs
from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.testing.faults import Fail
from pyhostdev.tools import arguments, main, parsers
from pyhostdev.tools.demo import GUEST
from pyhostdev.tools.list_selected import JSON_KEYS

TESTDATA = Path(__file__).parents[2] / "testdata"
CARD = [f"0001:09:00.{function}" for function in range(4)]
NVME = "0001:07:00.0"
CASES = (("gpu4-two", "gpu4"), ("gpu4-viommu", "gpu4"), ("vmd-controller", "vmd"), ("vf-vlan", "vf"))
PINNED = str(TESTDATA / "pins" / "pinned.xml")
OTHER = str(TESTDATA / "hostdev-pci-multifunction.xml")
Ask = Callable[..., Any]


def schemas() -> dict[str, Any]:
    """Return the shipped schemas by verb."""
    files = (resources.files("pyhostdev") / "schemas").iterdir()
    return {file.name.removesuffix(".json"): json.loads(file.read_text()) for file in files}


def verbs() -> list[str]:
    """Return the verbs that have --json."""
    return [verb for verb in main.VERBS if "--json" in parsers.verb_parser(verb).format_usage()]


@cache
def validator(verb: str) -> jsonschema.Draft202012Validator:
    """Return the validator of a verb's output."""
    return jsonschema.Draft202012Validator(schemas()[verb])


def errors(verb: str, value: object) -> list[str]:
    """Return the schema errors of a verb's output."""
    return [f"{error.json_path}: {error.message}" for error in validator(verb).iter_errors(value)]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """A function that runs a verb with --json on a host and returns its output, checked against its schema."""

    def ask_host(fake: FakeHost, verb: str, *words: str) -> Any:
        capsys.readouterr()
        root = [fake.root.path] if verb == "diff" else ["--root", fake.root.path]  # the second host
        main.main([verb, *words, "--json", *root])
        value = json.loads(capsys.readouterr().out)
        assert [] == errors(verb, value)
        return value

    return ask_host


def change(fake: FakeHost, *words: str) -> int:
    """Run a changing verb on a host, and return its exit code."""
    return main.main([*words, "--simulate", "--root", fake.root.path])


def guest(tmp_path: Path, *changes: tuple[str, str]) -> str:
    """Write a variant of the seed's guest and return its path."""
    text = Path(GUEST).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "guest.xml"
    path.write_text(text)
    return str(path)


def test_every_json_has_a_schema() -> None:
    """Each verb with --json has a schema of draft 2020-12, with its own identifier and a title."""
    found = schemas()
    assert sorted(verbs()) == sorted(found)
    for verb, schema in found.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert f"urn:pyhostdev:schema:{verb}:1" == schema["$id"]
        assert (f"pyhostdev {verb} --json", True) == (schema["title"], bool(schema["description"]))
        assert jsonschema.Draft202012Validator.META_SCHEMA["$id"] == schema["$schema"]


def subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield each object of a schema's text."""
    if isinstance(schema, dict):
        yield schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from subschemas(part)


@pytest.mark.parametrize("verb", verbs())
def test_schemas_are_strict(verb: str) -> None:
    """Every object is closed; all keys are required but a finding's line and chosen columns; every key is described."""
    schema, optional = schemas()[verb], {"line", *(JSON_KEYS.values() if verb == "list" else ())}
    for part in subschemas(schema):
        if part.get("type") == "object":
            assert part["additionalProperties"] is False
            assert set(part["properties"]) - optional == set(part["required"]) - optional
            for key, value in part["properties"].items():
                described = schema["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else value
                assert described["description"], key


@pytest.mark.parametrize("name", named_hosts())
def test_list_and_show(name: str, tmp_path: Path, ask: Ask) -> None:
    """The output for every host and every function matches."""
    fake = FakeHost.named(name, tmp_path)
    for function in ask(fake, "list"):
        assert function["address"] == ask(fake, "show", function["address"])["address"]


@pytest.mark.parametrize(("case", "tree"), CASES)
def test_plans_of_cases(case: str, tree: str, tmp_path: Path, ask: Ask) -> None:
    """The output for definitions from the field matches."""
    fake = FakeHost.from_tree(TESTDATA / "cases" / f"{tree}.tree", tmp_path)
    for policy in ("auto", "device", "group", "off"):
        assert policy == ask(fake, "plan", str(TESTDATA / "cases" / f"{case}.xml"), "--policy", policy)["policy"]


def test_plan_tells_groups_and_guest_addresses(bcm5719: FakeHost, ask: Ask) -> None:
    """Each member of a touched group has its role, its fate and, if assigned, its guest address."""
    plan = ask(bcm5719, "plan", GUEST)
    facts = [(f["name"], f["role"], f["fate"], f["guest_address"]) for f in plan["groups"][0]["functions"]]
    assert [
        (CARD[0], "assigned", "detached", "0000:00:04.0"),
        (CARD[1], "unassigned", "detached", None),
        (CARD[2], "unassigned", "detached", None),
        (CARD[3], "assigned", "detached", "0000:00:04.3"),
    ] == facts
    assert ("seed", 14, [], []) == (plan["owner"], plan["groups"][0]["iommu_group"], plan["accepted"], plan["proposal"])


def test_plan_chooses_guest_addresses_as_xml_does(bcm5719: FakeHost, ask: Ask, tmp_path: Path) -> None:
    """Without an address in the definition, the plan has the address that xml prints and start uses."""
    text = Path(GUEST).read_text()
    for function in ("0x0", "0x3"):
        at = text.index(f"<address type='pci' domain='0x0000' bus='0x00' slot='0x04' function='{function}'")
        text = text[:at] + text[text.index("/>", at) + 2 :]
    path = tmp_path / "guest.xml"
    path.write_text(text)
    functions = ask(bcm5719, "plan", str(path))["groups"][0]["functions"]
    chosen = [f["guest_address"] for f in functions if f["role"] == "assigned"]
    assert all(chosen)
    argv = ask(bcm5719, "argv", str(path))
    devices = [json.loads(word) for word in argv if word.startswith('{"driver":"vfio-pci"')]
    slots = [f"0000:00:{int(device['addr'].partition('.')[0], 16):02x}.0" for device in devices]
    assert [slots, CARD[::3]] == [chosen, [device["host"] for device in devices]]


def test_plan_proposes_what_is_missing(bcm5719: FakeHost, ask: Ask, tmp_path: Path) -> None:
    """The proposal of a refused plan names the functions that are not declared; undeclared ones have no role."""
    text = Path(GUEST).read_text()
    for function in ("0x1", "0x2"):
        start = text.index("    <hostdev", text.index(f"function='{function}'") - 260)
        text = text[:start] + text[text.index("</hostdev>", start) + len("</hostdev>\n") :]
    path = tmp_path / "incomplete.xml"
    path.write_text(text)
    plan = ask(bcm5719, "plan", str(path))
    assert [{"address": a, "managed": True, "multifunction": True} for a in CARD[1:3]] == plan["proposal"]
    undeclared = [f for f in plan["groups"][0]["functions"] if f["role"] is None]
    assert [(CARD[1], "stays"), (CARD[2], "stays")] == [(f["name"], f["fate"]) for f in undeclared]


def test_findings_of_all_severities(sriov: FakeHost, ask: Ask, tmp_path: Path) -> None:
    """Error, consent and note, with and without line; accepted consents are listed."""
    disk = "0000:02:00.0"
    source = ("domain='0x0001' bus='0x09' slot='0x00' function='0x0'", "domain='0' bus='2' slot='0' function='0'")
    file = guest(
        tmp_path,
        source,
        ("assigned='no'", "asigned='no'"),
        ("</devices>", "<video><driver name='vhostuser'/><model type='virtio'/></video></devices>"),
    )
    plan = ask(sriov, "plan", file)
    assert {"error", "consent", "note"} == {finding["severity"] for finding in plan["findings"]}
    assert {True, False} == {"line" in finding for finding in plan["findings"]}
    assert {"missing", "detached"} <= {f["fate"] for group in plan["groups"] for f in group["functions"]}
    accepted = ask(sriov, "plan", file, "--accept", f"mounted:{disk}")["accepted"]
    assert [{"reason": "mounted", "address": disk}] == accepted


@pytest.fixture
def sriov(fakehost: Callable[[str], FakeHost]) -> FakeHost:
    """A host whose disk is mounted."""
    return fakehost("sriov")


def test_status_tells_role_drivers_and_since(bcm5719: FakeHost, ask: Ask) -> None:
    """Devices in use, with their owner, with their owner and unit, and one detached without an owner."""
    empty = ask(bcm5719, "status")
    assert {"version": 1, "active": [], "inactive": []} == empty
    assert 0 == change(bcm5719, "prepare", GUEST)
    assert 0 == change(bcm5719, "nodedev-detach", NVME, "--driver", "pci-stub")
    status = ask(bcm5719, "status")
    assert [*zip(CARD, ("assigned", "kept", "kept", "assigned"), strict=True)] == [
        (dev["address"], dev["role"]) for dev in status["active"]
    ]
    assert {("vfio-pci", "tg3", "seed", "0001:09:00", "prepared")} == {
        (dev["driver"], dev["original_driver"], dev["owner"], dev["unit"], dev["phase"]) for dev in status["active"]
    }
    nobody = status["inactive"][0]
    assert (NVME, None, "pci-stub", "nvme") == tuple(
        nobody[key] for key in ("address", "role", "driver", "original_driver")
    )
    assert all(dev["since"] for dev in (*status["active"], nobody))


def test_status_of_other_versions(bcm5719: FakeHost, ask: Ask) -> None:
    """A record of the first release has no role and time; one of a newer version only shows that it is in use."""
    assert 0 == change(bcm5719, "nodedev-detach", NVME)
    state = Path(bcm5719.root.path, "run/pyhostdev")
    for path in (TESTDATA / "records-0.1.0").iterdir():
        (state / path.name.replace("-", ":")).write_bytes(path.read_bytes())
    (state / f"{NVME}.json").write_text('{"version": 99, "record": {"owner": "vm9"}}')
    status = ask(bcm5719, "status")
    assert {(None, None)} == {(dev["role"], dev["since"]) for dev in (*status["active"], *status["inactive"])}
    assert ("vm9", None) == next((d["owner"], d["original_driver"]) for d in status["active"] if d["address"] == NVME)


def test_recover_after_a_crash(bcm5719: FakeHost, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, a file that is not a record, devices left behind and devices kept in use."""
    assert [] == ask(bcm5719, "recover", "--simulate")["records"]
    assert 0 == change(bcm5719, "prepare", GUEST)
    Path(bcm5719.root.path, "run/pyhostdev", f"{NVME}.json").write_text("{}")
    found = ask(bcm5719, "recover", "--simulate")["records"]
    assert {"kept", "set-aside"} == {record["outcome"] for record in found}
    with monkeypatch.context() as patch:
        patch.setattr(arguments, "_writer_of", lambda *_: bcm5719.kernel)
        bcm5719.kernel.inject(5, Fail(5))
        assert 4 == change(bcm5719, "release", GUEST)
    found = ask(bcm5719, "recover", "--simulate", "--all")["records"]
    assert {"restored", "set-aside"} == {record["outcome"] for record in found}


def mutations(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield invalid variants of an output: a missing key, an additional key, a value or an item of another type."""
    for path in list(paths(value)):
        for name, wrong in (("another type", {"wrong": 1}), ("no key", None), ("a new key", None)):
            variant = copy.deepcopy(value)
            holder = variant
            for key in path[:-1]:
                holder = holder[key]
            if name == "another type":
                holder[path[-1]] = wrong
            elif name == "no key" and isinstance(holder, dict) and path[-1] != "line":
                del holder[path[-1]]
            elif name == "a new key" and isinstance(holder, dict):
                holder["surprise"] = 1
            else:
                continue
            yield f"{name} at {path}", variant


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each part of a value; of a list, only its first item."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in items:
        yield (*above, key)
        yield from paths(part, (*above, key))


def plugged(fake: FakeHost, ask: Ask, tmp_path: Path) -> dict[str, list[Any]]:
    """Plug the card into a running guest and unplug it; return what both verbs print."""
    path = tmp_path / "unit.xml"
    path.write_text(format_hostdevs(card()))
    verbs_of_units = ("attach-device", "detach-device")
    with running_guest(fake):
        return {verb: [ask(fake, verb, "vm1", str(path), "--simulate")] for verb in verbs_of_units}


SAMPLES: dict[str, list[tuple[str, ...]]] = {
    "list": [()],
    "show": [(CARD[0],)],
    "plan": [(GUEST,), (GUEST, "--accept", f"mounted:{NVME}"), (PINNED, "--find")],
    "argv": [(GUEST,)],
    "addresses": [(GUEST,), (GUEST, "--against-libvirt", "12.8"), (GUEST, "--diff", OTHER)],
    "status": [()],
    "recover": [("--simulate",)],
}


def test_list_has_the_chosen_columns(fakehost: Callable[[str], FakeHost], ask: Ask) -> None:
    """--names and --columns add keys to the usual ones; columns that JSON has already add none."""
    sriov = fakehost("sriov")
    disk = ["--group", "3"]
    (plain,), (named,) = ask(sriov, "list", *disk), ask(sriov, "list", "--names", *disk)
    assert [plain] == ask(sriov, "list", "--columns", "address,vfio", *disk)
    more = {key: value for key, value in named.items() if key not in plain}
    assert {"name", "netdevs", "blocks", "mounts", "owner"} == set(more)
    assert (["nvme0n1"], [], None) == (more["blocks"], more["netdevs"], more["owner"])
    (columns,) = ask(sriov, "list", "--columns", "mounts,numa", *disk)
    assert ({"mounts", "numa_node"}, 0) == (set(columns) - set(plain), columns["numa_node"])
    assert ["/"] == columns["mounts"]


@pytest.mark.parametrize("verb", verbs())
def test_schemas_refuse_every_mutation(verb: str, bcm5719: FakeHost, ask: Ask, tmp_path: Path) -> None:
    """A missing key, a new key, or a value of another type is refused at any place of the output."""
    if verb in ("status", "recover"):
        assert 0 == change(bcm5719, "prepare", GUEST)
        assert 0 == change(bcm5719, "nodedev-detach", NVME)
    if verb == "diff":
        SAMPLES[verb] = [(FakeHost.named("sriov", tmp_path / "other").root.path, "--domain", GUEST)]
    if verb.endswith("-device"):
        samples = plugged(bcm5719, ask, tmp_path)[verb]
    else:
        samples = [ask(bcm5719, verb, *words) for words in SAMPLES[verb]]
    if verb == "plan":
        path = guest(tmp_path, ("function='0x2'", "function='0x5'"))
        samples.append(ask(bcm5719, verb, path))
        assert samples[-1]["findings"] and samples[-1]["proposal"]
    wrong = [(what, variant) for sample in samples for what, variant in mutations(sample)]
    assert [] == [what for what, variant in wrong if validator(verb).is_valid(variant)]
    assert errors(verb, {"wrong": 1} if verb != "list" else [1])
    assert wrong
