# SPDX-License-Identifier: LGPL-2.1-or-later
"""The libvirt hook, called in libvirt's way on a simulated host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhostdev.conf.domain_conf import DomainDef
from pyhostdev.hypervisor.host import Host
from pyhostdev.testing import FakeHost
from pyhostdev.tools import main
from pyhostdev.tools.hook import NAME

KEPT = "<address type='unassigned'/>"
Hook = Callable[..., tuple[int, str]]


def hostdev(function: int, managed: str, more: str = "") -> str:
    """One function of the card."""
    source = f"<source><address domain='1' bus='9' slot='0' function='{function}'/></source>"
    return f"<hostdev mode='subsystem' type='pci' managed='{managed}'>{source}{more}</hostdev>"


def guest(*hostdevs: str) -> str:
    """A domain with the parts of libvirt's XML for a hook that matter here."""
    return (
        "<domain type='qemu'><name>vm1</name><memory unit='KiB'>131072</memory>"
        "<os><type arch='x86_64' machine='pc'>hvm</type></os>"
        f"<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{''.join(hostdevs)}</devices></domain>"
    )


MIXED = guest(hostdev(0, "yes"), hostdev(1, "no", KEPT), hostdev(2, "no", KEPT), hostdev(3, "yes"))


@pytest.fixture
def hook(bcm5719: FakeHost, tmp_path: Path) -> Hook:
    """A function that runs the installed file as libvirt does, with an empty environment."""
    options = ["--root", bcm5719.root.path, "--simulate"]
    assert 0 == main.main(["hook", "--install", *options])
    path = bcm5719.root.libvirt_hook(NAME)

    def call(operation: str, moment: str, xml: str = MIXED) -> tuple[int, str]:
        done = subprocess.run(
            [path, "vm1", operation, moment, "-"],
            input=xml,
            capture_output=True,
            text=True,
            env={"LC_ALL": "C", "PATH": os.defpath},
            cwd="/",
        )
        assert "" == done.stdout
        return done.returncode, done.stderr

    return call


def owned(fake: FakeHost) -> dict[str, str | None]:
    """Return the functions on the active list with their owners."""
    return {str(device.address): device.owner for device in Host(fake.root).status().active}


def drivers(fake: FakeHost) -> list[str]:
    """Return the drivers of the card's functions, in order."""
    top = fake.root.pci_devices
    return [os.path.basename(os.readlink(f"{top}/0001:09:00.{f}/driver")) for f in range(4)]


def test_only_what_libvirt_leaves_is_prepared_and_given_back(bcm5719: FakeHost, hook: Hook) -> None:
    """Managed devices are libvirt's; unmanaged ones, kept ones too, are prepared, and return to their drivers."""
    before = bcm5719.snapshot()
    assert (0, "") == hook("prepare", "begin")
    assert ["tg3", "vfio-pci", "vfio-pci", "tg3"] == drivers(bcm5719)
    assert {"0001:09:00.1": "vm1", "0001:09:00.2": "vm1"} == owned(bcm5719)
    assert (0, "") == hook("release", "end")
    assert before == bcm5719.snapshot()


def test_plan_with_obstacles_stops_the_start(bcm5719: FakeHost, hook: Hook) -> None:
    """A port of the group that the domain does not declare is named with its reason, and nothing is touched."""
    before = bcm5719.snapshot()
    code, said = hook("prepare", "begin", guest(hostdev(0, "no"), hostdev(1, "no", KEPT), hostdev(3, "yes")))
    assert 1 == code
    assert "0001:09:00.2" in said
    assert "incomplete-device" in said
    assert before == bcm5719.snapshot()


def test_repeated_calls_are_successes(bcm5719: FakeHost, hook: Hook) -> None:
    """A repeated prepare or release of the same guest succeeds."""
    before = bcm5719.snapshot()
    assert [(0, ""), (0, "")] == [hook("prepare", "begin"), hook("prepare", "begin")]
    assert {"0001:09:00.1": "vm1", "0001:09:00.2": "vm1"} == owned(bcm5719)
    assert [(0, ""), (0, "")] == [hook("release", "end"), hook("release", "end")]
    assert before == bcm5719.snapshot()


def test_changed_definition_gets_its_own_devices(bcm5719: FakeHost, hook: Hook) -> None:
    """What an interrupted start prepared, and the new definition leaves to libvirt, goes back first."""
    before = bcm5719.snapshot()
    assert (0, "") == hook("prepare", "begin")
    other = guest(hostdev(0, "yes"), hostdev(1, "yes", KEPT), hostdev(2, "yes", KEPT), hostdev(3, "no"))
    assert (0, "") == hook("prepare", "begin", other)
    assert ["tg3", "tg3", "tg3", "vfio-pci"] == drivers(bcm5719)
    assert (0, "") == hook("prepare", "begin", guest())
    assert before == bcm5719.snapshot()


def test_device_of_another_guest_stops_the_start(bcm5719: FakeHost, hook: Hook) -> None:
    """A device with another owner is not taken, although libvirt does not know that owner."""
    card = ["--keep", *(f"0001:09:00.{function}" for function in range(4))]
    root = ["--root", bcm5719.root.path, "--simulate"]
    assert 0 == main.main(["prepare", "--owner", "other", *card, *root])
    code, said = hook("prepare", "begin")
    assert 1 == code
    assert "is in use by domain 'other'" in said
    assert (0, "") == hook("release", "end")  # libvirt calls it after a refused start, too
    assert {"other"} == set(owned(bcm5719).values())


def test_pins_are_compared(bcm5719: FakeHost, hook: Hook) -> None:
    """A pin of a managed device does not hinder the preparing of the others; a pin of another device refuses."""
    definition = DomainDef.parse(MIXED)
    pinned = definition.with_hostdev_pins(Host(bcm5719.root).read_pins(definition)).format()
    assert 0 == hook("prepare", "begin", pinned)[0]
    assert 0 == hook("release", "end")[0]
    assert "0x1657" in pinned
    code, said = hook("prepare", "begin", pinned.replace("0x1657", "0x1658", 1))
    assert 1 == code
    assert "changed-identity" in said


@pytest.mark.parametrize(
    ("operation", "moment"),
    [("start", "begin"), ("started", "begin"), ("stopped", "end"), ("reconnect", "begin"), ("attach", "begin")],
)
@pytest.mark.parametrize("is_installed", [True, False])
def test_other_operations_do_nothing(
    operation: str, moment: str, is_installed: bool, bcm5719: FakeHost, hook: Hook
) -> None:
    """A hook that fails at reconnect would end a running guest: such calls succeed, whatever is on standard input."""
    before = bcm5719.snapshot()
    if is_installed:
        assert (0, "") == hook(operation, moment, "<broken")
    else:
        words = ["vm1", operation, moment, "-"]
        assert 0 == main.main(["hook", "--root", bcm5719.root.path, "--simulate", "--", *words])
    assert before == bcm5719.snapshot()


def test_guest_without_host_devices_starts_always(bcm5719: FakeHost, hook: Hook) -> None:
    """A domain without host devices always starts, even one that pyhostdev would refuse."""
    before = bcm5719.snapshot()
    strange = guest().replace("131072", "a lot")
    assert (0, "") == hook("prepare", "begin", strange)
    assert before == bcm5719.snapshot()


def test_hook_is_never_written_over_a_file(bcm5719: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    """Installing twice succeeds; --install and --uninstall leave any other file alone."""
    options = ["--root", bcm5719.root.path, "--simulate"]
    path = Path(bcm5719.root.libvirt_hook(NAME))
    assert [0, 0] == [main.main(["hook", "--install", *options]) for _ in range(2)]
    assert 0o755 == path.stat().st_mode & 0o777
    assert 1 == main.main(["hook", "--install", "--policy", "group", *options])
    assert "hook-exists" in capsys.readouterr().err
    assert [0, 0] == [main.main(["hook", "--uninstall", *options]) for _ in range(2)]
    assert not path.exists()
    path.write_text("#!/bin/sh\nexit 0\n")
    assert [1, 1] == [main.main(["hook", word, *options]) for word in ("--install", "--uninstall")]
    assert "#!/bin/sh\nexit 0\n" == path.read_text()


def test_installed_hook_has_the_options(bcm5719: FakeHost) -> None:
    """The installed hook uses the consents and the policy given to --install."""
    options = ["--policy", "group", "--accept", "boot-vga:0000:01:00.0", "--timeout", "5"]
    assert 0 == main.main(["hook", "--install", *options, "--root", bcm5719.root.path, "--simulate"])
    text = Path(bcm5719.root.libvirt_hook(NAME)).read_text()
    assert "--policy group --accept boot-vga:0000:01:00.0 --timeout 5" in text
