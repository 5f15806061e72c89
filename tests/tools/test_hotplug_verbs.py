# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs that plug and unplug: exit codes, output, the stored definition, and interrupted changes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hotplugging import CARD, UNIT, card, live_domain
from runningguests import running_guest

from pyhostdev import DomainDef, Host, HostdevManager
from pyhostdev.qemu.qemu_hotplug.livestate import format_hostdevs
from pyhostdev.testing import FakeHost
from pyhostdev.tools import main

Verb = Callable[..., int]
SCHEMAS = Path(main.__file__).parents[1] / "schemas"


@pytest.fixture
def unit(tmp_path: Path) -> str:
    """The file of the seed's card."""
    path = tmp_path / "unit.xml"
    path.write_text(format_hostdevs(card()))
    return str(path)


@pytest.fixture
def verb(bcm5719: FakeHost) -> Verb:
    """A function that runs a changing verb on the host, and returns its exit code."""
    return lambda *words: main.main([*map(str, words), "--simulate", "--root", bcm5719.root.path])


def drivers(fake: FakeHost) -> list[str | None]:
    found = [Host(fake.root).pci_device(address) for address in CARD]
    return [None if dev is None else dev.driver for dev in found]


def read_json(capsys: pytest.CaptureFixture[str], name: str) -> Any:
    """Return the JSON output of a verb, checked against its schema."""
    value = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text())).validate(value)
    return value


def status(fake: FakeHost, capsys: pytest.CaptureFixture[str]) -> set[tuple[str, str]]:
    """The units and phases of the active list."""
    capsys.readouterr()
    assert 0 == main.main(["status", "--json", "--root", fake.root.path])
    return {(device["unit"], device["phase"]) for device in read_json(capsys, "status")["active"]}


@pytest.mark.parametrize("machine", ["pc", "q35-native"])
def test_s9_a_second_process_plugs_and_unplugs_a_card(
    bcm5719: FakeHost, verb: Verb, unit: str, machine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seed's mask 1001: two functions in one slot of the guest; the drivers before, during and after."""
    with running_guest(bcm5719, machine=machine) as guest:
        assert ["tg3"] * 4 == drivers(bcm5719)
        assert 0 == verb("attach-device", "vm1", unit, "--json")
        answer = read_json(capsys, "attach-device")
        assert ("plugged", UNIT) == (answer["outcome"], answer["unit"])
        assert ["hostdev0", None, None, "hostdev1"] == [f["alias"] for f in answer["functions"]]
        assert {(UNIT, "plugged")} == status(bcm5719, capsys)
        assert ["vfio-pci"] * 4 == drivers(bcm5719)
        assert [0, 3] == [place.function for place in guest.qemu.machine.guest_sees()]
        assert 0 == verb("detach-device", "vm1", unit, "--json")
        assert "given-back" == read_json(capsys, "detach-device")["outcome"]
        assert (["tg3"] * 4, [], set()) == (drivers(bcm5719), guest.qemu.ids, status(bcm5719, capsys))


def test_a_deaf_guest_is_pending(bcm5719: FakeHost, verb: Verb, unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 5, nothing is reattached; after the guest's reset, the same command finishes."""
    with running_guest(bcm5719, guest="deaf") as guest:
        assert 0 == verb("attach-device", "vm1", unit)
        for _ in range(2):
            assert 5 == verb("detach-device", "vm1", unit, "--timeout", "0.1")
            assert "pending: The guest of domain 'vm1' was asked" in capsys.readouterr().err
            assert {(UNIT, "unplugging")} == status(bcm5719, capsys)
        assert 5 == verb("detach-device", "vm1", unit, "--timeout", "0.1", "--json")
        assert "pending" == read_json(capsys, "detach-device")["outcome"]
        guest.qemu.reset()
        assert 0 == verb("detach-device", "vm1", unit, "--json")
        assert "given-back" == read_json(capsys, "detach-device")["outcome"]
        assert ["tg3"] * 4 == drivers(bcm5719)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def test_the_wait_is_shown_on_a_terminal(
    bcm5719: FakeHost, verb: Verb, unit: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal one line counts the remaining seconds and is erased at the end; elsewhere nothing is printed."""
    with running_guest(bcm5719, guest="deaf"):
        assert 0 == verb("attach-device", "vm1", unit)
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            assert 5 == verb("detach-device", "vm1", unit, "--timeout", "1.2")
        shown = terminal.getvalue()
        assert "\rwaiting for the guest, 1 s left \rwaiting for the guest, 0 s left \r\x1b[K" in shown
        capsys.readouterr()
        assert 5 == verb("detach-device", "vm1", unit, "--timeout", "0.1")
        assert "waiting" not in capsys.readouterr().err


def test_refused(bcm5719: FakeHost, verb: Verb, unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1, and nothing changed: without a guest, without its owner, a part of a unit, another element."""
    assert 1 == verb("attach-device", "vm1", unit)
    assert "guest-absent" in capsys.readouterr().err
    with running_guest(bcm5719, has_owner=False) as guest:
        assert 1 == verb("attach-device", "vm1", unit)
        assert "has ended" in capsys.readouterr().err
        assert (["tg3"] * 4, []) == (drivers(bcm5719), guest.qemu.ids)


def test_a_part_of_a_unit(
    bcm5719: FakeHost, verb: Verb, unit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of a unit is refused by name, and so is an element that is not a host device."""
    one, disk = tmp_path / "one.xml", tmp_path / "disk.xml"
    one.write_text(card()[0].format())
    disk.write_text("<devices><disk type='file'/></devices>")
    with running_guest(bcm5719) as guest:
        assert 0 == verb("attach-device", "vm1", unit)
        assert 1 == verb("detach-device", "vm1", one)
        assert f"partial-unit: Function {CARD[1]}" in capsys.readouterr().err
        assert 1 == verb("attach-device", "vm1", disk)
        assert "A <disk> cannot be plugged" in capsys.readouterr().err
        assert ["hostdev0", "hostdev1"] == guest.qemu.ids


def test_rolled_back(bcm5719: FakeHost, verb: Verb, unit: str) -> None:
    """Exit 3: QEMU could not lock the memory, and the host is restored."""
    with running_guest(bcm5719, memory=1 << 50) as guest:
        assert guest.qemu.host_side is not None
        guest.qemu.host_side.process.put_limit(65536, 65536)
        assert 3 == verb("attach-device", "vm1", unit)
        assert (["tg3"] * 4, 65536) == (drivers(bcm5719), guest.qemu.host_side.process.read_limit())


def stored(tmp_path: Path, fake: FakeHost, name: str = "vm1") -> Path:
    """A definition on disk."""
    path = tmp_path / "vm1.xml"
    path.write_text(live_domain(fake).format().replace("<name>vm1<", f"<name>{name}<"))
    path.chmod(0o640)
    return path


def hostdevs(path: Path) -> list[str]:
    return [str(hostdev.pci_address) for hostdev in DomainDef.parse(path.read_bytes()).hostdevs]


def test_config_alone(bcm5719: FakeHost, verb: Verb, unit: str, tmp_path: Path) -> None:
    """Only the file changes, with all functions of the unit; its mode is kept."""
    path = stored(tmp_path, bcm5719)
    before = bcm5719.snapshot()
    assert 0 == verb("attach-device", "vm1", unit, "--config", path)
    assert (CARD, 0o640) == (hostdevs(path), path.stat().st_mode & 0o777)
    slots = {str(h.info.pci.pci)[:-2] for h in DomainDef.parse(path.read_bytes()).hostdevs if h.info.pci is not None}
    assert 1 == len(slots)
    assert 1 == verb("attach-device", "vm1", unit, "--config", path)
    assert 0 == verb("detach-device", "vm1", unit, "--config", path)
    assert 1 == verb("detach-device", "vm1", unit, "--config", path)
    assert ([], before) == (hostdevs(path), bcm5719.snapshot())


def test_config_names_what_libvirt_would_not_see(
    bcm5719: FakeHost, verb: Verb, unit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is written with assigned=, and without the words that an older release lacks."""
    path = stored(tmp_path, bcm5719)
    path.write_text(path.read_text().replace("<name>", "<hwuuid>00000000-0000-4000-8000-000000000001</hwuuid><name>"))
    assert 0 == verb("attach-device", "vm1", unit, "--config", path, "--libvirt", "9.0")
    said = capsys.readouterr().err
    assert "assigned='yes'" in path.read_text()
    assert "libvirt ignores 'assigned='" in said
    assert "<hwuuid> is ignored, as in libvirt 9.0" in said


def test_config_of_another_domain(bcm5719: FakeHost, verb: Verb, unit: str, tmp_path: Path) -> None:
    """A definition with another name than the owner's is refused; the running guest is not touched."""
    path = stored(tmp_path, bcm5719, "vm2")
    with running_guest(bcm5719) as guest:
        assert 1 == verb("attach-device", "vm1", unit, "--live", "--config", path)
        assert ([], []) == (hostdevs(path), guest.qemu.ids)


def test_both(bcm5719: FakeHost, verb: Verb, unit: str, tmp_path: Path) -> None:
    """The file is written after the guest has plugged or released the unit."""
    path = stored(tmp_path, bcm5719)
    with running_guest(bcm5719, guest="deaf") as guest:
        assert 0 == verb("attach-device", "vm1", unit, "--live", "--config", path)
        assert (CARD, ["hostdev0", "hostdev1"]) == (hostdevs(path), guest.qemu.ids)
        assert 5 == verb("detach-device", "vm1", unit, "--live", "--config", path, "--timeout", "0.1")
        assert CARD == hostdevs(path)
        guest.qemu.reset()
        assert 0 == verb("detach-device", "vm1", unit, "--live", "--config", path)
        assert [] == hostdevs(path)


def test_a_file_that_cannot_be_written(
    bcm5719: FakeHost, verb: Verb, unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 4 if the guest has changed already, else 1; the file is unchanged, and no temporary file remains."""
    import os

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "d").mkdir()
    path = stored(tmp_path / "d", bcm5719)
    before = path.read_bytes()
    monkeypatch.setattr(os, "rename", refuse_of(path, os.rename, refuse))
    assert 1 == verb("attach-device", "vm1", unit, "--config", path)
    with running_guest(bcm5719) as guest:
        assert 4 == verb("attach-device", "vm1", unit, "--live", "--config", path)
        assert ["hostdev0", "hostdev1"] == guest.qemu.ids
    assert (before, [path]) == (path.read_bytes(), list(path.parent.iterdir()))


@pytest.mark.parametrize("why", ["directory", "owner"])
def test_a_file_that_this_user_cannot_replace(
    bcm5719: FakeHost,
    verb: Verb,
    unit: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    why: str,
) -> None:
    """Exit 1 before the running guest is changed: a read-only directory, and a file of another user."""
    import os

    path = stored(tmp_path, bcm5719)
    before = path.read_bytes()
    if why == "directory":
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
    else:
        monkeypatch.setattr("pyhostdev.tools.hotplug.os.geteuid", lambda: path.stat().st_uid + 1)
    with running_guest(bcm5719) as guest:
        assert 1 == verb("attach-device", "vm1", unit, "--live", "--config", path)
        assert f"Cannot replace '{path}'" in capsys.readouterr().err
        assert ([], before) == (guest.qemu.ids, path.read_bytes())


def test_a_definition_on_standard_input(verb: Verb, unit: str) -> None:
    """It cannot be replaced, so the call is wrong."""
    with pytest.raises(SystemExit) as end:
        verb("attach-device", "vm1", unit, "--live", "--config", "-")
    assert 2 == end.value.code


def refuse_of(path: Path, rename: Callable[..., None], refuse: Callable[..., None]) -> Callable[..., None]:
    """A rename that is refused for one target."""

    def chosen(source: Any, target: Any, **fds: Any) -> None:
        (refuse if str(target) == str(path) else rename)(source, target, **fds)

    return chosen


def test_update(bcm5719: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only a definition is updated: a running guest is refused, and so is a device that libvirt does not update."""
    path, device = stored(tmp_path, bcm5719), tmp_path / "device.xml"
    mac = "<mac address='52:54:00:00:00:01'/>"
    text = path.read_text()
    net = f"<interface type='user'>{mac}<model type='virtio'/></interface>"
    path.write_text(text.replace("<memballoon", f"{net}<memballoon"))
    device.write_text(net.replace("virtio", "e1000"))
    root = ("--root", bcm5719.root.path)
    assert 1 == main.main(["update-device", "vm1", str(device), *root])
    assert "running guest cannot be updated" in capsys.readouterr().err
    assert 0 == main.main(["update-device", "vm1", str(device), "--config", str(path), *root])
    assert "e1000" == DomainDef.parse(path.read_bytes()).interfaces[0].model
    device.write_text(card()[0].format())
    assert 1 == main.main(["update-device", "vm1", str(device), "--config", str(path), *root])


def test_one_process_at_a_time(bcm5719: FakeHost, verb: Verb, unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A second process is refused after a short wait: it would wait at the control socket for ever."""
    with running_guest(bcm5719) as guest, guest.directory.controlling():
        assert 1 == verb("attach-device", "vm1", unit)
        assert "Another process is changing the devices" in capsys.readouterr().err


def test_recover_finishes_without_an_owner(bcm5719: FakeHost, verb: Verb, unit: str) -> None:
    """If the guest outlives its owner, recover or detach-device reattaches the units that the guest releases."""
    with running_guest(bcm5719, guest="deaf") as guest:
        assert 0 == verb("attach-device", "vm1", unit)
        assert 5 == verb("detach-device", "vm1", unit, "--timeout", "0.1")
        assert 0 == verb("recover")
        assert ["vfio-pci"] * 4 == drivers(bcm5719)
        guest.qemu.reset()
        assert 0 == verb("recover")
        assert ["tg3"] * 4 == drivers(bcm5719)


def test_recover_after_the_death_of_all(
    bcm5719: FakeHost, verb: Verb, unit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without owner and QEMU, recover reattaches a unit that was being unplugged; a plugged one needs --all."""
    with running_guest(bcm5719, guest="deaf"):
        assert 0 == verb("attach-device", "vm1", unit)
        assert 5 == verb("detach-device", "vm1", unit, "--timeout", "0.1")
    assert 0 == verb("recover")
    assert ["tg3"] * 4 == drivers(bcm5719)


def test_a_plugged_unit_stays_after_the_death_of_all(bcm5719: FakeHost, verb: Verb, unit: str) -> None:
    """Like any prepared device, a plugged unit is only released on request."""
    with running_guest(bcm5719):
        assert 0 == verb("attach-device", "vm1", unit)
    assert 0 == verb("recover")
    assert ["vfio-pci"] * 4 == drivers(bcm5719)
    assert 0 == verb("recover", "--all")
    assert ["tg3"] * 4 == drivers(bcm5719)


def test_release_at_the_end_gives_back_what_was_plugged(bcm5719: FakeHost, verb: Verb, unit: str) -> None:
    """The owner's release at the end reattaches plugged units in any phase."""
    manager = HostdevManager(Host(bcm5719.root, writer=bcm5719.kernel))
    with running_guest(bcm5719):
        assert 0 == verb("attach-device", "vm1", unit)
    assert CARD == sorted(map(str, manager.release("vm1", guest_ended=True)))
    assert ["tg3"] * 4 == drivers(bcm5719)
